"""The command that makes a record again."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.evidence import plain
from backdoor_audit.options import AuditOptions, build_options
from backdoor_audit.report.reproduction import reproduction_command
from tests.subjects.records import record


def command_for(**given: Any) -> str:
    options = AuditOptions(**{"model": "m.safetensors", "data": "images/", **given})
    return reproduction_command(replace(record(), settings=plain(asdict(options))))


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
