"""What a suite gives is checked where it comes in, and refused in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch

from backdoor_audit.errors import OptionError
from backdoor_audit.evidence import Finding, Verdict
from backdoor_audit.item import Item, Row
from backdoor_audit.questions import Answer, Question, Words, judge
from backdoor_audit.questions.checks import ask, items_of, question_problem, section_of
from backdoor_audit.questions.record import build_record
from backdoor_audit.run.run import Run
from tests.subjects.messages import one_line

RUN = cast(Run, SimpleNamespace())
WORDS = Words(asks="Is it?", holds="It is", advice="Do.", topic="own")


@dataclass(frozen=True)
class Own(Question):
    """A question that gives what it was made with."""

    listed: Any = (Item("own", "model"),)
    given: Any = None
    kept: Any = None
    own_limit: float = 0.3

    name: ClassVar[str] = "own"
    words: ClassVar[Words] = WORDS

    def items(self, run: Run) -> Any:
        if isinstance(self.listed, Exception):
            raise self.listed
        return self.listed

    def answer(self, run: Run, item: Item) -> Answer:
        return cast(Answer, self.given)

    def section(self, run: Run) -> Any:
        if isinstance(self.kept, Exception):
            raise self.kept
        return self.kept


def like(**attributes: Any) -> Question:
    """The same kind of question with other attributes of its class."""
    return cast(Question, type("Own", (Own,), attributes)())


def test_a_sound_question_has_no_problem() -> None:
    assert question_problem(Own()) == ""
    assert items_of(Own(), RUN) == [Item("own", "model")]
    found = judge("own", 0.2, at_most=0.3, reason="fine")
    assert ask(Own(given=found), RUN, Item("own", "model")) is found


@pytest.mark.parametrize(
    ("question", "told"),
    [
        (like(name=""), "has the name ''"),
        (like(name="a b"), "has the name 'a b'"),
        (like(turn="late"), "has the turn 'late'; a number is accepted"),
        (like(words={"asks": 1}), "has an object of 1 for its words"),
        (like(words=replace(WORDS, about=cast(Any, "nonsense"))), "has 'nonsense' for its words"),
        (like(words=replace(WORDS, asks=cast(Any, 3))), "words that cannot be shown (asks: 3 where a text belongs)"),
        (like(words=replace(WORDS, references=cast(Any, 3))), "words that cannot be shown"),
        (Own(own_limit=math.nan), "limit own_limit must be a number of at least 0, got nan"),
        (Own(own_limit=cast(Any, "0.3")), "limit own_limit must be a number"),
        (Own(own_limit=30), "limit own_limit must lie in [0, 1], got 30 (rates are fractions, not percent)"),
    ],
)
def test_what_keeps_a_question_from_being_asked_is_told(question: Question, told: str) -> None:
    assert told in question_problem(question)


def test_a_question_that_is_no_dataclass_is_refused() -> None:
    class Plain(Question):
        name = "plain"
        words = WORDS

        def items(self, run: Run) -> list[Item]:
            return []

        def answer(self, run: Run, item: Item) -> Answer:
            raise NotImplementedError

    assert "is no frozen dataclass" in question_problem(Plain())


def test_a_whole_number_is_a_limit_where_the_field_is_a_float() -> None:
    assert Own(own_limit=1).limits == {"own_limit": 1.0}


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (None, "own: its items cannot be listed (TypeError: "),
        (ValueError("x\ny"), "own: its items cannot be listed (ValueError: x)"),
        (["model"], "own: 'model' is no item of it"),
        ([Item("power", "model")], "own: 'audit::test_power[model]' is no item of it"),
        ([Item("own", "model")] * 2, "own: 'audit::test_own[model]' is listed twice"),
        ([Item("own", "mü")], "cannot be told by its node id"),
        ([Item("own", "a\\b")], "cannot be told by its node id"),
        ([Item("own", "model-class_3")], "cannot be told by its node id"),
    ],
)
def test_items_that_pytest_could_not_run_by_their_names_are_refused(listed: Any, told: str) -> None:
    with one_line(OptionError, told):
        items_of(Own(listed=listed), RUN)


@pytest.mark.parametrize("given", [None, "pass", True])
def test_an_answer_that_is_no_finding_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match=r"audit::test_own\[model\]: the answer is "):
        ask(Own(given=given), RUN, Item("own", "model"))


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ([1], "a list of 1 where names and tables belong"),
        ({"a": 1}, "an object of 1"),
        (KeyError("k"), "KeyError: 'k'"),
    ],
)
def test_a_section_that_cannot_be_had_says_why(kept: Any, reason: str) -> None:
    assert reason in section_of(Own(kept=kept), RUN)["not shown"]["reason"]
    assert section_of(Own(kept={"a": {"b": 1}}), RUN) == {"a": {"b": 1}}


def test_a_finding_has_builtin_numbers_and_passes_by_no_number_that_is_not_finite() -> None:
    found = Finding(audit="", statistic="own", value=torch.tensor(0.25), limit=1, verdict="pass", reason="r")  # type: ignore[arg-type]
    assert (type(found.value), found.value, found.verdict) == (float, 0.25, Verdict.PASS)
    for value in (math.nan, -math.inf):
        odd = replace(found, value=value)
        assert odd.verdict is Verdict.INCONCLUSIVE
        assert "own is not finite" in odd.reason
    with pytest.raises(ValueError, match="could not convert"):
        replace(found, value="much")  # type: ignore[arg-type]


@pytest.mark.parametrize(("about", "verdict"), [("model", Verdict.PASS), ("remedy", Verdict.INCONCLUSIVE)])
def test_a_record_without_an_answer_about_the_model_is_not_a_pass(about: str, verdict: Verdict) -> None:
    whole = build_record(
        {},
        {"inconclusive": "allow"},
        questions={"own": {**WORDS.to_json(), "about": about}},
        findings={"a": judge("own", 0.2, at_most=0.3, reason="r", audit="audit::test_own[model]")},
        skipped={},
        errors={},
        expected=[],
        seconds=0.0,
    )
    assert whole.verdict is verdict
    assert whole.passes_gate == (about == "model")
    assert replace(whole, questions={}).verdict is Verdict.PASS  # of a version without questions


def test_looking_for_items_listed_twice_compares_each_with_few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []

    def equal(one: Item, other: object) -> bool:
        compared.append(other)
        return isinstance(other, Item) and one.node_id == other.node_id

    monkeypatch.setattr(Item, "__eq__", equal)
    many = [Item("own", "model", Row(number)) for number in range(300)]
    assert len(items_of(Own(listed=many), RUN)) == 300
    assert len(compared) < 2 * 300
