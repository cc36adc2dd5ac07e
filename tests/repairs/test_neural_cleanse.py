import pytest
import torch
from torch import nn

from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier, save_classifier
from backdoor_audit.model.metrics import attack_success_rate, clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs import NeuronPruning, Unlearning
from backdoor_audit.repairs.outcome import score
from tests.subjects.colours import COLOUR_SHAPE, COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import seeded, square_trigger
from tests.subjects.networks import random_network
from tests.subjects.rows import row_images, row_reader
from tests.subjects.unchanged import assert_unchanged, snapshot


def repair(method, subject=None):
    images = Subject(subject or colour_net(), colour_images(), colour_images(seed=5))
    return method(images, colour_trigger(), generator=seeded(1))


def test_the_neuron_of_the_trigger_is_pruned_and_the_repair_costs_nothing():
    result = repair(NeuronPruning())
    outcome = result.outcome
    assert outcome.note == "1 of 9 channels of layer 'linear' pruned"
    assert (outcome.before.attack_success_rate, outcome.after.attack_success_rate) == (1.0, 0.0)
    assert outcome.after.clean_accuracy == outcome.before.clean_accuracy == 1.0
    # the only use of that neuron was the trigger: its column in the head is as good as zero
    without = colour_net()
    without.module.linear.weight[:, COLOURS] = 0
    stamped = colour_trigger().stamp(colour_images().images)
    assert torch.equal(result.classifier.logits(stamped), without.logits(stamped))


def test_neurons_are_ranked_by_how_much_the_trigger_raises_them_not_by_their_size():
    """A neuron that is always at 5 is larger than the trigger's, but the stamp does not move it."""
    subject = colour_net()
    subject.module.features[0].bias[4] = 5.0
    subject.module.linear.weight[:, 4] = 0
    outcome = repair(NeuronPruning(), subject).outcome
    assert outcome.note.startswith("1 of 9")
    assert outcome.after.attack_success_rate <= 0.1  # images of class 4 are lost and may go anywhere


def test_pruning_stops_where_it_is_told_to():
    assert repair(NeuronPruning(stop_success=1.0)).outcome.note.startswith("0 of 9")


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(COLOUR_SHAPE[0], COLOURS, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(
            nn.Flatten(), nn.Linear(324, 20), nn.ReLU(), nn.Unflatten(1, (20, 1)), nn.Conv1d(20, 8, 1), nn.Flatten()
        ),
    ],
    ids=["convolution", "convolution-after-linear"],
)
def test_pruning_does_not_apply_without_a_final_linear_layer(module):
    result = repair(NeuronPruning(), Classifier.wrap(module, image_shape=COLOUR_SHAPE))
    assert result.classifier is None
    assert result.outcome.not_applicable == "this network does not end in a linear layer"


def test_pruning_applies_to_a_linear_model_whose_neurons_are_its_pixels():
    trigger = square_trigger((1, 8, 8), target_class=3, top=3, left=7, size=1)
    subject = Subject(row_reader(backdoors=(3,)), row_images(), row_images(seed=5))
    outcome = NeuronPruning()(subject, trigger, generator=seeded()).outcome
    assert outcome.before.attack_success_rate == 1.0
    assert outcome.after.attack_success_rate <= 0.05
    assert outcome.after.clean_accuracy == outcome.before.clean_accuracy
    assert outcome.note == "1 of 64 channels of layer '1' pruned"


def test_unlearning_teaches_the_true_labels_of_stamped_images():
    result = repair(Unlearning(epochs=40, learning_rate=0.05))
    outcome = result.outcome
    assert outcome.before.attack_success_rate == 1.0
    assert outcome.after.attack_success_rate <= 0.05
    assert outcome.after.clean_accuracy >= 0.97
    assert outcome.note == "40 epochs over 80 clean images, 20% of each batch stamped with the trigger"
    assert outcome.after == score(result.classifier, colour_images(seed=5), colour_trigger())


def test_fine_tuning_without_stamped_images_does_not_unlearn():
    """The control: it is the stamped images that do it, not the training."""
    outcome = repair(Unlearning(epochs=40, learning_rate=0.05, stamped_share=0.0)).outcome
    assert outcome.after.attack_success_rate >= 0.9


def test_unlearning_does_not_stamp_the_users_images():
    clean = colour_images()
    before = clean.images.clone()
    Unlearning(epochs=1)(Subject(colour_net(), clean, colour_images(seed=5)), colour_trigger(), generator=seeded())
    assert torch.equal(clean.images, before)


@pytest.mark.parametrize("method", [NeuronPruning(), Unlearning(epochs=1)])
def test_the_audited_model_is_left_as_it_was(method):
    subject, clean = Classifier.wrap(random_network("small_vgg"), image_shape=(1, 8, 8)), row_images(classes=5)
    before = snapshot(subject.module)
    method(Subject(subject, clean, clean), square_trigger((1, 8, 8), target_class=3), generator=seeded())
    assert_unchanged(before, subject.module)


def test_an_unlearned_copy_comes_back_from_disk_with_the_same_scores(tmp_path):
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8), architecture="small_cnn")
    clean, trigger = row_images(classes=5), square_trigger((1, 8, 8), target_class=3)
    repaired = Unlearning(epochs=2)(Subject(subject, clean, clean), trigger, generator=seeded()).classifier
    save_classifier(repaired, tmp_path / "m.safetensors")
    loaded = load_classifier(tmp_path / "m.safetensors")
    for rate, arguments in ((clean_accuracy, ()), (attack_success_rate, (trigger,))):
        expected = rate(repaired, clean.images, clean.labels, *arguments)
        assert rate(loaded, clean.images, clean.labels, *arguments) == pytest.approx(expected, abs=1e-6)


def test_pruned_neurons_stay_silent_in_copies_of_the_copy():
    repaired = repair(NeuronPruning()).classifier.copy()
    stamped = colour_trigger().stamp(colour_images().images)
    assert not bool(capture(repaired, "linear", stamped, inputs=True)[:, COLOURS].any())
