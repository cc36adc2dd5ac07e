"""How GPUs are dealt, and how a live table looks."""

from __future__ import annotations

import io

import pytest

from backdoor_audit.errors import OptionError
from backdoor_audit.fleet.outcome import Row
from backdoor_audit.fleet.pools import dealt, visible_gpus
from backdoor_audit.fleet.table import Table


def test_gpus_are_dealt_whole_shared_or_several() -> None:
    assert dealt(2, 1, ("0", "1")) == ("0", "1")
    assert dealt(4, 0.5, ("0", "1")) == ("0", "0", "1", "1")
    assert dealt(2, 2, ("a", "b", "c", "d")) == ("a,b", "c,d")
    assert dealt(3, 0, ()) == ()


@pytest.mark.parametrize(("places", "each", "told"), [(3, 1.0, "need 3 GPUs"), (1, 1.5, "a share up to 1")])
def test_too_few_gpus_are_one_line(places: int, each: float, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        dealt(places, each, ("0", "1"))


def test_the_environment_says_which_gpus_are_there() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 5"}) == ("3", "5")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()


def test_the_table_counts_and_keeps_to_its_room() -> None:
    table = Table(io.StringIO(), 9)
    for number in range(5):
        table.begun(f"m{number}")
        table.over(Row(name=f"m{number}", file="", state="fail" if number == 3 else "pass", reason="why"))
    table.begun("m5")
    lines = table.lines(20)
    assert lines[0].startswith("5 of 9 models: 1 fail, 4 pass, 1 running, 3 waiting")
    assert "m5" in lines[1]
    assert lines[2].split() == ["fail", "m3", "why"]
    assert len(table.lines(4)) == 4
    assert table.lines(4)[-1] == "... and 4 more"
