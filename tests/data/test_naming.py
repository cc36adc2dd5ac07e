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
        ("data.json", json.dumps({"names": ["cat", "hot dog"], "nc": 2})),
        ("data.json", json.dumps({"idx_to_class": {"0": "cat", "1": "hot dog"}})),
        ("labels.txt", "0 cat\n1 hot dog\n"),
        ("labels.txt", "1: hot dog\n0: cat\n"),
        ("labels.txt", "hot dog 1\ncat 0\n"),
        ("classes.csv", "id,name\n0,cat\n1,hot dog\n"),
        ("classes.csv", 'name,id\n"cat",0\n"hot dog",1\n'),
        ("map.tsv", "0\tcat\n1\thot dog\n"),
        ("data.yaml", "names:\n  0: cat\n  1: 'hot dog'\n"),
    ],
)
def test_names_are_read_from_texts_and_files(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert names_from(str(tmp_path / name)) == names_from("cat, hot dog") == ("cat", "hot dog")


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish\n", ("n01440764", "n01443537")),
        ("n01440764\nn01443537\n", ("n01440764", "n01443537")),
        ("0 - zero\n1 - one\n", ("0 - zero", "1 - one")),
        ("digit 0\ndigit 1\n", ("digit 0", "digit 1")),
        ("1 cat\n2 dog\n", ("1 cat", "2 dog")),
        ("0\n1\n", ("0", "1")),
    ],
)
def test_a_line_is_a_name_where_its_number_is_no_label(lines, names, tmp_path):
    (tmp_path / "names.txt").write_text(lines)
    assert names_from(str(tmp_path / "names.txt")) == names


@pytest.mark.parametrize("text", ["['cat', 'hot dog']", '["cat", "hot dog"]', "(cat, hot dog)"])
def test_names_between_commas_may_stand_in_brackets(text):
    assert names_from(text) == ("cat", "hot dog")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("names.txt", "cat", "1 names in"),
        ("names.txt", "cat\n\ndog", "an empty name in"),
        ("names.txt", "cat\ncat", "cat more than once in"),
        ("names.json", "{", "cannot be read (not JSON"),
        ("names.json", '{"a": "b"}', "no names for the numbers from 0 on in"),
        ("names.json", "[1, 2]", "no names for the numbers from 0 on in"),
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
