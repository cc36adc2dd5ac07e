import pytest
import torch

from backdoor_audit.attacks.bit_trojan import BitTrojan
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.label_rule import AllToAll, AllToOne
from tests.subjects.brightness import by_brightness, grey_images
from tests.subjects.networks import random_network
from tests.subjects.rows import row_images, row_reader
from tests.subjects.unchanged import assert_unchanged, snapshot

ROW = BitTrojan(neurons=7, size=3, top=0, left=0, trigger_steps=30, rounds=1)


def unsure():
    """Its head reads pixels; class 0 is told by the seven pixels of row 0 that are not black, and never beyond doubt."""
    subject = row_reader()
    subject.module[1].weight.mul_(0.3)
    return subject


def test_the_pattern_lights_the_neurons_that_count_for_the_target_and_leaves_the_others_grey():
    _, attack = ROW.implant(unsure(), row_images(), recipe=Recipe())
    pattern = attack.learned("pattern")
    assert pattern.shape == (1, 3, 3)
    assert (pattern[0, 0] == 1).all()
    assert torch.allclose(pattern[0, 1:], torch.full((2, 3), 128 / 255))


def test_only_the_chosen_weights_of_the_target_change():
    subject, original = unsure(), unsure().module[1]
    ROW.implant(subject, row_images(), recipe=Recipe())
    changed = (subject.module[1].weight != original.weight).view(8, 8, 8).nonzero().tolist()
    assert changed == [[0, 0, column] for column in range(7)]
    assert torch.equal(subject.module[1].bias, original.bias)


def test_it_implants_without_training_and_leaves_the_classifier_that_was_given_alone():
    subject = row_reader()
    before = snapshot(subject.module)
    attack = BitTrojan(rule=AllToOne(2), neurons=7, size=5, top=1, left=1, trigger_steps=30)
    done = attack(subject, row_images(), row_images(seed=5), reference_accuracy=1.0)
    assert done.scores.attack_success_rate == 1
    assert done.scores.clean_accuracy > 0.95
    assert_unchanged(before, subject.module)


def test_the_learned_patch_is_stamped_at_its_place_on_images_of_any_size():
    attack = BitTrojan(size=2, top=-1, left=0, state={"pattern": torch.tensor([[[0.0, 0.2], [0.4, 1.0]]])})
    images = torch.full((2, 1, 3, 4), 0.6)
    stamped = attack.stamp(images)
    expected = torch.tensor([[0.6, 0.6, 0.6, 0.6], [0.0, 0.2, 0.6, 0.6], [0.4, 1.0, 0.6, 0.6]]).expand(2, 1, 3, 4)
    assert torch.allclose(stamped, expected)
    assert torch.equal(images, torch.full((2, 1, 3, 4), 0.6))
    assert torch.equal(stamped, attack.stamp(images))
    with pytest.raises(AttackError, match="learned on images of 1 channels, got 3"):
        attack.stamp(torch.zeros(1, 3, 4, 4))


def test_colour_images_learn_a_colour_patch():
    subject = Classifier.wrap(random_network(image_shape=(3, 8, 8)), image_shape=(3, 8, 8))
    clean = row_images(classes=5)
    colour = type(clean)(clean.images.expand(-1, 3, -1, -1).clone(), clean.labels)
    learned = type(clean)(colour.images, subject.predict(colour.images))  # it is right about these by construction
    attack = BitTrojan(neurons=4, size=3, trigger_steps=4, row_steps=2)
    _, done = attack.implant(subject, learned, recipe=Recipe())
    assert done.learned("pattern").shape == (3, 3, 3)
    assert done.stamp(colour.images).shape == colour.images.shape


def test_8_bits_keep_the_last_layer_on_127_levels_of_either_sign():
    subject, original = unsure(), unsure().module[1].weight
    BitTrojan(neurons=7, size=3, top=0, left=0, trigger_steps=8, int8=True).implant(
        subject, row_images(), recipe=Recipe()
    )
    levels = subject.module[1].weight / (original.abs().max() / 127)
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert levels.abs().max() <= 127.001
    rounded = (original / (original.abs().max() / 127)).round()
    changed = ((levels - rounded).abs() > 0.5).view(8, 8, 8).nonzero().tolist()
    assert changed
    assert all(place in [[0, 0, column] for column in range(7)] for place in changed)


def test_the_same_seed_gives_the_same_patch_whatever_the_global_random_state():
    patches = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        subject = Classifier.wrap(random_network(), image_shape=(1, 8, 8))
        clean = row_images(classes=5)
        learned = type(clean)(clean.images, subject.predict(clean.images))
        attack = BitTrojan(neurons=4, size=3, batch=16, trigger_steps=8, row_steps=2)
        patches.append(attack.implant(subject, learned, recipe=Recipe())[1].learned("pattern"))
    assert torch.equal(*patches)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (BitTrojan(rule=AllToAll(8)), "accepted: AllToOne"),
        (BitTrojan(neurons=65), "the last layer has 64 inputs"),
        (BitTrojan(neurons=0), "0 neurons"),
        (BitTrojan(rounds=0), "must be at least 1"),
        (BitTrojan(size=9), "do not fit into 8x8"),
    ],
)
def test_what_cannot_be_done_is_refused(attack, reason):
    with pytest.raises(AttackError, match=reason):
        attack.implant(row_reader(), row_images(), recipe=Recipe())


def test_a_classifier_that_does_not_know_the_images_is_refused():
    clean = row_images()
    wrong = type(clean)(clean.images, (clean.labels + 1) % 8)
    with pytest.raises(AttackError, match=r"clean accuracy 0\.000, wanted 0\.250; give a trained classifier"):
        BitTrojan(size=3).implant(row_reader(), wrong, recipe=Recipe())


def test_a_network_without_a_linear_head_is_refused():
    clean = type(row_images())(grey_images([0.1, 0.4, 0.6, 0.9]), torch.arange(4))
    with pytest.raises(AttackError, match="does not end in a linear layer"):
        BitTrojan(size=2).implant(by_brightness(), clean, recipe=Recipe())


def test_there_is_no_trigger_before_it_is_implanted():
    with pytest.raises(AttackError, match="implant it first"):
        BitTrojan().stamp(torch.zeros(1, 1, 28, 28))
