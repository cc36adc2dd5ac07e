"""Every command in a block of shell: run here, run by CI, or checked by the parser of its program alone, for a reason."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from backdoor_audit import cli
from backdoor_audit.model.networks import build_network
from tests.subjects.texts import CI, TODAYS, commands, shell_commands
from tests.subjects.warm import Warm
from tests.subjects.whole_records import whole_record

HERE = {
    "backdoor-audit attacks": 0,
    "backdoor-audit audits --out our-audits": 0,
    "backdoor-audit report reports/a/audit.json reports/b/audit.json --out page.html": 0,
    "backdoor-audit compare reports/a/audit.json reports/b/audit.json --out difference.html": 1,  # the second is worse
}
"""Commands that take seconds, and the exit code that each ends with; `given` makes what they ask for."""

BY_CI = {
    "ruff check .",
    "ruff format --check .",
    "mypy",
    "pytest --model=fixtures/models/badnets.safetensors --collect-only -q",
}
"""Lines of `.ci/run` as well."""

MINUTES = "takes minutes: searches, or training"
PARSED = {
    "pytest --model=fixtures/models/badnets.safetensors": f"{MINUTES}; `gate badnets` of .ci/run runs it",
    "pytest --model=fixtures/models/clean.safetensors": f"{MINUTES}; `gate clean` of .ci/run runs it",
    "pytest --model=fixtures/models/badnets.safetensors 'audit::test_anomaly_index[neural_cleanse-class_7]'": MINUTES,
    "backdoor-audit attack fixtures/models/clean.safetensors --data=fixtures/fashion_mnist.npz --attack=badnets --target=3 "
    "--set=poison_rate=0.2 --set=size=4 --epochs=15 --out=poisoned.safetensors": f"{MINUTES}; .ci/run runs it",
    "backdoor-audit attack model.safetensors --data images/ --attack badnets --target 3 --out poisoned.safetensors": MINUTES,
    "backdoor-audit attack small_resnet --data images/ --attack wanet --epochs 10 --out poisoned.safetensors": MINUTES,
    "backdoor-audit attack small_resnet --data=fixtures/fashion_mnist.npz --attack=wanet --epochs=10 "
    "--out=warped.safetensors": MINUTES,
    "pytest --model=poisoned.safetensors --data=fixtures/fashion_mnist.npz --report=poisoned-report": MINUTES,
    "pytest --model=warped.safetensors --data=fixtures/fashion_mnist.npz --report=warped-report": MINUTES,
    "pytest --model=poisoned.safetensors --data=fixtures/fashion_mnist.npz --audit-trigger=poisoned.trigger.safetensors "
    "--report=poisoned-report": MINUTES,
    "backdoor-audit calibrate --clean-models DIR --data images/ --out reference.json": MINUTES,
    "backdoor-audit references model.safetensors --data images/ --out twins.safetensors": MINUTES,
    "backdoor-audit repair model.safetensors --data images/ --out fixed.safetensors": MINUTES,
    "backdoor-audit repair fixtures/models/badnets.safetensors --data fixtures/fashion_mnist.npz "
    "--out fixed.safetensors": MINUTES,
    "backdoor-audit fleet 'models/*.safetensors' --data images/ --out fleet/ -- --audit-profile=quick": MINUTES,
    "backdoor-audit fleet models/ --data=images/ --out=fleet/": MINUTES,
    "backdoor-audit fleet --from fleet/": "needs the results of a fleet; tests/fleet/ runs it on small ones",
    "backdoor-audit fleet models/ --data images/ --out fleet/ --cache /shared/cache --address=auto --gpus-per-model=0.5": (
        "needs a cluster"
    ),
    "backdoor-audit fleet models/ --data images/ --out fleet/ --cache cache/ "
    "--shard '$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT'": "needs a cluster",
    "export 'OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK'": "needs a cluster",
    "pytest --audit --data=images/ --normalization=imagenet": MINUTES,
    "pytest --model=model.safetensors": MINUTES,
    "pytest --model=model.safetensors --data=images/": MINUTES,
    "pytest --model=model.safetensors --data=images/ --audit-profile=quick": MINUTES,
    "pytest --model=model.safetensors --data=images/ --arch=torchvision:resnet18 --normalization=imagenet --resize=224": MINUTES,
    "pytest --model=model.safetensors --data=images/ --arch=torchvision:resnet18 --normalization=imagenet --resize=224 "
    "-k precondition": MINUTES,
    "pytest --model=model.safetensors --data=images/ --audit-device=cuda": "needs a GPU",
    "pytest --model=model.safetensors --data=images/ --audit-reference=reference.json": MINUTES,
    "pytest --model=model.safetensors --data=images/ --audit-twins=twins.safetensors": MINUTES,
    "pytest --model=model.safetensors --data=images/ --canary": MINUTES,
    "pytest --model=model.safetensors --data=images/ -n 2": MINUTES,
    "pytest --model=model.safetensors --data=images/ audits/test_watermark.py audit": MINUTES,
    "pytest --model=model.safetensors --data=images/ --audit-suite=our-audits/": MINUTES,
    "pytest --model=models/model.safetensors --data=clean-images/ --junitxml=backdoor-audit-report/junit.xml": MINUTES,
    "pytest --model=v1.safetensors --data=images/ --audit-baseline=baseline.json --audit-update-baseline": (
        f"{MINUTES}; tests/plugin/test_regression.py runs it on a toy"
    ),
    "pytest --model=v2.safetensors --data=images/ --audit-baseline=baseline.json": (
        f"{MINUTES}; tests/plugin/test_regression.py runs it on a toy"
    ),
    "pytest -n 2": "takes minutes; .ci/run runs it, and this test with it",
    "python -m sphinx -W --keep-going -b html docs docs/_build/html": "takes a minute; .ci/run runs it, into another folder",
    "python docs/generate.py": "writes into docs/; test_docs.py compares what it makes",
    "python docs/picture.py backdoor-audit-report/audit.html": "needs a browser",
    "pip install -e .": "needs a network",
    "pip install ./docs/examples/backdoor-audit-example": "installs beside the tests; .ci/run runs it",
    "pip install -e '.[docs]'": "needs a network",
    "pip install -e '.[test]'": "needs a network",
    "pip install -e '.[test,docs]'": "needs a network; .ci/run runs it",
    "pip install 'backdoor-audit[fleet]'": "needs a network",
    "python -m venv .venv": "makes an environment; .ci/run makes one",
    ". .venv/bin/activate": "is about the shell that it is typed into",
    "mkdir backdoor-audit-corpus": "is about the folder that the reader is in",
    "echo '$?'": "is about the shell that it is typed into",
}
"""Commands that `test_docs.py` checks against the parser of their program alone, and why."""

OWN = (
    "pytest --model=model.safetensors --data=images/ --arch=torchvision:resnet18 --normalization=imagenet --resize=224 "
    "--collect-only -q"
)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two records, one model of ten classes and its clean images, under the names that the texts use."""
    for name, infected in (("a", ()), ("b", (3,))):
        (tmp_path / "reports" / name).mkdir(parents=True)
        subject = {**whole_record(10).subject, "model": f"{name}.pt"}
        whole_record(10, infected=infected, subject=subject).write(tmp_path / "reports" / name / "audit.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(line: str, folder: Path, warm: Warm) -> int:
    """The exit code of a command: ours in this process, pytest in another one."""
    program, *words = shlex.split(line)
    if program == "backdoor-audit":
        return cli.main(words)
    assert program == "pytest"
    done = warm.run(folder, "-p", "no:cacheprovider", f"--audit-report={folder / 'report'}", *words)
    assert "Traceback" not in done.stdout.str() + done.stderr.str()
    return int(done.ret)


def in_texts() -> set[str]:
    return {shlex.join(command.words) for page in TODAYS for command in shell_commands(page)}


@pytest.mark.parametrize("line", HERE)
def test_a_command_that_takes_seconds_ends_as_it_should(line: str, given: Path, warm: Warm) -> None:
    assert line in in_texts()
    assert ended(line, given, warm) == HERE[line]
    out = line.partition("--out ")[2]
    files = [file for file in (given / out, *(given / out).glob("*")) if file.is_file()]
    assert not out or sum(file.stat().st_size for file in files) > 4_000


def test_ones_own_torchvision_model_is_listed_as_the_tutorial_says(given: Path, warm: Warm) -> None:
    """The tutorial's command, with a small network of ours in its place that takes images of 28 px."""
    assert OWN in in_texts()
    torch.manual_seed(0)
    state = build_network("small_cnn", num_classes=3, in_channels=1, width=4).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, given / "model.safetensors")
    for label in range(3):
        (given / "images" / str(label)).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((20, 20), 60 * label + number, dtype=np.uint8)
            Image.fromarray(pixels).save(given / "images" / str(label) / f"{number}.png")
    line = OWN.replace("torchvision:resnet18", "small_cnn").replace("imagenet", "half").replace("224", "28")
    assert ended(line, given, warm) == 0


def test_every_command_in_a_text_is_run_or_the_reason_stands_here() -> None:
    ran_by_ci = {shlex.join(command.words) for command in commands(".ci/run", CI)}
    assert in_texts() - set(PARSED) - set(HERE) - BY_CI - {OWN} == set(), "say in this file how these are run"
    assert set(PARSED) | set(HERE) | BY_CI <= in_texts(), "no text has these any more"
    assert ran_by_ci >= BY_CI
