"""Which file a command may write: none that it reads."""

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
