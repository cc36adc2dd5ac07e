"""Where in a checkpoint the tensors of a network may lie: in any dict by name, in lists too, or in a pickled object."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.pickle_values import Instance, StoredTensor, kind_of
from backdoor_audit.model.loading.refusals import Deadline, Spending, damaged

T = TypeVar("T", Tensor, StoredTensor)

_DEEPEST = 8  # a pickled dict may contain itself
_DEEPEST_MODULE = 64
_MOST_MODULES = 100_000  # by reference, a few objects can mean very many
_PER_NAME = 4096  # bytes of memory for each name that modules give: 2 million at the stated bound
_TOO_MANY = "its modules refer to each other so often that they hold more than {most} names, or names of as much text"
_ARRAYS = frozenset({"_reconstruct", "_frombuffer", "ndarray"})  # what makes an array in a pickle, and the array
_GROUPS = ("_parameters", "_buffers", "_modules")
_PASSING = "_non_persistent_buffers_set"


@dataclass(frozen=True, slots=True, eq=False)
class Candidate(Generic[T]):
    """Tensors by name, the keys on the way to them, what lies among them that is no tensor, and the module they were in."""

    path: tuple[str, ...]
    tensors: Mapping[str, T]
    others: tuple[str, ...] = ()
    root: Instance | None = None

    @property
    def module(self) -> str:
        """What a whole pickled module was called; empty for tensors that were in none."""
        return kind_of(self.root) if self.root is not None else ""

    @property
    def where(self) -> str:
        """How to call the place."""
        return ".".join(self.path)[:120] or "the top level"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was unwrapped."""
        notes: tuple[str, ...] = tuple(f"unwrapped {key[:60]}" for key in self.path)
        whole = f"whole pickled module {self.module}: its tensors were read, its code was not"
        return (*notes, whole) if self.module else notes


def candidates(content: object, deadline: Deadline | None = None) -> list[Candidate[StoredTensor]]:
    """Every dict with tensors by name and every pickled module in what was read from a file, outer ones first.

    Raises `ModelFormatError` if there are none.
    """
    found: list[Candidate[StoredTensor]] = []
    names = Spending(_PER_NAME, _TOO_MANY, ", or save its state_dict alone")
    for path, part in _parts(content):
        if isinstance(part, Instance):
            found.append(Candidate(path, dict(_module_tensors(part, names, deadline)), root=part))
        elif isinstance(part, Mapping):
            _add(found, path, part, StoredTensor)
    if not found:
        raise _nothing(content)
    return found


def unpickled_candidates(content: object) -> list[Candidate[Tensor]]:
    """The same in what torch has unpickled."""
    found: list[Candidate[Tensor]] = []
    for path, part in _parts(content):
        if isinstance(part, Mapping):
            _add(found, path, part, Tensor)
    if not found:
        raise _nothing(content)
    return found


def unnamed_sets(content: object, parameters: Collection[tuple[int, ...]]) -> tuple[str, ...]:
    """A note on every list of tensors, without names, that may be the network's again: half as many, in shapes of its own."""
    notes: list[str] = []
    for path, part in _parts(content):
        entries = part if isinstance(part, (list, tuple)) else ()
        shapes = [one.size for one in entries if isinstance(one, StoredTensor) and one.size]
        if shapes and 2 * len(shapes) >= len(parameters) and set(shapes) <= set(parameters):
            notes.append(
                f"{len(shapes)} tensors without names under {'.'.join(path)[:120]} are NOT audited: where they are averages that "
                "are deployed, copy them into the network, and save its state_dict alone"
            )
    return tuple(notes)


def _is_module(value: object) -> bool:
    """Whether an object was a module of PyTorch."""
    return isinstance(value, Instance) and "_modules" in value.attributes and "_parameters" in value.attributes


