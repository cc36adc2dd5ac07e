"""The pickles that ``torch.save`` writes, read as data: nothing is imported, nothing is called, no tensor is made.

torch's own reader of untrusted pickles follows them closely enough to be led astray: it hashes tuples of any depth as keys,
allocates what ``bytearray(N)`` asks for, copies what is multiplied by reference. A process of its own would bound that, at two
seconds of imports for every file, and not on every system. This reader needs none: it knows the instructions that torch knows,
has no recursion, takes memory in proportion to the file, and describes a tensor until somebody wants its numbers. Functions and
classes stand in its result as names, objects as the name of their class with what the file says of them. What a file wants to
have called is refused unless it is known to give a plain value.
"""

from __future__ import annotations

import pickle
import re
import struct
from dataclasses import replace
from typing import BinaryIO

import torch

from backdoor_audit.model.loading import numpy_values
from backdoor_audit.model.loading.inert import DICTS, ENUM, INERT, SETS
from backdoor_audit.model.loading.pickle_values import Instance, Named, Storage, StoredTensor, key_of, tensor_of
from backdoor_audit.model.loading.refusals import Deadline, Spending, damaged, needs_code, not_tensors_alone

_PER_STEP = 4096  # bytes of memory for each instruction: 2 million, 45,000 tensors, at the stated bound
_TOO_MUCH = "its pickle holds more than {most} instructions, or as much text, or entries that it goes over again"
_LONGEST_NAME = 1000
_NEWEST = 2  # protocol of pickles that is read
_AT_ONCE = 1024  # instructions between two looks at the bounds

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
NAMESPACE = "argparse.Namespace"

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
_CONSTANTS: dict[bytes, object] = {
    pickle.NONE: None,
    pickle.NEWTRUE: True,
    pickle.NEWFALSE: False,
    pickle.EMPTY_TUPLE: (),
    pickle.EMPTY_SET: Named("set"),
}
_NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
_TEXTS = {pickle.BINUNICODE: "<I", pickle.SHORT_BINSTRING: "<B"}
_GETS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_PUTS = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_VALUES = frozenset(
    {*_CONSTANTS, *_NUMBERS, *_TEXTS, *_GETS, pickle.LONG1, pickle.GLOBAL, pickle.EMPTY_DICT, pickle.EMPTY_LIST}
)


