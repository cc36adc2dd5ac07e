"""The record of a run, from the answers to its questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from backdoor_audit.errors import AuditError
from backdoor_audit.evidence import Finding, Record
from backdoor_audit.installed import is_advisory, plugins_of
from backdoor_audit.item import Item
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.question import Skipped
from backdoor_audit.questions.suite import shipped, suite_of
from backdoor_audit.rates import measured_rates
from backdoor_audit.words import About

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


_MEASURED_WITH = ("profile", "index", "steps", "restarts", "reference")
"""Options on which it depends how often the detectors are right."""

NOT_TESTED = ("the training data, the code around the model, and what the model does on images unlike the clean ones",)


def build_record(
    sections: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    questions: Mapping[str, Mapping[str, Any]],
    findings: Mapping[str, Finding],
    skipped: Mapping[str, str],
    errors: Mapping[str, str],
    expected: Sequence[str],
    seconds: float,
) -> Record:
    """The record of a run from what its items submitted, in the order of ``expected``; ``questions`` are the suite's words."""
    order = {name: number for number, name in enumerate(expected)}
    plugins = plugins_of(sections.get("environment", {}))
    ordered = sorted(findings.values(), key=lambda finding: order.get(finding.audit, len(order)))
    detections = list(sections.get("detections", {}).values())
    done = {*findings, *skipped, *errors}
    return Record(
        subject=sections.get("subject", {}),
        settings=settings,
        environment=sections.get("environment", {}),
        detections=detections,
        repairs=list(sections.get("repairs", {}).values()),
        canaries=list(sections.get("canaries", {}).values()),
        findings=[finding for finding in ordered if not is_advisory(finding.item, plugins)],
        skipped=skipped,
        errors=errors,
        not_run=[name for name in expected if name not in done and not is_advisory(Item.parse(name), plugins)],
        not_tested=[*_not_tested(detections, settings), *_not_asked(questions), *NOT_TESTED],
        seconds=seconds,
        exhibits=sections.get("exhibits", {}),
        activations=sections.get("activations", {}),
        properties=list(sections.get("properties", {}).values()),
        rates=measured_rates(detections) if _is_as_measured(settings, questions) else [],
        advisory=[finding for finding in ordered if is_advisory(finding.item, plugins)],
        questions=questions,
        sections=sections.get("sections", {}),
    )


def judged_record(run: Run, *, shown: bool = False) -> Record:
    """The record of all items but those about the baseline, as yet without its seconds; what is not finished is computed.

    ``shown`` says whether the pictures for people are prepared as well.
    """
    findings: dict[str, Finding] = {}
    skipped: dict[str, str] = {}
    errors: dict[str, str] = {}
    expected: list[str] = []
    for question, item, answer in suite_of(run).answers(run, about=set(About) - {About.CHANGE}):
        name = item.node_id
        expected.append(name)
        if isinstance(answer, Finding):
            findings[name] = answer
            if shown and not is_advisory(item, run.inputs.catalogue.plugins):
                with suppress(AuditError):  # a model that fails now has no pictures; what was judged stands
                    question.show(run, answer)
        elif isinstance(answer, Skipped):
            skipped[name] = answer.reason
        else:
            errors[name] = str(answer)
    return build_record(
        {**run.sections(), **(run.pictures.take() if shown else {})},
        run.settings(),
        questions=suite_of(run).to_json(),
        findings=findings,
        skipped=skipped,
        errors=errors,
        expected=expected,
        seconds=0.0,
    )


def _not_tested(detections: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """What no detector with an answer sees, which detectors gave none, and what a profile or a race left out."""
    answered = [entry for entry in detections if not entry["inconclusive"]]
    lines = [
        f"{spot} (no detector of this run sees them)"
        for spot in (answered[0]["blind_spots"] if answered else ())
        if all(spot in entry["blind_spots"] for entry in answered)
    ]
    silent = [entry["detector"] for entry in detections if entry["inconclusive"]]
    if silent:
        lines.append(f"what {', '.join(silent)} look{'s' * (len(silent) == 1)} for: no answer (reason: see above)")
    lines += [
        f"triggers that do not show early in a search: {entry['detector']}: {entry['coverage']}"
        for entry in answered
        if entry["coverage"]
    ]
    if settings.get("profile") == "quick":
        lines.append(
            "the quick profile leaves out every detector that needs reference models: only small patches are seen"
        )
    elif settings.get("twins"):
        lines.append(
            f"whether the reference networks of {settings['twins']} are clean: whoever made the file decides what counts as "
            "natural"
        )
    return lines


def _is_as_measured(settings: Mapping[str, Any], questions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a run searches and judges as the one whose rates were measured did: by shipped settings, limits and indices."""
    usual = AuditOptions()
    asked = questions.get("anomaly_index", {}).get("settings")
    return asked == repr(shipped().question("anomaly_index")) and all(
        settings.get(name) == getattr(usual, name) for name in _MEASURED_WITH
    )


def _not_asked(questions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a suite of one's own leaves out of the shipped questions."""
    absent = [question for question in shipped().questions if question.name not in questions]
    lines = [f"{question.words.asks} (this suite does not ask it)" for question in absent] if questions else []
    if questions and not any(words["about"] == About.MODEL.value for words in questions.values()):
        lines.insert(0, "the model itself: no question of this suite is about it, so that no run of it is a pass")
    return lines
