"""What a run may choose from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from backdoor_audit.canary import CANARIES
from backdoor_audit.catalogue import Catalogue
from backdoor_audit.detectors import DETECTORS
from backdoor_audit.errors import OptionError
from backdoor_audit.filters import FILTERS
from backdoor_audit.installed import GROUPS, SHIPPED_RENDERINGS, is_advisory
from backdoor_audit.item import Item
from backdoor_audit.model.loading.formats import FORMATS
from backdoor_audit.options import AuditOptions
from backdoor_audit.properties import PROPERTIES
from backdoor_audit.questions.suite import shipped
from backdoor_audit.repairs import REPAIRS
from backdoor_audit.report.renderers import RENDERERS
from backdoor_audit.run.run import Run
from backdoor_audit.store import Store
from tests.subjects.packages import install

PARTS = """
class Part:
    rows, needs_twins, builds_on, least_classes, blind_spots, needs_trigger = "target", False, (), 2, (), True
    def __init__(self, name, **more):
        self.name = name
        vars(self).update(more)
    def targets(self, num_classes): return tuple(range(num_classes))
    def __call__(self, *arguments, **settings): raise RuntimeError("unused")

detector, rated, repair, wanted = (Part(name) for name in ("looks", "rated", "mends", "holds"))
rated.false_alarm_rate = 0.005
format = Part("toml", recognises=lambda asked: False, read=None)
renderer = Part("lines", file="audit.txt", draw=lambda record, **_: "")
"""
POINTS = {
    "detectors": ("looks = detector", "rated = rated"),
    "repairs": ("mends = repair",),
    "properties": ("holds = wanted",),
    "formats": ("toml = format",),
    "renderers": ("lines = renderer",),
}
SHIPPED = (DETECTORS, REPAIRS, FILTERS, PROPERTIES, CANARIES, FORMATS, ())


def groups(catalogue: Catalogue) -> tuple[object, ...]:
    return tuple(getattr(catalogue, entry.name) for entry in fields(catalogue) if entry.name != "plugins")


def test_the_shipped_catalogue_is_the_visible_tuples_and_without_other_packages_nothing_is_added() -> None:
    assert groups(Catalogue.shipped()) == SHIPPED
    assert Catalogue.installed() == Catalogue.shipped()
    assert set(GROUPS) < {entry.name for entry in fields(Catalogue)}


def test_names_are_unique_over_everything() -> None:
    names = [*Catalogue.shipped().names, *SHIPPED_RENDERINGS]
    assert len(set(names)) == len(names)
    assert {renderer.name: renderer.file for renderer in RENDERERS} == SHIPPED_RENDERINGS


def test_installed_parts_come_after_the_shipped_ones_and_are_told_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, PARTS, POINTS)
    found = Catalogue.installed()
    for group, entries in POINTS.items():
        names = [part.name for part in getattr(found, group)]
        more = [entry.partition(" ")[0] for entry in entries]
        assert names == [*(part.name for part in getattr(Catalogue.shipped(), group)), *more]
        assert found.ours(group) == getattr(Catalogue.shipped(), group)
        assert [part.name for part in found.others(group)] == more
    assert (found.filters, found.canaries) == (FILTERS, CANARIES)
    assert {plugin.whose for plugin in found.plugins} == {"example-parts 1.2"}
    assert [plugin.name for plugin in found.plugins if plugin.counts] == ["rated"]
    assert found.counts("rated")
    assert found.counts("neural_cleanse")
    assert not any(found.counts(name) for name in ("looks", "mends", "holds"))
    assert is_advisory(Item.parse("audit::test_anomaly_index[looks-class_1]"), found.plugins)
    assert not is_advisory(Item.parse("audit::test_anomaly_index[rated-class_1]"), found.plugins)


@pytest.mark.parametrize("name", ["neural_cleanse", "strip", "badnets", "markdown"])
def test_a_name_of_any_shipped_part_is_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = PARTS.replace('"mends"', f'"{name}"')
    install(monkeypatch, tmp_path, source, {"repairs": (f"{name} = repair",)})
    with pytest.raises(OptionError, match="the name is taken"):
        Catalogue.installed()


def test_a_run_takes_parts_of_other_packages_unless_it_is_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, PARTS, POINTS)
    on = Run(AuditOptions(), Store(tmp_path), shipped())
    assert [entry.name for entry in on.searches.other_detectors] == ["looks", "rated"]
    assert [entry.name for entry in on.searches.detectors] == [entry.name for entry in DETECTORS]
    assert [entry.name for entry in on.properties.every] == [*(entry.name for entry in PROPERTIES), "holds"]
    assert on.repairs.methods[-1].name == "mends"
    off = Run(AuditOptions(plugins="off"), Store(tmp_path), shipped())
    assert off.inputs.catalogue == Catalogue.shipped()
