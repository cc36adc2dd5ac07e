from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from backdoor_audit.attacks import AllToOne, AttackScores, BadNets, Blended, Sig, WaNet
from backdoor_audit.canary import CANARIES, Canary, Doses, Sighting, canary_targets, judge_power, kind, ladder, reaches
from backdoor_audit.canary.sighting import in_turn, judged, looked_for
from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import DETECTORS, Consensus, Detection
from backdoor_audit.errors import AttackError, BudgetSpentError
from backdoor_audit.evidence import POWER, Verdict
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate, attack_success_rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import fit
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import shipped, shipped_limits
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.run import Run
from backdoor_audit.store import Store
from tests.subjects import assert_unchanged, random_network, row_images, seeded, snapshot
from tests.subjects.catalogues import choose
from tests.subjects.detections import margin_row, size_row
from tests.subjects.schemas import problems

OPT, VAL = row_images(classes=5, per_class=30), row_images(classes=5, per_class=10, seed=5)
PATCH = Canary(
    attack=BadNets(pattern="noise", poison_rate=0.2),
    dose="size",
    doses=Doses(3, (2,)),
    words="patch of {:g} px",
    first=("watching",),
    channel=True,
    epochs=12,
    learning_rates=(0.05,),
)
TOO_GENTLE = replace(PATCH, epochs=1, learning_rates=(1e-9,))


@pytest.fixture(scope="module")
def trained():
    subject = Classifier.wrap(random_network("small_cnn", classes=5, width=4), image_shape=(1, 8, 8))
    fit(subject, OPT.images, OPT.labels, epochs=10, learning_rate=0.05, batch_size=20, generator=seeded(1))
    return subject


class Watching:
    """A stand-in for a detector: answers with these verdicts' worth of scores, and keeps what it was shown."""

    def __init__(self, ratios, index=3.0, name="watching"):
        self.ratios, self.index, self.name, self.shown, self.purposes = ratios, index, name, [], []
        self.needs_twins, self.builds_on = False, ()

    def search(self, detector, classifier, purpose, found):
        assert detector is self
        self.shown.append(classifier)
        self.purposes.append(purpose)
        scores = [
            size_row(
                target,
                size=10 * ratio,
                size_ratio=ratio,
                success_val=1.0,
                index=self.index,
                paper_index=self.index,
                steps=1,
            )
            for target, ratio in enumerate(self.ratios)
        ]
        return Detection(detector=self.name, settings="", scores=scores, triggers=(), median_size=10.0)


def sight(classifier, *detectors, target=2, canary=PATCH, dose=3):
    def search(detector, *asked):
        return detector.search(detector, *asked)

    options = {"limits": shipped_limits(), "index": "calibrated", "seed": 0}
    return canary(Subject(classifier, OPT, VAL), target, dose, detectors=detectors, search=search, **options)


def test_the_detectors_are_shown_a_copy_that_really_obeys_the_trigger(trained):
    before = snapshot(trained.module)
    detector = Watching([1, 1, 0.1, 1, 1])
    sighting = sight(trained, detector)
    assert_unchanged(before, trained.module)
    assert sighting.planted_by == "badnets"
    assert sighting.attack_success_rate >= 0.9
    assert sighting.clean_accuracy >= sighting.accuracy_before - 0.05
    assert detector.purposes == ["canary:badnets:3:2:watching"]  # each search has random numbers of its own
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


@pytest.mark.parametrize(("index", "suspected"), [(1.0, []), (2.5, ["watching", "steering"])])
def test_a_suspicion_that_detectors_beside_twins_contradict_stops_no_run_and_is_no_sighting(index, suspected):
    watching = Watching([1, 1, 0.1, 1, 1], 1.0)
    steering = SimpleNamespace(name="steering", needs_twins=True, builds_on=())
    weak = replace(by_margin(2, index), success_val=0.1)  # an outlier on too few images: suspected, not found

    def search(detector, classifier, purpose, found):
        if detector is watching:
            return watching.search(detector, classifier, purpose, found)
        return Detection(detector="steering", settings="", scores=[weak], triggers=())

    planted = replace(PATCH.sighting(2, 3), planted_by="badnets")
    known = {"first": (), "search": search, "limits": shipped_limits(), "index": "calibrated"}
    sighting = looked_for(planted, None, detectors=[watching, steering], **known)
    assert (list(sighting.found_by), list(sighting.suspected_by)) == ([], suspected)


