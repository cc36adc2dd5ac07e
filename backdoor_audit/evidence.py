"""Verdicts, findings and the record of a run: plain values that go to JSON and come back equal."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError, read_json, write_text
from backdoor_audit.item import Item
from backdoor_audit.presentable import plain, presentable
from backdoor_audit.record_schema import READ_VERSIONS, SCHEMA_VERSION, record_schema
from backdoor_audit.record_types import Count, Reasons, Seconds
from backdoor_audit.schema_of import LATER, Schema, Stored
from backdoor_audit.structure import brief, misfit

POWER = "detection_power"
"""Statistic of findings about the audit's own sight, from canaries: they say nothing against the model."""

STEERED = "steered_share"
"""Statistic of properties: the share of other classes' images that one small change of all images sends to one class."""

REGRESSION = "regression"
"""Statistic of findings about what got worse than in a baseline; they are made from one and are no part of it."""

_FINDINGS = ("findings", "advisory")
_JUDGED = ("verdict", "power", "flagged_classes", "suspected_classes", "flagged_all_to_all", "suspected_all_to_all")

_NAMED = {
    "item": tuple(entry.name for entry in fields(Item)),
    "detection": ("detector",),
    "exhibit": ("detector",),
    "baseline": ("file", "verdict", "worse", "better", "accepted", "expired"),
    "acceptance": ("finding", "reason", "owner", "expires"),
}
"""Without these keys a part of a record says of nothing what it says."""


