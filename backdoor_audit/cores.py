"""How many cores a process may use, and threads that do not hold up each other."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from backdoor_audit import control_groups

_SPINS = "4000"  # some ten microseconds


def available(root: Path = Path("/")) -> int:
    """Cores that this process may use: those it is bound to, and no more than the narrowest control group gives time for.

    torch sees the first bound and not the second, by which containers are held (``docker --cpus``, limits of Kubernetes).
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(math.ceil, _quotas(root))]))


def wait_asleep(environment: MutableMapping[str, str]) -> None:
    """Let threads that wait do so asleep, after a moment, unless the environment says otherwise.

    GNU OpenMP lets them spin for milliseconds, and where something else runs on the same cores, that is the time of whoever has
    the work. It looks once, when torch is imported; after that nothing is changed.
    """
    if "torch" not in sys.modules and not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        environment["GOMP_SPINCOUNT"] = _SPINS


def share(processes: int, environment: MutableMapping[str, str], cores: int | None = None) -> None:
    """Let each of so many processes compute with its share of the cores, unless the environment says otherwise."""
    threads = max(1, (cores or available()) // max(1, processes))
    if "OMP_NUM_THREADS" not in environment and threads < (os.cpu_count() or 1):
        environment["OMP_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:  # a conftest of the project has imported it
            sys.modules["torch"].set_num_threads(threads)


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that each control group around this process gives, where it has a bound."""
    for folder, first in control_groups.around(root, "cpu"):
        if first:
            quota, period = (control_groups.number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        else:
            quota, period = _of_second(folder / "cpu.max")
        if quota is not None and period is not None and quota > 0 and period > 0:
            yield quota / period


def _of_second(file: Path) -> tuple[int | None, int | None]:
    try:
        quota, period = map(int, file.read_text().split())
    except (OSError, ValueError):  # "max" for no bound
        return None, None
    return quota, period
