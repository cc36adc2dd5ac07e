"""``backdoor-audit export``: files for other programs out of one record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backdoor_audit.cli import main
from backdoor_audit.report.html import page
from backdoor_audit.report.markdown import markdown
from backdoor_audit.report.renderers import RENDERERS
from backdoor_audit.report.sarif import sarif
from backdoor_audit.report.schema import schema
from tests.subjects.packages import install
from tests.subjects.whole_records import whole_record

SUBJECT = whole_record(2, shape=(1, 8, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SUBJECT.write(tmp_path / "audit.json")
    return tmp_path


def export(folder: Path, *arguments: str) -> int:
    return main(["export", str(folder / "audit.json"), *arguments])


def test_all_forms_are_written_at_once(folder: Path) -> None:
    names = {"sarif": "a.sarif", "markdown": "a.md", "page": "a.html", "schema": "a.schema.json"}
    assert export(folder, *(f"--{kind}={folder / name}" for kind, name in names.items())) == 0
    assert json.loads((folder / "a.sarif").read_text()) == sarif(SUBJECT)
    assert (folder / "a.md").read_text(encoding="utf-8") == markdown(SUBJECT)
    assert (folder / "a.html").read_text(encoding="utf-8") == page({"audit.json": SUBJECT})
    assert json.loads((folder / "a.schema.json").read_text()) == schema()


def test_the_help_names_every_renderer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert [entry.name for entry in RENDERERS if f"--{entry.name} FILE" not in told] == []


DRAWN = """
from backdoor_audit.report.renderers import Renderer
def draw(record, **_):
    return {answer}
lines = Renderer("lines", "audit.txt", draw)
"""


def test_a_renderer_of_another_package_is_an_option_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, folder, DRAWN.format(answer="record.verdict.value"), {"renderers": ("lines = lines",)})
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "write what example-parts 1.2 makes of it here" in " ".join(capsys.readouterr().out.split())
    assert export(folder, "--lines=-", "--markdown=-") == 0
    assert capsys.readouterr().out == SUBJECT.verdict.value + markdown(SUBJECT)
    assert export(folder, "--lines=-", "--audit-plugins=off") == 4
    assert "--audit-plugins=off leaves out" in capsys.readouterr().err
    assert export(folder, "--lines=-", "--audit-plugins=perhaps") == 4
    assert "must be one of on, off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "said"),
    [("1 / 0", "export: --lines: ZeroDivisionError: "), ("3", "export: --lines: TypeError: it gave a int")],
)
def test_a_renderer_of_another_package_that_fails_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str, said: str
) -> None:
    install(monkeypatch, folder, DRAWN.format(answer=answer), {"renderers": ("lines = lines",)})
    assert export(folder, f"--lines={folder / 'a.txt'}") == 4
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (folder / "a.txt").exists()


def test_an_export_imports_no_other_package_that_it_does_not_need(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, folder, "raise SystemExit(9)", {"renderers": ("lines = lines", "help = lines")})
    assert export(folder, "--markdown=-") == 0
    assert capsys.readouterr().out == markdown(SUBJECT)
    assert export(folder, "--lines=-") == 4
    assert "example-parts 1.2: entry point help = example_parts:lines" in capsys.readouterr().err


def test_a_dash_is_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(folder, "--markdown=-") == 0
    assert capsys.readouterr().out == markdown(SUBJECT)
    assert not (folder / "-").exists()


def test_the_schema_needs_no_record(tmp_path: Path) -> None:
    assert main(["export", f"--schema={tmp_path / 's.json'}"]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == schema()


def test_a_record_is_not_replaced_by_what_is_drawn_from_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = folder / "audit.json"
    before = record.read_bytes()
    linked = folder / "link.md"
    linked.symlink_to(record)
    for more in ((f"--markdown={record}",), (f"--page={linked}",), (f"--sarif={folder}/x", f"--markdown={folder}/./x")):
        assert export(folder, *more, "--force") == 4
        assert "is read, or written as well, by this command; choose another name" in capsys.readouterr().err
    assert record.read_bytes() == before


def test_a_file_is_replaced_only_by_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.md").write_text("mine")
    assert export(folder, f"--markdown={folder / 'a.md'}") == 4
    assert (folder / "a.md").read_text() == "mine"
    assert "pass --force to replace it" in capsys.readouterr().err
    assert export(folder, f"--markdown={folder / 'a.md'}", "--force") == 0
    assert (folder / "a.md").read_text(encoding="utf-8") == markdown(SUBJECT)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, (), "nothing to write; pass --page=FILE, --markdown=FILE, --sarif=FILE"),
        (None, ("--sarif={folder}/none/a.sarif",), "is not a folder; make it first"),
        (None, ("--sarif={folder}", "--force"), "cannot be written"),
        ("{", ("--sarif={folder}/a.sarif",), "not a readable JSON file"),
        ("[]", ("--sarif={folder}/a.sarif",), "schema version 'list'"),
        ('{"schema_version": 99}', ("--sarif={folder}/a.sarif",), "schema version 99"),
        ('{"schema_version": 1}', ("--sarif={folder}/a.sarif",), "a key is missing"),
        ("broken subject", ("--sarif={folder}/a.sarif",), "not the content of an audit (subject: 3 where an object"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(
    content: str | None, arguments: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content == "broken subject":
        content = json.dumps({**SUBJECT.to_json(), "subject": 3})
    if content is not None:
        (folder / "audit.json").write_text(content)
    assert export(folder, *(argument.format(folder=folder) for argument in arguments)) == 4
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert [file.name for file in folder.iterdir()] == ["audit.json"]


def test_a_record_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"--sarif={tmp_path / 'a.sarif'}"]) == 4
    assert "no record; give the audit.json of a run" in capsys.readouterr().err
