"""The texts: commands that exist, links that lead somewhere, pages made from the code that are those of the code."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import backdoor_audit
from backdoor_audit import Trigger, cli
from backdoor_audit.errors import AuditError
from backdoor_audit.files import tomllib
from backdoor_audit.option_sources import build_options
from backdoor_audit.options import OPTIONS
from backdoor_audit.questions.suite import shipped
from tests.subjects import row_images, row_reader
from tests.subjects.texts import (
    CI,
    DOCS,
    PAGES,
    ROOT,
    TODAYS,
    Block,
    Command,
    anchors,
    blocks,
    commands,
    inline_commands,
    links,
    name_of,
    prose,
    shell_commands,
    text_of,
)

README = ROOT / "README.md"
GENERATED = runpy.run_path(str(DOCS / "generate.py"))
LANGUAGES = {"sh", "python", "toml", "yaml", "json", "text"}
MEMBERS = {"{toctree}", "{include}", "{eval-rst}"}
PLAIN = {"ruff", "mypy", "exit", "echo", "export", "mkdir", ".", ".ci/run"}
OTHERS = {
    "--cache-show",
    "--check",
    "--cov-fail-under",
    "--forked",
    "--keep-going",
    "--lf",
    "--no-cov",
    "--stepwise",
    "--wait",
}
"""Options of other programs, and of a plugin of pytest that may be switched off."""

SWITCHES = {option.key for option in OPTIONS if option.switch}
KEYS = {name: option.key for option in OPTIONS for name in (option.flag, option.alias)}

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.fixture(scope="session")
def pytest_options(pytestconfig: pytest.Config) -> set[str]:
    """Every option that pytest takes here."""
    parser = pytestconfig._parser
    return {
        name for group in (parser._anonymous, *parser._groups) for option in group.options for name in option.names()
    }


def options_of(module: str) -> set[str]:
    """The options that a program of this repository declares, read from its source: importing it takes seconds."""
    path = ROOT / module.replace(".", "/")
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text_of(source)))


def names_in(words: tuple[str, ...]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-zA-Z]", word)]


def check_pytest(words: tuple[str, ...], known: set[str], *, whole: bool) -> None:
    """Options that exist, with values that the audit takes, and files of this repository that are there."""
    assert [name for name in names_in(words) if name not in known | OTHERS] == []
    given, limits, rest = {}, {}, list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name == "--audit-limit":
            limits.update([(value if equals else rest.pop(0)).split("=")])
        elif name in KEYS:
            assert rest or equals or KEYS[name] in SWITCHES or not whole, f"{name} has no value"
            given[KEYS[name]] = value if equals else "true" if KEYS[name] in SWITCHES else "".join(rest[:1]) or "..."
    build_options({key: value for key, value in given.items() if value != "..."}, limits, {}, ROOT)
    shipped().with_limits({name: float(value) for name, value in limits.items()})


def check_command(words: tuple[str, ...], *, whole: bool) -> None:
    """A command of ``backdoor-audit`` that exists, with arguments that it takes; ``whole`` if all that it needs is there."""
    named = {command.NAME: command for command in cli.COMMANDS}
    if words[0].startswith("-"):
        assert words == ("--help",)
        return
    parser = GENERATED["parser_of"](named[words[0]])
    if whole:
        parser.parse_args([re.sub(r"\$\w+", "1", word) for word in words[1:]])  # variables of the shell are numbers
    options = {name for action in parser._actions for name in action.option_strings}
    assert [name for name in names_in(words[1:]) if name not in options] == []


def check_module(words: tuple[str, ...]) -> None:
    """A program of this repository with options that it has, or one that is known."""
    if words[0] == "sphinx":
        assert words == ("sphinx", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
        return
    if words[0] in ("venv", "build", "backdoor_audit.schema"):
        assert len(words) <= 2
        return
    known = options_of(words[0])
    assert [name for name in names_in(words) if name not in known] == []


def check_pip(words: tuple[str, ...]) -> None:
    extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    named = re.findall(r"\[([\w,]+)\]", " ".join(words))
    assert words[0] == "install"
    assert {extra for group in named for extra in group.split(",")} <= set(extras)


def check(command: Command, known: set[str], *, whole: bool = True) -> None:
    """Raise if a command in a text is none that works."""
    words = command.words
    for word in words:
        path = word.partition("=")[2] or word
        if path.startswith(("fixtures/", "docs/", "benchmarks/")) and "_build" not in path:
            assert (ROOT / path).exists(), path
    if words[0] == "pytest":
        check_pytest(words[1:], known, whole=whole)
    elif words[0] == "backdoor-audit":
        own, _, of_gate = " ".join(words[1:]).partition(" -- ")  # what stands behind is for the gate
        check_command(tuple(own.split(" ")), whole=whole)
        check_pytest(tuple(of_gate.split()), known, whole=False)
    elif words[:2] == ("python", "-m"):
        check_module(words[2:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "pip":
        check_pip(words[1:])
    else:
        assert words[0] in PLAIN, f"{words[0]}: say in this test how it is checked"


@every_page
def test_every_block_of_code_says_its_language(page: Path) -> None:
    assert [str(block) for block in blocks(page) if block.language.split(" ")[0] not in LANGUAGES | MEMBERS] == []


@pytest.mark.parametrize("command", [command for page in PAGES for command in shell_commands(page)], ids=str)
def test_a_command_in_a_block_is_one_that_works(command: Command, pytest_options: set[str]) -> None:
    check(command, pytest_options)


@pytest.mark.parametrize("page", [page for page in TODAYS if inline_commands(page)], ids=name_of)
def test_commands_in_the_running_text_exist(page: Path, pytest_options: set[str]) -> None:
    for command in inline_commands(page):
        check(command, pytest_options, whole=False)


@pytest.mark.parametrize(
    "line",
    [
        "pytest --modle=m.safetensors",
        "pytest --model=m.safetensors --audit-profile=fast",
        "pytest --model=m --data=images/ --audit-limit anomaly=2",
        "pytest --model=fixtures/models/none.safetensors",
        "backdoor-audit repair m.safetensors --data images/",
        "backdoor-audit mend m.safetensors",
        "backdoor-audit compare a.json b.json --outt page.html",
        "python -m benchmarks.zoo build --rooot DIR",
        "python -m benchmarks.nothing",
        "pip install -e '.[none]'",
        "curl example",
        "pip install . && pytest --modle=m",
        "pytest --data=images/ --model",
    ],
)
def test_a_command_that_does_not_work_is_found(line: str, pytest_options: set[str]) -> None:
    *_, command = commands("here", line)
    with pytest.raises((AssertionError, AuditError, KeyError, OSError, SystemExit)):
        check(command, pytest_options)


def test_lines_of_shell_are_taken_apart() -> None:
    script = 'code=0\nfor m in models/*; do\n  A=1 pytest --model="$m" \\\n  -q || code=1\ndone # all\nexit $code'
    assert [command.words for command in commands("", script)] == [("pytest", "--model=$m", "-q"), ("exit", "$code")]


def test_what_is_quick_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    quick = {
        command.words[1:] for page in PAGES for command in shell_commands(page) if command.words[1:] == ("attacks",)
    }
    assert [cli.main(words) for words in quick] == [0]
    assert "badnets" in capsys.readouterr().out


def test_ci_runs_what_contributors_are_told_to_run() -> None:
    told = {command.words for command in shell_commands(ROOT / "CONTRIBUTING.md") if "ruff" in command.words}
    lines = re.findall(r"^(?:ruff|mypy|pytest|python)\b.*(?<!\\)$", CI, re.MULTILINE)
    ran = [command.words for line in lines for command in commands("", line)]
    assert len(told) == 2
    assert told <= set(ran)
    assert ("mypy",) in ran
    assert any(words[0] == "pytest" and words[-2:] == ("-n", "2") for words in ran)
    assert any(words[:6] == ("python", "-m", "sphinx", "-W", "--keep-going", "-b") for words in ran)


@pytest.mark.parametrize("page", TODAYS, ids=name_of)
def test_every_option_in_a_text_exists(page: Path, pytest_options: set[str]) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", prose(page)))
    known = pytest_options | OTHERS | command_options()
    assert named - known - {name for module in modules_in(page) for name in options_of(module)} == set()


def command_options() -> set[str]:
    parsers = [GENERATED["parser_of"](command) for command in cli.COMMANDS]
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


def modules_in(page: Path) -> list[str]:
    return sorted(
        {
            command.words[2]
            for command in inline_commands(page)
            if command.words[2:3] and "benchmarks." in command.words[2]
        }
    )


@every_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_a_link_of_the_site_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<a href="other.html#here">1</a><a href="#top">2</a><img src="no.png"><a href="https://x">3</a>'
    )
    (tmp_path / "other.html").write_text('<p id="here"></p><a href="index.html">4</a><a href="gone.html">5</a>')
    found = runpy.run_path(str(DOCS / "check_links.py"))["broken"](tmp_path)
    assert found == ["index.html: #top", "index.html: no.png", "other.html: gone.html"]


@pytest.mark.parametrize("name", GENERATED["PAGES"])
def test_a_page_made_from_the_code_is_that_of_the_code(name: str) -> None:
    assert text_of(DOCS / "reference" / name) == GENERATED["PAGES"][name](), "run: python docs/generate.py"


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page) if block.language in ("python", "toml", "json")],
    ids=str,
)
def test_samples_are_valid_and_name_what_exists(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        table = tomllib.loads(block.text)
        if table.keys() != {"build-system", "project", "tool"}:  # that of a package
            shipped().with_limits(build_options({}, {}, table["tool"]["backdoor_audit"], ROOT).limits)
    else:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("backdoor_audit"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize(("classes", "verdict"), [(8, "pass"), (10, "fail")])
def test_the_audit_that_is_shown_as_ones_own_works(classes: int, verdict: str) -> None:
    """Of ten rows the sample brightens the last two: nothing to a network that reads eight, a class to one that reads all."""
    block = next(block for block in blocks(DOCS / "how-to" / "own-audits.md") if block.language == "python")
    scope: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), scope)
    findings: list[Any] = []
    subject, clean = row_reader(classes=classes, size=10), row_images(classes=8, per_class=4, size=10)
    scope["test_our_watermark_decides_nothing"](subject, clean, str, findings.append)
    assert [finding.verdict.value for finding in findings] == [verdict]


def test_the_filter_that_is_shown_rejects_what_carries_the_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample, and what it fitted, on stamped images and on clean ones."""
    monkeypatch.chdir(ROOT)
    block = next(block for block in blocks(DOCS / "how-to" / "filter.md") if block.language == "python")
    scope: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), scope)
    assert scope["rejected"].shape == scope["answers"].shape
    clean = scope["clean"].images[scope["clean"].labels != 7][:100]
    stamped = Trigger.load(ROOT / "fixtures" / "models" / "badnets.trigger.safetensors").stamp(clean)
    rejected = [float(scope["fitted"].suspicious(images).float().mean()) for images in (clean, stamped)]
    assert rejected[0] < 0.1
    assert rejected[1] > 0.9


