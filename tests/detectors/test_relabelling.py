"""One change that sends every class elsewhere, whatever the permutation."""

from dataclasses import replace

import pytest
import torch

from backdoor_audit.detectors import Relabelling
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.search.anomaly import SteeringNull
from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.perturbations import Additive
from tests.subjects import Computed, seeded
from tests.subjects.row_readers import CLASSES, SIZE, bright_rows, reader

NULL = SteeringNull({"relabelling": (0.05, 0.02)}, classes=10, models=30, source="thirty hand-made models")
PROBES = (PatchScan(stages=(Stage(4, 2, 6, 3, 0.4), Stage(4, 2, 8, 20, 1.0))), Steering(family=Additive(), steps=8))
RELABELLING = Relabelling(probes=PROBES)
PERMUTED = [3, 5, 0, 7, 1, 2, 4, 6]  # no shift of the classes


def dark_corner(seed=0):
    clean = bright_rows(seed)
    clean.images[:, :, -1, -1] = 0.0
    return clean


def subject(classifier):
    return Subject(classifier, dark_corner(), dark_corner(1))


def permuting():
    """Reads the bright row; a white last pixel makes it name the class that a permutation puts there instead."""

    def forward(images):
        scores = 10 * images[:, 0, :, :4].mean(dim=2)
        seen = images[:, 0, -1, -1:]
        return (1 - seen) * scores + 3 * seen * scores[:, torch.tensor(PERMUTED)]

    return Classifier.wrap(Computed(forward), image_shape=(1, SIZE, SIZE))


@pytest.fixture(scope="module")
def natural():
    return RELABELLING.natural([subject(reader()), subject(reader())], generator=seeded(1))


def detection(classifier, natural):
    return RELABELLING.look(subject(classifier), natural, NULL, generator=seeded(2))


def test_a_permutation_that_a_corner_brings_about_is_found(natural):
    found = detection(permuting(), natural)
    assert [score.target_class for score in found.scores] == [None]
    assert found.scores[0].success_val > 0.9
    finding = found.judge(None, shipped_limits())
    assert finding.verdict is Verdict.FAIL
    assert finding.reason.startswith("all to all: a small change sends")
    assert found.reference == "thirty hand-made models"
    assert found.triggers == ()


def test_a_clean_model_beside_clean_twins_passes(natural):
    assert natural.margins.shape == (2, len(PROBES))
    found = detection(reader(), natural)
    assert abs(found.scores[0].measured.excess) < 0.1
    assert found.judge(None, shipped_limits()).verdict is Verdict.PASS


def test_without_twins_there_is_no_answer_but_what_was_reached_is_told():
    found = RELABELLING(subject(permuting()), generator=seeded(2))
    assert found.inconclusive == "there are no reference twins to compare with"
    assert found.scores[0].index is None
    assert found.scores[0].measured.margin > 0.5
    assert found.judge(None, shipped_limits()).verdict is Verdict.INCONCLUSIVE


def test_without_twins_what_is_reached_counts_where_the_null_was_measured_so():
    alone = replace(NULL, twins="alone_plain")
    found = RELABELLING.look(subject(permuting()), None, alone, generator=seeded(2))
    (row,) = found.scores
    assert found.inconclusive == ""
    assert row.measured.deviation == row.measured.margin == max(row.measured.margin, 0.5)
    assert row.measured.natural_margin is None
    assert found.judge(None, shipped_limits()).verdict is Verdict.FAIL
    clean = RELABELLING.look(subject(reader()), None, alone, generator=seeded(2))
    assert clean.judge(None, shipped_limits()).verdict is Verdict.PASS


def test_a_model_that_hides_its_gradients_was_not_searched_and_does_not_pass(natural):
    rounded = Computed(lambda images: (10 * images[:, 0]).round().mean(dim=2))
    hidden = Classifier.wrap(rounded, image_shape=(1, SIZE, SIZE))
    assert detection(hidden, natural).judge(None, shipped_limits()).verdict is Verdict.INCONCLUSIVE


def test_an_index_does_not_depend_on_the_number_of_classes():
    assert NULL.index("relabelling", 0.2, CLASSES) == NULL.index("relabelling", 0.2, 1000)
    growing = replace(NULL, growth={"relabelling": 0.1})
    assert growing.index("relabelling", 0.2, 5) == NULL.index("relabelling", 0.2, 5)
    assert growing.index("relabelling", 0.2, 100) < NULL.index("relabelling", 0.2, 100)
