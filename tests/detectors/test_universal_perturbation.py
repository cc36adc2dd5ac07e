import json
import math
from dataclasses import replace

import pytest
import torch

from backdoor_audit.detectors import DETECTORS, Natural, UniversalPerturbation
from backdoor_audit.detectors.detection import Detection, contradicting
from backdoor_audit.detectors.excess import excesses, weight
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.search.anomaly import MAD_TO_DEVIATION, SteeringNull
from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.search.steered import Steered
from backdoor_audit.search.steering import Steering
from backdoor_audit.store import Packed
from backdoor_audit.triggers.perturbations import Additive, Stripes
from backdoor_audit.triggers.trigger import Addition
from tests.subjects import Computed, assert_unchanged, by_brightness, row_images, row_reader, seeded, snapshot
from tests.subjects.detections import margin_row, size_row

NULL = SteeringNull({"additive": (1.0, 0.5)}, classes=10, models=30, source="thirty hand-made models")
ALONE = replace(NULL, twins="alone_plain")
STEPS = 12
ADDITIVE = UniversalPerturbation(probe=Steering(family=Additive(strength=0.1), steps=STEPS, batch_size=16))
LAST = 0.2  # brightness of the last column, which the backdoor reads: a change can make it darker and brighter


def dim_column(seed):
    clean = row_images(per_class=10, seed=seed)
    clean.images[:, :, :, -1] = LAST
    return clean


def subject(*, backdoored=False):
    """Sixty times the last pixel of row 3, less what clean images have there, is added to the score of class 3."""
    classifier = row_reader(backdoors=(3,) if backdoored else ())
    if backdoored:
        with torch.no_grad():
            classifier.module[1].bias[3] -= 60 * LAST
    return classifier


OPT, VAL = dim_column(0), dim_column(1)

# Five classes. Medians over the five: 3; 0; 1. Less those: -2 -1 0 1 7;  0 0 0 0 4;  0 0 2 0 0.
# The twins' mean is 0 0 1 0 2, so private -2 -1 -1 1 5, of which the median over the five is -1.
MARGINS = torch.tensor([1.0, 2, 3, 4, 10])
NATURAL = torch.tensor([[0.0, 0, 0, 0, 4], [1, 1, 3, 1, 1]])
EXCESSES = [-1.0, 0, 0, 2, 6]
SPREAD = math.hypot(MAD_TO_DEVIATION * 1.0, 0.3)  # |excess| of the five: 1 0 0 2 6, their median 1; floor .3


@pytest.fixture
def probed(monkeypatch):
    """A probe that answers with given margins, and success everywhere, whatever the classifier; nothing rises any more."""

    def answer(margins, rising=None):
        triggers = [Addition(torch.zeros(1, 4, 4), target) for target in range(len(margins))]
        success, landing = torch.ones(len(margins)), torch.arange(len(margins)).flip(0)
        rising = torch.zeros(len(margins)) if rising is None else rising
        steered = Steered(margins, success, landing, tuple(triggers), rising, 60)
        monkeypatch.setattr(Steering, "__call__", lambda *_arguments, **_options: steered)

    return answer


def natural_of(margins, success=None, rising=None):
    """Twins that reach these margins (twins, goals), and have converged."""
    success, rising = (torch.zeros_like(margins) if given is None else given for given in (success, rising))
    return Natural(margins, success, rising, 1)


def grey_run(classes=5, *, natural, detector=ADDITIVE, null=NULL):
    images = row_images(classes=classes, per_class=2, size=4)
    return detector.look(Subject(by_brightness(classes), images, images), natural, null, generator=seeded())


def looked(classifier, natural, seed=2, *, detector=ADDITIVE, null=NULL):
    return detector.look(Subject(classifier, OPT, VAL), natural, null, generator=seeded(seed))


def shown_by(*twins, detector=ADDITIVE):
    return detector.natural([Subject(twin, OPT, VAL) for twin in twins], generator=seeded(1))


def test_excesses_worked_by_hand():
    assert excesses(MARGINS, NATURAL, 5) == pytest.approx(EXCESSES)


