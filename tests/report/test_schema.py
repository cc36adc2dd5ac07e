"""The JSON schema of ``audit.json``: what the package writes is valid, what is broken is not, and the published file is it."""

from __future__ import annotations

import copy
import errno
import io
import json
import runpy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import backdoor_audit.schema
from backdoor_audit.canary import Sighting
from backdoor_audit.detectors import Detection
from backdoor_audit.detectors.field import Field
from backdoor_audit.evidence import Finding, Record, Verdict
from backdoor_audit.gate import audit
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.presentable import presentable
from backdoor_audit.repairs.outcome import CurvePoint, RepairOutcome, Scores
from backdoor_audit.report.schema import schema
from backdoor_audit.run.exhibits import activation_exhibit, exhibit
from backdoor_audit.search.anomaly import shipped_null
from tests.subjects import random_network, row_images, row_reader, square_trigger, toy
from tests.subjects.detections import margin_row, size_row
from tests.subjects.records import finding, record
from tests.subjects.schemas import problems

PUBLISHED = Path(__file__).parents[2] / "docs" / "audit.schema.json"


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """The record of a real audit of a real, tiny backdoored network, as it comes back from disk."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))
    network.load_state_dict(toy.weights(backdoored=True))
    made = audit(network, *toy.images(), profile="quick", steps=150, device="cpu", progress=False)
    stored: dict[str, Any] = json.loads(json.dumps(made.to_json()))
    return stored


def test_the_published_file_is_the_schema_and_a_valid_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == schema(), "python -m backdoor_audit.schema > docs/..."


def test_a_reader_that_goes_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str, /) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(SystemExit, match=r"^python -m backdoor_audit.schema: Broken pipe; the schema was not written"):
        runpy.run_path(backdoor_audit.schema.__file__, run_name="__main__")


def test_a_real_record_is_valid(real: dict[str, Any]) -> None:
    assert real["verdict"] == "fail"
    assert real["findings"]
    assert real["repairs"]
    assert problems(real) == []


BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda stored: stored.update(schema_version=3),
    "an unknown key": lambda stored: stored.update(comment=""),
    "no verdict": lambda stored: stored.pop("verdict"),
    "a verdict that is none": lambda stored: stored.update(verdict="clean"),
    "no power": lambda stored: stored.pop("power"),
    "percent": lambda stored: stored["detections"][0]["classes"][0].update(success_val=97.0),
    "percent in a curve": lambda stored: stored["repairs"][0]["before"].update(clean_accuracy=91),
    "a class name for a class": lambda stored: stored.update(flagged_classes=["sneaker"]),
    "a class twice": lambda stored: stored.update(flagged_classes=[3, 3]),
    "a finding without a verdict": lambda stored: stored["findings"][0].pop("verdict"),
    "a finding with a typo": lambda stored: stored["findings"][0].update(tagret_class=1),
    "a finding of no item": lambda stored: stored["findings"][0].update(audit=""),
    "a text for a number": lambda stored: stored["findings"][0].update(value="3"),
    "half a subject": lambda stored: stored["subject"].pop("data_fingerprint"),
    "a short fingerprint": lambda stored: stored["subject"].update(model_fingerprint="abc"),
    "negative time": lambda stored: stored.update(seconds=-1),
    "a list of reasons": lambda stored: stored.update(skipped=["audit::x"]),
    "a profile that is none": lambda stored: stored["settings"].update(profile="fast"),
    "a limit in words": lambda stored: stored["settings"]["limits"].update(anomaly_index="2"),
    "an exhibit without detector": lambda stored: stored.update(exhibits={"x-class_1": {"target_class": 1}}),
    "half a baseline": lambda stored: stored.update(baseline=[]),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_record_is_refused(name: str, real: dict[str, Any]) -> None:
    broken = copy.deepcopy(real)
    BREAKS[name](broken)
    assert problems(broken) != []


def test_new_settings_and_new_numbers_behind_a_finding_are_allowed(real: dict[str, Any]) -> None:
    more = copy.deepcopy(real)
    more["settings"]["later"] = 1
    more["environment"]["later"] = "x"
    more["findings"][0]["details"]["later"] = [1]
    assert problems(more) == []


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        ("finding", Finding),
        ("repair", RepairOutcome),
        ("scores", Scores),
        ("canary", Sighting),
    ],
)
def test_the_schema_knows_every_field_of_what_a_record_is_made_of(definition: str, kind: type) -> None:
    described = schema()["$defs"][definition]
    assert set(described["properties"]) == {entry.name for entry in fields(kind)}
    assert set(described["required"]) == set(described["properties"]) - {"item"}  # which came with version 2


def test_the_schema_knows_every_key_of_a_row_and_takes_those_from_before_kinds_were_named() -> None:
    described = schema()["$defs"]["class_score"]
    assert set(described["properties"]) == set(size_row().summary())
    assert set(described["properties"]) - set(described["required"]) == {"kind", "stopped"}


def test_the_schema_knows_every_field_of_a_record_and_of_a_curve() -> None:
    whole = schema()
    assert {entry.name for entry in fields(Record)} <= set(whole["properties"])
    assert set(record(finding()).to_json()) <= set(whole["properties"])
    assert set(whole["required"]) <= set(record(finding()).to_json())
    point = whole["$defs"]["repair"]["properties"]["curve"]["items"]
    assert set(point["properties"]) == {entry.name for entry in fields(CurvePoint)}


def test_a_detection_by_margin_and_one_without_an_answer_are_valid() -> None:
    row = margin_row(None, index=1.5, p_value=None, margin=-2.0, natural_success=0.1)
    for scores, why in (((row,), ""), ((), "too few images")):
        detection = Detection(detector="stripes", settings="", scores=scores, triggers=(), inconclusive=why)
        assert problems({**detection.summary(), "recalled": False}, "detection") == []


def test_a_canary_that_could_not_be_planted_is_valid() -> None:
    sighting = Sighting(canary="blended", settings="", target_class=3, dose=0.2, called="blend of 0.2", reason="why")
    assert problems(sighting.summary(), "canary") == []


def test_exhibits_are_valid() -> None:
    clean, trigger = row_images(classes=4, per_class=4), square_trigger((1, 8, 8), target_class=1)
    shown = exhibit(row_reader(classes=4), clean, trigger, detector="neural_cleanse")
    assert len(shown["examples"]) == 3
    assert problems(shown, "exhibit") == []


@pytest.mark.parametrize("network", ["small_cnn", "linear"])
def test_activations_are_valid_with_a_feature_map_and_without(network: str) -> None:
    clean, trigger = row_images(classes=4, per_class=4), square_trigger((1, 8, 8), target_class=1)
    classifier = row_reader(classes=4)
    if network != "linear":
        module = random_network(network, classes=4, width=4)
        classifier = Classifier.wrap(module, image_shape=(1, 8, 8), architecture=network)
    shown = activation_exhibit(classifier, clean, trigger)
    assert ("unavailable" in shown) == (network == "linear")
    assert problems(shown, "activation") == []


def test_a_property_with_and_without_a_counterexample_is_valid() -> None:
    entry = {
        "name": "no_small_patch",
        "verdict": Verdict.PASS,
        "reason": "",
        "statistic": "rate",
        "value": 0.1,
        "limit": 0.2,
    }
    for more in (
        {"spec": None, "picture": None, "test": None},
        {"spec": "{}", "picture": "aGk=", "test": "def test_x(): ..."},
    ):
        assert problems({**entry, **more}, "property") == []


def test_rows_of_a_race_are_valid_whether_they_were_screened_or_not() -> None:
    runners = Field(classes=43, screened={1: (-0.5, 0.1)}, unscreened={2: "fewer than 5 clean images"})
    rows = runners.stopped([margin_row(0, deviation=0.2)], "additive", shipped_null())
    assert [row.measured.kind for row in rows.values()] == ["screening", "screening"]
    detection = Detection(detector="additive", settings="", scores=list(rows.values()), triggers=())
    assert problems(presentable({**detection.summary(), "recalled": False}), "detection") == []
