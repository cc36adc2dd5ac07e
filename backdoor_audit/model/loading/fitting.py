"""Which tensors of a file are those of a network: by their names after any prefix that they have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic

import torch
from torch import Tensor

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.beside import MOST_PREFIXES, is_beside, is_counter, mean_and_std, shape, unexplained
from backdoor_audit.model.loading.containers import Candidate, T
from backdoor_audit.model.loading.folding import whole_name
from backdoor_audit.model.loading.pickle_values import StoredTensor
from backdoor_audit.model.loading.refusals import Deadline

_MOST_PLACES = 64  # where a network's names are found equally often
_MOST_ELSEWHERE = 8  # tensors of the network that may lie under another prefix
_WRAPPING = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGED = re.compile(r"(?:^|[_.-])(?:ema|swa|averaged?|avg)(?:$|[_.-])", re.IGNORECASE)

_NORMALISING = re.compile(r"(?:.*[._])?(?:mean|std|mu|sigma)", re.IGNORECASE)
"""Names of buffers by which a network normalises its images itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit(Generic[T]):
    """Tensors of a candidate under the names of the network; ``left`` are those of its others that are no part of it.

    ``strange`` are those of ``left`` that may be layers all the same: no losses, metrics, counters, and no other set of the same
    network. ``in_front`` are mean and std, by their names, by which the images are normalised in front of the network.
    """

    candidate: Candidate[T]
    prefix: str
    state: dict[str, T]
    left: tuple[str, ...]
    notes: tuple[str, ...]
    strange: tuple[str, ...] = ()
    in_front: Mapping[str, T] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """How to call the place."""
        return f"{self.candidate.where}, {self.prefix}*" if self.prefix else self.candidate.where

    @property
    def averaged(self) -> bool:
        """Whether the place says that these weights are averages over training."""
        named = any(_AVERAGED.search(part) for part in (*self.candidate.path, self.prefix))
        beside = (name.removesuffix("n_averaged") for name in self.candidate.tensors if name.endswith("n_averaged"))
        return named or any(self.prefix.startswith(place) for place in beside)

    def refuse_strange(self, name: str) -> None:
        """Raise `ModelFormatError` if tensors beside the network may be layers that it does not have."""
        if self.strange:
            shown = ", ".join(key[:60] for key in self.strange[:3])
            normalising = all(map(_NORMALISING.fullmatch, self.strange))
            cure = " (mean and std in front of the network: it then goes with --mean and --std)" if normalising else ""
            raise ModelFormatError(
                f"does not fit {name}: {len(self.strange)} tensors outside of {self.prefix[:60]}* may be layers that it does not "
                f"have ({shown}); pass an --arch that has them, or save the audited network alone and deploy that{cure}"
            )

    def told(self, *, normalised: bool) -> tuple[str, ...]:
        """What was unwrapped, stripped and left out. ``normalised``: what stands in front of the network was read."""
        notes = (*self.candidate.notes, *self.notes)
        notes += (f"stripped prefix {self.prefix[:120]}",) if self.prefix else ()
        before = _before(self.prefix)
        if before and not normalised and not any(name.startswith(before) for name in self.candidate.tensors):
            notes += (
                f"what stands at {before}* before it has no tensors and is left out: a normalisation there goes with "
                "--mean, --std",
            )
        left = (*self.left, *self.candidate.others)
        if left:
            more = " and more" if len(left) > 5 else ""
            notes += (f"left out, no parameters of the network: {', '.join(name[:60] for name in left[:5])}{more}",)
        return notes


def _before(prefix: str) -> str:
    """The place of a sequence before that of a prefix; empty where it is no place of one, or the first."""
    above, _, place = prefix.removesuffix(".").rpartition(".")
    if not (place.isascii() and place.isdecimal() and int(place[:9]) > 0):
        return ""
    return f"{above}." * bool(above) + f"{int(place[:9]) - 1}."


