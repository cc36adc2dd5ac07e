"""Sine waves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from hypothesis import strategies as st

from backdoor_audit.triggers.addition import Addition
from backdoor_audit.triggers.drawing import Strategies, Targets, classes
from backdoor_audit.triggers.kind import AnyTrigger, WrittenTrigger
from backdoor_audit.triggers.numbers import WHITE, ImageShape
from backdoor_audit.triggers.waves import sine


@dataclass(frozen=True, slots=True, kw_only=True)
class Sinusoid(WrittenTrigger):
    """A sine wave added to every image: ``amplitude`` in levels, ``half_periods`` across the image (Barni et al., ICIP 2019).

    It runs along the rows, or ``down`` the columns.
    """

    amplitude: int
    half_periods: int = 12
    down: bool = False

    kind: ClassVar[str] = "sinusoid"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"amplitude": (0, WHITE), "half_periods": (1, 2**10)}
    applied: ClassVar[type[AnyTrigger]] = Addition

    def trigger(self, image_shape: ImageShape) -> Addition:
        """The addition."""
        _, height, width = image_shape
        wave = sine(height if self.down else width, amplitude=WHITE, frequency=self.half_periods / 2)
        wave = self.amplitude / WHITE * (wave.view(-1, 1) if self.down else wave)
        return Addition(wave.expand(image_shape).clone(), self.target_class)

    def described(self) -> str:
        """Amplitude and period."""
        way = "down" if self.down else "across"
        return f"a sine wave of {self.amplitude} of 255 levels, {self.half_periods / 2:g} periods {way}"

    def weaker(self, share: float) -> Sinusoid:
        """Of a smaller amplitude."""
        return replace(self, amplitude=round(share * self.amplitude))

    @classmethod
    def nothing(cls, image_shape: ImageShape) -> None:
        """None: it adds nothing, as a change of no levels does."""
        del image_shape

    @staticmethod
    def strategies() -> Strategies:
        """`sinusoids`."""
        return {"sinusoid": sinusoids}


def sinusoids(
    image_shape: ImageShape, *, target_class: Targets = 0, most_amplitude: int = 40
) -> st.SearchStrategy[Sinusoid]:
    """Waves of up to ``most_amplitude`` levels (40 in the paper) and any period of 2 px and more, along or down."""
    most = min(image_shape[1:])
    return st.builds(
        Sinusoid,
        amplitude=st.integers(1, most_amplitude),
        half_periods=st.integers(1, most),
        down=st.booleans(),
        target_class=classes(target_class),
    )
