"""The command that follows from a record."""

from __future__ import annotations

import shlex

import pytest

from backdoor_audit.commands.repair import declare
from backdoor_audit.evidence import Finding, Record, Verdict
from backdoor_audit.report.advice import steps
from backdoor_audit.report.next_step import next_step
from tests.subjects.records import finding, missed_canary, record

FAIL, INCONCLUSIVE, PASS = Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS
SETTINGS = {
    "model": "a b.pt",
    "data": "images.npz",
    "profile": "standard",
    "arch": "resnet18",
    "resize": [8, 9],
    "seed": 3,
}
HINT = "accuracy is 0.2 with the configured normalisation, but imagenet gives 0.9: pass --normalization=imagenet"


def command(*findings: object, **settings: object) -> str:
    rest = settings.pop("rest", {})
    return next_step(record(*findings, settings={**SETTINGS, **settings}, **rest))[0]  # type: ignore[arg-type]


def test_a_flagged_model_is_to_be_repaired_as_it_was_read() -> None:
    import argparse

    words = shlex.split(command(finding()))
    assert words[:3] == ["backdoor-audit", "repair", "a b.pt"]
    parser = argparse.ArgumentParser()
    declare(parser)
    given = parser.parse_args(words[2:])
    assert (given.data, given.arch, given.resize, given.seed) == ("images.npz", "resnet18", "8x9", 3)
    assert str(given.out) == "a b-repaired.safetensors"


@pytest.mark.parametrize(
    ("subject", "settings", "words"),
    [
        ([finding(PASS)], {}, "--audit-canary=true"),
        ([finding(PASS)], {"canary": True}, "--audit-baseline=baseline.json --audit-update-baseline=true"),
        ([finding(INCONCLUSIVE, value=None, reason=HINT)], {}, "--normalization=imagenet"),
        ([finding(INCONCLUSIVE, value=None, reason="raise --audit-steps")], {"steps": 100}, "--audit-steps=200"),
        ([finding(INCONCLUSIVE)], {}, "--audit-profile=thorough"),
        ([finding(INCONCLUSIVE)], {"profile": "quick"}, "--audit-resize=8x9"),
        ([finding(PASS), missed_canary()], {}, "--audit-profile=thorough"),
        (
            [finding(FAIL, statistic="regression")],
            {"baseline": "v1.json"},
            "compare v1.json backdoor-audit-report/audit.json",
        ),
    ],
)
def test_what_follows_from_the_verdict(subject: list[object], settings: dict[str, object], words: str) -> None:
    assert words in command(*subject, **settings)


def precondition(reason: str) -> Finding:
    return finding(INCONCLUSIVE, audit="audit::test_precondition[class_order]", value=None, reason=reason)


UNSURE = "pass --audit-class-order=number if the classes are numbers, --audit-class-order=text if they are texts"


@pytest.mark.parametrize(
    ("reasons", "words", "why"),
    [
        ([UNSURE, "pass --audit-class-order=text, the order of ImageFolder"], "--audit-class-order=text", "advises"),
        (
            ["if that is so, pass --audit-class-names='T-shirt,ankle boot,coat', and more"],
            "--audit-class-names='T-shirt,ankle boot,coat'",
            "advises",
        ),
        (["if that is so, pass --audit-class-names=ant,bee,cat"], "--audit-class-names=ant,bee,cat", "advises"),
        (["label 1 (pass --audit-inconclusive=allow) looks like class 2"], "--audit-seed=3", "once the reason"),
        (["label 1 (pass --resize=$(id)) looks like class 2"], "--audit-seed=3", "once the reason above is dealt with"),
        (["if that is so, pass --audit-class-names='$(id),b'"], "--audit-class-names='$(id),b'", "advises"),
        (["pass --mean=0.1,0.2 --std=0.3, or others"], "--mean=0.1,0.2 --std=0.3", "advises"),
        ([UNSURE], "--audit-seed=3", "once the reason above is dealt with"),
        (["drop the final sigmoid"], "--audit-seed=3", "once the reason above is dealt with"),
        ([], "--audit-seed=3", "the whole audit"),
    ],
)
def test_what_stands_in_the_way_of_any_search_comes_before_the_items_that_were_not_run(
    reasons: list[str], words: str, why: str
) -> None:
    told = record(
        *map(precondition, reasons), settings=SETTINGS, not_run=["audit::test_anomaly_index[additive-class_0]"]
    )
    typed, purpose = next_step(told)
    assert typed.endswith(words)
    assert why in purpose


@pytest.mark.parametrize(("profile", "words"), [("quick", "images.npz"), ("standard", "--audit-inconclusive=allow")])
def test_of_so_few_classes_the_properties_are_read_and_a_person_may_allow_the_rest(profile: str, words: str) -> None:
    silent = finding(
        INCONCLUSIVE, value=None, reason="2 classes: an outlier can be told from 5 classes on; not searched"
    )
    settings = {**SETTINGS, "profile": profile, "resize": None}
    told = record(silent, settings=settings, subject={"num_classes": 2})
    typed, purpose = next_step(told)
    assert words in typed
    assert "--audit-profile" not in typed  # standard is the usual one
    assert purpose.startswith("2 classes are too few to compare with each other")
    (step,) = steps(told)
    assert step.command == typed
    assert "2 classes are too few" in step.text


def test_a_search_that_lacked_time_is_run_again_without_the_bound() -> None:
    reason = "the time budget was spent before this was done; raise --audit-budget"
    assert "budget" not in command(finding(INCONCLUSIVE, value=None, reason=reason), budget=60.0)


def test_what_a_command_line_cannot_name_has_no_next_command() -> None:
    assert next_step(record(finding(), settings={})) == ("", "")


def test_a_whole_record_of_a_model_that_is_watched_needs_nothing() -> None:
    done: Record = record(finding(PASS), settings={**SETTINGS, "canary": True, "baseline": "v1.json"})
    assert next_step(done) == ("", "")