def fits(candidates: Sequence[Candidate[T]], names: Collection[str]) -> list[Fit[T]]:
    """The places with the most of the network's names; where nothing agrees, the place with the most tensors.

    A network may call everything by one more prefix than the file, as one does that holds the file's network and adds to its
    scores. Places that hold the very same tensors count once. Raises `ModelFormatError` for more than `_MOST_PLACES`.
    """
    if found := _agreeing(candidates, names):
        return found
    for outer in _common_prefixes(names):
        if found := _agreeing(candidates, {name.removeprefix(outer) for name in names}):
            return [_inside(fit, outer) for fit in found]
    largest = max(candidates, key=lambda candidate: len(candidate.tensors))
    return [Fit(largest, "", dict(largest.tensors), (), ())]


def _agreeing(candidates: Sequence[Candidate[T]], names: Collection[str]) -> list[Fit[T]]:
    """The places with the most of these names; none if there is not one name in any of them."""
    deadline = Deadline()
    wanted = {name for name in names if not is_counter(name)}
    scored = [
        (score, candidate, prefix)
        for candidate in candidates
        for prefix, score in sorted(_prefixes(candidate.tensors, wanted).items())
    ]
    best = max((score for score, _, _ in scored), default=0)
    if not best:
        return []
    places = [(candidate, prefix) for score, candidate, prefix in scored if score == best]
    if len(places) > _MOST_PLACES:
        raise ModelFormatError(
            f"{len(places)} places hold equally many of the network's tensors; at most {_MOST_PLACES} here; save one alone"
        )
    averages = [(candidate, prefix) for _, candidate, prefix in scored if _AVERAGED.search(prefix)]
    found: dict[tuple[object, ...], Fit[T]] = {}
    for candidate, prefix in places:
        beside = [other for whose, other in places if whose is candidate and other != prefix and 2 * best > len(wanted)]
        sets = [other for whose, other in averages if whose is candidate and other != prefix]
        fit = _fit(candidate, prefix, set(names), beside, sets[:_MOST_PLACES], deadline)
        found.setdefault(tuple(sorted(map(_identity, fit.state.items()))), fit)
    return list(found.values())


def _common_prefixes(names: Collection[str]) -> list[str]:
    """What all names of a network begin with, up to a dot; short ones first."""
    wanted = [name for name in names if not is_counter(name)]
    first, last = min(wanted, default=""), max(wanted, default="")
    ends = [at + 1 for at, letter in enumerate(first) if letter == "." and last.startswith(first[: at + 1])]
    return [first[:end] for end in ends[:MOST_PREFIXES]]


def _inside(fit: Fit[T], outer: str) -> Fit[T]:
    """The same with the tensors under the names of a network that holds the file's."""
    note = f"added prefix {outer[:120]}, by which the network calls all of its tensors"
    return replace(fit, state={outer + name: tensor for name, tensor in fit.state.items()}, notes=(*fit.notes, note))


def outer_prefix(missing: Collection[str], extra: Sequence[str]) -> tuple[str, int]:
    """By which prefix the network knows more than half of the tensors that it does not know, and how many that are."""
    wanted = set(missing)
    prefixes = {name[: -len(key)] for key in extra[:_MOST_ELSEWHERE] for name in wanted if name.endswith(f".{key}")}
    counts = {prefix: sum(prefix + key in wanted for key in extra) for prefix in sorted(prefixes)[:_MOST_PLACES]}
    best = max(counts, key=lambda prefix: counts[prefix], default="")
    return (best, counts[best]) if best and 2 * counts[best] > len(extra) else ("", 0)


def _completed(state: dict[str, T], names: Collection[str]) -> tuple[dict[str, T], str]:
    """The tensors, those that the network does not know under one more prefix if it then misses none; and that prefix."""
    missing = [name for name in names if name not in state and not is_counter(name)]
    extra = [key for key in state if key not in names and not is_counter(key)]
    prefix, count = outer_prefix(missing, extra)
    if not prefix or not count == len(missing) == len(extra):
        return state, ""
    return {key if key in names else prefix + key: tensor for key, tensor in state.items()}, prefix


