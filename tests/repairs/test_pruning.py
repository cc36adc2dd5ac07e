import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import fit
from backdoor_audit.repairs import LinfPruning
from backdoor_audit.repairs.outcome import score
from backdoor_audit.repairs.pruning import PRUNE_RATES, pruned, sweep
from tests.subjects.colours import COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import seeded
from tests.subjects.networks import random_network
from tests.subjects.rows import row_images
from tests.subjects.unchanged import assert_unchanged, snapshot

LAYERS = [
    ("small_cnn", "features"),
    ("small_resnet", "layer3"),
    ("small_vgg", "features"),
    ("preact_resnet18", "layer4"),
]


def wrapped(name):
    return Classifier.wrap(random_network(name), image_shape=(1, 8, 8))


def random_images(number=12):
    return torch.rand(number, 1, 8, 8, generator=seeded(8))


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_pruned_channels_are_exactly_zero_and_the_others_are_untouched(name, layer):
    subject, channels = wrapped(name), torch.tensor([0, 3])
    before = capture(subject, layer, random_images())
    after = capture(pruned(subject, layer, channels), layer, random_images())
    assert bool(before[:, channels].any())
    assert not bool(after[:, channels].any())
    others = [channel for channel in range(before.shape[1]) if channel not in (0, 3)]
    assert torch.equal(after[:, others], before[:, others])


@pytest.mark.parametrize("name", ["small_cnn", "small_vgg"])
def test_pruned_inputs_of_the_head_are_as_if_its_columns_were_zero(name):
    subject = wrapped(name)
    expected = subject.copy()
    expected.module.linear.weight[:, [1, 4]] = 0
    repaired = pruned(subject, "linear", torch.tensor([1, 4]), inputs=True)
    assert torch.equal(repaired.logits(random_images()), expected.logits(random_images()))


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_fine_tuning_does_not_bring_pruned_channels_back(name, layer):
    repaired, clean = pruned(wrapped(name), layer, torch.tensor([0, 3])), row_images(classes=5, per_class=8)
    weights = repaired.module.linear.weight.clone()
    fit(repaired, clean.images, clean.labels, epochs=2, learning_rate=0.05, batch_size=16, generator=seeded(1))
    assert not torch.equal(repaired.module.linear.weight, weights)
    maps = capture(repaired, layer, random_images())
    assert bool(maps.any())
    assert not bool(maps[:, [0, 3]].any())


def test_pruning_a_pruned_copy_keeps_both_prunings():
    twice = pruned(pruned(wrapped("small_cnn"), "features", torch.tensor([0])), "features", torch.tensor([3]))
    maps = capture(twice.copy(), "features", random_images())
    assert maps.flatten(2).any(dim=2).any(dim=0).tolist()[:4:3] == [False, False]


def test_the_original_is_left_as_it_was():
    subject = wrapped("small_vgg")
    before = snapshot(subject.module)
    repaired = pruned(subject, "features", torch.tensor([0, 3]))
    repaired.predict(random_images())
    assert_unchanged(before, subject.module)


def swept(accept, *, opt=None, val=None, suspicion=None):
    if suspicion is None:
        suspicion = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.5, 0.4, 0.15, 0.05, 0.9])  # the trigger's channel is the last
    subject = Subject(colour_net(), opt or colour_images(), val or colour_images(seed=5))
    return sweep(
        LinfPruning(),
        subject,
        colour_trigger(),
        layer="features",
        inputs=False,
        suspicion=suspicion,
        accept=accept,
    )


def mislabelled():
    clean = colour_images(seed=5)
    return CleanSet(clean.images, (clean.labels + 1) % COLOURS)


def works(_before, after):
    return after.attack_success_rate <= 0.1


def test_the_sweep_stops_at_the_first_copy_that_is_accepted():
    result = swept(works)
    assert result.outcome.note == "1 of 9 channels of layer 'features' pruned"
    assert result.outcome.before.attack_success_rate == 1.0
    assert result.outcome.after.attack_success_rate == 0.0
    assert result.outcome.after.clean_accuracy == 1.0


def test_the_sweep_chooses_on_one_set_and_reports_on_the_other():
    """On the held-out set all labels are wrong: what is chosen must not change, what is reported must."""
    seen, opt, val = [], colour_images(), mislabelled()

    def accept(before, after):
        seen.append((before, after))
        return after.attack_success_rate <= 0.1

    result = swept(accept, opt=opt, val=val)
    subject, trigger = colour_net(), colour_trigger()
    repaired = pruned(subject, "features", torch.tensor([8]))
    assert seen == [
        (score(subject, opt, trigger), score(subject, opt, trigger)),
        (score(subject, opt, trigger), score(repaired, opt, trigger)),
    ]
    assert result.outcome.before == score(subject, val, trigger)
    assert result.outcome.after == score(repaired, val, trigger)
    assert result.outcome.after.clean_accuracy == 0.0
    assert torch.equal(result.classifier.logits(opt.images), repaired.logits(opt.images))


def test_the_curve_prunes_the_most_suspicious_first_and_reports_held_out_scores():
    suspicion = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.5, 0.4, 0.15, 0.05, 0.9])
    val, result = mislabelled(), swept(works, val=mislabelled(), suspicion=suspicion)
    order = [8, 4, 5, 0, 3, 2, 6, 1, 7]
    assert [point.prune_rate for point in result.outcome.curve] == pytest.approx([0, 1 / 9, 2 / 9, 3 / 9, 4 / 9])
    for count, point in enumerate(result.outcome.curve):
        copy = pruned(colour_net(), "features", torch.tensor(order[:count], dtype=torch.long))
        assert point.scores == score(copy, val, colour_trigger())
        assert point.threshold == pytest.approx(float(suspicion[order[count]]))


def test_without_an_accepted_copy_the_best_trade_is_kept_and_the_note_says_so():
    result = swept(lambda *_: False)
    assert result.outcome.note.startswith("1 of 9 channels")
    assert "no pruning up to half of the channels met the method's own stopping rule" in result.outcome.note
    assert result.outcome.after.attack_success_rate == 0.0
    # The trigger's channel comes third: all of the success rate for a quarter of the accuracy is a bad trade.
    costly = swept(lambda *_: False, suspicion=torch.tensor([9.0, 8, 3, 2, 1, 0, 0, 0, 7]))
    assert costly.outcome.note.startswith("0 of 9 channels")
    hopeless = swept(lambda *_: False, suspicion=torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2, 1]))
    assert hopeless.outcome.note.startswith("0 of 9 channels")
    assert hopeless.outcome.after == hopeless.outcome.before


def test_pruning_half_of_the_channels_is_as_far_as_it_goes():
    assert max(PRUNE_RATES) == 0.5
    assert PRUNE_RATES[0] == 0.0
    assert list(PRUNE_RATES) == sorted(set(PRUNE_RATES))
