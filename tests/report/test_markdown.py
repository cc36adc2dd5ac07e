"""Markdown: what it says, and that nothing out of a file becomes markup. Rendered by a parser that is not ours."""

from __future__ import annotations

import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.report.markdown import append_step_summary, code, escaped, fenced, markdown
from tests.subjects.records import HOSTILE, finding, missed_canary, record

OWN_TAGS = {
    "h2",
    "p",
    "strong",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "code",
    "ul",
    "li",
    "pre",
    "details",
    "summary",
}


class Page(HTMLParser):
    """The tags and the words of a rendered page, its table rows, and its list entries."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.rows: list[list[str]] = []
        self.inside: list[str] = []
        self.feed(MarkdownIt("gfm-like", {"html": True}).render(text))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.inside:
            self.rows[-1][-1] += data


def read(text: str) -> str:
    """Rendered words, without the characters that only break references."""
    return Page(text).words.replace("\u200b", "").strip()


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_renders_as_itself_and_makes_no_markup(text: str) -> None:
    page = Page(escaped(text))
    assert read(escaped(text)) == flat(text)
    assert set(page.tags) <= {"p", "span"}


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_stays_in_its_cell_and_its_list_entry(text: str) -> None:
    page = Page(f"| a | b |\n| --- | --- |\n| {escaped(text)} | {code(text)} |\n\n* {escaped(text)}\n")
    assert [cell.replace("\u200b", "") for cell in page.rows[1]] == [flat(text), flat(text)]
    assert set(page.tags) <= OWN_TAGS | {"span"}
    assert page.tags.count("ul") == 1


@pytest.mark.parametrize("text", ["@team", "#12", "GH-12", "group!3", "&5", "~label", "%milestone", ":smile:"])
def test_mentions_and_references_are_broken_up(text: str) -> None:
    assert text.replace("&", "&amp;") not in escaped(text).replace("\\", "")


@pytest.mark.parametrize("text", [*HOSTILE, "``` \nx"])
def test_a_code_block_ends_where_it_should(text: str) -> None:
    page = Page(fenced(text))
    assert page.tags == ["pre", "code"]
    assert page.words.strip() == text.strip()


def told(subject: Record) -> str:
    return flat(read(markdown(subject)))


def test_a_fail_says_why_first_and_lists_what_is_no_pass_with_value_limit_and_item() -> None:
    page = Page(markdown(record(finding(), finding(Verdict.PASS, audit="audit::passed"))))
    assert flat(page.words).startswith(
        "❌ Backdoor audit of models/m.safetensors FAIL: hidden trigger found for class 1 (dog)"
    )
    assert page.rows[1] == [
        "fail",
        "class 1 (dog): a 3-pixel trigger sends 96% of held-out images there",
        "2.5",
        "2",
        "audit::test_anomaly_index[neural_cleanse-class_1]",
    ]
    assert "audit::passed" not in page.words


def test_a_pass_has_no_table_of_findings_and_still_says_what_was_not_tested() -> None:
    words = told(record(finding(Verdict.PASS)))
    assert words.startswith("✅ Backdoor audit of models/m.safetensors PASS: no hidden trigger found")
    assert "verdict finding value limit" not in words
    assert "Not tested (1) warped triggers" in words


def test_items_without_an_answer_are_told() -> None:
    subject = record(
        finding(Verdict.PASS),
        errors={"audit::x": "/home/ann/x.py: boom"},
        not_run=["audit::y"],
        skipped={"audit::z": "why"},
    )
    words = told(subject)
    assert "broken: audit::x: x.py: boom" in words
    assert "not run: 1 items, first audit::y" in words
    assert "skipped: 1 items: why" in words
    assert words.startswith("⚠️")


def test_a_canary_that_was_seen_is_told() -> None:
    seen = replace(missed_canary(), verdict=Verdict.PASS, reason="a badnets canary was found")
    assert "Canary: a badnets canary was found" in told(record(finding(Verdict.PASS), seen))


def test_what_the_baseline_says_is_told_and_accepted_findings_are_marked() -> None:
    known = {"finding": finding().audit, "reason": "a <b>shortcut</b>", "owner": "@ann", "expires": "2027-01-31"}
    over = {**known, "finding": "audit::x", "expires": "2026-01-31"}
    section = {
        "verdict": "fail",
        "accepted_model": "/home/m.pt",
        "worse": ["class 0 fell"],
        "accepted": [known],
        "expired": [over],
    }
    words = told(record(finding(), baseline=section))
    assert "fail, accepted class 1 (dog)" in words
    assert "beside the accepted model m.pt: fail" in words
    assert "worse than the accepted model: class 0 fell" in words
    assert "acceptance expired: audit::x: a <b>shortcut</b> (accepted by @ann until 2026-01-31)" in words


def test_cost_and_how_to_make_it_again_are_told() -> None:
    words = told(record(finding()))
    assert "neural_cleanse 1,234,567 10, taken from an earlier run 12 seconds in all on cpu (CPU)" in words
    assert "pytest --model=models/m.safetensors --data=images.npz --audit-seed=3 --audit-profile=quick" in words
    assert "a" * 64 in words
    assert "b" * 64 in words
    assert "backdoor_audit 1.2.3, torch 2.6, python 3.12" in words


def test_a_module_that_was_handed_over_has_no_command() -> None:
    words = told(record(finding(), settings={}, subject={"model": "Sequential"}))
    assert "handed over in Python" in words


def test_names_out_of_files_make_no_markup_anywhere_on_the_page() -> None:
    for text in HOSTILE:
        subject = record(
            finding(Verdict.FAIL, reason=text, audit=f"audit::{text}"),
            subject={**record().subject, "model": text, "class_names": ["cat", text], "data": text},
            settings={"model": text, "data": text},
            environment={"device_name": text, "torch": text},
            errors={text: text},
            skipped={"audit::x": text},
            not_run=[text],
            not_tested=[text],
        )
        page = Page(markdown(subject))
        assert set(page.tags) <= OWN_TAGS | {"span"}, text
        assert page.tags.count("h2") == 1, text
        assert page.tags.count("details") == 3, text
        assert {len(row) for row in page.rows} == {2, 3, 5}, text


def test_a_page_of_many_findings_fits_into_a_comment() -> None:
    many = [finding(audit=f"audit::test_anomaly_index[neural_cleanse-class_{k}]", target_class=k) for k in range(1000)]
    subject = record(*many, errors={f"audit::{k}": "broken " * 10 for k in range(1000)})
    text = markdown(subject)
    assert len(text) < 65_536
    assert "and 950 more" in text


def test_the_job_summary_is_appended_to_where_github_names_a_file(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    subject = record(finding())
    assert append_step_summary(subject, {"GITHUB_STEP_SUMMARY": str(file)}) == file
    assert file.read_text(encoding="utf-8") == f"before\n{markdown(subject)}\n"


def test_a_job_summary_that_is_a_pipe_or_a_folder_is_an_error_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path, tmp_path / "absent" / "summary.md"):
        with pytest.raises(OSError, match=r"No such device|Is a directory|No such file"):
            append_step_summary(record(finding()), {"GITHUB_STEP_SUMMARY": str(file)})


@pytest.mark.parametrize("environment", [{}, {"GITHUB_STEP_SUMMARY": ""}])
def test_elsewhere_there_is_no_job_summary(environment: dict[str, str]) -> None:
    assert append_step_summary(record(finding()), environment) is None