def _prefixes(tensors: Iterable[str], wanted: Collection[str]) -> Counter[str]:
    """How many of the network's names follow on each prefix."""
    longest = max(map(len, wanted), default=0)
    scores: Counter[str] = Counter()
    for prefix, _ in {found for key in tensors for found in _splits(_unwrapped(key), wanted, longest)}:
        scores[prefix] += 1
    return scores


def _splits(key: str, wanted: Collection[str], longest: int) -> Iterator[tuple[str, str]]:
    at = 0
    for _ in range(MOST_PREFIXES + 1):
        if len(key) - at <= longest + 40:  # parts of a weight have longer names
            for rest in (key[at:], whole_name(key[at:])):
                if rest in wanted:
                    yield key[:at], rest
        at = key.find(".", at) + 1
        if not at:
            return


def _unwrapped(key: str) -> str:
    return _WRAPPING.sub("", key) if len(key) < 1000 else key


def _fit(
    candidate: Candidate[T],
    prefix: str,
    names: Collection[str],
    beside: Sequence[str],
    averages: Sequence[str],
    deadline: Deadline,
) -> Fit[T]:
    state, left = {}, {}
    renamed = 0
    for key, tensor in candidate.tensors.items():
        deadline.check()
        clean = _unwrapped(key)
        clean = key if clean in candidate.tensors else clean
        renamed += clean != key
        rest = clean.removeprefix(prefix)
        others = any(len(other) > len(prefix) and clean.startswith(other) for other in beside)
        if not clean.startswith(prefix) or others or (rest not in names and is_beside(rest)):
            left[clean] = tensor
        else:
            state[rest] = tensor
    notes: tuple[str, ...] = ()
    notes += (f"stripped what wrapped {renamed} names (_orig_mod. or the like)",) * bool(renamed)
    missing = [name for name in names if name not in state and not is_counter(name)] if prefix else []
    for name in missing if len(missing) <= _MOST_ELSEWHERE else ():
        ends = [key for key in left if key.endswith(f".{name}")]
        if len(ends) == 1:  # the head lies elsewhere: backbone.conv1.weight, head.fc.weight
            state[name] = left.pop(ends[0])
            notes += (f"{ends[0][:80]} taken for {name}",)
    layer = _only_layer([name for name in missing if name not in state])
    beside_it = _only_layer([key for key in left if not is_beside(key)])
    if layer and beside_it and _is_matrix(left[f"{beside_it}.weight"]):  # a backbone without its head, and a head
        for part in ("weight", "bias"):
            state[f"{layer}.{part}"] = left.pop(f"{beside_it}.{part}")
        notes += (f"{beside_it[:80]} taken for {layer}",)
    state, outer = _completed(state, names)
    notes += (f"added prefix {outer[:120]}, by which the network calls those that it did not know",) * bool(outer)
    strange = unexplained(left, prefix, (*beside, *averages), state)
    in_front = mean_and_std(
        {key: left[key] for key in strange} | {key: state[key] for key in state if key not in names}, state
    )
    for key in in_front:
        state.pop(key, None)
        left.pop(key, None)
    strange = [key for key in strange if key not in in_front]
    return Fit(candidate, prefix, state, tuple(left), notes, tuple(strange), in_front)


def _only_layer(names: Sequence[str]) -> str:
    """The one layer whose weight and bias these are, or an empty string."""
    layers = {name.rpartition(".")[0] for name in names}
    parts = sorted(name.rpartition(".")[2] for name in names)
    return layers.pop() if len(layers) == 1 and parts == ["bias", "weight"] else ""


def _is_matrix(tensor: Tensor | StoredTensor) -> bool:
    return len(shape(tensor)) == 2


def _identity(entry: tuple[str, Any]) -> tuple[object, ...]:
    """A name and which numbers in the file it means."""
    name, tensor = entry
    if isinstance(tensor, StoredTensor):
        key = tensor.storage.key if tensor.storage else str(id(tensor))
        return name, key, tensor.offset, tensor.size, tensor.stride
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        return name, str(id(tensor)), 0, (), ()
    return name, str(tensor.data_ptr()), 0, tuple(tensor.shape), tuple(tensor.stride())
