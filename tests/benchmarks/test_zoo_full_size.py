"""Subjects of ordinary size, and the training that goes on where it was stopped."""

import pytest
import torch

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe
from benchmarks.zoo.full_size import FULL_SIZE
from benchmarks.zoo.habits import Habits, train
from benchmarks.zoo.subject import FULL_SIZE_MODELS
from tests.subjects import random_network, row_images

RECIPE = Recipe(epochs=4, learning_rate=0.1, batch_size=10, shift=1)


def test_they_have_the_published_number_of_weights_and_start_from_the_published_network():
    clean = FULL_SIZE[0]
    for subject in FULL_SIZE:
        weights = sum(parameter.numel() for parameter in subject.fresh().module.parameters())
        assert weights == pytest.approx(270_000, rel=0.01)
        assert subject.file.parent == FULL_SIZE_MODELS
        assert (subject.warm_start, subject.twin) == (("", "") if subject is clean else (clean.name, clean.name))
    assert len({subject.name for subject in FULL_SIZE}) == len(FULL_SIZE)
    assert len({subject.attack.name for subject in FULL_SIZE[1:]}) == 8


def test_somebody_elses_weights_are_taken_as_they_are(tmp_path):
    clean = FULL_SIZE[0]
    made = clean.fresh()
    weights = {f"module.{name}": value for name, value in made.module.state_dict().items()}
    torch.save({"state_dict": weights, "best_prec1": 91.7}, tmp_path / clean.published)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(clean.adopted(tmp_path).logits(images), made.logits(images), atol=1e-5)


def trained(checkpoint=None):
    clean = row_images(classes=5, per_class=10)
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    train(subject, clean.images, clean.labels, recipe=RECIPE, habits=Habits(flip=True), seed=3, checkpoint=checkpoint)
    return torch.cat([value.flatten().double() for value in subject.module.state_dict().values()])


def test_a_stopped_training_goes_on_at_the_last_whole_epoch_to_the_same_weights(tmp_path, monkeypatch):
    file, calls = tmp_path / "subject.partial", []

    def stopped(*arguments):
        calls.append(arguments)
        kept(*arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    from benchmarks.zoo import habits

    kept = habits._keep
    monkeypatch.setattr(habits, "_keep", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(file)
    assert torch.load(file, weights_only=True)["epochs"] == 2
    weights = trained(file)
    assert [arguments[-1] for arguments in calls] == [1, 2, 3, 4]
    assert torch.equal(weights, trained())
    assert not list(tmp_path.iterdir())
