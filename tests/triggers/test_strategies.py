import json

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from backdoor_audit.attacks import Sig
from backdoor_audit.errors import DataFormatError, OptionError
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.triggers.strategies import STRATEGIES, image_batches, patches, triggers
from backdoor_audit.triggers.trigger import Addition, Trigger, Warp
from backdoor_audit.triggers.written import (
    KINDS,
    Blend,
    Change,
    Numbers,
    Patch,
    Quantisation,
    Sinusoid,
    SmoothWarp,
    trigger_from_spec,
)
from tests.subjects import quick, row_images, row_reader, seeded

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
    assert patch.colours.shape == (1, 1, 1)
    assert (patch.top, patch.left) == (3, 7)


def test_a_patch_covers_its_rectangle_alone():
    colours = Numbers((1, 2, 3), (255, 0, 51, 102, 153, 204))
    stamped = Patch(colours=colours, top=1, left=2, opacity=50).stamp(torch.full((2, 1, 5, 6), 0.4))
    expected = torch.full((5, 6), 0.4)
    expected[1:3, 2:5] = torch.tensor([[0.7, 0.2, 0.3], [0.4, 0.5, 0.6]])
    for image in stamped:
        assert torch.allclose(image[0], expected)


@pytest.mark.parametrize("place", [{"top": 8}, {"left": 11}])
def test_a_patch_that_does_not_fit_is_refused_in_one_line(place):
    patch = Patch(colours=Numbers((3, 2, 2), (0,) * 12), **place)
    with pytest.raises(DataFormatError, match="do not fit") as refused:
        patch.stamp(torch.zeros(1, *SHAPE))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "trigger",
    [
        Patch(colours=Numbers((1, 1, 1), (0,))),
        Blend(picture=Numbers((1, 1, 1), (0,))),
        Change(levels=Numbers((1, 1, 1), (0,))),
    ],
)
def test_a_trigger_for_another_number_of_channels_is_refused(trigger):
    with pytest.raises(DataFormatError, match="channels"):
        trigger.stamp(torch.zeros(1, *SHAPE))


def test_a_blend_of_one_field_moves_every_pixel_towards_its_colour():
    blend = Blend(picture=Numbers((3, 1, 1), (255, 0, 51)), opacity=25)
    stamped = blend.stamp(torch.full((1, *SHAPE), 0.4))
    for channel, value in enumerate((0.55, 0.3, 0.35)):
        assert torch.allclose(stamped[0, channel], torch.tensor(value))


def test_a_change_of_one_value_shifts_the_colour_and_is_clipped():
    change = Change(levels=Numbers((3, 1, 1), (51, -51, 255)))
    stamped = change.stamp(torch.full((1, *SHAPE), 0.4))
    for channel, value in enumerate((0.6, 0.2, 1.0)):
        assert torch.allclose(stamped[0, channel], torch.tensor(value))


@pytest.mark.parametrize("down", [False, True])
def test_a_sinusoid_is_the_wave_of_the_paper(down):
    stamped = Sinusoid(amplitude=40, half_periods=12, down=down).stamp(torch.full((1, 1, 32, 32), 0.5))[0, 0]
    column = np.arange(32)
    wave = 0.5 + 40 / 255 * np.sin(2 * np.pi * column * 6 / 32)
    assert np.allclose((stamped.T if down else stamped)[3].numpy(), wave, atol=1e-6)
    assert float(stamped.std(dim=1 - int(down)).max()) > 0.1
    assert float(stamped.std(dim=int(down)).max()) < 1e-6
    if not down:
        reference = Sig(amplitude=40, frequency=6).stamp(torch.full((1, 1, 32, 32), 0.5))[0, 0]
        assert float((stamped - reference).abs().max()) <= 0.5 / 255 + 1e-6  # the attack rounds to levels


def test_a_warp_of_whole_pixels_shifts_the_image():
    images = torch.rand(2, 3, 6, 7, generator=seeded())
    stamped = SmoothWarp(flow=Numbers((2, 1, 1), (100, -200))).stamp(images)
    assert torch.allclose(stamped[:, :, 2:, :-1], images[:, :, :-2, 1:], atol=1e-5)


def test_a_flow_needs_two_directions():
    with pytest.raises(DataFormatError, match="accepted: \\(2, rows, columns\\)"):
        SmoothWarp(flow=Numbers((3, 1, 1), (0, 0, 0))).stamp(torch.zeros(1, *SHAPE))


def test_quantisation_rounds_the_mean_of_a_plain_block():
    """A plain block of level v has one cosine coefficient, 8 v: 8 x 101 = 808 is 12.6 steps of 64, so 13 x 64 / 8 = 104."""
    images = torch.full((1, 3, 9, 20), 101 / 255)
    assert torch.allclose(Quantisation(step=64).stamp(images), torch.tensor(104 / 255), atol=1e-5)


def test_quantisation_keeps_the_image_without_a_step_and_loses_detail_with_a_large_one():
    images = torch.rand(4, 1, 11, 13, generator=seeded())
    assert torch.equal(Quantisation(step=0).stamp(images), images)
    lost = [float((Quantisation(step=step).stamp(images) - images).abs().mean()) for step in (1, 16, 128)]
    assert lost[0] < 1 / 255 < lost[1] < lost[2]


def test_many_numbers_are_deflated_and_come_back():
    numbers = Numbers((3, 9, 12), tuple(range(-162, 162)))
    spec = json.loads(json.dumps(numbers.spec()))
    assert set(spec) == {"shape", "deflated"}
    assert Numbers.from_spec(spec) == numbers
    assert len(json.dumps(spec)) < len(json.dumps(numbers.values)) / 2


