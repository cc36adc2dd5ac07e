import math

import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.bnp import BatchNormPruning, divergence, norm_divergences
from backdoor_audit.repairs.clp import prune_outliers
from backdoor_audit.repairs.outcome import score
from tests.subjects import random_network, row_reader, seeded, square_trigger
from tests.subjects.planted import OPT, TRIGGER, VAL, planted, repeated


def repair(method=None, subject=None, opt=OPT, val=VAL, seed=1):
    return (method or BatchNormPruning())(Subject(subject or planted(), opt, val), TRIGGER, generator=seeded(seed))


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_equal_statistics_diverge_by_nothing():
    means, variances = values(0.3, -2.0), values(0.5, 7.0)
    assert divergence(means, variances, means, variances).tolist() == [0.0, 0.0]


def test_the_divergence_worked_out_by_hand():
    """Twice the deviation: ln(1 / 2) + 4 / 2 - 1 / 2. Shifted by 3 deviations: 9 / 2. Running deviation 2: the other way."""
    measured = divergence(values(0, 1, 0), values(1, 1, 4), values(0, 4, 0), values(4, 1, 1))
    assert measured.tolist() == pytest.approx([0.8069, 4.5, math.log(2) + 1 / 8 - 1 / 2], abs=1e-4)


def test_the_divergence_is_that_of_torch_distributions():
    generator = seeded(3)
    mean, clean_mean = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    variance, clean_variance = 0.1 + torch.rand(2, 50, generator=generator, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(clean_mean, clean_variance.sqrt()),
        torch.distributions.Normal(mean, variance.sqrt()),
    )
    torch.testing.assert_close(divergence(mean, variance, clean_mean, clean_variance), expected)


def normed(channels=12):
    """A batch norm right on the pixels, of images with that many channels."""
    module = nn.Sequential(nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))
    with torch.no_grad():
        module[3].weight.copy_(torch.randn(4, channels, generator=seeded(2)))
        module[3].bias.zero_()
    return Classifier.wrap(module, image_shape=(channels, 5, 5))


def pixels(channels=12, number=300):
    return torch.rand(number, channels, 5, 5, generator=seeded(6))


def test_statistics_are_taken_from_all_images_whatever_the_batches():
    subject, images = normed(), pixels()
    norm = subject.module[0]
    norm.running_mean.copy_(images.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(images.transpose(0, 1).flatten(1).var(dim=1))
    assert norm_divergences(subject, images)["0"].tolist() == pytest.approx([0.0] * 12, abs=1e-9)
    norm.running_mean[4] += 2 * norm.running_var[4].sqrt()
    expected = 2 / (1 + norm.eps / float(norm.running_var[4]))  # (2 s)^2 / (2 s^2), epsilon in the variance
    assert float(norm_divergences(subject, images)["0"][4]) == pytest.approx(expected, rel=1e-5)


def test_a_channel_that_clean_images_leave_silent_stands_out_and_becomes_zero():
    subject, images = normed(), pixels()
    norm = subject.module[0]
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(1 / 12)
    norm.bias.fill_(0.7)
    images[:, 9] = 0.5
    found = norm_divergences(subject, images)["0"]
    assert bool(torch.isfinite(found).all())
    assert int(found.argmax()) == 9
    clean = CleanSet(images, torch.arange(len(images)) % 4)
    trigger = square_trigger((12, 5, 5), target_class=1)
    result = BatchNormPruning()(Subject(subject, clean, clean), trigger, generator=seeded())
    assert result.outcome.note == "1 of 12 channels in 1 layers pruned at u = 3"
    maps = capture(result.classifier, "0", images)
    assert not bool(maps[:, 9].any()), "not the constant of the bias either"
    assert bool(maps[:, :9].any())


def test_a_planted_trigger_is_gone_when_u_is_chosen_by_clean_accuracy():
    result = repair(BatchNormPruning(u=None))
    outcome = result.outcome
    assert outcome.before.attack_success_rate >= 0.95
    assert outcome.after.attack_success_rate <= 0.2
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05
    assert outcome.after.robust_accuracy >= 0.7
    assert outcome.after == score(result.classifier, VAL, TRIGGER)
    assert (outcome.method, outcome.settings, outcome.target_class) == ("bnp", repr(BatchNormPruning(u=None)), 3)


def test_u_is_chosen_on_images_that_gave_no_statistics(monkeypatch):
    fitted, tuned = [], []

    def measured(classifier, images):
        fitted.append(images)
        return norm_divergences(classifier, images)

    def swept(method, subject, trigger, **options):
        tuned.append(subject.search_set.images)
        return prune_outliers(method, subject, trigger, **options)

    monkeypatch.setattr("backdoor_audit.repairs.bnp.norm_divergences", measured)
    monkeypatch.setattr("backdoor_audit.repairs.bnp.prune_outliers", swept)
    repair(BatchNormPruning(u=None, held_share=0.4))
    repair(BatchNormPruning(u=2.0))
    assert [len(images) for images in fitted] == [90, 150]
    together = torch.cat([fitted[0], tuned[0]]).flatten(1)
    assert len(together) == len(together.unique(dim=0)) == len(OPT)
    assert bool((together.sort(dim=0).values == OPT.images.flatten(1).sort(dim=0).values).all()), "all of them from opt"


def test_the_audited_model_is_left_as_it_was_and_the_same_seed_gives_the_same_copy():
    first = repeated(lambda: repair(BatchNormPruning(u=None)))
    for norm in (part for part in first.classifier.module.modules() if isinstance(part, nn.BatchNorm2d)):
        assert not norm.training


@pytest.mark.parametrize("subject", [row_reader(), Classifier.wrap(random_network("small_vit"), image_shape=(1, 8, 8))])
@pytest.mark.parametrize("u", [3.0, None])
def test_it_does_not_apply_without_batch_norm(subject, u):
    result = repair(BatchNormPruning(u=u), subject)
    assert result.classifier is None
    assert result.outcome.not_applicable == "this network has no batch norm with running statistics"


def test_trigger_and_held_out_images_choose_nothing():
    method, other = BatchNormPruning(u=None), square_trigger((1, 8, 8), target_class=0)
    first = method(Subject(planted(), OPT, VAL), TRIGGER, generator=seeded(1))
    second = method(Subject(planted(), OPT, VAL.without_class(1)), other, generator=seeded(1))
    assert first.outcome.note == second.outcome.note
    assert first.outcome.after != second.outcome.after
    assert torch.equal(first.classifier.logits(OPT.images), second.classifier.logits(OPT.images))
