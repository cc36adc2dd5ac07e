"""The descent that repairs share, its steps worked by hand."""

import math

import pytest
import torch
from torch import nn

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import BudgetSpentError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.augmentation import Augmentation
from backdoor_audit.repairs.descent import cosine, descend, mixed_targets, moved
from tests.subjects import random_network, seeded, snapshot
from tests.subjects.textured import SHAPE, textures


@pytest.mark.parametrize(("progress", "factor"), [(0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1, 0)])
def test_the_cosine_falls_from_one_to_zero(progress, factor):
    assert cosine(progress) == pytest.approx(factor, abs=1e-12)


def linear():
    return Classifier.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), image_shape=SHAPE)


def descended(subject, clean, backward, **changes):
    settings = {
        "epochs": 2,
        "learning_rate": 0.1,
        "factor": lambda progress: 1.0 if progress < 0.5 else 0.5,
        "batch_size": 100,
        "weight_decay": 0.0,
        "nesterov": False,
        "augmentation": Augmentation(),
        "generator": seeded(),
    }
    descend(subject, clean, backward, **(settings | changes))
    return subject.module[1].bias


def ones(subject):
    def backward(_images, _labels):
        for parameter in subject.module.parameters():
            parameter.grad = torch.ones_like(parameter)

    return backward


@pytest.mark.parametrize(
    ("nesterov", "way"),
    [(False, 0.1 * 1 + 0.05 * 1.9), (True, 0.1 * 1.9 + 0.05 * 2.71)],  # velocities are 1, then 0.9 * 1 + 1
)
def test_two_steps_of_the_descent_by_hand(nesterov, way):
    subject = linear()
    start = subject.module[1].bias.clone()
    end = descended(subject, textures(2, seed=0), ones(subject), nesterov=nesterov)
    assert torch.allclose(start - end, torch.full((4,), way), atol=1e-6)
    assert not end.requires_grad
    assert end.grad is None
    assert not subject.module.training


def test_weight_decay_pulls_towards_zero():
    subject = linear()
    start = subject.module[1].bias.clone()
    end = descended(subject, textures(2, seed=0), ones(subject), epochs=1, weight_decay=0.5)
    assert torch.allclose(end, start - 0.1 * (1 + 0.5 * start), atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "length"), [(nn.Identity(), 260**0.5), (nn.LayerNorm(4, elementwise_affine=False), 1.0)]
)
def test_only_the_gradients_of_transformers_are_shortened(norm, length):
    """All 64 * 4 + 4 weights have the gradient 1, and the one step has the length 0.1 times that of the gradient."""
    subject = Classifier.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), norm), image_shape=SHAPE)
    start = nn.utils.parameters_to_vector(subject.module.parameters()).clone()
    descended(subject, textures(2, seed=0), ones(subject), epochs=1)
    moved = nn.utils.parameters_to_vector(subject.module.parameters()) - start
    assert float(moved.norm()) == pytest.approx(0.1 * length, rel=1e-4)


def test_every_image_is_seen_once_per_epoch_in_a_new_order():
    clean, seen, subject = textures(7, seed=0), [], linear()
    marked = CleanSet(clean.images, torch.arange(len(clean)))
    progress = []

    def backward(images, labels):
        assert torch.equal(images, clean.images[labels])
        seen.append(labels.tolist())

    def factor(share):
        progress.append(share)
        return 1.0

    descended(subject, marked, backward, batch_size=8, factor=factor)
    assert [len(batch) for batch in seen] == [10, 9, 9] * 2
    epochs = [[label for batch in epoch for label in batch] for epoch in (seen[:3], seen[3:])]
    assert epochs[0] != epochs[1]
    assert [sorted(epoch) for epoch in epochs] == [list(range(28))] * 2
    assert progress == pytest.approx([step / 6 for step in range(7)])
    assert math.isclose(max(progress[:-1]), 5 / 6)


def test_the_descent_stops_when_the_time_is_spent():
    subject = linear()
    with budget.until(0.0), pytest.raises(BudgetSpentError):
        descended(subject, textures(2, seed=0), ones(subject))


def test_dropout_draws_nothing_after_the_descent_and_bends_no_statistics():
    clean = textures(4, seed=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    subject = Classifier.wrap(network, image_shape=SHAPE)
    state = torch.random.get_rng_state()
    descended(subject, clean, ones(subject), augmentation=Augmentation(shift=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        wanted = subject.module[:2](clean.images).mean(dim=0)
    assert torch.allclose(subject.module[3].running_mean, wanted, atol=1e-5)


def test_weights_and_buffers_come_back_from_where_they_were_moved():
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=SHAPE)
    before = snapshot(subject.module)
    weights = list(subject.module.parameters())
    subject.module.train()
    with moved(subject, [(weight, torch.ones_like(weight)) for weight in weights]):
        assert all(torch.equal(weight, before["state"][name] + 1) for name, weight in subject.module.named_parameters())
        subject(textures(2, seed=0).images)
        assert not torch.equal(subject.module.features[0][1].running_mean, before["state"]["features.0.1.running_mean"])
    assert all(torch.equal(value, before["state"][name]) for name, value in subject.module.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_targets_are_labels_and_the_teachers_answers_in_the_asked_shares(share):
    teacher, clean = linear(), textures(2, seed=0)
    wanted = mixed_targets(teacher, clean.images, clean.labels, share)
    answers = teacher(clean.images).softmax(dim=1)
    assert torch.allclose(wanted.sum(dim=1), torch.ones(8))
    for row, label in enumerate(clean.labels.tolist()):
        hot = torch.eye(4)[label]
        assert torch.allclose(wanted[row], (1 - share) * hot + share * answers[row], atol=1e-6)