class Unpickler:
    """Reads one pickle after the other from a file of ``size`` bytes; ``storages`` are those that they named.

    ``strangers`` are the functions and classes in them that are not known, none of which was to be called.
    """

    def __init__(self, file: BinaryIO, size: int, deadline: Deadline) -> None:
        self.storages: dict[str, Storage] = {}
        self.strangers: dict[str, None] = {}
        self._file, self._size, self._deadline = file, size, deadline
        self._spend = Spending(_PER_STEP, _TOO_MUCH).spend
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """The next pickle: dicts, lists, tuples, texts, numbers, `StoredTensor`, `Instance` and `Named`.

        Raises `ModelFormatError` if it is damaged, calls what is not known, or takes more than the bounds.
        """
        self._stack, self._marked, self._memo = [], [], {}
        try:
            while not self._some_steps():
                self._deadline.check()
            return self._stack.pop()
        except (IndexError, KeyError, UnicodeDecodeError) as error:
            raise damaged(f"a pickle that contradicts itself, {type(error).__name__}") from None

    def _some_steps(self) -> bool:
        """Follow instructions; whether the last one has come."""
        read = self._file.read
        for step in range(_AT_ONCE):
            code = read(1)
            if code == pickle.STOP:
                self._spend(step)
                return True
            self._step(code)
        self._spend(_AT_ONCE)
        return False

    def _step(self, code: bytes) -> None:
        if code in _VALUES:
            self._stack.append(self._value(code))
        elif code in _PUTS:
            self._memo[int(self._number(_PUTS[code]))] = self._stack[-1]
        elif code == pickle.MARK:
            self._marked.append(self._stack)
            self._stack = []
        elif code == pickle.PROTO:
            protocol = self._take(1)[0]
            if protocol > _NEWEST:
                raise not_tensors_alone(f"pickle_protocol={protocol}, torch.save writes {_NEWEST} unless asked")
        else:
            self._compose(code)

    def _value(self, code: bytes) -> object:
        """What an instruction puts on the stack out of itself."""
        value: object
        if code in _GETS:
            value = self._memo[int(self._number(_GETS[code]))]
        elif code in _NUMBERS:
            value = self._number(_NUMBERS[code])
        elif code in _CONSTANTS:
            value = _CONSTANTS[code]
        elif code in _TEXTS:
            value = self._text(int(self._number(_TEXTS[code])))
        elif code == pickle.LONG1:
            value = int.from_bytes(self._take(int(self._number("<B"))), "little", signed=True)
        elif code == pickle.GLOBAL:
            value = self._named()
        else:
            value = {} if code == pickle.EMPTY_DICT else []
        return value

    def _compose(self, code: bytes) -> None:
        """Instructions that put what lies on the stack together."""
        stack = self._stack
        if code in {pickle.REDUCE, pickle.NEWOBJ}:
            function, arguments = self._top(2)
            if not isinstance(function, Named) or type(arguments) is not tuple:
                raise damaged("a pickle that calls what is no function")
            stack[-2:] = [self._new(function, arguments, made=code == pickle.NEWOBJ)]
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(self._top(_TUPLES[code]))]
        elif code == pickle.TUPLE:
            items = tuple(self._from_mark())
            self._stack.append(items)
        elif code == pickle.BINPERSID:
            stack.append(self._persistent(stack.pop()))
        elif code == pickle.SETITEM:
            self._extend(self._top(2), dict)
        elif code == pickle.SETITEMS:
            self._extend(self._from_mark(), dict, marked=True)
        elif code == pickle.APPEND:
            self._extend(self._top(1), list)
        elif code == pickle.APPENDS:
            self._extend(self._from_mark(), list, marked=True)
        elif code == pickle.BUILD:
            state = stack.pop()
            self._build(stack[-1], state)
        else:
            raise not_tensors_alone(f"instruction {code!r}") if code else damaged("the file ends within a pickle")

    def _extend(self, items: list[object], kind: type, *, marked: bool = False) -> None:
        if not marked:
            del self._stack[-len(items) :]
        target = self._stack[-1]
        if isinstance(target, list) and kind is list:
            target.extend(items)
        elif isinstance(target, dict) and kind is dict and len(items) % 2 == 0:
            target.update((key_of(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, Instance):  # a kind of dict or list: what it holds is of no use
            return
        elif not isinstance(target, Named) or not target.known:
            raise damaged(f"a pickle that fills a {type(target).__name__} as if it were a {kind.__name__}")

    def _build(self, target: object, state: object) -> None:
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

    def _new(self, function: Named, arguments: tuple[object, ...], *, made: bool) -> object:
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
        return Instance(name) if name == NAMESPACE and not arguments else self._of_torch(name, arguments)

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

    def _persistent(self, place: object) -> Storage | Named:
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

    def _named(self) -> Named | torch.dtype:
        module, name = self._line(), self._line()
        name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if name in _DTYPES:
            return _DTYPES[name]
        storage = _STORAGE.fullmatch(name)
        known = name in _ALLOWED or _TENSOR.fullmatch(name) or (storage is not None and storage[1] in _STORAGES)
        if known or INERT.fullmatch(name):
            return Named(name)
        self.strangers[name] = None
        return Named(name, known=False)

    def _line(self) -> str:
        line = self._file.readline(_LONGEST_NAME)
        if not line.endswith(b"\n"):
            raise damaged("a pickle with a name that does not end")
        return line[:-1].decode("utf-8")

    def _text(self, count: int) -> str:
        if count > self._size - self._file.tell():
            raise damaged("the file ends within a text")
        self._spend(0, count)
        return self._take(count).decode("utf-8", "surrogatepass")

    def _number(self, layout: str) -> float:
        number: float = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return number

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise damaged("the file ends within a pickle")
        return data

    def _top(self, count: int) -> list[object]:
        if len(self._stack) < count:
            raise IndexError
        return self._stack[-count:]

    def _from_mark(self) -> list[object]:
        items, self._stack = self._stack, self._marked.pop()
        return items


def _attributes(state: object) -> dict[object, object]:
    """What BUILD would set, or nothing where a class would have made sense of it itself. Not copied: it may be given often."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    found = [part for part in parts if isinstance(part, dict)]
    return found[-1] if found else {}


def _harmless(name: object) -> bool:
    return isinstance(name, str) and not hasattr(torch.Tensor, name)
