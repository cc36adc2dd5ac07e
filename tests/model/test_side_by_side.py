import signal
import threading
import time

import pytest
import torch

from backdoor_audit import budget
from backdoor_audit.errors import ModelError
from backdoor_audit.model import side_by_side as module
from backdoor_audit.model.side_by_side import side_by_side

PATIENCE = 60  # s


@pytest.fixture(autouse=True)
def threads():
    """Four threads in torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def goes_on():
    """Work without an end of its own."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        budget.check()
        time.sleep(0.001)
    raise AssertionError("nobody has ended it")


def test_tasks_run_at_the_same_time_with_a_share_of_the_threads_each():
    met, seen = threading.Barrier(2, timeout=PATIENCE), []

    def task():
        met.wait()
        seen.append(torch.get_num_threads())

    side_by_side([task, task])
    assert seen == [2, 2]
    assert torch.get_num_threads() == 4
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen[-1] == 4


@pytest.mark.parametrize(("count", "at_once"), [(1, 4), (3, 1)])
def test_one_task_and_one_thread_stay_where_they_are(count, at_once):
    torch.set_num_threads(at_once)
    where = []
    side_by_side([lambda: where.append(threading.current_thread())] * count)
    assert where == [threading.main_thread()] * count


@pytest.mark.parametrize("place", [0, 1])
def test_a_task_that_fails_ends_the_others_and_its_error_is_raised(place):
    def fails():
        raise ModelError("no scores")

    with pytest.raises(ModelError, match="no scores"):
        side_by_side([fails, goes_on] if place == 0 else [goes_on, fails])


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, as it does in a terminal; shells let what runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_all_tasks():
    both = threading.Barrier(2, timeout=PATIENCE)

    def presses():
        both.wait()
        time.sleep(0.1)  # until the other thread waits for these
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        goes_on()

    def runs():
        both.wait()
        goes_on()

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        side_by_side([presses, runs])
    assert threading.active_count() == before


@pytest.mark.usefixtures("ctrl_c")
def test_code_that_never_comes_back_does_not_keep_ctrl_c_from_ending_the_wait(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    begun, end = threading.Event(), threading.Event()

    def hangs():
        begun.set()
        end.wait(PATIENCE)

    def presses():
        begun.wait(PATIENCE)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side([hangs, presses])
    assert time.monotonic() - before < PATIENCE / 2
    end.set()


def test_tasks_end_with_the_time_of_those_who_ask():
    with budget.until(time.time() - 1), pytest.raises(budget.BudgetSpentError, match="--audit-budget"):
        side_by_side([goes_on, goes_on])
