"""Shards: records of several machines that share the work on one model become one record again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backdoor_audit.content import content_of
from backdoor_audit.evidence import WORST_FIRST, Finding, Record, Verdict
from backdoor_audit.installed import plugins_of, summaries
from backdoor_audit.options import Role, options_with
from backdoor_audit.presentable import plain, together


def merged(records: Mapping[str, Record]) -> dict[str, Record]:
    """The same records, with those of one audit put together under their joined names, in the order given.

    One audit: the same model and images (by fingerprint), settings, questions and version. Where two shards have an item both,
    the worse finding stands; an item that one shard did not run is run if another did. Records of different audits stay apart.
    Raises `DataFormatError` for a record whose content is not that of an audit.
    """
    groups: dict[str, dict[str, Record]] = {}
    for name, record in records.items():
        with content_of(name, record):
            groups.setdefault(_audit(record) or name, {})[name] = record
    joined = {}
    for group in groups.values():
        name = ", ".join(group)
        with content_of(name, *group.values()):
            joined[name] = _joined(list(group.values()))
    return joined


def _audit(record: Record) -> str:
    """What shards of one audit have in common; empty where the model is not known."""
    fingerprint = record.subject.get("model_fingerprint")
    of_a_machine = options_with(Role.MACHINE)
    settings = {key: value for key, value in record.settings.items() if key not in of_a_machine}
    version = record.environment.get("code_fingerprint"), record.schema_version
    asked = sorted((name, plain(words)) for name, words in record.questions.items())
    parts = fingerprint, record.subject.get("data_fingerprint"), sorted(plain(settings).items()), asked, version
    return repr(parts) if fingerprint else ""


def _joined(records: Sequence[Record]) -> Record:
    first = records[0]
    if len(records) == 1:
        return first
    findings: dict[str, Finding] = {}
    for finding in (finding for record in records for finding in record.findings):
        known = findings.get(finding.audit)
        if known is None or WORST_FIRST.index(finding.verdict) < WORST_FIRST.index(known.verdict):
            findings[finding.audit] = finding
    errors = _union(record.errors for record in records)
    skipped = {name: why for name, why in _union(record.skipped for record in records).items() if name not in findings}
    done = {*findings, *errors, *skipped}
    return replace(
        first,
        environment=_environments(records),
        detections=_each(records, "detections", lambda entry: entry["detector"]),
        repairs=_each(records, "repairs", lambda entry: (entry["method"], entry["target_class"])),
        canaries=_each(records, "canaries", lambda entry: (entry["canary"], entry["target_class"], entry["dose"])),
        findings=list(findings.values()),
        advisory=list({finding.audit: finding for record in records for finding in record.advisory}.values()),
        skipped=skipped,
        errors=errors,
        not_run=[
            name for name in dict.fromkeys(name for record in records for name in record.not_run) if name not in done
        ],
        not_tested=_not_tested(records),
        seconds=sum(record.seconds for record in records),
        exhibits=_union(record.exhibits for record in records),
        activations=_union(record.activations for record in records),
        properties=_each(records, "properties", lambda entry: entry["name"]),
        sections=together(record.sections for record in records),
        baseline=min(
            filter(None, (record.baseline for record in records)),
            key=lambda told: WORST_FIRST.index(Verdict(told["verdict"])),
            default=None,
        ),
    )


def _union(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


def _each(
    records: Sequence[Record], section: str, key: Callable[[Mapping[str, Any]], Hashable]
) -> list[Mapping[str, Any]]:
    """The entries of all shards, each once."""
    return list({key(entry): entry for record in records for entry in getattr(record, section)}.values())


def _environments(records: Sequence[Record]) -> dict[str, Any]:
    """What all machines agree on, and what they do not side by side."""
    keys = dict.fromkeys(key for record in records for key in record.environment)
    values = {key: dict.fromkeys(str(record.environment.get(key, "")) for record in records) for key in keys}
    plugins = dict.fromkeys(plugin for record in records for plugin in plugins_of(record.environment))
    return {**{key: "; ".join(found) for key, found in values.items()}, "plugins": summaries(plugins)}


def _not_tested(records: Sequence[Record]) -> list[str]:
    """What no shard saw: the blind spots that all share, and everything else that one of them left out."""
    spots = tuple(spot for record in records for entry in record.detections for spot in entry["blind_spots"])
    lines = dict.fromkeys(line for record in records for line in record.not_tested)
    return [
        line for line in lines if not line.startswith(spots) or all(line in record.not_tested for record in records)
    ]
