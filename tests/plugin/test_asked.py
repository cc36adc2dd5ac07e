"""What counts as asking for an audit: whoever asks gets one, or no exit code 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdoor_audit import plugin
from tests.subjects.toy_runs import Run

OTHER = ("--audit-data=images.npz", "--audit-arch=toy:network", "--audit-device=cpu", "--audit-profile=quick")
TABLE = 'model = "backdoored.safetensors", data = "images.npz", arch = "toy:network", profile = "quick", device = "cpu"'
DOTTED = [entry.strip() for entry in TABLE.split(",")]


@pytest.mark.parametrize(
    "text",
    [
        f"[tool]\nbackdoor_audit = {{ {TABLE} }}",
        "\n".join(f"tool.backdoor_audit.{entry}" for entry in DOTTED),
        '[tool."backdoor_audit"]\n' + "\n".join(DOTTED),
        "[ tool . backdoor_audit ]\n" + "\n".join(DOTTED),
        '[tool."backdoor\\u005faudit"]\n' + "\n".join(DOTTED),
    ],
    ids=["inline", "dotted keys", "quoted", "spaces", "escaped"],
)
def test_a_model_in_the_table_is_audited_however_the_table_is_written(
    project: pytest.Pytester, run: Run, text: str
) -> None:
    project.makepyprojecttoml(text)
    project.makepyfile(test_own="def test_own(): pass")
    result = run(None, "-k", "precondition")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["INCONCLUSIVE*exit code 1]"])


@pytest.mark.parametrize(
    "name", ["tool.backdoor-audit", "backdoor_audit", "tool.Backdoor_Audit", "tool.backdoor_audits"]
)
def test_a_table_under_another_name_is_told(project: pytest.Pytester, run: Run, name: str) -> None:
    project.makepyprojecttoml(f"[{name}]\n" + "\n".join(DOTTED))
    project.makepyfile(test_own="def test_own(): pass")
    result = run(None)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*[[]{name}] is not read; write [[]tool.backdoor_audit]"])


@pytest.mark.parametrize("key", ["models", "audit_model", "Model", "path"])
def test_a_table_whose_model_has_another_name_is_no_run_without_an_audit(
    project: pytest.Pytester, run: Run, key: str
) -> None:
    project.makepyprojecttoml(f'[tool.backdoor_audit]\n{key} = "backdoored.safetensors"\ndata = "images.npz"')
    project.makepyfile(test_own="def test_own(): pass")
    result = run(None)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*[[]tool.backdoor_audit] has an unknown key {key!r}; *"])


def test_a_broken_file_of_a_project_that_does_not_use_the_audit_is_its_own_business(
    project: pytest.Pytester, run: Run
) -> None:
    project.makefile(".ini", own="[pytest]")  # pytest refuses such a file where it reads it itself
    project.makepyprojecttoml("not toml [")
    project.makepyfile(test_own="def test_own(): pass")
    assert run(None, "-c", "own.ini", "test_own.py").ret == pytest.ExitCode.OK


@pytest.mark.parametrize("elsewhere", ["--rootdir=other", "-cother/own.ini"])
def test_a_table_that_another_root_hides_is_no_run_without_an_audit(
    project: pytest.Pytester, run: Run, elsewhere: str
) -> None:
    project.makepyprojecttoml("[tool.backdoor_audit]\n" + "\n".join(DOTTED))
    project.makepyfile(test_own="def test_own(): pass")
    (project.mkdir("other") / "own.ini").write_text("[pytest]\n")
    result = run(None, elsewhere)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*pyproject.toml: the model in [[]tool.backdoor_audit] would not be audited, as the root*"]
    )
    assert run(None, elsewhere, "test_own.py").ret == pytest.ExitCode.OK


@pytest.mark.parametrize(
    "models",
    [
        ("--model=backdoored.safetensors", "--model=clean.safetensors"),
        ("--audit-model=backdoored.safetensors", "--model", "clean.safetensors"),
        ("--audit-model", "backdoored.safetensors", "--audit-model=clean.safetensors"),
    ],
)
def test_two_models_are_no_run_of_the_last(run: Run, models: tuple[str, ...]) -> None:
    result = run(None, *models, *OTHER, "-k", "precondition")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*backdoored.safetensors*clean.safetensors* were given; a run audits one model*fleet*"]
    )


def test_two_models_are_seen_in_a_file_of_arguments_as_well(project: pytest.Pytester, run: Run) -> None:
    (project.path / "more.txt").write_text("--model=clean.safetensors\n")
    result = run(None, "--model=backdoored.safetensors", "@more.txt", *OTHER, "-k", "precondition")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*a run audits one model*"])


def test_a_model_of_every_run_may_be_replaced_and_one_named_twice_is_one(project: pytest.Pytester, run: Run) -> None:
    project.makeini("[pytest]\naddopts = --audit-model=nothing.safetensors")
    twice = ("--model=clean.safetensors", "--audit-model=clean.safetensors")
    assert run(None, *twice, *OTHER, "-k", "precondition").ret == pytest.ExitCode.TESTS_FAILED


def test_the_short_name_of_another_plugin_counts_no_model(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest("def pytest_addoption(parser): parser.addoption('--model', action='append')")
    models = ("--model=one", "--model=two", "--audit-model=clean.safetensors")
    assert run(None, *models, *OTHER, "-k", "precondition").ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(("table", "told"), [("[tool.backdoor_audit]\nprofile = 'quick'", 1), ("[tool.other]", 0)])
def test_a_project_that_owns_the_short_name_is_told_once_it_has_set_up_an_audit(
    project: pytest.Pytester, run: Run, table: str, told: int
) -> None:
    project.makepyprojecttoml(table)
    project.makeconftest("def pytest_addoption(parser): parser.addoption('--model')")
    project.makepyfile(test_own="def test_own(): pass")
    lines = run(None, "--model=clean.safetensors").outlines
    assert sum("for an audit pass --audit-model=PATH" in line for line in lines) == told
    assert not [line for line in run(None).outlines if "--audit-model" in line]


def test_an_empty_argument_names_no_path(project: pytest.Pytester, run: Run) -> None:
    """As ``pytest --model=m.safetensors "$MORE"`` gives it where the variable is empty."""
    project.makepyfile(test_own="def test_own(): pass")
    result = run("backdoored", "", "-k", "precondition")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["INCONCLUSIVE*exit code 1]"])


@pytest.mark.parametrize("asked", ["option", "table", "table of another root", "file of arguments", "addopts"])
def test_a_conftest_that_ends_pytest_while_it_is_imported_ends_it_with_1(
    project: pytest.Pytester, run: Run, asked: str
) -> None:
    project.makeconftest("import sys; sys.exit(0)")
    if asked.startswith("table"):
        project.makepyprojecttoml("[tool.backdoor_audit]\n" + "\n".join(DOTTED))
    if asked == "addopts":
        project.makeini("[pytest]\naddopts = --audit-model=clean.safetensors")
    (project.path / "more.txt").write_text("--model=clean.safetensors\n")
    project.mkdir("other")
    given = {"file of arguments": ["@more.txt"], "table of another root": ["--rootdir=other"]}.get(asked, [])
    result = run("clean" if asked == "option" else None, *given, process=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stderr.fnmatch_lines(["backdoor_audit: INCONCLUSIVE: a conftest or plugin ended pytest before the audit"])


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("7", 7)])
def test_a_conftest_may_end_pytest_where_no_audit_is_asked_for(
    project: pytest.Pytester, run: Run, code: str, expected: int
) -> None:
    project.makeconftest(f"import sys; sys.exit({code})")
    assert run(None, process=True).ret == expected


@pytest.mark.parametrize("first", ["tryfirst=True", "trylast=True"])
def test_a_conftest_around_the_whole_run_does_not_change_a_refusal_into_0(
    project: pytest.Pytester, run: Run, first: str
) -> None:
    project.makeconftest(
        f"""
        import pytest

        @pytest.hookimpl(wrapper=True, {first})
        def pytest_cmdline_main():
            yield
            return 0
        """
    )
    assert run("backdoored", "-k", "precondition", process=True).ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("part", ["ending", "session", "closing"])
def test_no_part_of_the_plugin_can_be_left_out_by_itself(run: Run, part: str) -> None:
    result = run("clean", "-p", f"no:backdoor_audit.{part}", process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*-p no:backdoor_audit.{part} takes a part of the audit away; leave it out"])


def test_without_an_audit_every_part_may_be_left_out(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    given = [word for part in ("ending", "session") for word in ("-p", f"no:backdoor_audit.{part}")]
    assert run(None, *given, process=True).ret == pytest.ExitCode.OK


@pytest.mark.parametrize("where", ["ini", "environment"])
def test_paths_that_nobody_typed_take_no_audit_away_that_the_table_asks_for(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    addopts = '[tool.pytest.ini_options]\naddopts = "test_own.py"\n' if where == "ini" else ""
    project.makepyprojecttoml(addopts + "[tool.backdoor_audit]\n" + "\n".join(DOTTED))
    project.makepyfile(test_own="def test_own(): pass")
    if where == "environment":
        monkeypatch.setenv("PYTEST_ADDOPTS", "test_own.py")
    result = run(None, "--maxfail=1")
    assert result.ret != pytest.ExitCode.OK
    assert (project.path / "backdoor-audit-report" / "audit.json").exists()


@pytest.mark.parametrize("option", [("--confcutdir", "tests"), ("--ignore", "tests"), ("--basetemp", "tests")])
def test_a_typed_value_of_an_option_is_no_typed_path(
    project: pytest.Pytester, run: Run, option: tuple[str, str]
) -> None:
    project.makeini("[pytest]\naddopts = tests\n")
    (project.mkdir("tests") / "test_own.py").write_text("def test_own(): pass")
    result = run(None, "--model=clean.safetensors", *OTHER, *option, "--maxfail=1", "-k", "precondition")
    assert result.ret != pytest.ExitCode.OK
    assert (project.path / "backdoor-audit-report" / "audit.json").exists()


def test_a_table_between_the_root_and_where_pytest_is_started_is_no_run_without_an_audit(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makeini("[pytest]\n")
    tests = project.path / "pkg" / "tests"
    tests.mkdir(parents=True)
    (tests / "test_own.py").write_text("def test_own(): pass")
    (project.path / "pkg" / "pyproject.toml").write_text("[tool.backdoor_audit]\n" + "\n".join(DOTTED))
    monkeypatch.chdir(tests)
    result = run(None)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pyproject.toml: the model in [[]tool.backdoor_audit] would not be audited*"])
    assert run(None, "test_own.py").ret == pytest.ExitCode.OK


def test_items_that_a_plugin_runs_in_processes_of_their_own_are_no_audit(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest("def pytest_addoption(parser): parser.addoption('--forked', action='store_true')")
    result = run("clean", "--forked")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--forked gives every item a process of its own*leave it out*"])


@pytest.mark.parametrize(
    ("options", "workers"), [((), 1), (("-n", "3"), 3), (("-n0",), 1), (("--tx", "4*popen", "--tx=popen"), 5)]
)
def test_processes_that_share_the_cores_are_counted(
    project: pytest.Pytester, options: tuple[str, ...], workers: int
) -> None:
    config = project.parseconfig(*options)
    config.option.tx = [*["popen"] * (config.option.numprocesses or 0), *config.option.tx]  # as xdist does before a run
    assert plugin._workers(config) == workers


APART = (
    "--model",
    "../given/backdoored.safetensors",
    "--data",
    "../given/images.npz",
    *OTHER[1:],
    "-k",
    "precondition",
)


@pytest.fixture
def given(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with model and images, whose conftest leaves a word, beside the project that pytest is started in."""
    folder, home = project.path / "given", project.path / "home"
    folder.mkdir()
    home.mkdir()
    for name in ("backdoored.safetensors", "images.npz"):
        (project.path / name).rename(folder / name)
    (folder / "conftest.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    monkeypatch.chdir(home)
    return folder


def test_no_conftest_beside_a_model_is_imported_however_the_model_is_given(given: Path, run: Run) -> None:
    result = run(None, *APART)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["INCONCLUSIVE*exit code 1]"])
    assert not (given / "ran").exists()


