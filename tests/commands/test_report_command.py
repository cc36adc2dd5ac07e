"""``backdoor-audit report``: pages from records alone, and one line for anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backdoor_audit.cli import main
from tests.subjects.parsed import Page
from tests.subjects.whole_records import whole_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, infected in (("bad", (1,)), ("good", ())):
        (tmp_path / name).mkdir()
        record = whole_record(
            3, infected=infected, shape=(1, 8, 8), subject={**whole_record(3).subject, "model": f"{name}.pt"}
        )
        record.write(tmp_path / name / "audit.json")
    return tmp_path


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_a_record_becomes_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "page.html"
    assert report(folder / "bad" / "audit.json", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "fail: audit.json" in printed
    assert f"written: {out} (" in printed
    text = out.read_text(encoding="utf-8")
    assert "hidden trigger found for class 1" in Page(text).by_id("verdict").text
    assert str(folder) not in text


def test_several_records_become_one_page_and_are_called_by_their_folders(folder: Path) -> None:
    out = folder / "page.html"
    other = json.loads((folder / "good" / "audit.json").read_text())
    other["subject"]["model_fingerprint"] = "9" * 64
    (folder / "good" / "audit.json").write_text(json.dumps(other))
    assert report(folder / "good" / "audit.json", folder / "bad" / "audit.json", "--out", out) == 0
    overview = Page(out.read_text(encoding="utf-8")).by_id("overview").text
    assert "bad/audit.json" in overview
    assert "good/audit.json" in overview


def test_shards_of_one_audit_become_one_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [folder / name / "audit.json" for name in ("bad", "good")]
    assert report(*files, "--out", folder / "page.html") == 0
    assert "fail: bad/audit.json, good/audit.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "not a readable JSON file"),
        ("{", "not a readable JSON file"),
        ("[]", "schema version 'list'"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "a key is missing"),
        ({"detections": [{}]}, "not the content of an audit"),
        ({"seconds": "long"}, "not the content of an audit"),
        ({"exhibits": {"a": 1}}, "not the content of an audit"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], content: object, told: str
) -> None:
    file, out = folder / "audit.json", folder / "page.html"
    if isinstance(content, dict):
        stored = json.loads((folder / "bad" / "audit.json").read_text())
        content = json.dumps({**stored, **content})
    if content is not None:
        file.write_text(str(content))
    assert report(file, "--out", out) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "audit.json" in line
    assert told in line
    assert not out.exists()


def test_shards_with_other_content_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [folder / name / "audit.json" for name in ("bad", "good")]
    stored = json.loads(files[1].read_text())
    del stored["detections"][0]["blind_spots"]
    files[1].write_text(json.dumps(stored))
    assert report(*files, "--out", folder / "page.html") == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "bad/audit.json, good/audit.json: not the content of an audit (a key is missing: detections[0].blind_spots)"
        in line
    )


def test_a_page_that_exists_is_kept_unless_it_may_be_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "page.html"
    out.write_text("mine")
    assert report(folder / "bad" / "audit.json", "--out", out) == 4
    assert "pass --force to replace it" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert report(folder / "bad" / "audit.json", "--out", out, "--force") == 0
    assert out.read_text() != "mine"


def test_a_page_that_cannot_be_written_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "taken"
    out.mkdir()
    assert report(folder / "bad" / "audit.json", "--out", out, "--force") == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--out: {out} cannot be written" in line
