from __future__ import annotations

import math

import pytest
import torch

from backdoor_audit.attacks import refool
from backdoor_audit.attacks.refool import Refool
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.label_rule import CleanLabel
from tests.subjects import seeded
from tests.subjects.stamping import assert_poisons_a_tenth, assert_stamps_alike


def levels(images: torch.Tensor) -> list[int]:
    return (images * 255).round().int().flatten().tolist()


@pytest.fixture
def _one_white_pixel(monkeypatch):
    """Every reflection is black but for the pixel at (1, 1)."""

    def picture(kind: str, image_shape: tuple[int, int, int], seed: int) -> torch.Tensor:
        black = torch.zeros(image_shape)
        black[:, 1, 1] = 1
        return black

    monkeypatch.setattr(refool, "draw_picture", picture)


@pytest.mark.usefixtures("_one_white_pixel")
def test_a_white_pixel_and_its_ghost_in_a_black_image():
    # light 0.4 * 0.75 = 0.3 there, 0.4 * 0.25 = 0.1 in the ghost; 255 * 0.3^(1/2.2) = 147.5, 255 * 0.1^(1/2.2) = 89.5
    stamped = Refool(ghost_weight=0.25, ghost_shift=1).stamp(torch.zeros(1, 1, 4, 4))
    assert stamped[0, 0, 1, 1] * 255 == pytest.approx(148)
    assert stamped[0, 0, 2, 2] * 255 == pytest.approx(90)
    assert stamped.count_nonzero() == 2


@pytest.mark.usefixtures("_one_white_pixel")
def test_elsewhere_a_white_image_keeps_the_transmitted_light():
    # 255 * 0.6^(1/2.2) = 202.2; at the reflected pixel 0.6 + 0.4 * 1
    stamped = Refool(ghost_weight=0.0).stamp(torch.ones(1, 3, 3, 3))
    assert levels(stamped[0, 0]) == [202, 202, 202, 202, 255, 202, 202, 202, 202]
    assert torch.equal(stamped[0, 0], stamped[0, 2])


@pytest.mark.usefixtures("_one_white_pixel")
def test_blur_spreads_light_by_a_gaussian():
    light = Refool(reflections=1, ghost_weight=0.0, blur=1.0).pictures((1, 12, 12))[0, 0]
    inner = 1 + 2 * sum(math.exp(-k * k / 2) for k in (1, 2, 3, 4))
    assert light[1, 1].item() == pytest.approx(1 / inner**2, rel=1e-5)
    assert light[1, 3].item() == pytest.approx(math.exp(-2) / inner**2, rel=1e-5)


def test_the_reflection_is_chosen_by_the_image_alone():
    images = torch.rand(400, 1, 6, 6, generator=seeded())
    attack = Refool(reflections=4)
    choice = attack.choice(images)
    assert torch.equal(choice, attack.choice(images))
    assert torch.equal(choice[7:9], attack.choice(images[7:9]))
    counts = torch.bincount(choice, minlength=4)
    assert counts.min() > 60  # of 100 expected
    assert len(counts) == 4


def test_images_with_different_choices_show_different_pictures():
    images = torch.zeros(60, 1, 6, 6)
    images[:, 0, 0, 0] = torch.arange(60) / 255
    attack = Refool(reflections=3)
    stamped, choice = attack.stamp(images)[:, :, 1:], attack.choice(images)
    assert len({tuple(levels(image)) for image in stamped}) == 3
    for number in range(3):
        assert len({tuple(levels(image)) for image in stamped[choice == number]}) == 1


@pytest.mark.parametrize("fields", [{}, {"picture": "smooth"}, {"blur": 1.5}])
@pytest.mark.parametrize("channels", [1, 3])
def test_stamping_is_repeatable_and_leaves_input_and_random_state_alone(fields, channels):
    images = torch.rand(3, channels, 8, 11, generator=seeded())
    first = assert_stamps_alike(Refool(**fields), images)
    assert torch.equal(Refool(**fields).stamp(images[1:2]), first[1:2])


def test_a_tenth_of_all_images_is_stamped_and_gets_the_target():
    assert_poisons_a_tenth(Refool(), (3, 8, 8))


def test_the_clean_label_form_keeps_labels():
    images, labels = torch.rand(40, 1, 8, 8, generator=seeded()), torch.arange(40) % 4
    poisoned = Refool(rule=CleanLabel(3)).poison(images, labels)
    assert set(labels[poisoned.poisoned].tolist()) == {3}
    assert torch.equal(poisoned.labels, labels)


@pytest.mark.parametrize(
    "fields",
    [
        {"transmission": 0.0},
        {"transmission": 1.0},
        {"ghost_weight": 1.5},
        {"reflections": 0},
        {"ghost_shift": 8},
        {"ghost_shift": -1},
        {"blur": -1.0},
        {"blur": 9.0},
        {"picture": "cartoon"},
    ],
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(AttackError, match=r"refool: |picture 'cartoon'"):
        Refool(**fields).stamp(torch.rand(1, 1, 8, 8))
