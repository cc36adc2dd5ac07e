"""A record whose every text was written by somebody who wants it obeyed: nothing that is drawn from it is."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from backdoor_audit.baseline import Baseline, baseline_of, difference
from backdoor_audit.cli import main
from backdoor_audit.evidence import Finding, Record
from backdoor_audit.presentable import LONGEST, plain
from backdoor_audit.report.comparison import page as difference_page
from backdoor_audit.report.comparison_table import lines
from backdoor_audit.report.extras import verdict_banner
from backdoor_audit.report.files import write_files
from backdoor_audit.report.junit import case_properties, suite_properties
from backdoor_audit.report.markdown import append_step_summary
from backdoor_audit.report.reproduction import reproduction_command
from backdoor_audit.report.terminal import summary_lines
from tests.subjects.parsed import Page
from tests.subjects.whole_records import whole_record

HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07 \x00\x9b2J\r\n::error::forged\n ##[error]forged ##vso[task.complete] \u202eleft "
    "\ud800 \ufffe $x_{$ \\frac ]]> <script>alert(1)</script> \u2028::warning::"
)
_KEPT = {
    "verdict",
    "statistic",
    "rows",
    "label",
    "model_fingerprint",
    "data_fingerprint",
}  # words, of which few are allowed
_PICTURES = {"image", "stamped", "overlay", "picture", "pictures"}


def hostile(value: Any, text: str, key: str = "") -> Any:
    """The same content with ``text`` in place of every text, and in every key that is one."""
    if isinstance(value, str):
        return value if key in _KEPT or key in _PICTURES else text
    if isinstance(value, dict):
        free = key in ("exhibits", "activations", "skipped", "errors", "artifacts", "details", "environment")
        return {
            f"{text}{name}" if free else name: hostile(entry, text, key if key in _PICTURES else name)
            for name, entry in value.items()
        }
    return [hostile(entry, text, key) for entry in value] if isinstance(value, list) else value


def hostile_content(text: str) -> dict[str, Any]:
    whole = whole_record(
        3,
        shape=(1, 8, 8),
        errors={"audit::a": "broke"},
        not_run=["audit::b"],
    )
    stored = plain({**whole.to_json(), "environment": {**whole.environment, "more": "x"}})
    changed: dict[str, Any] = hostile(stored, text)
    for finding, known in zip(changed["findings"], stored["findings"], strict=True):
        finding["audit"] = f"{known['audit']}{text}"
    changed["settings"].update(profile="quick", inconclusive="fail")
    for name in ("backdoor_audit", "torch", "python", "device", "device_name"):
        changed["environment"][name] = text
    return changed


def record_in_memory(content: dict[str, Any]) -> Record:
    """What a run builds, without a file between."""
    stored = {key: value for key, value in content.items() if key in Record.__dataclass_fields__}
    return Record(**{**stored, "findings": [Finding.from_json(finding) for finding in content["findings"]]})


def outputs(record: Record, folder: Path) -> Iterator[tuple[str, str]]:
    """Everything that is drawn from a record, by name."""
    for line, _ in summary_lines(record):
        assert "\n" not in line
        yield "terminal", line
    written, failed = write_files(record, folder)
    assert failed == ()
    for file in written:
        yield file.name, file.read_bytes().decode("utf-8")
    summary = append_step_summary(record, {"GITHUB_STEP_SUMMARY": str(folder / "summary.md")})
    assert summary is not None
    yield "summary", summary.read_bytes().decode("utf-8")
    pairs = [*suite_properties(record), *(pair for finding in record.findings for pair in case_properties(finding))]
    yield from (("junit", part) for pair in pairs for part in pair if isinstance(part, str))
    yield "pytest-html", verdict_banner(record)
    yield "command", reproduction_command(record)
    signature = baseline_of(record)
    signature.write(folder / "baseline.json")
    after = replace(Baseline.read(folder / "baseline.json"), findings={})
    found = difference(signature, after)
    yield from (("compare", line) for line in lines(signature, after, found))
    yield "compare page", difference_page(signature, after, found)


def obeyed(text: str) -> list[str]:
    """What a terminal, a page or a CI runner would obey."""
    controls = {
        character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
    } - {"\n", "\u200b"}  # the Markdown puts the second one in, to break links
    commands = [
        line for line in text.splitlines() if line.lstrip().startswith("::") or "##[" in line or "##vso[" in line
    ]
    return [*map(repr, controls), *commands]


@pytest.mark.parametrize("source", ["file", "memory"])
def test_nothing_that_is_drawn_from_a_hostile_record_is_obeyed(source: str, tmp_path: Path) -> None:
    content = hostile_content(HOSTILE)
    if source == "file":
        (tmp_path / "in.json").write_text(json.dumps(content))
    record = Record.read(tmp_path / "in.json") if source == "file" else record_in_memory(content)
    shown = list(outputs(record, tmp_path))
    assert [(name, found) for name, text in shown if (found := obeyed(text))] == []
    told = {name for name, text in shown if r"\x1b[31mred" in text.replace("\\\\", "\\").replace("\\[", "[")}
    assert told >= {"terminal", "audit.json", "audit.html", "audit.md", "audit.sarif", "summary", "junit", "compare"}
    drawn = Page((tmp_path / "audit.html").read_text(encoding="utf-8"))
    assert len(drawn.all("script")) == 1
    charts = (tmp_path / "audit.html").read_text(encoding="utf-8").split("<svg")[1:]
    assert len(charts) >= 3
    for chart in charts:
        ElementTree.fromstring(f"<svg{chart.partition('</svg>')[0]}</svg>")


def test_the_commands_say_it_in_lines_that_are_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = tmp_path / "a\x1b[31m.json", tmp_path / "b.json"
    file.write_text(json.dumps(hostile_content(HOSTILE)))
    other.write_text(json.dumps({**hostile_content(HOSTILE), "findings": []}))
    assert main(["report", str(file), str(other), "--out", str(tmp_path / "p\x1b.html")]) == 0
    assert main(["export", str(file), "--markdown", "-", "--sarif", str(tmp_path / "a.sarif")]) == 0
    assert main(["compare", str(file), str(other)]) == 1
    other.write_text(json.dumps({**hostile_content(HOSTILE), f"{HOSTILE}key": 1}))
    assert main(["report", str(other), "--out", str(tmp_path / "q.html")]) == 4
    with pytest.raises(SystemExit):
        main(["report", f"--{HOSTILE}"])
    told = capsys.readouterr()
    assert obeyed(told.out) == []
    assert obeyed(told.err) == []


def test_very_long_texts_are_cut_and_pictures_and_tests_are_not(tmp_path: Path) -> None:
    content = hostile_content("x" * 20_000)
    content["properties"][0]["test"] = "def test_patch():\n    # ::error::\n    assert " + "1 + " * 10_000 + "1\n"
    content["properties"][0]["spec"] = '{"kind": "patch"}'
    content["subject"]["class_names"] = ["sign"] * 3
    (tmp_path / "in.json").write_text(json.dumps(content))
    record = Record.read(tmp_path / "in.json")
    assert "x ... (20000 characters) ... x" in record.findings[0].reason
    assert LONGEST - 2 <= len(record.findings[0].reason) <= LONGEST
    assert len(record.exhibits) == len(content["exhibits"])
    assert (
        record.exhibits[next(iter(record.exhibits))]["pictures"] == next(iter(content["exhibits"].values()))["pictures"]
    )
    assert record.properties[0]["test"] == content["properties"][0]["test"].replace("::error", ": :error")
    assert [name for name, text in outputs(record, tmp_path) if "x" * LONGEST in text] == []


def test_ordinary_texts_and_paths_stay_as_they_are() -> None:
    whole = whole_record(3, names=["Stra\u00dfe 30 km/h", "\u732b", "a|b <c> `d` $e$"], shape=(1, 8, 8))
    assert whole.subject["class_names"] == ["Stra\u00dfe 30 km/h", "\u732b", "a|b <c> `d` $e$"]
    settings = {"model": "models/r\u00e9sum\u00e9 v2 (final).pt", "data": "../C:/im:ages::x", "mean": (0.5,)}
    record = replace(whole, settings=settings)
    assert record.settings == settings
    assert reproduction_command(record).startswith(
        "pytest '--model=models/r\u00e9sum\u00e9 v2 (final).pt' --data=../C:/im:ages::x"
    )
    assert asdict(replace(record.findings[0]))["details"] == record.findings[0].details
