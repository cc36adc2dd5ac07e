"""The Python call: the same items, findings and record as a pytest run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import backdoor_audit
from backdoor_audit import AuditError, Record, Verdict
from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import DETECTORS, Detection, Natural, NeuralCleanse, UniversalPerturbation
from backdoor_audit.detectors.neural_cleanse import NO_RACE
from backdoor_audit.errors import OptionError
from backdoor_audit.gate import audit
from backdoor_audit.model.anew import Likeness
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.record import _not_tested
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run import reference as reference_module
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.run import Run
from backdoor_audit.run.searches import detectors_of
from backdoor_audit.search.anomaly import SteeringNull, shipped_null
from backdoor_audit.search.twins import Twins
from backdoor_audit.source import code_fingerprint
from backdoor_audit.store import Store
from tests.subjects import toy
from tests.subjects.detections import margin_row
from tests.subjects.messages import one_line

BRIEF: dict[str, Any] = {"steps": 20, "device": "cpu", "profile": "quick", "progress": False}
STANDARD = {**BRIEF, "steps": 150, "profile": "standard"}


def untrained() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, toy.CLASSES))


def network(*, backdoored: bool) -> nn.Module:
    module = untrained()
    module.load_state_dict(toy.weights(backdoored=backdoored))
    return module


class Gained(nn.Sequential):
    """A network that keeps a number beside its tensors."""

    gain = 1.0

    def get_extra_state(self) -> dict[str, float]:
        return {"gain": self.gain}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.gain = state["gain"]


def test_a_network_whose_state_is_more_than_tensors_is_audited_as_others_are() -> None:
    module = Gained(*network(backdoored=True))
    assert audit(module, *toy.images(), **{**BRIEF, "steps": 150}).flagged_classes == (toy.TARGET,)
    assert Likeness.of(Classifier.wrap(module, image_shape=(1, 8, 8))).behaviour == ()


def test_no_baseline_is_written_of_a_model_that_changed_while_it_was_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inputs, "changed", lambda inputs: "--audit-model=m changed while it was audited")
    baseline = {"baseline": tmp_path / "baseline.json", "update_baseline": True}
    with pytest.raises(AuditError, match="no baseline of this run: 1 items broke or were not run, first audit"):
        audit(network(backdoored=False), *toy.images(), **{**BRIEF, "steps": 150}, **baseline)
    assert not (tmp_path / "baseline.json").exists()


@pytest.mark.parametrize("backdoored", [False, True])
def test_a_module_and_arrays_are_enough(*, backdoored: bool) -> None:
    record = backdoor_audit.audit(
        network(backdoored=backdoored), *toy.images(), steps=150, device="cpu", profile="quick", progress=False
    )
    assert record.verdict is (Verdict.FAIL if backdoored else Verdict.PASS)
    assert record.flagged_classes == ((toy.TARGET,) if backdoored else ())


def test_python_and_pytest_give_the_same_record(pytester: pytest.Pytester, tmp_path: Path) -> None:
    toy.write(pytester.path)
    result = pytester.runpytest_inprocess(
        "--model=backdoored.safetensors",
        "--data=images.npz",
        "--arch=toy:network",
        "--audit-steps=150",
        "--device=cpu",
        "--audit-profile=quick",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    from_pytest = Record.read(pytester.path / "backdoor-audit-report" / "audit.json")
    from_python = audit(
        pytester.path / "backdoored.safetensors",
        data=str(pytester.path / "images.npz"),
        arch="toy:network",
        steps=150,
        device="cpu",
        profile="quick",
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
    audit(module, *toy.images(), **BRIEF)
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_another_seed_is_another_search_and_the_same_seed_the_same(tmp_path: Path) -> None:
    def sizes(seed: int) -> list[float]:
        record = audit(network(backdoored=True), *toy.images(), **{**BRIEF, "steps": 40}, seed=seed)
        return [score["size"] for score in record.detections[0]["classes"]]

    assert sizes(0) == sizes(0)
    assert sizes(0) != sizes(1)


def test_finished_work_is_recalled_and_other_models_are_not_mixed_up(tmp_path: Path) -> None:
    def recalled(*, backdoored: bool) -> bool:
        record = audit(network(backdoored=backdoored), *toy.images(), store=tmp_path, **BRIEF)
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
        record = audit(module, *toy.images(), store=tmp_path, **BRIEF)
        assert not record.detections[0]["recalled"]


def test_a_labels_error_makes_detectors_inconclusive_without_a_search() -> None:
    pixels, labels = toy.images()
    record = audit(network(backdoored=True), pixels, (labels + 1) % toy.CLASSES, **BRIEF)
    assert record.verdict is Verdict.INCONCLUSIVE
    index = [finding for finding in record.findings if finding.statistic == "anomaly_index"]
    assert len(index) == toy.CLASSES
    assert all("clean accuracy" in finding.reason for finding in index)
    assert record.detections[0]["image_passes"] == 0


class ToyTwins:
    """In place of a training: two clean toys."""

    made = 0

    def __repr__(self) -> str:
        return "ToyTwins()"

    def __call__(self, clean: CleanSet, **_options: Any) -> Twins:
        ToyTwins.made += 1
        options = {"image_shape": clean.image_shape, "architecture": "tests.test_gate:untrained"}
        twins = (Classifier.wrap(network(backdoored=False), **options) for _ in range(2))
        return Twins(tuple(twins), (Rate(9, 10), Rate(9, 10)))


def _with_twins(monkeypatch: pytest.MonkeyPatch, recipe: ToyTwins) -> None:
    for name in ("OWN_ARCHITECTURE", "LIBRARY"):
        monkeypatch.setattr(reference_module, name, recipe)


UNIVERSAL = ("patch_scan", "additive", "smooth", "stripes", "warping")


@pytest.fixture
def toy_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_twins(monkeypatch, ToyTwins())
    ToyTwins.made = 0


@dataclass(frozen=True)
class Audited:
    """A whole audit beside two toys, and where its work is kept."""

    record: Record
    twins_made: int
    store: Path


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Audited]:
    """Audits that several tests look at; each is done once it is asked for."""

    @cache
    def audited(*, backdoored: bool) -> Audited:
        store = tmp_path_factory.mktemp("store")
        with pytest.MonkeyPatch.context() as patch:
            _with_twins(patch, ToyTwins())
            ToyTwins.made = 0
            record = audit(network(backdoored=backdoored), *toy.images(), store=store, **STANDARD)
        made, ToyTwins.made = ToyTwins.made, 0
        return Audited(record, made, store)

    return audited


@pytest.mark.parametrize("backdoored", [False, True])
def test_every_detector_compares_the_model_with_one_set_of_twins(
    standard: Callable[..., Audited], *, backdoored: bool
) -> None:
    audited = standard(backdoored=backdoored)
    record = audited.record
    assert audited.twins_made == 1
    assert [entry["detector"] for entry in record.detections] == [entry.name for entry in DETECTORS]
    excesses = {
        entry["detector"]: {score["target_class"]: score["excess"] for score in entry["classes"]}
        for entry in record.detections
        if entry["detector"] in UNIVERSAL
    }
    assert all(list(found) == [*range(toy.CLASSES)] for found in excesses.values())
    patches = excesses["patch_scan"]
    if backdoored:  # one white pixel in the window is enough
        assert patches[toy.TARGET] == max(patches.values())
        assert patches[toy.TARGET] > 3
        assert record.verdict is Verdict.FAIL
        assert record.flagged_classes == (toy.TARGET,)
    else:  # its own twins
        assert max(abs(value) for found in excesses.values() for value in found.values()) < 0.5
    index = [finding for finding in record.findings if finding.statistic == "anomaly_index"]
    assert len(index) == (len(DETECTORS) - 1) * toy.CLASSES + 1  # one asks about all classes at once
    assert [finding.audit for finding in index if "all_to_all" in finding.audit] == [
        "audit::test_anomaly_index[relabelling-all_to_all]"
    ]
    assert record.not_run == []


@pytest.mark.usefixtures("toy_twins")
def test_twins_and_what_they_show_are_kept_for_the_next_model(standard: Callable[..., Audited], tmp_path: Path) -> None:
    first = standard(backdoored=True)
    assert not any(entry["recalled"] for entry in first.record.detections)
    shutil.copytree(first.store, tmp_path / "store")
    kept = len(list(first.store.rglob("*.safetensors")))
    again = audit(network(backdoored=True), *toy.images(), store=tmp_path / "store", **STANDARD)
    assert (first.twins_made, ToyTwins.made) == (1, 0)
    assert all(entry["recalled"] for entry in again.detections)
    assert (
        len(list((tmp_path / "store").rglob("*.safetensors"))) == kept >= 2 * (len(DETECTORS) - 1)
    )  # twins, what they show to all but one, detections but the consensus, which costs nothing


def test_twins_that_allow_no_comparison_are_inconclusive_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twins say class 0 to everything: there is nothing to lead there."""

    class Blind(ToyTwins):
        def __call__(self, clean: CleanSet, **options: Any) -> Twins:
            twins = super().__call__(clean, **options)
            with torch.no_grad():
                for twin in twins.classifiers:
                    twin.module[1].bias[0] = 1000.0  # type: ignore[index, union-attr]
            return twins

    _with_twins(monkeypatch, Blind())
    record = audit(network(backdoored=False), *toy.images(), **STANDARD)
    additive = next(entry for entry in record.detections if entry["detector"] == "additive")
    assert additive["inconclusive"].startswith("in a reference twin, ")
    verdicts = [finding.verdict for finding in record.findings if "[additive" in finding.audit]
    assert verdicts == [Verdict.INCONCLUSIVE] * toy.CLASSES
    alone = next(entry for entry in record.detections if entry["detector"] == "neural_cleanse")
    assert not alone["inconclusive"]


