"""The Python call: the same items, findings and record as a pytest run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import backdoor_audit
from backdoor_audit import AuditError, Record, Verdict
from backdoor_audit.gate import audit
from tests.plugin import toy


def network(*, backdoored: bool) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, toy.CLASSES))
    module.load_state_dict(toy.weights(backdoored=backdoored))
    return module


@pytest.mark.parametrize("backdoored", [False, True])
def test_a_module_and_arrays_are_enough(*, backdoored: bool) -> None:
    record = backdoor_audit.audit(
        network(backdoored=backdoored), *toy.images(), steps=150, device="cpu", progress=False
    )
    assert record.verdict is (Verdict.FAIL if backdoored else Verdict.PASS)
    assert record.flagged_classes == ((toy.TARGET,) if backdoored else ())


def test_python_and_pytest_give_the_same_record(pytester: pytest.Pytester, tmp_path: Path) -> None:
    toy.write(pytester.path)
    result = pytester.runpytest_inprocess(
        "--model=backdoored.safetensors", "--data=images.npz", "--arch=toy:network", "--audit-steps=150", "--device=cpu"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    from_pytest = Record.read(pytester.path / "backdoor-audit-report" / "audit.json")
    from_python = audit(
        pytester.path / "backdoored.safetensors",
        data=str(pytester.path / "images.npz"),
        arch="toy:network",
        steps=150,
        device="cpu",
        progress=False,
    )
    from_python.write(tmp_path / "audit.json")
    again = Record.read(tmp_path / "audit.json")
    for name in ("verdict", "flagged_classes", "skipped", "not_run", "not_tested", "schema_version"):
        assert getattr(again, name) == getattr(from_pytest, name)
    assert [(f.audit, f.verdict, f.value, f.reason) for f in again.findings] == [
        (f.audit, f.verdict, f.value, f.reason) for f in from_pytest.findings
    ]
    assert again.detections[0]["classes"] == from_pytest.detections[0]["classes"]
    assert again.subject["model_fingerprint"] == from_pytest.subject["model_fingerprint"]


def test_the_callers_module_and_random_state_are_left_as_found() -> None:
    module = network(backdoored=True).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    audit(module, *toy.images(), steps=20, device="cpu", progress=False)
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_another_seed_is_another_search_and_the_same_seed_the_same(tmp_path: Path) -> None:
    def sizes(seed: int) -> list[float]:
        record = audit(network(backdoored=True), *toy.images(), steps=40, device="cpu", seed=seed, progress=False)
        return [score["size"] for score in record.detections[0]["classes"]]

    assert sizes(0) == sizes(0)
    assert sizes(0) != sizes(1)


def test_finished_work_is_recalled_and_other_models_are_not_mixed_up(tmp_path: Path) -> None:
    def recalled(*, backdoored: bool) -> bool:
        record = audit(
            network(backdoored=backdoored), *toy.images(), steps=20, device="cpu", store=tmp_path, progress=False
        )
        return bool(record.detections[0]["recalled"])

    assert [recalled(backdoored=flag) for flag in (False, True, False, True)] == [False, False, True, True]


class Halved(nn.Sequential):
    """The same tensors, another forward pass."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = super().forward(images)
        return scores / 2


def test_the_same_weights_in_another_forward_pass_are_another_model(tmp_path: Path) -> None:
    Halved.__name__ = "Sequential"  # the name of the class must not be what tells them apart
    for module in (network(backdoored=True), Halved(*network(backdoored=True))):
        record = audit(module, *toy.images(), steps=20, device="cpu", store=tmp_path, progress=False)
        assert not record.detections[0]["recalled"]


def test_a_labels_error_makes_detectors_inconclusive_without_a_search() -> None:
    pixels, labels = toy.images()
    record = audit(network(backdoored=True), pixels, (labels + 1) % toy.CLASSES, device="cpu", progress=False)
    assert record.verdict is Verdict.INCONCLUSIVE
    index = [finding for finding in record.findings if finding.statistic == "anomaly_index"]
    assert len(index) == toy.CLASSES
    assert all("clean accuracy" in finding.reason for finding in index)
    assert record.detections[0]["image_passes"] == 0


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        ((), {}, "needs clean images"),
        (toy.images()[:1], {}, "images and labels together"),
        (toy.images(), {"colour": 3}, "no option 'colour'"),
        (toy.images(), {"normalization": "imagnet"}, "imagenet"),
        ((np.zeros((160, 9, 9, 1), np.uint8), toy.images()[1]), {}, "does not accept 1x9x9 images"),
    ],
)
def test_wrong_input_raises_one_line(arguments: tuple[object, ...], options: dict[str, object], told: str) -> None:
    with pytest.raises(AuditError) as caught:
        audit(network(backdoored=False), *arguments, progress=False, **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    record = audit(network(backdoored=True), *toy.images(), steps=20, device="cpu", progress=False)
    record.write(tmp_path / "audit.json")
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert stored["schema_version"] == 1
    assert stored["subject"]["num_classes"] == toy.CLASSES
    assert stored["subject"]["images_searched"] + stored["subject"]["images_held_out"] == len(toy.images()[1])
    assert len(stored["detections"][0]["classes"]) == toy.CLASSES