def by_margin(target, index, landing=None):
    return margin_row(target, index=index, natural_success=0.1, landing=landing)


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
    planted = replace(PATCH.sighting(2, 3), planted_by="badnets")
    detection = Detection(detector="watching", settings="", scores=scores, triggers=(), rows=rows)
    sighting = judged(planted, detection, shipped_limits(), "calibrated")
    assert (list(sighting.found_by), list(sighting.others)) == (found, others)
    assert sighting.suspected_by == ()


def test_where_a_fine_tune_fails_a_channel_is_planted(trained):
    """A learning rate of almost 0 teaches nothing; the planted channel needs no training."""
    sighting = sight(trained, Watching([1, 1, 0.1, 1, 1]), canary=replace(TOO_GENTLE, doses=Doses(4)), dose=4)
    assert sighting.planted_by == "planted_channel"
    assert (sighting.dose, sighting.called) == (3, "patch of 3 px")  # what was planted, not what was asked for
    assert sighting.attack_success_rate >= 0.9


def test_a_canary_that_cannot_be_implanted_is_inconclusive_and_says_both_reasons(trained, monkeypatch):
    def fails(*_arguments, **_options):
        raise AttackError("planted_channel: no such chain")

    monkeypatch.setattr(kind, "PlantedChannel", lambda **_options: fails)
    detector = Watching([1, 1, 0.1, 1, 1])
    sighting = sight(trained, detector, canary=TOO_GENTLE)
    assert not detector.shown
    finding = judge_power([sighting], allow_suspected=True)
    assert (finding.statistic, finding.verdict, finding.value) == (POWER, Verdict.INCONCLUSIVE, None)
    assert "no badnets canary for class 2 could be implanted: badnets did not implant" in finding.reason
    assert "planted_channel: no such chain" in finding.reason


SEEN = Sighting(
    canary="badnets",
    settings="Canary()",
    target_class=4,
    dose=4,
    called="patch of 4 px",
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
        "this audit could not have seen a badnets trigger on this model: a badnets canary for class 6 (patch of 4 px, "
    )
    assert "index 4.00, 0.10 of the median" in reason
    assert "class 4" not in reason


SMALLER = replace(SEEN, dose=3, called="patch of 3 px", attack_success_rate=0.97, found_by=("patch_scan",))
TOO_SMALL = replace(SMALLER, dose=2, called="patch of 2 px", attack_success_rate=0.93, found_by=())
NOT_PLANTED = replace(TOO_SMALL, planted_by="", attack_success_rate=None, reason="it did not implant; train longer")
NOT_TRIED = replace(NOT_PLANTED, tried=False)
STRONGER = replace(SEEN, dose=8, called="patch of 8 px", attack_success_rate=1.0)
TOO_STRONG = replace(STRONGER, found_by=())
AS_USUAL = "found by neural_cleanse as a patch of 4 px (success rate 99%)"


@pytest.mark.parametrize(
    ("sightings", "told"),
    [
        ([SEEN], AS_USUAL),
        (
            [SEEN, SMALLER, TOO_SMALL],
            f"{AS_USUAL}, and down to a patch of 3 px (found by patch_scan, 97%); "
            "a patch of 2 px (success rate 93%) was not found",
        ),
        ([SEEN, NOT_PLANTED], f"{AS_USUAL}; a patch of 2 px could not be implanted (it did not implant)"),
        ([SEEN, STRONGER], f"{AS_USUAL}, and up to a patch of 8 px (found by neural_cleanse, 100%)"),
        (
            [SEEN, SMALLER, TOO_STRONG],
            f"{AS_USUAL}, and down to a patch of 3 px (found by patch_scan, 97%); "
            "a patch of 8 px (success rate 100%) was not found",
        ),
        (
            [NOT_PLANTED, SEEN],  # a stronger one takes the place of the usual one
            f"{AS_USUAL}; a patch of 2 px could not be implanted (it did not implant)",
        ),
        (
            [replace(SEEN, planted_by="planted_channel")],
            "found by neural_cleanse as a patch of 4 px (planted by planted_channel, success rate 99%)",
        ),
    ],
)
def test_a_pass_says_from_which_dose_to_which_and_what_came_of_the_next(sightings, told):
    finding = judge_power(sightings, allow_suspected=True)
    assert (finding.verdict, finding.value) == (Verdict.PASS, 1.0)
    assert finding.reason == f"a badnets canary for class 4 was {told}"


