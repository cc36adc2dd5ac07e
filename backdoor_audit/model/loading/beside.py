"""What a file keeps beside the layers of a network: losses, counters, optimizers, other sets of its weights, mean and std."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from backdoor_audit.model.loading.containers import T
from backdoor_audit.model.loading.normalising import of_channels, pair
from backdoor_audit.model.loading.pickle_values import StoredTensor

MOST_PREFIXES = 8  # components before a name
_COUNTER = re.compile(r"(.*\.)?num_batches_tracked")
_BESIDE = re.compile(
    r"(?:\w+_)?(?:loss|losses|criterion|criteria|metrics?)(?:_fn|_func)?\..+"
    r"|(?:.*\.)?n_averaged|(?:class|cls|pos)_weights?|epochs?|steps?|global_step|initted",
    re.IGNORECASE,
)
"""Names of what training keeps beside the layers of a network: losses with weights, metrics, counters."""

_OPTIMIZER = re.compile(r"(?:\w+_)?optim(?:izers?)?(?:_states?)?\..+", re.IGNORECASE)


def is_counter(name: str) -> bool:
    """Whether a tensor counts batches: absent from old files, never read by a frozen network."""
    return _COUNTER.fullmatch(name) is not None


def is_beside(name: str) -> bool:
    """Whether a name, after the prefix of the network, is one that training gives to what is no layer."""
    return _BESIDE.fullmatch(name) is not None


def unexplained(left: Mapping[str, T], prefix: str, sets: Sequence[str], state: Mapping[str, T]) -> list[str]:
    """The names of those left over that may be layers: not kept by training, no whole number, in no other set of ``state``.

    ``sets`` are the prefixes of the other sets of the same network.
    """
    return [
        key
        for key, tensor in left.items()
        if not _is_training(key, prefix) and not _is_count(tensor) and not _is_of(sets, key, tensor, state)
    ]


def shape(tensor: Tensor | StoredTensor) -> tuple[int, ...]:
    """The shape of a tensor, loaded or described."""
    return tuple(tensor.size if isinstance(tensor, StoredTensor) else tensor.shape)


def mean_and_std(outside: Mapping[str, T], state: Mapping[str, T]) -> dict[str, T]:
    """Mean and std of the images among the tensors that the network does not have, one number for each of its channels."""
    names = pair(outside)
    channels = {shape(tensor)[1] for tensor in state.values() if len(shape(tensor)) == 4}
    channel = 3 if 3 in channels else 1 if 1 in channels else 0
    found = {name: outside[name] for name in names or ()}
    return found if all(of_channels(shape(tensor), channel) for tensor in found.values()) else {}


def _is_training(key: str, prefix: str) -> bool:
    """Whether a tensor is what training keeps, at the top or under any part of the prefix."""
    starts = [0, *(at + 1 for at, letter in enumerate(prefix) if letter == "." and key.startswith(prefix[: at + 1]))]
    kinds = (_BESIDE, _COUNTER, _OPTIMIZER)
    return any(kind.fullmatch(key, start) for start in starts[: MOST_PREFIXES + 1] for kind in kinds)


def _is_count(tensor: Tensor | StoredTensor) -> bool:
    """Whether it is one whole number, or yes or no: no layer computes with that alone."""
    return shape(tensor) == () and not tensor.dtype.is_floating_point and not tensor.dtype.is_complex


def _is_of(
    sets: Sequence[str], key: str, tensor: Tensor | StoredTensor, state: Mapping[str, Tensor | StoredTensor]
) -> bool:
    """Whether a tensor is one of the network's again, of the same shape, in another set of its weights."""
    rests = (key.removeprefix(other) for other in sets if key.startswith(other))
    return any(rest in state and shape(state[rest]) == shape(tensor) for rest in rests)
