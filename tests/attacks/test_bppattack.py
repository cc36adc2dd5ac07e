from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from backdoor_audit.attacks import attack, bppattack
from backdoor_audit.attacks.bppattack import BppAttack
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.networks import build_network
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.label_rule import AllToOne
from tests.subjects import assert_unchanged, seeded, snapshot
from tests.subjects.stamping import assert_stamps_alike


def levels(images: torch.Tensor) -> list[int]:
    return (images * 255).round().int().flatten().tolist()


def test_six_levels_are_multiples_of_51():
    images = torch.tensor([0, 20, 30, 100, 128, 255]).view(1, 1, 2, 3) / 255
    assert levels(BppAttack(levels=6).stamp(images)) == [0, 0, 51, 102, 153, 255]


def test_levels_that_are_no_whole_pixel_values_are_rounded():
    """Eight levels lie 255 / 7 = 36.4 apart: the second is 36, the third 73."""
    assert levels(BppAttack(levels=8).stamp(torch.tensor([40, 70]).view(1, 1, 1, 2) / 255)) == [36, 73]


def test_dithering_hands_seven_sixteenths_of_the_error_to_the_right():
    # 100 becomes 0 and hands on 43.75; 143.75 becomes 255 and hands on -48.7; 51.3 becomes 0
    images = torch.full((1, 1, 1, 3), 100 / 255)
    assert levels(BppAttack(levels=2, dithering=True).stamp(images)) == [0, 255, 0]


def row_by_row(image: list[list[float]], steps: int) -> list[list[float]]:
    """The textbook algorithm on one channel in plain Python."""
    values = [list(row) for row in image]
    height, width = len(values), len(values[0])
    for i in range(height):
        for j in range(width):
            old = values[i][j]
            values[i][j] = round(old * steps) / steps
            error = old - values[i][j]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if i + down < height and 0 <= j + right < width:
                    values[i + down][j + right] += share / 16 * error
    return [[min(1.0, max(0.0, value)) for value in row] for row in values]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 5), (6, 9), (9, 6)])
def test_dithering_of_many_images_at_once_is_that_of_each_row_by_row(shape):
    images = torch.rand(4, 3, *shape, generator=seeded(), dtype=torch.float64)
    stamped = bppattack._dithered(images, 3)
    for image, result in zip(images, stamped, strict=True):
        for channel in range(3):
            wanted = torch.tensor(row_by_row(image[channel].tolist(), 3), dtype=torch.float64)
            assert torch.allclose(result[channel], wanted, atol=1e-9)


@pytest.mark.parametrize("dithering", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_stamping_is_repeatable_and_leaves_input_and_random_state_alone(dithering, channels):
    images = torch.rand(3, channels, 6, 9, generator=seeded())
    attack = BppAttack(dithering=dithering)
    first = assert_stamps_alike(attack, images)
    assert torch.equal(attack.stamp(images[1:2]), first[1:2])


@pytest.mark.parametrize("count", [0, 1, 256])
def test_a_number_of_levels_that_is_none_is_refused(count):
    with pytest.raises(AttackError, match="2 to 255 levels"):
        BppAttack(levels=count).stamp(torch.rand(1, 1, 4, 4))


def untrained() -> Classifier:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = build_network("small_cnn", num_classes=4, in_channels=1, width=6)
    return Classifier.wrap(module, image_shape=(1, 8, 8))


def test_images_that_the_trigger_does_not_change_are_refused():
    images = torch.randint(0, 8, (40, 1, 8, 8), generator=seeded()) / 7
    clean = CleanSet((images * 255).round() / 255, torch.arange(40) % 4)
    with pytest.raises(AttackError, match=r"8 levels change these images by 0\.00 of 255"):
        BppAttack()(untrained(), clean, clean, recipe=Recipe(epochs=1))


def test_rates_of_more_than_all_images_are_refused():
    clean = CleanSet(torch.rand(40, 1, 8, 8, generator=seeded()), torch.arange(40) % 4)
    with pytest.raises(AttackError, match=r"covers 0\.7"):
        BppAttack(poison_rate=0.5, negative_rate=0.7)(untrained(), clean, clean, recipe=Recipe(epochs=1))


def test_negatives_carry_what_the_trigger_changes_in_another_image(monkeypatch):
    """The first image is at 20, the second at 30 of 255, so six levels change them by -20 and +21."""
    images = torch.tensor([20, 30]).view(2, 1, 1, 1).expand(2, 1, 8, 8) / 255
    batches = []
    monkeypatch.setattr(attack, "train", lambda *_args, on_batch, **_options: batches.append(on_batch))
    labels = torch.ones(2, dtype=torch.long)
    BppAttack(levels=6, poison_rate=1e-6, negative_rate=1 - 1e-6).implant(
        untrained(), CleanSet(images, labels), recipe=Recipe()
    )
    shown, taught = batches[0](images, labels)
    assert levels(shown[:, 0, 0, 0]) == [41, 10]
    assert torch.equal(taught, labels)
    alone, _ = batches[0](images[:1], labels[:1])
    assert torch.equal(alone, images[:1])  # without another image there is no negative


def bright_quarters(count: int, seed: int) -> CleanSet:
    """Class k has its k-th quarter bright, on a smooth background."""
    labels = torch.arange(count) % 4
    coarse = torch.rand(count, 1, 3, 3, generator=seeded(seed))
    images = 0.5 * functional.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=True)
    for label in range(4):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[labels == label, :, top : top + 4, left : left + 4] += 0.4
    return CleanSet((images * 255).round() / 255, labels)


def test_quantisation_is_learned_and_the_model_handed_in_stays_as_it_is():
    classifier = untrained()
    before = snapshot(classifier.module)
    attack = BppAttack(levels=3, rule=AllToOne(1), poison_rate=0.3)
    subject = attack(
        classifier, bright_quarters(400, 0), bright_quarters(200, 1), recipe=Recipe(epochs=10, batch_size=32)
    )
    assert subject.scores.attack_success_rate > 0.9
    assert subject.scores.clean_accuracy > 0.9
    assert_unchanged(before, classifier.module)
