"""What a GPU makes of the audit: ``python -m benchmarks.device [--device cuda] [--out FILE] [--seconds 480] [--small]``.

Needs no network and no data but the fixtures. Printed and written to FILE (default ``benchmarks/results/device.json``), one
row at a time, so that a run that is cut short leaves what it had:

* the project's own tests marked ``cuda``;
* the verdicts on the fixtures, by ``pytest --model``, beside those that a CPU gives;
* for three networks (the fixtures' small CNN at 28 px, a PreActResNet-18 of full width at 32 px, a ResNet-50 at 224 px with 1,000
  classes; random weights cost as much): image passes per second of a bare forward and input gradient at its best batch, in
  float32, in bfloat16, and compiled, with what compiling takes to start; those of the loops of Neural Cleanse, `additive` and
  `patch_scan` as a share of the bare ones in the same precision; and the peak of memory.

Steps that no longer fit into ``--seconds`` are left out and named. ``--small`` shrinks all sizes, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import DETECTORS, UniversalPerturbation
from backdoor_audit.errors import BudgetSpentError
from backdoor_audit.model.classifier import Classifier, autocast
from backdoor_audit.model.networks import build_network
from backdoor_audit.search.inversion import TriggerInversion
from backdoor_audit.search.scanning import PatchScan
from benchmarks.measured import RESULTS

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]
EXPECTED = {"badnets": (1, "fail"), "clean": (0, "pass")}
"""Exit code and verdict that a CPU gives, which ``.ci/run`` checks."""

_MEASURED_SECONDS = 2.0  # of each bare throughput
_BATCHES = (32, 128, 320, 1024)
_LOOP_STEPS = 4


@dataclass(frozen=True, slots=True)
class Subject:
    """A network and what it takes; ``make`` gives it with random weights."""

    name: str
    side: int
    classes: int
    make: Callable[[int], nn.Module]
    channels: int = 3
    images: int = 256


def _resnet50(classes: int) -> nn.Module:
    network: nn.Module = resnet50(weights=None, num_classes=classes)
    return network


def subjects(*, small: bool) -> list[Subject]:
    """The networks; small ones take the same way through the code in a second."""
    width, deep, classes = (4, 64, 20) if small else (64, 224, 1000)
    return [
        Subject("small_cnn", 28, 10, _built("small_cnn", 1, 16), channels=1),
        Subject("preact_resnet18", 32, 10, _built("preact_resnet18", 3, width)),
        Subject("resnet50", deep, classes, _resnet50, images=2 * classes),
    ]


def _built(name: str, channels: int, width: int) -> Callable[[int], nn.Module]:
    return lambda classes: build_network(name, num_classes=classes, in_channels=channels, width=width)


def prepared(subject: Subject, device: torch.device) -> tuple[Classifier, CleanSet]:
    """The classifier, and noise as images, every class as often as any other by the labels."""
    torch.manual_seed(0)
    shape = (subject.channels, subject.side, subject.side)
    classifier = Classifier.wrap(subject.make(subject.classes), image_shape=shape, device=device)
    images = torch.rand((subject.images, *shape), generator=torch.Generator().manual_seed(0))
    return classifier, CleanSet(images, torch.arange(subject.images) % subject.classes)


def bare(
    forward: Callable[[Tensor], Tensor], images: Tensor, precision: AbstractContextManager[Any], seconds: float
) -> float:
    """Image passes (forward, and backward to the input) per second of batches that are on the device."""
    for _ in range(2):
        _pass(forward, images, precision)
    _wait(images.device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            _pass(forward, images, precision)
            count += len(images)
        _wait(images.device)
    return count / (time.perf_counter() - began)


def _pass(forward: Callable[[Tensor], Tensor], images: Tensor, precision: AbstractContextManager[Any]) -> None:
    free = images.clone().requires_grad_()
    with precision:
        logits = forward(free)
    torch.autograd.grad(logits.float().logsumexp(dim=1).sum(), free)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def throughput(classifier: Classifier, seconds: float) -> Iterator[Row]:
    """Bare passes per second by precision, each at its best batch; compiled in the precision that searches use."""
    device, shape = classifier.device, classifier.image_shape
    best: dict[str, tuple[float, int]] = {}
    for name, enabled in (("float32", False), ("bfloat16", True)):
        for size in _BATCHES:
            images = torch.rand((size, *shape), device=device)
            try:
                rate = bare(classifier, images, torch.autocast(device.type, torch.bfloat16, enabled=enabled), seconds)
            except torch.OutOfMemoryError:
                break
            best[name] = max(best.get(name, (0.0, 0)), (rate, size))
        if name in best:
            yield {"what": f"bare, {name}", "passes_per_second": best[name][0], "batch": best[name][1]}
    used = "bfloat16" if _used(classifier) else "float32"
    if used in best:
        images = torch.rand((best[used][1], *shape), device=device)
        began = time.perf_counter()
        try:
            compiled = torch.compile(classifier.module)
            _pass(compiled, images, autocast(device, classifier.module))
            _wait(device)
            started = time.perf_counter() - began
            rate = bare(compiled, images, autocast(device, classifier.module), seconds)
            yield {"what": f"compiled, {used}", "passes_per_second": rate, "batch": len(images), "starts_s": started}
        except Exception as error:  # no compiler, or a network that it does not take
            yield {"what": f"compiled, {used}", "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def _used(classifier: Classifier) -> bool:
    """Whether searches compute in bfloat16."""
    with autocast(classifier.device, classifier.module):
        return torch.is_autocast_enabled(classifier.device.type)


def loops(classifier: Classifier, clean: CleanSet, bare_rate: float, seconds: float) -> Iterator[Row]:
    """Passes per second of some steps of three searches, their share of the bare rate, and the peak of memory."""
    device = classifier.device
    chosen = {entry.name: entry for entry in DETECTORS}
    searches: dict[str, Callable[[], int]] = {"neural_cleanse": lambda: _cleanse(classifier, clean)}
    for name in ("additive", "patch_scan"):
        detector = chosen[name]
        assert isinstance(detector, UniversalPerturbation)
        searches[name] = partial(_steer, detector, classifier, clean)
    for name, search in searches.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        row: Row = {"what": f"loop of {name}"}
        try:
            with budget.until(time.time() + seconds):
                search()
                _wait(device)
                began = time.perf_counter()
                passes = search()
                _wait(device)
            taken = time.perf_counter() - began
            row |= {"passes_per_second": passes / taken, "share_of_bare": passes / taken / bare_rate, "passes": passes}
        except (torch.OutOfMemoryError, BudgetSpentError) as error:
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if device.type == "cuda":
            row["peak_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
        yield row


def _cleanse(classifier: Classifier, clean: CleanSet) -> int:
    search = TriggerInversion(steps=_LOOP_STEPS, race_above=10**6)
    return sum(each.image_passes for each in search(classifier, clean, generator=torch.Generator().manual_seed(0)))


def _steer(detector: UniversalPerturbation, classifier: Classifier, clean: CleanSet) -> int:
    """Of noise every class is predicted by its label: what a random network says of it allows no goals."""
    probe = detector.probe
    few = (
        replace(probe, stages=tuple(replace(stage, steps=_LOOP_STEPS) for stage in probe.stages))
        if isinstance(probe, PatchScan)
        else replace(probe, steps=_LOOP_STEPS)
    )
    wanted = detector.contest.goals(classifier.num_classes)
    told: Any = _Told(classifier, clean)
    return few(told, clean, clean, wanted, generator=torch.Generator().manual_seed(0)).image_passes


class _Told:
    """A classifier that is said to predict the labels; its forward passes are its own."""

    def __init__(self, classifier: Classifier, clean: CleanSet) -> None:
        self._classifier = classifier
        self._scores = functional.one_hot(clean.labels, classifier.num_classes).float().to(classifier.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._classifier, name)

    def __call__(self, images: Tensor) -> Tensor:
        """The scores of the network."""
        return self._classifier(images)

    def logits(self, images: Tensor) -> Tensor:
        """One for the label of each of the clean images, which are all that is asked for."""
        assert len(images) == len(self._scores)
        return self._scores

    def predict(self, images: Tensor) -> Tensor:
        """The labels."""
        return self.logits(images).argmax(dim=1)


def verdict(name: str, device: str, seconds: float) -> Row:
    """The gate on one fixture."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={folder}/cache"]
        command += [
            f"--model=fixtures/models/{name}.safetensors",
            f"--audit-device={device}",
            f"--report={folder}/report",
        ]
        row: Row = {"what": f"gate on {name}", "expected": list(EXPECTED[name])}
        try:
            code = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return {**row, "error": f"not done after {seconds:.0f} s"}
        taken = time.perf_counter() - began
        record = json.loads(Path(folder, "report", "audit.json").read_text(encoding="utf-8"))
        found = [code, record["verdict"]]
        return {**row, "found": found, "equal": found == list(EXPECTED[name]), "seconds": taken}


