"""What there is to choose from: the shipped tuples, and what installed packages add to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from backdoor_audit.canary import CANARIES, Canary
from backdoor_audit.detectors import DETECTORS, Detector
from backdoor_audit.filters import FILTERS, FilterMethod
from backdoor_audit.installed import GROUPS, SHIPPED_RENDERINGS, Plugin, loaded
from backdoor_audit.model.loading.format import Format
from backdoor_audit.model.loading.formats import FORMATS
from backdoor_audit.properties import PROPERTIES, Property
from backdoor_audit.repairs import REPAIRS, Repair


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Every part that a run may use; the shipped ones first. ``plugins`` tells which are of other packages, and of which.

    What a part of another package finds is advisory: it stands in the record, and decides nothing. A detector or a property that
    states its ``false_alarm_rate`` counts: its items are judged as ours are, so it may fail a model. In no case does it make one
    pass: nothing that speaks for a model (the comparison with twins, canaries) goes by parts of others. ``renderers`` are those
    of other packages alone: a run draws nothing, and ours stand in ``report``.
    """

    detectors: tuple[Detector, ...] = DETECTORS
    repairs: tuple[Repair, ...] = REPAIRS
    filters: tuple[FilterMethod, ...] = FILTERS
    properties: tuple[Property, ...] = PROPERTIES
    canaries: tuple[Canary, ...] = CANARIES
    formats: tuple[Format, ...] = FORMATS
    renderers: tuple[Any, ...] = ()
    plugins: tuple[Plugin, ...] = ()

    @classmethod
    def shipped(cls) -> Catalogue:
        """The parts of this package alone."""
        return cls()

    @classmethod
    def installed(cls) -> Catalogue:
        """The shipped parts and those of installed packages. Raises `OptionError` for one that cannot be used."""
        catalogue = cls.shipped()
        for group in GROUPS:
            files = list(SHIPPED_RENDERINGS.values()) if group == "renderers" else ()
            more = loaded(group, [*catalogue.names, *SHIPPED_RENDERINGS], files)
            catalogue = replace(
                catalogue,
                plugins=(*catalogue.plugins, *(plugin for plugin, _ in more)),
                **{group: (*getattr(catalogue, group), *(part for _, part in more))},
            )
        return catalogue

    @property
    def names(self) -> list[str]:
        """The name of every part."""
        groups = (*GROUPS, "filters", "canaries")
        return [part.name for group in groups for part in getattr(self, group)]

    def plugin(self, part: Any) -> Plugin | None:
        """Where a part comes from; None for a shipped one."""
        return next((plugin for plugin in self.plugins if plugin.name == part.name), None)

    def ours(self, group: str) -> tuple[Any, ...]:
        """The shipped parts of a group."""
        return tuple(part for part in getattr(self, group) if self.plugin(part) is None)

    def others(self, group: str) -> tuple[Any, ...]:
        """The parts of a group that other packages brought."""
        return tuple(part for part in getattr(self, group) if self.plugin(part) is not None)

    def counts(self, name: str) -> bool:
        """Whether the part of that name decides something: the shipped ones, and those that state their false-alarm rate."""
        return not any(plugin.name == name and not plugin.counts for plugin in self.plugins)
