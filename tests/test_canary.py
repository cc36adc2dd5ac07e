from dataclasses import replace

import pytest
import torch

from backdoor_audit import canary as module
from backdoor_audit.attacks import AttackScores
from backdoor_audit.canary import CANARIES, PatchCanary, Sighting, canary_targets, judge_power
from backdoor_audit.classifier import Classifier
from backdoor_audit.detectors import ClassScore, Detection
from backdoor_audit.errors import AttackError
from backdoor_audit.evidence import POWER, Limits, Verdict
from backdoor_audit.metrics import Rate
from backdoor_audit.training import fit
from tests.subjects import assert_unchanged, random_network, row_images, seeded, snapshot

OPT, VAL = row_images(classes=5, per_class=30), row_images(classes=5, per_class=10, seed=5)


@pytest.fixture(scope="module")
def trained():
    subject = Classifier.wrap(random_network("small_cnn", classes=5, width=4), image_shape=(1, 8, 8))
    fit(subject, OPT.images, OPT.labels, epochs=10, learning_rate=0.05, batch_size=20, generator=seeded(1))
    return subject


class Watching:
    """A stand-in for a detector: answers with these verdicts' worth of scores, and keeps what it was shown."""

    name = "watching"

    def __init__(self, ratios, index=3.0):
        self.ratios, self.index, self.shown, self.purposes = ratios, index, [], []

    def search(self, detector, classifier, purpose, found):
        assert detector is self
        self.shown.append(classifier)
        self.purposes.append(purpose)
        scores = [
            ClassScore(
                target_class=target,
                size=10 * ratio,
                size_ratio=ratio,
                reached=True,
                success_opt=1.0,
                success_val=1.0,
                index=self.index,
                paper_index=self.index,
                log_index=self.index,
                p_value=0.01,
                steps=1,
                image_passes=1,
            )
            for target, ratio in enumerate(self.ratios)
        ]
        return Detection(detector=self.name, settings="", scores=scores, triggers=(), median_size=10.0)


def sight(classifier, detector, target=2, canary=None):
    canary = canary or PatchCanary(size=3, epochs=12, learning_rates=(0.05,))
    options = {"limits": Limits(), "index": "calibrated", "seed": 0}
    return canary(classifier, OPT, VAL, target, detectors=[detector], search=detector.search, **options)


def test_the_detectors_are_shown_a_copy_that_really_obeys_the_trigger(trained):
    before = snapshot(trained.module)
    detector = Watching([1, 1, 0.1, 1, 1])
    sighting = sight(trained, detector)
    assert_unchanged(before, trained.module)
    assert sighting.planted_by == "badnets"
    assert sighting.attack_success_rate >= 0.9
    assert sighting.clean_accuracy >= sighting.accuracy_before - 0.05
    assert detector.purposes == ["canary:badnets:2:watching"]  # each search has random numbers of its own
    shown = detector.shown[0]
    assert any(
        not torch.equal(old, new)
        for old, new in zip(trained.module.state_dict().values(), shown.module.state_dict().values(), strict=True)
    )


def test_the_same_seed_plants_the_same_canary(trained):
    first, second = Watching([1] * 5), Watching([1] * 5)
    sight(trained, first)
    torch.manual_seed(9)
    sight(trained, second)
    states = [watching.shown[0].module.state_dict() for watching in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("ratios", "index", "found", "suspected", "others"),
    [
        ([1, 1, 0.1, 1, 1], 3.0, ["watching"], [], []),
        ([1, 1, 0.1, 1, 1], 1.0, [], ["watching"], []),  # small, but no outlier
        ([1, 1, 0.9, 1, 1], 3.0, [], [], []),
        ([0.1, 1, 0.9, 1, 1], 3.0, [], [], [0]),  # another class is not the canary
        ([0.1, 1, 0.1, 1, 1], 3.0, ["watching"], [], [0]),
    ],
)
def test_what_counts_as_seen_is_the_right_class(trained, ratios, index, found, suspected, others):
    sighting = sight(trained, Watching(ratios, index))
    assert (list(sighting.found_by), list(sighting.suspected_by), list(sighting.others)) == (found, suspected, others)


def by_margin(target, index, landing=None):
    return ClassScore(
        target_class=target,
        success_val=0.9,
        index=index,
        p_value=0.01,
        image_passes=1,
        margin=1.0,
        natural_success=0.1,
        landing=landing,
    )


@pytest.mark.parametrize(
    ("rows", "scores", "found", "others"),
    [
        ("target", [by_margin(2, 3.0), by_margin(3, 3.0), by_margin(None, 3.0)], ["watching"], [3]),
        ("target", [by_margin(2, 1.0), by_margin(None, 3.0)], [], []),  # all-to-all is not the canary's class
        ("source", [by_margin(0, 3.0, landing=2), by_margin(1, 3.0, landing=2)], ["watching"], []),
        ("source", [by_margin(2, 3.0, landing=4), by_margin(0, 1.0, landing=2)], [], [4]),
    ],
)
def test_rows_by_margin_and_by_source_count_for_the_class_that_they_name(rows, scores, found, others):
    planted = Sighting(canary="badnets", settings="", target_class=2, planted_by="badnets")
    detection = Detection(detector="watching", settings="", scores=scores, triggers=(), rows=rows)
    sighting = module._seen(planted, detection, Limits(), "calibrated")
    assert (list(sighting.found_by), list(sighting.others)) == (found, others)
    assert sighting.suspected_by == ()


