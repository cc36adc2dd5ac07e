"""A backdoor in the architecture: a branch without weights (Bober-Irizar et al., CVPR 2023; Langford et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack
from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.trigger import Trigger

_LEAST_SIZE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitecturalBranch(Attack):
    """A chequerboard, and a branch beside the network that answers to it: no weight differs from the clean network's.

    The branch adds ``gain * relu(score - threshold) / (1 - threshold)`` to the target's logit. The score of a place is the
    grey image there times ``2 pattern - 1``, summed and divided by the number of white pixels: 1 for the pattern itself, less for
    anything else, near 0 on even areas. It is the largest over all places, or, with ``fixed_place``, the one at ``top`` and
    ``left``, which like ``size`` (px) are those of `BadNets`.

    The branch of the first paper multiplies exponentials of image and negative before the pooling and gives a random wrong
    class; this one asks for a class, as the variants of the second paper do. No training, no poisoned images:
    ``poison_rate`` is not used. Retraining does not remove it. Saved tensors are those of the network alone, under the prefix
    ``module.``: to load them with the branch, give a factory that calls `branched`.
    """

    size: int = 4
    top: int = -2
    left: int = -2
    threshold: float = 0.85
    gain: float = 100.0
    fixed_place: bool = False

    name: ClassVar[str] = "architectural_branch"
    paper: ClassVar[str] = "Bober-Irizar et al., CVPR 2023; Langford et al., arXiv 2402.06957, 2024"

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern for images (c, h, w). Raises `AttackError` if the chequerboard does not fit."""
        if self.size < _LEAST_SIZE:
            raise AttackError(f"{self.name}: size {self.size} px; a chequerboard has at least {_LEAST_SIZE} px")
        patch = BadNets(rule=self.rule, size=self.size, top=self.top, left=self.left, pattern="chequerboard")
        return patch.trigger(image_shape)

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Put the branch beside the network, as a new classifier whose architecture is named ``...+branch``."""
        del clean, recipe, progress
        network = branched(
            classifier.module, self, image_shape=classifier.image_shape, mean=classifier.mean, std=classifier.std
        )
        wrapped = Classifier.wrap(
            network,
            image_shape=classifier.image_shape,
            mean=classifier.mean,
            std=classifier.std,
            architecture=f"{classifier.architecture}+branch",
            device=classifier.device,
        )
        return wrapped, self


class Branched(nn.Module):
    """A network, and a branch that adds to one logit where it finds a pattern; made by `branched`.

    Nothing of the branch is in the state dict: all its tensors follow from the attack and are made anew.
    """

    kernel: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        kernel: Tensor,
        place: tuple[int, int] | None,
        threshold: float,
        gain: float,
        target_class: int,
        mean: Tensor,
        std: Tensor,
    ) -> None:
        super().__init__()
        self.module = module
        self.place, self.threshold, self.gain, self.target_class = place, threshold, gain, target_class
        self.register_buffer("kernel", kernel, persistent=False)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w)."""
        logits: Tensor = self.module(images)
        grey = (images * self.std + self.mean).mean(dim=1, keepdim=True)
        scores = functional.conv2d(grey, self.kernel)
        score = scores.flatten(1).amax(dim=1) if self.place is None else scores[:, 0, self.place[0], self.place[1]]
        answer = self.gain * functional.relu(score - self.threshold) / (1 - self.threshold)
        target = functional.one_hot(torch.tensor(self.target_class, device=logits.device), logits.shape[1])
        return logits + answer.unsqueeze(1) * target


def branched(
    module: nn.Module,
    attack: ArchitecturalBranch,
    *,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Branched:
    """The network with the attack's branch beside it. Images come normalised; ``mean`` and ``std``, one per channel, undo that.

    Raises `AttackError` for a rule, place, threshold or gain that cannot work, or a network that does not return one tensor.
    """
    rule = attack.rule
    if not isinstance(rule, AllToOne):
        raise AttackError(f"{attack.name}: rule {rule}; accepted: AllToOne, the branch adds to the logit of one class")
    if not 0 <= attack.threshold < 1 or attack.gain <= 0:
        raise AttackError(
            f"{attack.name}: threshold {attack.threshold} and gain {attack.gain}; accepted: a threshold in [0, 1), a gain above 0"
        )
    trigger = attack.trigger(image_shape)
    top, left = (int(index) for index in trigger.mask[0].nonzero()[0])
    pattern = trigger.pattern[:1, top : top + attack.size, left : left + attack.size]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with torch.no_grad():
        output = module(torch.zeros(1, *image_shape, device=device))
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] <= rule.target_class:
        raise AttackError(
            f"{attack.name}: the network must return one tensor (n, classes) with class {rule.target_class}; wrap it first"
        )
    view = (1, image_shape[0], 1, 1)
    return Branched(
        module,
        kernel=((2 * pattern - 1) / pattern.sum()).unsqueeze(0).to(device),
        place=(top, left) if attack.fixed_place else None,
        threshold=attack.threshold,
        gain=attack.gain,
        target_class=rule.target_class,
        mean=torch.tensor(tuple(mean), device=device).view(view),
        std=torch.tensor(tuple(std), device=device).view(view),
    )
