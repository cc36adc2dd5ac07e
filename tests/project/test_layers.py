"""Who may import whom, read from the source."""

import ast
import itertools
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import backdoor_audit

PACKAGE = Path(backdoor_audit.__file__).parent
ROOT = Path(__file__).parents[2]
NAME = PACKAGE.name

LAYERS = (
    {"bounds", "control_groups", "item", "needs", "printable", "progress", "schema_of", "source", "structure", "words"},
    {"cores", "errors", "files", "record_types"},
    {"option_texts", "presentable", "record_schema", "tensor_file"},
    {"budget", "data", "evidence", "installed", "store"},
    {"content", "model", "options", "schema", "triggers"},
    {"attacks", "baseline", "filters", "option_paths", "option_sources", "repairs", "search"},
    {"detectors", "properties", "rates", "readings"},
    {"canary"},
    {"catalogue"},
    {"run"},
    {"questions"},
    {"calibrate", "gate", "prepare", "repair", "report"},
    {"fleet", "plugin"},
    {"commands"},
    {"cli"},
)
"""From low to high. A module imports from lower layers only, or from its own package."""

MOVED = {"drawn", "metrics", "strategies", "trigger"}
"""Old names of modules, kept for one version; nothing of ours uses them."""

RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}


@dataclass(frozen=True)
class Import:
    """One imported name: ``module`` in full, ``name`` if it was ``from module import name``."""

    file: str
    line: int
    module: str
    name: str
    typing_only: bool

    def __str__(self):
        return f"{self.file}:{self.line} imports {self.module}{'.' + self.name if self.name else ''}"

    @property
    def unit(self):
        """The first part below the package: ``detectors`` of ``backdoor_audit.detectors.detection``."""
        parts = self.module.split(".")
        if parts[0] != NAME:
            return None
        if len(parts) > 1:
            return parts[1]
        return self.name if self.name in RANK else backdoor_audit._HOMES.get(self.name, "").partition(".")[0] or None


@cache
def imports_of(file):
    """Every import of a source file, those inside functions and under TYPE_CHECKING too."""
    return tuple(_imports_of(file))


def _imports_of(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    where = str(file.relative_to(file.parents[1] if file.parent == PACKAGE else ROOT))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(where, node.lineno, alias.name, "", id(node) in guarded)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}:{node.lineno} is a relative import"
            for alias in node.names:
                yield Import(where, node.lineno, node.module or "", alias.name, id(node) in guarded)


def sources(folder):
    return sorted(file for file in folder.rglob("*.py") if "audits" not in file.relative_to(folder).parts[:-1])


def unit_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = [file for file in sources(PACKAGE) if file != PACKAGE / "__init__.py" and unit_of(file) not in MOVED]


def test_the_reader_sees_imports_in_functions_and_under_type_checking(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "module.py"
    file.write_text(
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from c import d\ndef f():\n    from e import g\n"
    )
    found = {(entry.module, entry.name, entry.typing_only) for entry in imports_of(file)}
    assert found == {("a.b", "", False), ("typing", "TYPE_CHECKING", False), ("c", "d", True), ("e", "g", False)}


def test_every_module_has_its_place():
    assert {unit_of(file) for file in MODULES} == set(RANK)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_from_lower_layers_only(file):
    own = unit_of(file)
    wrong = [
        str(entry)
        for entry in imports_of(file)
        if entry.unit is not None
        and not (
            entry.typing_only and (own, entry.unit) == ("questions", "run")
        )  # a question names what it is asked of
        and entry.unit != own
        and RANK[entry.unit] >= RANK[own]
    ]
    assert wrong == []


def test_only_the_plugin_imports_pytest():
    found = {
        unit_of(file)
        for file in MODULES
        for entry in imports_of(file)
        if entry.module.split(".")[0] in {"pytest", "_pytest", "xdist", "pytest_html"}
    }
    assert found == {"plugin"}


@pytest.mark.parametrize("outside", ["fixtures", "audits", "benchmarks", "tests"])
def test_the_library_imports_nothing_that_is_not_shipped_with_it(outside):
    wrong = [
        str(entry) for file in sources(PACKAGE) for entry in imports_of(file) if entry.module.split(".")[0] == outside
    ]
    assert wrong == []


TESTS = ROOT / "tests"
FOLDERS = {"benchmarks", "cuda", "fuzz", "project", "subjects"}
"""Folders of tests that are about no folder of the package."""


@pytest.mark.parametrize("file", sources(TESTS), ids=lambda file: str(file.relative_to(TESTS)))
def test_no_test_imports_from_a_test(file):
    """What several tests share stands in ``tests/subjects/``."""
    names = [f"{entry.module}.{entry.name}" for entry in imports_of(file)]
    assert [name for name in names if name.startswith("tests.") and not name.startswith("tests.subjects")] == []


def test_tests_stand_where_what_they_test_stands():
    folders = {file.parent.relative_to(TESTS).as_posix() for file in TESTS.rglob("test_*.py")} - FOLDERS - {"."}
    assert [name for name in sorted(folders) if not (PACKAGE / name).is_dir()] == []
    assert list((TESTS / "subjects").rglob("test_*.py")) == []
    modules = {file.stem.removeprefix("test_") for file in TESTS.glob("test_*.py")} - {"contract"}  # of all parts
    assert [name for name in sorted(modules) if not (PACKAGE / f"{name}.py").is_file()] == []


@pytest.mark.parametrize("folder", ["audits", "fixtures"])
def test_audits_and_fixtures_use_public_names_only(folder):
    entries = [entry for file in sorted((ROOT / folder).glob("*.py")) for entry in imports_of(file)]
    ours = [entry for entry in entries if entry.module.split(".")[0] == NAME]
    assert ours
    wrong = [
        str(entry)
        for entry in ours
        if any(part.startswith("_") and part != "__future__" for part in (*entry.module.split("."), entry.name))
    ]
    assert wrong == []


def test_the_lazy_public_names_are_where_the_package_says():
    assert set(backdoor_audit.__all__) == set(backdoor_audit._HOMES)
    assert [name for name in backdoor_audit.__all__ if not hasattr(backdoor_audit, name)] == []
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = backdoor_audit.nothing


@pytest.mark.parametrize("module", ["errors", "evidence", "options", "report.terminal", "plugin"])
def test_what_pytest_loads_in_every_run_does_not_import_torch(module):
    """`pytest --help` in a project that has this installed must stay fast."""
    code = f"import sys, {NAME}.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_table_of_rooms_has_every_module_from_low_to_high():
    """ARCHITECTURE.md shows the same layers, some of them in one row."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = page.partition("| rooms |")[2].partition("\n\n")[0].splitlines()[2:]
    named = [re.findall(r"`(\w+)/?`", row.split("|")[1]) for row in rows]
    assert sorted(RANK) == sorted(unit for units in named for unit in units)
    ranks = [[RANK[unit] for unit in units] for units in named]
    assert all(max(lower) <= min(higher) for lower, higher in itertools.pairwise(ranks))
