"""The record as SARIF 2.1.0 (OASIS, 2020, with Errata 01 of 2023), which code-scanning services read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import quote

from backdoor_audit.evidence import Finding, Record, Verdict
from backdoor_audit.presentable import plain
from backdoor_audit.questions.frameworks import FRAMEWORKS, Reference, references
from backdoor_audit.report.paths import shown_command, shown_path, without_folders
from backdoor_audit.report.terminal import headline
from backdoor_audit.report.words import words_of
from backdoor_audit.words import About, Words

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "backdoorAudit/v1"
GITHUB_FINGERPRINT = "primaryLocationLineHash"
"""The one that GitHub tells alerts apart by; of files without lines it would make the same for all results."""

HELP = FRAMEWORKS[0].url
"""Of a rule that speaks to no entry of a framework: why a model is validated at all."""

INCOMPLETE = "complete"

_REGION = {"startLine": 1}  # a model file has no lines; importers want one

_WHOLE = Words(
    asks="Has every item an answer?",
    holds="Every item of the audit gave an answer",
    advice="Items broke or were left out. A run that is not whole can pass no model; run it again.",
    topic="items",
    about=About.AUDIT,
)

_LEVELS = {About.AUDIT: "warning", About.REMEDY: "note"}
"""Level of rules that do not speak against the model; of all others it is an error."""


def sarif(
    record: Record, *, suppressed: Mapping[str, str] | None = None, exit_code: int | None = None
) -> dict[str, Any]:
    """A SARIF log with one run: a rule per audit and detector, a result per finding that is not a pass.

    A failed finding is an error, an inconclusive one a warning, as is a canary that was missed, which says nothing against the
    model. A repair or filter that does not hold is a note: it is no weakness of the model, and its rule has no security severity.
    A record that is not a pass has at least one result. ``suppressed`` maps the node id of accepted findings to their
    justification (default: what the record's baseline accepts); they stay in the log, marked. ``exit_code`` is what pytest
    ended with, or what it would have ended with if left out. Paths are relative to the folder of the run or lack their
    folders. The fingerprint of a result is the hash of rule, model and class: it changes with the model alone.
    """
    suppressed = accepted(record) if suppressed is None else suppressed
    told = [finding for finding in record.findings if finding.verdict is not Verdict.PASS]
    words = words_of(record)
    rules = list(dict.fromkeys(rule_of(finding) for finding in record.findings))
    results = [_result(record, finding, rules, words) for finding in told]
    if record.errors or record.not_run or (record.verdict is not Verdict.PASS and not told):
        rules.append(INCOMPLETE)
        results.append(_incomplete(record, rules))
    if suppressed:
        for result, finding in zip(results, [*told, None], strict=False):
            justification = suppressed.get(finding.audit) if finding else None
            result["suppressions"] = [_suppression(justification)] if justification is not None else []
    entries = {rule: _references(record, rule, words) for rule in rules}
    taxonomies = _taxonomies([entry for found in entries.values() for entry in found])
    run = {
        "tool": {"driver": _driver(record, entries, taxonomies, words)},
        "automationDetails": {"id": f"backdoor-audit/{_uri(record)}/"},
        "invocations": [_invocation(record, exit_code if exit_code is not None else expected_exit_code(record))],
        "artifacts": [{"location": _location(record), "roles": ["analysisTarget"], "properties": _subject(record)}],
        "taxonomies": taxonomies,
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": _summary(record),
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def accepted(record: Record) -> dict[str, str]:
    """Node ids of the findings that are not a pass and that the record's baseline accepts, with the reason, owner and date."""
    entries = (record.baseline or {}).get("accepted", ())
    return {str(entry["finding"]): acceptance(entry) for entry in entries}


def acceptance(entry: Mapping[str, Any]) -> str:
    """One acceptance of a baseline in words."""
    return f"{entry['reason']} (accepted by {entry['owner']} until {entry['expires']})"


def expected_exit_code(record: Record) -> int:
    """What pytest ends with after a whole run with this record: 0 where it lets the model through, else 1."""
    return int(not record.passes_gate)


def rule_of(finding: Finding) -> str:
    """Identifier of the rule behind a finding: the audit, and the detector, repair, filter or condition that it asks."""
    item = finding.item
    if not item.question:
        return finding.statistic
    return f"{item.question}/{item.asked_of}" if item.asked_of else item.question


def _result(record: Record, finding: Finding, rules: Sequence[str], words: Mapping[str, Words]) -> dict[str, Any]:
    rule = rule_of(finding)
    row = finding.item.row or ("" if finding.target_class is None else f"class_{finding.target_class}")
    numbers = {
        "statistic": finding.statistic,
        "value": finding.value,
        "limit": finding.limit,
        "verdict": finding.verdict,
        "targetClass": finding.target_class,
        "settings": finding.settings or None,
        "details": {name: value for name, value in finding.details.items() if isinstance(value, (int, float, str))},
    }
    known: dict[str, Any] = plain({name: value for name, value in numbers.items() if value not in (None, {})})
    return {
        "ruleId": rule,
        "ruleIndex": rules.index(rule),
        "kind": "fail",
        "level": _level(finding, words),
        "message": {"text": _message(without_folders(finding.reason))},
        "locations": [_place(record, finding.audit)],
        "partialFingerprints": _fingerprints(record, rule, str(row)),
        "properties": known,
    }


def _incomplete(record: Record, rules: Sequence[str]) -> dict[str, Any]:
    """The result of a run that is not whole, so that a record that is not a pass never looks like one without results."""
    told = [f"{len(record.errors)} items broke, first {next(iter(record.errors))}"] if record.errors else []
    told += [f"{len(record.not_run)} items were not run, first {record.not_run[0]}"] if record.not_run else []
    return {
        "ruleId": INCOMPLETE,
        "ruleIndex": rules.index(INCOMPLETE),
        "kind": "fail",
        "level": "warning",
        "message": {"text": _message("; ".join(told) or headline(record))},
        "locations": [_place(record, "audit")],
        "partialFingerprints": _fingerprints(record, INCOMPLETE, ""),
    }


def _suppression(justification: str) -> dict[str, str]:
    return {"kind": "external", "status": "accepted", "justification": justification}


def _level(finding: Finding, words: Mapping[str, Words]) -> str:
    usual = _level_of(words.get(finding.item.question))
    return "warning" if usual == "error" and finding.verdict is not Verdict.FAIL else usual


def _level_of(words: Words | None) -> str:
    return _LEVELS.get(words.about, "error") if words else "error"


def _fingerprints(record: Record, rule: str, row: str) -> dict[str, str]:
    """The hash of rule, model and class, in full, and as GitHub takes it: a hash and which of several with that hash."""
    parts = (rule, str(record.subject.get("model_fingerprint", "")), row)
    found = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return {GITHUB_FINGERPRINT: f"{found[:16]}:1", FINGERPRINT: found}


def _message(text: str) -> str:
    """One line in which braces are no placeholders and brackets no link (SARIF 2.1.0, 3.11.5 and 3.11.6)."""
    return " ".join(text.split()).replace("{", "{{").replace("}", "}}").replace("](", "] (") or "no reason given"


def _uri(record: Record) -> str:
    return quote(shown_path(str(record.subject.get("model", ""))) or "model")


def _location(record: Record) -> dict[str, str]:
    return {"uri": _uri(record), "uriBaseId": "%SRCROOT%"}


def _place(record: Record, node_id: str) -> dict[str, Any]:
    return {
        "physicalLocation": {"artifactLocation": {**_location(record), "index": 0}, "region": _REGION},
        "logicalLocations": [{"fullyQualifiedName": node_id, "kind": "function"}],
    }


def _driver(
    record: Record,
    entries: Mapping[str, Sequence[Reference]],
    taxonomies: Sequence[Mapping[str, Any]],
    words: Mapping[str, Words],
) -> dict[str, Any]:
    return {
        "name": "backdoor-audit",
        "version": str(record.environment.get("backdoor_audit", "unknown")),
        "rules": [_rule(rule, found, words) for rule, found in entries.items()],
        "supportedTaxonomies": [{"name": entry["name"], "index": index} for index, entry in enumerate(taxonomies)],
    }


def _references(record: Record, rule: str, words: Mapping[str, Words]) -> tuple[Reference, ...]:
    said = words.get(rule.partition("/")[0])
    statistics = sorted({finding.statistic for finding in record.findings if rule_of(finding) == rule})
    return next((references(said.references[name]) for name in statistics if said and name in said.references), ())


def _rule(rule: str, entries: Sequence[Reference], words: Mapping[str, Words]) -> dict[str, Any]:
    question, _, name = rule.partition("/")
    said = _WHOLE if rule == INCOMPLETE else words.get(question)
    holds = said.holds if said else f"The finding `{rule}` is inside its limit"
    advice = said.advice if said else "See the record."
    short = _message(f"{holds} ({name})" if name else holds)
    tags = ["backdoor", *(entry.id for entry in entries)]
    severity = _severity(rule, said)
    described: dict[str, Any] = {
        "id": rule,
        "name": rule,
        "shortDescription": {"text": short},
        "fullDescription": {"text": advice},
        "help": _help(holds, advice, entries),
        "helpUri": entries[0].url if entries else HELP,
        "defaultConfiguration": {"level": _level_of(said)},
        "properties": {"tags": ["security", *tags], "precision": "high", "security-severity": severity}
        if severity
        else {"tags": tags},
    }
    relationships = [
        {"target": {"id": entry.id, "toolComponent": {"name": entry.framework}}, "kinds": ["relevant"]}
        for entry in entries
    ]
    return {**described, "relationships": relationships} if relationships else described


def _severity(rule: str, words: Words | None) -> str:
    """What GitHub sorts alerts by, from 0 to 10: a hidden trigger is critical, a model that cannot be judged is of medium weight.

    Empty for what is no weakness of the model.
    """
    if words is None or words.about in (About.MODEL, About.CHANGE):
        return "9.3"
    return "5.0" if rule == INCOMPLETE or rule.startswith("precondition") else ""


def _help(holds: str, advice: str, entries: Sequence[Reference]) -> dict[str, str]:
    """What a reader of an alert is told to do, as text and as Markdown."""
    text, markdown = advice, f"**{holds}.**\n\n{advice}"
    if entries:
        text += "\n\nEvidence towards:" + "".join(f"\n- {entry.label} <{entry.url}>" for entry in entries)
        markdown += "\n\nEvidence towards:\n" + "".join(f"\n* [{entry.label}]({entry.url})" for entry in entries)
    return {"text": text, "markdown": markdown}


def _taxonomies(references: Sequence[Reference]) -> list[dict[str, Any]]:
    """The frameworks that the rules speak to, each with its edition and the entries that are used."""
    used = [entry for entry in FRAMEWORKS if entry in references]
    return [
        {
            "name": framework,
            "version": edition,
            "shortDescription": {"text": f"{framework}, {edition}"},
            "taxa": [
                {"id": entry.id, "shortDescription": {"text": entry.name}, "helpUri": entry.url} for entry in entries
            ],
        }
        for (framework, edition), entries in groupby(used, key=lambda entry: (entry.framework, entry.edition))
    ]


def _invocation(record: Record, exit_code: int) -> dict[str, Any]:
    broken = [
        {"level": "error", "message": {"text": _message(without_folders(f"{name}: {reason}"))}}
        for name, reason in record.errors.items()
    ]
    command = shown_command(record)
    left_out = [{"level": "warning", "message": {"text": _message(f"not run: {name}")}} for name in record.not_run]
    return {
        "executionSuccessful": not record.errors,
        "exitCode": exit_code,
        "exitCodeDescription": _message(headline(record)),
        **({"commandLine": command} if command else {}),
        **({"toolExecutionNotifications": [*broken, *left_out]} if broken or left_out else {}),
    }


def _subject(record: Record) -> dict[str, Any]:
    names = {"architecture": "architecture", "modelFingerprint": "model_fingerprint", "numClasses": "num_classes"}
    known: dict[str, Any] = plain(
        {name: record.subject.get(key) for name, key in names.items() if key in record.subject}
    )
    return known


def _summary(record: Record) -> dict[str, Any]:
    """The verdict in a few words, for readers of the log that do not know the record."""
    summary: dict[str, Any] = plain(
        {
            "verdict": record.verdict,
            "power": record.power,
            "flaggedClasses": record.flagged_classes,
            "suspectedClasses": record.suspected_classes,
            "data": shown_path(str(record.subject.get("data", ""))),
            "dataFingerprint": record.subject.get("data_fingerprint"),
            "profile": record.settings.get("profile"),
            "seed": record.settings.get("seed"),
            "notTested": list(record.not_tested),
            "seconds": record.seconds,
        }
    )
    return {name: value for name, value in summary.items() if value is not None}
