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

from backdoor_audit.detectors import Detection, no_answer
from backdoor_audit.errors import AuditError, OptionError
from backdoor_audit.installed import Plugin, contained
from backdoor_audit.item import Item, Row
from backdoor_audit.model import surroundings
from backdoor_audit.properties import PropertyOutcome, unanswered
from backdoor_audit.repairs import Repair, RepairOutcome, judge_drop, judge_robustness, judge_success
from backdoor_audit.store import generator_for

if TYPE_CHECKING:
    from backdoor_audit.evidence import Limits
    from backdoor_audit.run.inputs import Inputs
    from backdoor_audit.run.properties import PropertySearches
    from backdoor_audit.run.searches import Searches

Result = TypeVar("Result")


def items_of(searches: Searches) -> tuple[Item, ...]:
    """One for every row of each. Raises `OptionError` if one does not say which rows it has."""
    items: list[Item] = []
    inputs = searches.inputs
    for detector in searches.other_detectors:
        rows = answer_of(partial(_rows, detector, inputs.num_classes), detector.name, inputs.device)
        if isinstance(rows, str) or not _are_rows(rows, inputs.num_classes):
            raise OptionError(
                f"{_whose(inputs, detector)}: targets({inputs.num_classes}) gives {rows!r}; class numbers or None for all-to-all "
                "are accepted, each once; uninstall that package, or pass --audit-plugins=off"
            )
        items += [Item("anomaly_index", detector.name, Row(row, is_source=detector.rows == "source")) for row in rows]
    return tuple(items)


def detection_of(searches: Searches, detector: Any) -> Detection:
    """What a detector finds; with the reason where it has no answer."""
    inputs = searches.inputs

    def work() -> Detection:
        found: Detection = detector(
            inputs.subject.of(inputs.classifier.copy()),
            reference=searches.reference,
            found=[searches.detection(name) for name in detector.builds_on],
            generator=generator_for(inputs.options.seed, detector.name),
            progress=inputs.progress,
        )
        return replace(found, detector=detector.name, settings=repr(detector))

    def judged() -> Detection:
        twins = searches.reference.twins if detector.needs_twins else None
        with inputs.in_budget(), inputs.once(f"the search of {detector.name}"):
            if twins is not None and not twins.classifiers:
                return no_answer(detector, twins.reason)
            parts = {**searches.detection_parts(detector), "plugin": inputs.catalogue.plugin(detector)}
            detection = inputs.store.recall(parts, work, pack=Detection.pack, unpack=Detection.unpack)[0]
        for target in detector.targets(inputs.num_classes):
            detection.judge(target, searches.limits)  # numbers that cannot be judged are no answer either
        return detection

    def answered() -> Detection:
        reason = inputs.unmet or searches.too_few(detector)
        answer: Detection | str = reason or answer_of(judged, _whose(inputs, detector), inputs.device)
        return no_answer(detector, answer) if isinstance(answer, str) else answer

    return searches.of_others.once(detector.name, answered)


def outcome_of(properties: PropertySearches, claim: Any) -> PropertyOutcome:
    """What came of a property. Inconclusive, with the reason, where it has no answer."""
    inputs = properties.inputs

    def work() -> PropertyOutcome:
        found: PropertyOutcome = claim(
            inputs.subject.of(inputs.classifier.copy()),
            generator=generator_for(inputs.options.seed, claim.name),
            natural=partial(properties.natural_rate, claim),
            kept=(),
        )
        return replace(found, name=claim.name, settings=repr(claim))

    def judged() -> PropertyOutcome:
        twins = properties.reference.twins if claim.needs_twins else None
        with inputs.in_budget(), inputs.once(f"the search of {claim.name}"):
            if twins is not None and not twins.classifiers:
                return unanswered(claim, twins.reason)
            parts = {**properties.parts(claim), "plugin": inputs.catalogue.plugin(claim)}
            outcome = inputs.store.recall(parts, work, pack=PropertyOutcome.pack, unpack=PropertyOutcome.unpack)[0]
        _ = outcome.finding  # numbers that cannot be judged are no answer either
        return outcome

    def answered() -> PropertyOutcome:
        answer: PropertyOutcome | str = inputs.unmet or answer_of(judged, _whose(inputs, claim), inputs.device)
        return unanswered(claim, answer) if isinstance(answer, str) else answer

    return properties.of_others_done.once(claim.name, answered)


def outcomes_of(
    inputs: Inputs, limits: Limits, method: Repair, plugin: Plugin, work: Callable[[], tuple[RepairOutcome, ...]]
) -> tuple[RepairOutcome, ...]:
    """What comes of a repair; not applicable, with the reason, where it has no answer."""

    def judged() -> tuple[RepairOutcome, ...]:
        outcomes = work()
        if not any(outcome.not_applicable for outcome in outcomes):
            for judgement in (judge_success, judge_robustness, judge_drop):
                judgement(outcomes, limits)  # numbers that cannot be judged are no answer either
        return outcomes

    answer = answer_of(judged, f"{method.name} of {plugin.whose}", inputs.device)
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


def _whose(inputs: Inputs, part: Any) -> str:
    plugin = inputs.catalogue.plugin(part)
    return f"{part.name} of {plugin.whose}" if plugin else str(part.name)
