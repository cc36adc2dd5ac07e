"""Where the processes of a run keep finished work, and where they tell each other how far they are."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from backdoor_audit.errors import OptionError


class Folders:
    """The folders of a run that began at that time, in seconds; a worker takes those that its controller names."""

    def __init__(self, config: pytest.Config, began: float) -> None:
        self.config, self.began = config, began
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def store(self) -> Path:
        """For finished work: in pytest's cache, or a folder of this run when the cache is switched off.

        Raises `OptionError` for a cache that cannot be made.
        """
        given: dict[str, str] | None = getattr(self.config, "workerinput", None)
        if given is not None:
            return Path(given["backdoor_audit_store"])
        cache = getattr(self.config, "cache", None)
        if cache is not None:
            try:
                return Path(cache.mkdir("backdoor_audit"))
            except OSError as error:
                raise OptionError(
                    f"-o cache_dir: finished work cannot be kept in {self.config.getini('cache_dir')} "
                    f"({error.strerror or error}); give a folder that can be written by -o cache_dir=DIR, or pass "
                    "-p no:cacheprovider to keep none"
                ) from None
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="backdoor_audit-")
        return Path(self._scratch.name)

    @property
    def pace(self) -> Path:
        """For what workers tell each other."""
        return self.store / f"pace-{self.began:.3f}"

    def drop(self, *, had_workers: bool) -> None:
        """Remove what is of this run alone: the folder that stood in for pytest's cache, and that of its workers."""
        if had_workers:
            with suppress(OptionError):  # there is no cache, which has ended the run
                shutil.rmtree(self.pace, ignore_errors=True)
        if self._scratch is not None:
            self._scratch.cleanup()
