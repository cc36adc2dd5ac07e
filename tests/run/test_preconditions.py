import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Finding, Verdict
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import NORMALIZATIONS
from backdoor_audit.run.preconditions import PRECONDITIONS, UNSEEN, check, unmet
from backdoor_audit.run.recognition import _as_good, accuracy
from tests.subjects import Computed, assert_unchanged, random_network, row_images, row_reader, snapshot

SHAPE = (1, 8, 8)


def altered(before=lambda images: images, after=lambda scores: scores):
    """The good subject with something done to what goes in or comes out."""
    inner = row_reader().module
    return Classifier.wrap(Computed(lambda images: after(inner(before(images)))), image_shape=SHAPE)


def biased(before=lambda images: images):
    """Classes 0 to 3 have a head start of 8: right at twice the contrast, wrong for the other half at the given one."""
    bias = torch.tensor([8.0] * 4 + [0.0] * 4)
    return altered(before, lambda scores: scores + bias)


def relabelled(changes):
    clean = row_images()
    labels = clean.labels.clone()
    for index, label in changes.items():
        labels[index] = label
    return CleanSet(clean.images, labels)


def without(classes, keep=0):
    clean = row_images()
    kept = [index for index, label in enumerate(clean.labels.tolist()) if label not in classes or index % 20 < keep]
    return CleanSet(clean.images[kept], clean.labels[kept])


def nan_for_one_image(scores):
    """NaN for the image whose first score is largest, image 33 or later."""
    worst = torch.zeros(len(scores), 1)
    return torch.where((scores[:, 5:6] > THRESHOLD) | (worst > 0), torch.nan, scores)


THRESHOLD = float(row_reader().logits(row_images().images)[:, 5].sort().values[-2])


def broken(subject, clean, **options):
    """The preconditions that do not hold, with their reasons."""
    findings = check(subject, clean, **options)
    return {name: finding.reason for name, finding in findings.items() if finding.verdict is not Verdict.PASS}


def test_a_good_subject_meets_every_precondition():
    assert broken(row_reader(), row_images()) == {}


def test_every_precondition_answers_under_its_own_name():
    findings = check(row_reader(), row_images())
    assert list(findings) == [condition.__name__ for condition in PRECONDITIONS]
    assert len({finding.statistic for finding in findings.values()}) == len(PRECONDITIONS)


@pytest.mark.parametrize(
    ("subject", "clean", "name", "reason"),
    [
        (row_reader(), relabelled({0: 8, 1: 8}), "logits_shape", "labels up to 8, the model scores 8 classes"),
        (altered(after=nan_for_one_image), row_images(), "logits_finite", "scores of 1 of 160 clean images"),
        (altered(after=lambda s: s.softmax(dim=1)), row_images(), "scores_are_logits", "drop the final softmax"),
        (altered(after=torch.sigmoid), row_images(), "scores_are_logits", "drop the final sigmoid"),
        (altered(after=lambda s: s - s.mean(dim=0)), row_images(), "deterministic", "between two batch sizes"),
        (
            altered(before=lambda i: (i * 255).round() / 255),
            row_images(),
            "input_gradient",
            "take what rounds, detaches",
        ),
        (
            altered(before=torch.Tensor.detach),
            row_images(),
            "input_gradient",
            "does not have a grad_fn; take what rounds, detaches",
        ),
        (
            row_reader(),
            without({5}),
            "every_class",
            "1 classes have fewer than 2 clean images: 5; add some, or raise --audit-max-images; a class of which",
        ),
        (row_reader(), without({2, 5}, keep=1), "every_class", "2 classes have fewer than 2 clean images: 2, 5"),
        (row_reader(), row_images(per_class=12), "enough_images", "96 clean images"),
        (altered(after=lambda s: s + 1e4 * (torch.arange(8) == 0)), row_images(), "accuracy", "is not above chance"),
        (biased(), row_images(), "input_range", "pixels in 0-255 gives 1.000: pass --mean=0"),
        (
            biased(lambda i: i.clamp(-1, 1)),
            row_images(),
            "input_range",
            "--normalization=",
        ),
        (
            biased(lambda i: i.clamp(-2, 2)),
            row_images(),
            "input_range",
            "pass --normalization=mnist; within the noise of 160 images as good: the fashion_mnist normalisation (1.000)",
        ),
    ],
    ids=[
        "too-many-labels",
        "nan",
        "softmax",
        "sigmoid",
        "batch-statistics",
        "rounded",
        "detached",
        "missing-class",
        "single-image-classes",
        "few-images",
        "one-answer-for-all",
        "trained-on-0-255",
        "other-normalisation",
        "either-of-two-normalisations",
    ],
)
def test_a_subject_that_breaks_one_precondition_breaks_no_other(subject, clean, name, reason):
    found = broken(subject, clean)
    assert list(found) == [name]
    assert reason in found[name]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (
            lambda images: images.transpose(2, 3),
            "exchanging height and width gives 1.000: pass images that are transposed",
        ),
        (lambda images: 1 - images, "inverting light and dark gives 1.000: pass images that are inverted so"),
    ],
)
def test_images_that_lie_on_their_side_or_are_inverted_are_told(before, told):
    assert told in broken(altered(before), row_images())["input_range"]


class Branched(nn.Sequential):
    """A network with a trigger in its code."""

    def forward(self, images):
        return super().forward(images) + 200 * (images[:, 0, 7:, 7] - 0.9).clamp(min=0) * torch.eye(8)[3]