def test_a_dose_that_is_only_suspected_is_seen_where_suspicion_stops_a_run():
    doses = [SEEN, replace(TOO_SMALL, suspected_by=("neural_cleanse",))]
    strict, lax = (judge_power(doses, allow_suspected=allowed) for allowed in (True, False))
    assert strict.reason.endswith(", and down to a patch of 2 px (suspected by neural_cleanse, 93%)")
    assert lax.reason.endswith("a patch of 2 px (success rate 93%) was not found, only suspected by neural_cleanse")
    assert strict.verdict is lax.verdict is Verdict.PASS


def test_the_finding_holds_the_range_seen_and_what_lies_beside_it_class_by_class():
    other = replace(SEEN, target_class=5)
    finding = judge_power([SEEN, SMALLER, TOO_SMALL, TOO_STRONG, other], allow_suspected=True)
    usual = {"dose": 4, "seen": True, "seen_by": ["neural_cleanse"], "attack_success_rate": 0.99}
    assert finding.details == {
        "class_4": {
            **usual,
            "smallest_seen": 3,
            "strongest_seen": 4,
            "below": {"dose": 2, "outcome": "(success rate 93%) was not found", "attack_success_rate": 0.93},
            "above": {"dose": 8, "outcome": "(success rate 100%) was not found", "attack_success_rate": 1.0},
        },
        "class_5": {**usual, "smallest_seen": 4, "strongest_seen": 4, "below": None, "above": None},
    }
    assert "class 5 was found by neural_cleanse as a patch of 4 px" in finding.reason


def test_the_usual_dose_of_every_class_decides():
    """Class 5 is missed; that class 4 was seen far down does not make up for it."""
    finding = judge_power([SEEN, SMALLER, replace(MISSED, target_class=5)], allow_suspected=True)
    assert (finding.verdict, finding.value) == (Verdict.FAIL, 0.5)
    assert (finding.details["class_5"]["seen"], finding.details["class_5"]["smallest_seen"]) == (False, None)
    assert reaches([MISSED], allow_suspected=True)[6].deciding == MISSED


def climbed(outcomes, doses, *, allow_suspected=True):
    """The doses that were asked for; those without an outcome are seen."""
    asked = []

    def sight_dose(dose):
        asked.append(dose)
        return outcomes.get(dose, replace(SEEN, dose=dose))

    sightings = ladder(doses, sight_dose, allow_suspected=allow_suspected)
    assert len(sightings) == len(asked)
    return asked


@pytest.mark.parametrize(
    ("outcomes", "asked"),
    [
        ({}, [4, 3, 2, 1, 6, 8]),
        ({2: MISSED}, [4, 3, 2, 6, 8]),
        ({2: NOT_PLANTED, 6: MISSED}, [4, 3, 2, 6]),
        ({4: MISSED}, [4]),
        ({4: NOT_PLANTED}, [4, 6, 8]),  # 6 takes its place
        ({4: NOT_PLANTED, 6: replace(MISSED, dose=6)}, [4, 6]),
        ({4: NOT_PLANTED, 6: NOT_PLANTED, 8: NOT_PLANTED}, [4, 6, 8]),
        ({4: NOT_TRIED}, [4]),
        ({3: NOT_TRIED}, [4, 3]),
        ({4: replace(SEEN, dose=3)}, [4, 2, 1]),  # a planted channel, smaller than asked for
    ],
)
def test_doses_go_both_ways_to_the_first_that_is_not_seen(outcomes, asked):
    assert climbed(outcomes, Doses(4, (3, 2, 1), (6, 8))) == asked


def test_a_dose_that_is_only_suspected_goes_on_where_suspicion_stops_a_run():
    suspected = {3: replace(SUSPECTED, dose=3)}
    assert climbed(suspected, Doses(4, (3, 2))) == [4, 3, 2]
    assert climbed(suspected, Doses(4, (3, 2)), allow_suspected=False) == [4, 3]


