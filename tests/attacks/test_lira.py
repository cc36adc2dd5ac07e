import itertools

import pytest
import torch
from torch import nn

from backdoor_audit.attacks.attack import measure
from backdoor_audit.attacks.lira import Lira
from backdoor_audit.attacks.trigger_network import TriggerNetwork
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.label_rule import AllToAll
from tests.subjects import random_network, row_images, seeded, snapshot
from tests.subjects.stamping import assert_stamps_alike, constant_state

RECIPE = Recipe(epochs=8, learning_rate=0.05, batch_size=16)


def test_the_residual_is_epsilon_times_tanh_clamped_and_rounded():
    attack = Lira(epsilon=20 / 255, width=2, state=constant_state("trigger", 1, 1, 2, 0.5))
    images = torch.tensor([0.0, 100 / 255, 250 / 255]).view(3, 1, 1, 1).expand(-1, -1, 3, 3)
    # tanh(0.5) = 0.46212, times 20 levels: 9.24
    assert (attack.stamp(images)[:, 0, 1, 1] * 255).tolist() == pytest.approx([9, 109, 255])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)])
def test_a_stamp_is_repeatable_and_leaves_its_input_and_the_random_state(shape: tuple[int, int, int]):
    attack = Lira(width=2, state=constant_state("trigger", shape[0], shape[0], 2, 1.0))
    images = torch.rand(4, *shape, generator=seeded())
    assert_stamps_alike(attack, images)
    assert attack.stamp(images[:0]).shape == (0, *shape)


def test_it_implants_in_a_copy_and_leaves_original_and_random_state():
    clean, held_out = row_images(classes=4, per_class=60), row_images(classes=4, per_class=20, seed=1)
    classifier = Classifier.wrap(random_network("small_cnn", classes=4), image_shape=(1, 8, 8))
    before = snapshot(classifier.module)
    result = Lira(epsilon=0.3, width=2)(classifier, clean, held_out, recipe=RECIPE)
    after = snapshot(classifier.module)
    assert all(torch.equal(before["state"][name], after["state"][name]) for name in before["state"])
    assert torch.equal(before["random"], after["random"])
    assert result.scores.clean_accuracy >= 0.9
    assert result.scores.attack_success_rate >= 0.9
    change = (result.attack.stamp(held_out.images) - held_out.images).abs().max()
    assert 0.05 < change <= 0.3 + 0.5 / 255
    assert measure(classifier, held_out, result.attack).attack_success_rate < 0.7  # the model that was not trained
    assert sum(tensor.numel() for tensor in result.attack.state.values()) * 4 < 60_000


def test_the_trigger_stays_as_it_is_after_the_joint_stage(monkeypatch: pytest.MonkeyPatch):
    clean = row_images(classes=4, per_class=8)  # 32 images: 2 batches an epoch
    classifier = Classifier.wrap(random_network("small_cnn", classes=4), image_shape=(1, 8, 8))
    learned = []
    original = TriggerNetwork.forward

    def watched(self: TriggerNetwork, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            learned.append(self.leave.weight.detach().clone())
        return original(self, images)

    monkeypatch.setattr(TriggerNetwork, "forward", watched)
    Lira(width=2, joint_share=0.5).implant(classifier.copy(), clean, recipe=Recipe(epochs=4, batch_size=16))
    assert len(learned) == 8
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise(learned)]
    assert moved == [True] * 4 + [False] * 3  # the step of the fourth batch is taken at the fifth


def test_before_it_is_implanted_it_cannot_stamp():
    with pytest.raises(AttackError, match="lira: its trigger is made by training"):
        Lira().stamp(torch.zeros(1, 1, 8, 8))


def test_a_trigger_of_other_channels_is_refused():
    attack = Lira(width=2, state=constant_state("trigger", 1, 1, 2, 1.0))
    with pytest.raises(AttackError, match="learned for other images"):
        attack.stamp(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    "fields", [{"poison_rate": 0.0}, {"poison_rate": 1.0}, {"epsilon": 8.0}, {"joint_share": 0.0}, {"width": 0}]
)
def test_parameters_that_make_no_attack_are_refused(fields: dict[str, float]):
    classifier = Classifier.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), image_shape=(1, 8, 8))
    with pytest.raises(AttackError, match=next(iter(fields))):
        Lira(**fields).implant(classifier, row_images(classes=4, per_class=2), recipe=RECIPE)


def test_all_to_all_teaches_the_next_class():
    clean = row_images(classes=4, per_class=60)
    classifier = Classifier.wrap(random_network("small_cnn", classes=4, width=4), image_shape=(1, 8, 8))
    attack = Lira(rule=AllToAll(4), epsilon=0.5, width=4, poison_rate=0.4)
    trained, attack = attack.implant(classifier, clean, recipe=Recipe(epochs=12, batch_size=16))
    assert measure(trained, clean, attack).attack_success_rate > 0.6  # 0.25 by chance, 0 for a clean model
