"""What a run hands out to its record: every entry once, and no more pictures than a page can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import Detection
from backdoor_audit.item import Item, Row
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import Suite, shipped, shipped_limits
from backdoor_audit.run import pictures as pictures_module
from backdoor_audit.run.run import Run
from backdoor_audit.store import Store
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects import toy
from tests.subjects.detections import margin_row


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the toy whose one detector has flagged every class, the last ones most."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, toy.CLASSES))
    network.load_state_dict(toy.weights(backdoored=False))
    made = Run(
        AuditOptions(device="cpu", profile="quick"),
        Store(tmp_path),
        shipped(),
        module=network,
        given_images=CleanSet.of(*toy.images()),
    )
    scores = [margin_row(target, index=3.0 + target) for target in range(toy.CLASSES)]
    triggers = [Trigger(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), target) for target in range(toy.CLASSES)]
    detection = Detection(detector="made_up", settings="", scores=scores, triggers=triggers)
    made.searches.done.once("made_up", lambda: detection)
    return made


def test_what_was_taken_is_not_given_again(run: Run) -> None:
    first, second = run.take_sections(), run.take_sections()
    assert set(first["detections"]) == {"made_up"}
    assert first["subject"]["num_classes"] == toy.CLASSES
    assert {name: entries for name, entries in second.items() if entries} == {}
    assert set(run.sections()["detections"]) == {"made_up"}  # all of it, for whoever asks for all


def test_of_a_questions_rows_those_that_are_new_or_have_changed_are_given(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, dict[str, float]] = {"left": {"share": 0.5}}
    monkeypatch.setattr(Suite, "sections", lambda *_: {"sides": rows})
    assert run.take_sections()["sections"] == {"sides": {"left": {"share": 0.5}}}
    assert "sections" not in run.take_sections()
    rows["right"] = {"share": 0.25}
    assert run.take_sections()["sections"] == {"sides": {"right": {"share": 0.25}}}
    rows["left"] = {"share": 1.0}
    assert run.take_sections()["sections"] == {"sides": {"left": {"share": 1.0}}}
    assert run.sections()["sections"] == {"sides": rows}


@pytest.mark.parametrize(("most_classes", "shown"), [(100, set(range(toy.CLASSES))), (toy.CLASSES - 1, {5, 6, 7})])
def test_of_many_classes_those_that_stand_out_most_are_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, most_classes: int, shown: set[int]
) -> None:
    monkeypatch.setattr(pictures_module, "_SHOWN_CLASSES", most_classes)
    monkeypatch.setattr(pictures_module, "_MOST_SHOWN", 3)
    drawn: list[int] = []

    def noted(_classifier: Any, _val: Any, trigger: Trigger, **_rest: Any) -> dict[str, Any]:
        drawn.append(trigger.target_class)
        return {}

    monkeypatch.setattr(pictures_module, "exhibit", noted)
    for target in range(toy.CLASSES):
        finding = run.searches.detection("made_up").judge(target, shipped_limits())
        run.pictures.add_trigger(finding.of(Item("anomaly_index", "made_up", Row(target))))
    assert set(drawn) == shown
