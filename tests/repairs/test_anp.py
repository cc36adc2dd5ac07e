import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import fit
from backdoor_audit.repairs.anp import ANP
from backdoor_audit.repairs.norm_masks import (
    batch_statistics,
    changed_gains,
    fit_masks,
    logits_under,
    norm_layers,
    own_gains,
    prune_by_masks,
    silenced,
)
from backdoor_audit.repairs.outcome import score
from tests.subjects import assert_unchanged, random_network, row_images, row_reader, seeded, snapshot, square_trigger
from tests.subjects.cornered import OPT, TRIGGER, VAL, corner_reader

NAMES = ["small_cnn", "small_resnet", "small_vgg", "preact_resnet18"]


def wrapped(name):
    return Classifier.wrap(random_network(name), image_shape=(1, 8, 8))


def masks_of(classifier, value=1.0):
    return {name: torch.full((layer.num_features,), value) for name, layer in norm_layers(classifier).items()}


def random_images(number=12):
    return torch.rand(number, 1, 8, 8, generator=seeded(8))


def repair(method=None, subject=None):
    return (method or ANP())(Subject(subject or corner_reader(), OPT, VAL), TRIGGER, generator=seeded(1))


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_1_and_no_change_leave_the_logits_as_they_are(name):
    subject = wrapped(name)
    gains = own_gains(subject)
    none = {layer: (torch.zeros(len(weight)), torch.zeros(len(weight))) for layer, (weight, _) in gains.items()}
    for changes in (None, none):
        moved = changed_gains(gains, masks_of(subject), changes)
        torch.testing.assert_close(
            logits_under(subject, moved, random_images()), subject.logits(random_images()), atol=1e-6, rtol=0
        )


def test_a_change_multiplies_the_weight_beside_the_mask_and_the_bias_beside_1():
    gains = {"norm": (torch.tensor([2.0, -4.0]), torch.tensor([10.0, 1.0]))}
    changes = {"norm": (torch.tensor([0.25, -0.5]), torch.tensor([-0.1, 0.4]))}
    weight, bias = changed_gains(gains, {"norm": torch.tensor([0.5, 1.0])}, changes)["norm"]
    assert weight.tolist() == pytest.approx([2 * 0.75, -4 * 0.5])
    assert bias.tolist() == pytest.approx([9.0, 1.4])


def test_the_worst_change_of_a_one_channel_network_goes_the_way_that_hurts():
    """Score of class 0 is the mean of the map: less weight and less bias are worse: epsilon down from the start, clipped."""
    module = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.append(nn.Linear(1, 2))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[1].bias.fill_(0.5)
        module[4].weight.copy_(torch.tensor([[1.0], [0.0]]))
        module[4].bias.zero_()
    subject = Classifier.wrap(module, image_shape=(1, 4, 4))
    generator = seeded()
    starts = [0.25 * (2 * float(torch.rand(1, generator=generator)) - 1) for _ in range(2)]
    for inner_steps in (1, 2):
        found = ANP(epsilon=0.25, inner_steps=inner_steps)._worst_changes(
            subject,
            own_gains(subject),
            masks_of(subject),
            torch.full((4, 1, 4, 4), 0.8),
            torch.zeros(4, dtype=torch.long),
            seeded(),
        )["1"]
        assert [float(change) for change in found] == pytest.approx([max(start - 0.25, -0.25) for start in starts])


@pytest.mark.parametrize("name", NAMES)
def test_a_silenced_channel_is_exactly_zero_and_stays_so_in_training(name):
    subject, layer = wrapped(name), next(iter(norm_layers(wrapped(name))))
    masks = masks_of(subject)
    masks[layer][0] = 0.2
    repaired, count = silenced(subject, masks, 0.2)
    assert count == 1
    assert (
        float(norm_layers(repaired)[layer].bias[0]) != 0
    )  # the weight and the bias are still there, the output is not
    maps = capture(repaired, layer, random_images())
    assert not bool(maps[:, 0].any())
    assert torch.equal(maps[:, 1:], capture(subject, layer, random_images())[:, 1:])
    clean = row_images(classes=5, per_class=8)
    fit(repaired, clean.images, clean.labels, epochs=1, learning_rate=0.05, generator=seeded(), batch_size=20)
    assert not bool(capture(repaired.copy(), layer, random_images())[:, 0].any())


def test_a_threshold_below_every_mask_prunes_nothing():
    subject = wrapped("small_cnn")
    repaired, count = silenced(subject, masks_of(subject, 0.0), -1.0)
    assert count == 0
    assert torch.equal(repaired.logits(random_images()), subject.logits(random_images()))
    outcome = prune(masks_of(corner_reader()), thresholds=(-1.0, 0.95)).outcome
    assert outcome.after == outcome.before
    assert outcome.note == "none of 104 batch-norm channels silenced: no mask value is low enough; told"
    assert len(outcome.curve) == 1


