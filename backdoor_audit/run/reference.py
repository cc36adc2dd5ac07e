"""What is natural for models like the audited one: reference twins, what they show, and how far clean models go beyond them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from backdoor_audit.detectors import Compared, Detection, Natural
from backdoor_audit.errors import DataFormatError
from backdoor_audit.evidence import Limits
from backdoor_audit.model.anew import Likeness
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.kept import Kept
from backdoor_audit.search.anomaly import SteeringNull, shipped_null
from backdoor_audit.search.twin_recipe import LIBRARY, OWN_ARCHITECTURE, TwinRecipe
from backdoor_audit.search.twins import ALONE, Twins, alone
from backdoor_audit.source import code_fingerprint
from backdoor_audit.store import Packed, generator_for

Result = TypeVar("Result")

_CLOSE = (0.75, 1.5)  # of the limit: other images and random numbers move an index by about a quarter


class ReferenceTwins:
    """The `detectors.Reference` of a run. Nothing is trained or searched before it is asked for, and each thing once."""

    def __init__(self, inputs: Inputs, limits: Limits) -> None:
        self.inputs, self.limits = inputs, limits
        self._shown: Kept[Natural] = Kept()

    @cached_property
    def own_null(self) -> SteeringNull | None:
        """The user's own null distribution, if one is given. Raises `DataFormatError` for a file that is none."""
        if not self.inputs.options.reference:
            return None
        with self.inputs.reading():
            null = SteeringNull.load(Path(self.inputs.options.reference))
        if null.code != code_fingerprint():
            raise DataFormatError(
                f"{self.inputs.options.reference}: measured by another version of backdoor_audit, whose indices may mean "
                "something else; make it again with backdoor-audit calibrate"
            )
        missing = [
            entry.name
            for entry in self.inputs.catalogue.ours("detectors")
            if entry.needs_twins and entry.name not in null.fits
        ]
        if missing:
            raise DataFormatError(f"{self.inputs.options.reference}: nothing about {', '.join(missing)}; make it again")
        return null

    @cached_property
    def parts(self) -> dict[str, object]:
        """What a comparison depends on besides model and images: how indices are calibrated, and which are near the limit."""
        return {"null": self.own_null or "shipped", "limit": self.limits.anomaly_index}

    @property
    def null(self) -> SteeringNull:
        """How far clean models are steered beyond twins of this kind, by which indices are calibrated."""
        return self.own_null or shipped_null(self.twins.kind)

    @cached_property
    def twins(self) -> Twins:
        """Clean networks trained on the clean images: copies of the audited one with new weights, or else small ones of ours.

        None, with the reasons, where neither learns enough. With so few images that no search could be trusted either, nothing is
        compared; otherwise the classes of the audited network are, among themselves.
        """
        with self.inputs.once("the training of reference twins"):
            own = self._trained(OWN_ARCHITECTURE)
            if own.classifiers:
                return own
            others = self._trained(LIBRARY)
        if others.classifiers:
            return replace(others, instead=own.reason)
        reason = "; ".join(dict.fromkeys((others.reason, own.reason)))
        return replace(others, reason=reason, kind=alone(self.inputs.classifier) if self.enough else others.kind)

    def _trained(self, recipe: TwinRecipe) -> Twins:
        """Twins by one recipe, from the store if they are there."""
        like = self.inputs.classifier

        def work() -> Twins:
            mean, std = self.inputs.clean_set.normalization
            return recipe(
                self.inputs.clean_set,
                num_classes=like.num_classes,
                mean=mean,
                std=std,
                device=self.inputs.device,
                generator=generator_for(self.inputs.options.seed, "twins"),
                like=like,
                progress=self.inputs.progress,
            )

        from_file = partial(Twins.from_file, like=like, device=self.inputs.device)
        if (made := self._made(recipe, {}, from_file)) is not None:
            # such a file is not written: nothing is compared by a word of it
            if recipe is LIBRARY and not made.classifiers:
                raise DataFormatError(
                    f"{self.inputs.options.twins}: no reference networks in it; make it again with backdoor-audit references"
                )
            proven = made.proven(self.inputs.clean_set)
            return replace(proven, source=self.inputs.options.twins, kind=recipe.kind(like))
        unpack = partial(Twins.unpack, like=like, device=self.inputs.device)
        return self.inputs.store.recall(self.twin_parts(recipe), work, pack=Twins.pack, unpack=unpack)[0]

    def _made(
        self, recipe: TwinRecipe, more: Mapping[str, object], unpack: Callable[[Packed], Result]
    ) -> Result | None:
        """What a file of references holds about twins by a recipe; None without such a file, or if it holds none of these."""
        if self.inputs.references is None:
            return None
        whose = self.inputs.references.name_of(self._likeness) if recipe is OWN_ARCHITECTURE else ""
        return self.inputs.references.recall({**portable(recipe, whose), **more}, unpack)

    def at_hand(self, recipe: TwinRecipe, more: Mapping[str, object]) -> bool:
        """Whether work on twins by a recipe is in a file of references or in the store."""
        made = self._made(recipe, more, lambda packed: True)
        return made is not None or self.inputs.store.has({**self.twin_parts(recipe), **more})

    @cached_property
    def recipe(self) -> TwinRecipe:
        """The twins that are trained first: of the audited architecture, unless it is too large for that."""
        return LIBRARY if OWN_ARCHITECTURE.too_large(self.inputs.classifier) else OWN_ARCHITECTURE

    def twin_parts(self, recipe: TwinRecipe) -> dict[str, object]:
        """What twins by a recipe depend on, and what is found in them: the images, and the architecture if it is their own."""
        own = recipe is OWN_ARCHITECTURE
        code = self.inputs.code_parts if own else {}
        return {**self.inputs.data_parts, **code, **portable(recipe, self._likeness.digest if own else "")}

    @cached_property
    def _likeness(self) -> Likeness:
        return Likeness.of(self.inputs.classifier)

    def recall(
        self,
        more: Mapping[str, object],
        work: Callable[[], Result],
        *,
        pack: Callable[[Result], Packed],
        unpack: Callable[[Packed], Result],
    ) -> Result:
        """Work on the twins of this run, which must be there: from a file of references, from the store, or done now."""
        recipe = LIBRARY if self.twins.kind == "library" else OWN_ARCHITECTURE
        made = self._made(recipe, more, unpack) if self.twins.source else None
        if made is not None:
            return made
        return self.inputs.store.recall({**self.twin_parts(recipe), **more}, work, pack=pack, unpack=unpack)[0]

    @property
    def enough(self) -> bool:
        """Whether the clean images are enough to compare classes with each other, with twins or without."""
        return len(self.inputs.clean_set) >= LIBRARY.least_images

    @property
    def nothing(self) -> str:
        """Why nothing is known of clean models, not even how their classes differ from each other; empty if it is."""
        return "" if self.twins.classifiers or self.twins.kind in ALONE else self.twins.reason

    @property
    def missing(self) -> str:
        """Why detectors have nothing to compare this model with; empty if they have."""
        if self.nothing or self.null.twins == self.twins.kind:
            return self.nothing
        return (
            f"{self.inputs.options.reference} was measured beside twins of the kind {self.null.twins}, this model has twins of "
            f"the kind {self.twins.kind}; calibrate on clean models of this architecture"
        )

    def natural(self, detector: Compared, classes: Sequence[int] = ()) -> Natural | None:
        """What the twins show to a detector; None where there are none. Raises `DegenerateScoresError`.

        For ``classes`` that it names itself it is searched and kept class by class: other models will name some of them again.
        """
        if not self.twins.classifiers:
            return None
        if classes:
            return Natural.joined([self._natural(detector, (target,)) for target in classes])
        return self._natural(detector, ())

    def _natural(self, detector: Compared, classes: tuple[int, ...]) -> Natural:
        purpose = ":".join(map(str, ("twins", detector.name, *classes)))
        more = {"natural": detector, **({"classes": classes} if classes else {})}

        def work() -> Natural:
            generator = generator_for(self.inputs.options.seed, purpose)
            twins = [self.inputs.subject.of(twin) for twin in self.twins.classifiers]
            return detector.natural(twins, classes=classes, generator=generator, progress=self.inputs.progress)

        def kept() -> Natural:
            with self.inputs.once(f"the search of {detector.name} in reference twins"):
                return self.recall(more, work, pack=Natural.pack, unpack=Natural.unpack)

        return self._shown.once(purpose, kept)

    def close(self, detection: Detection) -> bool:
        """Whether some class lies so near to the limit that luck may decide it, and the search is worth doing again."""
        limit = self.limits.anomaly_index
        return any(_CLOSE[0] * limit < (score.index or 0.0) < _CLOSE[1] * limit for score in detection.scores)


def portable(recipe: TwinRecipe, whose: str) -> dict[str, object]:
    """What twins by a recipe depend on besides the images, on any machine; ``whose`` is the architecture if it is their own."""
    return {"twins": recipe, "architecture": whose}