def test_what_is_natural_to_a_class_or_to_a_model_cancels():
    assert excesses(MARGINS, MARGINS.expand(3, 5), 5) == [0.0] * 5
    assert excesses(MARGINS + 7, NATURAL, 5) == pytest.approx(EXCESSES)
    assert excesses(MARGINS, NATURAL + torch.tensor([[3.0], [-2.0]]), 5) == pytest.approx(EXCESSES)
    easy = torch.tensor([0.0, 5, 0, 0, 0])
    assert excesses(MARGINS + easy, NATURAL + easy, 5) == pytest.approx(EXCESSES)


def test_a_detection_from_margins_worked_by_hand(probed):
    probed(MARGINS)
    detection = grey_run(natural=natural_of(NATURAL, torch.tensor([[0.2] * 5, [0.4] * 5])))
    assert [score.target_class for score in detection.scores] == [0, 1, 2, 3, 4]
    assert [score.measured.excess for score in detection.scores] == pytest.approx(EXCESSES)
    assert [score.measured.deviation for score in detection.scores] == pytest.approx(
        [value / SPREAD * (weight(1.0, 0.3) if value > 0 else 1) for value in EXCESSES]
    )
    assert [score.measured.margin for score in detection.scores] == MARGINS.tolist()
    assert [score.measured.natural_margin for score in detection.scores] == pytest.approx(NATURAL.mean(dim=0).tolist())
    assert [score.measured.natural_success for score in detection.scores] == pytest.approx([0.3] * 5)
    assert [score.success_val for score in detection.scores] == pytest.approx([1.0] * 5)
    for score in detection.scores:
        assert score.index == NULL.index("additive", score.measured.deviation, 5)
        assert score.p_value == NULL.p_value("additive", score.measured.deviation, 5)
    assert detection.p_value == detection.scores[4].p_value
    assert [trigger.target_class for trigger in detection.triggers] == [0, 1, 2, 3, 4]
    assert detection.reference == "thirty hand-made models"
    assert detection.image_passes == 60
    assert detection.inconclusive == ""


def test_where_classes_hardly_differ_the_floor_is_the_spread(probed):
    probed(torch.tensor([0.0, 0, 0, 0, 0.6]))
    detection = grey_run(natural=natural_of(torch.zeros(2, 5)))
    assert detection.scores[4].measured.deviation == pytest.approx(0.6 / 0.3)
    coarser = grey_run(natural=natural_of(torch.zeros(2, 5)), detector=replace(ADDITIVE, floor=0.6))
    assert coarser.scores[4].measured.deviation == pytest.approx(0.6 / 0.6)


def test_a_model_that_is_its_own_twin_has_no_excess_at_all():
    model = subject(backdoored=True)
    natural = shown_by(model, model)
    assert natural.margins.shape == natural.success.shape == (2, 8)
    detection = looked(model, shown_by(model), 1)
    assert [score.measured.excess for score in detection.scores] == [0.0] * 8
    assert [score.index for score in detection.scores] == [0.0] * 8
    assert {detection.judge(target, shipped_limits()).verdict for target in range(8)} == {Verdict.PASS}


@pytest.fixture(scope="module")
def clean_twins():
    return shown_by(subject(), subject())


@pytest.fixture(scope="module")
def easy_twins():
    """Twins that the last pixel of row 3 sways as well: no backdoor, but the nature of the images."""
    return shown_by(subject(backdoored=True), subject(backdoored=True))


def detection_of(*rows):
    """A detection with these rows."""
    return Detection(detector="additive", settings="", scores=list(rows), triggers=())


def verdicts(detection):
    return {
        score.target_class: detection.judge(score.target_class, shipped_limits()).verdict for score in detection.scores
    }


def test_exactly_the_planted_class_is_flagged_and_its_trigger_works(clean_twins):
    detection = looked(subject(backdoored=True), clean_twins)
    found = verdicts(detection)
    assert [target for target, verdict in found.items() if verdict is Verdict.FAIL] == [3]
    (trigger,) = detection.flagged(shipped_limits())
    assert trigger.target_class == 3
    stamped = trigger.stamp(VAL.images[VAL.labels != 3])
    assert float((subject(backdoored=True).predict(stamped) == 3).float().mean()) == 1.0
    assert int(trigger.change.abs().flatten().argmax()) == 3 * 8 + 7  # the pixel that the backdoor reads


