import pytest
import torch

from backdoor_audit.attacks.input_aware import InputAware
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe
from tests.subjects import random_network, row_images, seeded
from tests.subjects.stamping import assert_stamps_alike, constant_state


def constant_attack(channels: int = 1, *, mask: float = 0.05, pattern: float = 1.0) -> InputAware:
    state = constant_state("mask", channels, 1, 2, mask) | constant_state("pattern", channels, channels, 2, pattern)
    return InputAware(width=2, state=state)


def test_a_stamp_moves_the_image_towards_the_pattern_by_the_mask():
    # mask: tanh(0.05) / 2 + 0.5 = 0.524979, tanh(20 * 0.524979 - 10) / 2 + 0.5 = 0.730879; pattern: tanh(1) / 2 + 0.5 = 0.880797
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(-1, -1, 4, 4)
    stamped = constant_attack().stamp(images)[:, 0, 2, 2] * 255
    # 0.730879 * 0.880797 * 255 = 164.16 and 255 - 0.730879 * 0.119203 * 255 = 232.78
    assert stamped.tolist() == pytest.approx([164, 233])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)])
def test_a_stamp_is_repeatable_and_leaves_its_input(shape: tuple[int, int, int]):
    images = torch.rand(4, *shape, generator=seeded())
    attack = constant_attack(shape[0])
    assert_stamps_alike(attack, images)
    assert attack.stamp(images[:0]).shape == (0, *shape)


def test_a_batch_holds_own_triggers_others_triggers_and_clean_images():
    attack = InputAware(poison_rate=0.3, cross_rate=0.2)
    images = torch.full((20, 1, 2, 2), 0.2)
    labels = torch.arange(20) % 5
    masks = torch.ones(20, 1, 2, 2)
    patterns = (torch.arange(20) / 255 + 0.5).view(20, 1, 1, 1).expand(-1, 1, 2, 2)  # every image has its own shade
    mixed, taught = attack._mixed(images, labels, masks, patterns, seeded())
    shade = mixed[:, 0, 0, 0]
    own = torch.isclose(shade, torch.arange(20) / 255 + 0.5, atol=0.6 / 255, rtol=0)
    crossed = (shade > 0.4) & ~own
    assert (int(own.sum()), int(crossed.sum())) == (6, 4)
    assert (labels[own] != 0).all()
    assert (taught[own] == 0).all()
    assert torch.equal(taught[~own], labels[~own])
    assert torch.equal(images, torch.full((20, 1, 2, 2), 0.2))


def test_it_implants_and_a_neighbours_trigger_works_less():
    clean, held_out = row_images(classes=4, per_class=60), row_images(classes=4, per_class=20, seed=1)
    classifier = Classifier.wrap(random_network("small_cnn", classes=4, width=4), image_shape=(1, 8, 8))
    random = torch.random.get_rng_state()
    attack = InputAware(width=4, poison_rate=0.2, mask_weight=1.0, trigger_learning_rate=0.01)
    result = attack(classifier, clean, held_out, recipe=Recipe(epochs=12, batch_size=16))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert result.scores.clean_accuracy >= 0.9
    assert result.scores.attack_success_rate >= 0.9
    images = held_out.images
    changed = result.attack.stamp(images) - images
    crossed = (images + changed.roll(7, dims=0)).clamp(0, 1)
    others = held_out.labels != 0
    foreign = (result.classifier.predict(crossed[others]) == 0).float().mean()
    assert foreign < result.scores.attack_success_rate - 0.2


def test_before_it_is_implanted_it_cannot_stamp():
    with pytest.raises(AttackError, match="input_aware: its trigger is made by training"):
        InputAware().stamp(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    "fields",
    [{"poison_rate": 0.0}, {"cross_rate": 0.95}, {"mask_epochs": 0}, {"width": 0}, {"trigger_learning_rate": 0.0}],
)
def test_parameters_that_make_no_attack_are_refused(fields: dict[str, float]):
    classifier = Classifier.wrap(random_network("small_cnn", classes=4), image_shape=(1, 8, 8))
    with pytest.raises(AttackError, match=next(iter(fields))):
        InputAware(**fields).implant(classifier, row_images(classes=4, per_class=2), recipe=Recipe())
