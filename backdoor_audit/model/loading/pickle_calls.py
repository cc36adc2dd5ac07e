"""What is called in a pickle of ``torch.save``, without calling it: tensors, shapes, dicts and names, or a refusal.

Functions and classes stand as names, objects as the name of their class with what the file says of them. What a file wants to
have called is refused unless it is known to give a plain value.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from backdoor_audit.model.loading import numpy_values
from backdoor_audit.model.loading.inert import DICTS, ENUM, INERT, SETS
from backdoor_audit.model.loading.pickle_values import Instance, Named, Storage, StoredTensor, key_of, tensor_of
from backdoor_audit.model.loading.refusals import Spending, damaged, needs_code, not_tensors_alone

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QInt32": torch.qint32,
    "QUInt8": torch.quint8,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
    "Untyped": torch.uint8,
}
_STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
_TENSOR = re.compile(r"torch\.(?:cuda\.|sparse\.|cuda\.sparse\.)?(\w*)Tensor")
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_PARAMETER = "torch.nn.parameter.Parameter"
_PARAMETERS = frozenset({_PARAMETER, "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"})
_EMPTY_TENSOR = "without data"
_NAMESPACE = "argparse.Namespace"

_REBUILDS = {  # arguments before the optional ones
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
}
_ODD = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse or nested",
    "torch._utils._rebuild_nested_tensor": "sparse or nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "without data (a meta tensor)",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "of another kind of device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of another kind of device",
}
_ALLOWED = _PARAMETERS | _REBUILDS.keys() | _ODD.keys()


class Calls:
    """What the pickles of one file have called; ``storages`` are those that they named.

    ``strangers`` are the functions and classes in them that are not known, none of which was to be called.
    """

    def __init__(self, spent: Spending) -> None:
        self.storages: dict[str, Storage] = {}
        self.strangers: dict[str, None] = {}
        self._spend = spent.spend

    def named(self, name: str) -> Named | torch.dtype:
        """What stands for a function or a class of that name, with its module before it."""
        if name in _DTYPES:
            return _DTYPES[name]
        storage = _STORAGE.fullmatch(name)
        known = name in _ALLOWED or _TENSOR.fullmatch(name) or (storage is not None and storage[1] in _STORAGES)
        if known or INERT.fullmatch(name):
            return Named(name)
        self.strangers[name] = None
        return Named(name, known=False)

    def build(self, target: object, state: object) -> None:
        """Attributes are of no use here, whatever they are called; in old files a tensor's content is set this way."""
        if isinstance(target, StoredTensor) and target.oddity == _EMPTY_TENSOR and isinstance(state, tuple):
            found = self._rebuilt("torch._utils._rebuild_tensor", state)
            target.oddity, target.storage, target.dtype = found.oddity, found.storage, found.dtype
            target.offset, target.size, target.stride = found.offset, found.size, found.stride
        elif isinstance(target, Instance):
            target.attributes = _attributes(state)
        elif isinstance(target, Named) and target.name in numpy_values.SET_LATER:
            target.state[:] = [state]
        elif not isinstance(target, (dict, list, Named)):
            raise not_tensors_alone(f"attributes of a {type(target).__name__}")

    def call(self, function: Named, arguments: tuple[object, ...], *, made: bool) -> object:
        """What torch gets from calling a function, or, if ``made``, from the ``__new__`` of a class."""
        name = function.name
        if not function.known:
            if not made and len(arguments) == 1 and isinstance(arguments[0], (str, int)) and ENUM.fullmatch(name):
                return arguments[0]
            if not made or arguments:
                raise needs_code(name)
            return Instance(name)
        if name in DICTS or name in SETS or name == "collections.OrderedDict":
            return self._filled(name, arguments, made=made)
        return Instance(name) if name == _NAMESPACE and not arguments else self._of_torch(name, arguments)

    def _of_torch(self, name: str, arguments: tuple[object, ...]) -> object:
        """A tensor, a shape, or what is only named."""
        if name == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
            return arguments[0]
        if name in _REBUILDS or name in _ODD:
            return self._rebuilt(name, arguments)
        if name in _PARAMETERS:
            return self._with_attributes(arguments[0], arguments[3:4])
        if name == "torch._tensor._rebuild_from_type_v2":
            return self._of_type(arguments)
        if _TENSOR.fullmatch(name) and not arguments:
            return StoredTensor(_EMPTY_TENSOR)
        short = name.rpartition(".")[2]
        value = numpy_values.single(arguments) if short == "scalar" else None
        return Named(short, arguments=arguments) if value is None else value

    def _filled(self, name: str, arguments: tuple[object, ...], *, made: bool) -> object:
        """A kind of dict, or a set as the list of its members, which nobody looks up."""
        if name == "collections.OrderedDict":
            return {} if made else self._ordered(arguments)
        if name in DICTS:
            return self._ordered(tuple(entry for entry in arguments[:1] if isinstance(entry, dict)))
        return arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else Named("set")

    def _of_type(self, arguments: tuple[object, ...]) -> object:
        """A tensor with attributes, or one of a class of its own."""
        function, kind, inner, state = arguments if len(arguments) == 4 else (None,) * 4
        if not isinstance(function, Named) or not isinstance(kind, Named) or not isinstance(inner, tuple):
            raise damaged("a tensor without its kind")
        if kind.name not in {"torch.Tensor", _PARAMETER}:
            return StoredTensor("of a class of its own")
        return self._with_attributes(self._rebuilt(function.name, inner), (state,))

    def _with_attributes(self, tensor: object, states: tuple[object, ...]) -> object:
        """The tensor, unless attributes that it is given would change what it is; many tensors may be given the same ones."""
        if not isinstance(tensor, StoredTensor):
            raise damaged("a parameter that is no tensor")
        for state in states:
            parts = state if isinstance(state, tuple) else (state,)
            self._spend(len(parts))
            for part in filter(None, parts):
                if isinstance(part, dict):
                    self._spend(len(part))
                if not isinstance(part, dict) or not all(map(_harmless, part)):
                    raise not_tensors_alone("a tensor with attributes that are its own")
        return replace(tensor)  # what is done to the one does not reach the other

    def _ordered(self, arguments: tuple[object, ...]) -> dict[object, object]:
        """The dict of pairs in a list, as Python 2 wrote it, or of another dict."""
        pairs = arguments[0] if arguments else ()
        if len(arguments) > 1 or not isinstance(pairs, (dict, list, tuple)):
            raise damaged("an OrderedDict of something else than pairs")
        self._spend(len(pairs))
        if isinstance(pairs, dict):
            return dict(pairs)
        found: dict[object, object] = {}
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise damaged("an OrderedDict of something else than pairs")
            found[key_of(pair[0])] = pair[1]
        return found

    def _rebuilt(self, name: str, arguments: tuple[object, ...]) -> StoredTensor:
        if name in _ODD:
            return StoredTensor(_ODD[name])
        needed = _REBUILDS.get(name)
        if needed is None or not needed <= len(arguments) <= needed + 1:
            raise damaged("a tensor that is not described in full")
        if any(arguments[needed:]):
            return StoredTensor("conjugate or negated in passing")
        storage, offset, size, stride = arguments[:4]
        dtype = arguments[6] if needed == 7 else storage.dtype if isinstance(storage, Storage) else None
        return tensor_of(storage, offset, size, stride, dtype)

    def persistent(self, place: object) -> Storage | Named:
        """The numbers, or the class of a module, that a file refers to as being elsewhere in it."""
        if isinstance(place, tuple) and len(place) == 4 and place[0] == "module" and isinstance(place[1], Named):
            return place[1]  # in old files classes of modules come with their source
        if not isinstance(place, tuple) or len(place) not in {5, 6} or place[0] != "storage":
            raise damaged("a pickle that refers to something else than numbers")
        kind, key, numel = place[1], place[2], place[4]
        if isinstance(kind, Named) and not kind.known:
            raise needs_code(kind.name)
        named = _STORAGE.fullmatch(kind.name) if isinstance(kind, Named) else None
        if named is None or not isinstance(key, str) or type(numel) is not int or not 0 <= numel < 2**58:
            raise damaged("a pickle that does not say where its numbers are")
        if any(place[5:]):
            raise not_tensors_alone("numbers that are part of others, as torch 0.3 wrote them")
        found = Storage(key, _STORAGES[named[1]], numel)
        first = self.storages.setdefault(key, found)
        if (first.dtype, first.numel) != (found.dtype, found.numel):
            raise damaged(f"the numbers {key[:40]} are described in two ways")
        return first


def _attributes(state: object) -> dict[object, object]:
    """What BUILD would set, or nothing where a class would have made sense of it itself. Not copied: it may be given often."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    found = [part for part in parts if isinstance(part, dict)]
    return found[-1] if found else {}


def _harmless(name: object) -> bool:
    return isinstance(name, str) and not hasattr(torch.Tensor, name)