def test_a_spent_budget_is_inconclusive_and_never_a_pass() -> None:
    record = audit(network(backdoored=False), *toy.images(), **BRIEF, budget=1e-6)
    assert record.verdict is Verdict.INCONCLUSIVE
    index = [finding for finding in record.findings if finding.statistic == "anomaly_index"]
    assert {finding.verdict for finding in index} == {Verdict.INCONCLUSIVE}
    assert all("budget" in finding.reason for finding in index)


@pytest.mark.usefixtures("toy_twins")
def test_indices_are_calibrated_on_the_reference_that_is_given(tmp_path: Path) -> None:
    """A thousand times wider than any difference between these toys: the detectors with twins flag nothing."""
    fits = {entry.name: (1000.0, 1000.0) for entry in DETECTORS if entry.needs_twins}
    code = code_fingerprint()
    wide = SteeringNull(fits, classes=8, models=30, source="thirty toys", twins="library", code=code)
    wide.save(tmp_path / "null.json")
    record = audit(network(backdoored=True), *toy.images(), **STANDARD, reference=str(tmp_path / "null.json"))
    universal = [entry for entry in record.detections if entry["detector"] != "neural_cleanse"]
    told = "thirty toys; twins: our own networks, with held-out accuracy: "
    assert all(entry["reference"].startswith(told) for entry in universal)
    assert max(score["index"] for entry in universal for score in entry["classes"]) < 2
    del fits["stripes"]
    for more, told in (
        ({"code": code}, "nothing about stripes"),
        ({}, "another version"),
        ({"code": "x"}, "another version"),
    ):
        SteeringNull(fits, classes=8, models=30, source="thirty toys", **more).save(tmp_path / "part.json")
        with pytest.raises(AuditError, match=told):
            audit(network(backdoored=True), *toy.images(), **STANDARD, reference=str(tmp_path / "part.json"))


