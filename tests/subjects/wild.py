"""A network that does what it likes once it was called so often."""

from __future__ import annotations

import shutil

import pytest

from tests.subjects.toy_runs import BASE

WILD = """
import os, sys
import pytest, torch, toy
from torch import nn

class Wild(nn.Sequential):
    calls = 0

    def forward(self, images):
        Wild.calls += 1
        with open("calls.txt", "a") as calls:
            calls.write(".")
        if Wild.calls > AFTER:
            act()
        return super().forward(images)

def act():
    ACT

def network():
    return Wild(*toy.network())
"""
LOADING, CHECKING = 0, 8
"""Calls of the model that come before: none, or those of the loading and of the first preconditions."""


def wild(project: pytest.Pytester, act: str, after: int) -> tuple[str, ...]:
    """A factory of a network that does this once it was called so often; the arguments that audit it."""
    shutil.rmtree(
        project.path / ".pytest_cache", ignore_errors=True
    )  # or work that was done before would stand for its own
    (project.path / "wild.py").write_text(WILD.replace("AFTER", str(after)).replace("ACT", act))
    return (*(argument for argument in BASE if "arch" not in argument), "--arch=wild:network")
