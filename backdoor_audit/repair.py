"""Repair a flagged model: methods in order of cost, until the file of one passes limits, reloading and the whole audit again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from backdoor_audit.canary.cleaning import MOST_LEFT, STAMPED_AGAIN, Stowaway, learnt_again, stow_away
from backdoor_audit.errors import AuditError, OptionError
from backdoor_audit.evidence import Finding, Limits, Verdict
from backdoor_audit.files import beside
from backdoor_audit.installed import is_advisory
from backdoor_audit.item import Item
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import save_classifier
from backdoor_audit.model.loading.architecture import can_be_named
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.checks import ask, items_of
from backdoor_audit.questions.question import Question
from backdoor_audit.questions.suite import Suite, suite_of
from backdoor_audit.repairs import Joint, Repair, Scores, against_all, baked, score
from backdoor_audit.run import preconditions
from backdoor_audit.run.others import answer_of
from backdoor_audit.run.run import Run
from backdoor_audit.store import Store, generator_for
from backdoor_audit.triggers.trigger import AnyTrigger
from backdoor_audit.words import About

_PROBES = 64  # images on which a file must answer as the repaired network did
_SAME = 1e-3  # of logits
_ROUNDS = 3  # of unlearning, each with the triggers that were still found after the one before

AIM = {"attack_success_rate": 0.05, "clean_accuracy_drop": 0.02}
"""What is looked for among all methods before one that only meets the limits is taken."""

PREFERRED = ("distilled_unlearning", "fst", "ft_sam")
"""What ``auto`` tries first: these are cheap, and the last two can clean a backdoor that no search found."""

LEARNT_AGAIN = 0.5
"""Success rate after a few stamped images above which a repair is told to have hidden its trigger more than removed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One method on the model. ``refused`` says why it was not taken; empty: its file was written.

    ``before`` and ``after`` are scores on held-out images, trigger by trigger, in the order of ``classes``: of each flagged
    class, then what else was found for them. ``rounds`` counts how often the method ran: again with more triggers, where the
    audit of its file still found some. ``canary`` is the success rate of a planted one after the same repair, ``unknown`` what
    it is; ``learnt_again`` that of the trigger after a few stamped images (`backdoor_audit.canary.cleaning`). None: not measured.
    ``lost_given`` is the accuracy lost on the images that the method was given, which most methods learn.
    """

    method: str
    classes: tuple[int, ...]
    before: tuple[Scores, ...] = ()
    after: tuple[Scores, ...] = ()
    refused: str = ""
    rounds: int = 1
    reserve: bool = False
    canary: float | None = None
    unknown: str = ""
    learnt_again: float | None = None
    lost_given: float = 0.0
    seconds: float = 0.0

    @property
    def cleaned(self) -> bool:
        """Whether a backdoor that nobody told it of is gone as well, where one could be planted."""
        return self.canary is None or self.canary <= MOST_LEFT

    @property
    def success(self) -> float:
        """Attack success rate of the trigger that is left strongest."""
        return max(scores.attack_success_rate for scores in self.after)

    @property
    def drop(self) -> float:
        """Clean accuracy lost: on held-out images, or on those that the method was given if that is more."""
        return max(self.lost_held_out, self.lost_given)

    @property
    def lost_held_out(self) -> float:
        """Clean accuracy lost on held-out images."""
        return self.before[0].clean_accuracy - self.after[0].clean_accuracy

    def __str__(self) -> str:
        parts = [
            f"class {target}: success rate {before.attack_success_rate:.1%} -> {after.attack_success_rate:.1%}"
            for target, before, after in zip(self.classes, self.before, self.after, strict=False)
        ]
        if self.after:
            parts.append(f"accuracy {self.before[0].clean_accuracy:.1%} -> {self.after[0].clean_accuracy:.1%}")
        if self.canary is not None:
            parts.append(f"a planted {self.unknown} works on {self.canary:.1%} after it")
        if self.learnt_again is not None and self.learnt_again > LEARNT_AGAIN:
            parts.append(f"warning: {STAMPED_AGAIN} stamped images bring the trigger back to {self.learnt_again:.1%}")
        if self.rounds > 1:
            parts.append(f"{self.rounds} rounds")
        ending = f"not taken: {self.refused}" if self.refused else "loaded again and audited again: pass"
        return f"{self.method}: {'; '.join([*parts, ending])} ({self.seconds:.0f} s)"


def repair(
    options: AuditOptions,
    out: Path,
    *,
    method: str = "auto",
    store: Store,
    progress: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Attempt, ...]:
    """Try methods on the model of the options and write the first that holds to ``out`` (safetensors).

    Triggers are the known one of the options, or those that the audit flags; without any, nothing is tried and the answer
    is empty. A method holds if every trigger's success rate and the loss of accuracy on held-out images are inside the
    limits, the weights alone hold the repair, the file gives the same answers once it is loaded, and neither a detector nor a
    property finds anything in it. ``method`` names one; ``auto`` takes the first of `PREFERRED` that reaches `AIM` and cleans a
    planted backdoor of another kind too, else the first of these that reaches `AIM`, else the first of all others, and if none
    does, of those inside the limits that cost no more than `AIM` allows the one that leaves least of the trigger. Where the audit
    of the file still finds triggers, methods that take several run again with these as well. ``tell`` gets a line after each
    attempt.
    ``out`` is replaced in the end or not touched. Raises `OptionError` for an unknown method or a model that cannot be judged.
    """
    run = Run(options, store, Suite.of(options), progress=progress)
    methods = [entry for entry in run.inputs.catalogue.repairs if method in ("auto", entry.name)]
    if not methods:
        names = ", ".join(entry.name for entry in run.inputs.catalogue.repairs)
        raise OptionError(f"no method {method!r}; accepted: auto, {names}")
    if not options.arch and not can_be_named(run.classifier.architecture):
        raise OptionError(
            f"{options.model}: a repaired copy of {run.classifier.architecture} could not be written, as no file of weights "
            "names that network; save its weights (state_dict) and write a factory for it, --arch=package.module:factory"
        )
    run.check()
    unmet = preconditions.unmet(list(run.inputs.preconditions.values()))
    if unmet:
        raise OptionError(f"{options.model}: {unmet}; a model that cannot be judged cannot be repaired")
    attempts: list[Attempt] = []
    draft = beside(out)

    def holds(entry: Repair, aim: Limits, stowaway: Stowaway | None = None) -> bool:
        began = time.perf_counter()
        attempt = replace(_tried(run, entry, aim, draft, stowaway), seconds=time.perf_counter() - began)
        for earlier in attempts:
            if earlier.method == attempt.method and attempt.canary is None:
                attempt = replace(attempt, canary=earlier.canary, unknown=earlier.unknown)
        tell(str(attempt))
        attempts.append(attempt)
        if not attempt.refused:
            draft.replace(out)
        return not attempt.refused

    try:
        if not run.flagged.triggers:
            return ()
        if method != "auto":
            any(holds(entry, run.limits) for entry in methods)
            return tuple(attempts)
        named, aim = {entry.name: entry for entry in methods}, _aim(run.limits)
        preferred = [named[name] for name in PREFERRED if name in named]
        stowaway = _stowaway(run) if preferred else None
        if any(holds(entry, aim, stowaway) for entry in preferred):
            return tuple(attempts)
        reaching = [named[attempt.method] for attempt in attempts if not attempt.cleaned]
        if any(holds(entry, aim) for entry in (*reaching, *(entry for entry in methods if entry not in preferred))):
            return tuple(attempts)
        last = {attempt.method: attempt for attempt in attempts}
        reserve = sorted((attempt for attempt in last.values() if attempt.reserve), key=lambda entry: entry.success)
        any(holds(named[attempt.method], run.limits) for attempt in reserve)
    finally:
        draft.unlink(missing_ok=True)
    return tuple(attempts)


def _stowaway(run: Run) -> Stowaway | None:
    """A canary of another kind than what was found, in a copy of the model; its search set is that of the repair."""
    limits, index = run.limits, run.options.index
    flagging = {
        entry.name
        for entry in run.searches.detectors
        if run.searches.detection(entry.name).flagged(limits, index=index)
    }
    classes = {trigger.target_class for trigger in run.flagged.triggers}
    return stow_away(run.inputs.subject, seen_by=flagging, classes=classes, seed=run.options.seed)


def _aim(limits: Limits) -> Limits:
    return replace(limits, **{name: min(value, getattr(limits, name)) for name, value in AIM.items()})


def _tried(run: Run, method: Repair, aim: Limits, draft: Path, stowaway: Stowaway | None) -> Attempt:
    """One method against all triggers; its file stands at ``draft`` if it holds, and leaves no ``stowaway`` if there is one."""
    subject = run.inputs.subject
    judged, more = (*run.flagged.triggers, *run.flagged.beside()), list[AnyTrigger]()
    attempt = Attempt(method=method.name, classes=tuple(trigger.target_class for trigger in judged))
    for round_ in range(1, (_ROUNDS if isinstance(method, Joint) else 1) + 1):
        generator = generator_for(run.options.seed, f"repair:{method.name}")
        plugin = run.inputs.catalogue.plugin(method)
        asked = subject.of(run.classifier.copy()) if plugin else subject
        work = partial(against_all, method, asked, judged, generator=generator, also=tuple(more))
        made = answer_of(work, f"{method.name} of {plugin.whose}", run.inputs.device) if plugin else work()
        if isinstance(made, str):
            return replace(attempt, refused=made)
        repaired, outcomes = made
        if repaired is None:
            return replace(attempt, refused=outcomes[0].not_applicable)
        attempt = replace(
            attempt,
            before=tuple(score(run.classifier, subject.held_out, trigger) for trigger in judged),
            after=tuple(score(repaired, subject.held_out, trigger) for trigger in judged),
            lost_given=_accuracy(run.classifier, subject) - _accuracy(repaired, subject),
            rounds=round_,
        )
        outside = _outside(attempt, run.limits)
        if outside:
            return replace(attempt, refused=outside)
        outside = _outside(attempt, aim)
        if outside:
            payable = attempt.drop <= aim.clean_accuracy_drop
            return replace(attempt, refused=f"in reserve, {outside}" if payable else outside, reserve=payable)
        if stowaway:
            generator = generator_for(run.options.seed, f"repair:{method.name}")
            left = stowaway.left(method, judged, also=tuple(more), generator=generator)
            attempt = replace(attempt, canary=None if left is None else float(left), unknown=stowaway.called)
            if not attempt.cleaned:
                return replace(
                    attempt, refused="in reserve, it leaves a planted backdoor of another kind", reserve=True
                )
        again = learnt_again(repaired, subject, judged[0], seed=run.options.seed)
        attempt = replace(attempt, learnt_again=float(again))
        refused, still_found = _written(run, method, repaired, draft)
        if not still_found:
            break
        more += still_found
    return replace(attempt, refused=refused)


def _accuracy(classifier: Classifier, subject: Subject) -> float:
    return float(clean_accuracy(classifier, subject.search_set.images, subject.search_set.labels))


def _outside(attempt: Attempt, limits: Limits) -> str:
    """Which limit does not hold, or an empty string."""
    if attempt.success > limits.attack_success_rate:
        return f"the trigger still works (limit {limits.attack_success_rate:.0%})"
    if attempt.drop > limits.clean_accuracy_drop:
        where = " on the images that it was given" if attempt.drop > attempt.lost_held_out else ""
        return f"it costs {attempt.drop:.1%} of clean accuracy{where} (limit {limits.clean_accuracy_drop:.1%})"
    return ""


def _written(run: Run, method: Repair, repaired: Classifier, draft: Path) -> tuple[str, list[AnyTrigger]]:
    """What is wrong with the repaired network's file, which stands at ``draft`` then, and triggers found in it."""
    writable = baked(repaired, run.inputs.halves[1].images[:_PROBES])
    if writable is None:
        return "the weights of this architecture cannot hold the pruned channels", []
    save_classifier(writable, draft, notes={"repaired_by": repr(method)})
    return _found_again(run, repaired, draft)


