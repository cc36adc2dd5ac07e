"""What detectors say of themselves before they are called: what they cost, what they compare, and with which effort."""

import pytest

from backdoor_audit.detectors import (
    DETECTORS,
    Consensus,
    NeuralCleanse,
    PatchScan,
    Relabelling,
    Stage,
    Steering,
    UniversalPerturbation,
    compares,
)
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.progress import Meter, watched_by
from backdoor_audit.search.inversion import TriggerInversion
from backdoor_audit.triggers.perturbations import Additive
from tests.subjects import row_images, row_reader, seeded

STAGES = (Stage(4, 2, 6, 6, 0.3), Stage(2, 2, 16, 12, 1.0))
SEARCHES = (
    UniversalPerturbation(probe=Steering(family=Additive(), steps=4)),
    UniversalPerturbation(probe=PatchScan(stages=STAGES)),
    UniversalPerturbation(probe=PatchScan(stages=STAGES), by_source=True),
    Relabelling(probes=(PatchScan(stages=STAGES), Steering(family=Additive(), steps=4))),
)


@pytest.mark.parametrize("detector", SEARCHES, ids=["steering", "scan", "source", "relabelling"])
def test_a_search_takes_the_passes_that_were_foretold(detector):
    subject, meter = Subject(row_reader(), *row_images().split(0)), Meter()
    with watched_by(meter):
        detector(subject, generator=seeded())
    foretold = detector.cost(subject.classifier.image_shape, subject.num_classes, len(subject.search_set)).passes
    assert foretold == pytest.approx(meter.passes[""], rel=0.15)  # the rest asks what the model says of clean images


def test_an_inversion_takes_its_steps_for_every_class_until_they_settle():
    detector = NeuralCleanse(steps=10, batch_size=8)
    foretold = detector.cost((1, 8, 8), 5, images=0).passes
    assert 0.85 * 10 * 8 * 5 <= foretold <= 10 * 8 * 5


def test_a_race_costs_less_than_all_its_classes():
    search = TriggerInversion(race_above=20)
    assert search.staying(20) == 20
    assert search.staying(43) == 18
    detector = NeuralCleanse()
    all_of_43 = 4.3 * detector.cost((1, 8, 8), 10, images=0).passes
    assert detector.cost((1, 8, 8), 43, images=0).passes < 0.7 * all_of_43


def test_a_weighing_of_what_others_found_costs_nothing():
    assert Consensus().cost((1, 8, 8), 10, images=100).passes == 0


def test_those_that_compare_with_twins_do_a_search_of_their_own():
    assert [entry.name for entry in DETECTORS if not compares(entry)] == ["neural_cleanse", "consensus"]


def test_names_that_a_detector_builds_on_are_those_of_detectors_before_it():
    names = [entry.name for entry in DETECTORS]
    for place, entry in enumerate(DETECTORS):
        assert set(entry.builds_on) <= set(names[:place])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 30, "restarts": 3}, NeuralCleanse(steps=30, restarts=3)),
        ({"steps": 30, "profile": "thorough"}, NeuralCleanse(steps=30, restarts=2, race_above=10**6)),
    ],
)
def test_options_set_the_effort_of_neural_cleanse_and_of_no_detector_with_a_null_distribution(options, expected):
    first, *others = [entry.with_options(AuditOptions(**options)) for entry in DETECTORS]
    assert first == expected
    assert others == list(DETECTORS[1:])


@pytest.mark.parametrize("detector", [entry for entry in DETECTORS if compares(entry)], ids=lambda entry: entry.name)
def test_twice_the_effort_is_twice_the_steps_of_the_same_detector(detector):
    twice = detector.with_effort(2)
    assert twice.name == detector.name
    assert twice.with_effort(0.5) == detector
    assert twice.cost((1, 28, 28), 10, 500).passes > 1.5 * detector.cost((1, 28, 28), 10, 500).passes
