"""Networks of torchvision, and the usual changes to them: another head, grey images, a stem for small ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.building import Architecture, Built, WithoutMemory, built_to_fit, classes_of
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.module_state import in_parts
from backdoor_audit.model.loading.names import close

Change = Callable[[nn.Module], None]

_WITHOUT_WEIGHTS = ("nn.Dropout()", "nn.ReLU()")
"""What mostly stands where a head has no weights: the second right after a layer, the first elsewhere."""

_MAKE = "def make(): import torchvision; from torch import nn; "
"""Begins a factory in one line."""

_USUAL = 1000  # classes
_LONGEST_HEAD = 12  # layers
_AUXILIARY = {"googlenet": "aux1.", "inception_v3": "AuxLogits."}
_TRANSFORMED = (
    "transform_input is off, which the file does not tell; training that began with torchvision's own weights has it on: with "
    "--normalization=half, in place of imagenet, the network computes the same"
)


def torchvision_network(name: str, num_classes: int | None) -> Architecture:
    """The classifier of that name in torchvision. Raises `ModelFormatError` for a name that is none."""
    from torchvision import models  # noqa: PLC0415 - a second of imports that most runs do not need

    known = models.list_models(module=models)  # classifiers only: no detection, no video, no quantised ones
    if name not in known:
        raise ModelFormatError(f"unknown torchvision model {name[:60]!r}{close(name, known, 'torchvision:')}")
    options = {"init_weights": False} if name in _AUXILIARY else {}  # half a minute each
    make = functools.partial(models.get_model, name, weights=None, **options)
    with contained(f"torchvision:{name} cannot be built"), WithoutMemory():
        usual = make()
        reference = usual.state_dict()

    def build(state: Mapping[str, Tensor]) -> Built:
        arguments, changes, notes = _variant(name, usual, state)
        if "num_classes" not in arguments:
            told = classes_of(state, reference, default=_USUAL)
            arguments["num_classes"] = told if told != _USUAL else num_classes or _USUAL

        def changed() -> nn.Module:
            module: nn.Module = make(**arguments)
            for change in changes:
                change(module)
            return module

        try:
            return Built(built_to_fit(changed, state, f"torchvision:{name}"), notes)
        except ModelFormatError as error:
            if in_parts(state):
                raise
            paste = _head_to_paste(name, usual, state) or _to_paste(name, arguments["num_classes"])
            raise ModelFormatError(f"{error}; {paste}") from None

    return Architecture(f"torchvision:{name}", reference, build)


def _variant(
    name: str, usual: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], list[Change], tuple[str, ...]]:
    """Arguments, changes and notes for what differs in the tensors of the file from the network as it is usually built."""
    arguments: dict[str, Any] = {}
    changes: list[Change] = []
    notes: tuple[str, ...] = (_TRANSFORMED,) if name in _AUXILIARY else ()
    if name in _AUXILIARY and not any(key.startswith(_AUXILIARY[name]) for key in state):
        arguments["aux_logits"] = False
        notes += ("built without its auxiliary classifiers, which the file does not have",)
    heads = [path for path, part in usual.named_modules() if isinstance(part, nn.Linear) and f"{path}.weight" in state]
    rows = {path: tuple(state[f"{path}.weight"].shape) for path in heads if path.endswith((".fc", ".fc2"))}
    last = tuple(state["fc.weight"].shape) if name in _AUXILIARY and "fc.weight" in state else ()
    for path, shape in rows.items() if len(last) == 2 else ():
        # fine-tuned with another head, the auxiliary ones left as they were
        if len(shape) == 2 and shape[0] != last[0]:
            arguments["num_classes"] = last[0]
            changes.append(_linear_at(path, "", (shape[1], shape[0]), bias=True))
            notes += (f"{path}, which is off when images are classified, has {shape[0]} classes",)
    positions, patch = state.get("encoder.pos_embedding"), getattr(usual, "patch_size", None)
    if positions is not None and positions.ndim == 3 and isinstance(patch, int):
        side = round((positions.shape[1] - 1) ** 0.5) * patch
        if side != getattr(usual, "image_size", side):
            arguments["image_size"] = side
            notes += (f"built for images of {side} px, as its positions say",)
    for find in (_stem, _head):
        change, note = find(usual, state)
        if change is not None:
            changes.append(change)
            notes += (note,)
    return arguments, changes, notes


def _stem(usual: nn.Module, state: Mapping[str, Tensor]) -> tuple[Change | None, str]:
    """The first convolution for another number of channels, or 3x3 at full resolution as for small images."""
    found = next(((path, part) for path, part in usual.named_modules() if isinstance(part, nn.Conv2d)), None)
    weight = None if found is None else state.get(f"{found[0]}.weight")
    if found is None or weight is None or weight.ndim != 4 or weight.shape == found[1].weight.shape:
        return None, ""
    path, conv = found
    channels, kernel = weight.shape[1], tuple(weight.shape[2:])
    pools = [pool for pool in ("maxpool", "features.pool0") if _has(usual, pool)]
    small = kernel == (3, 3) and conv.kernel_size == (7, 7) and bool(pools)
    if not small and kernel != conv.kernel_size:
        return None, ""

    def change(module: nn.Module) -> None:
        old = module.get_submodule(path)
        assert isinstance(old, nn.Conv2d)
        stride, padding = ((1, 1), (1, 1)) if small else (old.stride, old.padding)
        bias = old.bias is not None
        new = nn.Conv2d(channels, old.out_channels, (kernel[0], kernel[1]), stride, padding, bias=bias)  # type: ignore[arg-type]
        _put(module, path, new)
        if small:
            _put(module, pools[0], nn.Identity())

    note = f"{path} takes {channels} channels"
    if small:
        note += f" and is 3x3 with stride 1, without {pools[0]}, as for small images; the file does not tell stride and pooling"
    return change, note


def _head(usual: nn.Module, state: Mapping[str, Tensor]) -> tuple[Change | None, str]:
    """One linear layer, alone or at some place of a sequence, where the usual head is."""
    linears = [(path, part) for path, part in usual.named_modules() if isinstance(part, nn.Linear)]
    if not linears or f"{linears[-1][0]}.weight" in state:
        return None, ""
    last, root = linears[-1][0], linears[-1][0].partition(".")[0]
    for path in dict.fromkeys((last, root)):
        inside = {key: tensor for key, tensor in state.items() if key.startswith(f"{path}.")}
        weights = [key for key, tensor in inside.items() if tensor.ndim == 2 and key.endswith(".weight")]
        features = next(part.in_features for at, part in linears if at == path or at.startswith(f"{path}."))
        if len(weights) != 1 or inside.keys() > {weights[0], f"{weights[0].removesuffix('weight')}bias"}:
            continue
        place = weights[0].removesuffix(".weight").removeprefix(path).removeprefix(".")
        rows, columns = inside[weights[0]].shape
        if columns != features or not (place == "" or (place.isdecimal() and int(place) < 10)):
            continue
        what = f"one linear layer at {path}.{place}, with nothing before it that counts" if place else "a linear layer"
        change = _linear_at(path, place, (features, rows), bias=len(inside) == 2)
        return change, f"{path} is {what} (Dropout is off when images are classified)"
    return None, ""


def _linear_at(path: str, place: str, sizes: tuple[int, int], *, bias: bool) -> Change:
    """Puts a linear layer there, alone or at a place of a sequence in which nothing else counts."""

    def change(module: nn.Module) -> None:
        linear = nn.Linear(*sizes, bias=bias)
        before = (nn.Flatten(), *(nn.Identity() for _ in range(int(place) - 1))) if place and int(place) else ()
        _put(module, path, nn.Sequential(*before, linear) if place else linear)

    return change


def _has(module: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in module.named_modules())


def _put(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    if name.isdecimal() and isinstance(owner, nn.Sequential):
        owner[int(name)] = part
    else:
        setattr(owner, name, part)


def _head_to_paste(name: str, usual: nn.Module, state: Mapping[str, Tensor]) -> str:
    """A factory for a file in which nothing but the head differs, a sequence of known layers; or nothing."""
    linears = [path for path, part in usual.named_modules() if isinstance(part, nn.Linear)]
    root = linears[-1].partition(".")[0] if linears else ""
    own = usual.state_dict()
    rest = {key for key in (*own, *state) if not key.startswith(f"{root}.") and not key.endswith("num_batches_tracked")}
    inside = {key.removeprefix(f"{root}."): tensor for key, tensor in state.items() if key.startswith(f"{root}.")}
    if not root or any(key not in own or key not in state or own[key].shape != state[key].shape for key in rest):
        return ""
    layers = _sequence(inside)
    if not layers:
        return ""
    open_places = ", ".join(str(at) for at, layer in enumerate(layers) if layer in _WITHOUT_WEIGHTS)
    trained = f"; at {open_places} put what was trained there, which the file does not tell" if open_places else ""
    return (
        f"only its head {root} differs: write it down in my_model.py, {_MAKE}model = torchvision.models.{name}(); "
        f"model.{root} = nn.Sequential({', '.join(layers)}); return model{trained}; and pass --arch=my_model:make"
    )


def _sequence(tensors: Mapping[str, Tensor]) -> list[str]:
    """The layers of a sequence as they are written in Python; none if one of them is not known."""
    places: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place, _, part = key.partition(".")
        if not (place.isascii() and place.isdecimal()) or len(place) > 2:
            return []
        places.setdefault(int(place), {})[part] = tensor
    layers = [_written(places[at]) if at in places else "" for at in range(max(places, default=-1) + 1)]
    if any(at in places and not layer for at, layer in enumerate(layers)) or len(layers) > _LONGEST_HEAD:
        return []
    return [layer or _WITHOUT_WEIGHTS[bool(at and layers[at - 1])] for at, layer in enumerate(layers)]


def _written(parts: Mapping[str, Tensor]) -> str:
    """A layer in Python, by the shapes of its tensors; empty if it is not known."""
    weight, names = parts.get("weight"), parts.keys() - {"bias", "num_batches_tracked"}
    if weight is None or weight.ndim not in {1, 2}:
        return ""
    sizes = ", ".join(map(str, reversed(weight.shape)))
    if weight.ndim == 2 and names == {"weight"}:
        return f"nn.Linear({sizes})" if "bias" in parts else f"nn.Linear({sizes}, bias=False)"
    if weight.ndim == 1 and "bias" in parts and names == {"weight", "running_mean", "running_var"}:
        return f"nn.BatchNorm1d({sizes})"
    return f"nn.LayerNorm({sizes})" if weight.ndim == 1 and "bias" in parts and names == {"weight"} else ""


def _to_paste(name: str, num_classes: int) -> str:
    return (
        f"for a changed network write it down in my_model.py, {_MAKE}model = torchvision.models."
        f"{name}(num_classes={num_classes}); ...; return model, and pass --arch=my_model:make"
    )
