"""A whole pickled module beside the network that was built for its tensors: layers that no tensor tells apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.pickle_values import Instance, kind_of
from backdoor_audit.printable import printable

_OURS = "torch.nn.modules."
_ALIKE = {
    **dict.fromkeys(
        ("Identity", "Flatten", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"), "nothing"
    ),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"), "batch norm"),
    **dict.fromkeys(("AvgPool2d", "AdaptiveAvgPool2d"), "average"),  # old versions of torchvision had the first
    "NonDynamicallyQuantizableLinear": "Linear",
}
"""Layers that compute the same where networks classify, whatever they are called."""

_LAST = frozenset({"Softmax", "LogSoftmax"})  # of a head: they change no order of scores, and searches do without
_SETTINGS = (
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "ceil_mode", "output_size"),
    *("eps", "num_groups", "negative_slope", "approximate"),
)
_MOST_SHOWN = 3
_LONGEST = 64  # parts of an attribute that are compared
_KNOWN = ("torch.nn.", "torchvision.", "timm.")  # whose attributes tell what a module computes
_WITHOUT_EFFECT = re.compile(
    r"_.*|training|p|.*drop.*|.*prob.*|.*momentum.*|.*checkpoint.*|.*pretrained.*|.*fused.*|.*export.*|.*script.*|init_.*|device|"
    r"num_classes|in_features|out_features|num_features|in_channels|out_channels|inplace|inplanes|memory_efficient|aux_logits|"
    r"img_size|image_size|.*dynamic.*|strict_img_size|track_running_stats|output_padding"
)
"""Attributes that change no score where networks classify, or that the tensors tell."""


def refuse_other_layers(pickled: Instance, prefix: str, module: nn.Module, name: str) -> tuple[str, ...]:
    """Raise `ModelFormatError` where a layer of the file is another one than the network has in its place.

    Strides, pooling, activations and the number of heads are in no tensor. ``prefix`` is where the network lies in the pickled
    module. A note tells other attributes of modules that are of no library: what they do is not known.
    """
    found: list[str] = []
    others: list[str] = []
    for path, built in module.named_modules():
        layer = _at(pickled, f"{prefix}{path}".strip("."))
        if layer is not None:
            found += [f"{path}{told}" for told in _differences(layer, built)]
            told = [f"{path}{one}".removeprefix(": ") for one in _other_attributes(layer, built)]
            (found if layer.kind.startswith(_KNOWN) else others).extend(told)
    if found:
        more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        raise ModelFormatError(
            f"does not fit {name}: the pickled network has other layers ({'; '.join(found[:_MOST_SHOWN])}{more}); write it "
            "down in a factory, for --arch=package.module:factory"
        )
    more = f" and {len(others) - _MOST_SHOWN} more" if len(others) > _MOST_SHOWN else ""
    return (f"what the pickled network had otherwise: {'; '.join(others[:_MOST_SHOWN])}{more}",) if others else ()


def _at(pickled: Instance, path: str) -> Instance | None:
    """The module of that path, None if there is none."""
    part: object = pickled
    for key in filter(None, path.split(".")):
        part = _children(part).get(key) if isinstance(part, Instance) else None
    return part if isinstance(part, Instance) else None


def _children(pickled: Instance) -> Mapping[object, object]:
    found = pickled.attributes.get("_modules")
    return found if isinstance(found, Mapping) else {}


def _differences(layer: Instance, built: nn.Module) -> Iterator[str]:
    here, there = type(built).__name__, kind_of(layer)
    ours = type(built).__module__.startswith(_OURS) and layer.kind.startswith(_OURS)
    inner, own = _children(layer), dict(built.named_children())
    if here == there == "Sequential":
        for key, part in inner.items():
            kind = kind_of(part)
            if key not in own and isinstance(part, Instance) and _ALIKE.get(kind) != "nothing" and kind not in _LAST:
                yield f".{str(key)[:40]}: {kind} in the file, nothing in the network"
    if not ours or inner or own:
        return
    if _ALIKE.get(here, here) != _ALIKE.get(there, there):
        yield f": {there} in the file, {here} in the network"
    elif here == there:
        for setting in _SETTINGS:
            said, used = _plain(layer.attributes.get(setting)), _plain(vars(built).get(setting))
            if said and used and said != used:
                yield f": {setting} {_shown(said)} in the file, {_shown(used)} in the network"


def _other_attributes(layer: Instance, built: nn.Module) -> Iterator[str]:
    """Plain attributes that differ in a module of the same class, but for the layers of `_differences`."""
    kind = f"{type(built).__module__}.{type(built).__qualname__}"
    has_parts = bool(_children(layer) or dict(built.named_children()))
    if layer.kind != kind or (kind.startswith(_OURS) and not has_parts):
        return
    for key, value in vars(built).items():
        if has_no_effect(key) or key not in layer.attributes:
            continue
        said, used = tupled(layer.attributes[key]), tupled(value)
        if said and used and said != used:
            yield f": {key} {shown_parts(said)} in the file, {shown_parts(used)} in the network"


def has_no_effect(attribute: str) -> bool:
    """Whether an attribute or argument of that name changes no score, or is told by the tensors."""
    return bool(_WITHOUT_EFFECT.fullmatch(attribute))


def tupled(value: object) -> tuple[object, ...]:
    """A plain value as a tuple; empty for what is none."""
    parts = tuple(value[:_LONGEST]) if isinstance(value, (tuple, list)) else (value,)
    return parts if all(isinstance(part, (int, float, str)) for part in parts) else ()


def shown_parts(parts: tuple[object, ...]) -> str:
    """A plain value in a message."""
    return printable(",".join(str(part)[:20] for part in parts)[:40])


def _plain(value: object) -> tuple[object, ...]:
    """A setting as two values where it is one for both sides; empty for what is no number, word or pair of these."""
    parts = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    return parts if len(parts) == 2 and all(isinstance(part, (int, float, str)) for part in parts) else ()


def _shown(parts: tuple[object, ...]) -> str:
    return "x".join(str(part)[:20] for part in parts) if parts[0] != parts[1] else str(parts[0])[:20]
