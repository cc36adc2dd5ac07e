"""What the page says about one audit: a record, put into the order and the words in which a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backdoor_audit.evidence import POWER, REGRESSION, STEERED, Finding, Limits, Record, Verdict
from backdoor_audit.report.album import Album
from backdoor_audit.report.exhibition import Activation, Exhibit, Property, activations, exhibits, properties
from backdoor_audit.report.frameworks import FRAMEWORKS, REFERENCES_OF, Reference
from backdoor_audit.report.measurements import Repair, Row, index_chart, indices, repairs, size_charts, sizes
from backdoor_audit.report.naming import ALL_TO_ALL, WORST_FIRST, audit_of, bracket, class_name, model_name
from backdoor_audit.report.paths import shown_command, without_folders
from backdoor_audit.report.sarif import accepted
from backdoor_audit.report.terminal import canaries_seen, headline

MOST_ITEMS = 1500  # rows; of longer runs the page lists what is not a pass, the record holds all
_QUESTIONS = {
    "test_precondition": "Can this model be judged with these images?",
    "test_false_negative_rate": "Does a filter in front of the model stop stamped images?",
    "test_attack_success_rate_after": "Does a repair of a copy make the trigger fail?",
    "test_robust_accuracy": "Do stamped images get their true label again after it?",
    "test_clean_accuracy_drop": "What does that repair cost in clean accuracy?",
    "test_property": "Does what holds for every clean model hold for this one?",
    "test_regression": "Is it worse than the model that was accepted before?",
    "test_power": "Would known backdoors in copies of this model have been found?",
}
_MEANING = {
    Verdict.PASS: "This is no proof of a clean model. These tests do not see:",
    Verdict.INCONCLUSIVE: "Something could not be measured or could not be told from chance. That is not a clean result; the "
    "reasons are below.",
    Verdict.FAIL: "At least one measurement lies outside its limit. Where a class is flagged, one small change of the image, the "
    "same for every image, makes the model answer with that class.",
}
_STATISTICS = {
    "anomaly_index": "search for triggers",
    STEERED: "properties",
    REGRESSION: "comparison with the accepted model",
    "false_negative_rate": "filters",
    "attack_success_rate": "repairs",
    "robust_accuracy_lost": "repairs",
    "clean_accuracy_drop": "cost of repairs",
    POWER: "canary",
    "clean_accuracy": "clean accuracy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Items with the same verdict for the same reason."""

    verdict: Verdict
    reason: str
    items: tuple[str, ...]
    value: float | None
    limit: float | None
    accepted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a group of items asks, and how many of them ended how."""

    asked: str
    name: str
    counts: Mapping[str, int]
    note: str = ""
    blind_spots: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Everything about one audit; charts are finished SVG, all else is text that the template escapes."""

    prefix: str
    source: str
    record: Record
    model: str
    headline: str
    meaning: str
    flagged: str
    suspected: str
    open_items: int
    facts: Sequence[tuple[str, str]]
    told: Sequence[Told]
    questions: Sequence[Question]
    skipped: Sequence[tuple[str, int]]
    open: Sequence[Exhibit]
    passing: Sequence[Exhibit]
    size_charts: Sequence[str]
    index_chart: str
    detectors: Sequence[str]
    indices: Sequence[Row]
    sizes: Sequence[tuple[str, list[dict[str, Any]]]]
    activations: Sequence[Activation]
    repairs: Sequence[Repair]
    power: Sequence[str]
    sight: Sequence[Finding]
    properties: Sequence[Property]
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
    shown: dict[str, Any] = {
        "open": exhibits(record, album, passing=False),
        "activations": activations(record, album, prefix),
        "properties": properties(record, album),
        "passing": exhibits(record, album, passing=True),
    }
    listed = [entry for entry in record.findings if len(record.findings) <= MOST_ITEMS or not _passed(entry)]
    return Section(
        prefix=prefix,
        source=source,
        record=record,
        model=model_name(record),
        headline=headline(record),
        meaning=_MEANING[record.verdict],
        flagged=_classes(record, record.flagged_classes, all_to_all=record.flagged_all_to_all),
        suspected=_classes(record, record.suspected_classes, all_to_all=record.suspected_all_to_all),
        open_items=sum(not _passed(entry) for entry in record.findings),
        facts=_facts(record),
        told=told(record),
        questions=_questions(record),
        skipped=Counter(map(without_folders, record.skipped.values())).most_common(),
        size_charts=size_charts(record, prefix),
        index_chart=index_chart(record, prefix),
        detectors=[str(entry["detector"]) for entry in record.detections],
        indices=indices(record),
        sizes=sizes(record),
        repairs=repairs(record, prefix),
        power=canaries_seen(record),
        sight=[entry for entry in record.findings if entry.statistic == POWER],
        baseline=record.baseline,
        items=sorted(listed, key=lambda entry: WORST_FIRST.index(entry.verdict)),
        items_left_out=len(record.findings) - len(listed),
        command=shown_command(record),
        limits=_limits(record),
        references=_references(record),
        pictures_left_out=album.left_out,
        **shown,
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
            value=findings[0].value if len(findings) == 1 else None,
            limit=findings[0].limit if len(findings) == 1 else None,
            accepted=acceptance,
        )
        for (verdict, reason, acceptance), findings in sorted(
            groups.items(), key=lambda entry: WORST_FIRST.index(entry[0][0])
        )
    ]