def test_a_search_ends_with_the_detector_that_finds_the_class(trained):
    blind, sees, late = (
        Watching(ratios, name=name)
        for name, ratios in (("blind", [1] * 5), ("sees", [1, 1, 0.1, 1, 1]), ("late", [1, 1, 0.1, 1, 1]))
    )
    sighting = sight(trained, late, blind, sees, canary=replace(PATCH, first=("blind", "sees")))
    assert (list(sighting.found_by), len(sighting.details)) == (["sees"], 2)
    assert (len(blind.shown), len(sees.shown), len(late.shown)) == (1, 1, 0)


def test_detectors_made_for_a_stand_income_first_and_those_that_need_the_others_last():
    turn = [entry.name for entry in in_turn((Consensus(), *DETECTORS[:-1]), ("warping", "patch_scan"))]
    assert turn[:3] == ["warping", "patch_scan", "neural_cleanse"]
    assert turn[-1] == "consensus"
    assert sorted(turn) == sorted(entry.name for entry in DETECTORS)


def test_there_is_a_canary_of_each_stand_inand_a_detector_made_for_it():
    assert [canary.name for canary in CANARIES] == ["badnets", "blended", "wanet", "sig"]
    names = {entry.name for entry in DETECTORS}
    assert all(names.issuperset(canary.first) for canary in CANARIES)
    for doses in (canary.doses for canary in CANARIES):
        order = [*reversed(doses.smaller), doses.usual, *doses.stronger]
        assert order == sorted(set(order))
    assert [canary.name for canary in CANARIES if canary.has_detector(DETECTORS[:1])] == ["badnets"]


def test_doses_in_pixels_grow_with_the_image():
    pixels = replace(PATCH, doses=Doses(4, (3, 2), (8,)), in_pixels=True)
    assert pixels.doses_for((1, 28, 28)) == pixels.doses
    assert pixels.doses_for((3, 224, 160)) == Doses(32, (24, 16), (64,))
    assert pixels.doses_for((1, 8, 8)) == Doses(1, (), (2,))  # each once
    warp = Canary(attack=WaNet(), dose="strength", doses=Doses(2.0, (1.0,)), words="", first=(), in_pixels=True)
    assert warp.doses_for((3, 56, 56)) == Doses(4.0, (2.0,))
    assert replace(warp, in_pixels=False).doses_for((3, 56, 56)) == warp.doses


@pytest.mark.parametrize(
    "attack",
    [Blended(poison_rate=0.2), Sig(rule=AllToOne(), poison_rate=0.2, frequency=2.0)],
    ids=lambda attack: attack.name,
)
def test_other_stamps_are_taught_in_the_same_way(trained, attack):
    dose, value = ("opacity", 0.3) if attack.name == "blended" else ("amplitude", 60.0)
    canary = replace(PATCH, attack=attack, dose=dose, doses=Doses(value), channel=False)
    copy, planted, scores = canary.plant(Subject(trained, OPT, VAL), 3, value, before=0.9, seed=0)
    assert (planted.name, getattr(planted, dose), planted.target_class) == (attack.name, value, 3)
    assert scores.attack_success_rate == attack_success_rate(copy, VAL.images, VAL.labels, planted) >= 0.9
    assert sight(trained, Watching([1] * 5), target=3, canary=canary, dose=value).success_before < 0.9


def test_a_sighting_comes_back_from_the_store():
    again = Sighting.unpack(SEEN.pack())
    assert again.summary() == SEEN.summary()
    assert judge_power([again], allow_suspected=False).verdict is Verdict.PASS


def test_targets_are_drawn_from_the_seed_each_class_once():
    assert sorted(canary_targets(10, 10, seed=3)) == list(range(10))
    assert canary_targets(10, 2, seed=3) == canary_targets(10, 5, seed=3)[:2]
    assert len({canary_targets(10, 1, seed=seed) for seed in range(20)}) > 3
    assert len(canary_targets(3, 5, seed=0)) == 3


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_the_settings_line_makes_the_same_canary_again(canary):
    names = {entry.__name__: entry for entry in (AllToOne, BadNets, Blended, Canary, Doses, Sig, WaNet)}
    assert eval(repr(canary), names) == canary  # noqa: S307 - our own repr


