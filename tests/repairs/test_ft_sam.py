import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.ft_sam import FTSAM, PUBLISHED_WEIGHTS, perturbation, scaled_rho, sharp_backward
from tests.subjects import random_network, seeded
from tests.subjects.textured import assert_honest, backdoored, repair, textures

LABELS = {"own_answers": 0.0, "label_smoothing": 0.1, "augment": False}


def trainable(name):
    subject = Classifier.wrap(random_network(name), image_shape=(1, 8, 8))
    subject.module.train().requires_grad_(True)
    return subject


def batch():
    return torch.rand(6, 1, 8, 8, generator=seeded(2)), torch.tensor([0, 1, 2, 3, 4, 0])


def test_the_perturbation_by_hand_over_two_tensors():
    """w = (1, -2), (3); g = (4, 1), (-2): |w| g = (4, 2), (-6), of length sqrt(56)."""
    weights, gradients = (
        [torch.tensor([1.0, -2.0]), torch.tensor([3.0])],
        [torch.tensor([4.0, 1.0]), torch.tensor([-2.0])],
    )
    first, second = perturbation(weights, gradients, rho=0.5)
    assert torch.allclose(first, 0.5 * torch.tensor([4.0, 4.0]) / 56**0.5)
    assert torch.allclose(second, 0.5 * torch.tensor([-18.0]) / 56**0.5)


def test_in_units_of_the_weights_the_perturbation_is_as_long_as_rho():
    weights = [torch.randn(5, 3, generator=seeded(1)), torch.randn(7, generator=seeded(2))]
    gradients = [torch.randn(5, 3, generator=seeded(3)), torch.randn(7, generator=seeded(4))]
    moved = perturbation(weights, gradients, rho=2.0)
    relative = torch.cat([(uphill / weight).flatten() for uphill, weight in zip(moved, weights, strict=True)])
    assert float(relative.norm()) == pytest.approx(2.0, abs=1e-5)
    assert sum(float((g * e).sum()) for g, e in zip(gradients, moved, strict=True)) > 0


def test_rho_falls_with_the_root_of_the_number_of_weights():
    subject = Classifier.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False)), image_shape=(1, 8, 8))
    assert scaled_rho(2.0, subject) == pytest.approx(2 * (256 / PUBLISHED_WEIGHTS) ** 0.5)


def test_without_a_gradient_nothing_is_moved():
    (moved,) = perturbation([torch.ones(3)], [torch.zeros(3)], rho=2.0)
    assert torch.equal(moved, torch.zeros(3))


@pytest.mark.parametrize("name", ["small_cnn", "small_vit"])
def test_with_rho_zero_a_step_is_a_plain_sgd_step(name):
    subject, plain = trainable(name), trainable(name)
    images, labels = batch()
    for classifier in (subject, plain):
        descent = torch.optim.SGD(classifier.module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for _ in range(2):
            descent.zero_grad()
            if classifier is subject:
                sharp_backward(subject, images, labels, rho=0.0, label_smoothing=0.1)
            else:
                functional.cross_entropy(plain(images), labels, label_smoothing=0.1).backward()
            descent.step()
    start, states = random_network(name).state_dict(), (subject.module.state_dict(), plain.module.state_dict())
    for key in start:
        assert torch.allclose(states[0][key], states[1][key], atol=1e-6, rtol=0), key
    assert not torch.allclose(states[0]["linear.weight"], start["linear.weight"], atol=1e-3)


def test_the_gradient_is_that_of_the_moved_weights_and_the_weights_come_back():
    """Loss of one example with two classes and scores w0 x, w1 x, where x = 1: everything is known in closed form."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    subject = Classifier.wrap(module, image_shape=(1, 1, 1))
    subject.module[1].weight.copy_(torch.tensor([[2.0], [1.0]]))
    subject.module.requires_grad_(True)
    sharp_backward(subject, torch.ones(1, 1, 1, 1), torch.tensor([0]), rho=0.3)
    q = torch.sigmoid(torch.tensor(-1.0))  # probability of class 1; the gradient is (-q, q)
    length = (5 * q * q).sqrt()  # of |w| g = (-2 q, q)
    moved = torch.tensor([2 - 0.3 * 4 * q / length, 1 + 0.3 * q / length])
    wrong = torch.sigmoid(moved[1] - moved[0])
    assert torch.allclose(subject.module[1].weight.grad.flatten(), torch.stack([-wrong, wrong]), atol=1e-6)
    assert float(wrong) > float(q) + 0.05
    assert torch.equal(subject.module[1].weight.detach().flatten(), torch.tensor([2.0, 1.0]))


def test_running_statistics_see_each_batch_once_and_never_the_moved_weights():
    subject, plain = trainable("small_cnn"), trainable("small_cnn")
    images, labels = batch()
    plain(images)
    sharp_backward(subject, images, labels, rho=5.0)
    buffers = dict(plain.module.named_buffers())
    assert int(buffers["features.0.1.num_batches_tracked"]) == 1
    for name, buffer in subject.module.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    still = random_network("small_cnn").state_dict()
    assert not torch.equal(still["features.4.1.running_mean"], buffers["features.4.1.running_mean"])
    for name, parameter in subject.module.named_parameters():
        assert torch.equal(parameter, plain.module.get_parameter(name)), name


def test_weights_that_the_scores_do_not_depend_on_are_left_alone():
    subject = trainable("small_cnn")
    subject.module.register_parameter("idle", nn.Parameter(torch.ones(2)))
    sharp_backward(subject, *batch(), rho=1.0)
    assert subject.module.idle.grad is None
    assert subject.module.linear.weight.grad is not None


def test_the_repair_is_honest():
    outcome = assert_honest(FTSAM(epochs=5))
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05
    assert outcome.note == "5 epochs over 100 clean images, two gradients per step, rho 0.0796"


def test_sharpness_aware_steps_lower_the_success_rate_where_plain_ones_do_not():
    subject = backdoored()
    sharp, plain = (repair(FTSAM(rho=rho / scaled_rho(1.0, subject), **LABELS)).outcome for rho in (2.0, 0.0))
    assert plain.after.attack_success_rate >= 0.9
    assert sharp.after.attack_success_rate <= 0.3
    assert sharp.after.clean_accuracy >= sharp.before.clean_accuracy - 0.04


def test_transformers_can_be_repaired():
    subject = backdoored("small_vit")
    outcome = repair(FTSAM(rho=0.5 / scaled_rho(1.0, subject), **LABELS), subject).outcome
    assert outcome.after.attack_success_rate <= outcome.before.attack_success_rate - 0.3
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.04


def test_one_step_is_taken_at_the_full_learning_rate():
    """One step of a cosine is at the full rate, so one epoch of one batch is the plain SGD step of that rate."""
    method = FTSAM(rho=0.0, epochs=1, batch_size=100, weight_decay=0.0, own_answers=0.0, augment=False)
    repaired, expected, opt = repair(method).classifier, backdoored().copy(), textures(25, seed=1)
    expected.module.train().requires_grad_(True)
    functional.cross_entropy(expected(opt.images), opt.labels).backward()
    wanted = expected.module.linear.weight.detach() - 0.05 * expected.module.linear.weight.grad
    assert torch.allclose(repaired.module.linear.weight, wanted, atol=1e-6)