def test_what_no_detector_of_the_profile_sees_is_told(standard: Callable[..., Audited]) -> None:
    quick = audit(network(backdoored=False), *toy.images(), **BRIEF).not_tested
    usual = standard(backdoored=False).record.not_tested
    assert any("blended" in text for text in quick)
    assert any("quick profile" in text for text in quick)
    assert not any("blended" in text or "quick profile" in text for text in usual)
    for told in (quick, usual):
        assert any("a third of the classes" in text for text in told)
        assert len(set(told)) == len(told)


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        ((), {}, "needs clean images"),
        (toy.images()[:1], {}, "images and labels together"),
        (toy.images(), {"colour": 3}, "no option 'colour'"),
        (toy.images(), {"normalization": "imagnet"}, "imagenet"),
        (toy.images(), {"classes": 9}, "Sequential: scores 8 classes, --classes=9 says 9"),
        ((np.zeros((160, 9, 9, 1), np.uint8), toy.images()[1]), {}, "does not accept 1x9x9 images"),
    ],
)
def test_wrong_input_raises_one_line(arguments: tuple[object, ...], options: dict[str, object], told: str) -> None:
    with one_line(AuditError, told):
        audit(network(backdoored=False), *arguments, progress=False, **options)


class ReadyError(Exception):
    """Raised in place of the searches."""


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """The run that a call is about to make."""

    def stop(run: Run, **_: object) -> None:
        raise ReadyError(run)

    monkeypatch.setattr("backdoor_audit.gate.judged_record", stop)

    def run_of(*arguments: Any, **options: Any) -> Run:
        with pytest.raises(ReadyError) as caught:
            audit(network(backdoored=False), *(arguments or toy.images()), progress=False, **options)
        run: Run = caught.value.args[0]
        return run

    return run_of


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"mean": np.array([0.5]), "std": np.float64(0.25)}, "mean", (0.5,)),
        ({"mean": torch.tensor([0.5]), "std": torch.tensor(0.25)}, "std", (0.25,)),
        ({"mean": torch.full((1, 1, 1), 0.5, requires_grad=True), "std": 0.5}, "mean", (0.5,)),
        ({"mean": "0.5", "std": 0.5}, "std", (0.5,)),
        ({"budget": "10m"}, "budget", 600.0),
        ({"memory": "1G"}, "memory", 2**30),
        ({"device": torch.device("cpu")}, "device", "cpu"),
        ({"seed": np.int64(3)}, "seed", 3),
        ({"resize": (8, 8)}, "resize", (8, 8)),
        ({"resize": np.array([8.0, 8.0])}, "resize", (8, 8)),
        ({"steps": 200.0, "budget": 0.5}, "steps", 200),
        ({"corpus": Path("~/corpus")}, "corpus", str(Path.home() / "corpus")),
        ({"limits": {"anomaly_index": np.float32(3)}}, "limits", {"anomaly_index": 3.0}),
        ({"normalization": None, "resize": None, "mean": (), "classes": 0}, "resize", ()),
    ],
    ids=str,
)
def test_options_are_of_the_kinds_that_python_programs_have(
    prepared: Callable[..., Run], options: dict[str, Any], name: str, value: object
) -> None:
    assert getattr(prepared(**options).options, name) == value