def test_a_class_that_is_as_easy_in_the_twins_is_not_flagged(easy_twins):
    audited = looked(subject(backdoored=True), easy_twins)
    assert set(verdicts(audited).values()) == {Verdict.PASS}
    assert audited.score(3).success_val == 1.0
    margins = [row.measured.margin for row in audited.scores]
    assert margins.pop(3) > 2 > 5 * max(margins)


def test_a_clean_model_beside_clean_twins_is_not_flagged(clean_twins):
    detection = looked(subject(), clean_twins, 3)
    assert set(verdicts(detection).values()) == {Verdict.PASS}


def test_without_twins_there_is_no_answer_but_what_was_reached_is_told():
    detection = ADDITIVE(Subject(subject(), OPT, VAL), generator=seeded())
    assert detection.inconclusive == "there are no reference twins to compare with"
    assert {score.index for score in detection.scores} == {None}
    assert {score.measured.natural_margin for score in detection.scores} == {None}
    assert all(math.isfinite(score.measured.margin) for score in detection.scores)
    assert detection.p_value is None
    assert set(verdicts(detection).values()) == {Verdict.INCONCLUSIVE}


def test_without_twins_classes_are_compared_with_each_other_where_the_null_was_measured_so(probed):
    probed(MARGINS)
    detection = grey_run(natural=None, null=ALONE)
    assert detection.inconclusive == ""
    assert [row.measured.excess for row in detection.scores] == pytest.approx([-2, -1, 0, 1, 7])
    spread = math.hypot(MAD_TO_DEVIATION * 1.0, 0.3)
    assert detection.scores[4].measured.deviation == pytest.approx(7 / spread)
    assert detection.scores[4].index == pytest.approx(2 * 7 / spread / ALONE.cut("additive", 5))
    assert {row.measured.natural_margin for row in detection.scores} == {None}
    assert {row.measured.natural_success for row in detection.scores} == {None}


def test_without_twins_a_backdoored_class_fails_and_a_clean_model_passes():
    failing = verdicts(looked(subject(backdoored=True), None, null=ALONE))
    assert failing.pop(3) is Verdict.FAIL
    assert set(failing.values()) == {Verdict.PASS}
    assert set(verdicts(looked(subject(), None, 3, null=ALONE)).values()) == {Verdict.PASS}


@pytest.mark.parametrize(("classes", "told"), [(4, "4 classes are too few to compare; at least 5"), (5, "")])
def test_fewer_than_five_classes_are_too_few(probed, classes, told):
    probed(torch.arange(float(classes)))
    detection = grey_run(classes, natural=natural_of(torch.zeros(2, classes)))
    assert detection.inconclusive.startswith(told)
    assert bool(detection.inconclusive) == bool(told)
    assert (detection.p_value is None) == bool(told)


@pytest.mark.parametrize("probe", [Steering(family=Stripes(), steps=2), PatchScan(stages=(Stage(4, 2, 4, 2, 1.0),))])
def test_a_model_that_sees_one_class_in_all_images_is_inconclusive(probe):
    constant = Classifier.wrap(
        Computed(lambda images: 0 * images.mean(dim=(2, 3)) + torch.arange(8.0)), image_shape=(1, 8, 8)
    )
    natural = natural_of(torch.zeros(2, 8))
    detection = looked(constant, natural, detector=UniversalPerturbation(probe=probe))
    assert detection.inconclusive == "the model gives some class to all clean images or to none: nothing to steer"
    assert detection.judge(3, shipped_limits()).verdict is Verdict.INCONCLUSIVE


def test_margins_that_are_not_finite_are_inconclusive_and_never_a_pass(probed):
    probed(torch.tensor([0.0, 0.1, math.nan, 0.3, 0.4]))
    detection = grey_run(natural=natural_of(torch.zeros(1, 5)))
    assert {score.index for score in detection.scores} == {None}
    assert Verdict.PASS not in verdicts(detection).values()


