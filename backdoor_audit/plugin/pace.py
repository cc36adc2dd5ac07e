"""How long a run takes, told before its searches and while it works: one line first, then a bar or a line now and then."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backdoor_audit.files import write_text
from backdoor_audit.item import Item
from backdoor_audit.progress import Meter, watched_by

if TYPE_CHECKING:
    from backdoor_audit.run.effort import Plan
    from backdoor_audit.run.run import Run

EVERY = 30.0
"""Seconds between two lines where there is no terminal, or several workers."""

REDRAWN = 0.5
"""Seconds between two looks of the bar."""

_LONG = 600  # s above which a run says what would make it shorter
_SHARED = 2.0  # s between two words of a worker to the others
_BAR = 20  # columns
_NEARLY = 0.97  # of a piece that takes more passes than planned
_CANARY = "the search for a "  # how pieces begin that are planned as one
_PRIOR = 0.1  # of the plan's time that must have passed before the time that was needed counts for more than the plan


class Pace:
    """Plan and progress of the run in this process. ``shared`` is a folder by which workers know of each other, or None."""

    def __init__(self, config: pytest.Config, shared: Path | None, worker: str) -> None:
        self.config, self.shared, self.worker = config, shared, worker
        self.meter = Meter(tell=self._told)
        self.plan: Plan | None = None
        self.began = time.monotonic()
        self.asked = False  # whether the plan was made, or could not be
        self._shown = False  # whether what is told now gets past pytest's capture
        self._drawn = False
        self._last = self._share_due = self.began

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A block in which passes count."""
        with watched_by(self.meter):
            yield

    def announce(self, run: Run, items: Sequence[str]) -> None:
        """Make the plan of these items and tell it, in one process of a run."""
        from backdoor_audit.run.effort import plan

        self.asked = True
        with watched_by(None):
            self.plan = plan(run, [Item.parse(name) for name in items])
        self.began = self._last = time.monotonic()
        told = [f"{_counted(len(items), 'item')}; how long they take could not be measured"]
        if self.plan is not None:
            told = [_cost(self.plan, len(items)), *_advice(self.plan, run)]
        with suppress(OSError, ValueError, AttributeError):  # nobody reads any more
            if self._is_first():
                for line in told:
                    self._say(line)

    def left(self) -> tuple[float, float] | None:
        """The share of the run that is done, in [0, 1], and the seconds that it still takes; None without a plan."""
        return None if self.plan is None else left(self.plan, *self._together(), time.monotonic() - self.began)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A block of work that may take minutes, with pytest's capture out of the way."""
        capture = self.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
            before, self._shown = self._shown, True
            try:
                yield
            finally:
                self._shown = before
                self._wipe()

    def _told(self, meter: Meter) -> None:
        now = time.monotonic()
        if self.shared is not None and now >= self._share_due:
            self._share_due = now + _SHARED
            state = {"passes": meter.passes, "finished": sorted(meter.finished), "again": meter.again}
            with suppress(OSError):
                self.shared.mkdir(exist_ok=True)
                write_text(self.shared / f"{self.worker}.json", json.dumps(state))
        terminal = self._terminal()
        live = terminal is not None and terminal.isatty
        if not self._shown or not meter.piece or now - self._last < (REDRAWN if live else EVERY):
            return
        self._last = now
        with suppress(OSError, ValueError, AttributeError):  # nobody reads any more
            if live:
                self._draw(terminal)
            elif self._my_turn():
                self._say(self._line(bar=False))

    def _draw(self, terminal: Any) -> None:
        if not self._drawn:
            terminal.ensure_newline()
        self._drawn = True
        line = self._line(bar=True)
        terminal.rewrite(line[: terminal._tw.fullwidth - 1], erase=True)
        terminal.flush()

    def _wipe(self) -> None:
        if self._drawn:
            self._drawn = False
            terminal = self._terminal()
            with suppress(OSError, ValueError, AttributeError):
                terminal.rewrite("", erase=True)
                terminal.write("\r")

    def _say(self, text: str) -> None:
        line, terminal = f"backdoor_audit: {text}", self._terminal()
        if terminal is None:  # a worker: its standard output belongs to execnet
            print(line, file=sys.stderr, flush=True)
            return
        terminal.ensure_newline()
        terminal.write_line(line)
        terminal.flush()

    def _line(self, *, bar: bool) -> str:
        known, piece = self.left(), self.meter.piece
        if known is None:
            return f"{span(time.monotonic() - self.began)}: {piece}"
        share, seconds = known
        if bar:
            full = round(share * _BAR)
            return f"{share:4.0%} |{'#' * full}{'.' * (_BAR - full)}| {piece}, about {span(seconds)} left"
        piece += ", which has not converged and goes on" if piece in self.meter.again else ""
        return f"{span(time.monotonic() - self.began)}: {piece}; {share:.0%} of the run is done, about {span(seconds)} left"

    def _together(self) -> tuple[dict[str, float], set[str], dict[str, int]]:
        """Passes and finished pieces of all workers, and what goes on for as long again."""
        passes, finished, again = dict(self.meter.passes), set(self.meter.finished), dict(self.meter.again)
        for file in self.shared.glob("*.json") if self.shared is not None else ():
            if file.stem != self.worker:
                with suppress(OSError, ValueError, KeyError, AttributeError):
                    state = json.loads(file.read_text())
                    finished.update(state["finished"])
                    again.update(state["again"])
                    for name, count in state["passes"].items():
                        passes[name] = max(count, passes.get(name, 0.0))
        return passes, finished, again

    def _is_first(self) -> bool:
        """Whether no other worker has told the plan."""
        if self.shared is None:
            return True
        with suppress(FileExistsError):
            self.shared.mkdir(exist_ok=True)
            (self.shared / "announced").touch(exist_ok=False)
            return True
        return False

    def _my_turn(self) -> bool:
        """Whether no other worker has told the same just now."""
        if self.shared is None:
            return True
        stamp = self.shared / "told"
        with suppress(OSError):
            if stamp.exists() and time.time() - stamp.stat().st_mtime < EVERY:
                return False
            stamp.touch()
        return True

    def _terminal(self) -> Any:
        """Where to write; None in a worker, whose reporter writes into nothing."""
        return self.config.pluginmanager.getplugin("terminalreporter") if self.shared is None else None


