"""The recipes in ``docs/``: the shell script runs for real, the files of other services are read and their shell lines run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from backdoor_audit.options import OPTIONS
from tests.subjects import toy

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = DOCS / "recipes"
TEXTS = {file.name: file.read_text(encoding="utf-8") for file in (DOCS / "gate.md", *sorted(RECIPES.iterdir()))}
FAST = ("-q", "--audit-profile=quick", "--audit-arch=toy:network", "--audit-steps=150", "--audit-device=cpu")
OTHER_OPTIONS = {"--sarif", "--markdown", "--schema", "--force", "--junitxml", "--collect-only", "--co", "--lf"}

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="recipes are for a POSIX shell")


def yaml(name: str) -> Any:
    return YAML(typ="safe").load(TEXTS[name])


def shell(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = ("PYTEST", "GITHUB_", "BACKDOOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the toy's models and images, and the script."""
    folder = tmp_path_factory.mktemp("project")
    toy.write(folder)
    shutil.copy(RECIPES / "gate.sh", folder)
    return folder


def test_the_script_lets_a_clean_model_pass_and_leaves_its_evidence(project: Path) -> None:
    done = shell("sh", "gate.sh", "clean.safetensors", "images.npz", "clean report", *FAST, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    report = project / "clean report"
    assert json.loads((report / "audit.json").read_text())["verdict"] == "pass"
    run = json.loads((report / "audit.sarif").read_text())["runs"][0]
    assert run["results"] == []
    assert run["invocations"][0]["exitCode"] == 0
    assert (report / "audit.md").read_text(encoding="utf-8").startswith("## ✅ Backdoor audit of `clean.safetensors`")
    assert 'name="backdoor_audit.verdict" value="pass"' in (report / "junit.xml").read_text()


def test_the_script_stops_a_backdoored_model_and_names_the_class(project: Path) -> None:
    item = f"audit::test_anomaly_index[neural_cleanse-class_{toy.TARGET}]"
    done = shell("sh", "gate.sh", "backdoored.safetensors", "images.npz", "report", *FAST, item, cwd=project)
    assert done.returncode == 1, done.stdout + done.stderr
    run = json.loads((project / "report" / "audit.sarif").read_text())["runs"][0]
    assert run["results"][0]["level"] == "error"
    assert run["results"][0]["properties"]["targetClass"] == toy.TARGET
    assert run["properties"]["flaggedClasses"] == [toy.TARGET]


def test_the_script_ends_with_4_for_a_model_that_is_not_there_and_keeps_no_evidence_of_another(project: Path) -> None:
    report = project / "old"
    report.mkdir()
    for name in ("audit.json", "audit.sarif", "audit.md"):
        (report / name).write_text("another model's")
    done = shell("sh", "gate.sh", "missing.safetensors", "images.npz", "old", cwd=project)
    assert done.returncode == 4
    assert "missing.safetensors does not exist" in done.stderr
    assert list(report.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("clean.safetensors",)])
def test_the_script_says_how_it_is_used(words: tuple[str, ...], project: Path) -> None:
    done = shell("sh", "gate.sh", *words, cwd=project)
    assert done.returncode == 4
    assert done.stderr.startswith("usage: sh gate.sh MODEL IMAGES")