def test_what_twins_show_comes_back_from_the_store():
    natural = Natural(*(torch.rand(3, 5, generator=seeded(number)) for number in range(3)), 1234)
    packed = natural.pack()
    again = Natural.unpack(Packed(packed.tensors, json.loads(json.dumps(packed.values))))
    assert torch.equal(again.margins, natural.margins)
    assert torch.equal(again.success, natural.success)
    assert torch.equal(again.rising, natural.rising)
    assert again.image_passes == 1234


def test_a_smaller_budget_comes_back_from_the_store_with_the_other():
    parts = [[torch.rand(3, 5, generator=seeded(10 * row + number)) for number in range(3)] for row in range(2)]
    packed = Natural(*parts[0], 12, Natural(*parts[1], 5)).pack()
    again = Natural.unpack(Packed(packed.tensors, json.loads(json.dumps(packed.values))))
    assert torch.equal(again.margins, parts[0][0])
    assert again.closer is not None
    assert all(
        torch.equal(getattr(again.closer, name), part)
        for name, part in zip(("margins", "success", "rising"), parts[1], strict=True)
    )
    assert again.closer.closer is None


def test_a_class_that_stands_out_in_a_smaller_budget_is_judged_by_that(monkeypatch):
    """Classes 3 and 4 reach the same by a large window; by a small one class 4 alone is led, and no twin is."""
    large, small = torch.tensor([0.0, 0.2, 0.1, 4, 4]), torch.tensor([0.0, 0.1, -0.1, 0, 5])
    everywhere, landing = torch.ones(5), torch.arange(5)

    def reached(margins, side, closer=None):
        triggers = tuple(Addition(torch.full((1, 4, 4), side), target) for target in range(5))
        return Steered(margins, everywhere, landing, triggers, torch.zeros(5), 60, closer)

    steered = reached(large, 0.6, reached(small, 0.4))
    monkeypatch.setattr(Steering, "__call__", lambda *_arguments, **_options: steered)
    flat = torch.zeros(2, 5)
    natural = replace(natural_of(torch.tensor([0.0, 0, 0, 3, 0]).expand(2, 5)), closer=natural_of(flat))
    detection = grey_run(natural=natural)
    rows = {row.target_class: row.measured for row in detection.scores}
    assert [rows[target].margin for target in range(5)] == pytest.approx([0, 0.2, 0.1, 4, 5])
    assert rows[4].excess == pytest.approx(5.0)
    alone = grey_run(natural=replace(natural, closer=None))
    assert {row.target_class: row.measured.margin for row in alone.scores}[4] == 4
    assert rows[4].deviation > {row.target_class: row.measured.deviation for row in alone.scores}[4]
    found = {trigger.target_class: float(trigger.change.max()) for trigger in detection.triggers}
    assert found == pytest.approx({0: 0.6, 1: 0.6, 2: 0.6, 3: 0.6, 4: 0.4})


def test_twins_of_which_it_was_not_kept_whether_they_converged_let_nothing_pass(probed):
    packed = natural_of(NATURAL).pack()
    old = Packed({name: tensor for name, tensor in packed.tensors.items() if name != "rising"}, packed.values)
    probed(MARGINS)
    assert Verdict.PASS not in verdicts(grey_run(natural=Natural.unpack(old))).values()


# The median of the five classes is 0.7; in the mean of two twins, of which the other has converged, 0.35.
RISING = torch.tensor([0.0, 0.0, 0.7, 0.7, 0.7, 0.0])


@pytest.mark.parametrize(
    ("rising", "slow"),
    [((0.4, 0.4, 0.4), True), ((0.1, 0.3, 0.9), True), ((0.41, 0.41, 0.41), False), ((0.5, 0.5, 0.1), False)],
)
def test_half_of_all_progress_in_half_the_steps_is_no_sign_of_an_end(rising, slow):
    assert ADDITIVE.probe.most_rising == 0.2
    rows = [margin_row(target, rising=pace) for target, pace in enumerate(rising)]
    assert ADDITIVE.slow(detection_of(*rows)) is slow


@pytest.mark.parametrize("rows", [(), (margin_row(0, rising=None),), (size_row(0),)])
def test_a_search_that_followed_nothing_is_not_slow(rows):
    assert not ADDITIVE.slow(detection_of(*rows))


