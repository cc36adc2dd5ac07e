"""One repaired copy for all triggers: what each method makes of two of them."""

import pytest
import torch

from backdoor_audit.model.metrics import attack_success_rate, clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs import (
    DistilledUnlearning,
    FineTuning,
    LinfPruning,
    NeuronPruning,
    Unlearning,
    against_all,
    score,
)
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects import row_images, row_reader, seeded

FIRMLY = {"epochs": 30, "learning_rate": 1.0}  # the weight of a backdoor is 60 here
JOINT = (Unlearning(**FIRMLY), DistilledUnlearning(**FIRMLY))
CLEAN, HELD_OUT = row_images(per_class=24), row_images(per_class=10, seed=5)


def pixel(target):
    """The white pixel that `row_reader` obeys in one of its backdoored classes."""
    mask = torch.zeros(1, 8, 8)
    mask[0, target, -1] = 1
    return Trigger(mask, torch.ones(1, 8, 8), target)


TRIGGERS = (pixel(2), pixel(5))


def run(method, triggers=TRIGGERS, **rest):
    subject = row_reader(backdoors=(2, 5))
    return subject, *against_all(method, Subject(subject, CLEAN, HELD_OUT), triggers, generator=seeded(1), **rest)


@pytest.mark.parametrize("method", [NeuronPruning(), *JOINT], ids=lambda method: method.name)
def test_one_copy_forgets_both_triggers_and_outcomes_are_those_of_that_copy(method):
    subject, repaired, outcomes = run(method)
    assert [outcome.target_class for outcome in outcomes] == [2, 5]
    for trigger, outcome in zip(TRIGGERS, outcomes, strict=True):
        assert outcome.before == score(subject, HELD_OUT, trigger)
        assert outcome.before.attack_success_rate == 1.0
        assert outcome.after == score(repaired, HELD_OUT, trigger)
        assert outcome.after.attack_success_rate <= 0.1
        assert outcome.after.clean_accuracy >= 0.9


def test_a_repair_against_one_trigger_leaves_the_other():
    """Otherwise the test above would show nothing."""
    for method in (NeuronPruning(), *JOINT):
        _, repaired, _ = run(method, TRIGGERS[:1])
        rates = [attack_success_rate(repaired, HELD_OUT.images, HELD_OUT.labels, trigger) for trigger in TRIGGERS]
        assert float(rates[0]) <= 0.1
        assert float(rates[1]) >= 0.9


def test_triggers_that_go_along_are_unlearned_and_not_judged():
    for method in JOINT:
        _, repaired, outcomes = run(method, TRIGGERS[:1], also=TRIGGERS[1:])
        assert [outcome.target_class for outcome in outcomes] == [2]
        assert attack_success_rate(repaired, HELD_OUT.images, HELD_OUT.labels, TRIGGERS[1]) <= 0.1


def test_a_method_that_needs_no_trigger_runs_once_for_all():
    subject, repaired, outcomes = run(FineTuning(epochs=2))
    alone, _, _ = run(FineTuning(epochs=2), TRIGGERS[1:])[1:], None, None
    assert torch.equal(repaired.logits(HELD_OUT.images), alone[0].logits(HELD_OUT.images))
    assert [outcome.after for outcome in outcomes] == [score(repaired, HELD_OUT, trigger) for trigger in TRIGGERS]
    assert clean_accuracy(subject, HELD_OUT.images, HELD_OUT.labels) == 1.0


def test_a_method_that_is_not_applicable_gives_no_copy_and_says_so_for_every_trigger():
    _, repaired, outcomes = run(LinfPruning())
    assert repaired is None
    assert all("feature map" in outcome.not_applicable for outcome in outcomes)
    assert [outcome.target_class for outcome in outcomes] == [2, 5]


def test_distillation_wants_the_models_own_answers_and_no_labels():
    subject = row_reader(backdoors=(2,))
    wrong = type(CLEAN)(CLEAN.images, CLEAN.labels.roll(1), CLEAN.class_names)
    made = [
        DistilledUnlearning(epochs=3)(Subject(subject, images, HELD_OUT), pixel(2), generator=seeded(1)).classifier
        for images in (CLEAN, wrong)
    ]
    assert torch.equal(made[0].logits(HELD_OUT.images), made[1].logits(HELD_OUT.images))


def test_distillation_that_stamps_nothing_changes_nothing():
    """Teacher and copy agree on clean images from the start: the divergence and its gradient are 0."""
    subject = row_reader(backdoors=(2,))
    method = DistilledUnlearning(epochs=3, stamped_share=0.0)
    repaired = method(Subject(subject, CLEAN, HELD_OUT), pixel(2), generator=seeded(1)).classifier
    assert torch.allclose(repaired.logits(HELD_OUT.images), subject.logits(HELD_OUT.images), atol=1e-4)
