"""Which part of an image speaks for a class: Grad-CAM (Selvaraju et al., ICCV 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.triggers.trigger import AnyTrigger

_BATCH = 64
_LARGEST_SUPPORT = 0.25  # of the image; above that, a map that looks anywhere looks at the trigger


def grad_cam(classifier: Classifier, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """Class activation maps (n, h, w), at least 0, of the images' size, on the CPU; one class of ``labels`` (n,) per image.

    ``relu(sum_c alpha_c A_c)``, where ``A`` are the feature maps of the layer and ``alpha_c`` is the mean over the map of the
    derivative of the class's logit by ``A_c``; the logit and not the softmax, which another class's score would move too.
    Enlarged bilinearly; 0 everywhere if the logits have no derivative there. The scale is the network's own: compare shares, not
    values. The classifier is left as it was.
    """
    maps = [
        _maps(classifier, layer, batch.to(classifier.device), chosen.to(classifier.device))
        for batch, chosen in zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    ]
    size = tuple(images.shape[-2:])
    if not maps:
        return torch.empty(0, *size)
    enlarged = functional.interpolate(torch.cat(maps).unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    return enlarged.squeeze(1).cpu()


def _maps(classifier: Classifier, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """Maps (n, h, w) of the layer's own size."""
    kept: list[Tensor] = []

    def restart(_module: nn.Module, _arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # what follows may work in place

    with hooked(classifier.module.get_submodule(layer), restart), torch.enable_grad():
        score = classifier(images).gather(1, labels.unsqueeze(1)).sum()
        if not score.requires_grad:
            return kept[0].new_zeros(kept[0][:, 0].shape)
        (gradient,) = torch.autograd.grad(score, kept[0], materialize_grads=True)
    alpha = gradient.mean(dim=(2, 3), keepdim=True)
    return (alpha * kept[0].detach()).sum(dim=1).relu().float()


def inside_share(maps: Tensor, support: Tensor) -> float | None:
    """Mean share of a map's mass (n, h, w) that lies in the ``support`` (h, w) bool; maps that are 0 everywhere are left out.

    None if all are. Beside it belongs the support's share of the image, which even a flat map would reach.
    """
    mass = maps.flatten(1).sum(dim=1)
    alive = mass > 0
    if not alive.any():
        return None
    return float(((maps * support).flatten(1).sum(dim=1)[alive] / mass[alive]).mean())


def localised_support(trigger: AnyTrigger) -> Tensor | None:
    """The pixels (h, w), bool, on which a trigger lies, on the CPU; None for one that is spread over the image.

    Those where it has at least half of its greatest `strength`. Localised is a trigger with at least half of its whole
    strength there, on at most a quarter of the image.
    """
    strength = trigger.strength().detach().cpu().float()
    found = (strength >= strength.max() / 2) & (strength > 0)
    whole = float(strength.sum())
    spread = float(found.float().mean()) > _LARGEST_SUPPORT or float(strength[found].sum()) < whole / 2
    return None if spread or not whole else found
