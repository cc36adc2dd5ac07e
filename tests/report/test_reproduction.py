"""The command that makes a record again."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.commands import repair
from backdoor_audit.evidence import Record
from backdoor_audit.option_sources import build_options
from backdoor_audit.options import AuditOptions
from backdoor_audit.presentable import plain
from backdoor_audit.report.reproduction import repair_command, reproduction_command
from tests.subjects.records import record


def recorded(**given: Any) -> Record:
    options = AuditOptions(**{"model": "m.safetensors", "data": "images/", **given})
    return replace(record(), settings=plain(asdict(options)))


def command_for(**given: Any) -> str:
    return reproduction_command(recorded(**given))


def test_options_at_their_default_are_left_out() -> None:
    assert command_for() == "pytest --model=m.safetensors --data=images/"


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 7, "profile": "thorough", "steps": 100},
        {"mean": (0.5, 0.25, 0.1), "std": (0.5, 0.5, 0.5), "resize": (32, 48), "channels": 3},
        {"budget": 600.0, "canary": True, "allow_pickle": True, "min_accuracy": 0.85},
        {"limits": {"anomaly_index": 2.5, "clean_accuracy_drop": 0.05}},
        {"model": "it's mine; rm -rf $HOME/m.pt", "data": "my images/"},
    ],
)
def test_the_command_means_the_settings_it_was_made_of(given: dict[str, Any]) -> None:
    words = shlex.split(command_for(**given))
    assert words[0] == "pytest"
    limits = dict(words[place + 1].split("=") for place, word in enumerate(words) if word == "--audit-limit")
    named = [word.split("=", 1) for word in words[1:] if word.startswith("--") and "=" in word]
    values = {flag.removeprefix("--audit-").removeprefix("--").replace("-", "_"): value for flag, value in named}
    read = build_options(values, limits, {}, Path())
    assert read == AuditOptions(**{"model": "m.safetensors", "data": "images/", **given})


@pytest.mark.parametrize("missing", ["model", "data"])
def test_no_command_names_what_was_handed_over_in_python(missing: str) -> None:
    assert command_for(**{missing: ""}) == ""


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "data": "some images",
            "resize": [32, 40],
            "mean": [0.5, 0.25],
            "std": [1.0, 2.0],
            "arch": "resnet18",
            "seed": 7,
        },
        {
            "profile": "thorough",
            "trigger": "t.safetensors",
            "twins": "w.safetensors",
            "classes": 10,
            "channels": 1,
            "device": "cuda:1",
        },
        {"max_images": 300, "class_names": "my names.txt", "class_order": "text"},
    ],
)
def test_the_repair_command_is_one_that_the_command_line_takes(more: dict[str, Any]) -> None:
    settings = {"model": "models/m.safetensors", "data": "images.npz", **more}
    words = shlex.split(repair_command(recorded(**settings), "nc_unlearning"))
    assert words[:2] == ["backdoor-audit", "repair"]
    parser = argparse.ArgumentParser()
    repair.declare(parser)
    options = parser.parse_args(words[2:])
    assert (options.model, options.data, options.method) == (settings["model"], settings["data"], "nc_unlearning")
    assert options.resize == ("32x40" if "resize" in more else None)
    assert options.mean == ("0.5,0.25" if "mean" in more else None)
    assert options.max_images == ("300" if "max_images" in more else None)
    assert (options.class_names, options.class_order) == (more.get("class_names"), more.get("class_order"))
    assert options.twins == more.get("twins", "")
    assert options.profile == more.get("profile", "standard")
    assert options.seed == more.get("seed", 0)


def test_no_command_repairs_what_was_handed_over_in_python() -> None:
    assert repair_command(recorded(model=""), "x") == ""
