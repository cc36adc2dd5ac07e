import json

import pytest

from backdoor_audit.data import names_from
from backdoor_audit.errors import OptionError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "cat\nhot dog\n\n"),
        ("names.txt", "\N{ZERO WIDTH NO-BREAK SPACE}cat\r\nhot dog\r\n"),
        ("names.json", '\N{ZERO WIDTH NO-BREAK SPACE}["cat", "hot dog"]'),
        ("names.json", json.dumps(["cat", "hot dog"])),
        ("names.json", json.dumps({"hot dog": 1, "cat": 0})),
        ("names.json", json.dumps({"1": "hot dog", "0": "cat"})),
        ("config.json", json.dumps({"id2label": {"0": "cat", "1": "hot dog"}, "model_type": "vit"})),
        ("imagenet_class_index.json", json.dumps({"0": ["cat", "tabby"], "1": ["hot dog", "sausage"]})),
        ("classes.JSON", json.dumps({"class_to_idx": {"hot dog": 1, "cat": 0}})),
    ],
)
def test_names_are_read_from_texts_and_files(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert names_from(str(tmp_path / name)) == names_from("cat, hot dog") == ("cat", "hot dog")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("names.txt", "cat", "1 names in"),
        ("names.txt", "cat\n\ndog", "an empty name in"),
        ("names.txt", "cat\ncat", "cat more than once in"),
        ("names.json", "{", "cannot be read (not JSON"),
        ("names.json", '{"a": "b"}', "0 names in"),
        ("names.json", "[1, 2]", "0 names in"),
        ("names.txt", b"\xff", "cannot be read (not UTF-8"),
    ],
)
def test_names_that_are_none_are_one_line(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(OptionError) as caught:
        names_from(str(tmp_path / name))
    assert told in str(caught.value)
    assert "accepted: names between commas" in str(caught.value)


def test_one_name_twice_between_commas_is_told():
    with pytest.raises(OptionError, match="a more than once in a,b,a"):
        names_from("a,b,a")
