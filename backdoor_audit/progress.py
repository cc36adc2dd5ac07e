"""How far a run has come: image passes through any network, counted for the piece of work that they are made for.

One image pass is forward and backward of one image; forward alone counts a third. Pieces lie inside each other (a search asks
for reference twins, which are trained first); passes and seconds belong to the innermost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

FORWARD_ONLY = 1 / 3
"""What an image counts that only goes forward."""

_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


@dataclass
class Meter:
    """What a process has done so far. ``tell`` is called at every pass and at both ends of a piece, and must be quick.

    ``again`` says how often a piece was begun for as long again as planned.
    """

    tell: Callable[[Meter], None] = lambda meter: None
    passes: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    again: dict[str, int] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def piece(self) -> str:
        """The piece at work, or an empty string."""
        return self._open[-1] if self._open else ""

    def begin(self, piece: str) -> None:
        """From here on, what is done belongs to this piece."""
        self._book()
        self._open.append(piece)
        self.tell(self)

    def end(self) -> None:
        """The innermost piece is over, whatever came of it."""
        self._book()
        self.finished.add(self._open.pop())
        self.tell(self)

    def count(self, images: float) -> None:
        """Book so many image passes for the piece at work; networks may be trained in several threads."""
        with self._counting:
            self.passes[self.piece] = self.passes.get(self.piece, 0.0) + images
            self._book()
            self.tell(self)

    def _book(self) -> None:
        now = time.perf_counter()
        self.seconds[self.piece] = self.seconds.get(self.piece, 0.0) + now - self._since
        self._since = now


@contextmanager
def watched_by(meter: Meter | None) -> Iterator[None]:
    """What runs in this block is counted by that meter, or by none."""
    token = _meter.set(meter)
    try:
        yield
    finally:
        _meter.reset(token)


@contextmanager
def piece(name: str) -> Iterator[None]:
    """A piece of work of a run, under the name that it is told by."""
    meter = _meter.get()
    if meter is None:
        yield
        return
    meter.begin(name)
    try:
        yield
    finally:
        meter.end()


def again() -> None:
    """The piece at work goes on for as long again as was planned."""
    meter = _meter.get()
    if meter is not None:
        meter.again[meter.piece] = meter.again.get(meter.piece, 0) + 1
        meter.tell(meter)


def count(images: int, *, backward: bool) -> None:
    """So many images went through a network."""
    meter = _meter.get()
    if meter is not None:
        meter.count(images if backward else images * FORWARD_ONLY)