def _found_again(run: Run, repaired: Classifier, file: Path) -> tuple[str, list[AnyTrigger]]:
    """What is wrong with the written file: other answers than the repaired network's, or a finding; and flagged triggers.

    What refuted a property of the model is tried first on the repaired one, and the detectors that flagged the model look
    before the others, so that a repair that fails does so early.
    """
    again = Run(
        replace(run.options, model=str(file), trigger=""),
        run.inputs.store,
        run.suite,
        progress=run.inputs.progress,
        given_corpus=(*run.properties.corpus, *run.properties.refuted()),
    )
    try:
        again.check()
    except AuditError as error:
        return f"its file could not be loaded: {error}", []
    probe = run.inputs.halves[1].images[:_PROBES]
    if not torch.allclose(again.classifier.logits(probe), repaired.logits(probe), atol=_SAME):
        return "its file gives other answers than the repaired network", []
    allowed = {Verdict.PASS, Verdict.INCONCLUSIVE} if run.options.inconclusive == "allow" else {Verdict.PASS}
    answered = False
    for name, finding, triggers in _looks(run, again):
        answered = True
        if finding.verdict not in allowed:
            return f"audited again: {finding.verdict.value}, {name}: {finding.reason}", list(triggers())
    return (
        ""
        if answered
        else "no question of the suite about the model has an answer, so that nothing speaks for its file",
        [],
    )


