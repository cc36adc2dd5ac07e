"""What an audit depends on: each of it, changed, is another audit; what is equal, is not."""

from __future__ import annotations

import inspect
import os
import re
from importlib import metadata
from pathlib import Path

import pytest
from _pytest.config import findpaths  # pytest has no public list of its files

from backdoor_audit.errors import AuditError
from backdoor_audit.fleet.depends import BEHIND, common, content, key
from backdoor_audit.fleet.models import Model
from backdoor_audit.option_texts import expanded
from tests.subjects.clean_images import image_file
from tests.subjects.fleets import write_images
from tests.subjects.packages import install

OPTIONS = ["--audit-corpus=corpus", "--audit-twins", "twins", "--audit-baseline=base.json", "@more.txt", "-p", "own"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with all that an audit may depend on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    write_images(tmp_path / "images.npz")
    for folder in ("corpus", "twins/deep", "elsewhere", "pytest-cache"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("corpus/a.json", "elsewhere/b.json", "twins/deep/c", "base.json", "more.txt"):
        (tmp_path / name).write_text("")
    return tmp_path


def settings(*options: str, data: str = "images.npz") -> str:
    return common(data, [*OPTIONS, *options], "code").settings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("corpus/a.json", "x"),
        ("corpus/new.json", ""),
        ("elsewhere/b.json", "x"),
        ("twins/deep/c", "x"),
        ("base.json", "x"),
        ("more.txt", "--audit-seed=1"),
        ("conftest.py", "x"),
        ("pytest.ini", "[pytest]"),
        ("pyproject.toml", "x = 1"),
        ("tox.ini", "[x]"),
        ("setup.cfg", "[x]"),
    ],
)
def test_what_options_name_and_the_files_of_the_project_are_part_of_it(here: Path, name: str, text: str) -> None:
    before = settings()
    assert settings() == before
    (here / name).write_text(text)
    assert settings() != before


def test_parts_of_other_packages_are_part_of_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    install(monkeypatch, here / "packages", "raise SystemExit(9)", {"repairs": ("example = repair",)})
    assert settings() != before


def test_code_of_other_packages_and_versions_of_libraries_are_part_of_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, here / "packages", "raise SystemExit(9)", {"formats": ("example = format",)})
    found = {settings()}
    (here / "packages" / "example_parts.py").write_text("raise SystemExit(8)")
    found.add(settings())
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "torchvision" else version(name))
    found.add(settings())
    assert len(found) == 3


def test_images_count_by_what_is_read_and_not_by_where(here: Path) -> None:
    before = settings()
    (here / "images.npz").rename(here / "moved.npz")
    assert settings(data="moved.npz") == before
    write_images(here / "moved.npz", 7)
    assert settings(data="moved.npz") != before


def test_pictures_that_a_table_names_elsewhere_are_part_of_it(here: Path) -> None:
    for name in "ab":
        image_file(here / "elsewhere" / f"{name}.png", (1, 0, 0))
    (here / "t.csv").write_text("path,label\nelsewhere/a.png,0\nelsewhere/b.png,1\n")
    before = settings(data="t.csv")
    image_file(here / "elsewhere" / "b.png", (2, 0, 0))
    assert settings(data="t.csv") != before


SETTINGS = {
    "pytest.toml": "[pytest]\naddopts = ['{}']\n",
    ".pytest.toml": "[pytest]\naddopts = ['{}']\n",
    "pytest.ini": "[pytest]\naddopts = -q {}\n",
    ".pytest.ini": "[pytest]\naddopts = -q {}\n",
    "pyproject.toml": "[tool.pytest.ini_options]\naddopts = ['{}']\n",
    "tox.ini": "[pytest]\naddopts = {}\n",
    "setup.cfg": "[tool:pytest]\naddopts = {}\n",
}
NATIVE = "[tool.pytest]\naddopts = ['{}']\n"