def left(
    plan: Plan, passes: Mapping[str, float], finished: Set[str], again: Mapping[str, int], elapsed: float
) -> tuple[float, float]:
    """Share done, and seconds left, by what the plan says of the rest and how right it was so far."""
    from backdoor_audit.run.effort import CANARIES

    made = {CANARIES: sum(count for name, count in passes.items() if name.startswith(_CANARY)), **passes}
    flagged = any(piece.on_demand and made.get(piece.name) for piece in plan.pieces)
    due = [piece for piece in plan.pieces if not piece.kept and (flagged or not piece.on_demand)]
    done = total = 0.0
    for piece in due:
        times = 1 + again.get(piece.name, 0)
        share = min(_NEARLY, made.get(piece.name, 0.0) / (times * piece.passes)) if piece.passes else 0.0
        done += times * piece.seconds * (1.0 if piece.name in finished else share)
        total += times * piece.seconds
    prior = _PRIOR * total
    slower = (elapsed + prior) / (done + prior) if total else 1.0
    return (done / total if total else 1.0), (total - done) * slower


def span(seconds: float) -> str:
    """A time span in words, as exact as a guess may be."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def _cost(plan: Plan, items: int) -> str:
    rate = 1 / plan.seconds_per_pass
    told = (
        f"{_counted(items, 'item')}, {_counted(plan.searches, 'search', 'searches')}, {plan.passes:,.0f} image passes at "
        f"{rate:,.{0 if rate >= 10 else 2}f} a second: about {span(plan.seconds)}"
    )
    kept = sum(piece.kept for piece in plan.pieces)
    more = f", and {span(plan.seconds_on_demand)} more if a trigger is flagged" if plan.seconds_on_demand >= 1 else ""
    return told + more + (f" ({_counted(kept, 'piece')} of work kept from earlier runs)" if kept else "")


def _advice(plan: Plan, run: Run) -> list[str]:
    """What would make a long run shorter."""
    if plan.seconds <= _LONG:
        return []
    from backdoor_audit.run.effort import quick_seconds

    cures = [] if run.inputs.device.type == "cuda" else ["a GPU (--audit-device=cuda)"]
    if run.options.profile != "quick":
        cures.append(f"--audit-profile=quick (about {span(quick_seconds(plan, run))}, small patches only)")
    if not run.options.budget:
        cures.append("--audit-budget=10m (what is not covered then is inconclusive)")
    if max(run.clean_set.image_shape[1:]) > 64 and not run.options.resize:
        cures.append("smaller images, if the model takes them (--audit-resize)")
    cures.append("the folder .pytest_cache kept between runs (finished work is not done again)")
    return [f"that is long; what helps: {'; '.join(cures)}"]


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
