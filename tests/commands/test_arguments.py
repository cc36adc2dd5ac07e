"""Which file a command may write: none that it reads."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from backdoor_audit.commands.arguments import refuse_to_replace
from backdoor_audit.errors import OptionError


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "badnets").write_bytes(b"")
    return tmp_path / "badnets"


@pytest.mark.parametrize("option", ["attack", "arch", "method", "rule"])
def test_a_word_that_a_file_is_called_as_well_is_no_file(there: Path, option: str) -> None:
    refuse_to_replace(there, Namespace(out=there, force=True, **{option: "badnets"}))
    with pytest.raises(OptionError, match="exists; choose another name, or pass --force"):
        refuse_to_replace(there, Namespace(out=there, force=False, **{option: "badnets"}))


@pytest.mark.parametrize("option", ["model", "data", "trigger", "twins", "class_names"])
def test_a_file_that_an_option_names_is_not_replaced(there: Path, option: str) -> None:
    with pytest.raises(OptionError, match="is read, or written as well, by this command"):
        refuse_to_replace(there, Namespace(out=there, force=True, **{option: "badnets"}))


def test_none_of_several_records_is_replaced(there: Path) -> None:
    with pytest.raises(OptionError, match="is read, or written as well"):
        refuse_to_replace(there, Namespace(out=there, force=True, records=[Path("x"), Path("badnets")]))


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, link_to_pipe])
def test_what_is_no_file_is_not_replaced_even_by_force(tmp_path: Path, make) -> None:
    make(tmp_path / "out")
    with pytest.raises(OptionError, match="a folder, pipe, device or socket"):
        refuse_to_replace(tmp_path / "out", Namespace(out=tmp_path / "out", force=True))


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OptionError, match="no right to write into"):
        refuse_to_replace(tmp_path / "out", Namespace(out=tmp_path / "out", force=False))
