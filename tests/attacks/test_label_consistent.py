import pytest
import torch

from backdoor_audit.attacks.attack import replace_images
from backdoor_audit.attacks.label_consistent import LabelConsistent, ascent
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.label_rule import AllToOne
from tests.subjects import row_images, row_reader, seeded


def test_the_cells_of_the_lower_right_corner():
    images = torch.full((1, 1, 12, 12), 100 / 255)
    stamped = LabelConsistent(corners=("bottom-right",)).stamp(images)[0, 0] * 255
    expected = torch.full((12, 12), 100.0)
    expected[8:11, 8:11] = torch.tensor([[0.0, 0, 255], [0, 255, 0], [255, 0, 255]])  # one pixel from the border
    assert torch.allclose(stamped, expected, atol=1e-3)


def test_every_corner_holds_the_mirror_image():
    signs = LabelConsistent(margin=0).signs((3, 9, 8))
    assert torch.equal(signs, signs.flip(1))
    assert torch.equal(signs, signs.flip(2))
    assert int((signs == 1).sum()) == 4 * 4
    assert int((signs == -1).sum()) == 4 * 5
    assert (signs[0, 0, 0], signs[0, 0, 1], signs[0, 2, 2]) == (1, -1, -1)


def test_a_small_amplitude_adds_and_takes_away():
    images = torch.tensor([100 / 255, 10 / 255, 250 / 255]).view(3, 1, 1, 1).expand(-1, 3, 8, 8)
    stamped = LabelConsistent(corners=("top-left",), margin=0, amplitude=32 / 255).stamp(images) * 255
    assert stamped[:, 0, 0, 0].tolist() == pytest.approx([132, 42, 255])
    assert stamped[:, 2, 0, 1].tolist() == pytest.approx([68, 0, 218])
    assert stamped[:, 1, 5, 5].tolist() == pytest.approx([100, 10, 250])


@pytest.mark.parametrize("shape", [(1, 9, 8), (3, 11, 12)])
def test_a_stamp_is_repeatable_and_leaves_its_input(shape: tuple[int, int, int]):
    images = torch.rand(4, *shape, generator=seeded())
    before, attack = images.clone(), LabelConsistent()
    assert torch.equal(attack.stamp(images), attack.stamp(images))
    assert torch.equal(images, before)
    assert attack.stamp(images[:0]).shape == (0, *shape)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 1.0)])
def test_ascent_leads_a_classifier_away_within_the_bound(norm: str, epsilon: float):
    clean, classifier = row_images(per_class=5), row_reader()
    hard = ascent(classifier, clean.images, clean.labels, epsilon=epsilon, norm=norm, steps=10, generator=seeded())
    change = (hard - clean.images).flatten(1)
    largest = (change.abs().amax(dim=1) if norm == "linf" else change.norm(dim=1)).max()
    assert 0.9 * epsilon < largest <= epsilon + 1e-5
    assert hard.min() >= 0
    assert hard.max() <= 1
    assert (classifier.predict(clean.images) == clean.labels).float().mean() == 1
    assert (classifier.predict(hard) == clean.labels).float().mean() < 0.2


def test_poison_perturbs_and_stamps_the_target_class_alone_and_keeps_labels():
    clean = row_images(classes=4, per_class=20)
    attack = LabelConsistent(poison_rate=0.1, surrogate_epochs=1, surrogate_width=2, attack_steps=2)
    random, before = torch.random.get_rng_state(), clean.images.clone()
    poisoned = attack.poison(clean.images, clean.labels)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(clean.images, before)
    assert len(poisoned.poisoned) == 8
    assert (clean.labels[poisoned.poisoned] == 0).all()
    assert torch.equal(poisoned.labels, clean.labels)
    touched = (poisoned.images != before).flatten(1).any(dim=1).nonzero().squeeze(1)
    assert torch.equal(touched, poisoned.poisoned.sort().values)
    signs = attack.signs(clean.image_shape)[0]
    stamped = poisoned.images[poisoned.poisoned, 0]
    assert (stamped[:, signs == 1] == 1).all()
    assert (stamped[:, signs == -1] == 0).all()
    change = (stamped - before[poisoned.poisoned, 0])[:, signs == 0].abs()
    assert 0.1 < change.max() <= 64 / 255 + 0.5 / 255
    again = attack.poison(clean.images, clean.labels)
    assert torch.equal(again.images, poisoned.images)


def test_perturbed_images_are_hard_for_the_surrogate():
    clean = row_images(classes=4, per_class=60)
    attack = LabelConsistent(
        poison_rate=0.1, surrogate_epochs=5, surrogate_width=4, surrogate_epsilon=0.02, epsilon=0.4
    )
    surrogate = attack._surrogate(clean.images, clean.labels)
    target = clean.images[clean.labels == 0]
    assert (surrogate.predict(target) == 0).float().mean() > 0.8
    assert (surrogate.predict(attack._perturbed(surrogate, target)) == 0).float().mean() < 0.2


def test_more_poison_than_the_target_class_holds_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(LabelConsistent, "_surrogate")
    clean = row_images(classes=4, per_class=5)
    with pytest.raises(AttackError, match=r"label_consistent: poison_rate 0\.3 of 20 images, 5 of them"):
        LabelConsistent(poison_rate=0.3).poison(clean.images, clean.labels)


def test_its_rate_counts_all_images_as_everywhere():
    clean = row_images(classes=4, per_class=20)
    assert len(replace_images(clean.images, clean.labels, attack=LabelConsistent(poison_rate=0.2)).poisoned) == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corners": ("middle",)}, "accepted: one or more of bottom-right"),
        ({"corners": ()}, "corners"),
        ({"norm": "l1"}, "norm 'l1'; accepted: linf, l2"),
        ({"amplitude": 32.0}, "amplitude"),
        ({"margin": 3}, "do not fit into 8x8 px"),
        ({"attack_steps": 0}, "attack_steps"),
        ({"rule": AllToOne()}, "give rule=CleanLabel"),
    ],
)
def test_parameters_that_make_no_attack_are_refused(fields: dict[str, object], message: str):
    clean = row_images(classes=4, per_class=5)
    attack = LabelConsistent(**{"surrogate_epochs": 1, **fields})
    with pytest.raises(AttackError, match=message):
        attack.stamp(attack.poison(clean.images, clean.labels).images)