@pytest.mark.parametrize(("whose", "told"), [("model", "on this model"), ("twin", "on the reference twins")])
def test_a_search_that_was_still_rising_passes_nothing_and_may_fail(probed, whose, told):
    probed(MARGINS, RISING if whose == "model" else None)
    twins = torch.stack([torch.zeros(6), RISING if whose == "twin" else torch.zeros(6)])
    detection = grey_run(natural=natural_of(NATURAL, rising=twins))
    found = verdicts(detection)
    assert found == dict.fromkeys(found, Verdict.INCONCLUSIVE) | {4: Verdict.FAIL}
    finding = detection.judge(0, shipped_limits())
    assert finding.value is None  # no suspicion of this class
    assert finding.reason.startswith(f"class 0: the search has not converged: {told} the search was still rising")
    fewer = RISING.clone()
    fewer[2] = 0.19
    probed(MARGINS, fewer)
    assert set(verdicts(grey_run(natural=natural_of(NATURAL))).values()) == {Verdict.PASS, Verdict.FAIL}


def test_a_class_for_which_the_model_gives_no_gradient_does_not_pass(probed):
    probed(MARGINS, torch.tensor([0.0, torch.inf, 0, 0, 0, 0]))
    detection = grey_run(natural=natural_of(NATURAL))
    assert verdicts(detection)[1] is Verdict.INCONCLUSIVE
    assert "the model gave no gradient" in detection.judge(1, shipped_limits()).reason
    assert verdicts(detection)[0] is Verdict.PASS
    json.dumps(detection.summary(), allow_nan=False)


def test_with_a_fifth_of_the_steps_a_backdoored_model_passes_in_no_class(clean_twins):
    hasty = replace(ADDITIVE, probe=replace(ADDITIVE.probe, steps=2))
    detection = looked(subject(backdoored=True), shown_by(subject(), subject(), detector=hasty), detector=hasty)
    assert Verdict.PASS not in verdicts(detection).values()


def test_a_detection_comes_back_from_the_store_with_its_triggers_and_all_to_all(clean_twins):
    detection = looked(subject(backdoored=True), clean_twins)
    packed = detection.pack()
    again = Detection.unpack(Packed(packed.tensors, json.loads(json.dumps(packed.values))))
    assert again.summary() == detection.summary()
    assert again.score(None) == detection.score(None)
    assert verdicts(again) == verdicts(detection)
    for one, other in zip(again.triggers, detection.triggers, strict=True):
        assert torch.equal(one.change, other.change)


def test_twins_and_model_are_left_as_they_were_found():
    twin, model = subject(), subject(backdoored=True)
    before = snapshot(twin.module), snapshot(model.module)
    looked(model, shown_by(twin))
    assert_unchanged(before[0], twin.module)
    assert_unchanged(before[1], model.module)


SCAN = UniversalPerturbation(probe=PatchScan(), by_source=True)
OF_SCAN = replace(NULL, fits={"source_scan": (1.0, 0.5)})


