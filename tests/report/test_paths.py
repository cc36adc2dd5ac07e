"""Paths that may be shown."""

from __future__ import annotations

import pytest

from backdoor_audit.report.paths import shown_command, shown_path, without_folders
from tests.subjects.records import record


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("models/m.safetensors", "models/m.safetensors"),
        ("./m.safetensors", "m.safetensors"),
        ("/home/ann/secret/m.safetensors", "m.safetensors"),
        ("/home/ann/images/", "images"),
        ("../other/m.safetensors", "m.safetensors"),
        ("a/../../m.safetensors", "m.safetensors"),
        ("~/m.safetensors", "m.safetensors"),
        (r"C:\Users\ann\m.safetensors", "m.safetensors"),
        ("torchvision:CIFAR10?root=/home/ann&train=false", "torchvision:CIFAR10?root=DIR&train=false"),
        ("Sequential", "Sequential"),
        ("", ""),
    ],
)
def test_a_path_outside_the_folder_of_the_run_keeps_its_last_part_alone(path: str, shown: str) -> None:
    assert shown_path(path) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/m.pt: no header", "m.pt: no header"),
        ("file '/home/ann/a.py', line 3", "file 'a.py', line 3"),
        (r"C:\Users\ann\m.pt cannot be read", "m.pt cannot be read"),
        ("3/4 of images and/or models/m.pt", "3/4 of images and/or models/m.pt"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_absolute_paths_in_a_sentence_lose_their_folders(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_the_shown_command_names_files_without_folders() -> None:
    settings = {"model": "/home/ann/m.safetensors", "data": "/home/ann/my images", "seed": 3}
    assert shown_command(record(settings=settings)) == "pytest --model=m.safetensors '--data=my images' --audit-seed=3"


def test_there_is_no_command_for_a_module_that_was_handed_over() -> None:
    assert shown_command(record(settings={"data": "images"})) == ""
