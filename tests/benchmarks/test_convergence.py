"""What the table of convergence says, from searches made by hand."""

from dataclasses import replace

import pytest

from backdoor_audit.detectors import DETECTORS, Detection, NeuralCleanse
from backdoor_audit.properties import HarmlessChanges
from benchmarks.convergence import _of_detection, _of_outcome, table, tasks, with_effort
from tests.subjects.asked import asked
from tests.subjects.detections import size_row
from tests.subjects.rows import row_reader


def detection(*scores, **values):
    common = {"detector": "neural_cleanse", "settings": "", "triggers": [], "median_size": 50.0}
    return Detection(scores=list(scores), **{**common, **values})


def score(target, **values):
    common = {"success_val": 1.0, "index": 0.5, "size": 40.0, "size_ratio": 0.8}
    return size_row(target, shrinkage=0.1, **{**common, **values})


def row(found, *, backdoored, effort=12.0):
    return {"subject": "a", "backdoored": backdoored, "search": "neural_cleanse", "effort": effort, **found}


def test_a_pass_that_is_withheld_is_counted_and_a_fail_is_not():
    settled = _of_detection(detection(score(0), score(1)))
    moving = _of_detection(detection(score(0), score(1, unconverged="moving")))
    outlier = _of_detection(detection(score(0, index=5.0, size_ratio=0.1, unconverged="moving"), score(1)))
    assert (settled["with"], moving["with"]) == (["pass", "pass"], ["pass", "inconclusive"])
    assert outlier["with"] == outlier["without"] == ["fail", "pass"]
    rows = [row(settled, backdoored=False), row(moving, backdoored=True), row(outlier, backdoored=True)]
    (line,) = table(rows)[1:]
    # 3 models, 6 rows of which 4 converged, one model withheld; of two backdoored ones one passed whole, and does no more
    assert line.split() == ["neural_cleanse", "12", "3", "6", "66.7%", "1", "1/2", "0/2"]


def test_where_nothing_passes_no_row_counts_as_converged():
    found = _of_detection(detection(score(0), score(1), unconverged="in 5 of 8 classes"))
    assert (found["rows"], found["converged"], found["why"]) == (2, 0, "in 5 of 8 classes")
    assert found["without"] == ["pass", "pass"]


def test_a_property_is_one_row():
    outcome = asked(HarmlessChanges(examples=12), row_reader())
    assert _of_outcome(outcome)["with"] == ["pass"]
    moving = _of_outcome(replace(outcome, unconverged="still climbing"))
    assert (moving["converged"], moving["with"], moving["without"]) == (0, ["inconclusive"], ["pass"])


@pytest.mark.parametrize(
    "detector",
    [entry for entry in DETECTORS if entry.name not in ("consensus", "relabelling")],
    ids=lambda detector: detector.name,
)
def test_less_effort_is_fewer_steps_of_the_same_detector(detector):
    if isinstance(detector, NeuralCleanse):
        assert with_effort(detector, 12.0) == NeuralCleanse(steps=12)
        return
    less = with_effort(detector, 0.25)
    assert (less.name, less.by_source) == (detector.name, detector.by_source)
    steps = [[stage.steps for stage in getattr(entry.probe, "stages", [entry.probe])] for entry in (detector, less)]
    assert all(few < many for many, few in zip(*steps, strict=True))
    assert with_effort(detector, 1.0) == detector


def test_only_neural_cleanse_at_its_default_runs_on_every_subject():
    made = tasks(["a", "b", "c"], ["b"], ["neural_cleanse", "stripes"])
    assert [(task.subject, task.effort) for task in made if task.name == "neural_cleanse"] == [
        *(("a", 100.0), ("b", 100.0), ("c", 100.0)),
        *(("b", 12.0), ("b", 24.0), ("b", 48.0), ("b", 72.0)),
    ]
    assert [(task.subject, task.effort) for task in made if task.name == "stripes"] == [
        ("b", 1.0),
        ("b", 0.25),
        ("b", 0.5),
    ]
