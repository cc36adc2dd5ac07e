"""How signals end a run, and when they do not any more."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from backdoor_audit.plugin.signals import Signals, TerminatedError

BOTH = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def signals() -> Iterator[Signals]:
    """In a process as pytest finds it."""
    before = {number: signal.getsignal(number) for number in BOTH}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, TerminatedError), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_that_comes_twice_at_once_ends_the_run_once(
    signals: Signals, number: signal.Signals, error: type[BaseException]
) -> None:
    signals.end_the_run(supervised=True)
    with pytest.raises(error):
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # from the terminal, or to the group, and once more from the parent


def test_a_block_that_must_be_whole_is_ended_after_it(signals: Signals) -> None:
    signals.end_the_run(supervised=True)
    done = []

    def imported() -> None:
        with signals.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("whole")

    with pytest.raises(TerminatedError):
        imported()
    assert done == ["whole"]


@pytest.mark.parametrize("number", BOTH)
def test_what_is_written_at_the_end_is_written_whole(signals: Signals, number: signal.Signals) -> None:
    signals.end_the_run(supervised=False)
    signals.hold()
    os.kill(os.getpid(), number)
    signals.give_back()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", BOTH)
def test_a_process_of_the_audits_own_is_not_ended_after_its_verdict_but_by_whoever_asks_twice(
    signals: Signals, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals.end_the_run(supervised=True)
    signals.hold()
    signals.give_back()
    os.kill(os.getpid(), number)
    monkeypatch.setattr("backdoor_audit.plugin.signals._AT_ONCE", 0.0)  # the next is not at once
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_handlers_that_somebody_has_set_are_left_alone(signals: Signals) -> None:
    def own(_number: int, _frame: object) -> None:
        pass

    for number in BOTH:
        signal.signal(number, own)
    signals.end_the_run(supervised=True)
    signals.hold()
    assert [signal.getsignal(number) for number in BOTH] == [own, own]
