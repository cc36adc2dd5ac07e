"""Entry points of other packages: what is accepted, and the one line for what is not."""

from __future__ import annotations

import hashlib
import sys
from importlib import metadata
from pathlib import Path

import pytest

from backdoor_audit import installed
from backdoor_audit.errors import OptionError
from backdoor_audit.installed import GROUPS, Plugin, contained, is_advisory, loaded, offered, plugins_of, summaries
from backdoor_audit.item import Item
from backdoor_audit.presentable import presentable
from tests.subjects.packages import install

REPAIR = """
class Repair:
    name = "example"
    needs_trigger = False
    def __call__(self, *arguments, **settings): ...

class Rated(Repair):
    false_alarm_rate = {rate}

class Renderer:
    name, file = "lines", {file!r}
    def draw(self, record, **_): ...

repair, rated, renderer, word = Repair(), Rated(), Renderer(), "a text"
"""
WELL = REPAIR.format(rate=0.01, file="audit.txt")


def plugin(**changes: object) -> Plugin:
    known = {"group": "detectors", "name": "example", "distribution": "d", "version": "1", "code": "0"}
    return Plugin(**{**known, **changes})  # type: ignore[arg-type]


def test_without_other_packages_there_is_nothing() -> None:
    assert [group for group in GROUPS if loaded(group, ())] == []


def test_a_part_keeps_its_distribution_its_version_and_the_digest_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, WELL, {"repairs": ("example = rated",), "renderers": ("lines = renderer",)})
    ((found, part),) = loaded("repairs", ())
    assert (part.name, part.needs_trigger) == ("example", False)
    code = hashlib.sha256(WELL.encode()).hexdigest()[:16]
    assert found == plugin(
        group="repairs", distribution="example-parts", version="1.2", code=code, false_alarm_rate=0.01
    )
    ((drawing, _),) = loaded("renderers", ())
    assert (drawing.file, drawing.singular, found.singular) == ("audit.txt", "renderer", "repair")