def duration(seconds: float) -> str:
    """A time span in words."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _passed(finding: Finding) -> bool:
    return finding.verdict is Verdict.PASS


def _classes(record: Record, targets: Sequence[int], *, all_to_all: bool) -> str:
    return ", ".join([class_name(record, target) for target in targets] + [ALL_TO_ALL] * all_to_all) or "none"


def _facts(record: Record) -> list[tuple[str, str]]:
    subject, settings, environment = record.subject, record.settings, record.environment
    facts = [("Model", model_name(record))]
    if subject:
        accuracy = next((entry.value for entry in record.findings if entry.statistic == "clean_accuracy"), None)
        shape = "\u00d7".join(map(str, subject["image_shape"]))
        facts += [
            ("Network", f"{subject['architecture']}, {subject['parameters']:,} parameters"),
            ("Task", f"{subject['num_classes']} classes, images {shape}"),
            (
                "Clean images",
                f"{subject['images']:,}: {subject['images_searched']:,} searched, "
                f"{subject['images_held_out']:,} held out",
            ),
            ("Clean accuracy", "not measured" if accuracy is None else f"{accuracy:.1%}"),
        ]
    counts = Counter(entry.verdict.value for entry in record.findings)
    ended = ", ".join(f"{counts[verdict.value]} {verdict.value}" for verdict in WORST_FIRST if counts[verdict.value])
    facts += [
        ("Items", ended or "none"),
        ("Profile, seed", f"{settings.get('profile', 'unknown')}, {settings.get('seed', 'unknown')}"),
        ("Device, time", f"{environment.get('device', 'unknown')}, {duration(record.seconds)}"),
    ]
    facts += [("Measured", text) for text in record.rates]
    return facts


def _questions(record: Record) -> list[Question]:
    """Every group of items in the order of the run: what it asks, and how its items ended."""
    ended = {finding.audit: finding.verdict.value for finding in record.findings}
    ended.update(dict.fromkeys(record.skipped, "skipped"))
    ended.update(dict.fromkeys(record.errors, "broken"))
    ended.update(dict.fromkeys(record.not_run, "not run"))
    known = {str(entry["detector"]): entry for entry in record.detections}
    groups: dict[tuple[str, str], Counter[str]] = {}
    for name, how in ended.items():
        test = audit_of(name)
        detector = bracket(name).partition("-")[0] if test == "test_anomaly_index" else ""
        groups.setdefault((test, detector), Counter())[how] += 1
    questions = []
    for (test, detector), counts in groups.items():
        detection = known.get(detector, {})
        questions.append(
            Question(
                asked=_search_question(detection, detector) if detector else _QUESTIONS.get(test, _as_words(test)),
                name=detector or test.removeprefix("test_"),
                counts=counts,
                note=str(detection.get("inconclusive") or detection.get("coverage") or ""),
                blind_spots=detection.get("blind_spots", ()),
            )
        )
    return questions


def _as_words(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def _search_question(detection: Mapping[str, Any], detector: str) -> str:
    if not detection:
        return f"Does the search {detector} find a trigger?"
    means = detection.get("means", "a trigger")
    if detection.get("rows") == "source":
        return f"Does {means} lead the images of one class away, further than in clean models?"
    if [score.get("target_class", 0) for score in detection.get("classes", ())] == [None]:
        return f"Does {means}, the same for all images, lead every class to another one, more than in clean models?"
    if detection.get("reference"):
        return f"Does {means}, the same for all images, lead to one class further than in clean models?"
    return "Is the smallest trigger for one class far smaller than those for the others?"


def _limits(record: Record) -> list[tuple[str, float, float | None]]:
    usual = asdict(Limits())
    return [(name, value, usual.get(name)) for name, value in record.settings.get("limits", {}).items()]


def _references(record: Record) -> list[tuple[Reference, str]]:
    """Every entry of a framework that a finding speaks to, with what speaks to it."""
    present = [
        statistic for statistic in REFERENCES_OF if any(entry.statistic == statistic for entry in record.findings)
    ]
    made = []
    for reference in FRAMEWORKS:
        speaking = [_STATISTICS.get(name, name) for name in present if reference.id in REFERENCES_OF[name]]
        if speaking:
            made.append((reference, ", ".join(speaking)))
    return made
