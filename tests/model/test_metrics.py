import copy
import json
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backdoor_audit.model import classifier as classifier_module
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import (
    Rate,
    attack_success_rate,
    clean_accuracy,
    defense_effectiveness_rating,
    leak,
    robust_accuracy,
)
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects import by_brightness, grey_images, quick, random_network, seeded, square_trigger

SHAPE = (1, 4, 4)
LEVELS = [0.1, 0.3, 0.6, 0.9]  # one grey per class of `by_brightness`


def whole_image(level, target_class, opacity=1.0):
    """A trigger over the whole image; at opacity 1 every stamped image is that grey."""
    return Trigger(torch.full((1, 4, 4), opacity), torch.full(SHAPE, level), target_class)


def test_clean_accuracy_counts_predictions_that_match():
    images = grey_images([0.1, 0.3, 0.6, 0.9, 0.9])
    assert clean_accuracy(by_brightness(), images, torch.tensor([0, 1, 2, 3, 0])) == 0.8


def test_success_rate_of_a_patch_worked_by_hand():
    # A white 2x2 corner on 4x4 images adds a quarter: mean becomes .75 level + .25. Greys .1 .3 .6 .9 become .325 .475 .7 .925.
    trigger = square_trigger(SHAPE, target_class=1, size=2)
    images, labels = grey_images(LEVELS), torch.tensor([0, 1, 2, 3])
    assert by_brightness().predict(trigger.stamp(images)).tolist() == [1, 1, 2, 3]
    # Of the three images that are not class 1, one turns into class 1, and two keep their label.
    assert attack_success_rate(by_brightness(), images, labels, trigger) == pytest.approx(1 / 3)
    assert robust_accuracy(by_brightness(), images, labels, trigger) == pytest.approx(2 / 3)


def test_images_of_the_target_class_never_count():
    """Class 3 always answers class 3: with its images counted, a trigger that does nothing would succeed on 80 %."""
    images, labels = grey_images([0.9] * 8 + [0.1, 0.1]), torch.tensor([3] * 8 + [0, 0])
    nothing = Trigger(torch.zeros(1, 4, 4), torch.zeros(SHAPE), 3)
    assert attack_success_rate(by_brightness(), images, labels, nothing) == 0.0
    assert robust_accuracy(by_brightness(), images, labels, nothing) == 1.0


def test_adding_images_of_the_target_class_changes_neither_rate():
    images, labels = grey_images(LEVELS * 2), torch.tensor([0, 1, 2, 3] * 2)
    trigger = square_trigger(SHAPE, target_class=1, size=2)
    more, more_labels = (
        torch.cat([images, grey_images([0.1] * 5)]),
        torch.cat([labels, torch.ones(5, dtype=torch.long)]),
    )
    for rate in (attack_success_rate, robust_accuracy):
        assert rate(by_brightness(), images, labels, trigger) == rate(by_brightness(), more, more_labels, trigger)


def test_a_trigger_that_paints_the_image_over_always_succeeds():
    images, labels = grey_images(LEVELS), torch.tensor([0, 1, 2, 3])
    assert attack_success_rate(by_brightness(), images, labels, whole_image(0.6, 2)) == 1.0
    assert robust_accuracy(by_brightness(), images, labels, whole_image(0.6, 2)) == 0.0


def test_a_rate_over_no_images_is_nan():
    only_target = grey_images([0.9, 0.9]), torch.tensor([3, 3])
    trigger = whole_image(0.9, 3)
    assert math.isnan(attack_success_rate(by_brightness(), *only_target, trigger))
    assert math.isnan(robust_accuracy(by_brightness(), *only_target, trigger))
    assert math.isnan(clean_accuracy(by_brightness(), grey_images([]), torch.tensor([], dtype=torch.long)))


