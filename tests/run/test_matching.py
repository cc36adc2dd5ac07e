from itertools import permutations
from math import comb

import numpy as np
import pytest

from backdoor_audit.run.matching import MOST_MATCHED, _sign_test, best_assignment, better_order


@pytest.mark.parametrize("seed", range(40))
def test_the_best_assignment_is_that_of_all_that_there_are(seed):
    random = np.random.default_rng(seed)
    rows = int(random.integers(1, 6))
    columns = rows + int(random.integers(0, 3))
    gains = random.integers(0, int(random.choice([2, 5, 100])), (rows, columns))
    found = best_assignment(gains)
    assert len(set(found.tolist())) == rows
    best = max(sum(gains[row, column] for row, column in enumerate(way)) for way in permutations(range(columns), rows))
    assert gains[np.arange(rows), found].sum() == best


def answers(classes, each, accuracy, seed=0):
    """Labels, and predictions of which that share is right and the rest is any class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    guessed = random.integers(0, classes, len(labels))
    return labels, np.where(random.random(len(labels)) < accuracy, labels, guessed)


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("classes", [2, 10, 43])
def test_labels_in_the_right_order_stay_however_weak_the_model_is(classes, accuracy):
    for seed in range(10):
        assert better_order(*answers(classes, 30, accuracy, seed), seed=seed) is None


def test_a_class_that_is_taken_for_another_one_is_no_other_order():
    labels, predicted = answers(10, 50, 0.9)
    assert better_order(labels, np.where(labels == 3, 5, predicted)) is None


@pytest.mark.parametrize("accuracy", [0.5, 0.9])
def test_two_swapped_classes_are_found_among_ten(accuracy):
    labels, predicted = answers(10, 50, accuracy)
    swapped = labels.copy()
    swapped[labels == 2], swapped[labels == 7] = 7, 2
    found = better_order(swapped, predicted)
    assert set(found.moved) == {2, 7}
    assert (found.outputs[2], found.outputs[7]) == (7, 2)
    assert found.as_given == (swapped == predicted).mean()
    assert found.matched == (labels == predicted).mean()


def test_any_order_of_all_classes_is_found():
    labels, predicted = answers(12, 20, 0.6)
    order = np.random.default_rng(1).permutation(12)
    found = better_order(order[labels], predicted)
    assert {found.outputs[int(order[label])]: label for label in range(12)} == {k: k for k in range(12)}


def test_labels_may_be_a_few_of_very_many_outputs():
    labels, predicted = answers(6, 20, 0.9)
    found = better_order(labels, 90_000 + predicted)
    assert found.outputs == {label: 90_000 + label for label in range(6)}


def test_more_classes_than_can_be_matched_are_left_alone():
    labels = np.arange(MOST_MATCHED + 1).repeat(2)
    assert better_order(labels, (labels + 1) % (MOST_MATCHED + 1)) is None


def test_a_few_images_are_no_evidence():
    labels = np.repeat(np.arange(3), 3)
    assert better_order(labels, (labels + 1) % 3) is None


def test_the_sign_test_is_the_binomial_tail():
    assert _sign_test(8, 10) == pytest.approx((comb(10, 8) + comb(10, 9) + 1) / 2**10)
    assert _sign_test(0, 0) == 1
    assert _sign_test(3000, 5000) < 1e-40
