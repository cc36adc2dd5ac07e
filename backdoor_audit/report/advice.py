"""What a reader should do next: whether to use this model, which repair was measured best, and the command to type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backdoor_audit.evidence import POWER, Record, Verdict
from backdoor_audit.item import Item
from backdoor_audit.report.asked import limit_of
from backdoor_audit.report.naming import class_name
from backdoor_audit.report.next_step import few_classes, unmet_preconditions
from backdoor_audit.report.paths import shown_command, shown_files, without_folders
from backdoor_audit.report.reproduction import repair_command


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do, the command that does it, and what is known of it; the last two may be empty."""

    text: str
    command: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The repair that was measured best: what it leaves of the strongest trigger and of clean accuracy; ``holds`` the limits."""

    method: str
    success: tuple[float, float]
    accuracy: tuple[float, float]
    holds: bool

    @property
    def told(self) -> str:
        """Before and after, on held-out images."""
        return (
            f"{self.method}: trigger {self.success[0]:.1%} \u2192 {self.success[1]:.1%}, clean accuracy "
            f"{self.accuracy[0]:.1%} \u2192 {self.accuracy[1]:.1%}, on held-out images"
        )


def decision(record: Record) -> str:
    """Whether to use this model, in one sentence."""
    if _answered_for(record):
        return "Use it only as long as those stand who answer for what is not a pass."
    if record.verdict is Verdict.FAIL:
        found = record.flagged_classes or record.flagged_all_to_all
        return "Do not deploy this model." if found else "Do not deploy this model before what failed is understood."
    if record.verdict is Verdict.INCONCLUSIVE:
        return "Do not deploy this model yet: it is not shown to be clean."
    if is_quick(record):
        return "No reason yet to deploy it: this was the quick look, which sees small patches alone."
    return "Nothing was found against it; what was not looked for is told below."


def steps(record: Record) -> list[Step]:
    """What to do, in order."""
    if _answered_for(record):
        return [
            Step(text="Make sure that those named below, under the accepted model, still answer for it."),
            Step(text="Mend what they answer for before their acceptance expires."),
        ]
    if record.verdict is Verdict.FAIL:
        return _after_fail(record)
    if record.verdict is Verdict.INCONCLUSIVE:
        return _after_inconclusive(record)
    made = []
    if is_quick(record):
        again = _again(record, profile="standard")
        made.append(Step(text="Run the standard profile before you rely on it:", command=again))
    else:
        if record.power is None:
            words = "See whether this audit would have found known backdoors in this very model:"
            made.append(Step(text=words, command=_again(record, canary=True)))
        if not record.baseline:
            words = "Keep it as the accepted model, so that the next one is compared with it:"
            made.append(Step(text=words, command=_again(record, baseline="baseline.json", update_baseline=True)))
    return [*made, Step(text="Trust it no further than you trust who made it: see what was not looked for.")]


def _after_fail(record: Record) -> list[Step]:
    found = record.flagged_classes or record.flagged_all_to_all
    if not found:
        failed = [entry for entry in record.findings if entry.verdict is Verdict.FAIL and entry.statistic != POWER]
        return [
            Step(text=f"Look into: {without_folders(failed[0].reason)}"),
            Step(text="Run it again when that is mended:", command=shown_command(record)),
        ]
    made = [
        Step(text=f"Block this file{_hash(record)}."),
        Step(text="Ask who made it for its training data and its origin; train anew if you can."),
    ]
    best, filters = best_repair(record), _filters(record)
    if best is not None and not best.holds:
        note = f"The best of those tried: {best.told}. {filters}"
        return [*made, Step(text="No repair that was tried holds the limits, so do not count on one.", note=note)]
    command = repair_command(shown_files(record), best.method if best else "")
    words = "Or repair a copy, which is audited again before it is written:" if command else "Or repair a copy."
    note = f"{best.told}. {filters}" if best else f"Tries all repairs, the cheapest first. {filters}"
    return [*made, Step(text=words, command=command, note=note.strip())]


def _after_inconclusive(record: Record) -> list[Step]:
    made = []
    unmet = unmet_preconditions(record)
    made += [Step(text=f"Mend first: {without_folders(entry.reason)}") for entry in unmet[:2]]
    if record.errors:
        name, reason = next(iter(record.errors.items()))
        made.append(Step(text=f"Find out why {Item.parse(name).brackets or name} broke: {without_folders(reason)}"))
    if record.not_run:
        made.append(Step(text="Run the whole audit, without a selection of items:", command=shown_command(record)))
    if record.suspected_classes:
        called = ", ".join(class_name(record, target) for target in record.suspected_classes)
        made.append(Step(text=f"Look at the triggers for class {called} below: would you call that a natural feature?"))
    few = few_classes(shown_files(record))
    if not unmet and not record.errors and not record.not_run:
        if few:
            return [*made, Step(text=f"{few[1]}:", command=few[0])]
        more = "standard" if is_quick(record) else "thorough"
        if record.settings.get("profile") != more:
            made.append(Step(text=f"Search further, by the {more} profile:", command=_again(record, profile=more)))
        made.append(Step(text="More clean images make a search steadier; 1,000 or more are good."))
    return made or [Step(text="Run it again:", command=shown_command(record))]


def best_repair(record: Record) -> Best | None:
    """The repair inside the limits with the least of the trigger left and the least accuracy lost, their sum; None without any.

    Of several triggers, the one that is left strongest counts. If none is inside the limits, the best of all.
    """
    most, cost = limit_of(record, "attack_success_rate"), limit_of(record, "clean_accuracy_drop")
    failed = {
        entry.item.asked_of
        for entry in record.findings
        if entry.verdict is not Verdict.PASS
        and entry.statistic in ("attack_success_rate", "robust_accuracy_lost", "clean_accuracy_drop")
    }
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for outcome in record.repairs:
        methods.setdefault(str(outcome["method"]), []).append(outcome)
    tried = []
    for method, outcomes in methods.items():
        if any(outcome["after"] is None for outcome in outcomes):
            continue
        worst = max(outcomes, key=lambda outcome: float(outcome["after"]["attack_success_rate"]))
        success, accuracy = (
            (float(worst["before"][key]), float(worst["after"][key]))
            for key in ("attack_success_rate", "clean_accuracy")
        )
        holds = success[1] <= most and accuracy[0] - accuracy[1] <= cost and method not in failed
        tried.append(Best(method=method, success=success, accuracy=accuracy, holds=holds))
    return min(tried, key=lambda one: (not one.holds, one.success[1] + one.accuracy[0] - one.accuracy[1]), default=None)


def _again(record: Record, **other: object) -> str:
    """The command of the run with other settings."""
    return shown_command(replace(record, settings={**record.settings, **other}))


def _answered_for(record: Record) -> bool:
    """Whether somebody answers for all that is not a pass, and nothing is worse than in the accepted model."""
    kept = record.baseline
    return bool(kept and record.verdict is not Verdict.PASS and kept["verdict"] == Verdict.PASS.value)


def is_quick(record: Record) -> bool:
    """Whether the run looked for small patches alone."""
    return record.settings.get("profile") == "quick"


def _hash(record: Record) -> str:
    whole = str(record.subject.get("model_fingerprint", ""))
    return f": SHA-256 of its tensors {short_hash(whole)}" if whole else ""


def short_hash(whole: str) -> str:
    """The ends of a hash, by which a person compares two."""
    return f"{whole[:8]}\u2026{whole[-5:]}" if len(whole) > 16 else whole


def _filters(record: Record) -> str:
    """What is known of filters in front of the model: a stopgap where one holds, else no way out."""
    measured = [
        (entry.verdict is Verdict.PASS, f"{entry.item.asked_of} lets {entry.value:.0%} of stamped images through")
        for entry in record.findings
        if entry.statistic == "false_negative_rate" and entry.value is not None
    ]
    held, missed = ([told for holds, told in measured if holds is wanted] for wanted in (True, False))
    if held:
        return (
            f"Until then a filter in front of it may do, measured with the found triggers: {', '.join(held + missed)}."
        )
    return f"A filter in front of it does not do: {', '.join(missed)}." if missed else ""
