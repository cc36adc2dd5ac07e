"""One whole run of the gate on a small network with many classes: ``python -m benchmarks.whole [--classes 1000] [--side 224]``.

The network and its images are those of `benchmarks.speed`: it knows a class for every kind of image. Prints what the run
announced and took, how much of that lay in searches, and the peak memory of the process. Nothing is left out and nothing made
up; twins that cannot be trained on so few images of a class are not there. The module also is the plugin that measures this
inside of pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backdoor_audit.plugin.pace import Pace
from backdoor_audit.progress import Meter
from benchmarks.speed import IMAGES, Strided, subject

_OUT, _SHAPE = "WHOLE_OUT", "WHOLE_SHAPE"
_PER_CLASS = 2  # images, one to search and one held out
_watching: list[Pace] = []
_grown: dict[str, int] = {}


def network() -> nn.Module:
    """The untrained network that ``--arch`` names, for the classes and channels that the environment states."""
    classes, channels = map(int, os.environ[_SHAPE].split())
    return Strided(channels, classes)


def measured(classes: int, side: int, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """What one run of the gate took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = max(IMAGES, _PER_CLASS * classes)
        looked = subject(classes, side, count)
        halves = (looked.search_set, looked.held_out)
        images = torch.cat([half.images for half in halves])
        np.savez(
            folder / "images.npz",
            images=(255 * images).round().byte().permute(0, 2, 3, 1).numpy(),
            labels=torch.cat([half.labels for half in halves]).numpy(),
        )
        state = looked.classifier.module.state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
        given = [
            "--audit-model=model.safetensors",
            "--audit-data=images.npz",
            "--audit-arch=benchmarks.whole:network",
            f"--audit-max-images={count}",
        ]
        paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            _OUT: str(folder / "out.json"),
            _SHAPE: f"{classes} {len(images[0])}",
            "PYTHONPATH": os.pathsep.join(paths),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "benchmarks.whole",
            "--audit-device=cpu",
            *given,
            *options,
        ]
        del looked, halves, images
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if not (folder / "out.json").exists():
            raise SystemExit(f"the run left nothing (exit code {done.returncode}):\n{done.stdout}{done.stderr}")
        record = folder / "backdoor-audit-report" / "audit.json"
        return {
            **json.loads((folder / "out.json").read_text()),
            "seconds": time.perf_counter() - began,
            "exit_code": done.returncode,
            "announced": next(iter(re.findall(r"about [^,]*", done.stdout)), "not announced"),
            "verdict": done.stdout.strip().splitlines()[-1],
            "record": record.stat().st_size,
        }


def _kept(pace: Pace, *arguments: Any) -> None:
    """Keep what watches over the run."""
    _build(pace, *arguments)
    _watching.append(pace)
    tell = pace.meter.tell

    def told(meter: Meter) -> None:
        tell(meter)
        grown = _peak() - sum(_grown.values())
        if grown > 0:
            piece = meter.piece or "beside the searches"
            _grown[piece] = _grown.get(piece, 0) + grown

    pace.meter.tell = told


def _peak() -> int:
    """Peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if _OUT in os.environ:
    _build = Pace.__init__
    Pace.__init__ = _kept  # type: ignore[method-assign, assignment]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the figures for the process that asked for them."""
    if not (os.environ.get(_OUT) and _watching):
        return
    meter = _watching[0].meter
    told = {
        "passes": sum(meter.passes.values()),
        "searching": sum(seconds for piece, seconds in meter.seconds.items() if piece),
        "beside": meter.seconds.get("", 0.0),
        "peak": _peak(),
        "grown": _grown,
    }
    Path(os.environ[_OUT]).write_text(json.dumps(told))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--side", type=int, default=224, help="of the images (px)")
    parser.add_argument("options", nargs="*", help="further options of pytest, behind --")
    options = parser.parse_args()
    row = measured(options.classes, options.side, tuple(options.options))
    share = row["beside"] / (row["searching"] + row["beside"])
    print(f"{options.classes} classes, {options.side} px: exit code {row['exit_code']}, {row['verdict']}")
    print(f"announced {row['announced']}; took {row['seconds']:.0f} s in all, {row['passes']:,.0f} image passes")
    print(f"{share:.1%} of the time lay outside of the searches, {row['beside']:.1f} s")
    print(f"peak memory {row['peak'] / 1e9:.2f} GB, record {row['record'] / 1e6:.2f} MB; it grew most in")
    for piece, grown in sorted(row["grown"].items(), key=lambda pair: -pair[1])[:6]:
        print(f"  {piece}: by {grown / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
