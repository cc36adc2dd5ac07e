"""Whole runs on what people bring: class folders in another order, few classes, gradients switched off by a fixture."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image

from tests.subjects import toy
from tests.subjects.toy_runs import BASE, Run

FOLDERS = tuple(arguments for arguments in BASE if not arguments.startswith("--data"))


def record(project: pytest.Pytester) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project.path / "backdoor-audit-report" / "audit.json").read_text())
    return content


def folders(project: pytest.Pytester, names: list[str]) -> str:
    """Class folders of the toy's images under these names, in the order of the model's scores."""
    pixels, labels = toy.images()
    for number, (image, label) in enumerate(zip(pixels[:, :, :, 0], labels, strict=True)):
        folder = project.path / "images" / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return "--data=images"


def test_class_folders_that_are_numbers_in_text_order_ask_for_it_and_pass_with_it(
    project: pytest.Pytester, run: Run
) -> None:
    data = folders(project, sorted(map(str, range(5, 13))))  # 10, 11, 12, 5, 6, ...
    result = run("clean", data, "audit::test_precondition", base=FOLDERS)
    result.stdout.fnmatch_lines(["*labels up to 12, the model scores 8 classes*"])
    run("clean", data, "--audit-class-order=number", "audit::test_precondition", base=FOLDERS)
    assert any("pass --audit-class-order=text" in finding["reason"] for finding in record(project)["findings"])
    assert run("clean", data, "--audit-class-order=text", base=FOLDERS).ret == pytest.ExitCode.OK


def test_names_that_are_given_or_stand_beside_the_model_decide(project: pytest.Pytester, run: Run) -> None:
    names = ["owl", "hen", "ant", "fox", "bee", "cat", "gnu", "dog"]
    data = folders(project, names)
    run("clean", data, f"--audit-class-names={','.join(names)}", "audit::test_precondition", base=FOLDERS)
    assert {finding["verdict"] for finding in record(project)["findings"]} == {"pass"}
    config = {"id2label": {str(label): name for label, name in enumerate(names)}}
    (project.path / "config.json").write_text(json.dumps(config))
    (project.path / "images" / "owl" / "notes.txt").write_text("no picture")
    result = run("clean", data, base=FOLDERS)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["backdoor_audit: clean images: 1 not read: owl/notes.txt"])
    assert record(project)["subject"]["loading"][-2:] == [
        "clean images: class order: by the names in the model's file",
        "clean images: 1 not read: owl/notes.txt",
    ]


def test_names_of_classes_that_cannot_be_used_are_one_line(run: Run) -> None:
    for given, told in (("gone.txt", "does not exist; give a file"), ("a,,b", "an empty name")):
        result = run("clean", f"--audit-class-names={given}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*--audit-class-names: *{told}*"])


def test_few_classes_are_told_at_the_start_and_searched_for_nothing(project: pytest.Pytester, run: Run) -> None:
    import numpy as np
    from safetensors.torch import save_file

    pixels, labels = toy.images(per_class=60)
    np.savez(project.path / "images.npz", images=pixels[labels < 2], labels=labels[labels < 2])
    weights = toy.weights(backdoored=False)
    save_file({name: tensor[:2] for name, tensor in weights.items()}, project.path / "clean.safetensors")
    (project.path / "toy.py").write_text(toy.FACTORY.replace("64, 8", "64, 2"))
    result = run("clean", "--audit-repairs=always")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["backdoor_audit: 2 classes are too few to compare with each other: neural_cleanse are not searched, *"]
    )
    found = record(project)
    assert found["verdict"] == "inconclusive"
    assert found["errors"] == {}
    assert found["detections"][0]["image_passes"] == 0
    assert "from 5 classes on; not searched" in found["detections"][0]["inconclusive"]
    judged = {finding["audit"]: finding["verdict"] for finding in found["findings"]}
    assert {verdict for name, verdict in judged.items() if "test_anomaly_index" in name} == {"inconclusive"}
    assert {verdict for name, verdict in judged.items() if "test_anomaly_index" not in name} == {"pass"}


@pytest.mark.usefixtures("unsearched")
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "session"])
def test_a_fixture_that_switches_gradients_off_changes_nothing(mode: str, project: pytest.Pytester, run: Run) -> None:
    switched = {
        "no_grad": "with torch.no_grad():\n        yield",
        "inference_mode": "with torch.inference_mode():\n        yield",
        "session": "torch.set_grad_enabled(False)\n    yield\n    torch.set_grad_enabled(True)",
    }
    project.makeconftest(
        f"""
import pytest, torch

@pytest.fixture(autouse=True, scope={"session" if mode == "session" else "function"!r})
def off():
    {switched[mode]}
"""
    )
    result = run("backdoored")
    assert torch.is_grad_enabled()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*FAIL: hidden trigger found for class 3*"])
    assert record(project)["errors"] == {}


@pytest.mark.usefixtures("unsearched")
def test_gradients_stay_off_in_the_projects_own_tests(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        "import pytest, torch\n@pytest.fixture(autouse=True)\ndef off():\n    with torch.no_grad():\n        yield"
    )
    project.makepyfile(
        test_own="import torch\ndef test_own(detection):\n    assert detection.triggers\n    assert not torch.is_grad_enabled()"
    )
    result = run("backdoored", "test_own.py")
    result.assert_outcomes(passed=1)


@pytest.mark.usefixtures("unsearched")
def test_a_module_made_without_gradients_is_audited(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
import pytest, torch, toy
from safetensors.torch import load_file

@pytest.fixture(scope="session")
def audited_model():
    with torch.inference_mode():
        module = toy.network()
        module.load_state_dict(load_file("backdoored.safetensors"))
        return module
"""
    )
    result = run(None, "--audit", *(part for part in BASE if "arch" not in part))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*FAIL: hidden trigger found for class 3*"])