PATCH = Patch(colours=Numbers((1, 1, 2), (7, 9)), top=3).spec()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "kind None is not known"),
        ({"kind": ["patch"]}, "is not known"),
        ({"kind": "unheard_of"}, "kind 'unheard_of' is not known; known: blend, change"),
        ({**PATCH, "more": 1}, "missing or not known: 'more'"),
        ({key: value for key, value in PATCH.items() if key != "top"}, "missing or not known: 'top'"),
        ({**PATCH, "top": -1}, "-1 where a whole number in"),
        ({**PATCH, "top": 1.5}, "1.5 where a whole number"),
        ({**PATCH, "top": True}, "True where a whole number"),
        ({**PATCH, "opacity": 101}, "in \\[0, 100\\]"),
        ({**PATCH, "colours": {"shape": [1, 1, 2], "values": [0, 256]}}, "in \\[0, 255\\]"),
        ({**PATCH, "colours": {"shape": [1, 2], "values": [0, 1]}}, "three axes"),
        ({**PATCH, "colours": {"shape": [1, 1, 2], "values": [0]}}, "1 numbers for an array of shape"),
        ({**PATCH, "colours": {"shape": [1, 1, 2]}}, "an array is a shape"),
        ({**PATCH, "colours": {"shape": "112", "values": [0, 1]}}, "where a list belongs"),
        ({**PATCH, "colours": {"shape": [1, 1, 2], "deflated": "no base64!"}}, "cannot be read"),
        ({**PATCH, "colours": {"shape": [1, 1, 2], "deflated": "AAAA"}}, "cannot be read"),
        ({**PATCH, "colours": {"shape": [2**22, 2, 2], "deflated": ""}}, "at most"),
        ({**Sinusoid(amplitude=1).spec(), "down": 1}, "accepted: true or false"),
    ],
)
def test_a_spec_that_describes_no_trigger_is_refused_in_one_line(spec, said):
    with pytest.raises(DataFormatError, match=said) as refused:
        trigger_from_spec(spec)
    assert "\n" not in str(refused.value)


def test_no_more_is_unpacked_than_the_shape_asks_for():
    packed = Numbers((1, 1, 2**20), (0,) * 2**20).spec()["deflated"]
    with pytest.raises(ValueError, match="do not fill the shape"):
        Numbers.from_spec({"shape": [1, 1, 200], "deflated": packed})


def test_what_a_search_returns_is_written_in_whole_numbers():
    images = torch.rand(3, *SHAPE, generator=seeded(1))
    mask, pattern = torch.zeros(1, *SHAPE[1:]), torch.rand(SHAPE, generator=seeded(2))
    mask[:, 2:5, 7:9] = 1
    flow = 2 * torch.rand(2, *SHAPE[1:], generator=seeded(3)) - 1
    for trigger in (Trigger(mask, pattern, 4), Addition(0.2 * (pattern - 0.5), 4), Warp(flow, 4)):
        written = trigger.in_whole_numbers()
        assert written.target_class == 4
        assert float((written.stamp(images) - trigger.stamp(images)).abs().max()) <= 0.011
    assert Trigger(mask, pattern, 4).in_whole_numbers().colours.shape == (3, 3, 2)


def test_image_batches_keep_to_their_size_and_shrink_to_a_black_image():
    batch = find(image_batches(SHAPE, sizes=(2, 5)), lambda images: len(images) >= 3, settings=shrinking)
    assert batch.shape == (3, *SHAPE)
    assert float(batch.abs().max()) == 0
    noisy = find(image_batches(SHAPE), lambda images: float(images.std()) > 0.2, settings=shrinking)
    assert noisy.min() >= 0
    assert noisy.max() <= 1


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (
            Patch(colours=Numbers((1, 3, 3), (255,) * 9), top=2, left=4),
            "a white patch of 3x3 px at row 2, column 4",
        ),
        (Patch(colours=Numbers((1, 1, 1), (0,))), "a black patch of 1x1 px at row 0, column 0"),
        (
            Patch(colours=Numbers((3, 1, 2), (9, 9, 8, 8, 7, 7)), opacity=30),
            "a plain patch of 1x2 px at row 0, column 0 at opacity 0.30",
        ),
        (Patch(colours=Numbers((1, 1, 2), (0, 255))), "a patch of 1x2 px at row 0, column 0"),
        (Blend(picture=Numbers((1, 1, 1), (0,)), opacity=7), "a picture blended in at opacity 0.07"),
        (Change(levels=Numbers((3, 1, 1), (-4, -4, -4))), "-4 of 255 levels of brightness"),
        (Change(levels=Numbers((3, 1, 1), (-4, 0, 9))), "a colour shift by -4, +0, +9 of 255 levels"),
        (Change(levels=Numbers((1, 1, 2), (-4, 3))), "a change by up to 4 of 255 levels"),
        (Sinusoid(amplitude=9, half_periods=5, down=True), "a sine wave of 9 of 255 levels, 2.5 periods down"),
        (SmoothWarp(flow=Numbers((2, 1, 1), (-25, 5))), "a shift by -0.25 px across and 0.05 px down"),
        (SmoothWarp(flow=Numbers((2, 1, 2), (-25, 5, 0, 0))), "a warp by up to 0.25 px"),
        (Quantisation(step=3), "re-encoding by steps of 3 of 255 levels"),
    ],
)
def test_a_trigger_is_described_in_a_few_words(trigger, words):
    assert trigger.described() == words
