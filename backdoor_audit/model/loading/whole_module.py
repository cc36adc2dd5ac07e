"""A whole pickled module beside the network that was built for its tensors: layers that no tensor tells apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.pickle_values import Instance, kind_of

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


def refuse_other_layers(pickled: Instance, prefix: str, module: nn.Module, name: str) -> None:
    """Raise `ModelFormatError` where a layer of the file is another one than the network has in its place.

    Strides, pooling and activations are in no tensor. ``prefix`` is where the network lies in the pickled module.
    """
    found = []
    for path, built in module.named_modules():
        layer = _at(pickled, f"{prefix}{path}".strip("."))
        if layer is not None:
            found += [f"{path}{told}" for told in _differences(layer, built)]
    if found:
        more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        raise ModelFormatError(
            f"does not fit {name}: the pickled network has other layers ({'; '.join(found[:_MOST_SHOWN])}{more}); write it "
            "down in a factory, for --arch=package.module:factory"
        )


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


def _plain(value: object) -> tuple[object, ...]:
    """A setting as two values where it is one for both sides; empty for what is no number, word or pair of these."""
    parts = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    return parts if len(parts) == 2 and all(isinstance(part, (int, float, str)) for part in parts) else ()


def _shown(parts: tuple[object, ...]) -> str:
    return "x".join(str(part)[:20] for part in parts) if parts[0] != parts[1] else str(parts[0])[:20]
