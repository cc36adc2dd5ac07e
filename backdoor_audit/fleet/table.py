"""How a fleet gets on, in the terminal: a table that is drawn again and again, or a line per model where nobody looks."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from typing import TextIO

from backdoor_audit.fleet.driving import Shown
from backdoor_audit.fleet.outcome import STATES, Row, ranked
from backdoor_audit.printable import printable
from backdoor_audit.report.section import duration

_REDRAW = 0.5  # s


class Lines:
    """A line per model, as it is over."""

    def __init__(self, stream: TextIO, models: int) -> None:
        self._stream, self._models, self._over = stream, models, 0

    def begun(self, name: str) -> None:
        """Nothing: logs are read afterwards."""

    def over(self, row: Row) -> None:
        """Its verdict, and why."""
        self._over += 1
        self._write(f"[{self._over}/{self._models}] {told(row)}")

    def lost(self, name: str, reason: str) -> None:
        """That it is done again."""
        self._write(f"{name}: {printable(reason)}; it is audited again")

    def turn(self) -> None:
        """Nothing."""

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Table:
    """Counts, what is running, and what is over, the worst first, as far as the terminal has room."""

    def __init__(self, stream: TextIO, models: int) -> None:
        self._stream, self._models = stream, models
        self._running: dict[str, float] = {}
        self._rows: dict[str, Row] = {}
        self._notes: list[str] = []
        self._began = time.monotonic()
        self._drawn, self._next = 0, 0.0

    def begun(self, name: str) -> None:
        """It is among the running."""
        self._running[name] = time.monotonic()

    def over(self, row: Row) -> None:
        """It is among those that are over."""
        self._running.pop(row.name, None)
        self._rows[row.name] = row
        self._next = 0.0

    def lost(self, name: str, reason: str) -> None:
        """It waits again."""
        self._running.pop(name, None)
        self._notes.append(f"{name}: {printable(reason)}; it is audited again")

    def turn(self) -> None:
        """Draw, now and then."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _REDRAW
            self._draw()

    def _draw(self) -> None:
        columns, height = shutil.get_terminal_size()
        lines = [line[: columns - 1] for line in self.lines(height - 2)]
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._stream.write(back + "\n".join(lines) + "\n")
        self._stream.flush()
        self._drawn = len(lines)

    def lines(self, height: int) -> list[str]:
        """The table in at most so many lines."""
        now = time.monotonic()
        counts = Counter(row.state for row in self._rows.values())
        waiting = self._models - len(self._rows) - len(self._running)
        parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
        parts += [f"{len(self._running)} running", f"{waiting} waiting", duration(now - self._began)]
        lines = [f"{len(self._rows)} of {self._models} models: {', '.join(parts)}"]
        lines += [f"running       {name}  {duration(now - since)}" for name, since in self._running.items()]
        lines += self._notes[-3:]
        lines += [told(row) for row in ranked(list(self._rows.values()))]
        left_out = len(lines) - height
        return lines if left_out <= 0 else [*lines[: height - 1], f"... and {left_out + 1} more"]


def shown_on(stream: TextIO, models: int) -> Shown:
    """The table on a terminal, lines elsewhere."""
    return Table(stream, models) if stream.isatty() else Lines(stream, models)


def told(row: Row) -> str:
    """One model in one line."""
    measured = "" if row.p_value is None else f"  p={row.p_value:.2g}"
    return f"{row.state:<12}  {row.name}{measured}  {printable(row.reason)}"