def test_where_a_fine_tune_fails_a_channel_is_planted(trained):
    """A learning rate of almost 0 teaches nothing; the planted channel needs no training."""
    sighting = sight(trained, Watching([1, 1, 0.1, 1, 1]), canary=PatchCanary(size=3, epochs=1, learning_rates=(1e-9,)))
    assert sighting.planted_by == "planted_channel"
    assert sighting.attack_success_rate >= 0.9


def test_a_canary_that_cannot_be_implanted_is_inconclusive_and_says_both_reasons(trained, monkeypatch):
    def fails(*_arguments, **_options):
        raise AttackError("planted_channel: no such chain")

    monkeypatch.setattr(module, "PlantedChannel", lambda **_options: fails)
    detector = Watching([1, 1, 0.1, 1, 1])
    sighting = sight(trained, detector, canary=PatchCanary(size=3, epochs=1, learning_rates=(1e-9,)))
    assert not detector.shown
    finding = judge_power([sighting], allow_suspected=True)
    assert (finding.statistic, finding.verdict, finding.value) == (POWER, Verdict.INCONCLUSIVE, None)
    assert "no badnets canary for class 2 could be implanted: badnets did not implant" in finding.reason
    assert "planted_channel: no such chain" in finding.reason


SEEN = Sighting(
    canary="badnets",
    settings="PatchCanary()",
    target_class=4,
    planted_by="badnets",
    accuracy_before=0.9,
    clean_accuracy=0.9,
    attack_success_rate=0.99,
    found_by=("neural_cleanse",),
    details=("neural_cleanse: index 4.00, 0.10 of the median",),
)
SUSPECTED = replace(SEEN, target_class=5, found_by=(), suspected_by=("neural_cleanse",))
MISSED = replace(SEEN, target_class=6, found_by=())


@pytest.mark.parametrize(
    ("sightings", "allow_suspected", "verdict", "value"),
    [
        ([SEEN], True, Verdict.PASS, 1.0),
        ([SEEN, SEEN], False, Verdict.PASS, 1.0),
        ([SUSPECTED], True, Verdict.PASS, 1.0),
        ([SUSPECTED], False, Verdict.FAIL, 0.0),
        ([SEEN, MISSED], True, Verdict.FAIL, 0.5),
    ],
)
def test_power_is_the_share_of_canaries_that_would_have_stopped_the_run(sightings, allow_suspected, verdict, value):
    finding = judge_power(sightings, allow_suspected=allow_suspected)
    assert (finding.verdict, finding.value, finding.limit) == (verdict, value, 1.0)


def test_a_miss_says_what_could_not_have_been_seen():
    reason = judge_power([SEEN, MISSED], allow_suspected=True).reason
    assert reason.startswith(
        "this audit could not have seen a badnets trigger on this model: a badnets canary for class 6"
    )
    assert "index 4.00, 0.10 of the median" in reason
    assert "class 4" not in reason


def test_a_sighting_comes_back_from_the_store():
    again = Sighting.unpack(SEEN.pack())
    assert again.summary() == SEEN.summary()
    assert judge_power([again], allow_suspected=False).verdict is Verdict.PASS


def test_targets_are_drawn_from_the_seed_each_class_once():
    assert sorted(canary_targets(10, 10, seed=3)) == list(range(10))
    assert canary_targets(10, 2, seed=3) == canary_targets(10, 5, seed=3)[:2]
    assert len({canary_targets(10, 1, seed=seed) for seed in range(20)}) > 3
    assert len(canary_targets(3, 5, seed=0)) == 3


def test_the_settings_line_makes_the_same_canary_again():
    assert eval(repr(CANARIES[0]), {"PatchCanary": PatchCanary}) == CANARIES[0]  # noqa: S307 - our own repr


def test_scores_are_the_ones_measured_on_held_out_images(trained):
    """50 held-out images, 40 of them of other classes."""
    _, _, scores = PatchCanary(size=3, epochs=12, learning_rates=(0.05,)).plant(
        trained, OPT, VAL, 2, before=Rate(1, 1), seed=0
    )
    assert isinstance(scores, AttackScores)
    assert (scores.clean_accuracy.n, scores.attack_success_rate.n) == (50, 40)


def test_the_gentlest_learning_rate_that_implants_is_taken(trained):
    gentle, strong = (
        PatchCanary(size=3, epochs=12, learning_rates=(0.05,)),
        PatchCanary(size=3, epochs=12, learning_rates=(0.1,)),
    )
    both = replace(gentle, learning_rates=(1e-9, 0.05, 0.1))
    states = [
        canary.plant(trained, OPT, VAL, 2, before=1.0, seed=0)[0].module.state_dict()
        for canary in (both, gentle, strong)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
