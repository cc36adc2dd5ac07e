"""What pytest-html shows with an item: its numbers, the trigger, stamped examples with predictions, the curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from backdoor_audit.evidence import Finding, Record, Verdict
from backdoor_audit.report.paths import PAGE
from backdoor_audit.report.terminal import canaries_seen, headline

_HEIGHT = 84  # px


def draw(finding: Finding, shown: Mapping[str, Any], class_name: Callable[[int | None], str]) -> list[dict[str, Any]]:
    """One extra in pytest-html's own form; ``shown`` is what its question has to show. Words from a file are escaped."""
    parts = [_facts(finding)]
    if shown.get("pictures"):
        parts += [_figure(list(shown["pictures"].values()), ", ".join(shown["pictures"]))]
    if shown.get("examples"):
        parts += [_stamped(shown["examples"], class_name)]
    parts += [_curve(curve) for curve in shown.get("curves", ())]
    if shown.get("canaries"):
        parts.append(_sightings(shown["canaries"]))
    content = f'<div style="padding: 4px 8px">{"".join(parts)}</div>'
    return [{"name": None, "format_type": "html", "content": content, "mime_type": None, "extension": None}]


def verdict_banner(record: Record) -> str:
    """The verdict, what is not a pass, and what was not tested, for the head of the page."""
    lines = [f"{entry.verdict.value}: {entry.reason}" for entry in record.findings if entry.verdict is not Verdict.PASS]
    lines = [f"canary: {reason}" for reason in canaries_seen(record)] + lines
    lines += [f"broken: {name}: {reason}" for name, reason in record.errors.items()]
    lines += [f"not run: {len(record.not_run)} items"] if record.not_run else []
    lines += [f"not tested: {text}" for text in record.not_tested]
    rows = "".join(f"<li>{escape(line)}</li>" for line in lines)
    colour = {Verdict.PASS: "#1e7e34", Verdict.FAIL: "#b02a37", Verdict.INCONCLUSIVE: "#9a6700"}[record.verdict]
    style = f"font-size: 18px; font-weight: bold; color: {colour}"
    page = f'<p><a href="{PAGE}">The whole evidence</a> is in {PAGE}, beside the record.</p>'
    return f'<p style="{style}">{escape(headline(record))}</p>{page}<ul>{rows}</ul>'


def _stamped(examples: Sequence[Mapping[str, Any]], class_name: Callable[[int], str]) -> str:
    """Held-out images of different classes before and after stamping, with what the model says and how sure it is."""
    rows = "".join(
        f"<tr><td>{escape(class_name(example['label']))}</td>"
        f"<td>{escape(class_name(example['predicted']))} ({example['confidence']:.0%})</td>"
        f"<td>{escape(class_name(example['predicted_stamped']))} ({example['confidence_stamped']:.0%})</td></tr>"
        for example in examples
    )
    table = f"<table><tr><th>labelled</th><th>predicted</th><th>with the trigger</th></tr>{rows}</table>"
    before, after = ([example[key] for example in examples] for key in ("image", "stamped"))
    return _figure(before, "held-out images") + _figure(after, "the same, stamped") + table


def _figure(pictures: Sequence[str], caption: str) -> str:
    """PNGs in base64 side by side, all of one height."""
    images = "".join(
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{picture}" '
        f'style="height: {_HEIGHT}px; margin-right: 4px; image-rendering: pixelated">'
        for picture in pictures
    )
    return (
        f'<figure style="display: inline-block; margin: 4px 18px 4px 0">{images}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _facts(finding: Finding) -> str:
    value = "-" if finding.value is None else f"{finding.value:.4g}"
    limit = "-" if finding.limit is None else f"{finding.limit:.4g}"
    details = "".join(
        f"<tr><td>{escape(name)}</td><td>{_number(entry)}</td></tr>"
        for name, entry in finding.details.items()
        if not isinstance(entry, Mapping)
    )
    return (
        f"<p><b>{finding.verdict.value}</b>: {escape(finding.reason)}</p>"
        f"<p>{escape(finding.statistic)} = {value}, limit {limit}</p>"
        f"<details><summary>details</summary><p><code>{escape(finding.settings)}</code></p><table>{details}</table></details>"
    )


def _curve(outcome: dict[str, Any]) -> str:
    head = (
        "<tr><th>channels pruned</th><th>clean accuracy</th><th>attack success rate</th><th>robust accuracy</th></tr>"
    )
    rows = "".join(
        f"<tr><td>{point['prune_rate']:.0%}</td>"
        + "".join(f"<td>{value:.1%}</td>" for value in point["scores"].values())
        + "</tr>"
        for point in outcome["curve"]
    )
    return f"<p>{escape(outcome['method'])}, on held-out images</p><table>{head}{rows}</table>"


def _sightings(sightings: list[dict[str, Any]]) -> str:
    shown = {
        "target_class": "class",
        "called": "dose",
        "planted_by": "planted by",
        "accuracy_before": "clean accuracy before",
        "clean_accuracy": "after",
        "success_before": "attack success rate before",
        "attack_success_rate": "after",
        "found_by": "found by",
        "suspected_by": "suspected by",
        "others": "other classes flagged",
        "details": "details",
        "seconds": "seconds",
    }
    head = "".join(f"<th>{title}</th>" for title in shown.values())
    rows = "".join(
        "<tr>" + "".join(f"<td>{_number(sighting[key])}</td>" for key in shown) + "</tr>" for sighting in sightings
    )
    return f"<p>canaries in copies of the model, rates on held-out images</p><table><tr>{head}</tr>{rows}</table>"


def _number(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_number, value)) or "-"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