def prune(masks, val=VAL, most_drop=0.02, **options):
    method, subject = ANP(most_drop=most_drop), Subject(corner_reader(), VAL, val)
    return prune_by_masks(method, subject, masks, TRIGGER, note="told", **options)


def test_the_threshold_is_the_highest_that_held_out_clean_accuracy_allows():
    """Channels go by their masks 0.1, 0.3, 0.6 of the last layer; the scores on val have no say."""
    masks = masks_of(corner_reader())
    last = masks["features.4.1"]
    last[:8], last[8:] = 0.3, 0.6
    masks["features.3.1"][0] = 0.1
    mislabelled = CleanSet(VAL.images, (VAL.labels + 1) % 5)
    outcome = prune(masks, val=mislabelled, thresholds=(0.1, 0.3, 0.6)).outcome
    allowed = [
        threshold
        for threshold in (0.1, 0.3, 0.6)
        if clean_accuracy(silenced(corner_reader(), masks, threshold)[0], VAL.images, VAL.labels)
        >= clean_accuracy(corner_reader(), VAL.images, VAL.labels) - 0.02
    ]
    assert max(allowed) in (0.1, 0.3)  # without its last layer the network is lost
    assert outcome.note.startswith(f"{1 if max(allowed) == 0.1 else 9} of 104 batch-norm channels silenced")
    assert [point.threshold for point in outcome.curve] == [None, 0.1, 0.3, 0.6]
    assert [point.prune_rate for point in outcome.curve] == pytest.approx([0, 1 / 104, 9 / 104, 33 / 104])
    for point in outcome.curve[1:]:
        assert point.scores == score(silenced(corner_reader(), masks, point.threshold)[0], mislabelled, TRIGGER)
    tolerant = prune(masks, thresholds=(0.1, 0.3, 0.6), most_drop=1.0).outcome
    assert tolerant.note.startswith("33 of 104")
    intolerant = prune(masks, thresholds=(0.6,)).outcome
    assert intolerant.note.startswith(
        "none of 104 batch-norm channels silenced: already the first would cost more than 2.0%"
    )
    assert intolerant.after == intolerant.before


def test_masks_go_down_where_the_loss_asks_for_it_and_stay_in_their_range():
    """Slope 1 on the first channel of each layer, -1 on the others: lr 0.25 from 1 with momentum 0.9 gives 0.75, 0.275, 0."""
    subject = wrapped("small_cnn")

    def pull(masks, _images, _labels):
        return sum(mask[0] - mask[1:].sum() for mask in masks.values())

    for steps, expected in ((1, 0.75), (2, 0.275), (3, 0.0)):
        masks = fit_masks(subject.copy(), pull, VAL, steps=steps, learning_rate=0.25, batch_size=8, generator=seeded())
        assert all(float(mask[0]) == pytest.approx(expected) for mask in masks.values())
        assert all(bool((mask[1:] == 1).all()) for mask in masks.values())


def test_batch_statistics_hold_in_the_block_alone_and_switch_no_dropout_on():
    subject = wrapped("small_vgg")
    before = snapshot(subject.module)
    with batch_statistics(subject):
        assert all(layer.training for layer in norm_layers(subject).values())
        assert not subject.module.dropout.training
    assert_unchanged(before, subject.module)


def test_the_backdoor_of_a_trained_network_is_pruned_away():
    outcome = repair().outcome
    assert outcome.before.attack_success_rate >= 0.95
    assert outcome.after.attack_success_rate <= 0.5
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05
    assert (outcome.method, outcome.target_class) == ("anp", 2)
    assert outcome.note.endswith("masks fitted in 100 steps on 105 clean images, threshold from 45 others")


def test_the_repaired_copy_predicts_as_reported_and_the_original_is_untouched():
    before = snapshot(corner_reader().module)
    result = repair(ANP(steps=5))
    assert_unchanged(before, corner_reader().module)
    assert result.outcome.after == score(result.classifier, VAL, TRIGGER)
    assert not any(part.training for part in result.classifier.module.modules())
    assert not any(parameter.requires_grad for parameter in result.classifier.module.parameters())


def test_the_same_seed_gives_the_same_masks_and_the_trigger_chooses_nothing():
    first, second = repair(ANP(steps=5)), repair(ANP(steps=5))
    assert first.outcome == second.outcome
    other = square_trigger((1, 8, 8), target_class=4)
    blind = ANP(steps=5)(Subject(corner_reader(), OPT, VAL), other, generator=seeded(1))
    assert blind.outcome.note == first.outcome.note
    assert torch.equal(blind.classifier.logits(VAL.images), first.classifier.logits(VAL.images))


@pytest.mark.parametrize("subject", [row_reader(), wrapped("small_vit")], ids=["linear", "vit"])
def test_it_does_not_apply_without_batch_norm(subject):
    result = repair(subject=subject)
    assert result.classifier is None
    assert "no batch norm" in result.outcome.not_applicable
    assert result.outcome.before is result.outcome.after is None
