import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from backdoor_audit import bounds
from backdoor_audit.files import (
    UnreadableError,
    abandoned,
    obstacle,
    read_bytes,
    read_json,
    read_text,
    whole,
    write_text,
)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "audit.md"
    write_text(file, "caf\udce9\n")
    assert file.read_text(encoding="utf-8") == "caf\\udce9\n"
    assert os.listdir(tmp_path) == ["audit.md"]


def test_what_is_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "to folder").symlink_to(tmp_path)
    for free in (tmp_path, tmp_path / "new" / "newer", tmp_path / "to folder", tmp_path / "to folder" / "new"):
        assert obstacle(free) == ""
    assert obstacle(tmp_path / "file") == "is no folder"
    assert obstacle(tmp_path / "file" / "a" / "b") == f"lies below {tmp_path / 'file'}, which is no folder"
    assert obstacle(tmp_path / "link") == "is a link that leads to nothing"
    assert obstacle(tmp_path / "link" / "a") == f"lies below {tmp_path / 'link'}, which is a link that leads to nothing"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "audit.md"
    file.write_text("old")

    def interrupted() -> None:
        with whole(file) as partial:
            partial.write_text("half")
            assert file.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["audit.md"]


def test_what_a_killed_writer_left_is_found_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, theirs = tmp_path / f".ab.{os.getpid()}.partial", tmp_path / f".ab.{ended.pid}.partial"
    for file in (mine, theirs, tmp_path / ".partial", tmp_path / ".x.y.partial"):
        file.write_text("half")
    assert list(abandoned(tmp_path)) == [theirs]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "more than 100 deep"),
        (b'{"a": ' * 101, "more than 100 deep"),
        (b'{"a": NaN}', "the number NaN"),
        (b'{"a": -Infinity}', "the number -Infinity"),
        (b'{"a": 1e999}', "too large for a float"),
        (b'{"a": ' + b"1" * 400 + b"}", "a number of 400 digits"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"\x10\0\0\0\0\0\0\0{}\xff", "no text, but another kind of file"),
        ('{"a": 1}'.encode("utf-16"), "save it as UTF-8"),
        (b"", "not JSON"),
        (b'"\\"' * 50_000, "not JSON"),
    ],
)
def test_content_that_is_no_json_is_refused_in_a_few_words(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "audit.json"
    file.write_bytes(content)
    with pytest.raises(UnreadableError, match=said):
        read_json(file)


def test_brackets_inside_texts_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    value = {"a": "[" * 1000 + '"' + "\\" * 3, "b": [[[1]]]}
    file.write_text(json.dumps(value))
    assert read_json(file) == value


def test_a_pipe_is_refused_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit.json")
    with pytest.raises(UnreadableError, match="a pipe, device or socket"):
        read_text(tmp_path / "audit.json")
    with pytest.raises(UnreadableError, match="a pipe, device or socket"):
        read_text(Path("/dev/zero"))
    with pytest.raises(UnreadableError, match="a folder"):
        read_text(tmp_path)
    with pytest.raises(UnreadableError, match="No such file"):
        read_text(tmp_path / "absent")


def test_a_file_above_the_bound_is_refused_with_the_option_that_raises_it(tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    file.write_bytes(b"[" + b" " * 10_000 + b"]")
    assert read_json(file) == []
    with (
        bounds.allowing(bounds.Bounds(memory=100_000)),
        pytest.raises(UnreadableError, match="0 MB; at most 0 MB are read, raise it by --audit-memory"),
    ):
        read_json(file)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.mkfifo, "a pipe, device or socket"),
        (lambda file: file.symlink_to("/dev/zero"), "a pipe, device or socket"),
        (os.mkdir, "a folder, not a file"),
        (lambda file: (file.touch(), os.truncate(file, 2**34)), "at most"),
        (lambda file: None, "No such file"),
    ],
)
def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path: Path, make, told: str) -> None:
    file = tmp_path / "audit.json"
    make(file)
    for read in (read_bytes, read_text):
        with pytest.raises(UnreadableError, match=told):
            read(file)


def test_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\x00")
    assert read_bytes(tmp_path / "a") == b"\xff\x00"


def test_a_small_file_takes_little_memory_however_much_it_might(tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    file.write_text("{}")
    tracemalloc.start()
    try:
        assert read_bytes(file) == b"{}"
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert bounds.current().memory > 2**32
