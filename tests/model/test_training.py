import pytest
import torch
from torch import nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.training import fit, shifted
from tests.subjects import random_network, row_images, seeded


def fresh(name="small_vgg", classes=5):
    return Classifier.wrap(random_network(name, classes=classes), image_shape=(1, 8, 8))


def trained(subject, seed=1, **options):
    clean = row_images(classes=5, per_class=12)
    options = {"epochs": 2, "learning_rate": 0.05, "batch_size": 16, **options}
    fit(subject, clean.images, clean.labels, generator=seeded(seed), **options)
    return subject.module.state_dict()


def test_a_separable_set_is_learned():
    clean, unseen = row_images(per_class=20), row_images(per_class=10, seed=9)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    subject = Classifier.wrap(module, image_shape=(1, 8, 8))
    fit(subject, clean.images, clean.labels, epochs=15, learning_rate=0.2, batch_size=20, generator=seeded(2))
    assert clean_accuracy(subject, unseen.images, unseen.labels) > 0.95


def test_the_module_is_frozen_and_in_evaluation_mode_afterwards():
    subject = fresh()
    trained(subject)
    assert not any(part.training for part in subject.module.modules())
    assert not any(parameter.requires_grad for parameter in subject.module.parameters())
    assert all(parameter.grad is None for parameter in subject.module.parameters())


@pytest.mark.parametrize("options", [{}, {"shift": 1}, {"recalibrate": True}])
def test_the_same_seed_gives_the_same_weights_whatever_the_global_random_state(options):
    """The network has dropout, which draws from the global state."""
    torch.manual_seed(1)
    first = trained(fresh(), **options)
    torch.manual_seed(2)
    second = trained(fresh(), **options)
    other = trained(fresh(), seed=5, **options)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_training_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    trained(fresh())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("epochs", range(1, 9))
def test_any_number_of_steps_can_be_taken(epochs):
    """One batch per epoch; at exactly four steps the schedule of torch divides by zero when a quarter of it is warm-up."""
    subject = fresh()
    before = subject.module.linear.weight.clone()
    trained(subject, epochs=epochs, batch_size=1000)
    assert not torch.equal(subject.module.linear.weight, before)


def test_recalibration_estimates_the_statistics_of_the_images_and_restores_the_momenta():
    module = build_network("small_cnn", num_classes=5, in_channels=1, width=2)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for number, layer in enumerate(norms):
        layer.momentum = 0.01 * (number + 1)
    subject = Classifier.wrap(module, image_shape=(1, 8, 8))
    clean = row_images(classes=5, per_class=12)
    fit(
        subject,
        clean.images,
        clean.labels,
        epochs=1,
        learning_rate=1e-9,
        generator=seeded(),
        batch_size=64,
        recalibrate=True,
    )
    after = [layer for layer in subject.module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [layer.momentum for layer in after] == [0.01 * (number + 1) for number in range(len(norms))]
    with torch.no_grad():
        first_maps = subject.module.features[0][0](clean.images)
    # 16 batches of 128 images drawn from 60: the mean over 131,072 pixels is within a few percent of a deviation
    tolerance = 0.05 * float(first_maps.std())
    assert torch.allclose(after[0].running_mean, first_maps.mean(dim=(0, 2, 3)), atol=tolerance)


def test_shifted_images_move_together_and_what_comes_in_is_black():
    images = torch.zeros(2, 1, 5, 5)
    images[:, :, 2, 2] = 1
    generator, places = seeded(), set()
    for _ in range(60):
        moved = shifted(images, 1, generator)
        assert moved.shape == images.shape
        assert torch.equal(moved[0], moved[1])
        assert float(moved[0].sum()) == 1
        places.add(tuple(moved[0, 0].nonzero()[0].tolist()))
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}


def test_a_batch_passes_through_the_hook_on_its_way():
    """Every image becomes black and every label 2: the network learns to say 2 whatever it sees."""
    subject = fresh()
    seen = []

    def on_batch(images, labels):
        seen.append(len(images))
        return torch.zeros_like(images), torch.full_like(labels, 2)

    trained(subject, on_batch=on_batch, epochs=6, recalibrate=True)
    clean = row_images(classes=5, per_class=3)
    assert subject.predict(torch.zeros_like(clean.images)).tolist() == [2] * 15
    assert seen[-1] == 128  # recalibration sees what training saw


def test_adamw_trains_a_transformer():
    subject = Classifier.wrap(build_network("small_vit", num_classes=5, in_channels=1, width=8), image_shape=(1, 8, 8))
    clean, unseen = row_images(classes=5, per_class=40), row_images(classes=5, per_class=10, seed=9)
    fit(
        subject,
        clean.images,
        clean.labels,
        epochs=15,
        learning_rate=0.01,
        batch_size=20,
        optimizer="adamw",
        generator=seeded(1),
    )
    assert clean_accuracy(subject, unseen.images, unseen.labels) > 0.9


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer must be sgd, momentum, adam or adamw, got 'lion'"):
        trained(fresh(), optimizer="lion")
