"""A project folder with the toy subjects, and the command line that audits one of them."""

from __future__ import annotations

import pytest
import torch._dynamo
import torchvision

import backdoor_audit.gate
import backdoor_audit.report.extras
import backdoor_audit.report.html
from tests.subjects import toy
from tests.subjects.toy_runs import BASE, Run

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
def run(project: pytest.Pytester) -> Run:
    """Run pytest on the toy project: `run("backdoored")`, or `run(None, ...)` without a model."""

    def start(
        model: str | None, *arguments: str, base: tuple[str, ...] = BASE, process: bool = False
    ) -> pytest.RunResult:
        given = [f"--model={model}.safetensors", *base] if model else []
        runner = project.runpytest_subprocess if process else project.runpytest_inprocess
        return runner(*given, *arguments)

    return start
