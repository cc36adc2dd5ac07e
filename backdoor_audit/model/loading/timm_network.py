"""Networks of timm, with the sizes that the tensors tell or the name adds: ``timm:NAME,img_size=64,in_chans=1``."""

from __future__ import annotations

import functools
import importlib
import itertools
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.building import Architecture, Built, WithoutMemory, built_to_fit, classes_of
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.names import close
from backdoor_audit.printable import printable

_SIZES = ("img_size", "in_chans", "num_classes", "patch_size", "window_size")
_LARGEST = 10_000
_UNUSUAL = 997  # classes: by them the last layer is told; some networks have none, or as many as channels
_POOL = "global_pool"
_POOLS = frozenset({"avg", "max", "avgmax", "catavgmax", "token", "map"})
_TOLD = frozenset({"num_classes", "in_chans", "img_size"})  # by the tensors, where they matter
_OF_TRAINING = re.compile(r"drop_rate|\w+_drop_rate|drop_path_rate|pretrained|init_values|grad_checkpointing")
"""What a configuration says that changes no score, or that the tensors hold."""

_ELSEWHERE = re.compile(r"pretrained|path|dir|file|hub|cfg|script")
"""In the names of arguments that make timm read files."""


def timm_network(name: str, num_classes: int | None) -> Architecture:
    """The network of that name in timm. Nothing is downloaded.

    Raises `ModelFormatError` if timm is missing, or for a name or a size that it does not know.
    """
    bare, *rest = name.split(",")
    given = dict(map(_size, rest))
    with contained(f"--arch=timm:{name} cannot be built"):
        try:
            timm: ModuleType = importlib.import_module("timm")
        except ImportError:
            raise ModelFormatError(f"--arch=timm:{name} needs timm; pip install 'backdoor-audit[timm]'") from None
        if not timm.is_model(bare):  # also keeps out hf-hub: and local-dir: names, which fetch or read other files
            raise ModelFormatError(f"unknown timm model {bare[:60]!r}{close(bare, timm.list_models(), 'timm:')}")
        with WithoutMemory():
            default: object = timm.create_model(bare, pretrained=False, **given).num_classes
            usual: nn.Module = timm.create_model(bare, pretrained=False, **{"num_classes": _UNUSUAL, **given})
        reference = usual.state_dict()

    def build(state: Mapping[str, Tensor]) -> Built:
        with contained(f"--arch=timm:{name} cannot be built", "name its sizes: timm:NAME,img_size=N,in_chans=N"):
            sizes: dict[str, int | str] = {**_told(usual, state), **given}
            classes = classes_of(state, reference, default=_UNUSUAL)
            if classes == _UNUSUAL and num_classes:  # the tensors do not tell
                sizes["num_classes"] = num_classes
            elif "num_classes" not in given and classes != default and (classes != _UNUSUAL or not default):
                sizes["num_classes"] = classes
            make = functools.partial(timm.create_model, bare, pretrained=False, **sizes)
            try:
                module = built_to_fit(make, state, f"timm:{name}")
            except ModelFormatError as error:
                pooled = any(key.startswith("fc_norm.") for key in state.keys() - reference.keys())
                cure = f"; its fc_norm is there with another pooling: pass --arch=timm:{name},{_POOL}=avg"
                raise ModelFormatError(f"{error}{cure if pooled and _POOL not in given else ''}") from None
        mean, std, notes = _configured(module, f"timm:{bare}", int(sizes.get("in_chans", 3)))
        told = {key: value for key, value in sizes.items() if key not in given and value != num_classes}
        notes += tuple(f"{key}={value} as its tensors say" for key, value in told.items())
        return Built(module, notes, mean, std)

    return Architecture(f"timm:{name}", reference, build)


def configured_name(config: Mapping[str, Any], name: str, where: str = "config.json") -> str:
    """``timm:`` and what the command line would name for the network that a config.json describes.

    ``name`` may have sizes and a pooling behind it, which then stay. ``where`` is where ``config`` was read.
    Raises `ModelFormatError` for one that is built with what the tensors may not tell, with what to pass.
    """
    bare, _, given = name.partition(",")
    arguments = _arguments(config)
    others = {key: value for key, value in arguments.items() if key not in _TOLD and not _OF_TRAINING.fullmatch(key)}
    pool = others.pop(_POOL, "")
    if f"{_POOL}=" in given:
        pool = ""
    if pool not in ("", *_POOLS):
        others[_POOL] = pool
    if not others:
        return f"timm:{name}" + (f",{_POOL}={pool}" if pool else "")
    arguments = {key: value for key, value in arguments.items() if not _OF_TRAINING.fullmatch(key)}
    cure = "pass --arch=package.module:factory"
    if re.fullmatch(r"[\w.]{1,60}", bare) and all(itertools.starmap(_can_be_pasted, arguments.items())):
        classes = config.get("num_classes")
        if type(classes) is int and 0 < classes < _LARGEST:
            arguments.setdefault("num_classes", classes)
        shown = "".join(f", {key}={value!r}" for key, value in arguments.items())
        cure = (
            "write it down in my_model.py, def make(): import timm; return "
            f"timm.create_model({bare!r}{shown}), and pass --arch=my_model:make"
        )
    raise ModelFormatError(
        f"{where}: model_args builds another {bare[:60]} ({printable(', '.join(others))[:80]}), not done here; {cure}"
    )


