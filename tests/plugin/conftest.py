"""A project folder with the toy subjects, and the command line that audits one of them."""

from __future__ import annotations

import pytest
import torch._dynamo
import torchvision

import backdoor_audit.gate
import backdoor_audit.report.extras
import backdoor_audit.report.html
from tests.subjects import toy
from tests.subjects.drawn import draw_once
from tests.subjects.toy_runs import BASE, Run
from tests.subjects.warm import Warm

# pytester forgets modules that a run inside this process imports; torch does not survive a second first import
PRELOADED = (
    torch._dynamo,
    torchvision.models,
    backdoor_audit.gate,
    backdoor_audit.report.extras,
    backdoor_audit.report.html,
)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project with the toy's files."""
    toy.write(pytester.path)
    monkeypatch.syspath_prepend(str(pytester.path))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return pytester


@pytest.fixture
def run(project: pytest.Pytester, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest on the toy project: `run("backdoored")`, or `run(None, ...)` without a model.

    Runs inside this process draw a chart of the same numbers once: most runs here are of the same two models.
    """
    draw_once(monkeypatch)

    def start(
        model: str | None, *arguments: str, base: tuple[str, ...] = BASE, process: bool = False
    ) -> pytest.RunResult:
        given = [f"--model={model}.safetensors", *base] if model else []
        if process:
            return warm.run(project.path, f"--basetemp={project.path / 'runpytest'}", *given, *arguments)
        return project.runpytest_inprocess(*given, *arguments)

    return start
