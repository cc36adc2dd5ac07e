import pytest
import torch

from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.sau import SharedUnlearning, _divergence, shared_risk
from tests.subjects import seeded
from tests.subjects.textured import assert_honest, backdoored, corner_patch, textures

BRIEF = SharedUnlearning(rounds=3, batch_size=25)


def subject():
    return Subject(backdoored(), textures(25, seed=1), textures(50, seed=2))


def test_the_repair_is_honest_and_blind_to_the_trigger():
    outcome = assert_honest(BRIEF)
    assert outcome.note.startswith("3 rounds over 100 clean images; ")
    assert "stamped" not in outcome.note


def test_the_change_stays_in_its_ball_and_misleads_both_to_one_class():
    clean, before = textures(10, seed=4), backdoored()
    method = SharedUnlearning(radius=0.3, inner_steps=10)
    change = method.change(before, before.copy(), clean.images, clean.labels)
    assert float(change.abs().max()) <= 0.3 + 1e-6
    at_random = 0.3 * (2 * torch.rand(change.shape, generator=seeded(5)) - 1).sign()

    def misled(by):
        with torch.no_grad():
            return float((before(clean.images + by).argmax(dim=1) != clean.labels).float().mean())

    assert misled(change) > misled(at_random) + 0.1


def test_the_risk_by_hand():
    """Probabilities 0.75 and 0.25: both terms are -log(1 - p)."""
    logits = torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log()
    found = shared_risk(logits, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx(
        [-torch.tensor(0.25).log().item(), -torch.tensor(0.75).log().item()], abs=1e-4
    )


def test_the_divergence_is_zero_for_equal_answers_and_log_two_for_opposite_ones():
    one, other = torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]])
    assert float(_divergence(one, one)) == pytest.approx(0.0, abs=1e-6)
    assert float(_divergence(one, other)) == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)


def test_with_the_trigger_at_hand_it_is_unlearned_further():
    given = subject()
    method = SharedUnlearning(rounds=8, batch_size=25, learning_rate=2e-3)
    alone = method(given, corner_patch(), generator=seeded(1)).classifier
    known = method.together(given, (corner_patch(),), generator=seeded(1))
    left = [
        attack_success_rate(copy, given.held_out.images, given.held_out.labels, corner_patch())
        for copy in (alone, known.classifier)
    ]
    assert float(left[1]) <= min(0.2, float(left[0]))
    assert known.outcome.after.clean_accuracy >= known.outcome.before.clean_accuracy - 0.06
    assert known.outcome.note.endswith("50% of them stamped with one of 1 triggers")
