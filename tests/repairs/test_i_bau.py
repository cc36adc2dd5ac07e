from functools import cache

import pytest
import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.i_bau import IBAU, hypergradient
from backdoor_audit.repairs.outcome import score
from tests.subjects import assert_unchanged, random_network, row_reader, seeded, snapshot, square_trigger
from tests.subjects.cornered import OPT, TRIGGER, VAL, corner_reader


def repair(method=None, subject=None, trigger=TRIGGER):
    return (method or IBAU())(Subject(subject or corner_reader(), OPT, VAL), trigger, generator=seeded(1))


@cache
def repaired():
    return repair()


@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_the_hypergradient_of_a_quadratic_problem_is_the_closed_form(iterations):
    """Inner 1/2 x'Ax - x'Bp with minimum x = A^-1 B p, outer 1/2 |x - c|^2 + 1/2 |p|^2: p + B' A^-1 (x - c)."""
    generator = seeded(3)
    root, mixing = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    root /= torch.linalg.matrix_norm(root, 2)
    curvature = root @ root.T + 0.5 * torch.eye(4, dtype=torch.float64)
    goal, p = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
    p.requires_grad_()
    x = torch.linalg.solve(curvature, mixing @ p.detach()).requires_grad_()
    inner = x @ curvature @ x / 2 - x @ mixing @ p
    outer = (x - goal).square().sum() / 2 + p.square().sum() / 2
    found = hypergradient(outer, inner, x, [p], rate=0.6, iterations=iterations)[0]
    closed = (p + mixing.T @ torch.linalg.solve(curvature, x - goal)).detach()
    error = float((found - closed).norm() / closed.norm())
    assert error < 1e-3 if iterations == 50 else error > 1e-2


def test_without_iterations_the_hypergradient_is_the_direct_gradient():
    x, p = torch.tensor([2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    assert float(hypergradient((x * p).sum(), (x - p).square().sum(), x, [p], rate=0.1, iterations=0)[0]) == 2.0
    # one step: v = d outer / d x = 3, and the map x - 0.1 * 2 (x - p) rises by 0.2 with p: 2 + 0.2 * 3
    found = hypergradient((x * p).sum(), (x - p).square().sum(), x, [p], rate=0.1, iterations=1)[0]
    assert float(found) == pytest.approx(2.6)


def test_the_change_found_raises_the_loss_and_stays_in_its_ball():
    subject = corner_reader()
    change = IBAU(largest_change=0.2).worst_change(subject, OPT.images, generator=seeded())
    assert change.shape == (1, 1, 8, 8)
    assert float(change.square().mean().sqrt()) <= 0.2 + 1e-6
    predicted = subject.predict(OPT.images)

    def loss(images):
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(subject(images), predicted))

    random = torch.randn(change.shape, generator=seeded(4))
    random *= change.norm() / random.norm()
    assert loss(OPT.images + change) > 2 * max(loss(OPT.images), loss(OPT.images + random))


def test_a_linear_network_gets_the_change_worked_out_by_hand():
    """Two logits (w.x, 0) on one image predicted as 0 with probability s: one step is rate * (1 - s) * -w, from 0."""
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    weight = torch.tensor([0.5, 1.0, -0.25, 0.75])
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([weight, torch.zeros(4)]))
        module[1].bias.zero_()
    image = torch.full((1, 1, 2, 2), 0.5)
    change = IBAU(inner_learning_rate=0.1).worst_change(
        Classifier.wrap(module, image_shape=(1, 2, 2)), image, generator=seeded()
    )
    share = 1 / (1 + torch.exp(-weight.sum() / 2))
    torch.testing.assert_close(change.flatten(), -0.1 * (1 - share) * weight)


def test_the_backdoor_of_a_trained_network_is_weakened_and_clean_accuracy_kept():
    outcome = repaired().outcome
    assert outcome.before.attack_success_rate >= 0.9
    assert outcome.after.attack_success_rate <= outcome.before.attack_success_rate - 0.3
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05
    assert outcome.note.startswith(
        "8 rounds over 150 clean images; L2 norm of the change found: 0.80"
    )  # 0.1 * sqrt(64)


def test_the_original_is_untouched_the_repaired_copy_predicts_as_reported_and_the_same_seed_gives_the_same():
    before = snapshot(corner_reader().module)
    result = repair()
    assert_unchanged(before, corner_reader().module)
    assert result.outcome.after == score(result.classifier, VAL, TRIGGER)
    assert not any(part.training for part in result.classifier.module.modules())
    assert not any(parameter.requires_grad for parameter in result.classifier.module.parameters())
    state, tensors = before["state"], result.classifier.module.state_dict()
    assert all(torch.equal(tensors[name], state[name]) for name in state if "running" in name)
    assert not torch.equal(tensors["linear.weight"], state["linear.weight"])
    assert result.outcome == repaired().outcome


def test_the_trigger_chooses_nothing():
    other = repair(trigger=square_trigger((1, 8, 8), target_class=4))
    assert torch.equal(repaired().classifier.logits(VAL.images), other.classifier.logits(VAL.images))


@pytest.mark.parametrize("name", ["small_vit", "small_resnet", None])
def test_it_applies_to_networks_without_batch_norm_too(name):
    subject = Classifier.wrap(random_network(name), image_shape=(1, 8, 8)) if name else row_reader(classes=5)
    result = repair(IBAU(rounds=1), subject)
    assert result.outcome.after == score(result.classifier, VAL, TRIGGER)
    assert not torch.equal(result.classifier.logits(VAL.images), subject.logits(VAL.images))
