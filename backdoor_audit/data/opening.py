"""What data sets of torchvision open by themselves: regular files only, and no more of them than the memory allows."""

from __future__ import annotations

import builtins
import bz2
import io
import os
import pickle
import pickletools
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from backdoor_audit.data.reading import Reading
from backdoor_audit.files import UnreadableError, refuse_special

_PER_BYTE = 4  # bytes of memory that a byte may take: what is read, what is made of it, and a copy of each
_PER_CHARACTER = 16  # the same for texts, which become rows of Python's objects
_PER_MEMBER = 128  # the same for the list of an archive's members
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
_OF_TORCH = (
    "a file of torch.save that holds more than texts and numbers, which is not read here; remove it, or the folder processed/ "
    "that old versions of torchvision wrote, so that the raw files are read"
)


@contextmanager
def opening_within(reading: Reading) -> Iterator[None]:
    """In this block files are opened for reading as `_Opening` does, by whatever opens them through Python in this thread."""
    opening = _Opening(reading)
    places = (
        (builtins, "open", opening.opened),
        (io, "open", opening.opened),  # pathlib's
        (bz2, "open", opening.unpacked),
        (torch, "load", opening.loaded),
    )
    before = [getattr(module, name) for module, name, _ in places]
    try:
        for (module, name, instead), plain in zip(places, before, strict=True):
            setattr(module, name, _in_this_thread(instead, plain))
        yield
    finally:
        for (module, name, _), plain in zip(places, before, strict=True):
            setattr(module, name, plain)


def _in_this_thread(instead: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is ``instead`` in the thread that asks for it here, and ``plain`` in all others of the process."""
    here = threading.get_ident()

    def opened(*given: Any, **options: Any) -> Any:
        return (instead if threading.get_ident() == here else plain)(*given, **options)

    return opened


class _Opening:
    """Opens files. What is no regular file, or more than may be read at once, raises `UnreadableError` with its name."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._open = open

    def opened(self, file: Any, mode: str = "r", *more: Any, **options: Any) -> IO[Any]:
        """As the builtin ``open``."""
        if isinstance(file, int) or set(mode) & set("wax+") or not os.path.exists(file) or os.path.isdir(file):
            return self._open(file, mode, *more, **options)
        name = os.path.basename(os.fsdecode(file))
        try:
            size = refuse_special(Path(os.fsdecode(file)))
        except UnreadableError as error:
            raise UnreadableError(f"{name}: {error}; replace it") from None
        if "b" in mode:  # archives and sums of whole files are read in pieces, whatever their size
            return io.BufferedReader(_InPieces(os.fsdecode(file), self._reading))
        _check(name, size, _PER_CHARACTER, self._reading)
        return self._open(file, mode, *more, **options)

    def unpacked(self, file: Any, *_: Any, **__: Any) -> IO[bytes]:
        """As ``bz2.open`` for reading bytes."""
        name, most = os.path.basename(os.fsdecode(file)), self._reading.allowed.memory // _PER_CHARACTER
        with self.opened(file, "rb") as packed, bz2.BZ2File(packed) as inner:
            content = inner.read(most + 1)
        _check(f"{name} unpacked", len(content), _PER_CHARACTER, self._reading)
        return io.BytesIO(content)

    def loaded(self, file: Any, *_: Any, **__: Any) -> Any:
        """As ``torch.load``, of texts and numbers in lists and mappings alone: a few bytes can ask for gigabytes of all else."""
        name = os.path.basename(os.fsdecode(file))
        with self.opened(file, "rb") as packed:
            _check(name, os.fstat(packed.fileno()).st_size, _PER_MEMBER, self._reading)
            content = _pickled(packed)
        if not content or self._outgrows(content):
            raise UnreadableError(f"{name}: {_OF_TORCH}")
        return _Plain(io.BytesIO(content), name).load()

    def _outgrows(self, content: bytes) -> bool:
        """Whether a pickle has a place in its memo that it cannot fill, before which all others are made."""
        for number, (code, found, _where) in enumerate(pickletools.genops(content)):
            if number % 65536 == 0:
                self._reading.check_time()
            if code.name in _MEMO and isinstance(found, int) and found > len(content):
                return True
        return False


def _pickled(packed: IO[bytes]) -> bytes:
    """What is pickled in a file of torch.save; empty if it is none of the kind that unpacks to its own size."""
    if not zipfile.is_zipfile(packed):
        return b""
    with zipfile.ZipFile(packed) as archive:
        info = next((info for info in archive.infolist() if info.filename.endswith("/data.pkl")), None)
        return archive.read(info) if info is not None and info.compress_type == zipfile.ZIP_STORED else b""


class _Plain(pickle.Unpickler):
    """Nothing that is no text, number, list or mapping can be in it, since nothing is called."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        super().__init__(file)
        self._name = name

    def find_class(self, _: str, __: str, /) -> Any:
        """Raises `UnreadableError`."""
        raise UnreadableError(f"{self._name}: {_OF_TORCH}")

    def persistent_load(self, _: Any, /) -> Any:
        """Raises `UnreadableError`."""
        raise UnreadableError(f"{self._name}: {_OF_TORCH}")


class _InPieces(io.FileIO):
    """A file that gives out no more at once than the memory allows. Raises `UnreadableError` where more is asked for."""

    def __init__(self, path: str, reading: Reading) -> None:
        super().__init__(path)
        self._reading = reading

    def readall(self) -> bytes:
        """All that is left."""
        self._check(os.fstat(self.fileno()).st_size - self.tell())
        return super().readall()

    def readinto(self, buffer: Any, /) -> int:
        """As much as the buffer takes."""
        self._check(len(buffer))
        return super().readinto(buffer)

    def _check(self, size: int) -> None:
        self._reading.check_time()
        _check(os.path.basename(str(self.name)), size, _PER_BYTE, self._reading)


def _check(name: str, size: int, per_byte: int, reading: Reading) -> None:
    most = reading.allowed.memory // per_byte
    if size > most:
        raise UnreadableError(
            f"{name}: {size / 1e6:.0f} MB; at most {most / 1e6:.0f} MB are read at once, {reading.allowed.raised_by('memory')}"
        )
