import json

import pytest

from backdoor_audit.triggers.numbers import Numbers


def test_many_numbers_are_deflated_and_come_back():
    numbers = Numbers((3, 9, 12), tuple(range(-162, 162)))
    spec = json.loads(json.dumps(numbers.spec()))
    assert set(spec) == {"shape", "deflated"}
    assert Numbers.from_spec(spec) == numbers
    assert len(json.dumps(spec)) < len(json.dumps(numbers.values)) / 2


def test_no_more_is_unpacked_than_the_shape_asks_for():
    packed = Numbers((1, 1, 2**20), (0,) * 2**20).spec()["deflated"]
    with pytest.raises(ValueError, match="do not fill the shape"):
        Numbers.from_spec({"shape": [1, 1, 200], "deflated": packed})