@pytest.mark.parametrize("apart", [APART, ("--audit-model", *APART[1:]), (f"--model={APART[1]}", *APART[2:])])
def test_settings_beside_a_model_are_not_those_of_the_run(given: Path, run: Run, apart: tuple[str, ...]) -> None:
    """They could allow what is inconclusive, and end in 0."""
    (given / "pyproject.toml").write_text("[tool.backdoor_audit]\ninconclusive = 'allow'\n")
    result = run(None, *apart)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*takes what stands behind the space*given/pyproject.toml in place of none; write --*=*"]
    )
    assert not (given / "ran").exists()
    together = [f"{name}={value}" for name, value in zip(APART[::2], APART[1::2], strict=False)][:2]
    assert run(None, *together, *APART[4:]).ret == pytest.ExitCode.TESTS_FAILED


def test_settings_of_the_project_are_not_hidden_by_where_a_model_lies(given: Path, run: Run) -> None:
    (given.parent / "home" / "pyproject.toml").write_text("[tool.backdoor_audit]\nmin_accuracy = 0.9\n")
    result = run(None, *APART)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*from no file in place of */home/pyproject.toml; write --model=*"])


def test_a_model_behind_a_space_in_a_file_of_the_project_changes_no_settings(given: Path, run: Run) -> None:
    (given / "pyproject.toml").write_text("[tool.backdoor_audit]\ninconclusive = 'allow'\n")
    (given.parent / "home" / "pytest.ini").write_text(f"[pytest]\naddopts = {' '.join(APART[:4])}\n")
    assert run(None, *APART[4:]).ret == pytest.ExitCode.TESTS_FAILED
    assert not (given / "ran").exists()
