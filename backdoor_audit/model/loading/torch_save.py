"""Model files of ``torch.save`` in any of its forms."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import checkpoint
from backdoor_audit.model.loading.architecture import architecture_of, known
from backdoor_audit.model.loading.building import Built
from backdoor_audit.model.loading.containers import Candidate, T, candidates, unnamed_sets, unpickled_candidates
from backdoor_audit.model.loading.format import Asked, Format, Network
from backdoor_audit.model.loading.hints import Hints, hints_of
from backdoor_audit.model.loading.placing import Source, place
from backdoor_audit.model.loading.refusals import needs_code, refuse_quantised, without_numbers
from backdoor_audit.model.loading.settings import told_otherwise
from backdoor_audit.model.loading.tensors import refuse_odd
from backdoor_audit.model.loading.timm_network import configured_name, is_named
from backdoor_audit.printable import printable

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "netC", "clsmodel", "classifier", "network")

_SWAPPED = frozenset({"message_hub", "current_model_state"})
"""What files have that keep averages as their ``state_dict``, of mmengine and of Lightning's WeightAveraging."""


def _recognises(asked: Asked) -> bool:
    return asked.start.startswith((b"PK\x03\x04", b"\x80"))


def read_saved(asked: Asked) -> Network:
    """The network in a file of ``torch.save``; executes nothing unless ``asked`` allows it."""
    return _executed(asked) if asked.allow_pickle and "constants.pkl" not in asked.members else _read(asked)


def _read(asked: Asked) -> Network:
    with checkpoint.opened(asked.path) as saved:
        found, hints = candidates(saved.content, saved.deadline), hints_of(saved.content, saved.tensors)
        if saved.strangers and not any(candidate.module for candidate in found):
            raise needs_code(next(iter(saved.strangers)))
        weights = [value for one in found for name, value in one.tensors.items() if name.endswith("weight")]
        if weights and all(value.size == (0,) for value in weights):
            raise without_numbers()
        for candidate in found:
            refuse_quantised((*candidate.tensors, *candidate.others))
        whole = max(found, key=lambda candidate: len(candidate.tensors)).root
        if whole is not None and not (asked.arch or hints.arch):
            raise ModelFormatError(
                f"holds a whole pickled {printable(whole.kind[:80])}, whose code is not read; pass --arch=NAME for the network "
                f"that it is, or --arch=package.module:factory for a function of yours that makes it ({known()})"
            )
        swapped = isinstance(saved.content, dict) and not _SWAPPED.isdisjoint(saved.content)
        source = Source(found, checkpoint.described, saved.tensors, swapped)
        network = _placed(source, asked, hints)
        beside = unnamed_sets(saved.content, [tuple(one.shape) for one in network.module.parameters()])
        return replace(network, notes=(*beside, *network.notes))


def _placed(source: Source[T], asked: Asked, hints: Hints) -> Network:
    """The network that the user names, or the file, with the weights of a source."""
    arch = _of_timm(asked.arch, hints) if hints.of_timm else asked.arch
    architecture = architecture_of(arch, header=hints.arch, num_classes=asked.num_classes, file=asked.path)
    result: tuple[Built, tuple[str, ...]] = place(source, architecture)
    named: tuple[str, ...] = () if asked.arch else (f"architecture {architecture.name}, as the file says",)
    notes: tuple[str, ...] = (*result[1], *named, *result[0].notes, *hints.notes)
    notes += told_otherwise(hints.settings, result[0].module, architecture.name)
    return Network(result[0].module, architecture.name, notes, hints=hints.or_else(result[0]))


def _of_timm(arch: str | None, hints: Hints) -> str | None:
    """What a checkpoint of timm's training script is to be built as: timm's network with the pooling it was trained with.

    Raises `ModelFormatError` for one that is built with more than the command line can say, or where timm is missing.
    """
    name = hints.of_timm["architecture"]
    if not re.fullmatch(r"\w+(?:\.\w+)?", name) or (arch and not is_named(arch, name)):
        return arch
    named = configured_name(hints.of_timm, (arch or name).removeprefix("timm:"), "args of timm's train.py")
    if arch or importlib.util.find_spec("timm"):
        return named
    if hints.arch and named not in (f"timm:{name}", f"timm:{name},global_pool=avg"):
        raise ModelFormatError(f"args of timm's train.py name another network than {hints.arch}; pass --arch={named}")
    return None


def _executed(asked: Asked) -> Network:
    content = checkpoint.unpickled(asked.path)
    path, module = _module(content)
    if module is not None:
        refuse_odd(module.state_dict())
        notes = (*(f"unwrapped {key}" for key in path), f"whole pickled module {type(module).__name__}")
        notes += (f"--arch={asked.arch} not needed",) if asked.arch else ()
        return Network(module, type(module).__name__, notes)
    hints = hints_of(content)
    found = [
        Candidate(candidate.path, {key: value.detach() for key, value in candidate.tensors.items()}, candidate.others)
        for candidate in unpickled_candidates(content)
    ]

    def whole(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        refuse_odd(state)
        return state

    return _placed(Source(found, whole, whole), asked, hints)


def _module(content: object) -> tuple[tuple[str, ...], nn.Module | None]:
    """A whole module at the top, or under one of the usual keys."""
    path: tuple[str, ...] = ()
    for _ in range(len(_WRAPPERS)):
        if isinstance(content, nn.Module):
            return path, content
        if not isinstance(content, Mapping):
            break
        key = next((key for key in _WRAPPERS if isinstance(content.get(key), (Mapping, nn.Module))), None)
        if key is None:
            break
        path, content = (*path, key), content[key]
    return path, None


FORMAT = Format("torch.save", _recognises, read_saved, (".pt", ".pth", ".ckpt", ".bin", ".tar", ".th", ".pkl"))
