"""One source of clean images while it is read, and how much memory and time that may take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from backdoor_audit import bounds
from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError
from backdoor_audit.printable import printable, shortened

Entry = TypeVar("Entry")

_NAMED = 5  # of what is not read
_FEWER = "take fewer images by --audit-max-images=N or smaller ones by --audit-resize=PIXELS"


@dataclass(frozen=True, slots=True)
class Reading:
    """The reading of ``source``, which may take what ``allowed`` says and has to be over at ``until`` (monotonic seconds).

    All images as floats may take half of the memory, the file and the pixels of a single picture the other half. A picture
    may take a sixtieth of the time.
    """

    source: str
    allowed: bounds.Bounds
    until: float
    _noted: Counter[str] = field(default_factory=Counter)
    _unread: list[str] = field(default_factory=list)

    @classmethod
    def begun(cls, source: str) -> Reading:
        """A reading that begins now, within the bounds that hold here."""
        allowed = bounds.current()
        return cls(source, allowed, time.monotonic() + allowed.seconds)

    def note(self, text: str) -> None:
        """Tell something about the images; the same text once, with how often where it is about pictures."""
        self._noted[text] += 1

    def leave(self, name: str) -> None:
        """Tell that something in the source is not read."""
        self._unread.append(name)

    def left(self) -> str:
        """What was not read, in words: how many, and the first names; empty if all was."""
        if not self._unread:
            return ""
        more = ", ..." if len(self._unread) > _NAMED else ""
        return f"{len(self._unread)} not read: {', '.join(map(shortened, self._unread[:_NAMED]))}{more}"

    @property
    def notes(self) -> tuple[str, ...]:
        """All that there is to tell about the images, in single lines."""
        told = [text.replace("{n}", str(count)) for text, count in self._noted.items()]
        return tuple(printable(line) for line in (*told, self.left()) if line)

    def timed(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The same, with a look at the time now and then. Raises what `check_time` raises."""
        for number, entry in enumerate(entries, 1):
            if number % 1024 == 0:
                self.check_time()
            yield entry

    def check_time(self) -> None:
        """Raises `DataFormatError` when the time is over."""
        if time.monotonic() > self.until:
            raise DataFormatError(
                f"{self.source}: reading takes longer than {self.allowed.seconds:g} s; take fewer images by "
                f"--audit-max-images=N, or {self.allowed.raised_by('seconds')}"
            )

    def check_memory(self, size: int, what: str, most: int) -> None:
        """Raises `DataFormatError` when ``what`` takes more than ``most`` bytes."""
        if size > most:
            raise DataFormatError(
                f"{self.source}: {what} would take {_megabytes(size)}, at most {_megabytes(most)} are allowed; {_FEWER}, or "
                f"{self.allowed.raised_by('memory')}"
            )

    def check_images(self, count: int, shape: tuple[int, int, int]) -> None:
        """Raises `DataFormatError` when so many images of that shape, and one more in the making, are too much as floats."""
        channels, height, width = shape
        what = f"{count} images of {channels}x{height}x{width} floats"
        self.check_memory(4 * (count + 1) * channels * height * width, what, self.allowed.memory // 2)

    def check_picture(self, size: int, what: str) -> None:
        """Raises `UnreadableError` when a single picture takes too many bytes."""
        most = self.allowed.memory // 2
        if size > most:
            raise UnreadableError(
                f"{what} would take {_megabytes(size)}, at most {_megabytes(most)} are allowed; "
                f"{self.allowed.raised_by('memory')}"
            )

    def picture_until(self) -> float:
        """When a picture that is begun now has to be over."""
        return min(self.until, time.monotonic() + self.picture_seconds)

    @property
    def picture_seconds(self) -> float:
        """How long a single picture may take."""
        return self.allowed.seconds / 60


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
