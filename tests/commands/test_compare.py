"""``backdoor-audit compare``: exit codes, the table, and the page."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.baseline import baseline_of
from backdoor_audit.cli import main
from backdoor_audit.evidence import Record
from tests.subjects.baselines import CLEAN, finding_of, index_of, record_of, with_backdoor

SCORES = {"clean_accuracy": 0.91, "attack_success_rate": 0.05, "robust_accuracy": 0.8}


def repaired(rate: float, **values: Any) -> dict[str, Any]:
    """What a record keeps of one repair that left this success rate."""
    after = {**SCORES, "attack_success_rate": rate}
    curve = [{"prune_rate": share, "threshold": 0.1, "scores": after} for share in (0.0, 0.5)]
    return {"method": "anp", "target_class": 2, "before": SCORES, "after": after, "curve": curve, **values}


def written(folder: Path, **records: Record) -> list[str]:
    """The records as files, by their name."""
    for name, record in records.items():
        record.write(folder / f"{name}.json")
    return [str(folder / f"{name}.json") for name in records]


class Words(HTMLParser):
    """The text of a page, and the elements that a browser would act on."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.links = "", [], []  # type: ignore[var-annotated]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_two_alike_end_with_zero_and_a_backdoor_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path, clean=record_of(), again=record_of(accuracy=0.925), bad=with_backdoor())
    assert main(["compare", *files[:2]]) == 0
    assert "0 worse, 0 better, 5 neither beyond the noise" in capsys.readouterr().out
    assert main(["compare", files[0], files[2]]) == 1
    shown = capsys.readouterr().out
    assert "class 2 (bag), patch_scan: anomaly index 0.90 -> 6.00 (noise 1.80), pass -> fail" in shown
    assert main(["compare", files[2], files[0]]) == 0
    assert "0 worse, 1 better" in capsys.readouterr().out


@pytest.mark.parametrize(
    "left",
    [{"errors": {"audit": "the model changed while it was audited"}}, {"not_run": ["audit::test_property[no_small]"]}],
)
def test_a_run_that_was_not_whole_is_no_better_than_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: dict[str, Any]
) -> None:
    files = written(tmp_path, whole=record_of(), broken=replace(record_of(), **left))
    assert main(["compare", *files]) == 1
    (name,) = next(iter(left.values()))
    assert (
        capsys.readouterr().out.splitlines()[-1].endswith(f"1 items broke or were not run, first {name}; exit code 1")
    )
    assert main(["compare", files[1], files[0]]) == 0


def test_the_table_has_verdicts_accuracy_every_index_and_repairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = record_of(None, index_of("source_scan-from_class_1", 0.25), repairs=[repaired(0.05)])
    after = record_of(
        {**CLEAN, "patch_scan-class_2": 6.0}, index_of("source_scan-from_class_1", 0.5), repairs=[repaired(0.4)]
    )
    main(["compare", *written(tmp_path, before=before, after=after)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["verdict", "pass", "fail"] in rows
    assert ["clean", "accuracy", "0.930", "0.930"] in rows
    assert ["patch_scan", "source_scan"] in rows
    assert ["class", "1", "(shoe)", "-0.70", "-0.70", "0.25", "0.50"] in rows
    assert ["class", "2", "(bag)", "0.90", "6.00!"] in rows
    assert ["all", "to", "all", "-1.00", "-1.00"] in rows
    assert ["anp-class_2", "0.050", "->", "0.400", "0.910", "->", "0.910"] in rows


def test_a_baseline_may_stand_on_either_side(tmp_path: Path) -> None:
    (file,) = written(tmp_path, bad=with_backdoor())
    baseline_of(record_of()).write(tmp_path / "baseline.json")
    assert main(["compare", str(tmp_path / "baseline.json"), file]) == 1
    assert main(["compare", file, str(tmp_path / "baseline.json")]) == 0


def test_other_images_end_with_four_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path, a=record_of(), b=record_of(subject={"data_fingerprint": "e" * 64}))
    assert main(["compare", *files]) == 4
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"backdoor-audit: {files[0]} cannot be compared with this run: other clean images")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[1]", '{"schema_version": 1, "acceptances": []}', '{"schema_version": 9}'])
def test_a_file_that_is_neither_ends_with_four_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (file,) = written(tmp_path, a=record_of())
    (tmp_path / "b.json").write_text(content)
    assert main(["compare", file, str(tmp_path / "b.json")]) == 4
    told = capsys.readouterr().err
    assert str(tmp_path / "b.json") in told
    assert told.count("\n") == 1
    assert main(["compare", file, str(tmp_path / "missing.json")]) == 4


def test_a_page_is_not_replaced_without_force(tmp_path: Path) -> None:
    files = written(tmp_path, a=record_of(), b=record_of())
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert main(["compare", *files, "--out", str(page)]) == 4
    assert page.read_text() == "mine"
    assert main(["compare", *files, "--out", str(page), "--force"]) == 0
    assert page.read_text() != "mine"


