"""A suite is a folder of questions: what it asks, with which numbers, and what cannot be one."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from backdoor_audit.errors import OptionError
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions import AnomalyIndex, Power, Question
from backdoor_audit.questions.suite import Suite, shipped, shipped_limits
from backdoor_audit.words import About, Words
from tests.subjects.messages import one_line
from tests.subjects.suites import OWN

AUDITS = shipped().folder


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the shipped audits."""
    return Path(shutil.copytree(AUDITS, tmp_path / "audits"))


def test_the_shipped_suite_asks_cheap_questions_first() -> None:
    names = [question.name for question in shipped().questions]
    assert names[:3] == ["precondition", "anomaly_index", "property"]
    assert names[-2:] == ["power", "regression"]
    assert len(set(names)) == len(names) == 9


@pytest.mark.parametrize("entry", shipped().entries, ids=lambda entry: entry.question.name)
def test_a_shipped_file_is_named_as_its_question_and_every_limit_has_its_source(entry) -> None:  # type: ignore[no-untyped-def]
    text = entry.file.read_text()
    assert entry.file.stem == f"test_{entry.question.name}"
    assert len(text.splitlines()) <= 20
    for name, value in entry.question.limits.items():
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name}=")]
        assert float(line.partition("=")[2].partition(",")[0]) == value
        assert len(line.partition("#")[2]) > 20


@pytest.mark.parametrize("question", shipped().questions, ids=lambda question: question.name)
def test_a_question_keeps_to_its_contract(question: Question) -> None:
    scope = {type(question).__name__: type(question)}
    assert eval(repr(question), scope) == question  # noqa: S307 - our own repr
    words = question.words
    assert Words.from_json(words.to_json()) == words
    assert words.asks.endswith("?")
    assert words.advice.endswith(".")
    assert not words.holds.endswith(".")
    assert (words.about is About.REMEDY) == bool(words.counts)
    assert all(0 <= value <= 1 for name, value in question.limits.items() if name not in question.above_one)


def test_a_copy_with_another_number_judges_by_it(copied: Path) -> None:
    file = copied / "test_anomaly_index.py"
    file.write_text(file.read_text().replace("anomaly_index=2.0", "anomaly_index=2.5"))
    suite = Suite.of(AuditOptions(suite=str(copied), limits={"size_ratio": 0.5}))
    assert suite.limits == replace(shipped_limits(), anomaly_index=2.5, size_ratio=0.5)
    told, usual = suite.to_json()["anomaly_index"], shipped().to_json()["anomaly_index"]
    assert "anomaly_index=2.5" in told["settings"]
    assert told["sha256"] != usual["sha256"]
    assert suite.to_json()["power"] == shipped().to_json()["power"]


def test_what_a_suite_leaves_out_is_not_asked_and_its_limits_stay_the_shipped_ones(copied: Path) -> None:
    (copied / "test_property.py").unlink()
    (copied / "test_robust_accuracy.py").unlink()
    suite = Suite.load(copied)
    assert suite.question("property") is None
    assert suite.limits == shipped_limits()


def test_a_question_of_ones_own_has_its_place_and_its_limit(copied: Path) -> None:
    (copied / "test_flip_drop.py").write_text(OWN)
    suite = Suite.of(AuditOptions(suite=str(copied), limits={"flip_drop": 0.1}))
    names = [question.name for question in suite.questions]
    assert names.index("property") < names.index("flip_drop") < names.index("power")
    assert suite.question("flip_drop").limits == {"flip_drop": 0.1}  # type: ignore[union-attr]
    assert suite.limits == shipped_limits()


def test_one_file_may_ask_several_questions(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(
        "from backdoor_audit.questions import Power, Precondition\n"
        "QUESTIONS = (Power(), Precondition())\n"
        "def test_power(finding, evidence): evidence(finding)\n"
        "test_precondition = test_power\n"
    )
    assert [question.name for question in Suite.load(tmp_path).questions] == ["precondition", "power"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds no file test_*.py; a suite is a folder of files test_*.py, each with QUESTION = one question"),
        ({"test_x.py": "def test_x(): pass"}, "test_x.py: names no QUESTION; a suite is a folder of files test_*.py"),
        ({"test_x.py": "QUESTION = 3"}, "test_x.py: QUESTION is 3; a question is accepted, as AnomalyIndex(...)"),
        ({"test_x.py": "raise ValueError('no')"}, "test_x.py cannot be imported (ValueError: no)"),
        ({"test_x.py": "def"}, "test_x.py cannot be imported (SyntaxError: "),
        (
            {"test_x.py": "from backdoor_audit.questions import Power\nQUESTION = Power()"},
            "test_x.py: no function test_power that submits the answers of Power",
        ),
        (
            dict.fromkeys(
                ("test_x.py", "test_y.py"),
                "from backdoor_audit.questions import Power\nQUESTION = Power()\ndef test_power(): pass",
            ),
            "asks power twice; give every question a name of its own",
        ),
    ],
)
def test_a_folder_that_is_no_suite_is_refused_in_one_line(files: dict[str, str], told: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with one_line(OptionError, told):
        Suite.load(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 1.0}, "limit 'speed' is not known; limits are anomaly_index, "),
        ({"x" * 10**6: 1.0}, r"\(1000000 characters\) is not known"),
        ({"size_ratio": "0.3"}, "size_ratio must be a number"),
        ({"size_ratio": True}, "size_ratio must be a number"),
        ({"anomaly_index": math.nan}, "anomaly_index must be a number"),
        ({"anomaly_index": math.inf}, "anomaly_index must be a number"),
        ({"anomaly_index": -1}, "at least 0"),
        ({"clean_accuracy_drop": 3.0}, r"must lie in \[0, 1\], got 3.0 \(rates are fractions, not percent\)"),
    ],
)
def test_limits_that_cannot_be_are_refused_in_one_line(values, message):  # type: ignore[no-untyped-def]
    with pytest.raises(OptionError, match=message) as caught:
        shipped().with_limits(values)
    assert "\n" not in str(caught.value)


def test_limits_keep_what_was_not_replaced() -> None:
    limits = shipped().with_limits({"anomaly_index": 3, "size_ratio": 1}).limits
    assert limits == replace(shipped_limits(), anomaly_index=3.0, size_ratio=1.0)
    assert shipped().with_limits({}) == shipped()


def test_a_question_brings_its_own_limits_wherever_it_is_asked() -> None:
    strict = AnomalyIndex(anomaly_index=1.5, size_ratio=0.2, trigger_success=0.8, steering_success=0.4)
    assert strict.judging(shipped_limits()).anomaly_index == 1.5
    assert strict.judging(shipped_limits()).clean_accuracy_drop == shipped_limits().clean_accuracy_drop
    assert Power().judging(shipped_limits()) == shipped_limits()
