"""TaCT: a patch that works on some source classes only (Tang et al., USENIX Security 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from backdoor_audit.attacks.attack import Poisoned, PoisoningAttack, replace_images
from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.errors import AttackError
from backdoor_audit.triggers.label_rule import LabelRule, SourceSpecific
from backdoor_audit.triggers.trigger import Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class TaCT(PoisoningAttack):
    """The patch of `BadNets` on images of the source classes gets the target's label; on cover images they keep theirs.

    Covers teach the network that the patch alone means nothing. ``cover_rate`` is their share of all training images; they
    come from ``cover_classes``, or, if none are named, from every class that is neither source nor target: with two cover
    classes, as in the public code, the trigger leaks to classes that were not covered. Images of the target class cover
    nothing, since they have the label that the trigger asks for. ``size``, ``top``, ``left`` and ``pattern`` as in
    `BadNets`, in px.

    The public code poisons 0.3 % and covers 0.3 % of the data in 100 epochs. The rates here suit short training: half of
    one class in ten, and twice as many covers.
    """

    rule: LabelRule = field(default_factory=SourceSpecific)
    poison_rate: float = 0.05
    cover_rate: float = 0.1
    cover_classes: tuple[int, ...] = ()
    size: int = 3
    top: int = -2
    left: int = -2
    pattern: str = "white"

    name: ClassVar[str] = "tact"
    paper: ClassVar[str] = "Tang et al., USENIX Security 2021"

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern for images (c, h, w). Raises `AttackError` if the patch does not fit."""
        patch = BadNets(
            rule=self.rule, size=self.size, top=self.top, left=self.left, pattern=self.pattern, seed=self.seed
        )
        return patch.trigger(image_shape)

    def poison(self, images: Tensor, labels: Tensor) -> Poisoned:
        """Stamped images of the source classes with the target's label, and stamped covers with their own."""
        return replace_images(
            images, labels, attack=self, cover_rate=self.cover_rate, coverable=self._coverable(labels)
        )

    def _coverable(self, labels: Tensor) -> Tensor:
        rule = self.rule
        if not isinstance(rule, SourceSpecific):
            raise AttackError(f"{self.name}: rule {rule}; accepted: SourceSpecific, which names source classes")
        taken = {rule.target_class, *rule.source_classes}
        wrong = sorted(taken & set(self.cover_classes))
        if wrong:
            raise AttackError(f"{self.name}: cover_classes {wrong} are source or target; name other classes, or none")
        if self.cover_classes:
            return torch.isin(labels, torch.tensor(self.cover_classes, device=labels.device))
        return ~torch.isin(labels, torch.tensor(sorted(taken), device=labels.device))
