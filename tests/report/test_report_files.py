"""What a run leaves in its folder, whatever fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdoor_audit.evidence import Record
from backdoor_audit.report import renderers
from backdoor_audit.report.files import write_files
from backdoor_audit.report.paths import PAGE, RECORD, SARIF
from backdoor_audit.report.renderers import FILES, RENDERERS, Renderer
from tests.subjects.records import finding, record
from tests.subjects.whole_records import whole_record

SMALL = whole_record(2, shape=(1, 8, 8))


def test_the_record_and_its_renderings_are_written(tmp_path: Path) -> None:
    written, failed = write_files(SMALL, tmp_path)
    assert [file.name for file in written] == list(FILES)
    assert failed == ()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    assert Record.read(tmp_path / RECORD).verdict is SMALL.verdict


@pytest.mark.parametrize("error", [ValueError("two\nlines"), RecursionError("deep"), MemoryError(), SystemExit(0)])
def test_a_rendering_that_fails_is_named_and_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(renderers, "page", fails)
    (tmp_path / PAGE).write_text("another model passes")
    written, (failed,) = write_files(SMALL, tmp_path)
    assert failed.startswith(f"{PAGE} could not be written ({type(error).__name__}")
    assert "\n" not in failed
    assert {file.name for file in written} == set(FILES) - {PAGE} == {file.name for file in tmp_path.iterdir()}


def test_a_record_with_other_content_still_leaves_what_can_be_drawn(tmp_path: Path) -> None:
    written, failed = write_files(record(finding()), tmp_path)  # its detections lack what the page shows
    assert [file.name for file in written if file.name in (RECORD, SARIF)] == [RECORD, SARIF]
    assert [told.partition(" ")[0] for told in failed] == [PAGE]
    assert "a key is missing: " in failed[0]


def test_a_record_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_files(SMALL, tmp_path / "absent")
    (tmp_path / RECORD).mkdir()
    with pytest.raises(IsADirectoryError):
        write_files(SMALL, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [RECORD]


def test_names_and_files_of_renderers_are_unique_and_lie_in_the_folder() -> None:
    assert len({entry.name for entry in RENDERERS}) == len(RENDERERS)
    assert len(set(FILES)) == len(RENDERERS) + 1
    assert all(Path(name).name == name and name.startswith("audit.") for name in FILES)


def test_a_further_renderer_adds_its_file_and_touches_no_other(tmp_path: Path) -> None:
    lines = Renderer("lines", "audit.txt", lambda record, **_: f"{record.verdict.value}\n")
    written, failed = write_files(SMALL, tmp_path, renderers=(*RENDERERS, lines))
    assert ([file.name for file in written], failed) == ([*FILES, "audit.txt"], ())
    assert (tmp_path / "audit.txt").read_text() == f"{SMALL.verdict.value}\n"
