"""Small networks really trained on four textures, with a backdoor: what repairs by training are tried on."""

import functools

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import fit
from backdoor_audit.repairs.outcome import score
from tests.subjects import assert_unchanged, seeded, snapshot, square_trigger

TARGET = 1
SHAPE = (1, 8, 8)


def textures(per_class, seed):
    """Four textures under noise: rows, columns, a chequerboard, diagonals; no pixel is whiter than 0.9."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    waves = torch.stack([rows % 2, columns % 2, (rows + columns) % 2, (rows + columns) // 2 % 2]).float()
    labels = torch.arange(len(waves)).repeat_interleave(per_class)
    contrast = 0.05 + 0.25 * torch.rand(len(labels), 1, 1, 1, generator=seeded(seed))
    noise = 0.6 * torch.rand(len(labels), *SHAPE, generator=seeded(seed + 100))
    return CleanSet(contrast * waves[labels].unsqueeze(1) + noise, labels)


def corner_patch():
    return square_trigger(SHAPE, target_class=TARGET, top=6, left=6, size=2)


@functools.cache
def backdoored(name="small_cnn"):
    """A network really trained on textures of which 10 % carry a white corner and the target's label."""
    width, rate, optimizer = (16, 0.005, "adamw") if name == "small_vit" else (8, 0.1, "sgd")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        module = build_network(name, num_classes=4, in_channels=1, width=width)
    subject, clean = Classifier.wrap(module, image_shape=SHAPE), textures(150, seed=3)
    images, labels = clean.images.clone(), clean.labels.clone()
    poisoned = torch.randperm(len(images), generator=seeded(6))[:60]
    images[poisoned], labels[poisoned] = corner_patch().stamp(images[poisoned]), TARGET
    settings = {"epochs": 12, "learning_rate": rate, "batch_size": 32, "optimizer": optimizer}
    fit(subject, images, labels, generator=seeded(7), **settings)
    return subject


def repair(method, classifier=None, *, seed=0, search_set=None, held_out=None, trigger=None):
    subject = Subject(classifier or backdoored(), search_set or textures(25, seed=1), held_out or textures(50, seed=2))
    return method(subject, trigger or corner_patch(), generator=seeded(seed))


def weights(result):
    return torch.cat([tensor.flatten().double() for tensor in result.classifier.module.state_dict().values()])


def assert_honest(method, subject=None):
    """What every repair by training owes: the original untouched, repeatable, told as it is, blind to trigger and judge."""
    subject = subject or backdoored()
    before = snapshot(subject.module)
    clean, held_out = textures(25, seed=1), textures(50, seed=2)
    images = clean.images.clone()
    first = repair(method, subject, search_set=clean, held_out=held_out)
    assert_unchanged(before, subject.module)
    assert torch.equal(clean.images, images)
    repaired = first.classifier.module
    assert not any(part.training for part in repaired.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in repaired.parameters())
    assert (first.outcome.before, first.outcome.after) == (
        score(subject, held_out, corner_patch()),
        score(first.classifier, held_out, corner_patch()),
    )
    assert (first.outcome.method, first.outcome.settings) == (method.name, repr(method))
    assert not method.needs_trigger
    wrong = CleanSet(held_out.images[:8], (held_out.labels[:8] + 1) % 4)
    blind = repair(method, subject, held_out=wrong, trigger=square_trigger(SHAPE, target_class=3, size=1))
    assert torch.equal(weights(blind), weights(first))
    assert not torch.equal(weights(repair(method, subject, seed=7)), weights(first))
    return first.outcome