def test_images_that_are_given_are_resized_and_converted_as_the_options_say(prepared: Callable[..., Run]) -> None:
    pixels, labels = toy.images()
    pixels, wide = np.asarray(pixels), np.repeat(np.repeat(np.asarray(pixels), 2, axis=1), 2, axis=2)
    assert wide.shape[1:3] == (16, 16)
    colour = wide.reshape(len(wide), 16, 16, 1).repeat(3, axis=3)
    run = prepared(colour, labels, resize=8, channels=1, max_images=80)
    assert run.clean_set.image_shape == (1, 8, 8)
    assert len(run.clean_set) == 80
    given = CleanSet.of(pixels, labels).sample(80, seed=0)
    assert float((run.clean_set.images - given.images).abs().mean()) < 0.1  # the same pictures, a little softer


def test_images_that_would_be_too_large_for_the_memory_are_one_line() -> None:
    with pytest.raises(AuditError, match=r"^tensors: 160 images of 1x9000x9000 floats would take 52164 MB, at most"):
        audit(network(backdoored=False), *toy.images(), resize=9000, progress=False)


NAMES = tuple("abcdefgh")


@pytest.mark.parametrize(
    "given", [NAMES, list(NAMES), np.array(NAMES), dict(enumerate(NAMES)), ",".join(NAMES), Path("names.txt")], ids=type
)
@pytest.mark.parametrize("loaded", [False, True], ids=["given", "loaded"])
def test_names_of_classes_are_of_any_usual_kind(
    prepared: Callable[..., Run], given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, loaded: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(NAMES))
    pixels, labels = toy.images()
    np.savez("images.npz", images=pixels, labels=labels)
    arguments = ((None, None), {"data": "images.npz"}) if loaded else ((pixels, labels), {})
    assert prepared(*arguments[0], class_names=given, **arguments[1]).clean_set.class_names == NAMES


