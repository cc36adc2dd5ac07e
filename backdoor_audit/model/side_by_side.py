"""Work on networks of their own, side by side: two cores that train one network each are faster than both on one network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context

import torch

from backdoor_audit import budget


def side_by_side(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all tasks, as many at once as torch has threads, each with an equal share of these.

    They must share no network, no generator and no global random state. A task that raises ends the others at their next
    `budget.check`; so does what ends the wait for them, such as Ctrl-C.
    """
    threads = torch.get_num_threads()
    workers = min(len(tasks), threads)
    if workers < 2:
        for task in tasks:
            task()
        return
    over = threading.Event()

    def begun(task: Callable[[], None]) -> None:
        torch.set_num_threads(threads // workers)  # of this thread alone
        with budget.unless(over):
            task()

    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                doing = [pool.submit(copy_context().run, begun, task) for task in tasks]
                done, _ = wait(doing, return_when=FIRST_EXCEPTION)
            finally:
                over.set()
            _raise_first([one for one in doing if one in done])
    finally:
        torch.set_num_threads(threads)  # what threads begin with that are made from here on


def _raise_first(done: Sequence[Future[None]]) -> None:
    for one in done:
        one.result()
