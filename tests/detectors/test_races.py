"""Searches of many classes: a few are searched in full, the others are screened, and the detection says so."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import (
    DETECTORS,
    Consensus,
    NeuralCleanse,
    Relabelling,
    UniversalPerturbation,
    neural_cleanse,
    sources,
)
from backdoor_audit.detectors.by_screening import ByScreening
from backdoor_audit.detectors.detection import Detection
from backdoor_audit.detectors.excess import weight
from backdoor_audit.detectors.field import Field
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.subject import Subject
from backdoor_audit.progress import Meter, watched_by
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.search.anomaly import MAD_TO_DEVIATION, median, shipped_null
from backdoor_audit.search.racing import RACE
from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.search.steering import Steering
from backdoor_audit.search.twins import Twins
from backdoor_audit.store import Packed
from backdoor_audit.triggers.perturbations import Additive
from tests.subjects import seeded
from tests.subjects.detections import margin_row
from tests.subjects.pixels import pixel_images, pixel_reader

LIMITS = shipped_limits()
ADDITIVE = UniversalPerturbation(probe=Steering(family=Additive(strength=0.05), steps=12, batch_size=16))
SOURCES = UniversalPerturbation(probe=PatchScan(stages=(Stage(6, 5, 5, 2, 0.1),)), by_source=True)


def subject(*backdoors, classes=43, size=16, per_class=4):
    images = [pixel_images(classes=classes, size=size, per_class=per_class, seed=seed) for seed in (0, 5)]
    return Subject(pixel_reader(classes=classes, backdoors=backdoors, size=size), *images)


LOT = subject().lot
CONTROLS = RACE.controls_of(LOT)
PLANTED = next(target for target in range(42, 0, -1) if target not in CONTROLS)


@dataclass
class Beside:
    """A reference of clean twins that really searches, and remembers for which classes."""

    twins_of: Subject
    null: object = None
    missing: str = ""
    asked: tuple = ()

    def __post_init__(self):
        self.null = shipped_null()
        self.twins = Twins((), ())

    def natural(self, detector, classes=()):
        self.asked = (*self.asked, tuple(classes))
        return detector.natural([self.twins_of], classes=classes, generator=seeded(9))

    def close(self, detection):
        return False


def verdicts(detection):
    return [detection.judge(row.target_class, LIMITS).verdict for row in detection.scores]


@pytest.fixture(scope="module")
def reference():
    return Beside(subject())


@pytest.fixture(scope="module")
def raced(reference):
    return ADDITIVE(subject(PLANTED), reference=reference, generator=seeded(1))


def test_exactly_the_planted_class_of_forty_three_is_flagged(raced):
    assert [row.target_class for row in raced.scores] == list(range(43))
    assert verdicts(raced) == [Verdict.FAIL if target == PLANTED else Verdict.PASS for target in range(43)]
    assert raced.flagged(LIMITS)[0].target_class == PLANTED


def test_the_planted_class_is_a_finalist_and_twins_are_asked_for_the_finalists_and_further_controls(raced, reference):
    searched = {row.target_class for row in raced.scores if row.measured.kind == "margin"}
    every_model, finalists, further = reference.asked[:3]
    assert every_model == ()  # whatever that is
    assert (len(finalists), PLANTED in finalists) == (6, True)
    assert further == RACE.further(LOT, (*CONTROLS, *finalists))
    assert searched == {*CONTROLS, *finalists, *further}
    assert [trigger.target_class for trigger in raced.triggers] == sorted(searched)


def test_near_the_limit_medians_and_spread_are_over_twice_the_controls(raced, reference):
    controls = (*CONTROLS, *reference.asked[2])
    assert len(controls) == 24
    excess = [raced.score(target).measured.excess for target in controls]
    assert median(excess) == pytest.approx(0.0, abs=1e-6)
    spread = math.hypot(MAD_TO_DEVIATION * median(list(map(abs, excess))), ADDITIVE.floor)
    planted = raced.score(PLANTED).measured
    told = weight(raced.score(PLANTED).success_val, planted.natural_success)
    assert planted.deviation == pytest.approx(planted.excess / spread * told, rel=1e-5)
    assert raced.score(PLANTED).index == shipped_null().index("additive", planted.deviation, 43)


def test_what_was_not_searched_in_full_is_said(raced, reference):
    stopped = next(row for row in raced.scores if row.measured.kind == "screening")
    assert raced.coverage == (
        "43 classes: 6 finalists of a screening that led images to whichever class and 24 controls drawn by lot searched in "
        "full; 13 only screened"
    )
    finding = raced.judge(stopped.target_class, LIMITS)
    assert raced.coverage in finding.settings
    assert "not searched in full" in finding.reason
    assert stopped.index == pytest.approx(min(raced.score(target).index for target in reference.asked[1]))


def test_a_raced_detection_comes_back_from_the_store(raced):
    packed = raced.pack()
    again = Detection.unpack(Packed(packed.tensors, json.loads(json.dumps(packed.values))))
    assert again.summary() == raced.summary()
    assert verdicts(again) == verdicts(raced)


def test_a_clean_model_of_forty_three_classes_is_not_flagged(reference):
    detection = ADDITIVE(subject(), reference=reference, generator=seeded(1))
    assert verdicts(detection) == [Verdict.PASS] * 43
    assert "12 controls drawn by lot searched in full; 25 only screened" in detection.coverage


def test_halves_that_are_exchanged_are_searched_for_the_same_classes(raced):
    again = Beside(subject())
    again.close = lambda detection: True
    detection = ADDITIVE(subject(PLANTED), reference=again, generator=seeded(1))
    assert len(again.asked) == 5
    assert {*again.asked[1], *again.asked[2]} == {*again.asked[3], *again.asked[4]}
    assert verdicts(detection) == verdicts(raced)


def test_where_all_finalists_are_outliers_those_behind_them_do_not_pass():
    runners = Field(classes=43, finalists=(0, 1), screened={2: (0.5, 0.1)})
    ahead = [margin_row(0, index=9.0, deviation=30.0), margin_row(1, index=8.0, deviation=25.0)]
    (row,) = runners.stopped(ahead, "additive", shipped_null()).values()
    assert row.measured == ByScreening(margin=0.5, deviation=25.0)
    detection = Detection(detector="additive", settings="", scores=[row], triggers=())
    assert detection.judge(2, LIMITS).verdict is Verdict.INCONCLUSIVE


def test_where_no_finalist_has_converged_those_behind_them_do_not_pass():
    runners = Field(classes=43, finalists=(0, 1), screened={2: (0.5, 0.1)})
    for moving, verdict in (
        (("no gradient", "no gradient"), Verdict.INCONCLUSIVE),
        (("no gradient", ""), Verdict.PASS),
    ):
        ahead = [margin_row(target, deviation=0.1, unconverged=why) for target, why in enumerate(moving)]
        (row,) = runners.stopped(ahead, "additive", shipped_null()).values()
        detection = Detection(detector="additive", settings="", scores=[row], triggers=())
        assert detection.judge(2, LIMITS).verdict is verdict


def test_up_to_twenty_classes_every_class_is_searched():
    few = subject(3, classes=20)
    whole, with_a_race = (
        replace(ADDITIVE, race=race)(few, reference=Beside(few), generator=seeded(1))
        for race in (replace(RACE, above=10**6), RACE)
    )
    assert with_a_race.scores == whole.scores
    assert with_a_race.image_passes == whole.image_passes
    assert with_a_race.coverage == ""


def test_sources_without_enough_images_are_not_searched_and_that_is_said():
    images = pixel_images(classes=43, per_class=6)
    scarce = (images.labels % 2 == 0) | (torch.arange(len(images)) % 6 < 2)  # odd classes have two images each
    poor = CleanSet(images.images[scarce], images.labels[scarce])
    looked = Subject(pixel_reader(), poor, poor)
    detection = SOURCES(looked, reference=Beside(looked), generator=seeded(1))
    assert [row.target_class for row in detection.scores] == list(range(43))
    kinds = [row.measured.kind for row in detection.scores]
    assert (kinds.count("margin"), kinds.count("screening")) == (22, 21)
    assert "21 not searched, most for want of clean images" in detection.coverage
    finding = replace(detection, unconverged="").judge(1, LIMITS)  # a handful of steps
    assert (finding.verdict, finding.value) == (Verdict.PASS, None)
    assert finding.reason == "from class 1: not searched: fewer than 5 clean images of the class in either half"
    json.dumps(detection.pack().values)


def test_where_no_source_has_enough_images_nothing_is_searched_and_that_is_said():
    looked, meter = subject(per_class=2), Meter()
    with watched_by(meter):
        detection = SOURCES(looked, reference=Beside(looked), generator=seeded(1))
    assert meter.passes == {}
    assert detection.inconclusive == ""
    assert "43 not searched" in detection.coverage
    assert set(verdicts(detection)) == {Verdict.PASS}
    assert "only 0 classes have 5 clean images" in detection.judge(0, LIMITS).reason


def test_a_relabelling_of_many_classes_is_looked_for_in_some_of_them():
    looked = subject()
    detector = Relabelling(probes=(Steering(family=Additive(), steps=3),))
    asked = detector._asked(looked)
    assert len(asked) == 16
    detection = detector(looked, reference=Beside(looked), generator=seeded(1))
    assert detection.coverage == "images of 16 of 43 classes searched with, those with the most clean images"
    assert detection.scores[0].measured.excess == 0.0
    assert detector._asked(subject(classes=20)) == ()


@pytest.fixture
def few_named(monkeypatch):
    monkeypatch.setattr(neural_cleanse, "_NAME_ABOVE", 20)
    monkeypatch.setattr(neural_cleanse, "_WINDOWS", PatchScan(stages=(Stage(6, 5, 8, 3, 0.1),)))


def test_neural_cleanse_searches_the_classes_that_a_screening_names(few_named):
    detection = NeuralCleanse(steps=100)(subject(PLANTED), generator=seeded(1))
    assert [row.target_class for row in detection.scores] == list(range(43))
    assert max(detection.scores, key=lambda row: row.index or 0.0).target_class == PLANTED
    stopped = [row for row in detection.scores if row.measured.kind == "screening"]
    finalists = [row for row in detection.scores if row.measured.kind == "size" and row.target_class not in CONTROLS]
    assert {row.index for row in stopped} == {min(row.index for row in finalists)}
    assert len(detection.triggers) == 18
    assert "25 only screened" in detection.coverage
    packed = detection.pack()
    assert (
        Detection.unpack(Packed(packed.tensors, json.loads(json.dumps(packed.values)))).summary() == detection.summary()
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224)])
def test_ten_classes_cost_at_most_eighty_thousand_passes_a_hundred_two_and_a_half_times_and_a_thousand_six(shape):
    costs = {classes: [entry.cost(shape, classes, 500) for entry in DETECTORS] for classes in (10, 43, 100, 1000)}
    ten, few, hundred, thousand = (sum(cost.passes for cost in each) for each in costs.values())
    assert ten <= 80_000
    assert max(few, hundred) <= 2.5 * ten
    assert thousand <= 6 * ten
    assert sum(cost.passes if cost.in_twin is None else cost.in_twin for cost in costs[100]) <= 2.5 * ten


@pytest.mark.parametrize(
    "detector",
    [replace(ADDITIVE, probe=replace(ADDITIVE.probe, steps=5)), SOURCES, Relabelling(probes=(ADDITIVE.probe,))],
    ids=["steering", "source", "relabelling"],
)
def test_a_hundred_classes_take_the_passes_that_were_foretold(detector):
    looked, meter = subject(classes=100, size=24, per_class=5 if detector is SOURCES else 2), Meter()
    with watched_by(meter):
        detector(looked, generator=seeded(1))
    foretold = detector.cost((1, 24, 24), 100, len(looked.search_set)).passes
    asked = (2 + 2 * sources.LOOKED_AT / 100) * len(looked.search_set)  # what the model says of clean images
    assert foretold <= meter.passes[""] <= 1.1 * foretold + 8 * asked


def test_families_that_raced_are_weighed(raced, reference):
    smooth = replace(ADDITIVE(subject(), reference=reference, generator=seeded(2)), detector="smooth")
    weighing = Consensus(of=("additive", "smooth"))
    detection = weighing.weighed([raced, smooth], shipped_null())
    assert [row.target_class for row in detection.scores] == list(range(43))
    assert max(detection.scores, key=lambda row: row.index).target_class == PLANTED
    kinds = {
        (raced.score(row.target_class).measured.kind, smooth.score(row.target_class).measured.kind): row
        for row in detection.scores
    }
    assert kinds["screening", "screening"].measured.kind == "screening"
    assert kinds["margin", "screening"].measured.strongest == raced.means
    assert detection.coverage.startswith("where a family did not search a class in full")
    assert Verdict.INCONCLUSIVE not in verdicts(detection)
