"""What a run found, weighed: evidence by its subject and its strength, remedies apart from it, and each thing once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from backdoor_audit.evidence import POWER, REGRESSION, STEERED, WORST_FIRST, Finding, Record, Verdict
from backdoor_audit.report.naming import ALL_TO_ALL, INDEX, class_called
from backdoor_audit.report.words import about, counts_of
from backdoor_audit.words import About

UNMEASURED = "not measured"

_SUBJECTS = {POWER: "canaries", REGRESSION: "beside the accepted model"}
_UNMET = "precondition not met: "


@dataclass(frozen=True, slots=True)
class Point:
    """One thing that was found: who found it, the number beside its limit, and what it means in words."""

    names: tuple[str, ...]
    verdict: Verdict
    number: str
    text: str

    @property
    def called(self) -> str:
        """Who found it, or how many items did."""
        return ", ".join(self.names) if len(self.names) < 4 else f"{len(self.names)} items"


@dataclass(frozen=True, slots=True)
class Weighed:
    """What speaks about one subject (a class, the canaries, what could not be measured), the strongest first."""

    subject: str
    verdict: Verdict
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Remedy:
    """One repair of a copy, or one filter: whether it stays inside every limit, and its numbers beside them."""

    name: str
    holds: bool
    numbers: tuple[str, ...]


def evidence(record: Record) -> list[Weighed]:
    """Everything that is not a pass and no remedy, by subject: fails before what is inconclusive, then the strongest first."""
    told = trigger_finding(record)
    groups: dict[str, list[Finding]] = {}
    for finding in record.findings:
        if finding.verdict is not Verdict.PASS and about(record, finding) is not About.REMEDY:
            groups.setdefault(_subject(record, finding), []).append(finding)
    found = []
    for subject, findings in groups.items():
        ordered = sorted(findings, key=_weight)
        found.append((_weight(ordered[0]), Weighed(subject, ordered[0].verdict, _points(ordered, subject, told))))
    return [weighed for _, weighed in sorted(found, key=lambda entry: entry[0])]


def trigger_finding(record: Record) -> Finding | None:
    """The finding that shows the trigger best: a counterexample in whole numbers, else what stands out most; None without one."""
    about = [entry for entry in record.findings if _is_about_a_trigger(entry) and entry.verdict is not Verdict.PASS]
    return min(
        about,
        key=lambda entry: (WORST_FIRST.index(entry.verdict), entry.statistic != STEERED, _weight(entry)),
        default=None,
    )


def trigger_sentence(record: Record) -> str:
    """The trigger, or what is suspected to be one, in one sentence; empty where nothing was found."""
    finding = trigger_finding(record)
    if finding is None:
        return ""
    text = finding.reason.partition("; ")[0]
    subject = _subject(record, finding)
    for start in (f"{subject}: ", f"{ALL_TO_ALL}: "):
        text = text.removeprefix(start)
    if finding.target_class is not None and text.endswith("held-out images there"):
        text = f"{text.removesuffix('there')}to {subject}"
    return text


def remedies(record: Record) -> list[Remedy]:
    """Repairs and filters that were measured, those that hold first."""
    groups: dict[str, list[Finding]] = {}
    for finding in record.findings:
        if about(record, finding) is About.REMEDY:
            name = finding.item.asked_of or finding.audit
            is_filter = finding.statistic == "false_negative_rate"
            groups.setdefault(f"filter {name}" if is_filter else name, []).append(finding)
    counts = counts_of(record)
    made = [
        Remedy(
            name,
            all(entry.verdict is Verdict.PASS for entry in findings),
            tuple(_share(entry, counts) for entry in findings),
        )
        for name, findings in groups.items()
    ]
    return sorted(made, key=lambda remedy: not remedy.holds)


def named(finding: Finding) -> str:
    """Who found it: the detector, the property, the condition."""
    item = finding.item
    if not item.question:
        return finding.audit
    return f"{item.asked_of} ({str(item.row).replace('_', ' ')})" if item.row and item.row.is_source else item.asked_of


def _share(finding: Finding, counts: Mapping[str, str]) -> str:
    over = "" if finding.verdict is Verdict.PASS else ": too much" if finding.value is not None else ": not measured"
    value = "-" if finding.value is None else f"{finding.value:.1%}"
    limit = "" if finding.limit is None else f" (limit {finding.limit:.0%})"
    return f"{counts.get(finding.statistic, finding.statistic.replace('_', ' '))} {value}{limit}{over}"


def _is_about_a_trigger(finding: Finding) -> bool:
    if finding.value is None:
        return False
    return finding.statistic == INDEX or (finding.statistic == STEERED and finding.target_class is not None)


def _subject(record: Record, finding: Finding) -> str:
    if _is_about_a_trigger(finding):
        return class_called(record, finding.target_class)
    if finding.statistic in _SUBJECTS:
        return _SUBJECTS[finding.statistic]
    return UNMEASURED if finding.verdict is Verdict.INCONCLUSIVE else "other limits"


def _weight(finding: Finding) -> tuple[int, bool, float]:
    """Smaller is stronger: the verdict, whether it is about a trigger, then how far the value lies beyond its limit."""
    value, limit = finding.value or 0.0, finding.limit or 0.0
    return WORST_FIRST.index(finding.verdict), not _is_about_a_trigger(finding), -(value / limit if limit else value)


def _points(findings: Iterable[Finding], subject: str, told: Finding | None) -> tuple[Point, ...]:
    """One point for each thing; items with the same reason are told once, with all their names."""
    groups: dict[tuple[Verdict, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.verdict, finding.reason.removeprefix(_UNMET)), []).append(finding)
    return tuple(
        Point(
            names=tuple(dict.fromkeys(map(named, same))),
            verdict=verdict,
            number=_number(same[0]) if len(same) == 1 else "",
            text=_unsaid(reason, subject, same[0], told),
        )
        for (verdict, reason), same in groups.items()
    )


def _unsaid(reason: str, subject: str, finding: Finding, told: Finding | None) -> str:
    """The reason without what stands above it already: the name of the class, the sentence about the trigger."""
    if finding is told:
        _, _, rest = reason.partition("; ")
        return f"the trigger above{f'; {rest}' if rest else ''}"
    return reason.removeprefix(f"{subject}: ")


def _number(finding: Finding) -> str:
    if finding.value is None or finding.limit is None:
        return ""
    if finding.statistic == STEERED:
        return f"{finding.value:.0%}, limit {finding.limit:.0%}"
    kind = "index" if finding.statistic == INDEX else finding.statistic.replace("_", " ")
    return f"{kind} {finding.value:.3g}, limit {finding.limit:.3g}"


def skipped(record: Record) -> Sequence[tuple[str, int]]:
    """Why items were skipped, and how many for each reason."""
    return list(Counter(record.skipped.values()).items())
