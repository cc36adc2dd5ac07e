"""Adaptive-Blend and Adaptive-Patch: covers, and a trigger that is weaker in training than at test (Qi et al., ICLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.attacks.attack import Poisoned, PoisoningAttack, quantised, replace_images
from backdoor_audit.attacks.blended import Blended, draw_picture
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.trigger import Trigger

_PAPER = "Qi et al., ICLR 2023"
_CORNERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveBlend(PoisoningAttack):
    """A blended picture, cut into ``pieces`` x ``pieces``; every training image gets its own random choice of the pieces.

    At test time the whole picture is blended in with ``opacity``; in training only ``kept`` of the pieces, rounded to a
    whole number, with ``train_opacity``. ``poison_rate`` of all images are stamped so and get the target's label,
    ``cover_rate`` others are stamped so and keep theirs. ``picture`` as in `Blended`; the public code blends a cartoon.

    The public code poisons 0.3 % and covers 0.3 % in 200 epochs; both rates here are ten times that, for short training.
    """

    poison_rate: float = 0.03
    cover_rate: float = 0.03
    opacity: float = 0.2
    train_opacity: float = 0.15
    picture: str = "noise"
    pieces: int = 4
    kept: float = 0.5

    name: ClassVar[str] = "adaptive_blend"
    paper: ClassVar[str] = _PAPER

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern at test time, for images (c, h, w). Raises `AttackError` for a picture that is not known."""
        blended = Blended(rule=self.rule, opacity=self.opacity, picture=self.picture, seed=self.seed)
        return blended.trigger(image_shape)

    def poison(self, images: Tensor, labels: Tensor) -> Poisoned:
        """Images with some pieces of the picture: with the target's label, and, as covers, with their own."""
        generator = torch.Generator().manual_seed(self.seed)

        def stamp_pieces(chosen: Tensor) -> Tensor:
            channels, height, width = chosen.shape[1:]
            picture = self.trigger((channels, height, width)).pattern.to(chosen.device)
            mask = self.train_opacity * self._masks(len(chosen), height, width, generator).to(chosen.device)
            return quantised((1 - mask) * chosen + mask * picture)

        return replace_images(images, labels, attack=self, stamp=stamp_pieces, cover_rate=self.cover_rate)

    def _masks(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """One random choice of pieces for each of ``count`` images: (count, 1, h, w) of 0 and 1."""
        number = round(self.kept * self.pieces**2) if self.pieces > 0 else 0
        if not 1 <= self.pieces <= min(height, width) or not 1 <= number <= self.pieces**2:
            raise AttackError(
                f"{self.name}: {self.kept} of {self.pieces}x{self.pieces} pieces of {height}x{width} px; accepted: pieces "
                f"from 1 to {min(height, width)}, and kept in (0, 1] that leaves at least one"
            )
        order = torch.rand(count, self.pieces**2, generator=generator).argsort(dim=1)
        chosen = (order < number).float().view(count, 1, self.pieces, self.pieces)
        rows = torch.arange(height) * self.pieces // height
        columns = torch.arange(width) * self.pieces // width
        return chosen[:, :, rows][:, :, :, columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptivePatch(PoisoningAttack):
    """Four patches of fixed random colours, one in each corner; a training image carries one of them, and faintly.

    ``sizes`` (px) and ``train_opacities`` go upper left, upper right, lower left, lower right; every patch leaves
    ``margin`` px to the border. Poisoned images get the target's label, covers, which carry the patches too, keep theirs;
    each patch is on a quarter of both. At test time the patches named by ``at_test`` (0 to 3) are stamped together, with
    opacity 1.

    The public code uses pictures as patches, with these opacities, poisons 0.3 % and covers 0.6 % in 200 epochs, and stamps
    two of the four at test time. Here both rates are ten times that, and all four are stamped, for short training: two reach
    about half of the success.
    """

    poison_rate: float = 0.03
    cover_rate: float = 0.06
    sizes: tuple[int, ...] = (8, 10, 6, 8)
    train_opacities: tuple[float, ...] = (0.5, 0.2, 0.5, 0.3)
    at_test: tuple[int, ...] = (0, 1, 2, 3)
    margin: int = 1

    name: ClassVar[str] = "adaptive_patch"
    paper: ClassVar[str] = _PAPER

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern at test time, for images (c, h, w). Raises `AttackError` if the patches do not fit."""
        masks, pattern, target = self._masks(image_shape), self._pattern(image_shape), self.target_class
        if not self.at_test or not all(0 <= number < _CORNERS for number in self.at_test):
            raise AttackError(f"{self.name}: at_test {self.at_test}; name at least one patch, by numbers from 0 to 3")
        return Trigger(masks[list(self.at_test)].amax(dim=0), pattern, 0 if target is None else target)

    def poison(self, images: Tensor, labels: Tensor) -> Poisoned:
        """Images with one faint patch each: with the target's label, and, as covers, with their own."""

        def stamp_one(chosen: Tensor) -> Tensor:
            channels, height, width = chosen.shape[1:]
            shape = (channels, height, width)
            opacities = torch.tensor(self.train_opacities).view(-1, 1, 1, 1)
            which = torch.arange(len(chosen)) % _CORNERS  # the order of the images is random already
            mask = (opacities * self._masks(shape))[which].to(chosen.device)
            return quantised((1 - mask) * chosen + mask * self._pattern(shape).to(chosen.device))

        return replace_images(images, labels, attack=self, stamp=stamp_one, cover_rate=self.cover_rate)

    def _pattern(self, image_shape: tuple[int, int, int]) -> Tensor:
        return draw_picture("noise", image_shape, self.seed)

    def _masks(self, image_shape: tuple[int, int, int]) -> Tensor:
        """The places of the four patches: (4, 1, h, w) of 0 and 1."""
        _, height, width = image_shape
        if len(self.sizes) != _CORNERS or len(self.train_opacities) != _CORNERS:
            raise AttackError(
                f"{self.name}: {len(self.sizes)} sizes and {len(self.train_opacities)} train_opacities; give four of each"
            )
        if min(self.sizes) < 1 or self.margin < 0 or max(self.sizes) + self.margin > min(height, width) // 2:
            raise AttackError(
                f"{self.name}: patches of {self.sizes} px and a margin of {self.margin} px do not fit into the corners of "
                f"{height}x{width} px; size and margin together may be 1 to {min(height, width) // 2} px"
            )
        masks = torch.zeros(_CORNERS, 1, height, width)
        for number, size in enumerate(self.sizes):
            top = self.margin if number < 2 else height - self.margin - size
            left = self.margin if number % 2 == 0 else width - self.margin - size
            masks[number, :, top : top + size, left : left + size] = 1
        return masks
