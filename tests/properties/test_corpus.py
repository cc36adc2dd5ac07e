"""The folder of counterexamples: what goes in comes out, and nothing in it is lost."""

import json
import os
from pathlib import Path

import pytest

from backdoor_audit.errors import DataFormatError, OptionError
from backdoor_audit.properties import Counterexample, PropertyOutcome, corpus_folder, keep, load_corpus
from backdoor_audit.triggers.written import Numbers, Patch
from tests.subjects.forbidden import forbid

PATCH = Patch(colours=Numbers((1, 1, 2), (7, 255)), top=3, left=1, target_class=4)


def counterexample(**known):
    return Counterexample(
        **{"name": "no_small_patch_steers", "trigger": PATCH, "image_shape": (1, 8, 8), "value": 0.9, "limit": 0.6}
        | known
    )


def test_what_is_kept_is_read_again(tmp_path):
    folder = tmp_path / "made" / "corpus"
    first, second = counterexample(), counterexample(name="another", value=0.7)
    files = [keep(folder, first), keep(folder, second)]
    assert sorted(files) == sorted(folder.iterdir())
    assert set(load_corpus(folder)) == {first, second}


@pytest.mark.parametrize(("value", "trigger", "kept"), [(0.9, PATCH, True), (0.6, PATCH, False), (0.9, None, False)])
def test_only_a_trigger_that_refuted_becomes_a_counterexample(value, trigger, kept):
    outcome = PropertyOutcome(
        name="no_small_patch_steers", statistic="steered_share", value=value, limit=0.6, reason="", trigger=trigger
    )
    assert Counterexample.of(outcome, (1, 8, 8)) == (counterexample() if kept else None)


def test_the_name_comes_from_the_content_and_not_from_what_was_measured(tmp_path):
    file = keep(tmp_path, counterexample())
    before = file.read_bytes()
    assert keep(tmp_path, counterexample(value=0.8, limit=0.7)) == file
    assert file.read_bytes() == before
    others = (
        counterexample(image_shape=(1, 9, 9)),
        counterexample(name="another"),
        counterexample(trigger=Patch(colours=Numbers((1, 1, 2), (7, 254)), top=3, left=1, target_class=4)),
    )
    assert len({file.name, *(keep(tmp_path, other).name for other in others)}) == 4


def test_without_a_folder_there_is_no_counterexample(tmp_path):
    assert load_corpus(None) == load_corpus(tmp_path / "absent") == load_corpus(tmp_path) == ()


def test_the_named_folder_comes_before_the_default_one_which_must_be_there(tmp_path):
    assert corpus_folder("", tmp_path) is None
    (tmp_path / "backdoor-audit-corpus").mkdir()
    assert corpus_folder("", tmp_path) == tmp_path / "backdoor-audit-corpus"
    assert corpus_folder("mine", tmp_path).name == "mine"


GOOD = counterexample().to_json()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe nothing",
        b"",
        b"[1]",
        json.dumps({**GOOD, "schema_version": 2}).encode(),
        json.dumps({key: value for key, value in GOOD.items() if key != "trigger"}).encode(),
        json.dumps({**GOOD, "image_shape": [1, 8]}).encode(),
        json.dumps({**GOOD, "value": None}).encode(),
        json.dumps({**GOOD, "trigger": {"kind": "unheard\nof"}}).encode(),
    ],
)
def test_files_that_cannot_be_read_are_named_in_one_line_and_left_alone(tmp_path, content):
    keep(tmp_path, counterexample())
    (tmp_path / "bad.json").write_bytes(content)
    (tmp_path / "worse.json").write_text("{")
    with pytest.raises(DataFormatError, match=r"2 files cannot be read: bad\.json .*; worse\.json ") as refused:
        load_corpus(tmp_path)
    assert "\n" not in str(refused.value)
    assert (tmp_path / "bad.json").read_bytes() == content


def test_a_folder_that_cannot_be_looked_at_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    keep(tmp_path / "corpus", counterexample())
    folder = forbid(monkeypatch, tmp_path) / "corpus"
    with pytest.raises(DataFormatError, match="corpus: Permission denied; make the folder of the corpus readable"):
        load_corpus(folder)
    with pytest.raises(DataFormatError, match="null byte"):
        load_corpus(Path("a\0b"))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    file = tmp_path / "corpus"
    file.write_text("")
    with pytest.raises(DataFormatError, match="not a folder"):
        load_corpus(file)


def test_other_files_in_the_folder_are_nobodys_business(tmp_path):
    (tmp_path / "README.md").write_text("what this is")
    (tmp_path / "half-written.partial").write_text("{")
    assert load_corpus(tmp_path) == ()


TRIGGER = GOOD["trigger"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image_shape": [1, 10**9, 10**9]}, "image_shape[1]: 1000000000 where a whole number in [1, 32768]"),
        ({"image_shape": [1, -8, 8]}, "image_shape[1]: -8 where"),
        ({"value": "0.9"}, "value: '0.9' where a number belongs"),
        ({"value": True}, "value: True where a number belongs"),
        ({"property": ["x"]}, "property: a list of 1 where a text belongs"),
        ({"more": 1}, "more: a key that is not known"),
        ({"trigger": [TRIGGER]}, "trigger: a list of 1 where an object belongs"),
        ({"trigger": {**TRIGGER, "opacity": "100"}}, "'100' where a whole number in [0, 100] belongs"),
        ({"trigger": {**TRIGGER, "top": 10**200}}, "a number of 665 bits where a whole number in"),
        (
            {"trigger": {**TRIGGER, "colours": {"shape": [1, 30_000, 30_000], "deflated": "eJw="}}},
            "900000000 numbers; at most",
        ),
        (
            {"trigger": {**TRIGGER, "colours": {"shape": [1] * 1000, "values": [1]}}},
            "a list of 1000 where a list belongs",
        ),
        ({"trigger": {**TRIGGER, "colours": {"shape": [1, 1, 1], "deflated": ["eJw="]}}}, "a list of 1 where a text"),
        ({"trigger": {**TRIGGER, "kind": "\x1b[31m\n::error::"}}, r"kind '\x1b[31m\n::error::' is not known"),
    ],
)
def test_a_file_with_odd_values_is_told_by_its_place_before_anything_is_made_of_it(tmp_path, changed, told):
    (tmp_path / "odd.json").write_text(json.dumps({**GOOD, **changed}))
    with pytest.raises(DataFormatError) as refused:
        load_corpus(tmp_path)
    assert told in str(refused.value)
    assert not {"\n", "\x1b"} & set(str(refused.value))


def test_what_is_no_file_in_the_folder_is_named_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    (tmp_path / "c.json").symlink_to("c.json")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(DataFormatError) as refused:
        load_corpus(tmp_path)
    special = "a pipe, device or socket, not a regular file"
    assert f"4 files cannot be read: a.json ({special}); b.json ({special}); c.json (" in str(refused.value)
    assert "d.json (a folder, not a file)" in str(refused.value)


def test_of_very_many_files_that_cannot_be_read_the_first_are_named(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02}.json").write_text("{")
    with pytest.raises(DataFormatError, match=r"30 files cannot be read: .*19\.json .*; and 10 more; a counterexample"):
        load_corpus(tmp_path)


def test_a_device_or_a_link_to_nowhere_is_no_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for folder in (Path("/dev/null"), tmp_path / "link"):
        with pytest.raises(DataFormatError, match="not a folder"):
            load_corpus(folder)


def test_a_corpus_that_cannot_be_written_blames_its_option(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"--audit-corpus: .*file/corpus cannot be written \(Not a directory\)"):
        keep(tmp_path / "file" / "corpus", counterexample())
