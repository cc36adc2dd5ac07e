from functools import cache

import pytest
import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.outcome import score
from backdoor_audit.repairs.rnp import RNP
from tests.subjects import assert_unchanged, random_network, row_reader, seeded, snapshot, square_trigger
from tests.subjects.cornered import OPT, TRIGGER, VAL, corner_reader


def repair(method=None, subject=None, trigger=TRIGGER):
    return (method or RNP())(Subject(subject or corner_reader(), OPT, VAL), trigger, generator=seeded(1))


@cache
def repaired():
    return repair()


@pytest.mark.parametrize(("given", "limit"), [(None, 0.4), (0.7, 0.7)])
def test_unlearning_stops_as_soon_as_the_images_are_forgotten(given, limit):
    """2 of 5 classes unless told otherwise; one epoch less leaves more."""
    forgotten, epochs = RNP(forgotten_accuracy=given).unlearn(corner_reader(), OPT, generator=seeded(1))
    assert clean_accuracy(forgotten, OPT.images, OPT.labels) <= limit
    assert 1 <= epochs <= 60
    earlier, fewer = RNP(forgotten_accuracy=given, unlearn_epochs=epochs - 1).unlearn(
        corner_reader(), OPT, generator=seeded(1)
    )
    assert fewer == epochs - 1
    assert clean_accuracy(earlier, OPT.images, OPT.labels) > limit


def test_gradients_are_clipped_after_they_are_computed():
    """One step from one batch: without momentum yet, and next to no decay, it is as long as the learning rate times the bound."""
    method = RNP(unlearn_epochs=1, batch_size=len(OPT), gradient_norm=1e-2, unlearn_learning_rate=1.0)
    forgotten, _ = method.unlearn(corner_reader(), OPT, generator=seeded())
    before, after = (list(subject.module.parameters()) for subject in (corner_reader(), forgotten))
    decay = 5e-4
    moved = sum(float((now - (1 - decay) * then).square().sum()) for then, now in zip(before, after, strict=True))
    assert moved**0.5 == pytest.approx(1e-2, rel=0.01)


def test_a_network_that_does_not_forget_is_told_as_not_applicable():
    result = repair(RNP(unlearn_epochs=1, unlearn_learning_rate=1e-6))
    assert result.classifier is None
    assert result.outcome.not_applicable.startswith("1 epochs of unlearning left ")
    assert result.outcome.not_applicable.endswith("recovery starts at 40.0%")


def test_a_tolerant_threshold_lowers_the_success_rate_and_a_strict_one_keeps_the_accuracy():
    strict, tolerant = repaired().outcome, repair(RNP(most_drop=0.2)).outcome
    assert strict.before.attack_success_rate >= 0.9
    assert strict.after.clean_accuracy >= strict.before.clean_accuracy - 0.06
    assert tolerant.after.attack_success_rate <= strict.before.attack_success_rate - 0.3
    assert len(strict.curve) > 3
    rates = [point.prune_rate for point in strict.curve]
    assert rates == sorted(set(rates))


def test_channels_are_pruned_in_the_network_as_it_was_given_and_the_same_seed_gives_the_same_result():
    """What is left of the weights is the original's, not the unlearned one's."""
    before = snapshot(corner_reader().module)
    result = repair()
    assert_unchanged(before, corner_reader().module)
    tensors = result.classifier.module.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before["state"].items())
    assert result.outcome.after == score(result.classifier, VAL, TRIGGER)
    assert not any(part.training for part in result.classifier.module.modules())
    assert result.outcome == repaired().outcome


def test_the_trigger_chooses_nothing():
    other = repair(trigger=square_trigger((1, 8, 8), target_class=4))
    assert torch.equal(repaired().classifier.logits(VAL.images), other.classifier.logits(VAL.images))


@pytest.mark.parametrize(
    "subject",
    [row_reader(), Classifier.wrap(random_network("small_vit"), image_shape=(1, 8, 8))],
    ids=["linear", "vit"],
)
def test_it_does_not_apply_without_batch_norm(subject):
    result = repair(subject=subject)
    assert result.classifier is None
    assert "no batch norm" in result.outcome.not_applicable