def _parts(content: object) -> Iterator[tuple[tuple[str, ...], Mapping[object, object] | Instance | Sequence[object]]]:
    """Dicts and lists inside of dicts, lists and objects, each once, outer ones first; modules as they are.

    Objects may share their attributes: they are the same dict, or the same module, again.
    """
    seen: set[int] = set()
    modules: set[int] = set()
    queue: deque[tuple[tuple[str, ...], object]] = deque([((), content)])
    while queue:
        path, part = queue.popleft()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Instance):
            if _is_module(part):
                if id(part.attributes) not in modules:
                    modules.add(id(part.attributes))
                    yield path, part
                continue
            part = part.attributes
            if id(part) in seen:
                continue
            seen.add(id(part))
        if isinstance(part, Mapping):
            yield path, part
            inner: Iterable[tuple[object, object]] = part.items()
        elif isinstance(part, (list, tuple)):
            yield path, part
            inner = enumerate(part)
        else:
            continue
        if len(path) < _DEEPEST:
            queue.extend(
                ((*path, str(key)), value)
                for key, value in inner
                if isinstance(value, (Mapping, Instance, list, tuple)) and value
            )


def _add(found: list[Candidate[T]], path: tuple[str, ...], part: Mapping[object, object], kind: type[T]) -> None:
    tensors = {key: value for key, value in part.items() if isinstance(key, str) and isinstance(value, kind)}
    if tensors:
        others = tuple(str(key) for key in part if key not in tensors)
        found.append(Candidate(path, tensors, others))


def _module_tensors(module: Instance, names: Spending, deadline: Deadline | None) -> Iterator[tuple[str, StoredTensor]]:
    """Parameters and buffers under the names that ``state_dict`` gives them."""
    stack: list[tuple[str, Instance, int]] = [("", module, 0)]
    visited = 0
    while stack:
        prefix, part, depth = stack.pop()
        visited += 1
        if deadline is not None:
            deadline.check()
        if depth > _DEEPEST_MODULE or visited > _MOST_MODULES:
            raise damaged("modules that hold each other without end")
        names.spend(1 + _size(part))
        tensors, parts = _contents(part)
        below = [*(name for name, _ in tensors), *(name for name, _ in parts)]
        names.spend(0, len(below) * len(prefix) + sum(map(len, below)))
        yield from ((prefix + name, tensor) for name, tensor in tensors)
        stack.extend((f"{prefix}{name}.", inner, depth + 1) for name, inner in parts)


def _size(module: Instance) -> int:
    """How many entries `_contents` goes over."""
    groups = [module.attributes.get(name) for name in (*_GROUPS, _PASSING)]
    return sum(len(group) for group in groups if isinstance(group, (dict, list)))


def _contents(module: Instance) -> tuple[list[tuple[str, StoredTensor]], list[tuple[str, Instance]]]:
    attributes = module.attributes
    passing = attributes.get(_PASSING)
    left = {name for name in passing if isinstance(name, str)} if isinstance(passing, list) else set()
    groups = [attributes.get(name) for name in _GROUPS]
    pairs = [pair for group in groups if isinstance(group, dict) for pair in group.items()]
    entries = [(key, value) for key, value in pairs if isinstance(key, str) and key not in left]
    tensors = [(key, value) for key, value in entries if isinstance(value, StoredTensor)]
    return tensors, [(key, value) for key, value in entries if isinstance(value, Instance)]


def _nothing(content: object) -> ModelFormatError:
    accepted = "accepted: a state_dict, or a dict with one in it"
    if not isinstance(content, Mapping):
        return ModelFormatError(f"holds a {kind_of(content)}; {accepted}")
    if not content:
        return ModelFormatError(f"holds an empty dict; {accepted}")
    for _, part in _parts(content):
        arrays = (
            [str(key)[:40] for key, value in part.items() if kind_of(value) in _ARRAYS]
            if isinstance(part, Mapping)
            else []
        )
        if len(arrays) > 1:
            more = f" and {len(arrays) - 3} more" if len(arrays) > 3 else ""
            return ModelFormatError(
                f"holds numpy arrays by name in place of tensors ({', '.join(arrays[:3])}{more}); save them as tensors, "
                "torch.save({key: torch.as_tensor(array) for key, array in arrays.items()}, 'm.pt')"
            )
    return ModelFormatError(f"no tensors by name: found {_shown(list(content.items()))}; {accepted}")


def _shown(entries: Sequence[tuple[object, object]]) -> str:
    shown = ", ".join(f"{str(key)[:40]} ({kind_of(value)})" for key, value in entries[:5])
    return f"{shown} and {len(entries) - 5} more" if len(entries) > 5 else shown