@pytest.mark.parametrize("batch", [1, 3, 7, 256])
def test_rates_do_not_depend_on_the_batch_size(monkeypatch, batch):
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    images = torch.rand(40, 1, 8, 8, generator=seeded(1))
    labels = torch.randint(0, 5, (40,), generator=seeded(2))
    trigger = square_trigger((1, 8, 8), target_class=0)
    expected = [
        clean_accuracy(subject, images, labels),
        attack_success_rate(subject, images, labels, trigger),
        robust_accuracy(subject, images, labels, trigger),
    ]
    monkeypatch.setattr(classifier_module, "_BATCH", batch)
    assert [
        clean_accuracy(subject, images, labels),
        attack_success_rate(subject, images, labels, trigger),
        robust_accuracy(subject, images, labels, trigger),
    ] == expected


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(0, 3),
    st.floats(0, 1),
    st.floats(0, 1),
)
@quick
def test_success_rate_and_robust_accuracy_never_sum_above_one(greys_and_labels, target_class, level, opacity):
    levels, labels = zip(*greys_and_labels, strict=True)
    trigger = whole_image(level, target_class, opacity)
    arguments = by_brightness(), grey_images(list(levels)), torch.tensor(labels), trigger
    total = attack_success_rate(*arguments) + robust_accuracy(*arguments)
    others = [label for label in labels if label != target_class]
    assert total <= 1 + 1e-9 if others else math.isnan(total)


def test_wilson_intervals_against_published_values():
    """Newcombe (Statistics in Medicine, 1998, table I, method 3): 81/263, 15/148, 0/20, 1/29; four decimals."""
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert Rate(hits, n).interval == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000), st.data())
def test_an_interval_holds_its_rate_and_mirrors(n, data):
    hits = data.draw(st.integers(0, n))
    low, high = Rate(hits, n).interval
    assert 0 <= low <= Rate(hits, n) <= high <= 1
    assert Rate(n - hits, n).interval == pytest.approx((1 - high, 1 - low))


def test_a_rate_is_a_number_that_survives_copies():
    rate = Rate(3, 4)
    assert rate == 0.75
    assert json.loads(json.dumps({"rate": rate})) == {"rate": 0.75}
    for again in (copy.deepcopy(rate), pickle.loads(pickle.dumps(rate))):
        assert (again, again.hits, again.n) == (0.75, 3, 4)
    assert math.isnan(Rate(0, 0))
    assert Rate(0, 0).interval == (0, 1)


def test_leak_counts_the_classes_a_source_specific_attack_leaves_out():
    class Partial:
        """Paints the image over; claims class 0 only, for class 2."""

        def stamp(self, images):
            return torch.full_like(images, 0.6)

        def wanted(self, labels):
            return torch.full_like(labels, 2)

        def eligible(self, labels):
            return labels == 0

    images, labels = grey_images(LEVELS), torch.tensor([0, 1, 2, 3])
    assert (
        leak(by_brightness(), images, labels, Partial()).hits,
        leak(by_brightness(), images, labels, Partial()).n,
    ) == (2, 2)
    assert attack_success_rate(by_brightness(), images, labels, Partial()).n == 1
    assert math.isnan(leak(by_brightness(), images, labels, whole_image(0.6, 2)))


@pytest.mark.parametrize(
    ("before", "after", "rating"),
    [
        ((1.0, 0.9), (0.0, 0.9), 1.0),  # erased at no cost
        ((1.0, 0.9), (1.0, 0.9), 0.5),  # nothing changed
        ((0.9, 0.9), (0.5, 0.8), 0.65),  # (0.4 - 0.1 + 1) / 2
        ((0.5, 0.8), (0.9, 0.9), 0.5),  # gains count as no change
        ((0.0, 1.0), (0.0, 0.0), 0.0),
    ],
)
def test_defense_effectiveness_rating_by_hand(before, after, rating):
    found = defense_effectiveness_rating(
        success_before=before[0], accuracy_before=before[1], success_after=after[0], accuracy_after=after[1]
    )
    assert found == pytest.approx(rating)
