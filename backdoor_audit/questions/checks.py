"""What a suite gives is checked where it comes in: a question, its items, its answers. One clear line says what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from backdoor_audit.errors import AuditError, OptionError
from backdoor_audit.evidence import Finding
from backdoor_audit.item import Item
from backdoor_audit.option_sources import limit_problem
from backdoor_audit.printable import printable
from backdoor_audit.questions.question import Answer, Question, Skipped
from backdoor_audit.schema import schema
from backdoor_audit.structure import brief, misfit
from backdoor_audit.words import About, Words

if TYPE_CHECKING:
    from backdoor_audit.run.run import Run


def question_problem(question: Question) -> str:
    """What keeps a question from being asked, as a clause after its class; an empty string if nothing does."""
    if not is_dataclass(question):
        return "is no frozen dataclass; write @dataclass(frozen=True) above it"
    name = getattr(question, "name", None)
    if not isinstance(name, str) or not (name.isidentifier() and name.isascii()):
        return f"has the name {brief(name)}; a test's name without test_ is accepted"
    if not isinstance(question.turn, (int, float)):
        return f"has the turn {brief(question.turn)}; a number is accepted"
    return _words_problem(getattr(question, "words", None)) or _limits_problem(question)


def _words_problem(words: object) -> str:
    if not isinstance(words, Words) or not isinstance(words.about, About):
        found = words.about if isinstance(words, Words) else words
        return (
            f"has {brief(found)} for its words; words=Words(...), with about=About.MODEL or another About, are accepted"
        )
    rest = dict.fromkeys(("settings", "file", "sha256"), "")
    try:
        wrong = misfit({**words.to_json(), **rest}, schema()["$defs"]["question"])
    except (AttributeError, TypeError) as error:
        wrong = str(error)
    return f"has words that cannot be shown ({wrong})" if wrong else ""


def _limits_problem(question: Question) -> str:
    named = {entry.name: getattr(question, entry.name) for entry in fields(question) if entry.type in ("float", float)}  # type: ignore[arg-type]
    problems = (limit_problem(name, value) or fraction_problem(name, value, question) for name, value in named.items())
    return next((f"cannot be asked: {problem}" for problem in problems if problem), "")


def fraction_problem(name: str, value: float, question: Question) -> str:
    """What is wrong with a limit above 1, or an empty string."""
    if value <= 1 or name in question.above_one:
        return ""
    return f"limit {name} must lie in [0, 1], got {brief(value)} (rates are fractions, not percent)"


def items_of(question: Question, run: Run) -> list[Item]:
    """The items of a question. Raises `OptionError` for what pytest could not run under the name that the record expects."""
    items: list[Any] = []
    try:
        items += question.items(run)
    except AuditError:
        raise
    except Exception as error:
        raise OptionError(f"{question.name}: its items cannot be listed ({told(error)})") from None
    for item in items:
        if not isinstance(item, Item) or item.question != question.name:
            raise OptionError(f"{question.name}: {_shown(item)} is no item of it; Item(self.name, ...) is accepted")
        if Item.parse(item.node_id) != item or item.brackets.encode("unicode_escape").decode() != item.brackets:
            raise OptionError(
                f"{question.name}: {_shown(item)} cannot be told by its node id; plain ASCII is accepted, and a row as Row(...)"
            )
    twice = next((item for item, count in Counter(items).items() if count > 1), None)
    if twice is not None:
        raise OptionError(f"{question.name}: {_shown(twice)} is listed twice; give every item a name of its own")
    return items


def ask(question: Question, run: Run, item: Item) -> Answer:
    """The answer to an item. Raises `OptionError` for one that is neither a finding nor a reason for none."""
    answer: object = question.answer(run, item)
    if not isinstance(answer, (Finding, Skipped)):
        raise OptionError(
            f"{item.node_id}: the answer is {brief(answer)}; judge(...), inconclusive(...) or Skipped(...) are"
        )
    return answer


def section_of(question: Question, run: Run) -> Mapping[str, Mapping[str, Any]]:
    """What the record keeps of a question beside its findings; if that cannot be had, why."""
    try:
        section: Any = question.section(run)
        if isinstance(section, Mapping) and all(isinstance(entry, Mapping) for entry in section.values()):
            return section
        reason = f"{brief(section)} where names and tables belong"
    except Exception as error:  # what was judged stands
        reason = told(error)
    return {"not shown": {"reason": reason}}


def told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {printable((str(error).splitlines() or [''])[0])}"


def _shown(item: object) -> str:
    return brief(item.node_id) if isinstance(item, Item) else brief(item)
