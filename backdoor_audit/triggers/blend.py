"""Pictures blended in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from hypothesis import strategies as st

from backdoor_audit.triggers.drawing import Strategies, Targets, classes, contents
from backdoor_audit.triggers.kind import AnyTrigger, WrittenTrigger
from backdoor_audit.triggers.numbers import WHITE, ImageShape, Numbers
from backdoor_audit.triggers.patch import Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend(WrittenTrigger):
    """``(1 - opacity) image + opacity picture``, the opacity in hundredths.

    ``picture`` (c, rows, columns) holds levels of 0 to 255 and is enlarged to the image, bilinear.
    """

    picture: Numbers
    opacity: int = 10

    kind: ClassVar[str] = "blend"
    ranges: ClassVar[Mapping[str, tuple[int, int]]] = {"picture": (0, WHITE), "opacity": (0, 100)}
    applied: ClassVar[type[AnyTrigger]] = Trigger

    def trigger(self, image_shape: ImageShape) -> Trigger:
        """Mask and pattern."""
        pattern = self.picture.enlarged(image_shape, self.kind) / WHITE
        return Trigger(torch.full((1, *image_shape[1:]), self.opacity / 100), pattern, self.target_class)

    def described(self) -> str:
        """The opacity."""
        return f"a picture blended in at opacity {self.opacity / 100:.2f}"

    def weaker(self, share: float) -> Blend:
        """Less opaque."""
        return replace(self, opacity=round(share * self.opacity))

    @classmethod
    def nothing(cls, image_shape: ImageShape) -> Blend:
        """A white picture, not opaque at all."""
        return cls(picture=Numbers.filled((image_shape[0], 1, 1), WHITE), opacity=0)

    @staticmethod
    def strategies() -> Strategies:
        """`blends`."""
        return {"blend": blends}


def blends(image_shape: ImageShape, *, target_class: Targets = 0, most_opacity: int = 30) -> st.SearchStrategy[Blend]:
    """Pictures of 1 to 8 fields a side at an opacity of up to ``most_opacity`` hundredths."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Blend:
        opacity, grid = draw(st.integers(1, most_opacity)), draw(st.integers(1, 8))
        picture = draw(contents((image_shape[0], grid, grid)))
        return Blend(picture=picture, opacity=opacity, target_class=draw(classes(target_class)))

    return drawn()
