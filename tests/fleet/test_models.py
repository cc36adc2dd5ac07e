"""Which models a command line names: nothing in a folder is left out in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backdoor_audit.errors import OptionError
from backdoor_audit.fleet.models import listed, named
from backdoor_audit.model.loading.formats import SUFFIXES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One model of every ending, one as Hugging Face keeps it, and what may lie beside them."""
    for suffix in (*SUFFIXES, ".PT"):
        (tmp_path / f"m{len(suffix)}{suffix}").touch()
    for name in (".hidden", "README", "readme.rst", "notes.md", "notes.txt", "rates.json", "LICENSE-MIT"):
        (tmp_path / name).touch()
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.svg").touch()
    (tmp_path / "vit-1.5").mkdir()
    (tmp_path / "vit-1.5" / "config.json").touch()
    (tmp_path / "vit-1.5" / "model.safetensors").touch()
    return tmp_path


def test_a_folder_stands_for_all_models_that_the_gate_reads(folder: Path) -> None:
    found = listed([folder])
    assert {model.file.suffix for model in found} == {*SUFFIXES, ".PT", ".5"}
    assert len({model.name.lower() for model in found}) == len(SUFFIXES) + 2
    assert next(model.name for model in found if model.file.is_dir()) == "vit-1.5"
    assert all(named(model.name) == model.name for model in found)


@pytest.mark.parametrize("name", ["fleet.json", "fleet.html", "Fleet.JSON"])
def test_no_model_is_called_as_a_file_of_the_fleet(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.pt").touch()
    (found,) = listed([tmp_path])
    assert re.fullmatch(rf"{name}-[0-9a-f]{{8}}", found.name)


def test_a_folder_with_a_config_is_one_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "vit-1.5")
    assert [(model.name, model.file) for model in listed([Path()])] == [("vit-1.5", Path())]


@pytest.mark.parametrize("end", [".data", "_data"])
def test_weights_beside_a_model_are_part_of_it_and_no_model(tmp_path: Path, end: str) -> None:
    files = [tmp_path / "a.onnx", tmp_path / f"a.onnx{end}"]
    for file in files:
        file.touch()
    assert [model.file for model in listed([tmp_path])] == files[:1]
    assert [model.file for model in listed(files)] == files[:1]
    files[0].unlink()
    with pytest.raises(
        OptionError, match=r"a\.onnx.data is no model file .*beside them NAME\.onnx\.data of a NAME\.onnx"
    ):
        listed([tmp_path])


@pytest.mark.parametrize("name", ["weights.h5", "model.onnx.data", "noending", "deep/er/m.pt"])
def test_what_may_be_a_model_and_is_not_read_is_wrong_usage(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    with pytest.raises(OptionError, match=str(folder / name.partition("/")[0])) as caught:
        listed([folder])
    assert len(str(caught.value).splitlines()) == 1
