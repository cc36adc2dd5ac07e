"""Files and folders that options name and that are not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.errors import OptionError
from backdoor_audit.option_paths import check_paths
from backdoor_audit.options import AuditOptions


def test_a_missing_file_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        check_paths(AuditOptions(model=str(tmp_path / "m"), data=str(tmp_path / "none"), trigger=str(tmp_path / "t")))
    for told in ("m does not exist; give a model file or", "none does not exist", "--audit-trigger"):
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("microsoft/resnet-50", "hf download microsoft/resnet-50 --local-dir model/"),
        ("https://huggingface.co/timm/resnet18.a1_in1k", "hf download timm/resnet18.a1_in1k --local-dir model/"),
        ("https://somewhere.org/models/m.pth", "download the file first"),
        ("tests/m.pth", "give a model file or a Hugging Face folder"),
        ("m.pth", "give a model file or a Hugging Face folder"),
    ],
)
def test_a_model_that_lies_elsewhere_is_to_be_fetched_first(model: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        check_paths(AuditOptions(model=model, data=str(tmp_path)))
    assert str(caught.value).endswith(told)


def test_what_a_folder_is_as_a_model_is_left_to_what_reads_it(tmp_path: Path) -> None:
    check_paths(AuditOptions(model=str(tmp_path), data=str(tmp_path)))


@pytest.mark.parametrize("name", ["model", "data", "trigger", "reference", "baseline", "report", "corpus"])
@pytest.mark.parametrize(
    ("path", "told"), [("x" * 300, "cannot be used (File name too long)"), ("{pipe}", "is a pipe, device")]
)
def test_paths_that_nothing_can_have_and_pipes_are_told_in_one_line(
    tmp_path: Path, name: str, path: str, told: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    given = {"data": str(tmp_path), name: path.format(pipe=tmp_path / "pipe")}
    with pytest.raises(OptionError) as caught:
        check_paths(AuditOptions(**given))
    assert f"--audit-{name}: " in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "more"), [("report", {}), ("corpus", {}), ("baseline", {"update_baseline": True})], ids=lambda value: value
)
def test_a_place_to_write_that_is_a_link_to_nothing_is_told_in_one_line(
    tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(OptionError, match=f"--audit-{name}: .*link.*a link that leads to nothing.*; give a f"):
        check_paths(AuditOptions(data=str(tmp_path), **{name: str(link)}, **more))
    (tmp_path / "nothing").mkdir()
    if name != "baseline":
        check_paths(AuditOptions(model=str(Path(__file__)), data=str(tmp_path), **{name: str(link)}))
