"""Detectors as a run calls them: a run knows none of them by name, so two of somebody else's stand in for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import Cost, Detection, Detector, Reference
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import shipped, shipped_limits
from backdoor_audit.run.effort import plan
from backdoor_audit.run.run import Run
from backdoor_audit.search.twin_recipe import LIBRARY, OWN_ARCHITECTURE
from backdoor_audit.store import Store
from tests.subjects import toy
from tests.subjects.detections import margin_row

_asked: list[tuple[str, int]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """Does a white last pixel take images away from their class?"""

    steps: int = 1

    name = "corner"
    rows = "source"
    needs_twins = False
    builds_on: ClassVar[Sequence[str]] = ()
    least_classes = 2
    blind_spots = ("all but one pixel",)

    def targets(self, num_classes: int) -> tuple[int | None, ...]:
        """Every class."""
        return tuple(range(num_classes))

    def with_options(self, options: AuditOptions) -> Corner:
        """With their steps."""
        return replace(self, steps=options.steps)

    def cost(self, image_shape: tuple[int, int, int], classes: int, images: int) -> Cost:
        """One pass for every image."""
        del image_shape, classes
        return Cost(images)

    def __call__(
        self,
        subject: Subject,
        *,
        reference: Reference,
        found: Sequence[Detection],
        generator: torch.Generator,
        progress: bool,
    ) -> Detection:
        """Stamp held-out images."""
        del reference, found, progress
        _asked.append((self.name, int(torch.randint(2**30, (1,), generator=generator))))
        stamped = subject.held_out.images.clone()
        stamped[:, :, -1, -1] = 1
        given, labels = subject.classifier.predict(stamped), subject.held_out.labels
        left = [given[(labels == label) & (given != label)] for label in range(subject.num_classes)]
        scores = [
            margin_row(
                label,
                success_val=len(gone) / int((labels == label).sum()),
                index=3.0 if len(gone) else 0.0,
                landing=int(gone.mode().values) if len(gone) else None,
            )
            for label, gone in enumerate(left)
        ]
        return Detection(detector=self.name, settings=repr(self), scores=scores, triggers=(), rows=self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo(Corner):
    """What the corner found, once more."""

    name = "echo"
    builds_on: ClassVar[Sequence[str]] = ("corner",)

    def __call__(self, subject: Subject, *, found: Sequence[Detection], **_rest: Any) -> Detection:
        """The same."""
        return replace(found[0], detector=self.name, settings=repr(self))


def run_of(folder: Path, *detectors: Detector, kind: type[nn.Sequential] = nn.Sequential, limit: float = 2.0) -> Run:
    network = kind(nn.Flatten(), nn.Linear(64, toy.CLASSES))
    network.load_state_dict(toy.weights(backdoored=True))
    options = AuditOptions(device="cpu", profile="quick", repairs="flagged")
    suite = shipped().with_limits({"anomaly_index": limit})
    run = Run(options, Store(folder), suite, module=network, given_images=CleanSet.of(*toy.images()))
    vars(run.searches)["detectors"] = tuple(entry.with_options(options) for entry in detectors)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    _asked.clear()
    return run_of(tmp_path, Corner(), Echo())


def test_a_detector_of_somebody_else_has_items_of_its_own_named_after_what_its_rows_are_about(run: Run) -> None:
    assert run.searches.items[2].node_id == "audit::test_anomaly_index[corner-from_class_2]"
    assert [item.asked_of for item in run.searches.items] == ["corner"] * toy.CLASSES + ["echo"] * toy.CLASSES


@pytest.mark.parametrize("name", ["corner", "echo"])
def test_its_rows_are_judged_and_what_builds_on_it_has_its_answer(run: Run, name: str) -> None:
    for label in range(toy.CLASSES):
        finding = run.searches.detection(name).judge(label, shipped_limits())
        assert finding.verdict is (Verdict.PASS if label == toy.TARGET else Verdict.FAIL)
        assert finding.target_class == (None if label == toy.TARGET else toy.TARGET)
        assert finding.settings == f"{name.title()}(steps=100)"


def test_what_it_found_is_kept_and_what_builds_on_it_is_as_old(run: Run, tmp_path: Path) -> None:
    first = run.searches.detection("echo")
    again = run_of(tmp_path, Corner(), Echo())
    assert again.searches.detection("echo").summary() == first.summary()
    assert (run.searches.recalled, again.searches.recalled) == (set(), {"corner", "echo"})
    assert len(_asked) == 1


class Sequential(nn.Sequential):
    """Of the same name, weights and answers to clean images as torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sends images with a white first pixel to class 0."""
        scores: torch.Tensor = super().forward(x)
        return scores + 1e3 * (x[:, :1, 0, 0] > 0.99) * torch.eye(toy.CLASSES)[0]


def test_what_was_found_in_a_network_is_not_that_of_one_with_the_same_tensors_and_other_code(
    run: Run, tmp_path: Path
) -> None:
    """Its answers to clean images are the same as well, as they are where code hides a trigger."""
    other = run_of(tmp_path, Corner(), kind=Sequential)
    assert run.inputs.fingerprint == other.inputs.fingerprint
    assert run.inputs.parts["behaviour"] == other.inputs.parts["behaviour"]
    run.searches.detection("corner")
    other.searches.detection("corner")
    assert other.searches.recalled == set()
    assert run.reference.twin_parts(OWN_ARCHITECTURE) != other.reference.twin_parts(OWN_ARCHITECTURE)
    assert run.reference.twin_parts(LIBRARY) == other.reference.twin_parts(LIBRARY)


def test_what_was_searched_again_near_one_limit_is_not_taken_by_another(run: Run, tmp_path: Path) -> None:
    run.searches.detection("corner")
    other = run_of(tmp_path, Corner(), limit=3.0)
    other.searches.detection("corner")
    assert other.searches.recalled == set()


def test_its_random_numbers_depend_on_its_name_and_the_seed_alone(run: Run, tmp_path: Path) -> None:
    run.searches.detection("corner")
    run_of(tmp_path / "other", Corner()).searches.detection("corner")
    assert _asked[0] == _asked[1]


def test_what_it_costs_is_planned_and_what_costs_nothing_is_not(run: Run) -> None:
    run.check()
    made = plan(run, run.searches.items)
    assert made is not None
    assert [(piece.name, piece.passes) for piece in made.pieces] == [
        ("the search of corner", len(run.inputs.halves[0]))
    ]


def test_with_too_few_classes_it_is_not_asked(tmp_path: Path) -> None:
    _asked.clear()

    @dataclass(frozen=True, kw_only=True)
    class Many(Corner):
        least_classes = toy.CLASSES + 1

    detection = run_of(tmp_path, Many()).searches.detection("corner")
    assert detection.inconclusive.startswith(
        f"{toy.CLASSES} classes: an outlier among them can be told from 9 classes on"
    )
    assert (detection.rows, list(detection.blind_spots)) == ("source", ["all but one pixel"])
    assert not _asked