@pytest.mark.parametrize(("name", "text"), [*SETTINGS.items(), ("pyproject.toml", NATIVE)])
def test_options_in_any_of_pytests_files_and_the_files_that_they_name_are_part_of_it(
    here: Path, name: str, text: str
) -> None:
    before = settings()
    (here / name).write_text(text.format("--audit-twins=twins.safetensors"))
    found = {before, settings()}
    for weights in "ab":
        (here / "twins.safetensors").write_text(weights)
        found.add(settings())
    assert len(found) == 4


def test_the_list_of_pytests_files_is_that_of_pytest() -> None:
    """Which files these are differs between versions; one that is unknown here would leave finished audits as they are."""
    config = inspect.getsource(findpaths)
    named = re.findall(r'"(\.?(?:pytest|pyproject|tox|setup)\.(?:toml|ini|cfg))"', config)
    assert named
    assert set(named) <= set(SETTINGS)


@pytest.mark.parametrize("where", ["line", "file", "environment", *SETTINGS, "table"])
def test_images_are_read_with_the_options_of_the_gate(here: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A size that is no size is refused, wherever it stands."""
    option, line = "--audit-resize=0", []
    if where == "line":
        line = ["--resize", "0"]
    elif where == "file":
        (here / "more.txt").write_text(option)
    elif where == "environment":
        monkeypatch.setenv("PYTEST_ADDOPTS", option)
    elif where in SETTINGS:
        (here / where).write_text(SETTINGS[where].format(option))
    else:
        (here / "pyproject.toml").write_text("[tool.backdoor_audit]\nresize = 0\n")
    with pytest.raises(AuditError, match=r"resize: .*must be N, HxW or H,W"):
        settings(*line)


def test_a_config_beside_a_model_and_a_folder_of_one_are_part_of_it(here: Path) -> None:
    (here / "m").mkdir()
    (here / "m" / "a.pt").write_text("weights")
    model, folder = Model("a", here / "m" / "a.pt"), Model("m", here / "m")
    before = key(model, "s"), key(folder, "s")
    (here / "m" / "config.json").write_text("{}")
    after = key(model, "s"), key(folder, "s")
    assert not set(before) & set(after)


@pytest.mark.parametrize("end", [".data", "_data"])
@pytest.mark.parametrize("option", ["--audit-reference=m.onnx", "--audit-twins=m.onnx"])
def test_weights_beside_an_onnx_model_are_part_of_it(here: Path, option: str, end: str) -> None:
    (here / "m.onnx").write_text("graph")
    found = set()
    for text in ("", "1", "2"):
        (here / f"m.onnx{end}").write_text(text)
        found |= {key(Model("m", here / "m.onnx"), "s"), settings(option)}
    assert len(found) == 6


def test_pipes_are_not_opened_and_loops_end(here: Path) -> None:
    os.mkfifo(here / "twins" / "pipe")
    assert content(here / "twins") == content(here / "twins")
    (here / "twins" / "loop").symlink_to(here / "twins")
    with pytest.raises(OSError, match="leads back"):
        content(here / "twins")


def test_options_in_a_file_are_seen(here: Path) -> None:
    (here / "more.txt").write_text("--audit-model=x\n-q\n")
    assert expanded(["-x", "@more.txt"]) == ["-x", "--audit-model=x", "-q"]
    with pytest.raises(AuditError, match="behind --: "):
        expanded(["@gone.txt"], BEHIND)


@pytest.mark.parametrize("name", ["reference.json", "trigger.safetensors"])
def test_files_that_are_named_from_the_home_folder_count(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(here / "elsewhere"))
    (here / "pyproject.toml").write_text("[tool.backdoor_audit]\ntrigger = '~/trigger.safetensors'\n")
    (here / "elsewhere" / name).write_text("1")
    before = common("images.npz", ["--audit-reference=~/reference.json"], "code").settings
    (here / "elsewhere" / name).write_text("2")
    assert common("images.npz", ["--audit-reference=~/reference.json"], "code").settings != before
