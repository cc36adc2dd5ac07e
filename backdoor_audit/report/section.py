"""What the page says about one audit: a record, put into the order and the words in which a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backdoor_audit.evidence import POWER, STEERED, WORST_FIRST, Finding, Record, Verdict
from backdoor_audit.questions.frameworks import FRAMEWORKS, Reference
from backdoor_audit.report.advice import Step, decision, is_quick, short_hash, steps
from backdoor_audit.report.asked import Group, groups, limits
from backdoor_audit.report.certainty import Certainty, certainty, distance, index_limit, most_suspicious
from backdoor_audit.report.exhibition import Activation, Property, activations, exhibits, properties
from backdoor_audit.report.gallery import Card, cards
from backdoor_audit.report.measurements import (
    Repair,
    Row,
    index_chart,
    indices,
    repair_plot,
    repairs,
    size_charts,
    sizes,
)
from backdoor_audit.report.naming import INDEX, class_name, classes_called, model_name
from backdoor_audit.report.others import other_parts
from backdoor_audit.report.paths import shown_command, without_folders
from backdoor_audit.report.picture_budget import Album
from backdoor_audit.report.sarif import accepted
from backdoor_audit.report.tables import Table, tables
from backdoor_audit.report.terminal import headline
from backdoor_audit.report.words import words_of

MOST_ITEMS = 1500  # rows; of longer runs the page lists what is not a pass, the record holds all
_RATES = (STEERED, "false_negative_rate", "attack_success_rate", "robust_accuracy_lost", "clean_accuracy_drop")
_LEADING = 2  # findings in whole sentences on the first screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Items with the same verdict for the same reason."""

    verdict: Verdict
    reason: str
    items: tuple[str, ...]
    measured: str
    accepted: str

    @property
    def count(self) -> int:
        """Number of items."""
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Everything about one audit; charts are finished SVG, all else is text that the template escapes."""

    prefix: str
    source: str
    record: Record
    model: str
    headline: str
    decision: str
    tone: str
    lead: Sequence[str]
    steps: Sequence[Step]
    certainty: Certainty
    flagged: str
    suspected: str
    open_items: int
    facts: Sequence[tuple[str, str]]
    told: Sequence[Told]
    questions: Sequence[Group]
    skipped: Sequence[tuple[str, int]]
    cards: Sequence[Card]
    size_charts: Sequence[str]
    index_chart: str
    detectors: Sequence[str]
    limit: float
    indices: Sequence[Row]
    sizes: Sequence[tuple[str, list[dict[str, Any]]]]
    activations: Sequence[Activation]
    repairs: Sequence[Repair]
    repair_plot: str
    sight: Sequence[Finding]
    properties: Sequence[Property]
    tables: Sequence[Table]
    baseline: Mapping[str, Any] | None
    items: Sequence[Finding]
    items_left_out: int
    command: str
    limits: Sequence[tuple[str, float, float | None]]
    references: Sequence[tuple[Reference, str]]
    pictures_left_out: int

    def called(self, target_class: int | None) -> str:
        """How to call a class: its number and its name."""
        return class_name(self.record, target_class)


def section(record: Record, *, source: str, prefix: str) -> Section:
    """The section about one record. ``source`` is the file it came from, ``prefix`` makes its ids unique on the page.

    Raises `LookupError`, `TypeError`, `ValueError` or `AttributeError` for a record whose content has another form.
    """
    album = Album()
    # in the order in which pictures matter: what comes last is left out where there is no room
    open_ones, asked = exhibits(record, album, passing=False), properties(record, album)
    inside = activations(record, album, prefix)
    shown = [*open_ones, *exhibits(record, album, passing=True)]
    listed = [entry for entry in record.findings if len(record.findings) <= MOST_ITEMS or not _passed(entry)]
    return Section(
        prefix=prefix,
        source=source,
        record=record,
        model=model_name(record),
        headline=headline(record),
        decision=decision(record),
        tone=_tone(record),
        lead=_lead(record),
        steps=steps(record),
        certainty=certainty(record, prefix),
        flagged=classes_called(record, record.flagged_classes, all_to_all=record.flagged_all_to_all) or "none",
        suspected=classes_called(record, record.suspected_classes, all_to_all=record.suspected_all_to_all) or "none",
        open_items=sum(not _passed(entry) for entry in record.findings),
        facts=_facts(record),
        told=told(record),
        questions=groups(record),
        skipped=Counter(map(without_folders, record.skipped.values())).most_common(),
        size_charts=size_charts(record, prefix),
        index_chart=index_chart(record, prefix),
        detectors=[str(entry["detector"]) for entry in record.detections],
        limit=index_limit(record),
        indices=indices(record),
        sizes=sizes(record),
        repairs=repairs(record, prefix),
        repair_plot=repair_plot(record, prefix),
        sight=[entry for entry in record.findings if entry.statistic == POWER],
        baseline=record.baseline,
        items=sorted(listed, key=lambda entry: WORST_FIRST.index(entry.verdict)),
        items_left_out=len(record.findings) - len(listed),
        command=shown_command(record),
        limits=limits(record),
        references=_references(record),
        cards=cards(record, shown, asked),
        activations=inside,
        properties=asked,
        tables=tables(record),
        pictures_left_out=album.left_out,
    )


def told(record: Record) -> list[Told]:
    """What is not a pass, fails first; items with the same reason, and the same acceptance in a baseline, are told once."""
    held = accepted(record)
    groups: dict[tuple[Verdict, str, str], list[Finding]] = {}
    for finding in record.findings:
        if not _passed(finding):
            groups.setdefault((finding.verdict, finding.reason, held.get(finding.audit, "")), []).append(finding)
    return [
        Told(
            verdict=verdict,
            reason=without_folders(reason),
            items=tuple(finding.audit for finding in findings),
            measured=_measured(findings[0]) if len(findings) == 1 else "",
            accepted=acceptance,
        )
        for (verdict, reason, acceptance), findings in sorted(
            groups.items(), key=lambda entry: WORST_FIRST.index(entry[0][0])
        )
    ]


def _measured(finding: Finding) -> str:
    """A value and its limit in words; empty where there is none."""
    value, limit = finding.value, finding.limit
    if value is None or limit is None:
        return ""
    if finding.statistic == INDEX:
        return distance(value, limit)
    form = ".1%" if finding.statistic in _RATES else ".3g"
    return f"{finding.statistic.replace('_', ' ')} {value:{form}}, limit {limit:{form}}"


def _lead(record: Record) -> list[str]:
    """What was found, in the words of the findings: the most suspicious search, and a counterexample that a person can read."""
    verdict = record.verdict
    if verdict is Verdict.PASS:
        return []
    worst = [entry for entry in record.findings if entry.verdict is verdict]
    top = most_suspicious(record)
    refuted = [entry for entry in worst if entry.statistic == STEERED]
    ordered = [*refuted[:1], *([top] if top in worst else []), *worst]
    reasons = [*(entry.reason for entry in ordered if entry is not None), *record.errors.values()]
    return list(dict.fromkeys(map(without_folders, reasons)))[:_LEADING]


def _tone(record: Record) -> str:
    """The colour of the verdict: that of its word, but for a pass of the quick profile, which is never green."""
    return "inconclusive" if record.verdict is Verdict.PASS and is_quick(record) else record.verdict.value


def duration(seconds: float) -> str:
    """A time span in words."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _passed(finding: Finding) -> bool:
    return finding.verdict is Verdict.PASS


