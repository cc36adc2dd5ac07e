"""Where gates run: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from backdoor_audit.errors import OptionError
from backdoor_audit.fleet.gate import Ended, Order, Running, run

_PAUSE = 0.05  # s


@dataclass(frozen=True, slots=True)
class Lost:
    """A process that ended by no fault of its model's: its machine or its worker went away."""

    reason: str


class Pool(Protocol):
    """Runs orders side by side. Every order has a name."""

    places: int

    def start(self, name: str, order: Order) -> None:
        """Begin one."""

    def ended(self, seconds: float) -> Iterator[tuple[str, Ended | Lost]]:
        """Those that ended meanwhile, after at most that many seconds."""

    def stop(self) -> None:
        """End all that is still running."""


class Processes:
    """Processes of this machine, ``places`` of them at once; each sees the GPUs of its place."""

    def __init__(self, places: int, gpus: tuple[str, ...] = ()) -> None:
        self.places, self._gpus = places, gpus
        self._running: dict[str, tuple[int, Running]] = {}

    def start(self, name: str, order: Order) -> None:
        """Begin one, in a place that is free."""
        taken = {place for place, _ in self._running.values()}
        place = next(place for place in range(self.places) if place not in taken)
        if self._gpus:
            order = replace(order, environment={**order.environment, "CUDA_VISIBLE_DEVICES": self._gpus[place]})
        self._running[name] = place, Running(order)

    def ended(self, seconds: float) -> Iterator[tuple[str, Ended | Lost]]:
        """Those that ended meanwhile."""
        last = time.monotonic() + seconds
        while not (over := [name for name, (_, gate) in self._running.items() if gate.ended()]):
            if time.monotonic() >= last:
                return
            time.sleep(_PAUSE)
        for name in over:
            yield name, _judged(self._running.pop(name)[1].collected())

    def stop(self) -> None:
        """End all that is still running."""
        for _, gate in self._running.values():
            gate.stop()
        self._running.clear()


class Ray:
    """Tasks of a Ray cluster. ``address`` is what Ray takes for one; ``local`` is one of its own on this machine."""

    def __init__(self, address: str, *, places: int, cpus: float, gpus: float) -> None:
        try:
            import ray  # noqa: PLC0415 - an extra
        except ImportError:
            raise OptionError("--address needs Ray; pip install 'backdoor-audit[fleet]', or leave it out") from None
        self.places, self._ray = places, ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except Exception as error:  # Ray raises many kinds, plain ones as well
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise OptionError(f"--address: no Ray cluster at {address} ({told})") from None
        self._task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run)
        self._running: dict[Any, str] = {}

    def start(self, name: str, order: Order) -> None:
        """Begin one, or let it wait for a machine with room."""
        self._running[self._task.remote(order)] = name

    def ended(self, seconds: float) -> Iterator[tuple[str, Ended | Lost]]:
        """Those that ended meanwhile."""
        over, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        for reference in over:
            name = self._running.pop(reference)
            try:
                yield name, _judged(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                yield name, Lost(f"{type(error).__name__}: {lines[-1 if 'Traceback' in str(error) else 0]}")

    def stop(self) -> None:
        """End all that is still running."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()


def _judged(ended: Ended) -> Ended | Lost:
    """An exit code above 128 is a signal's: somebody, or the kernel for want of memory, killed the gate."""
    number = ended.exit_code - 128 if ended.exit_code > 128 else -ended.exit_code
    return Lost(f"the gate was killed by signal {number}") if 0 < number < 65 else ended


def dealt(places: int, per_model: float, visible: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs of every place: whole ones, or a share of one. Raises `OptionError` if there are too few."""
    if not per_model:
        return ()
    if per_model > 1 and per_model != int(per_model):
        raise OptionError(f"--gpus-per-model: {per_model:g}; accepted: a share up to 1, or a whole number")
    if places * per_model > len(visible):
        raise OptionError(
            f"--jobs: {places} at once with {per_model:g} GPUs each need {places * per_model:g} GPUs; this machine shows "
            f"{len(visible)}"
        )
    if per_model > 1:
        size = int(per_model)
        return tuple(",".join(visible[place * size : (place + 1) * size]) for place in range(places))
    each = int(1 / per_model)
    return tuple(visible[place // each] for place in range(places))


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(filter(None, (name.strip() for name in named.split(","))))
    import torch  # noqa: PLC0415 - takes seconds

    return tuple(map(str, range(torch.cuda.device_count())))