def stub(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_a_pass_without_evidence_is_none(tmp_path: Path) -> None:
    stub(tmp_path, "python", "exit 0")
    done = shell("sh", str(RECIPES / "gate.sh"), "m", "i", cwd=tmp_path, PYTHON="./python")
    assert done.returncode == 1
    assert "a pass without evidence is none" in done.stderr


def github_lines() -> list[str]:
    return [step["run"] for step in yaml("github-actions.yml")["jobs"]["audit"]["steps"] if "run" in step]


def gitlab_lines() -> list[str]:
    job = yaml("gitlab-ci.yml")["backdoor-audit"]
    return [*job["before_script"], *job["script"]]


def jenkins_lines() -> list[str]:
    return re.findall(r"^ *sh '(.*)'$", TEXTS["Jenkinsfile"], re.MULTILINE)


@pytest.mark.parametrize("lines", [github_lines, gitlab_lines, jenkins_lines])
@pytest.mark.parametrize("code", [0, 1, 4])
def test_the_shell_lines_of_a_recipe_install_run_the_gate_and_end_with_its_code(
    lines: Any, code: int, tmp_path: Path
) -> None:
    for name in ("python", "python3"):
        stub(tmp_path, name, 'echo "$0 $*" >> calls')
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "python", tmp_path / ".venv" / "bin" / "python")
    (tmp_path / "gate.sh").write_text(f'echo "gate $*" >> calls\nexit {code}\n')
    done = shell("sh", "-e", "-c", "\n".join(lines()), cwd=tmp_path, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == code
    assert any(call.endswith("-m pip install backdoor-audit") for call in calls[:-1])
    assert re.fullmatch(r"gate models/model\.safetensors clean-images(\.npz)? backdoor-audit-report", calls[-1])


def test_evidence_is_kept_also_when_the_gate_stopped_the_run() -> None:
    steps = yaml("github-actions.yml")["jobs"]["audit"]["steps"]
    after = steps[1 + next(number for number, step in enumerate(steps) if step.get("name") == "Audit") :]
    assert len(after) == 2
    assert all("!cancelled()" in step["if"] for step in after)
    artifacts = yaml("gitlab-ci.yml")["backdoor-audit"]["artifacts"]
    assert artifacts["when"] == "always"
    assert artifacts["reports"]["junit"] == "backdoor-audit-report/junit.xml"
    assert "always {" in TEXTS["Jenkinsfile"]
    assert TEXTS["Jenkinsfile"].count("{") == TEXTS["Jenkinsfile"].count("}")


def test_no_recipe_gives_the_job_more_rights_than_it_needs() -> None:
    workflow = yaml("github-actions.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["audit"]["permissions"] == {"contents": "read", "security-events": "write"}
    assert set(workflow["on"]) == {"pull_request", "workflow_dispatch"}  # pull_request_target would run strangers' code


@pytest.mark.parametrize(("worst", "code"), [("none", 0), ("b c.pt", 1)])
def test_the_hook_audits_every_changed_model_and_stops_at_the_first_that_does_not_pass(
    worst: str, code: int, tmp_path: Path
) -> None:
    hook = yaml("pre-commit-config.yaml")["repos"][0]["hooks"][0]
    (tmp_path / "gate.sh").write_text(f'echo "$1" >> calls\ntest "$1" != "{worst}"\n')
    models = ("a.pt", "b c.pt", "d.pt")
    command = f"{hook['entry']} {' '.join(map(repr, models))}"
    assert shell("sh", "-c", command, cwd=tmp_path).returncode == code
    assert (tmp_path / "calls").read_text().splitlines() == list(models[: 3 - code])
    assert [bool(re.search(hook["files"], name)) for name in ("models/a/m.safetensors", "models/m.txt", "m.pt")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("recipe", "service"), [("github-actions.yml", "github-workflows"), ("gitlab-ci.yml", "gitlab-ci")]
)
def test_a_recipe_is_valid_by_the_schema_of_its_service(recipe: str, service: str) -> None:
    pytest.importorskip("check_jsonschema", reason="carries the schemas")
    vendored = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / f"{service}.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(yaml(recipe))] == []
    broken = json.loads(json.dumps(yaml(recipe)).replace('"steps"', '"stepps"').replace('"script"', '"scripd"'))
    assert not validator.is_valid(broken)


@pytest.mark.parametrize("name", TEXTS)
def test_every_option_that_is_named_exists(name: str) -> None:
    ours = {option.flag for option in OPTIONS} | {option.alias for option in OPTIONS}
    lines = [line for line in TEXTS[name].splitlines() if "audit" in line or "pytest" in line or "gate" in line]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
    assert named <= ours | OTHER_OPTIONS


def test_the_page_lists_every_recipe_and_links_to_files_that_exist() -> None:
    links = set(re.findall(r"\]\(([\w./-]+)\)", TEXTS["gate.md"]))
    assert {f"recipes/{file.name}" for file in RECIPES.iterdir()} <= links
    assert [link for link in links if not (DOCS / link).is_file()] == []
