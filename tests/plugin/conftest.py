"""A project folder with the toy subjects, and the command line that audits one of them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch._dynamo
import torchvision

import backdoor_audit
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


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished work: what the searches of `BASE` find in the toy's two models."""
    folder, store = tmp_path_factory.mktemp("toy"), tmp_path_factory.mktemp("searched")
    toy.write(folder)
    options = {"data": "images.npz", "arch": "toy:network", "steps": 150, "device": "cpu", "profile": "quick"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for name in ("clean", "backdoored"):
            backdoor_audit.audit(f"{name}.safetensors", store=store, progress=False, **options)
        del sys.modules["toy"]  # each project has its own
    return store


@pytest.fixture
def unsearched() -> None:
    """Nothing was done before this test."""


@pytest.fixture
def project(
    pytester: pytest.Pytester, searched: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A project with the toy's files, and with finished work, unless a test asks for ``unsearched``.

    What the work depends on is in its name: where a test changes a model, images or options, the gate searches anew.
    """
    toy.write(pytester.path)
    if "unsearched" not in request.fixturenames:
        shutil.copytree(searched, pytester.path / ".pytest_cache" / "d" / "backdoor_audit")
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