WHOLE = torch.utils.data.TensorDataset(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"profile": "fast"}, "audit(profile=...): 'fast' must be one of quick, standard, thorough"),
        ({"repairs": "sometimes"}, "audit(repairs=...): 'sometimes' must be one of flagged, always"),
        ({"steps": -1}, "audit(steps=...): -1 must be at least 1"),
        ({"steps": 1.5}, "audit(steps=...): 1.5 cannot be read; accepted: N"),
        ({"restarts": True}, "audit(restarts=...): True cannot be read; accepted: N"),
        ({"seed": "x"}, "audit(seed=...): 'x' cannot be read; accepted: N"),
        ({"seed": 10**5000}, "audit(seed=...): a number of 16610 bits cannot be read; accepted: N"),
        (
            {"min_accuracy": 95},
            "audit(min_accuracy=...): 95 must lie in [0, 1] (rates are fractions, not percent); write",
        ),
        ({"device": "gpu"}, "audit(device=...): 'gpu' must be auto, cpu, cuda or cuda:N"),
        ({"mean": np.zeros(99)}, "audit(mean=...): a ndarray cannot be read; accepted: M[,M,M]"),
        ({"mean": torch.zeros(1, device="meta")}, "audit(mean=...): a Tensor cannot be read; accepted: M[,M,M]"),
        ({"mean": 0.5}, "audit(mean=...) and audit(std=...) belong together; give both or neither"),
        ({"trigger": 5}, "audit(trigger=...): 5 must be a path, as a text or a pathlib.Path"),
        ({"limits": 0}, "audit(limits=...): a mapping of names to numbers is accepted, got 0"),
        ({"limits": {3: 3}}, "limit '3' is not known"),
        ({"profil": "quick"}, "audit() has no option 'profil'; did you mean profile?"),
        ({"class_names": "abc"[:3]}, "audit(class_names=...): abc cannot be read"),
        ({"class_names": "a,b,a"}, "audit(class_names=...): a more than once in a,b,a; accepted: names between commas"),
        ({"device": "cuda:99"}, "audit(device=...): cuda:99 asked for, "),
        ({"mean": 128, "std": 64}, "audit(mean=...): 128: pixels lie in [0, 1] here; divide"),
        ({"normalization": "none such"}, "audit(normalization=...): none such is unknown (known: "),
        ({"suite": "absent"}, "audit(suite=...): absent holds no file test_*.py; "),
        (
            {"class_names": NAMES[:3]},
            "audit(class_names=...): 3 names, the model scores 8 classes; give the names of all 8",
        ),
        ({"class_names": 8}, "audit(class_names=...): 8; accepted: a sequence of names"),
        ({"class_names": {1: "a", 2: "b"}}, "audit(class_names=...): an object of 2; accepted: a sequence of names"),
        ({"model": {"w": torch.zeros(9)}}, "audit(model=...): a mapping of 1 entries; accepted: a torch.nn.Module, or"),
        (
            {"model": len},
            "a builtin_function_or_method; accepted: a torch.nn.Module, or the path of a model file; put what",
        ),
        ({"model": None}, "audit(model=...): None; accepted: a torch.nn.Module, or the path of a model file"),
        ({"images": WHOLE}, "audit(images=...): a TensorDataset; give images (n, c, h, w) and labels (n,) as tensors"),
        ({"images": torch.utils.data.DataLoader(WHOLE)}, "audit(images=...): a DataLoader; give images (n, c, h, w)"),
        ({"images": "images/", "labels": None}, "audit(images=...): a path, 'images/'; pass it as data=..."),
        ({"images": CleanSet.of(*toy.images()), "labels": None}, "audit(images=...): a CleanSet; give its parts"),
        ({"images": None, "labels": None, "data": WHOLE}, "audit(data=...): a TensorDataset; give images (n, c, h, w)"),
        ({"images": None, "labels": None, "data": 3}, "audit(data=...): 3; accepted: a path; else give images"),
        ({"data": "images/"}, "audit(data=...): images and labels are given as well; leave one of them out"),
        ({"class_order": "text"}, "audit(class_order=...): images and labels are given; leave it out"),
        ({"arch": "resnet18"}, "audit(arch=...): the model is a module and no file; leave it out"),
        ({"report": "out"}, "audit(report=...): a Python call writes no page; write the record"),
        ({"update_baseline": True}, "audit(update_baseline=...) needs the file to write: pass baseline=FILE"),
        ({"store": 3}, "audit(store=...): 3; accepted: the path of a folder"),
        ({"today": "2027-01-01"}, "audit(today=...): '2027-01-01'; accepted: a datetime.date"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_an_argument_that_cannot_be_used_or_would_be_ignored_is_named_in_one_line(
    options: dict[str, Any], told: str
) -> None:
    pixels, labels = toy.images()
    arguments = {"model": network(backdoored=False), "images": pixels, "labels": labels, "progress": False}
    with pytest.raises(OptionError) as caught:
        audit(**{**arguments, **options})
    assert told in str(caught.value)
    assert not str(caught.value).startswith("--")
    assert len(str(caught.value)) < 600


def test_all_arguments_that_cannot_be_read_are_told_at_once() -> None:
    with pytest.raises(OptionError, match=r"audit\(profile=...\): .*; audit\(steps=...\): "):
        audit(network(backdoored=False), *toy.images(), steps=0, profile="fast", progress=False)


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    record = audit(network(backdoored=True), *toy.images(), **BRIEF)
    record.write(tmp_path / "audit.json")
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert stored["schema_version"] == 2
    assert stored["subject"]["num_classes"] == toy.CLASSES
    assert stored["subject"]["images_searched"] + stored["subject"]["images_held_out"] == len(toy.images()[1])
    assert len(stored["detections"][0]["classes"]) == toy.CLASSES


def test_a_detector_without_an_answer_hides_no_blind_spot_and_a_race_is_told() -> None:
    entries: list[dict[str, Any]] = [
        {"detector": "a", "inconclusive": "", "coverage": "", "blind_spots": ["warps", "stripes"]},
        {"detector": "b", "inconclusive": "no twins", "coverage": "", "blind_spots": ["stripes"]},
        {"detector": "c", "inconclusive": "", "coverage": "43 classes raced", "blind_spots": ["warps", "patches"]},
    ]
    assert _not_tested(entries, {}) == [
        "warps (no detector of this run sees them)",
        "what b looks for: no answer (reason: see above)",
        "triggers that do not show early in a search: c: 43 classes raced",
    ]
    assert _not_tested([], {"profile": "quick"})[0].startswith("the quick profile")
    (told,) = _not_tested([], {"twins": "t.safetensors"})
    assert told.startswith("whether the reference networks of t.safetensors are clean")
    assert _not_tested([], {"twins": ""}) == []


@pytest.mark.parametrize(
    ("profile", "restarts", "found"),
    [
        ("quick", 1, (1, 20, 1)),
        ("standard", 1, (1, 20, 9)),
        ("thorough", 1, (2, NO_RACE, 9)),
        ("thorough", 3, (3, NO_RACE, 9)),
    ],
)
def test_profiles_differ_in_starts_races_and_detectors(
    profile: str, restarts: int, found: tuple[int, int, int]
) -> None:
    detectors = detectors_of(AuditOptions(profile=profile, restarts=restarts))
    first = detectors[0]
    assert isinstance(first, NeuralCleanse)
    assert (first.restarts, first.race_above, len(detectors)) == found


def test_the_record_shows_the_trigger_of_every_class_and_what_stamping_does_for_those_that_are_no_pass() -> None:
    record = audit(network(backdoored=True), *toy.images(), **{**BRIEF, "steps": 150})
    assert set(record.exhibits) == {f"neural_cleanse-class_{target}" for target in range(toy.CLASSES)}
    shown = {exhibit["target_class"]: exhibit for exhibit in record.exhibits.values()}
    assert {target for target, exhibit in shown.items() if exhibit["examples"]} == {toy.TARGET}
    assert all(example["predicted_stamped"] == toy.TARGET for example in shown[toy.TARGET]["examples"])
    assert "mask" in shown[0]["pictures"]
    assert list(record.activations) == [f"class_{toy.TARGET}"]
    assert "feature map" in record.activations[f"class_{toy.TARGET}"]["unavailable"]


def test_where_nothing_is_flagged_no_trigger_is_looked_into() -> None:
    record = audit(network(backdoored=False), *toy.images(), **{**BRIEF, "steps": 150})
    assert not record.activations
    assert not any(exhibit["examples"] for exhibit in record.exhibits.values())


@pytest.mark.parametrize("repairs", ["flagged", "always"])
def test_repairs_of_an_unflagged_model_are_asked_to_do_no_harm_if_they_are_wanted(repairs: str) -> None:
    options = {**BRIEF, "steps": 150, "limits": {"harmless_drop": 0.011}}
    record = audit(network(backdoored=False), *toy.images(), repairs=repairs, **options)
    assert record.flagged_classes == ()
    drops = [finding for finding in record.findings if finding.statistic == "clean_accuracy_drop"]
    judged = {finding.audit.partition("[")[2].rstrip("]") for finding in drops}
    assert judged == ({"nc_pruning", "nc_unlearning", "distilled_unlearning"} if repairs == "always" else set())
    assert all(finding.limit == 0.011 for finding in drops)
    assert not any("success_rate_after" in finding.audit for finding in record.findings)
    reason = record.skipped["audit::test_robust_accuracy[nc_pruning]"]
    assert reason == "no trigger that a repair can work against was flagged"


def _searches(monkeypatch: pytest.MonkeyPatch, *found: tuple[float, str]) -> list[tuple[int, int, str]]:
    """The detector answers with these deviations for class 0 and reasons for not having converged, one after the other.

    What it was asked is recorded: first image of each half, and the settings.
    """
    asked: list[tuple[int, int, str]] = []
    answers = iter(found)

    def answer(self: UniversalPerturbation, subject: Subject, *_given: Any, **_rest: Any) -> Detection:
        asked.append((id(subject.search_set), id(subject.held_out), repr(self)))
        deviation, moving = next(answers)
        null = shipped_null("library")
        values = [deviation, *[0.0] * (toy.CLASSES - 1)]
        scores = [
            margin_row(
                target,
                index=null.index("additive", value, toy.CLASSES),
                p_value=0.5,
                margin=value,
                excess=value,
                deviation=value,
            )
            for target, value in enumerate(values)
        ]
        return Detection(detector="additive", settings=repr(self), scores=scores, triggers=(), unconverged=moving)

    monkeypatch.setattr(UniversalPerturbation, "look", answer)
    zeros = [torch.zeros(1, toy.CLASSES) for _ in range(3)]
    monkeypatch.setattr(UniversalPerturbation, "natural", lambda *_given, **_named: Natural(*zeros, 1))
    return asked


def test_images_that_are_there_again_and_again_are_no_more_images() -> None:
    pixels, labels = toy.images(2)
    record = audit(network(backdoored=False), np.tile(pixels, (20, 1, 1, 1)), np.tile(labels, 20), progress=False)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.subject["images"] == 2 * toy.CLASSES
    assert "clean images: 304 images left out: the same pixels with the same label again" in record.subject["loading"]
    few = next(finding for finding in record.findings if finding.item.asked_of == "enough_images")
    assert (few.verdict, few.value) == (Verdict.INCONCLUSIVE, 2 * toy.CLASSES)


def _searched(tmp_path: Path) -> Detection:
    pixels, labels = toy.images()
    run = Run(
        AuditOptions(),
        Store(tmp_path),
        shipped(),
        module=network(backdoored=False),
        given_images=CleanSet.of(pixels, labels),
    )
    return run.searches.detection("additive")


@pytest.mark.usefixtures("toy_twins")
def test_a_class_near_the_limit_is_searched_again_with_the_halves_exchanged_and_the_mean_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut = shipped_null("library").cut("additive", toy.CLASSES)
    asked = _searches(monkeypatch, (1.1 * cut, ""), (0.7 * cut, ""))
    found = _searched(tmp_path)
    assert len(asked) == 2
    assert asked[0][:2] == asked[1][1::-1]
    assert found.scores[0].index == pytest.approx(2 * 0.9)
    assert found.deviations[0] == pytest.approx(0.9 * cut)


@pytest.mark.usefixtures("toy_twins")
@pytest.mark.parametrize("share", [0.5, 3.0])
def test_a_class_far_from_the_limit_is_searched_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share: float
) -> None:
    asked = _searches(monkeypatch, (share * shipped_null("library").cut("additive", toy.CLASSES), ""))
    assert _searched(tmp_path).scores[0].index == pytest.approx(2 * share)
    assert len(asked) == 1


@pytest.mark.usefixtures("toy_twins")
def test_a_search_that_has_not_converged_is_done_again_with_twice_the_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = _searches(monkeypatch, (0.1, "still rising"), (0.1, ""))
    assert _searched(tmp_path).unconverged == ""
    assert ["steps=25" in settings for _, _, settings in asked] == [True, False]
    assert "steps=50" in asked[1][2]
