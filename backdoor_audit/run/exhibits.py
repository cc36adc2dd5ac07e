"""What a person can check by eye, for the record: triggers, stamped images, and where the network looks. Builtins only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backdoor_audit.data import CleanSet
from backdoor_audit.data.clean_set import choose
from backdoor_audit.data.png import png
from backdoor_audit.model.activations import NORMS, channel_norms, input_groups, norm_table, separation
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.layers import NO_FEATURE_MAP
from backdoor_audit.run.grad_cam import grad_cam, inside_share, localised_support
from backdoor_audit.triggers.trigger import AnyTrigger

_EXAMPLES = 4
_IMAGES = 128  # whose channel norms are averaged
_MAPS = 32  # of these, whose maps are averaged
_DIGITS = 6
# From dark blue over grey to light yellow: brightness rises all the way, and blue and yellow differ for every kind of sight.
_RAMP = ((0.0, 0.13, 0.30), (0.28, 0.33, 0.43), (0.49, 0.48, 0.47), (0.74, 0.66, 0.40), (1.0, 0.92, 0.27))
_RAMP_OPACITY = 0.6


def exhibit(
    classifier: Classifier,
    val: CleanSet,
    trigger: AnyTrigger,
    *,
    detector: str,
    examples: bool = True,
    source: int | None = None,
) -> dict[str, Any]:
    """One entry of the record's ``exhibits``: the pictures of a trigger and, with ``examples``, what stamping does.

    The examples are the first held-out image of each of the first four classes other than the target, not a choice of those
    on which the trigger works; the first four of the class ``source`` where the trigger is about its images alone.
    ``confidence`` is the softmax of the predicted class.
    """
    return {
        "detector": detector,
        "target_class": trigger.target_class,
        "pictures": {title: png(image) for title, image in trigger.pictures().items()},
        "examples": _examples(classifier, val, trigger, source) if examples else [],
    }


def _examples(classifier: Classifier, val: CleanSet, trigger: AnyTrigger, source: int | None) -> list[dict[str, Any]]:
    if source is None:
        others = val.without_class(trigger.target_class)
        rows = [int((others.labels == label).nonzero()[0]) for label in others.labels.unique().tolist()]
    else:
        others, rows = val, (val.labels == source).nonzero().flatten().tolist()
    rows = rows[:_EXAMPLES]
    if not rows:
        return []
    labels, images = others.labels[rows].tolist(), others.images[rows]
    stamped = trigger.stamp(images)
    before, after = (classifier.logits(batch).softmax(dim=1).max(dim=1) for batch in (images, stamped))
    return [
        {
            "label": label,
            "image": png(images[row]),
            "stamped": png(stamped[row]),
            "predicted": int(before.indices[row]),
            "confidence": _rounded(before.values[row]),
            "predicted_stamped": int(after.indices[row]),
            "confidence_stamped": _rounded(after.values[row]),
        }
        for row, label in enumerate(labels)
    ]


def activation_exhibit(
    classifier: Classifier, val: CleanSet, found: AnyTrigger | None, known: AnyTrigger | None = None
) -> dict[str, Any]:
    """One entry of the record's ``activations``: what a trigger does to the last feature map (Cheng et al., arXiv 2002.12162).

    ``found`` is the trigger of a search, ``known`` the one that the user has; at least one, both for the same class. Norms are
    means over at most 128 held-out images of other classes, ``separation`` is that of the images with the found trigger (the
    known one if nothing was found) from the clean ones. Grad-CAM is drawn for one image, the first on which the triggers work
    if there is one. ``inside`` is a mean over at most 32 of them; for clean images and those with both triggers it is about the
    support of both, and it is None for triggers without a `localised_support`. ``unavailable`` says why there is nothing to show.
    """
    trigger = found or known
    if trigger is None:
        raise ValueError("activation_exhibit needs a trigger: found, known, or both")
    target, layers = trigger.target_class, classifier.layers()
    others = val.without_class(target).sample(_IMAGES, seed=0)
    if layers.feature_layer is None or not len(others):
        reason = "no held-out image of another class" if layers.feature_layer else NO_FEATURE_MAP
        return {"target_class": target, "unavailable": reason}
    groups = input_groups(others.images, synthetic=found.stamp if found else None, known=known.stamp if known else None)
    norms = {group: channel_norms(classifier, layers.feature_layer, images) for group, images in groups.items()}
    stamped, looked = "synthetic" if found else "known", choose(others.labels, _MAPS, seed=0)
    images, labels = {group: batch[looked] for group, batch in groups.items()}, others.labels[looked]
    return {
        "target_class": target,
        "known": known is not None,
        "layer": layers.feature_layer,
        "channels": layers.channels,
        "norms": {
            norm: {group: [_rounded(value) for value in row] for group, row in rows.items()}
            for norm, rows in norm_table(norms).items()
        },
        "separation": {norm: _rounded(separation(norms["clean"][norm], norms[stamped][norm])) for norm in NORMS},
        "grad_cam": _settings(classifier, layers.feature_layer, images, labels, target, _supports(found, known)),
    }


def _supports(found: AnyTrigger | None, known: AnyTrigger | None) -> dict[str, Tensor | None]:
    """Where to look for the map's mass in every group; None where a trigger is spread over the image."""
    single = {
        group: localised_support(trigger) for group, trigger in (("synthetic", found), ("known", known)) if trigger
    }
    together = [support for support in single.values() if support is not None]
    union = torch.stack(together).any(dim=0) if len(together) == len(single) else None
    return {**single, "clean": union, "both": union}


