"""What a run compares with: twins, or where none can be trained the classes of the model among themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import DETECTORS
from backdoor_audit.options import AuditOptions
from backdoor_audit.properties import PROPERTIES
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run.run import Run
from backdoor_audit.search.anomaly import shipped_null
from backdoor_audit.store import Store
from tests.subjects import row_images, row_reader


def few_of_one_class(count: int) -> CleanSet:
    """So many images of each class and three of class 5: too few of it for any twin."""
    images = row_images(per_class=count)
    keep = (images.labels != 5) | (torch.arange(len(images)) % count < 3)
    return CleanSet(images.images[keep], images.labels[keep])


def run_of(folder: Path, images: CleanSet) -> Run:
    run = Run(AuditOptions(), Store(folder), shipped(), module=row_reader().module, given_images=images)
    run.check()
    return run


def test_classes_stand_beside_each_other_where_no_twin_can_be_trained(tmp_path: Path) -> None:
    reference = run_of(tmp_path, few_of_one_class(40)).reference
    assert (reference.twins.kind, reference.twins.classifiers) == ("alone_plain", ())
    assert (reference.nothing, reference.missing) == ("", "")
    assert reference.null == shipped_null("alone_plain")
    assert reference.natural(DETECTORS[1]) is None  # type: ignore[arg-type]
    assert "5 has 3: the classes stand beside each other alone" in reference.twins.described.replace(")", "")


def test_too_few_images_for_any_search_leave_nothing_to_compare(tmp_path: Path) -> None:
    run = run_of(tmp_path, few_of_one_class(20))
    assert run.reference.nothing == run.reference.missing == run.reference.twins.reason
    assert "at least 200 clean images, got 143" in run.reference.missing
    assert run.searches.detection("smooth").inconclusive == run.reference.missing


def test_without_twins_nothing_is_natural_to_a_property(tmp_path: Path) -> None:
    run = run_of(tmp_path, few_of_one_class(40))
    assert [run.properties.natural_rate(claim, 0) for claim in PROPERTIES] == [0.0] * len(PROPERTIES)


def test_the_null_of_a_file_must_have_been_measured_without_twins_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, few_of_one_class(40))
    monkeypatch.setitem(vars(run.reference), "own_null", shipped_null("library"))
    assert (
        "was measured beside twins of the kind library, this model has twins of the kind alone_plain"
        in run.reference.missing
    )
