"""Shards of one audit become one record; audits of other models stay apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.questions.suite import shipped
from backdoor_audit.report.shards import merged
from tests.subjects.whole_records import whole_record


def shard(whole: Record, *detectors: str, **rest: Any) -> Record:
    """The part of an audit that these detectors make up: what a run with ``-k`` leaves."""
    kept = [entry for entry in whole.findings if "[" not in entry.audit or _detector(entry.audit) in detectors]
    return replace(
        whole,
        findings=kept,
        detections=[entry for entry in whole.detections if entry["detector"] in detectors],
        exhibits={key: entry for key, entry in whole.exhibits.items() if entry["detector"] in detectors},
        not_run=[entry.audit for entry in whole.findings if entry not in kept],
        **rest,
    )


def _detector(audit: str) -> str:
    return audit.partition("[")[2].partition("-")[0]


@pytest.fixture
def whole() -> Record:
    record = whole_record(3, infected=(), skipped={}, canaries=[], properties=[], baseline=None)
    return replace(record, findings=[entry for entry in record.findings if "anomaly" in entry.audit])


def test_shards_that_cover_all_items_give_the_whole_audit_again(whole: Record) -> None:
    names = [str(entry["detector"]) for entry in whole.detections]
    parts = {"a.json": shard(whole, *names[:3]), "b.json": shard(whole, *names[3:])}
    assert [part.verdict for part in parts.values()] == [Verdict.INCONCLUSIVE] * 2
    ((name, joined),) = merged(parts).items()
    assert name == "a.json, b.json"
    assert joined.verdict is Verdict.PASS
    assert joined.not_run == []
    assert joined.findings == whole.findings
    assert [entry["detector"] for entry in joined.detections] == names
    assert joined.exhibits == whole.exhibits
    assert joined.seconds == 2 * whole.seconds


def test_what_a_question_kept_in_several_shards_is_there_whole(whole: Record) -> None:
    first, second = {"flips": {"up": {"share": 0.1}}}, {"flips": {"down": {"share": 0.2}}, "tints": {"red": {}}}
    parts = {"a.json": replace(whole, sections=first), "b.json": replace(whole, sections=second)}
    (joined,) = merged(parts).values()
    assert joined.sections == {"flips": {"up": {"share": 0.1}, "down": {"share": 0.2}}, "tints": {"red": {}}}


def test_items_that_no_shard_ran_keep_it_from_passing(whole: Record) -> None:
    parts = {"a.json": shard(whole, "additive"), "b.json": shard(whole, "smooth")}
    (joined,) = merged(parts).values()
    assert joined.verdict is Verdict.INCONCLUSIVE
    assert [name for name in joined.not_run if "additive" in name or "smooth" in name] == []
    assert any("stripes" in name for name in joined.not_run)


def test_of_two_findings_about_one_item_the_worse_stands(whole: Record) -> None:
    first = whole.findings[0]
    failed = replace(whole, findings=[replace(first, verdict=Verdict.FAIL, reason="seen here"), *whole.findings[1:]])
    for parts in ({"a": whole, "b": failed}, {"a": failed, "b": whole}):
        (joined,) = merged(parts).values()
        assert joined.verdict is Verdict.FAIL
        assert len(joined.findings) == len(whole.findings)
        assert next(entry for entry in joined.findings if entry.audit == first.audit).reason == "seen here"


def test_an_item_that_broke_in_one_shard_stays_broken(whole: Record) -> None:
    broken = replace(whole, errors={"audit::test_x": "out of memory"})
    (joined,) = merged({"a": whole, "b": broken}).values()
    assert joined.errors == {"audit::test_x": "out of memory"}
    assert joined.verdict is Verdict.INCONCLUSIVE


def test_what_one_shard_skipped_and_another_judged_is_judged(whole: Record) -> None:
    name = whole.findings[0].audit
    skipping = replace(whole, findings=whole.findings[1:], skipped={name: "not here", "audit::test_y": "nowhere"})
    (joined,) = merged({"a": skipping, "b": whole}).values()
    assert joined.skipped == {"audit::test_y": "nowhere"}


def test_a_blind_spot_that_another_shard_sees_is_no_longer_told(whole: Record) -> None:
    blind = [{**whole.detections[0], "blind_spots": ["blends", "warps"]}]
    keen = [{**whole.detections[1], "blind_spots": ["warps"]}]
    told = "(no detector of this run sees them)"
    parts = {
        "a": replace(whole, detections=blind, not_tested=[f"blends {told}", f"warps {told}", "race: half"]),
        "b": replace(whole, detections=keen, not_tested=[f"warps {told}", "the training data"]),
    }
    (joined,) = merged(parts).values()
    assert joined.not_tested == [f"warps {told}", "race: half", "the training data"]


def test_machines_that_differ_stand_side_by_side(whole: Record) -> None:
    other = replace(whole, environment={**whole.environment, "device": "cuda:0"})
    (joined,) = merged({"a": whole, "b": other}).values()
    assert joined.environment["device"] == "cpu; cuda:0"
    assert joined.environment["torch"] == "2.6"


def test_where_the_files_lie_does_not_matter(whole: Record) -> None:
    moved = replace(whole, settings={**whole.settings, "model": "/elsewhere/m.safetensors", "report": "b"})
    assert len(merged({"a": whole, "b": moved})) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"subject": {"model_fingerprint": "f" * 64}},
        {"subject": {"data_fingerprint": "f" * 64}},
        {"settings": {"seed": 9}},
        {"settings": {"limits": {"anomaly_index": 3.0}}},
        {"environment": {"code_fingerprint": "d" * 16}},
    ],
)
def test_audits_that_differ_in_what_counts_stay_apart(whole: Record, change: dict[str, dict[str, Any]]) -> None:
    ((section, values),) = change.items()
    other = replace(whole, **{section: {**getattr(whole, section), **values}})
    assert merged({"a": whole, "b": other}) == {"a": whole, "b": other}


def test_runs_that_never_saw_a_model_stay_apart(whole: Record) -> None:
    lost = replace(whole, subject={})
    assert list(merged({"a": lost, "b": lost})) == ["a", "b"]


def test_one_record_is_left_as_it_is(whole: Record) -> None:
    assert merged({"a": whole}) == {"a": whole}


def test_of_two_comparisons_with_a_baseline_the_worse_stands(whole: Record) -> None:
    passed, failed = ({"file": "b.json", "verdict": verdict} for verdict in ("pass", "fail"))
    parts = {"a": replace(whole, baseline=passed), "b": replace(whole, baseline=failed), "c": whole}
    (joined,) = merged(parts).values()
    assert joined.baseline == failed


def test_sections_of_questions_are_joined_and_shards_that_asked_otherwise_stay_apart() -> None:
    whole = whole_record()
    parts = {name: replace(whole, sections={name: {"table": {"row": 1}}}) for name in ("a", "b")}
    (joined,) = merged(parts).values()
    assert set(joined.sections) == {"a", "b"}
    other = {name: {**words, "sha256": "0" * 64} for name, words in shipped().to_json().items()}
    parts["b"] = replace(parts["b"], questions=other)
    assert len(merged(parts)) == 2