def test_a_scan_by_source_names_the_class_where_images_go(monkeypatch):
    steered = Steered(
        margins=torch.tensor([0.0, 0.1, 9.0, 0.2, 0.3]),
        success=torch.tensor([0.9, 0.9, 0.9, 0.0, 0.9]),
        landing=torch.tensor([1, 2, 4, -1, 0]),
        triggers=tuple(
            None if to is None else Addition(torch.full((1, 4, 4), 0.1 * to), to) for to in [1, 2, 4, None, 0]
        ),
        rising=torch.zeros(5),
        image_passes=50,
    )
    monkeypatch.setattr(PatchScan, "__call__", lambda *_arguments, **_options: steered)
    detection = grey_run(natural=natural_of(torch.zeros(2, 5), torch.full((2, 5), 0.25)), detector=SCAN, null=OF_SCAN)
    assert [score.target_class for score in detection.scores] == [0, 1, 2, 3, 4]
    assert [score.measured.landing for score in detection.scores] == [1, 2, 4, None, 0]
    assert detection.scores[2].measured.excess == pytest.approx(8.8)
    finding = detection.judge(2, shipped_limits())
    assert (finding.verdict, finding.target_class) == (Verdict.FAIL, 4)
    assert finding.reason == (
        "from class 2: a small patch sends 90% of held-out images away, most to class 4; "
        "in clean models trained on the same images such a one sends 25%"
    )
    assert {detection.judge(source, shipped_limits()).verdict for source in (0, 1, 3, 4)} == {Verdict.PASS}
    stayed = detection.judge(3, shipped_limits())
    assert stayed.target_class is None
    assert stayed.reason.startswith("from class 3: a small patch sends 0% of held-out images away; in clean models")
    assert detection.flagged(shipped_limits()) == ()  # what leaves one class alone repairs nothing
    packed = detection.pack()
    again = Detection.unpack(Packed(packed.tensors, json.loads(json.dumps(packed.values))))
    for kept in (detection, again):
        trigger, source = kept.shown(finding)
        assert (trigger.target_class, source, float(trigger.change[0, 0, 0])) == (4, 2, pytest.approx(0.4))
        assert kept.shown(stayed) == (None, 3)
    before = Packed({}, {name: value for name, value in packed.values.items() if name != "away"})
    assert Detection.unpack(before).shown(finding) == (None, 2)  # kept by an earlier version


def test_a_class_that_is_never_given_has_been_left_already():
    """Class 7 is never predicted: the images labelled so count, and all of them are away."""
    blind = row_reader()
    with torch.no_grad():
        blind.module[1].bias[7] = -100
    detection = looked(blind, natural_of(torch.zeros(2, 8)), detector=SCAN, null=OF_SCAN)
    assert not detection.inconclusive
    assert detection.scores[7].success_val == 1.0
    assert detection.scores[7].measured.margin > 0


def test_a_model_with_one_answer_cannot_be_a_twin():
    constant = row_reader()
    with torch.no_grad():
        constant.module[1].bias[0] = 1000
    with pytest.raises(DegenerateScoresError):
        shown_by(constant)


def test_every_family_says_what_it_sees_and_what_it_does_not():
    universal = [detector for detector in DETECTORS if isinstance(detector, UniversalPerturbation)]
    names = [detector.name for detector in universal]
    assert names == ["patch_scan", "additive", "smooth", "stripes", "warping", "source_scan"]
    assert len({detector.blind_spots[0] for detector in universal[:5]}) == 5
    by_class = [detector for detector in DETECTORS if detector.name != "relabelling"]
    assert "triggers for a third of the classes or more" in set.intersection(
        *(set(detector.blind_spots) for detector in by_class)
    )


def test_the_null_does_not_stand_in_the_settings_but_decides_the_index(probed):
    """Twice the location and scale is half the index; which models the null is from is the detection's reference."""
    probed(MARGINS)
    wider = replace(NULL, fits={"additive": (2.0, 1.0)}, source="others")
    first, second = (grey_run(natural=natural_of(NATURAL), null=null) for null in (NULL, wider))
    assert first.scores[4].index == pytest.approx(2 * second.scores[4].index)
    assert (first.settings, second.reference) == (second.settings, "others")


def test_a_low_index_contradicts_nothing_where_most_classes_are_infected(probed):
    """Three of five classes are led far: the median takes that for usual, so no index is above the limit."""
    known = replace(NULL, spreads={"additive": (1.0, 1.0)})
    probed(torch.tensor([9.0, 8, 7, 0, 1]))
    many = grey_run(natural=natural_of(torch.zeros(2, 5)), null=known)
    assert max(score.index for score in many.scores) < 2
    assert many.unusual.startswith("the spread of the classes is ")
    assert contradicting([many], 0, shipped_limits()) == ""
    probed(torch.tensor([0.3, 0.1, 0.2, 0, 0.4]))
    ordinary = grey_run(natural=natural_of(torch.zeros(2, 5)), null=known)
    assert ordinary.unusual == ""
    assert contradicting([ordinary], 0, shipped_limits())
    unknown = grey_run(natural=natural_of(torch.zeros(2, 5)))
    assert contradicting([unknown], 0, shipped_limits()) == ""
