"""What parts of other packages find: asked about a copy of the model, and whatever they raise ends nothing but their answer.

Only the items of such a part hear of it. What they come to is advisory, unless the part states its false-alarm rate; see
`Catalogue`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from backdoor_audit.detectors import Detection
from backdoor_audit.errors import AuditError, OptionError
from backdoor_audit.installed import Plugin, contained
from backdoor_audit.item import Item, Row
from backdoor_audit.model import surroundings
from backdoor_audit.model.subject import Subject
from backdoor_audit.properties import PropertyOutcome, unanswered
from backdoor_audit.repairs import Repair, RepairOutcome, judge_drop, judge_robustness, judge_success
from backdoor_audit.store import generator_for

if TYPE_CHECKING:
    from backdoor_audit.run.asked import Asked
    from backdoor_audit.run.searches import Searched

Result = TypeVar("Result")


def items_of(run: Searched) -> tuple[Item, ...]:
    """One for every row of each. Raises `OptionError` if one does not say which rows it has."""
    items: list[Item] = []
    for detector in run.other_detectors:
        rows = answer_of(partial(_rows, detector, run.num_classes), detector.name, run.device)
        if isinstance(rows, str) or not _are_rows(rows, run.num_classes):
            raise OptionError(
                f"{_whose(run, detector)}: targets({run.num_classes}) gives {rows!r}; class numbers or None for all-to-all are "
                "accepted, each once; uninstall that package, or pass --audit-plugins=off"
            )
        items += [Item("anomaly_index", detector.name, Row(row, is_source=detector.rows == "source")) for row in rows]
    return tuple(items)


def detection_of(run: Searched, detector: Any, no_answer: Callable[[str], Detection]) -> Detection:
    """What a detector finds; ``no_answer`` to the reason where it has none."""

    def work() -> Detection:
        subject = Subject(run.classifier.copy(), *run.split)
        found: Detection = detector(
            subject,
            reference=run,
            found=[run.detection(name) for name in detector.builds_on],
            generator=generator_for(run.options.seed, detector.name),
            progress=run.progress,
        )
        return replace(found, detector=detector.name, settings=repr(detector))

    def judged() -> Detection:
        with run.in_budget(), run.once(f"the search of {detector.name}"):
            if detector.needs_twins and not run.twins.classifiers:
                return no_answer(run.twins.reason)
            parts = {**run.detection_parts(detector), "plugin": run.catalogue.plugin(detector)}
            detection = run.store.recall(parts, work, pack=Detection.pack, unpack=Detection.unpack)[0]
        for target in detector.targets(run.num_classes):
            detection.judge(target, run.limits)  # numbers that cannot be judged are no answer either
        return detection

    if detector.name not in run.other_detections:
        reason = run.unmet or run.too_few(detector)
        answer: Detection | str = reason or answer_of(judged, _whose(run, detector), run.device)
        run.other_detections[detector.name] = no_answer(answer) if isinstance(answer, str) else answer
    return run.other_detections[detector.name]


def outcome_of(run: Asked, wanted: Any) -> PropertyOutcome:
    """What came of a property. Inconclusive, with the reason, where it has no answer."""

    def work() -> PropertyOutcome:
        found: PropertyOutcome = wanted(
            Subject(run.classifier.copy(), *run.split),
            generator=generator_for(run.options.seed, wanted.name),
            natural=partial(run.natural_rate, wanted),
            kept=(),
        )
        return replace(found, name=wanted.name, settings=repr(wanted))

    def judged() -> PropertyOutcome:
        with run.in_budget(), run.once(f"the search of {wanted.name}"):
            if wanted.needs_twins and not run.twins.classifiers:
                return unanswered(wanted, run.twins.reason)
            parts = {**run.property_parts(wanted), "plugin": run.catalogue.plugin(wanted)}
            outcome = run.store.recall(parts, work, pack=PropertyOutcome.pack, unpack=PropertyOutcome.unpack)[0]
        _ = outcome.finding  # numbers that cannot be judged are no answer either
        return outcome

    if wanted.name not in run.other_outcomes:
        answer: PropertyOutcome | str = run.unmet or answer_of(judged, _whose(run, wanted), run.device)
        run.other_outcomes[wanted.name] = unanswered(wanted, answer) if isinstance(answer, str) else answer
    return run.other_outcomes[wanted.name]


def outcomes_of(
    run: Searched, method: Repair, plugin: Plugin, work: Callable[[], tuple[RepairOutcome, ...]]
) -> tuple[RepairOutcome, ...]:
    """What comes of a repair; not applicable, with the reason, where it has no answer."""

    def judged() -> tuple[RepairOutcome, ...]:
        outcomes = work()
        if not any(outcome.not_applicable for outcome in outcomes):
            for judgement in (judge_success, judge_robustness, judge_drop):
                judgement(outcomes, run.limits)  # numbers that cannot be judged are no answer either
        return outcomes

    answer = answer_of(judged, f"{method.name} of {plugin.whose}", run.device)
    if not isinstance(answer, str):
        return answer
    return (RepairOutcome(method=method.name, settings=repr(method), target_class=0, not_applicable=answer),)


def answer_of(work: Callable[[], Result], whose: str, device: torch.device) -> Result | str:
    """What comes of code of others; if it raises anything but Ctrl-C, that in one clause that begins with ``whose``.

    Torch's settings and random states are kept: what others compute later does not depend on it.
    """
    try:
        with surroundings.kept(device), contained(whose):
            return work()
    except AuditError as error:
        return str(error)


def _rows(detector: Any, num_classes: int) -> tuple[int | None, ...]:
    return tuple(detector.targets(num_classes))


def _are_rows(rows: tuple[Any, ...], num_classes: int) -> bool:
    """Whether there are some, each a class or None, and each once."""
    known = all(row is None or (type(row) is int and 0 <= row < num_classes) for row in rows)
    return bool(rows) and known and len(set(rows)) == len(rows)


def _whose(run: Searched, part: Any) -> str:
    plugin = run.catalogue.plugin(part)
    return f"{part.name} of {plugin.whose}" if plugin else str(part.name)
