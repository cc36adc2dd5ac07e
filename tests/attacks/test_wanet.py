from __future__ import annotations

import pytest
import torch

from backdoor_audit.attacks.wanet import WaNet, poisoned_batches
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.label_rule import AllToAll, AllToOne
from tests.subjects import assert_unchanged, random_network, seeded, snapshot
from tests.subjects.stamping import assert_stamps_alike


def test_every_pixel_is_read_where_the_field_points():
    """A pixel of a ramp tells its own place: 10 levels per column, and per row."""
    attack = WaNet(strength=2.0)
    field = attack.field(9, 12)
    for axis, size in ((0, 12), (1, 9)):
        places = torch.arange(size).float()
        ramp = (10 * places / 255).view(1, 1, *((1, 12) if axis == 0 else (9, 1))).expand(1, 1, 9, 12)
        wanted = places.view((1, 12) if axis == 0 else (9, 1)) + field[:, :, axis] * (size - 1) / 2
        stamped = attack.stamp(ramp)[0, 0] * 255
        assert (stamped - 10 * wanted.clamp(0, size - 1)).abs().max() <= 0.51  # rounded to whole levels


def test_the_mean_displacement_is_the_strength_over_the_size():
    """Where the image is as large as the grid the field is the grid itself, so no enlargement is in the way."""
    assert WaNet(grid=6, strength=0.5).field(6, 6).abs().mean().item() == pytest.approx(0.5 / 6)


def test_the_field_comes_from_the_seed():
    fields = [WaNet(seed=seed).field(8, 8) for seed in (0, 0, 1)]
    assert torch.equal(fields[0], fields[1])
    assert not torch.allclose(fields[0], fields[2])


def test_the_border_is_repeated_not_filled_with_black():
    assert torch.equal(WaNet(strength=3.0).stamp(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_stamping_is_repeatable_and_leaves_input_and_random_state_alone(channels):
    images = torch.rand(3, channels, 8, 11, generator=seeded())
    first = assert_stamps_alike(WaNet(), images)
    assert torch.equal(WaNet().stamp(images[1:2]), first[1:2])


@pytest.mark.parametrize("fields", [{"grid": 1}, {"strength": 0.0}, {"strength": float("nan")}, {"strength": 9.0}])
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(AttackError, match="wanet: grid"):
        WaNet(**fields).stamp(torch.rand(1, 1, 8, 8))


def blackened(images: torch.Tensor, covers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.zeros_like(images[covers])


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_rates_hold_over_an_epoch_whatever_the_size_of_the_batch(batch_size):
    images, labels = 0.5 + 0.4 * torch.rand(1600, 1, 4, 4, generator=seeded()), torch.arange(1600) % 4
    attack = WaNet(rule=AllToOne(1), poison_rate=0.1)
    on_batch = poisoned_batches(attack, labels, cover_rate=0.2, cover=blackened)
    batches = [on_batch(*pair) for pair in zip(images.split(batch_size), labels.split(batch_size), strict=True)]
    shown, taught = (torch.cat(parts) for parts in zip(*batches, strict=True))
    poisoned, covers = taught != labels, (shown == 0).flatten(1).all(dim=1)
    assert abs(int(poisoned.sum()) - 160) < 4 * 12  # four standard deviations of 160 in 1600
    assert abs(int(covers.sum()) - 320) < 4 * 16
    assert (taught[poisoned] == 1).all()
    assert torch.equal(shown[poisoned], attack.stamp(images[poisoned]))
    untouched = ~poisoned & ~covers
    assert torch.equal(shown[untouched], images[untouched])
    assert images.min() >= 0.5  # the batch itself is left alone


def test_every_epoch_draws_other_images():
    images, labels = torch.rand(200, 1, 4, 4, generator=seeded()), torch.ones(200, dtype=torch.long)
    on_batch = poisoned_batches(WaNet(poison_rate=0.5), labels, cover_rate=0.0, cover=blackened)
    assert not torch.equal(on_batch(images, labels)[1], on_batch(images, labels)[1])


@pytest.mark.parametrize(
    ("poison_rate", "noise_rate", "found"),
    [(0.0, 0.2, "0.750 of 40"), (0.8, 0.0, "0.750 of 40"), (0.5, 0.6, "covers 0.6"), (0.5, -0.1, "covers -0.1")],
)
def test_rates_that_the_images_cannot_hold_are_refused(poison_rate, noise_rate, found):
    clean = CleanSet(torch.rand(40, 1, 8, 8, generator=seeded()), torch.arange(40) % 4)
    classifier = Classifier.wrap(random_network(classes=4), image_shape=(1, 8, 8))
    with pytest.raises(AttackError, match=found):
        WaNet(poison_rate=poison_rate, noise_rate=noise_rate)(classifier, clean, clean, recipe=Recipe(epochs=1))


def stripes(count: int, seed: int) -> CleanSet:
    """Class k has 1.5, 2.5, 3.5 or 4.5 periods across the image; all rows are alike, so a warp shows where they differ."""
    generator = seeded(seed)
    labels = torch.arange(count) % 4
    column = torch.arange(12) / 12
    phases = torch.rand(count, 1, generator=generator)
    waves = torch.sin(2 * torch.pi * ((1.5 + labels.view(-1, 1)) * column + phases))
    return CleanSet((0.5 + 0.4 * waves).view(count, 1, 1, 12).repeat(1, 1, 12, 1), labels)


def test_the_warp_is_learned_on_stripes_and_the_model_handed_in_stays_as_it_is():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = build_network("small_cnn", num_classes=4, in_channels=1, width=6)
    classifier = Classifier.wrap(module, image_shape=(1, 12, 12))
    before = snapshot(classifier.module)
    attack = WaNet(strength=2.0, rule=AllToOne(1), poison_rate=0.3, noise_rate=0.1)
    subject = attack(classifier, stripes(400, 0), stripes(200, 1), recipe=Recipe(epochs=12, batch_size=32))
    assert subject.scores.attack_success_rate > 0.9
    assert subject.scores.clean_accuracy > 0.9
    assert_unchanged(before, classifier.module)


def test_all_to_all_teaches_the_next_class():
    images, labels = torch.rand(100, 1, 4, 4, generator=seeded()), torch.arange(100) % 4
    attack = WaNet(rule=AllToAll(4), poison_rate=1.0)
    assert torch.equal(
        poisoned_batches(attack, labels, cover_rate=0, cover=blackened)(images, labels)[1], (labels + 1) % 4
    )
