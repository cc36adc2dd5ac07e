"""The questions of a run: one folder of pytest modules, each of which names what it asks. The shipped one is ``audits/``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from backdoor_audit.errors import BudgetSpentError, OptionError
from backdoor_audit.evidence import Finding, Limits
from backdoor_audit.files import UnreadableError, read_bytes
from backdoor_audit.item import SUITE_MODULE, Item
from backdoor_audit.needs import Needs
from backdoor_audit.option_sources import limit_problem
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.checks import ask, fraction_problem, items_of, question_problem, section_of, told
from backdoor_audit.questions.question import Question, Skipped
from backdoor_audit.structure import brief
from backdoor_audit.words import About, Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


_NAMES = ("QUESTION", "QUESTIONS")
_ACCEPTED = "a suite is a folder of files test_*.py, each with QUESTION = one question, or QUESTIONS = several"


@dataclass(frozen=True, slots=True)
class Entry:
    """One question of a suite, and the file that asks it."""

    question: Question
    file: Path
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """What a record says of it."""
        words = self.question.words.to_json()
        return {**words, "settings": repr(self.question), "file": self.file.name, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Suite:
    """What a run asks, in the order in which it asks it."""

    folder: Path
    entries: tuple[Entry, ...]

    @classmethod
    def load(cls, folder: Path) -> Suite:
        """The questions of a folder; its files are imported, as pytest would. Raises `OptionError` if it is no suite."""
        entries: list[Entry] = []
        try:
            files = sorted(folder.glob("test_*.py"))
            for file in files:
                digest = hashlib.sha256(read_bytes(file)).hexdigest()
                entries += [Entry(question, file, digest) for question in questions_of(_imported(file), str(file))]
        except OSError as error:
            raise OptionError(f"--audit-suite: {folder} cannot be read ({error.strerror or error})") from None
        except UnreadableError as error:
            raise OptionError(f"--audit-suite: {file} cannot be read ({error}); {_ACCEPTED}") from None
        if not entries:
            raise OptionError(f"--audit-suite: {folder} holds no file test_*.py; {_ACCEPTED}")
        names = [entry.question.name for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise OptionError(
                f"--audit-suite: {folder} asks {', '.join(twice)} twice; give every question a name of its own"
            )
        _refuse_two_numbers(folder, [entry.question for entry in entries])
        return cls(folder, tuple(sorted(entries, key=lambda entry: (entry.question.turn, entry.file.name))))

    @classmethod
    def of(cls, options: AuditOptions) -> Suite:
        """The suite that options name, with their limits. Raises `OptionError`."""
        suite = cls.load(Path(options.suite)) if options.suite else shipped()
        return suite.with_limits(options.limits)

    @property
    def questions(self) -> tuple[Question, ...]:
        """Every question, in order."""
        return tuple(entry.question for entry in self.entries)

    @property
    def limits(self) -> Limits:
        """What a run judges by; where a suite leaves a question out, the shipped number stands."""
        known = {name: value for question in self.questions for name, value in question.limits.items()}
        usual = {name: value for question in shipped().questions for name, value in question.limits.items()}
        return Limits(**{entry.name: known.get(entry.name, usual[entry.name]) for entry in fields(Limits)})

    def with_limits(self, values: Mapping[str, float]) -> Suite:
        """The same questions with other limits. Raises `OptionError` for a name that no question has, or a value out of range."""
        allowed = {name: question for question in self.questions for name in question.limits}
        for name, value in values.items():
            if name not in allowed:
                raise OptionError(f"limit {brief(name)} is not known; limits are {', '.join(sorted(allowed))}")
            if problem := limit_problem(name, value):
                raise OptionError(problem)
            if problem := fraction_problem(name, value, allowed[name]):
                raise OptionError(problem)
        return replace(
            self, entries=tuple(replace(entry, question=_with(entry.question, values)) for entry in self.entries)
        )

    def question(self, name: str) -> Question | None:
        """The question with this name, if it is asked."""
        return next((question for question in self.questions if question.name == name), None)

    def needs(self, item: Item) -> Needs:
        """What the answer of an item costs; nothing where nobody asks it."""
        question = self.question(item.question)
        return Needs.NOTHING if question is None else question.needs

    def items(self, run: Run) -> list[Item]:
        """Every item of a complete run, in order. Raises `OptionError` for a question that cannot list them."""
        return [item for question in self.questions for item in items_of(question, run)]

    def answers(
        self, run: Run, *, about: Container[About] = tuple(About)
    ) -> Iterator[tuple[Question, Item, Finding | Skipped | BudgetSpentError]]:
        """Every item with its answer, or with what ended its work: a run without pytest."""
        for question in self.questions:
            if question.words.about not in about:
                continue
            for item in items_of(question, run):
                try:
                    answer = ask(question, run, item)
                except BudgetSpentError as error:
                    yield question, item, error
                else:
                    yield question, item, answer.of(item) if isinstance(answer, Finding) else answer

    def sections(self, run: Run) -> dict[str, Any]:
        """What questions keep in the record beside their findings, by name."""
        return {question.name: entries for question in self.questions if (entries := section_of(question, run))}

    def to_json(self) -> dict[str, Any]:
        """What a record says of its questions, by name."""
        return {entry.question.name: entry.to_json() for entry in self.entries}


def suite_of(run: Run) -> Suite:
    """What is asked of a run. Raises `TypeError` for one that was made to be asked nothing."""
    if not isinstance(run.suite, Suite):
        raise TypeError(f"a run of {type(run.suite).__name__} asks nothing")
    return run.suite


def _refuse_two_numbers(folder: Path, questions: Sequence[Question]) -> None:
    """Raise `OptionError` where questions judge by two numbers under one name: a run has one."""
    known: dict[str, tuple[str, float]] = {}
    for question in questions:
        for name, value in question.limits.items():
            other, number = known.setdefault(name, (question.name, value))
            if number != value:
                raise OptionError(
                    f"--audit-suite: {folder}: limit {name} is {number:g} in {other} and {value:g} in {question.name}; give one "
                    "of them another name"
                )


def _with(question: Question, values: Mapping[str, float]) -> Question:
    own = {name: float(value) for name, value in values.items() if name in question.limits}
    return replace(question, **own) if own else question  # type: ignore[type-var]


def names_some(module: ModuleType) -> bool:
    """Whether a module says that it asks something."""
    return any(hasattr(module, name) for name in _NAMES)


def questions_of(module: ModuleType, source: str) -> tuple[Question, ...]:
    """The questions that a module names. Raises `OptionError` for something else under their names."""
    named = [getattr(module, name) for name in _NAMES if hasattr(module, name)]
    found = [entry for value in named for entry in (value if isinstance(value, (tuple, list)) else (value,))]
    if not found:
        raise OptionError(f"{source}: names no QUESTION; {_ACCEPTED}")
    for entry in found:
        if not isinstance(entry, Question):
            raise OptionError(f"{source}: QUESTION is {brief(entry)}; a question is accepted, as AnomalyIndex(...)")
        if problem := question_problem(entry):
            raise OptionError(f"{source}: {type(entry).__name__} {problem}")
        if not callable(getattr(module, f"test_{entry.name}", None)):
            raise OptionError(
                f"{source}: no function test_{entry.name} that submits the answers of {type(entry).__name__}"
            )
    return tuple(found)


def _imported(file: Path) -> ModuleType:
    """A file as a module of its own. Raises `OptionError` if it does not run."""
    name = f"{SUITE_MODULE}{hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # pytest.skip and sys.exit as well: a file that is not there asks nothing
        raise OptionError(f"--audit-suite: {file} cannot be imported ({told(error)})") from None
    return module


@lru_cache(maxsize=1)
def shipped() -> Suite:
    """The shipped questions: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "audits"
    return Suite.load(inside if inside.is_dir() else package.parent / "audits")


def shipped_limits() -> Limits:
    """The numbers that the shipped suite judges by."""
    return shipped().limits


def shipped_words() -> dict[str, Words]:
    """The words of every shipped question, by its name: for records that were written without them."""
    return {question.name: question.words for question in shipped().questions}