def _settings(
    classifier: Classifier,
    layer: str,
    groups: Mapping[str, Tensor],
    labels: Tensor,
    target: int,
    supports: Mapping[str, Tensor | None],
) -> list[dict[str, Any]]:
    """Grad-CAM of every group for the images' own classes and for the target: the (input, label) settings of Cheng et al."""
    shown = _shown(classifier, groups, labels, target)
    settings = []
    for group, images in groups.items():
        support = supports[group]
        for name, wanted in (("true", labels), ("target", torch.full_like(labels, target))):
            maps = grad_cam(classifier, layer, images, wanted)
            inside = None if support is None else inside_share(maps, support)
            settings.append(
                {
                    "input": group,
                    "label": name,
                    "class": int(wanted[shown]),
                    "overlay": png(overlay(images[shown], maps[shown])),
                    "inside": None if inside is None else _rounded(inside),
                    "area": None if support is None else _rounded(support.float().mean()),
                }
            )
    return settings


def _shown(classifier: Classifier, groups: Mapping[str, Tensor], labels: Tensor, target: int) -> int:
    """The first image that is predicted as labelled when clean and as the target in every stamped group; else the first."""
    works = torch.ones(len(labels), dtype=torch.bool)
    for group, images in groups.items():
        works &= classifier.predict(images).cpu() == (labels if group == "clean" else target)
    return int(works.float().argmax())


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """An image (c, h, w) in grey under a map (h, w) in colours, (3, h, w) in [0, 1]: dark blue is none, light yellow the most.

    The map is scaled to its own largest value; one that is 0 everywhere is blue all over.
    """
    grey = image.detach().cpu().float().mean(dim=0)
    heat = heat.detach().cpu().float()
    place = heat / heat.max().clamp_min(1e-12) * (len(_RAMP) - 1)
    low = place.floor().long().clamp_max(len(_RAMP) - 2)
    ramp = torch.tensor(_RAMP)
    colours = torch.lerp(ramp[low], ramp[low + 1], (place - low).unsqueeze(2)).permute(2, 0, 1)
    return (1 - _RAMP_OPACITY) * grey + _RAMP_OPACITY * colours


def _rounded(value: Tensor | float) -> float:
    """Enough digits to draw with; records stay small."""
    return float(f"{float(value):.{_DIGITS}g}")
