"""Putting the tensors of a file into a module: names, shapes and kinds of number agree, or one line says how they differ."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.beside import is_counter
from backdoor_audit.model.loading.containers import Candidate
from backdoor_audit.model.loading.fitting import fits, outer_prefix
from backdoor_audit.model.loading.folding import folded
from backdoor_audit.model.loading.foreign import contained

_PARTS = {
    re.compile(
        r"(?:^|\.)(?:lora_\w+|base_layer)(?:\.|$)"
    ): "merge them into the network, model = model.merge_and_unload()",
    re.compile(r"(?:^|\.)parametrizations\."): (
        "merge them, torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') for each such layer"
    ),
}
"""Names of what adapters and parametrisations keep in place of a weight, and how it is made one."""


def strip_prefixes(state: Mapping[str, Tensor], names: Iterable[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the names that agree best with ``names``, and the prefix that had to go for it."""
    if not state:
        return {}, ""
    fit = fits([Candidate((), state)], set(names))[0]
    fit.refuse_strange("the network")
    return fit.state, fit.prefix


def load_state(module: nn.Module, state: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    """Copy the tensors into the module and return notes on what was done to their names.

    Raises `ModelFormatError` if names or shapes differ; ``num_batches_tracked`` may be absent, left over, or averaged to a float.
    """
    own = own_tensors(module, name)
    stripped, prefix = strip_prefixes(state, own)
    tensors, notes = folded(stripped, own)
    refuse_misfit(module, tensors, name)
    with contained(f"does not load into {name}", "check --arch"):  # a stranger's module may load in its own way
        given = module.state_dict()  # with the versions of its modules, which some of them ask for
        if extra := [key for key, value in given.items() if not isinstance(value, Tensor)]:
            raise ModelFormatError(
                f"{name} keeps {extra[0][:80]} beside its tensors, which is not read from files; hand the network over loaded, "
                "by the fixture audited_model, or leave get_extra_state out"
            )
        versions = getattr(given, "_metadata", None)
        usable = {key: value for key, value in tensors.items() if not is_counter(key) or not value.is_floating_point()}
        given = OrderedDict((key, value) for key, value in usable.items() if key in given)
        vars(given)["_metadata"] = versions
        module.load_state_dict(given, strict=False)
    return (*((f"stripped prefix {prefix}",) if prefix else ()), *notes)


def refuse_misfit(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Raise `ModelFormatError`, with counts and the first three of each, if names, shapes or kinds of number differ."""
    own = own_tensors(module, name)
    missing = [key for key in own if key not in state and not is_counter(key)]
    extra = [key for key in state if key not in own and not is_counter(key)]
    shapes, kinds = [], []
    for key in (key for key in own if key in state):
        there, here = state[key], own[key]
        if there.shape != here.shape:
            shapes.append(f"{key}: file {tuple(there.shape)}, network {tuple(here.shape)}")
        elif there.is_floating_point() != here.is_floating_point() and not is_counter(key):
            kinds.append(f"{key}: file {there.dtype}, network {here.dtype}")
    parts = [
        f"{len(found)} {what} ({separator.join(entry[:120] for entry in found[:3])})"
        for found, what, separator in (
            (missing, "missing", ", "),
            (extra, "extra", ", "),
            (shapes, "of another shape", "; "),
            (kinds, "of another kind", "; "),
        )
        if found
    ]
    if parts:
        raise ModelFormatError(
            f"does not fit {name}: {', '.join(parts)}{_called(missing, extra)}; {_unmerged(extra) or 'check --arch'}"
        )


def own_tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors by name that a module has."""
    with contained(f"{name} does not give its tensors", "check --arch"):
        return {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}


def in_parts(names: Iterable[str]) -> bool:
    """Whether some of these tensors are parts of weights that have to be merged first."""
    return bool(_unmerged(list(names)))


def _called(missing: Collection[str], extra: Sequence[str]) -> str:
    """What the network calls most of the tensors that it does not know, to be put behind an error, or nothing."""
    prefix, count = outer_prefix(missing, extra)
    return f"; the network calls {count} of the extra ones {prefix[:120]}*" if prefix else ""


def _unmerged(names: Iterable[str]) -> str:
    """What to do about weights that are stored in parts which are not put together here, or nothing."""
    for pattern, merging in _PARTS.items():
        if any(pattern.search(name) for name in names):
            return f"these are parts of weights: {merging}, then save it again"
    return ""
