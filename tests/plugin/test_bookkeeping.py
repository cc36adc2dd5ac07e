"""What a run does once, however many items it has."""

from __future__ import annotations

import json

import pytest

from backdoor_audit import source
from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Record
from tests.subjects import toy
from tests.subjects.toy_runs import BASE, Run


class Carried:
    """Measures what the reports of items carry."""

    def __init__(self) -> None:
        self.sections: list[dict[str, object]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        carried = getattr(report, "backdoor_audit", None)
        if carried is not None:
            self.sections.append(carried["sections"])


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every time that clean images are hashed, how many."""
    found: list[int] = []
    hashes = CleanSet.fingerprint.fget

    def counted(clean: CleanSet) -> str:
        found.append(len(clean))
        assert hashes is not None
        return str(hashes(clean))

    monkeypatch.setattr(CleanSet, "fingerprint", property(counted))
    return found


def test_images_and_the_packages_source_are_hashed_once(project: pytest.Pytester, run: Run, hashed: list[int]) -> None:
    source.code_fingerprint.cache_clear()
    assert run("clean").ret == pytest.ExitCode.OK
    assert hashed == [20 * toy.CLASSES]
    assert source.code_fingerprint.cache_info().misses == 1


def test_every_part_of_the_record_travels_with_one_report(project: pytest.Pytester) -> None:
    carried = Carried()
    project.inline_run("--model=backdoored.safetensors", *BASE, plugins=[carried])
    parts = [
        (section, name)
        for sections in carried.sections
        for section, entries in sections.items()
        for name in (entries if section not in ("subject", "environment") and isinstance(entries, dict) else [""])
    ]
    assert len(parts) == len(set(parts))
    record = Record.read(project.path / "backdoor-audit-report" / "audit.json")
    assert {name for section, name in parts if section == "detections"} == {"neural_cleanse"}
    assert {name for section, name in parts if section == "exhibits"} == set(record.exhibits)
    assert ("subject", "") in parts
    whole = len(json.dumps([record.detections, record.properties, record.repairs, record.exhibits, record.activations]))
    assert len(json.dumps(carried.sections)) < whole + 6000