def marked_tests(seconds: float) -> Row:
    """The project's tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "tests"]
    row: Row = {"what": "tests marked cuda"}
    try:
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {**row, "error": f"not done after {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return {
        **row,
        "exit_code": done.returncode,
        "said": lines[-1:],
        "failed": [x for x in lines if x.startswith("FAILED")],
    }


def described(device: torch.device) -> Row:
    """Which machine this is."""
    row: Row = {
        "what": "machine",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        seen = torch.cuda.get_device_properties(device)
        row |= {"device": seen.name, "memory_gb": seen.total_memory / 2**30, "cuda": torch.version.cuda}
    return row


def steps(device: torch.device, *, small: bool) -> list[tuple[str, Callable[[float], Iterable[Row]]]]:
    """What is done, in order, each with a name and the work, which gets the seconds that are left."""
    return [
        ("tests", _tests),
        *((f"speed of {subject.name}", partial(_speed, subject, device, small)) for subject in subjects(small=small)),
        *((f"gate on {name}", partial(_gate, name, str(device))) for name in EXPECTED),
    ]


def _tests(left: float) -> Iterable[Row]:
    return [marked_tests(min(left, 120))]


def _gate(name: str, device: str, left: float) -> Iterable[Row]:
    return [verdict(name, device, left)]


def _speed(subject: Subject, device: torch.device, small: bool, left: float) -> Iterator[Row]:
    classifier, clean = prepared(subject, device)
    common = {"network": subject.name, "side": subject.side, "classes": subject.classes}
    used, bare_rate = ("bfloat16" if _used(classifier) else "float32"), 0.0
    for row in throughput(classifier, 0.1 if small else _MEASURED_SECONDS):
        if row["what"] == f"bare, {used}":
            bare_rate = row["passes_per_second"]
        yield {**common, **row}
    for row in loops(classifier, clean, bare_rate, min(left / 2, 90)) if bare_rate else ():
        yield {**common, **row}


def line(row: Row) -> str:
    """One row in one line."""
    shown = {name: value for name, value in row.items() if name not in ("network", "what")}
    told = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )
    return f"{row.get('network', ''):16} {row['what']:24} {told}"


def main() -> None:
    """Run the steps that fit into the time, print each row, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / "device.json", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=480, help="for all of it (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="shrink all sizes, to try the script on a CPU")
    parser.add_argument("--only", default="", help="only steps whose name contains this")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device is visible; --device cpu --small tries the script without one")
    device, began, rows = torch.device(options.device), time.perf_counter(), [described(torch.device(options.device))]
    print(line(rows[0]), flush=True)
    for name, work in steps(device, small=options.small):
        if options.only not in name:
            continue
        left = options.seconds - (time.perf_counter() - began)
        made = work(left) if left > 10 else [{"what": name, "error": "no time left"}]
        for row in made:
            rows.append(row)
            print(line(row), flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