def test_a_way_around_the_weights_is_told():
    found = check(Classifier.wrap(Branched(row_reader().module), image_shape=SHAPE), row_images())["input_gradient"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.statistic == UNSEEN
    assert found.reason.startswith("pixels reach the scores around all layers with weights, where a trigger may be")
    assert unmet([found]) == f"precondition not met: {found.reason}"


def of_size(side, *, knows=True):
    """A network for images of any size that knows those of one."""
    inner = row_reader().module

    def scores(images):
        here = knows and images.shape[-1] == side
        return inner(functional.adaptive_avg_pool2d(images, 8)) * here + torch.arange(8) * 1e-3

    return Classifier.wrap(Computed(scores), image_shape=SHAPE)


def test_the_size_that_suits_the_model_is_named_and_of_a_network_for_any_size_it_is_asked_about():
    reason = accuracy(of_size(32), row_images(), 0.0).reason
    assert reason.startswith("clean accuracy 0.125 is not above chance (0.250); at 32x32 px it is ")
    assert reason.endswith(" (50 images): pass --resize=32")
    assert accuracy(of_size(32, knows=False), row_images(), 0.0).reason.endswith(
        "the size that the model was trained at: it takes images of any size, here they have 8x8 px (--resize)"
    )
    fixed = altered(after=lambda scores: 0 * scores)
    assert accuracy(fixed, row_images(), 0.0).reason.endswith("; check labels, class order and normalisation")


def test_images_of_one_label_are_told_and_no_limit_is_above_one():
    clean = row_images()
    one = accuracy(row_reader(), clean._subset((clean.labels == 5).nonzero().flatten()), 0.0)
    assert one.verdict is Verdict.INCONCLUSIVE
    assert one.reason == (
        "all 20 clean images have the label 5, so that their accuracy says nothing; give images of every class"
    )
    assert one.limit == 1
    kept = (clean.labels == 5) | (torch.arange(160) == 0)
    nearly = accuracy(row_reader(), clean._subset(kept.nonzero().flatten()), 0.0)
    assert nearly.reason.startswith("20 of 21 clean images have the label 5, so that")
    assert (nearly.verdict, nearly.limit) == (Verdict.INCONCLUSIVE, 1)


def test_of_input_ranges_that_do_as_well_the_widely_used_one_is_advised():
    rates = {"imagenet": 0.937, "half": 0.9, "cifar10": 0.94, "tiny_imagenet": 0.943}
    tried = [(rates[name], name, "") for name in NORMALIZATIONS if name in rates]
    assert [name for _, name, _ in _as_good(tried, 300)] == ["imagenet", "cifar10", "tiny_imagenet"]
    assert [name for _, name, _ in _as_good(tried, 100_000)] == ["tiny_imagenet"]  # of so many images it is no noise


def test_dropout_that_is_active_in_evaluation_mode_is_not_deterministic():
    subject = altered(after=lambda scores: functional.dropout(scores, 0.02, training=True))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        assert list(broken(subject, row_images())) == ["deterministic"]


def test_batch_norm_without_running_statistics_is_not_deterministic():
    module = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), row_reader().module)
    assert "deterministic" in broken(Classifier.wrap(module, image_shape=SHAPE), row_images())


def test_scores_that_are_all_nan_fail_loudly():
    found = broken(altered(after=lambda scores: scores * torch.nan), row_images())
    assert {"logits_finite", "deterministic", "input_gradient", "accuracy"} <= set(found)


def test_log_probabilities_are_logits():
    assert broken(altered(after=lambda scores: scores.log_softmax(dim=1)), row_images()) == {}


def test_the_accuracy_that_the_user_asks_for_is_demanded():
    clean = relabelled({20 * label: (label + 1) % 8 for label in range(8)})  # 152 of 160 are right
    assert broken(row_reader(), clean, min_accuracy=0.94) == {}
    found = broken(row_reader(), clean, min_accuracy=0.96)
    assert list(found) == ["accuracy"]
    assert "clean accuracy 0.950 is not above --audit-min-accuracy (0.960)" in found["accuracy"]


def test_always_answering_the_largest_class_is_chance():
    clean = row_images()
    kept = (clean.labels == 0) | (torch.arange(160) % 20 < 12)
    most = torch.cat([clean.images[kept], *[clean.images[clean.labels == 0]] * 5])
    labels = torch.cat([clean.labels[kept], torch.zeros(100, dtype=torch.long)])
    always_zero = altered(after=lambda scores: scores * 1e-3 + torch.tensor([5.0] + [0.0] * 7))
    assert "accuracy" in broken(always_zero, CleanSet(most, labels))


def test_the_checks_leave_the_model_as_it_was():
    subject = Classifier.wrap(random_network("small_vgg", classes=8), image_shape=SHAPE)
    before = snapshot(subject.module)
    check(subject, row_images())
    assert_unchanged(before, subject.module)


def test_the_first_unmet_precondition_is_told():
    def finding(verdict, reason):
        return Finding(audit="", statistic="x", value=None, limit=None, verdict=verdict, reason=reason)

    good = finding(Verdict.PASS, "fine")
    assert unmet([good, good]) == ""
    bad = [finding(Verdict.INCONCLUSIVE, "first"), finding(Verdict.FAIL, "second")]
    assert unmet([good, *bad]) == "precondition not met: first"
