"""All models of a fleet through the gate: what is done already is left out, what is lost is done again."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from backdoor_audit.fleet.gate import LOG, Ended, Order
from backdoor_audit.fleet.models import Model
from backdoor_audit.fleet.outcome import Row, row_of
from backdoor_audit.fleet.pools import Lost, Pool
from backdoor_audit.fleet.results import Job, Results, digest
from backdoor_audit.printable import printable
from backdoor_audit.report.paths import RECORD

_TURN = 1.0  # s between two looks
_USAGE_ERROR, _TIME_OUT = 4, 124
_TOLD = re.compile(r"^(?:ERROR: |E +|backdoor_audit: )(.+)$", re.MULTILINE)
_LONGEST = 500  # characters of a reason


class Shown(Protocol):
    """Who is told how the fleet gets on."""

    def begun(self, name: str) -> None:
        """The audit of a model begins."""

    def over(self, row: Row) -> None:
        """The audit of a model is over."""

    def lost(self, name: str, reason: str) -> None:
        """The audit of a model was lost, and is to be done again."""

    def turn(self) -> None:
        """Some time has passed."""


@dataclass
class Drive:
    """One fleet on its way. ``keys`` say what every audit depends on, ``settings`` what they have in common."""

    results: Results
    keys: Mapping[str, str]
    settings: str
    order: Callable[[Model], Order]
    retries: int
    shown: Shown
    _attempts: dict[str, int] = field(default_factory=dict)

    def __call__(self, models: Iterable[Model], pool: Pool) -> None:
        """Audit them all; a model whose audit is lost more than ``retries`` times is kept as not audited. Raises `OSError`."""
        waiting, running = deque(models), dict[str, Model]()
        while waiting or running:
            while waiting and len(running) < pool.places:
                model = waiting.popleft()
                running[model.name] = model
                self._attempts[model.name] = self._attempts.get(model.name, 0) + 1
                pool.start(model.name, self.order(model))
                self.shown.begun(model.name)
            for name, ended in pool.ended(_TURN):
                model = running.pop(name)
                if isinstance(ended, Lost) and self._attempts[name] <= self.retries:
                    self.shown.lost(name, ended.reason)
                    waiting.append(model)
                else:
                    self._keep(model, ended)
            self.shown.turn()

    def _keep(self, model: Model, ended: Ended | Lost) -> None:
        files = ended.files if isinstance(ended, Ended) else {}
        job = Job(
            name=model.name,
            file=str(model.file),
            key=self.keys[model.name],
            settings=self.settings,
            exit_code=ended.exit_code if isinstance(ended, Ended) else -1,
            told=printable(_told(ended))[:_LONGEST],
            seconds=ended.seconds if isinstance(ended, Ended) else 0.0,
            attempts=self._attempts[model.name],
            record=digest(files[RECORD]) if RECORD in files else "",
        )
        self.results.keep(job, files)
        self.shown.over(row_of(model, job, self.results.record(job)))


def _told(ended: Ended | Lost) -> str:
    """Why there is no record, from what the gate printed; empty where there is one."""
    if isinstance(ended, Lost):
        return ended.reason
    if RECORD in ended.files and ended.exit_code != _USAGE_ERROR:
        return ""
    printed = ended.files.get(LOG, b"").decode("utf-8", "replace")
    found: Sequence[str] = _TOLD.findall(printed) or printed.strip().splitlines()[-1:]
    how = (
        "took too long"
        if ended.exit_code == _TIME_OUT
        else f"ended with exit code {ended.exit_code} and left no record"
    )
    return f"the gate {how}{': ' + found[-1] if found else ''}"
