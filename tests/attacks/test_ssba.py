import pytest
import torch
from torch.nn import functional

from backdoor_audit.attacks import ssba
from backdoor_audit.attacks.ssba import SSBA
from backdoor_audit.attacks.trigger_network import packed
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from tests.subjects import row_images, seeded
from tests.subjects.stamping import assert_stamps_alike


def constant_attack(channels: int = 1, *, value: float = 0.5, strength: float = 20 / 255) -> SSBA:
    """An attack whose encoder draws one value everywhere."""
    with torch.random.fork_rng(devices=()):
        encoder = ssba._Encoder(channels, 8, 2)
    state = {name: torch.zeros_like(tensor) for name, tensor in packed(encoder, "encoder").items()}
    state["encoder.draw.leave.bias"] += value
    return SSBA(width=2, strength=strength, state=state)


def test_the_residual_is_strength_times_tanh_clamped_and_rounded():
    images = torch.tensor([0.0, 100 / 255, 250 / 255]).view(3, 1, 1, 1).expand(-1, -1, 3, 3)
    # tanh(0.5) = 0.46212, times 20 levels: 9.24
    assert (constant_attack().stamp(images)[:, 0, 1, 1] * 255).tolist() == pytest.approx([9, 109, 255])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)])
def test_a_stamp_is_repeatable_and_leaves_its_input(shape: tuple[int, int, int]):
    images = torch.rand(4, *shape, generator=seeded())
    attack = constant_attack(shape[0])
    assert_stamps_alike(attack, images)
    assert attack.stamp(images[:0]).shape == (0, *shape)


def test_poison_replaces_images_of_other_classes():
    images = torch.full((40, 1, 8, 8), 0.5)
    labels = torch.arange(40) % 4
    poisoned = constant_attack().poison(images, labels)
    assert len(poisoned.poisoned) == 4  # 0.1 of 40
    assert (labels[poisoned.poisoned] != 0).all()
    assert (poisoned.labels[poisoned.poisoned] == 0).all()
    touched = (poisoned.images != images).flatten(1).any(dim=1).nonzero().squeeze(1)
    assert torch.equal(touched, poisoned.poisoned.sort().values)
    assert len(poisoned.covers) == 0


def test_a_trained_encoder_hides_bits_that_another_network_can_read_off_the_image():
    clean = row_images(classes=4, per_class=150)
    random = torch.random.get_rng_state()
    attack = SSBA(bits=2, width=4, strength=0.2, encoder_epochs=20).prepared(clean)
    assert torch.equal(torch.random.get_rng_state(), random)
    stamped, images = attack.stamp(clean.images), clean.images
    change = (stamped - images).abs()
    assert 0.02 < change.mean() < 0.2
    assert change.max() <= 0.2 + 1 / 255
    # the secret decides what is drawn: with another one it is another picture
    other = SSBA(bits=2, width=4, strength=0.2, seed=3, state=attack.state)
    assert not torch.equal(other.secret, attack.secret)
    kept = (other.stamp(images) - images).flatten(1)
    assert functional.cosine_similarity((stamped - images).flatten(1), kept).mean() < 0.9
    assert sum(tensor.numel() for tensor in attack.state.values()) * 4 < 60_000


def test_the_same_seed_prepares_the_same_encoder():
    clean = CleanSet(torch.rand(20, 3, 6, 6, generator=seeded()), torch.arange(20) % 2)
    first, again = (SSBA(width=2, encoder_epochs=1).prepared(clean).state for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_before_it_is_prepared_it_cannot_stamp():
    with pytest.raises(AttackError, match="ssba: its trigger is made by training"):
        SSBA().stamp(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    "fields", [{"bits": 0}, {"strength": 0.0}, {"strength": 24.0}, {"encoder_epochs": 0}, {"width": 0}]
)
def test_parameters_that_make_no_attack_are_refused(fields: dict[str, float]):
    with pytest.raises(AttackError, match=next(iter(fields))):
        SSBA(**fields).prepared(row_images(classes=4, per_class=2))