def test_the_page_draws_every_index_and_names_what_got_worse(tmp_path: Path) -> None:
    records = {
        name: record_of({**CLEAN, "patch_scan-class_2": index}, repairs=[repaired(rate)])
        for name, index, rate in (("a", 0.9, 0.05), ("b", 6.0, 0.4))
    }
    page = tmp_path / "page.html"
    assert main(["compare", *written(tmp_path, **records), "--out", str(page)]) == 1
    found = Words(page.read_text(encoding="utf-8"))
    assert "class 2 (bag), patch_scan: anomaly index 0.90 \u2192 6.00 (noise 1.80), pass \u2192 fail" in found.text
    detectors = {item.partition("-")[0] for item in CLEAN}
    assert found.tags.count("svg") == 2 + len(detectors)  # all indices, each detector's profile, the one repair's curve
    assert "Profile, seed, of both runs" in found.text
    assert found.text.count("patch_scan: anomaly index") >= 1 + len(CLEAN)  # the list, and a title on every mark
    assert "anp-class_2" in found.text
    assert {link for link in found.links if not link.startswith("#")} == {"data:,"}
    assert "script" not in found.tags


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    files = written(tmp_path, a=record_of(), b=with_backdoor())
    for name in ("first.html", "second.html"):
        main(["compare", *files, "--out", str(tmp_path / name)])
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_names_of_strangers_are_text_on_the_page_and_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = {"class_names": ["<script>alert(1)</script>", "$x^2$", "\x1b[2Jbag"], "model": "<b>m</b>.pt"}
    bad = dict.fromkeys(CLEAN, 6.0)
    page = tmp_path / "page.html"
    files = written(tmp_path, a=record_of(subject=subject), b=record_of(bad, subject=subject))
    assert main(["compare", *files, "--out", str(page)]) == 1
    found = Words(page.read_text(encoding="utf-8"))
    assert "script" not in found.tags
    assert "b" not in found.tags
    assert "<script>alert(1)</script>" in found.text
    assert "class 1 ($x^2$)" in found.text
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2Jbag" in shown


def test_runs_without_an_index_or_a_repair_are_compared_by_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = finding_of("test_property[no_small_patch]", "success_rate", 0.1)
    before = record_of({}, checked)
    after = record_of({}, replace(checked, verdict=with_backdoor().verdict))
    page = tmp_path / "page.html"
    assert main(["compare", *written(tmp_path, a=before, b=after), "--out", str(page)]) == 1
    assert "anomaly index" not in capsys.readouterr().out
    assert "svg" not in Words(page.read_text(encoding="utf-8")).tags


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"subject": {"images": [1]}}, "subject.images: a list of 1 where a whole number"),
        ({"subject": {"num_classes": 0}}, "data.num_classes: 0 where a whole number of at least 1"),
        ({"subject": {"class_names": 3}}, "subject.class_names: 3 where a list belongs"),
        ({"detections": [{}]}, "a key is missing: detections[0].detector"),
        (
            {"repairs": [{"method": "anp", "target_class": 1, "after": SCORES, "before": SCORES, "curve": [{}]}]},
            "a key is missing: repairs[0].curve[0].prune_rate",
        ),
    ],
)
def test_a_record_with_something_else_in_it_ends_with_four_and_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], told: str
) -> None:
    first, second = written(tmp_path, a=record_of(), b=record_of())
    stored = json.loads(Path(second).read_text(encoding="utf-8"))
    for name, value in changed.items():
        stored[name] = {**stored[name], **value} if isinstance(value, dict) else value
    Path(second).write_text(json.dumps(stored))
    assert main(["compare", first, second]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"backdoor-audit: {second}: ")
    assert told in line


def test_numbers_that_are_no_rates_and_rows_of_no_class_are_compared_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (f"x-class_{'9' * 400}", "x-class_\u0663", "x-class_2")
    before, after = (
        record_of({}, *(index_of(row, index, target_class=None) for row in rows), accuracy=accuracy)
        for index, accuracy in ((1e308, 1e300), (-1e308, -1e300))
    )
    files = written(tmp_path, a=before, b=after)
    assert main(["compare", *files]) == 0
    told = capsys.readouterr()
    assert "x-class_\u0663: anomaly index 1e+308 -> -1e+308" in told.out
    assert max(map(len, told.out.splitlines())) < 200
    assert main(["compare", *files, "--out", str(tmp_path / "page.html")]) == 4  # no chart has such an axis
    assert capsys.readouterr().err.count("\n") == 1


def test_a_difference_that_cannot_be_written_blames_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path, a=record_of(), b=record_of())
    for out, told in (("x" * 300, "File name too long"), ("a.json/b", "is not a folder"), ("", "must name a file")):
        with contextlib.suppress(SystemExit):
            assert main(["compare", *files, "--out", f"{tmp_path / out}" if out else out]) == 4
        error = capsys.readouterr().err.splitlines()[-1]
        assert "--out: " in error
        assert told in error