def is_named(arch: str, name: object) -> bool:
    """Whether a command line names the network of timm that a file names, whatever sizes and weights stand behind it."""
    bare = arch.removeprefix("timm:").partition(",")[0].partition(".")[0]
    return arch.startswith("timm:") and isinstance(name, str) and bare == name.partition(".")[0]


def refuse_other_pool(config: Mapping[str, Any], arch: str, module: nn.Module) -> None:
    """Raise `ModelFormatError` where a config.json tells the pooling of the saved network, and the one built has another.

    timm writes it beside the arguments and does not build by it.
    """
    said, part = config.get(_POOL), getattr(module, _POOL, None)
    built = part if isinstance(part, str) else getattr(part, "pool_type", None)
    if f"{_POOL}=" not in arch and said in _POOLS and built in _POOLS and said != built:
        raise ModelFormatError(
            f"config.json: {_POOL} of the saved network was {said}, and timm builds {arch[:60]} with {built}; pass "
            f"--arch={arch},{_POOL}={said} or {_POOL}={built}, whichever is in use"
        )


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm builds the network of a config.json with: what its data configuration says of the pooling is the default."""
    told, data = config.get("model_args"), config.get("pretrained_cfg")
    pool = data.get(_POOL) if isinstance(data, Mapping) else None
    return {**({_POOL: pool} if pool else {}), **(told if isinstance(told, Mapping) else {})}


def _can_be_pasted(key: str, value: object) -> bool:
    """Whether a stranger's argument is plain, and asks timm for nothing from elsewhere."""
    parts = value if isinstance(value, list) else [value]
    plain = all(re.fullmatch(r"\w{0,40}", part) if isinstance(part, str) else _is_number(part) for part in parts)
    return bool(plain and len(parts) < 9 and re.fullmatch(r"[a-z_]{1,40}", key) and not _ELSEWHERE.search(key))


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and abs(value) < _LARGEST)


def _size(text: str) -> tuple[str, int | str]:
    key, _, value = text.partition("=")
    if key == _POOL and value in _POOLS:
        return key, value
    if key not in _SIZES or not value.isdecimal() or not 0 < int(value) <= _LARGEST:
        raise ModelFormatError(
            f"--arch=timm:NAME,{text[:40]} is no size; accepted: {', '.join(_SIZES)}, as in timm:NAME,img_size=64, and "
            f"{_POOL}={'|'.join(sorted(_POOLS))}"
        )
    return key, int(value)


def _told(usual: nn.Module, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes that differ from the usual ones, read off the first convolution and the positions."""
    sizes: dict[str, int] = {}
    own = usual.state_dict()
    first = next((key for key, tensor in own.items() if tensor.ndim == 4), "")
    if first in state and state[first].ndim == 4 and 0 < state[first].shape[1] != own[first].shape[1]:
        sizes["in_chans"] = state[first].shape[1]
    positions, patches = state.get("pos_embed"), getattr(getattr(usual, "patch_embed", None), "patch_size", None)
    if positions is not None and positions.ndim == 3 and patches and positions.shape != own["pos_embed"].shape:
        before = own["pos_embed"].shape[1] - int(getattr(usual.patch_embed, "num_patches", 0))  # class tokens
        side = round(max(positions.shape[1] - before, 1) ** 0.5) * int(patches[0])
        if 0 < side <= _LARGEST:
            sizes["img_size"] = side
    return sizes


def _configured(
    module: nn.Module, name: str, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Mean and std of the model's data configuration, and a note with its input size."""
    config: Any = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    mean, std, size = (config.get(key) for key in ("mean", "std", "input_size"))
    notes = (f"{name} is made for images of {'x'.join(map(str, size))}",) if size else ()
    if not mean or not std or len(mean) != channels or len(std) != channels:
        return (), (), notes
    return tuple(map(float, mean)), tuple(map(float, std)), notes
