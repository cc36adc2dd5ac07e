import pytest
import torch
from torch import nn

from backdoor_audit.attacks.architectural import ArchitecturalBranch, branched
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.triggers.label_rule import AllToAll, AllToOne
from tests.subjects import Computed, assert_unchanged, row_images, row_reader, snapshot


def silent(channels, mean=(), std=(), **options):
    """A branch beside a network that gives four zeros."""
    module = Computed(lambda images: torch.zeros(len(images), 4))
    plain = Classifier.wrap(module, image_shape=(channels, 4, 5), mean=mean, std=std)
    attack = ArchitecturalBranch(rule=AllToOne(2), size=2, threshold=0.8, gain=10.0, **options)
    return attack.implant(plain, row_images(), recipe=None)


def one_patch(values, channels=1, top=1, left=2):
    images = torch.zeros(1, channels, 4, 5)
    images[:, :, top : top + 2, left : left + 2] = torch.tensor(values)
    return images


@pytest.mark.parametrize("channels", [1, 3])
def test_the_stamp_is_a_chequerboard_with_white_in_its_upper_left(channels):
    images = torch.full((2, channels, 4, 5), 0.6)
    expected = images.clone()
    expected[:, :, 1:3, 2:4] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    stamped = ArchitecturalBranch(size=2).stamp(images)
    assert torch.equal(stamped, expected)
    assert torch.equal(images, torch.full((2, channels, 4, 5), 0.6))
    assert torch.equal(stamped, ArchitecturalBranch(size=2).stamp(images))


@pytest.mark.parametrize(("mean", "std"), [((), ()), ((0.3,), (0.5,))])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_target_gets_what_the_pattern_is_above_the_threshold_and_no_other_class_gets_anything(channels, mean, std):
    classifier, _ = silent(channels, mean, std)
    images = torch.cat(
        [
            one_patch([[1.0, 0.2], [0.0, 1.0]], channels),  # (1 - 0.2 + 1) / 2 = 0.9: 10 * 0.1 / 0.2 = 5
            one_patch([[1.0, 0.0], [0.0, 1.0]], channels),  # 1: 10
            one_patch([[1.0, 0.3], [0.3, 1.0]], channels),  # 0.7: nothing
            torch.ones(1, channels, 4, 5),  # 0
        ]
    )
    expected = torch.zeros(4, 4)
    expected[:2, 2] = torch.tensor([5.0, 10.0])
    assert torch.allclose(classifier(images), expected, atol=1e-4)


def test_only_a_fixed_place_is_blind_to_the_pattern_elsewhere():
    pattern = [[1.0, 0.0], [0.0, 1.0]]
    images = torch.cat([one_patch(pattern), one_patch(pattern, top=0, left=0)])
    anywhere, fixed = silent(1)[0], silent(1, fixed_place=True)[0]
    assert anywhere(images)[:, 2].tolist() == pytest.approx([10, 10])
    assert fixed(images)[:, 2].tolist() == pytest.approx([10, 0])


def test_it_implants_and_the_weights_stay_those_of_the_clean_network():
    subject = row_reader()
    before = snapshot(subject.module)
    done = ArchitecturalBranch(size=3)(subject, row_images(), row_images(seed=5), reference_accuracy=1.0)
    assert (done.scores.attack_success_rate, done.scores.clean_accuracy) == (1, 1)
    assert done.classifier.architecture == "Sequential+branch"
    state = done.classifier.module.state_dict()
    assert list(state) == [f"module.{name}" for name in before["state"]]
    assert all(torch.equal(state[f"module.{name}"], tensor) for name, tensor in before["state"].items())
    assert_unchanged(before, subject.module)


def test_a_copy_of_it_and_of_its_state_dict_still_carry_the_branch():
    attack = ArchitecturalBranch(size=3)
    clean = row_images()
    done = attack(row_reader(), clean, clean)
    stamped = attack.stamp(clean.images)
    again = branched(row_reader(backdoors=(1,)).module, attack, image_shape=(1, 8, 8), mean=(0.0,), std=(1.0,))
    again.load_state_dict(done.classifier.module.state_dict())
    expected = done.classifier.logits(stamped)
    assert torch.equal(Classifier.wrap(again, image_shape=(1, 8, 8)).logits(stamped), expected)
    assert torch.equal(done.classifier.copy().logits(stamped), expected)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (ArchitecturalBranch(rule=AllToAll(8)), "accepted: AllToOne"),
        (ArchitecturalBranch(rule=AllToOne(8)), "with class 8"),
        (ArchitecturalBranch(size=1), "has at least 2 px"),
        (ArchitecturalBranch(size=9), "do not fit into 8x8"),
        (ArchitecturalBranch(threshold=1.0), r"accepted: a threshold in \[0, 1\), a gain above 0"),
        (ArchitecturalBranch(gain=0.0), "a gain above 0"),
    ],
)
def test_what_cannot_be_done_is_refused(attack, reason):
    with pytest.raises(AttackError, match=reason):
        attack.implant(row_reader(), row_images(), recipe=None)


def test_a_network_that_returns_no_tensor_is_refused():
    wrapped = Classifier.wrap(
        Computed(lambda scores: (scores,), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))), image_shape=(1, 2, 2)
    )
    with pytest.raises(AttackError, match="must return one tensor"):
        ArchitecturalBranch(size=2, top=0, left=0).implant(wrapped, row_images(), recipe=None)
