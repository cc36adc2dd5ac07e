"""Work on networks of their own, side by side: two cores that train one network each are faster than both on one network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context

import torch

from backdoor_audit import budget

_PATIENCE = 10.0  # s for tasks to notice that they are over; code of a network may never come back


def side_by_side(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all tasks, as many at once as torch has threads, each with an equal share of these.

    They must share no network, no generator and no global random state. A task that raises ends the others at their next
    `budget.check`; so does what ends the wait for them, such as Ctrl-C. One that does not end then is not waited for.
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

    pool, doing = ThreadPoolExecutor(workers), list[Future[None]]()
    try:
        for task in tasks:
            doing.append(pool.submit(copy_context().run, begun, task))
        wait(doing, return_when=FIRST_EXCEPTION)
        failed = [one for one in doing if one.done() and one.exception() is not None]
    finally:
        over.set()
        _, at_work = wait(doing, timeout=_PATIENCE)
        pool.shutdown(wait=not at_work, cancel_futures=True)
        torch.set_num_threads(threads)  # what threads begin with that are made from here on
    for one in failed:
        one.result()