def test_the_digest_of_a_part_in_a_package_knows_what_stands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its finished work is kept by that: a helper that was corrected makes other results."""
    folder = tmp_path / "example_whole"
    folder.mkdir()
    (folder / "__init__.py").write_text("from example_whole.helper import rated\n")
    helper, codes = folder / "helper.py", []
    for more, numbers in (("", "1"), ("RATE = 1\n", "1"), ("RATE = 1\n", "2")):
        helper.write_text(WELL + more)
        (folder / "numbers.txt").write_text(numbers)
        entry = metadata.EntryPoint("example", "example_whole:rated", "backdoor_audit.repairs")
        monkeypatch.setattr(installed, "offered", lambda group, entry=entry: (entry,))
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in ("example_whole", "example_whole.helper"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        ((found, _),) = loaded("repairs", ())
        codes.append(found.code)
    assert len(set(codes)) == 3


def test_entry_points_are_listed_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "raise SystemExit(0)", {"renderers": ("lines = renderer",)})
    assert [entry.name for entry in offered("renderers")] == ["lines"]
    assert offered("repairs") == ()


@pytest.mark.parametrize(
    ("source", "entry", "said"),
    [
        ("import nothing_of_that_name", "example = repair", "cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(0)", "example = repair", "cannot be imported: SystemExit: 0"),
        (
            "import pytest\npytest.skip('no', allow_module_level=True)",
            "example = repair",
            "cannot be imported: Skipped: ",
        ),
        ("x = 1", "example = repair", "cannot be imported: AttributeError: "),
        (WELL.replace("needs_trigger =", "__repr__ ="), "example = repair", "cannot be imported: TypeError: "),
        (WELL, "example = Repair", "Repair is a class; an object of it is accepted"),
        (WELL, "example = word", "str has no name, no needs_trigger, no __call__"),
        (WELL, "other = repair", "the part is called 'example'; accepted is that of the entry point"),
        (WELL.replace('"example"', '"auto"'), "auto = repair", "the part is called 'auto'"),
        (WELL.replace('"example"', '"an-example"'), "an-example = repair", "the part is called 'an-example'"),
        (WELL.replace('"example"', '"taken"'), "taken = repair", "the name is taken"),
        (REPAIR.format(rate=5, file=""), "example = rated", "false_alarm_rate is 5; a fraction in [0, 1]"),
        (REPAIR.format(rate="float('nan')", file=""), "example = rated", "false_alarm_rate is nan"),
        (REPAIR.format(rate=True, file=""), "example = rated", "false_alarm_rate is True"),
    ],
)
def test_a_part_that_cannot_be_used_is_one_line_that_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, entry: str, said: str
) -> None:
    install(monkeypatch, tmp_path, source, {"repairs": (entry,)})
    with pytest.raises(OptionError) as caught:
        loaded("repairs", ("taken",))
    told = str(caught.value)
    name, _, thing = entry.partition(" = ")
    start = f"example-parts 1.2: entry point {name} = example_parts:{thing} of backdoor_audit.repairs: "
    assert told.startswith(start)
    assert told.removeprefix(start).startswith(said)
    assert told.endswith("; correct or uninstall that package, or pass --audit-plugins=off")
    assert "\n" not in told


@pytest.mark.parametrize("file", ["audit.json", "notes.txt", "audit.", "../audit.txt", "audit./x", "audit.TXT", None])
def test_a_renderer_writes_a_file_of_its_own_beside_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None
) -> None:
    install(monkeypatch, tmp_path, REPAIR.format(rate=0, file=file), {"renderers": ("lines = renderer",)})
    with pytest.raises(OptionError, match=r"its file is .*; accepted is a name of its own that begins with audit\."):
        loaded("renderers", (), ("audit.json",))


def test_two_packages_cannot_have_a_part_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        install(monkeypatch, tmp_path / name, WELL, {"repairs": ("example = repair",)}, name=name)
    with pytest.raises(OptionError, match=r"two 1.2: entry point example = two:repair .*: the name is taken"):
        loaded("repairs", ())


@pytest.mark.parametrize(
    ("item", "asked"),
    [
        ("audit::test_anomaly_index[example-class_7]", True),
        ("audit::test_anomaly_index[example-all_to_all]", True),
        ("audit::test_anomaly_index[example_too-class_7]", False),
        ("audit::test_property[example]", False),
        ("audit::test_precondition[example]", False),
        ("tests/test_mine.py::test_anomaly_index[example-class_7]", False),
        ("audit::test_anomaly_index", False),
    ],
)
def test_a_part_answers_the_shipped_items_of_its_kind_and_name(item: str, asked: bool) -> None:
    assert plugin().answers(Item.parse(item)) is asked
    assert is_advisory(Item.parse(item), [plugin()]) is asked
    assert not is_advisory(Item.parse(item), [plugin(false_alarm_rate=0.0)])


def test_only_detectors_and_properties_can_count() -> None:
    counting = [group for group in GROUPS if plugin(group=group, false_alarm_rate=0.01).counts]
    assert counting == ["detectors", "properties"]
    assert not any(plugin(group=group).counts for group in GROUPS)


def test_plugins_come_back_from_a_record() -> None:
    known = (plugin(), plugin(group="renderers", name="lines", file="audit.txt"), plugin(false_alarm_rate=0.5))
    assert plugins_of(presentable({"plugins": summaries(known)})) == known
    assert plugins_of({}) == ()
    assert plugins_of({"plugins": [{"name": "x", "colour": "red"}]})[0].name == "x"


@pytest.mark.parametrize(
    "error", [ValueError("two\nlines"), SystemExit(3), MemoryError("full"), pytest.fail.Exception("f")]
)
def test_what_code_of_others_raises_is_one_line(error: BaseException) -> None:
    with pytest.raises(OptionError, match=f"^theirs: {type(error).__name__}: ") as caught, contained("theirs"):
        raise error
    assert "\n" not in str(caught.value)


def test_ctrl_c_is_nobody_s_answer() -> None:
    with pytest.raises(KeyboardInterrupt), contained("theirs"):
        raise KeyboardInterrupt
