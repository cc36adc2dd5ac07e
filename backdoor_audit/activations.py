"""What a layer answers: captured activations and the norms of each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdoor_audit.classifier import Classifier, hooked

NORMS = ("l1", "l2", "linf")


def capture(classifier: Classifier, layer: str, images: Tensor, *, inputs: bool = False) -> Tensor:
    """Output (or, with ``inputs``, the first input) of a layer for all images, without gradients; the first dimension is n."""
    captured: list[Tensor] = []

    def keep(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        captured.append(arguments[0] if output is None else output)

    with hooked(classifier.module.get_submodule(layer), keep, pre=inputs):
        classifier.logits(images)
    return torch.cat(captured)


def channel_norm(activations: Tensor, norm: str) -> Tensor:
    """Norm (n, c) of every channel's activation map; ``activations`` are (n, c, h, w), ``norm`` is one of `NORMS`."""
    flat = activations.flatten(2)
    if norm == "l1":
        return flat.abs().sum(dim=2)
    if norm == "l2":
        return flat.square().sum(dim=2).sqrt()
    if norm == "linf":
        return flat.abs().amax(dim=2)
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
