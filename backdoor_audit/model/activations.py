"""What a layer answers: captured activations, the norms of each channel, and how far a trigger shifts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from backdoor_audit.model.classifier import Classifier, hooked

NORMS = ("l1", "l2", "linf")
GROUPS = ("clean", "synthetic", "known", "both")
"""Inputs that Cheng et al. (arXiv 2002.12162) compare: without a trigger, with the one found, with the attacker's, with both."""

Stamp = Callable[[Tensor], Tensor]


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


def input_groups(images: Tensor, *, synthetic: Stamp | None = None, known: Stamp | None = None) -> dict[str, Tensor]:
    """The images (n, c, h, w) of every group of `GROUPS` that these stamps can make.

    ``both`` is the found trigger stamped over the known one: what an auditor does to images that carry it already.
    """
    groups = {"clean": images}
    if synthetic is not None:
        groups["synthetic"] = synthetic(images)
    if known is not None:
        groups["known"] = known(images)
    if synthetic is not None and known is not None:
        groups["both"] = synthetic(groups["known"])
    return groups


def channel_norms(classifier: Classifier, layer: str, images: Tensor) -> dict[str, Tensor]:
    """Every norm of `NORMS` of every channel's map, (n, c) on the CPU; maps are dropped batch by batch."""
    found: dict[str, list[Tensor]] = {norm: [] for norm in NORMS}

    def keep(_module: nn.Module, _arguments: tuple[Tensor, ...], output: Tensor) -> None:
        for norm in NORMS:
            found[norm].append(channel_norm(output, norm).float().cpu())

    with hooked(classifier.module.get_submodule(layer), keep):
        classifier.logits(images)
    return {norm: torch.cat(parts) for norm, parts in found.items()}


def norm_table(norms: Mapping[str, Mapping[str, Tensor]], over: str = "mean") -> dict[str, dict[str, list[float]]]:
    """Norm -> group -> one number per channel: the mean, or with ``over="max"`` the largest, over the images.

    ``norms`` are those of `channel_norms`, by group. The table behind the histograms of Cheng et al., which do not say how
    images were aggregated.
    """
    if over not in ("mean", "max"):
        raise ValueError(f"over must be mean or max, got {over!r}")

    def aggregated(values: Tensor) -> list[float]:
        row = values.mean(dim=0) if over == "mean" else values.amax(dim=0)
        return [float(value) for value in row]

    return {norm: {group: aggregated(values[norm]) for group, values in norms.items()} for norm in NORMS}


def channel_auc(clean: Tensor, stamped: Tensor) -> Tensor:
    """Per channel, how often a stamped image (m, c) has a larger norm than a clean one (n, c), (c,); equal ones count half.

    The area under the ROC curve of that channel's norm as a test for the trigger, over all n * m pairs of images: 1 where every
    stamped image exceeds every clean one, 0.5 where the trigger changes nothing (a channel that is always 0), 0 where it
    silences the channel.
    """
    ordered, values = clean.T.contiguous().sort(dim=1).values, stamped.T.contiguous()
    below = torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)
    return below.double().mean(dim=1) / (2 * len(clean))


def separation(clean: Tensor, stamped: Tensor) -> float:
    """How far a trigger raises the channels' norms, in [0, 1]: the mean of `channel_auc` over the channels; 0.5 is not at all.

    Over all channels, so that it does not saturate as the best single channel does, and needs no choice of channels. Cheng et
    al. say that a trigger is seen best in the l-infinity norm; this is one number per norm to check it with.
    """
    return float(channel_auc(clean, stamped).mean())