def _looks(run: Run, again: Run) -> Iterator[tuple[str, Finding, Callable[[], Sequence[AnyTrigger]]]]:
    """What every question about the model finds in the repaired one, and triggers of it; those that found something first."""
    telling = {entry.name for entry in run.searches.detectors if run.flagged.by(entry.name)}
    telling |= {entry.name for entry in run.properties.refuted()}
    for question, item in sorted(_asked(again), key=lambda pair: pair[1].asked_of not in telling):
        answer = ask(question, again, item)
        if isinstance(answer, Finding):
            yield item.asked_of, answer, partial(again.flagged.by, item.asked_of)


def _asked(run: Run) -> list[tuple[Question, Item]]:
    """Every item about the model that counts."""
    about = [question for question in suite_of(run).questions if question.words.about is About.MODEL]
    asked = [(question, item) for question in about for item in items_of(question, run)]
    return [(question, item) for question, item in asked if not is_advisory(item, run.inputs.catalogue.plugins)]


def summary(attempts: Sequence[Attempt], out: Path) -> str:
    """What came of it, in one line."""
    if not attempts:
        return "no trigger that a repair can work against was flagged: nothing is written"
    if attempts[-1].refused:
        return f"no method held ({len(attempts)} tried): nothing is written"
    return f"written: {out}, repaired by {attempts[-1].method}"