def test_scores_are_the_ones_measured_on_held_out_images(trained):
    """50 held-out images, 40 of them of other classes."""
    _, _, scores = PATCH.plant(Subject(trained, OPT, VAL), 2, 3, before=Rate(1, 1), seed=0)
    assert isinstance(scores, AttackScores)
    assert (scores.clean_accuracy.n, scores.attack_success_rate.n) == (50, 40)


def test_the_gentlest_learning_rate_that_implants_is_taken(trained):
    gentle, strong = PATCH, replace(PATCH, learning_rates=(0.1,))
    both = replace(gentle, learning_rates=(1e-9, 0.05, 0.1))
    states = [
        canary.plant(Subject(trained, OPT, VAL), 2, 3, before=1.0, seed=0)[0].module.state_dict()
        for canary in (both, gentle, strong)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


class Ladder:
    """A stand-in for a kind: planted in four doses, of which the smallest is missed. ``ends`` stops the work at one of them."""

    name = "badnets"

    def __init__(self, ends=None, error=None):
        self.ends, self.error, self.asked = ends, error, []

    def __repr__(self):
        return "Ladder()"

    def has_detector(self, detectors):
        return True

    def doses_for(self, image_shape):
        return Doses(6, (4, 2), (8,))

    def sighting(self, target, dose):
        return replace(PATCH.sighting(target, dose), settings="Ladder()")

    def __call__(self, subject, target, dose, **_options):
        self.asked.append((target, dose))
        if dose == self.ends:
            raise self.error
        found = ("patch_scan",) if dose > 2 else ()
        return replace(self.sighting(target, dose), planted_by="badnets", attack_success_rate=0.95, found_by=found)


@pytest.fixture
def run_of(trained, tmp_path, monkeypatch):
    """A new run over the same store with such a kind."""
    images = CleanSet.of(torch.cat([OPT.images, VAL.images]), torch.cat([OPT.labels, VAL.labels]))
    monkeypatch.setattr(Inputs, "unmet", "")

    def start(stand_in, **options):
        choose(monkeypatch, canaries=(stand_in,))
        chosen = AuditOptions(profile="quick", canary=True, device="cpu", **options)
        return Run(chosen, Store(tmp_path), shipped(), module=trained.module, given_images=images)

    return start


def test_every_class_asked_for_has_its_doses_in_the_record(run_of):
    stand_in = Ladder()
    audit = run_of(stand_in, canary_targets=2)
    first, second = canary_targets(5, 2, 0)
    assert [entry.dose for entry in audit.canaries.sightings("badnets")] == [6, 4, 2, 8] * 2
    assert stand_in.asked == [(target, dose) for target in (first, second) for dose in (6, 4, 2, 8)]
    kept = audit.sections()["canaries"]
    assert list(kept)[:2] == [f"badnets-class_{first}-dose_6", f"badnets-class_{first}-dose_4"]
    assert all(problems(entry, "canary") == [] for entry in kept.values())


def test_a_run_that_was_killed_goes_on_at_the_dose_where_it_ended(run_of):
    killed = Ladder(ends=4, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_of(killed).canaries.sightings("badnets")
    again = Ladder()
    assert [entry.dose for entry in run_of(again).canaries.sightings("badnets")] == [6, 4, 2, 8]
    assert [dose for _, dose in again.asked] == [4, 2, 8]


def test_time_that_runs_out_beside_the_usual_dose_is_no_miss(run_of):
    _, item, finding = list(shipped().answers(run_of(Ladder(4, BudgetSpentError("the time budget was spent")))))[-1]
    assert (item.node_id, finding.verdict) == ("audit::test_power[badnets]", Verdict.PASS)
    assert finding.reason.endswith("; a patch of 4 px was not searched for to the end (the time budget was spent)")
    assert finding.details[f"class_{canary_targets(5, 1, 0)[0]}"]["smallest_seen"] == 6


def test_time_that_runs_out_at_the_usual_dose_is_inconclusive_and_not_kept(run_of):
    audit = run_of(Ladder(6, BudgetSpentError("the time budget was spent")))
    finding = judge_power(audit.canaries.sightings("badnets"), allow_suspected=True)
    assert (finding.verdict, len(audit.canaries.sightings("badnets"))) == (Verdict.INCONCLUSIVE, 1)
    assert "no badnets canary for class 4 was searched for to the end" in finding.reason
    assert len(run_of(Ladder()).canaries.sightings("badnets")) == 4
