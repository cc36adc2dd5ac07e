"""What pytest-html shows with an item: the trigger, stamped examples with predictions, the chart of sizes, the curves."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from backdoor_audit.evidence import POWER, Finding, Record, Verdict
from backdoor_audit.report.pictures import index_chart, size_chart, strip
from backdoor_audit.report.terminal import canaries_seen, headline

if TYPE_CHECKING:
    from backdoor_audit.run import Audit
    from backdoor_audit.trigger import AnyTrigger

_EXAMPLES = 4
_DRAWN_CLASSES = 100  # of models with more classes, only those that are not a pass are drawn: pages must open


def draw(run: Audit, finding: Finding) -> list[dict[str, Any]]:
    """One extra in pytest-html's own form; every word that comes from a file is escaped."""
    name = finding.audit.partition("[")[2].rstrip("]")
    parts = [_facts(finding)]
    if finding.statistic == "anomaly_index":
        detection = run.detection(name.partition("-")[0])
        drawn = run.num_classes <= _DRAWN_CLASSES or finding.verdict is not Verdict.PASS
        trigger = detection.trigger(finding.target_class)
        if trigger is not None and drawn:
            pictures = trigger.pictures()
            parts.append(_figure(list(pictures.values()), ", ".join(pictures)))
            parts.append(_stamped(run, trigger))
        if drawn:
            names, limits = run.clean_set.class_names, run.options.limits
            parts.append(size_chart(detection.summary(), limits.size_ratio, names, finding.target_class))
            if detection.median_size is None:
                parts.append(index_chart(detection.summary(), limits.anomaly_index, names, finding.target_class))
    if finding.statistic in ("attack_success_rate", "robust_accuracy_lost", "clean_accuracy_drop"):
        parts += [_curve(outcome.summary()) for outcome in run.repair(name) if outcome.curve]
    if finding.statistic == POWER:
        parts.append(_sightings([sighting.summary() for sighting in run.sightings(name)]))
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
    return f'<p style="{style}">{escape(headline(record))}</p><ul>{rows}</ul>'


def _stamped(run: Audit, trigger: AnyTrigger) -> str:
    """Held-out images of different classes before and after stamping, with what the model says and how sure it is."""
    others = run.split[1].without_class(trigger.target_class)
    chosen = [int((others.labels == label).nonzero()[0]) for label in others.labels.unique().tolist()[:_EXAMPLES]]
    images = others.images[chosen]
    stamped = trigger.stamp(images)
    before, after = (run.classifier.logits(batch).softmax(dim=1).max(dim=1) for batch in (images, stamped))
    rows = "".join(
        f"<tr><td>{escape(run.class_name(int(others.labels[index])))}</td>"
        f"<td>{escape(run.class_name(int(before.indices[row])))} ({float(before.values[row]):.0%})</td>"
        f"<td>{escape(run.class_name(int(after.indices[row])))} ({float(after.values[row]):.0%})</td></tr>"
        for row, index in enumerate(chosen)
    )
    table = f"<table><tr><th>labelled</th><th>predicted</th><th>with the trigger</th></tr>{rows}</table>"
    return _figure(list(images), "held-out images") + _figure(list(stamped), "the same, stamped") + table


def _figure(tiles: list[Tensor], caption: str) -> str:
    source = f"data:image/png;base64,{strip(tiles)}"
    return (
        f'<figure style="display: inline-block; margin: 4px 18px 4px 0"><img alt="{caption}" src="{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
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
        "planted_by": "planted by",
        "accuracy_before": "clean accuracy before",
        "clean_accuracy": "after",
        "attack_success_rate": "attack success rate",
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
