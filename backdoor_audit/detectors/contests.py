"""Who gets a whole search where there are many classes: finalists that something cheaper names, and controls by lot."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from backdoor_audit.detectors import sources
from backdoor_audit.detectors.detector import Cost, ImageShape
from backdoor_audit.detectors.field import Field
from backdoor_audit.model.subject import Subject
from backdoor_audit.search import anomaly
from backdoor_audit.search.goals import Goal, goals
from backdoor_audit.search.goals import sources as away_from_each
from backdoor_audit.search.racing import Race
from backdoor_audit.search.scanning import PatchScan
from backdoor_audit.search.steered import Steered
from backdoor_audit.search.steering import Steering

Probe = Steering | PatchScan

Search = Callable[[Probe, Sequence[int]], Steered]
"""What a probe reaches for these classes of the audited model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest(ABC):
    """A probe that is asked for every class, or, with more classes than ``race`` allows, for those of a race."""

    probe: Probe
    race: Race

    @abstractmethod
    def goals(self, classes: int) -> tuple[Goal, ...]:
        """What is steered for, class by class."""

    @abstractmethod
    def cost(self, image_shape: ImageShape, classes: int, images: int) -> Cost:
        """Of all that is searched; images are taken to be spread evenly over the classes."""

    @abstractmethod
    def among(self, subject: Subject) -> list[int] | None:
        """The classes that can be asked for in a race; None for all."""

    @abstractmethod
    def named(
        self, subject: Subject, controls: Sequence[int], search: Search, generator: torch.Generator, *, progress: bool
    ) -> Field:
        """Who goes on beside the controls."""

    @abstractmethod
    def together(self, finalists: Sequence[int]) -> list[Sequence[int]]:
        """Finalists that are searched at once."""

    def common(self, subject: Subject) -> tuple[int, ...]:
        """The classes that every model with these images is asked for: all of them, or the controls of a race.

        None if there are too few with images of their own for a comparison.
        """
        classes = subject.num_classes
        if not self.race.runs(classes):
            return tuple(range(classes))
        among = self.among(subject)
        enough = among is None or len(among) >= anomaly.MIN_CLASSES
        return self.race.controls_of(subject.lot, among) if enough else ()

    def field(
        self,
        subject: Subject,
        common: Sequence[int],
        before: Sequence[int],
        search: Search,
        generator: torch.Generator,
        *,
        progress: bool,
    ) -> tuple[Field, tuple[int, ...]]:
        """Who else goes on, and further controls: those named now, or those that an earlier search was about."""
        classes = subject.num_classes
        if not self.race.runs(classes):
            return Field(), ()
        if not before:
            return self.named(subject, common, search, generator, progress=progress), ()
        again = [target for target in before if target not in common]
        places = self.race.places(classes)[0]
        runners = Field(classes=classes, finalists=tuple(sorted(again[:places])), controls=len(common))
        return runners, tuple(sorted(again[places:]))

    def further(self, subject: Subject, searched: Sequence[int]) -> tuple[int, ...]:
        """As many controls again."""
        return self.race.further(subject.lot, searched, self.among(subject))


class ToEach(Contest):
    """To every class; a screening that asks for *whichever* class names the finalists."""

    __slots__ = ()

    def goals(self, classes: int) -> tuple[Goal, ...]:
        """One for every class."""
        return goals(classes)

    def cost(self, image_shape: ImageShape, classes: int, images: int) -> Cost:
        """Of one probe for every class, or for those of a race, and the screening."""
        most = images - images // classes
        each = self.probe.passes(image_shape, measured=min(self.probe.measured, most), most=most)
        if not self.race.runs(classes):
            return Cost(classes * each)
        searched = sum(self.race.places(classes)) * each
        screening = self.probe.passes_of_screening(image_shape, rounds=self._rounds(classes), images=images)
        return Cost(searched + screening, in_twin=searched)

    def among(self, subject: Subject) -> list[int] | None:
        """All."""
        del subject
        return None

    def named(
        self, subject: Subject, controls: Sequence[int], search: Search, generator: torch.Generator, *, progress: bool
    ) -> Field:
        """Those that a screening names."""
        del controls, search
        shown = self.probe.screened(
            subject.classifier,
            subject.search_set,
            subject.held_out,
            rounds=self._rounds(subject.num_classes),
            generator=generator,
            progress=progress,
        )
        return Field.of(shown, self.race, subject.lot)

    def together(self, finalists: Sequence[int]) -> list[Sequence[int]]:
        """All of them."""
        return [finalists] if finalists else []

    def _rounds(self, classes: int) -> int:
        """Of a screening: more where more classes go on."""
        return math.ceil(self.race.places(classes)[0] / 2)


class FromEach(Contest):
    """Away from every class with images of its own; a hasty look at some of them names the finalists: see `sources`."""

    __slots__ = ()

    def goals(self, classes: int) -> tuple[Goal, ...]:
        """One for every class."""
        return away_from_each(classes)

    def cost(self, image_shape: ImageShape, classes: int, images: int) -> Cost:
        """Of one probe for every class, or for those of a race, and the hasty look."""
        most = images // classes
        each = self.probe.passes(image_shape, measured=min(self.probe.measured, most), most=most)
        if not self.race.runs(classes):
            return Cost(classes * each)
        if most < sources.FEWEST:
            return Cost(0.0)
        searched = sum(self.race.places(classes)) * each
        looked_at = min(classes, sources.LOOKED_AT) - self.race.places(classes)[1]
        look = self._hasty.passes(image_shape, measured=sources.FEWEST, most=sources.FEWEST)
        return Cost(searched + looked_at * look, in_twin=searched)

    def among(self, subject: Subject) -> list[int] | None:
        """Those with images."""
        return sources.with_images(subject)

    def named(
        self, subject: Subject, controls: Sequence[int], search: Search, generator: torch.Generator, *, progress: bool
    ) -> Field:
        """Those that images left most easily."""
        del generator, progress
        asked, left = sources.looked_at(subject, controls)
        margins, success = torch.full((subject.num_classes,), -torch.inf), torch.zeros(subject.num_classes)
        passes = 0
        if asked:
            look = search(self._hasty, asked)
            margins[asked], success[asked], passes = look.margins, look.success, look.image_passes
        finalists = self.race.finalists_of(margins, controls, asked)
        shown = {
            target: (float(margins[target]), float(success[target])) for target in asked if target not in finalists
        }
        return replace(sources.field(subject, finalists, controls, left), screened=shown, image_passes=passes)

    def together(self, finalists: Sequence[int]) -> list[Sequence[int]]:
        """Each alone, for the poorest of several sets the images of all."""
        return [[target] for target in finalists]

    @property
    def _hasty(self) -> PatchScan:
        assert isinstance(self.probe, PatchScan)
        return self.probe.hasty(sources.FEWEST)