def test_the_readme_is_short_and_its_picture_small() -> None:
    assert len(text_of(README).splitlines()) <= 150
    picture = DOCS / "page.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000


def test_every_page_is_in_the_index() -> None:
    listed = {line.strip() for block in blocks(DOCS / "index.md") for line in block.text.splitlines()}
    pages = {file.relative_to(DOCS).with_suffix("").as_posix() for file in PAGES if DOCS in file.parents}
    assert pages - {"index"} <= listed


def names(module: str, attribute: str) -> list[str]:
    return [
        getattr(entry, "name", None) or getattr(entry, "__name__", entry)
        for entry in getattr(importlib.import_module(f"backdoor_audit.{module}"), attribute)
    ]


@pytest.mark.parametrize(
    ("page", "module", "attribute"),
    [
        ("reference/inputs.md", "model.loading", "NORMALIZATIONS"),
        ("reference/inputs.md", "model.networks", "NETWORKS"),
        ("reference/items.md", "properties", "PROPERTIES"),
        ("reference/attacks.md", "attacks", "ATTACKS"),
        ("faq.md", "run.preconditions", "PRECONDITIONS"),
        ("detection.md", "detectors", "DETECTORS"),
        ("how-to/canary.md", "canary", "CANARIES"),
        ("explanation/repairs.md", "repairs", "REPAIRS"),
    ],
)
def test_a_page_leaves_none_of_its_kind_out(page: str, module: str, attribute: str) -> None:
    assert [
        name for name in names(module, attribute) if not re.search(rf"[`\[]{name}[`\]]", text_of(DOCS / page))
    ] == []


def test_the_items_page_names_every_shipped_audit() -> None:
    found = [
        name
        for file in (ROOT / "audits").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", text_of(file), re.M)
    ]
    assert len(found) > 8
    assert [name for name in found if f"`{name}[" not in text_of(DOCS / "reference" / "items.md")] == []


def test_pages_say_how_many_preconditions_are_asked() -> None:
    count = len(names("run.preconditions", "PRECONDITIONS"))
    assert f"`test_precondition[...]` ({count})" in text_of(DOCS / "reference" / "items.md")
    assert f"\nasks {count} items whether this model can be judged" in text_of(DOCS / "tutorials" / "own-model.md")


def test_the_items_page_says_how_many_repairs_only_the_thorough_profile_tries() -> None:
    repairs = importlib.import_module("backdoor_audit.repairs").REPAIRS
    more = [entry for entry in repairs if not entry.needs_trigger]
    assert f"`--audit-profile=thorough` {len(more)} more)" in text_of(DOCS / "reference" / "items.md")


def test_the_python_page_names_every_public_name() -> None:
    page = text_of(DOCS / "reference" / "python.md")
    assert [name for name in backdoor_audit.__all__ if f":: backdoor_audit.{name}\n" not in page] == []
