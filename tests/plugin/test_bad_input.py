"""Whatever a user can get wrong is one clear line and exit code 4, before any long work; never a traceback."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.subjects import toy
from tests.subjects.toy_runs import BASE, Run

MODEL = "--model=clean.safetensors"
DATA, ARCH = BASE[0], BASE[1]


class Payload:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.mark, "executed")


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**toy.weights(backdoored=False), **changes}


def saved(name: str, content: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: content(folder / name)


def npz(**arrays: Any) -> Callable[[Path], object]:
    return saved("images.npz", lambda file: np.savez(file, **arrays))


def in_parts(folder: Path, config: str = "") -> None:
    """The clean model as save_pretrained writes a large one, one tensor to a file."""
    folder.mkdir(parents=True)
    names = {key: f"model-{at:05}-of-00002.safetensors" for at, key in enumerate(state(), 1)}
    for key, name in names.items():
        save_file({key: state()[key]}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    if config:
        (folder / "config.json").write_text(config)


PIXELS, LABELS = toy.images()
CLASS_FOLDER = saved(
    "pictures/0/a.png", lambda file: (file.parent.mkdir(parents=True), file.write_bytes(b"no picture"))
)
LOOSE_PICTURE = saved("pictures/a.png", lambda file: (file.parent.mkdir(), file.write_bytes(b"")))
NAN = torch.full((8, 64), torch.nan)

CASES: dict[str, tuple[Callable[[Path], object] | None, tuple[str, ...], str]] = {
    "no such model": (None, ("--model=none.safetensors", DATA, ARCH), "none.safetensors does not exist"),
    "a folder as model": (
        None,
        ("--model=.", DATA, ARCH),
        "not a file but a folder; give the model file in it, backdoored.safetensors (accepted: ",
    ),
    "a folder of checkpoints": (
        lambda folder: in_parts(folder / "hf" / "checkpoint-5", config="{}"),
        ("--model=hf", DATA, ARCH),
        "hf: not a file but a folder with 1 checkpoints in it; pass --model=hf/checkpoint-5 (",
    ),
    "weights in parts without a network": (
        lambda folder: in_parts(folder / "hf"),
        ("--model=hf", DATA),
        "hf: a folder without a config.json that names its network (model_type or architecture); pass --arch=NAME",
    ),
    "an empty model": (saved("m.pt", lambda file: file.write_bytes(b"")), ("--model=m.pt", DATA, ARCH), "m.pt: "),
    "a text file": (saved("m.pt", lambda file: file.write_text("hello")), ("--model=m.pt", DATA, ARCH), "m.pt: "),
    "a model cut short": (
        lambda folder: (folder / "m.safetensors").write_bytes((folder / "clean.safetensors").read_bytes()[:500]),
        ("--model=m.safetensors", DATA, ARCH),
        "m.safetensors: ",
    ),
    "a whole pickled module": (
        saved("m.pt", lambda file: torch.save(torch.nn.Linear(2, 2), file)),
        ("--model=m.pt", DATA, ARCH),
        "does not fit toy:network: ",
    ),
    "no architecture": (None, (MODEL, DATA), "pass --arch=NAME"),
    "an unknown architecture": (None, (MODEL, DATA, "--arch=small_cnm"), "small_cnn"),
    "another architecture": (None, (MODEL, DATA, "--arch=small_cnn"), "missing"),
    "an unknown module": (None, (MODEL, DATA, "--arch=nowhere:network"), "nowhere"),
    "an unknown factory": (None, (MODEL, DATA, "--arch=toy:missing"), "missing"),
    "a factory that raises": (
        saved("broken.py", lambda file: file.write_text("def network():\n    raise OSError('disk')\n")),
        (MODEL, DATA, "--arch=broken:network"),
        "OSError",
    ),
    "weights that are NaN": (
        saved("m.safetensors", lambda file: save_file(state(**{"1.weight": NAN}), file)),
        ("--model=m.safetensors", DATA, ARCH),
        "NaN or infinite",
    ),
    "weights of another shape": (
        saved("m.safetensors", lambda file: save_file(state(**{"1.bias": torch.zeros(3)}), file)),
        ("--model=m.safetensors", DATA, ARCH),
        "1.bias",
    ),
    "a header that names code": (
        saved("m.safetensors", lambda file: save_file(state(), file, metadata={"architecture": "os:system"})),
        ("--model=m.safetensors", DATA),
        "os:system",
    ),
    "no clean images": (None, (MODEL, ARCH), "--audit-data=SOURCE"),
    "no such images": (None, (MODEL, "--data=none.npz", ARCH), "none.npz does not exist"),
    "images without labels": (npz(images=PIXELS), (MODEL, DATA, ARCH), "labels"),
    "fewer labels than images": (npz(images=PIXELS, labels=LABELS[:-1]), (MODEL, DATA, ARCH), "images.npz: "),
    "one image of a class": (
        npz(images=PIXELS[:1], labels=LABELS[:1]),
        (MODEL, DATA, ARCH),
        "images.npz: 1 images, no class has two; give at least two images per class",
    ),
    "pixels that are not in [0, 1]": (npz(images=PIXELS * 1.0, labels=LABELS), (MODEL, DATA, ARCH), "255"),
    "pickled labels": (npz(images=PIXELS, labels=np.array([{}] * len(LABELS))), (MODEL, DATA, ARCH), "images.npz: "),
    "a folder without classes": (LOOSE_PICTURE, (MODEL, "--data=pictures", ARCH), "class"),
    "a picture that is none": (CLASS_FOLDER, (MODEL, "--data=pictures", ARCH), "a.png"),
    "an unknown data set": (None, (MODEL, "--data=torchvision:CIFAR1O?root=.", ARCH), "CIFAR10"),
    "images of another size": (
        npz(images=np.zeros((160, 9, 9, 1), np.uint8), labels=LABELS),
        (MODEL, DATA, ARCH),
        "does not accept 1x9x9 images",
    ),
    "a device that is none": (None, (MODEL, DATA, ARCH, "--device=gpu"), "auto, cpu, cuda"),
    "a GPU that is not there": (None, (MODEL, DATA, ARCH, "--device=cuda:99"), "CUDA devices are visible"),
    "a seed that is no number": (None, (MODEL, DATA, ARCH, "--audit-seed=x"), "--audit-seed"),
    "a rate in percent": (None, (MODEL, DATA, ARCH, "--min-accuracy=90"), "fractions, not percent"),
    "an unknown limit": (None, (MODEL, DATA, ARCH, "--audit-limit", "anomaly=2"), "anomaly_index"),
    "a limit without value": (None, (MODEL, DATA, ARCH, "--audit-limit", "anomaly_index"), "NAME=VALUE"),
    "a mean alone": (None, (MODEL, DATA, ARCH, "--mean=0.5"), "belong together"),
    "fewer names than classes": (
        None,
        (MODEL, DATA, ARCH, "--class-names=a,b"),
        "--audit-class-names: 2 names in a,b, the model scores 8 classes; accepted: the names of all 8",
    ),
    "another number of classes": (
        None,
        (MODEL, DATA, ARCH, "--classes=9"),
        "clean.safetensors: scores 8 classes, --classes=9 says 9; correct --classes, or leave it out",
    ),
    "a mean of pixels up to 255": (
        None,
        (MODEL, DATA, ARCH, "--mean=127.5", "--std=127.5"),
        "--mean=127.5: pixels lie in [0, 1] here; divide",
    ),
    "an unknown normalization": (None, (MODEL, DATA, ARCH, "--normalization=imagnet"), "imagenet"),
    "a report folder that is a file": (None, (MODEL, DATA, ARCH, "--report=images.npz"), "is a file"),
    "a report folder that is a link to nothing": (
        saved("link", lambda file: file.symlink_to("nothing")),
        (MODEL, DATA, ARCH, "--report=link"),
        "--audit-report: link is a link that leads to nothing",
    ),
    "a report folder below a file": (
        None,
        (MODEL, DATA, ARCH, "--report=images.npz/sub"),
        "lies below images.npz, which is no folder",
    ),
    "a report folder that cannot be made": (
        None,
        (MODEL, DATA, ARCH, "--report=/proc/none"),
        "--audit-report: /proc/none cannot be written",
    ),
    "a folder in the place of the record": (
        saved("out", lambda folder: (folder / "audit.json").mkdir(parents=True)),
        (MODEL, DATA, ARCH, "--report=out"),
        "/out/audit.json cannot be written (Is a directory); remove what is in the way",
    ),
    "a cache that is a file": (
        None,
        (MODEL, DATA, ARCH, "-o", "cache_dir=images.npz"),
        "-o cache_dir: finished work cannot be kept in images.npz (Not a directory); give a folder that can be written",
    ),
    "a cache that cannot be made": (
        None,
        (MODEL, DATA, ARCH, "-o", "cache_dir=/proc/none"),
        "-o cache_dir: finished work cannot be kept in /proc/none (",
    ),
    "a trigger that is none": (None, (MODEL, DATA, ARCH, "--trigger=clean.safetensors"), "target_class"),
    "an unknown key": (
        saved("pyproject.toml", lambda file: file.write_text("[tool.backdoor_audit]\nmodle = 'm'\n")),
        (MODEL, DATA, ARCH),
        "did you mean model?",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "_"))
def test_bad_input_is_one_line_and_exit_code_4(project: pytest.Pytester, run: Run, case: str) -> None:
    prepare, arguments, told = CASES[case]
    if prepare:
        prepare(project.path)
    result = run(None, *arguments)
    lines = [line for line in result.stderr.lines if line.strip()]
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ERROR: backdoor_audit: ")
    assert told in lines[0]
    assert lines[0].count(told) == 1 or not told.endswith(": ")  # a path is told once
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert not (project.path / "backdoor-audit-report").exists()


def test_the_folder_that_a_part_of_a_model_is_refused_for_is_audited(project: pytest.Pytester, run: Run) -> None:
    in_parts(project.path / "hf")
    result = run(None, "--model=hf/model-00001-of-00002.safetensors", *BASE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "one file of a folder that holds a network; pass --model=hf" in result.stderr.str()
    assert run(None, "--model=hf", *BASE).ret == pytest.ExitCode.OK


def test_an_audit_without_model_and_fixture_says_what_to_define(run: Run) -> None:
    result = run(None, "--audit", DATA)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*no model; pass --audit-model=PATH, or define a session fixture audited_model*"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_model_is_refused_and_nothing_of_it_runs(
    project: pytest.Pytester, run: Run, *, legacy: bool
) -> None:
    mark = project.path / "executed.txt"
    torch.save({"state_dict": Payload(mark)}, project.path / "m.pt", _use_new_zipfile_serialization=not legacy)
    (project.path / "plain.pkl").write_bytes(pickle.dumps(Payload(mark)))
    for name in ("m.pt", "plain.pkl"):
        result = run(None, f"--model={name}", DATA, ARCH)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: backdoor_audit: {name}: *"])
    assert not mark.exists()


def test_a_cache_that_cannot_be_made_is_one_line_with_workers_too(run: Run) -> None:
    result = run(None, MODEL, DATA, ARCH, "-n", "2", "-o", "cache_dir=images.npz", process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: backdoor_audit: -o cache_dir: *images.npz*"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_bad_input_is_one_line_with_workers_too(run: Run) -> None:
    result = run(None, MODEL, DATA, "-n", "2", process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: backdoor_audit: clean.safetensors: *pass --arch=NAME*"])
    assert result.stderr.str().count("clean.safetensors") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (npz(images=PIXELS[LABELS != 5], labels=LABELS[LABELS != 5]), "1 classes have fewer than 2 clean images: 5"),
        (npz(images=PIXELS, labels=LABELS + 1), "labels up to 8"),
        (npz(images=PIXELS[::8], labels=LABELS[::8]), "from 100 on"),
        (npz(images=PIXELS, labels=LABELS[::-1]), "clean accuracy 0.0"),
    ],
    ids=["a class without images", "labels that count from 1", "few images", "labels in another order"],
)
def test_data_that_does_not_fit_is_inconclusive(
    project: pytest.Pytester, run: Run, change: Callable[[Path], object], told: str
) -> None:
    change(project.path)
    result = run("clean")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*INCONCLUSIVE*", f"*{told}*"])
