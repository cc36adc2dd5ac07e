"""What is foretold of a search is what it then takes."""

import pytest

from backdoor_audit.detectors import NeuralCleanse, Relabelling, UniversalPerturbation
from backdoor_audit.model.subject import Subject
from backdoor_audit.progress import Meter, watched_by
from backdoor_audit.properties import HarmlessChanges, NothingSteers, SmallPatches
from backdoor_audit.run.passes import of_detector, of_property
from backdoor_audit.search.inversion import TriggerInversion
from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.search.steering import Steering
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
    opt, val = row_images().split(0)
    classifier, meter = row_reader(), Meter()
    with watched_by(meter):
        detector(classifier, opt, val, generator=seeded())
    foretold = of_detector(detector, classifier.image_shape, classifier.num_classes, len(opt))
    assert foretold == pytest.approx(meter.passes[""], rel=0.15)  # the rest asks what the model says of clean images


def test_an_inversion_takes_its_steps_for_every_class_until_they_settle():
    detector = NeuralCleanse(steps=10, batch_size=8)
    foretold = of_detector(detector, (1, 8, 8), 5, images=0)
    assert 0.85 * 10 * 8 * 5 <= foretold <= 10 * 8 * 5


def test_a_race_costs_less_than_all_its_classes():
    search = TriggerInversion(race_above=20)
    assert search.staying(20) == 20
    assert search.staying(43) == 18
    detector = NeuralCleanse()
    all_of_43 = 4.3 * of_detector(detector, (1, 8, 8), 10, images=0)
    assert of_detector(detector, (1, 8, 8), 43, images=0) < 0.7 * all_of_43


@pytest.mark.parametrize(
    "claim",
    [NothingSteers(changes=SmallPatches(), examples=12, steps=3, batch_size=6), HarmlessChanges(examples=12)],
    ids=["steering", "harmless"],
)
def test_a_property_takes_about_the_passes_that_were_foretold(claim):
    opt, val = row_images().split(0)
    classifier, meter = row_reader(), Meter()
    with watched_by(meter):
        claim(Subject(classifier, opt, val), generator=seeded(), natural=lambda target: 1.0)
    assert of_property(claim, classifier.num_classes, len(opt)) == pytest.approx(meter.passes[""], rel=0.5)
