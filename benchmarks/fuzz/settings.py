"""Settings of a run, and what stands on command lines: options of the gate, arguments of ``backdoor-audit``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import NamedTuple

from backdoor_audit.option_paths import check_paths
from backdoor_audit.option_sources import build_options, read_table
from backdoor_audit.options import OPTIONS
from backdoor_audit.questions.suite import shipped_limits
from benchmarks.fuzz.alter import ODD_TEXTS, encoded, special
from benchmarks.fuzz.commands import Command

_ODD_TOML = (
    *(
        "3",
        "-1",
        "0",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "true",
        "[]",
        "{}",
        "[1, 2]",
        '["a", "b"]',
        "{ a = 1 }",
        "9" * 400,
    ),
    *("1979-05-27", "07:32:00", "[[1]]", "'x'", '""', "[" * 90 + "]" * 90, "[" * 5000 + "]" * 5000, "0xfff", "1" * 30),
    *(json.dumps(text) for text in ODD_TEXTS if text.isascii()),
)
_GOOD = {
    **{
        "model": "m.safetensors",
        "data": "images.npz",
        "classes": "10",
        "mean": "0.5",
        "std": "0.25",
        "resize": "32x32",
    },
    **{
        "channels": "3",
        "max_images": "200",
        "device": "cpu",
        "seed": "3",
        "budget": "10m",
        "profile": "quick",
        "memory": "4G",
    },
}


def project(draw: Random, folder: Path) -> Path:
    """A folder with an altered ``pyproject.toml``."""
    keys = [option.key for option in OPTIONS]
    lines = ["[tool.backdoor_audit]", *(f"{name} = {json.dumps(value)}" for name, value in _GOOD.items())]
    for _ in range(draw.choice((1, 1, 2, 4))):
        name = draw.choice(
            (*keys, "limits", "limits.anomaly_index", "limits.x", draw.choice(("modle", '""', '"a\\u001b[31m"', "a.b")))
        )
        lines = [line for line in lines if line.partition(" =")[0] != name]
        lines.append(f"{name} = {draw.choice(_ODD_TOML)}")
    text = "\n".join(lines)
    if draw.random() < 0.15:
        text = draw.choice(
            ("tool = ", "[tool]\nbackdoor_audit = ", "[[tool.backdoor_audit]]\nx = ", "tool.x = ")
        ) + draw.choice(_ODD_TOML)
    for name in ("m.safetensors", "images.npz"):
        (folder / name).write_bytes(b"x")
    path = folder / "pyproject.toml"
    if draw.random() < 0.04:
        special(draw, path)
    else:
        path.write_bytes(encoded(draw, text))
    return folder


def read_project(folder: Path) -> Iterable[str]:
    """The options of a run in this folder."""
    options = build_options({}, {}, read_table(folder), folder)
    check_paths(options)
    return [options.profile]


class Line(NamedTuple):
    """What stands on the command line of the gate."""

    options: Mapping[str, str]
    limits: Mapping[str, str]


_NUMBERS = (
    "0",
    "-1",
    "1",
    "1e3",
    "0x10",
    "nan",
    "inf",
    "1e400",
    "9" * 400,
    "9" * 5000,
    "1,,2",
    ",",
    "3x3x3",
    "x",
    "2x",
    "1_000",
    " 7 ",
)
_LINE_TEXTS = tuple(text.replace("\0", "") for text in ODD_TEXTS)


def options(draw: Random, folder: Path) -> Line:
    """Options of the gate, a few of them odd."""
    (folder / "m.safetensors").write_bytes(b"x")
    (folder / "images.npz").write_bytes(b"x")
    given = {name: str(folder / value) if name in ("model", "data") else value for name, value in _GOOD.items()}
    for _ in range(draw.choice((1, 1, 2, 5))):
        odd = draw.choice(
            (*_NUMBERS, *_LINE_TEXTS, "\udcff", "/dev/zero", str(folder), "x" * 5000, "~", "torchvision:X?root=" * 9)
        )
        given[draw.choice(OPTIONS).key] = odd
    known = (*asdict(shipped_limits()), "x", "\x1b[31m")
    limits = {draw.choice(known): draw.choice((*_NUMBERS, "0.5", "\x1b[31m")) for _ in range(draw.choice((0, 0, 1, 2)))}
    return Line(given, limits)


def read_options(given: Line) -> Iterable[str]:
    """The options of a run with this command line."""
    check_paths(build_options(given.options, given.limits, {}, Path()))
    return []


def arguments(draw: Random, folder: Path) -> Command:
    """Calls of ``backdoor-audit`` with odd arguments; none of them has a model that could be worked on."""
    name = draw.choice(("calibrate", "repair", "attacks", "attack", "report", "export", "compare", "x"))
    flags = (
        "--out",
        "--data",
        "--seed",
        "--force",
        "--sarif",
        "--markdown",
        "--schema",
        "--store",
        "--method",
        "--arch",
        "--resize",
    )
    more = (
        "--held-out",
        "--epochs",
        "--set",
        "--rule",
        "--source",
        "--target",
        "--attack",
        "--profile",
        "--channels",
        "--mean",
    )
    odd = (
        *_NUMBERS,
        *_LINE_TEXTS,
        "\udcff",
        str(folder),
        str(folder / "none.json"),
        "/dev/null",
        str(folder / ("x" * 300)),
    )
    called = [name]
    for _ in range(draw.choice((0, 1, 2, 3, 5))):
        flag = draw.choice((*flags, *more))
        called += draw.choice(([flag, draw.choice(odd)], [f"{flag}={draw.choice(odd)}"], [draw.choice(odd)]))
    return Command(called)
