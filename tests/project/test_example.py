"""The package that the page on extending shows: it is the one in its folder, and an audit uses it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backdoor_audit.catalogue import Catalogue
from backdoor_audit.gate import audit
from backdoor_audit.report.files import write_files
from tests.subjects import toy
from tests.subjects.packages import install
from tests.subjects.texts import DOCS, blocks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = DOCS / "examples" / "backdoor-audit-example"
MODULE = FOLDER / "backdoor_audit_example.py"


def test_the_page_shows_the_files_of_the_folder() -> None:
    shown = {block.language: block.text for block in blocks(DOCS / "extending.md")}
    assert shown["toml"].strip() == (FOLDER / "pyproject.toml").read_text().strip()
    assert shown["python"].strip() == MODULE.read_text().strip()


def test_an_audit_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    points = {
        group.removeprefix("backdoor_audit."): tuple(
            f"{name} = {value.partition(':')[2]}" for name, value in entries.items()
        )
        for group, entries in project["entry-points"].items()
    }
    packages = tmp_path / "packages"
    install(monkeypatch, packages, MODULE.read_text(), points, name=project["name"], version=project["version"])
    toy.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    record = audit(
        "backdoored.safetensors", data="images.npz", arch="toy:network", profile="quick", device="cpu", progress=False
    )
    assert [entry["name"] for entry in record.environment["plugins"]] == ["weight_clipping", "csv"]
    assert [entry.audit.partition("[")[2] for entry in record.advisory] == ["weight_clipping]"] * 3
    write_files(record, tmp_path, renderers=Catalogue.installed().renderers)
    assert "audit::test_anomaly_index[neural_cleanse-class_3],fail\n" in (tmp_path / "audit.csv").read_text()