class Verdict(str, Enum):
    """pass: measured, inside the limit. fail: measured, outside. inconclusive: could not be measured; never clean."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


NO_ITEM = Item()

WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The numbers that a run judges findings by. Their values and sources stand in the questions of its suite (``audits/``).

    Rates are fractions. ``anomaly_index``, ``size_ratio``, ``trigger_success`` and ``steering_success`` are those of searches
    for triggers, ``attack_success_rate``, ``robust_accuracy_lost``, ``clean_accuracy_drop`` and ``harmless_drop`` those of
    repairs, ``false_negative_rate`` that of filters.
    """

    anomaly_index: float
    size_ratio: float
    trigger_success: float
    steering_success: float
    attack_success_rate: float
    false_negative_rate: float
    clean_accuracy_drop: float
    robust_accuracy_lost: float
    harmless_drop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The answer of one audit item. All values are builtins, so that a finding can travel between processes.

    ``details`` are the numbers behind the value; ``artifacts`` maps a title to a file name inside the report folder. Texts may
    come from outside (class names, messages): they are made printable.
    """

    audit: Annotated[str, Stored(minLength=1), "node id of the item"]
    statistic: str
    value: float | None
    limit: float | None
    verdict: Verdict
    reason: str
    settings: str = ""
    target_class: Count | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Annotated[Mapping[str, str], "title to a file in the report's folder"] = field(default_factory=dict)
    item: Annotated[Item, LATER] = NO_ITEM

    def __post_init__(self) -> None:
        """Make every text printable and every number a builtin, and take the item from the node id where that tells it.

        A number that is not finite is inside no limit: what it would pass is inconclusive.
        """
        for name in ("audit", "statistic", "reason", "settings", "details", "artifacts"):
            object.__setattr__(self, name, presentable(getattr(self, name)))
        for name in ("value", "limit"):
            object.__setattr__(self, name, _number(getattr(self, name)))
        object.__setattr__(self, "verdict", Verdict(self.verdict))
        if self.verdict is Verdict.PASS and self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "verdict", Verdict.INCONCLUSIVE)
            object.__setattr__(self, "reason", f"{self.statistic} is not finite: {self.reason}")
        # a copied audit in a project has a node id of its own, and the item of its question
        parsed = Item.parse(self.audit)
        own = Item(presentable(self.item.question), presentable(self.item.asked_of), self.item.row)
        object.__setattr__(self, "item", parsed if parsed.question else own)

    def of(self, item: Item, node_id: str = "") -> Finding:
        """The finding as the answer to an item, which a run may know by another node id."""
        return replace(self, item=item, audit=node_id or item.node_id)

    def to_json(self) -> dict[str, Any]:
        """Builtins only; NaN and infinities become null."""
        stored: dict[str, Any] = plain({**asdict(self), "item": self.item.to_json()})
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Finding:
        """The finding that `to_json` wrote; one of schema version 1 knows its item by its node id alone."""
        item = Item.from_json(stored["item"]) if "item" in stored else NO_ITEM
        return cls(**{**stored, "verdict": Verdict(stored["verdict"]), "item": item})


def _number(value: Any) -> float | None:
    """A number of any library as a builtin. Raises `ValueError` or `TypeError` for something else."""
    return value if value is None or type(value) in (int, float) else float(value)


def judge(
    statistic: str,
    value: float,
    *,
    reason: str,
    at_most: float | None = None,
    at_least: float | None = None,
    **rest: Any,
) -> Finding:
    """A finding about one number and one limit; a value that is not finite is inconclusive.

    The verdict is `pass` when the value lies inside the limit, the limit itself included.
    """
    if (at_most is None) == (at_least is None):
        raise ValueError("a judgement has exactly one limit: at_most or at_least")
    limit = at_most if at_most is not None else at_least
    if not math.isfinite(value):
        reason, verdict = f"{statistic} is not finite: {reason}", Verdict.INCONCLUSIVE
    elif at_most is not None:
        verdict = Verdict.PASS if value <= at_most else Verdict.FAIL
    else:
        verdict = Verdict.PASS if value >= float(at_least or 0) else Verdict.FAIL
    return concluded(statistic, verdict, reason, value=value, limit=limit, **rest)


def passed(statistic: str, reason: str, **rest: Any) -> Finding:
    """A finding that says what holds, by a rule of its own."""
    return concluded(statistic, Verdict.PASS, reason, **rest)


def inconclusive(statistic: str, reason: str, **rest: Any) -> Finding:
    """A finding that says why nothing could be measured."""
    return concluded(statistic, Verdict.INCONCLUSIVE, reason, **rest)


def concluded(
    statistic: str,
    verdict: Verdict,
    reason: str,
    *,
    value: float | None = None,
    limit: float | None = None,
    audit: str = "",
    **rest: Any,
) -> Finding:
    """A finding with the verdict of a rule of its own; which item it answers, `Finding.of` says."""
    return Finding(audit=audit, statistic=statistic, value=value, limit=limit, verdict=verdict, reason=reason, **rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything one run found: what ``audit.json`` holds and every page is drawn from.

    Texts may come from outside (names, paths, messages, another's file): they are made printable, so that whoever shows a
    record cannot show what a terminal, a page or a CI runner would obey.

    ``advisory`` are findings of parts that other packages brought and that state no false-alarm rate: they decide nothing.
    """

    subject: Mapping[str, Any]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    detections: Sequence[Mapping[str, Any]]
    repairs: Sequence[Mapping[str, Any]]
    canaries: Sequence[Mapping[str, Any]] = field(default_factory=list)
    findings: Sequence[Finding]
    skipped: Reasons
    errors: Reasons
    not_run: Annotated[Sequence[str], "node ids"]
    not_tested: Annotated[Sequence[str], "what this run says nothing about"]
    seconds: Seconds
    exhibits: Annotated[Mapping[str, Any], LATER] = field(default_factory=dict)
    activations: Annotated[Mapping[str, Any], LATER] = field(default_factory=dict)
    properties: Annotated[Sequence[Mapping[str, Any]], LATER] = field(default_factory=list)
    baseline: Annotated[Mapping[str, Any] | None, LATER] = None
    rates: Annotated[Sequence[str], LATER, "how often this audit is right, as measured: one sentence each"] = field(
        default_factory=list
    )
    questions: Annotated[Mapping[str, Mapping[str, Any]], LATER] = field(default_factory=dict)
    sections: Annotated[
        Mapping[str, Mapping[str, Any]],
        LATER,
        "what questions of other packages and projects have to show, by the name of the question",
    ] = field(default_factory=dict)
    advisory: Annotated[Sequence[Finding], LATER, "of parts of other packages; they decide nothing"] = field(
        default_factory=list
    )
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Make every text printable; findings are so already."""
        for entry in fields(self):
            if entry.name not in (*_FINDINGS, "seconds", "schema_version"):
                object.__setattr__(self, entry.name, presentable(getattr(self, entry.name)))

    @property
    def verdict(self) -> Verdict:
        """fail if a finding failed; inconclusive if one could not be measured, an item broke or was left out; else pass.

        A canary that was missed makes no model bad, but the silence about it means nothing: inconclusive. So is a run that has
        no answer to any question about the model.
        """
        verdicts = {finding.verdict for finding in self.findings if finding.statistic != POWER}
        if Verdict.FAIL in verdicts:
            return Verdict.FAIL
        unsure = Verdict.INCONCLUSIVE in verdicts or self.power not in (None, Verdict.PASS)
        if unsure or self.errors or self.not_run or not self.is_about_the_model:
            return Verdict.INCONCLUSIVE
        return Verdict.PASS

    @property
    def is_about_the_model(self) -> bool:
        """Whether a finding answers a question about the model; a test of a project's own does, a canary does not.

        Records of earlier versions name no questions: any finding but a canary's counts there.
        """
        found = [finding for finding in self.findings if finding.statistic != POWER]
        return any(self.questions.get(entry.item.question, {}).get("about", "model") == "model" for entry in found)

    @property
    def passes_gate(self) -> bool:
        """Whether this record lets a model through: whole, every item decided by the audit, and nothing in it stops the run.

        That is a pass; beside a baseline, that nothing is worse and somebody answers for what is no pass; and an inconclusive
        verdict where the user allowed that, unless something failed, broke or was left out.
        """
        if self.errors or self.not_run or not self.is_about_the_model:
            return False
        if self.baseline:
            return bool(self.baseline["verdict"] == Verdict.PASS.value)
        failed = any(finding.verdict is Verdict.FAIL for finding in self.findings)
        allowed = self.settings.get("inconclusive") == "allow" and not failed
        return self.verdict is Verdict.PASS or allowed

    @property
    def power(self) -> Verdict | None:
        """The canaries' verdict: pass if the audit saw every one of them; None if none was planted."""
        verdicts = {finding.verdict for finding in self.findings if finding.statistic == POWER}
        return next((verdict for verdict in WORST_FIRST if verdict in verdicts), None)

    @property
    def flagged_classes(self) -> tuple[int, ...]:
        """Classes for which a trigger was found, smallest number first."""
        return self._classes(Verdict.FAIL)

    @property
    def flagged_all_to_all(self) -> bool:
        """Whether a trigger was found that sends every class to another one."""
        return self._all_to_all(Verdict.FAIL)

    @property
    def suspected_all_to_all(self) -> bool:
        """Whether every class goes to another one suspiciously easily, by a trigger that is not shown to be a backdoor's."""
        return self._all_to_all(Verdict.INCONCLUSIVE)

    @property
    def suspected_classes(self) -> tuple[int, ...]:
        """Classes with a suspicious trigger that is not shown to be a backdoor's, smallest number first."""
        return self._classes(Verdict.INCONCLUSIVE)

    def _classes(self, verdict: Verdict) -> tuple[int, ...]:
        return tuple(sorted({target for target in self._targets(verdict) if target is not None}))

    def _all_to_all(self, verdict: Verdict) -> bool:
        return None in self._targets(verdict)

    def _targets(self, verdict: Verdict) -> set[int | None]:
        """What findings about a trigger with this verdict are about; one that could not be computed says nothing."""
        return {
            finding.target_class
            for finding in self.findings
            if finding.verdict is verdict
            and finding.value is not None
            and (
                finding.statistic == "anomaly_index"
                or (finding.statistic == STEERED and finding.target_class is not None)
            )
        }

    def to_json(self) -> dict[str, Any]:
        """Builtins only, with the verdict and the flagged classes spelled out for readers that do not judge again."""
        stored = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in _FINDINGS}
        stored.update({name: [finding.to_json() for finding in getattr(self, name)] for name in _FINDINGS})
        content: dict[str, Any] = plain({**stored, **{name: getattr(self, name) for name in _JUDGED}})
        return content

    @classmethod
    def schema(cls) -> Schema:
        """The JSON schema of `to_json`, as builtins that `json.dumps` takes."""
        return record_schema(cls, Finding, Verdict)

    def write(self, path: Path) -> None:
        """Write as indented JSON, whole or not at all. Raises `OSError`."""
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record that `write` wrote. Raises `DataFormatError` for anything else."""
        accepted = f"an audit.json of schema version {' or '.join(map(str, READ_VERSIONS))} is accepted"
        try:
            stored = read_json(path)
        except UnreadableError as error:
            raise DataFormatError(f"{path}: not a readable JSON file ({error}); {accepted}{inside(path)}") from None
        if not isinstance(stored, dict) or stored.get("schema_version") not in READ_VERSIONS:
            found = stored.get("schema_version") if isinstance(stored, dict) else type(stored).__name__
            raise DataFormatError(f"{path}: schema version {brief(found)}; {accepted}")
        stored = {key: value for key, value in stored.items() if key not in _JUDGED} | {
            "schema_version": SCHEMA_VERSION
        }
        needed = {"": _needed(cls), "finding": _needed(Finding), **_NAMED}
        if wrong := misfit(stored, cls.schema(), needed=lambda name, _: needed.get(name, ())):
            raise DataFormatError(f"{path}: not the content of an audit ({wrong}); {accepted}")
        found = {name: [Finding.from_json(finding) for finding in stored.get(name, ())] for name in _FINDINGS}
        return cls(**{**stored, **found})


def inside(folder: Path) -> str:
    """What to give in place of a folder of evidence, to be put behind an error, or nothing."""
    file = folder / "audit.json"
    return f"; give {shlex.quote(str(file))}" if file.is_file() else ""


def _needed(kind: type[Record] | type[Finding]) -> list[str]:
    """The fields that a file must have; those with a default came later, or say nothing where they are missing."""
    return [entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING]