def _facts(record: Record) -> list[tuple[str, str]]:
    subject, settings, environment = record.subject, record.settings, record.environment
    facts = [("Model", model_name(record))]
    if subject:
        accuracy = next((entry.value for entry in record.findings if entry.statistic == "clean_accuracy"), None)
        shape = "\u00d7".join(map(str, subject["image_shape"]))
        held_out = f"{subject['images']:,} clean images, {subject['images_held_out']:,} held out"
        facts += [
            ("SHA-256", short_hash(str(subject["model_fingerprint"]))),
            ("Network", f"{subject['architecture']}, {subject['parameters']:,} parameters"),
            ("Task", f"{subject['num_classes']} classes, {shape}"),
            ("Measured on", held_out),
            ("Clean accuracy", "not measured" if accuracy is None else f"{accuracy:.1%}"),
        ]
    others = other_parts(record)
    counts = Counter(entry.verdict.value for entry in record.findings)
    ended = ", ".join(f"{counts[verdict.value]} {verdict.value}" for verdict in WORST_FIRST if counts[verdict.value])
    return [
        *facts,
        ("Audited", str(environment.get("began", "date not recorded"))),
        ("Profile", f"{settings.get('profile', 'unknown')}, seed {settings.get('seed', 'unknown')}"),
        ("Items", ended or "none"),
        *([("Parts of other packages", others)] if others else []),
        ("Took", f"{duration(record.seconds)} on {environment.get('device', 'an unknown device')}"),
    ]


def _references(record: Record) -> list[tuple[Reference, str]]:
    """Every entry of a framework that a finding speaks to, with what speaks to it."""
    present = {entry.statistic for entry in record.findings}
    made = []
    for reference in FRAMEWORKS:
        speaking = [
            words.topic if len(words.references) == 1 and words.topic else statistic.replace("_", " ")
            for words in words_of(record).values()
            for statistic, ids in words.references.items()
            if statistic in present and reference.id in ids
        ]
        if speaking:
            made.append((reference, ", ".join(dict.fromkeys(speaking))))
    return made
