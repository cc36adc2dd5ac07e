import json

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from backdoor_audit.errors import OptionError
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.triggers.strategies import STRATEGIES, image_batches, patches, triggers
from backdoor_audit.triggers.written import KINDS, trigger_from_spec
from tests.subjects import quick, row_images, row_reader

SHAPE = (3, 9, 12)
SHAPES = st.sampled_from((SHAPE, (1, 8, 8)))
shrinking = settings(quick, max_examples=2000, phases=(Phase.generate, Phase.shrink))


@given(st.data())
@quick
def test_a_drawn_trigger_stamps_inside_the_pixel_range_and_comes_back_from_json(data):
    shape = data.draw(SHAPES)
    trigger = data.draw(triggers(shape, target_class=st.integers(0, 4)))
    images = data.draw(image_batches(shape))
    before = images.clone()
    stamped = trigger.stamp(images)
    assert stamped.shape == images.shape
    assert float(stamped.min()) >= 0
    assert float(stamped.max()) <= 1 + 1e-6
    assert torch.equal(images, before)
    again = trigger_from_spec(json.loads(json.dumps(trigger.spec())))
    assert again == trigger
    assert torch.equal(again.stamp(images), stamped)
    assert 0 <= trigger.target_class <= 4
    assert all(picture.ndim == 3 for picture in trigger.pictures(shape).values())


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_kind_can_be_drawn_by_itself(kind):
    seen = []

    @given(triggers(SHAPE, kinds=(kind,), target_class=7))
    @settings(quick, max_examples=10)
    def draw(trigger):
        seen.append(trigger)

    draw()
    assert {trigger.target_class for trigger in seen} == {7}
    assert len({type(trigger) for trigger in seen}) == 1
    assert len(set(seen)) > 1


def test_all_kinds_of_triggers_can_be_drawn():
    first = settings(quick, phases=(Phase.generate,))
    drawn = {type(find(STRATEGIES[kind](SHAPE), lambda _: True, settings=first)) for kind in STRATEGIES}
    assert drawn == set(KINDS)


@pytest.mark.parametrize("kinds", [("patch", "unheard_of"), ()])
def test_kinds_that_are_not_known_are_refused(kinds):
    with pytest.raises(OptionError, match="known: patch, blend"):
        triggers(SHAPE, kinds=kinds)


def test_a_failing_patch_shrinks_to_the_smallest_then_the_faintest_then_to_the_top_left():
    def works(patch):
        _, rows, columns = patch.colours.shape
        return rows * columns >= 6 and patch.opacity >= 20 and patch.top + patch.left >= 3

    patch = find(patches((1, 12, 12), largest=4), works, settings=shrinking)
    assert patch.colours.shape in {(1, 2, 3), (1, 3, 2)}
    assert (patch.opacity, patch.top, patch.left) == (20, 0, 3)
    assert set(patch.colours.values) == {0}


def test_a_users_own_search_finds_the_pixel_of_a_backdoored_model():
    classifier, clean = row_reader(backdoors=(3,)), row_images(per_class=4)

    def steers(trigger):
        return attack_success_rate(classifier, clean.images, clean.labels, trigger) > 0.9

    patch = find(patches((1, 8, 8), largest=2, target_class=3), steers, settings=settings(shrinking, max_examples=8000))
    _, rows, columns = patch.colours.shape
    # a neighbour may stay: which examples Hypothesis draws depends on all modules that are loaded
    assert rows * columns <= 2
    assert patch.top <= 3 < patch.top + rows
    assert patch.left <= 7 < patch.left + columns


def test_image_batches_keep_to_their_size_and_shrink_to_a_black_image():
    batch = find(image_batches(SHAPE, sizes=(2, 5)), lambda images: len(images) >= 3, settings=shrinking)
    assert batch.shape == (3, *SHAPE)
    assert float(batch.abs().max()) == 0
    noisy = find(image_batches(SHAPE), lambda images: float(images.std()) > 0.2, settings=shrinking)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
