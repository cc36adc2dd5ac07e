"""The pickles that ``torch.save`` writes, read as data: nothing is imported, nothing is called, no tensor is made.

torch's own reader of untrusted pickles follows them closely enough to be led astray: it hashes tuples of any depth as keys,
allocates what ``bytearray(N)`` asks for, copies what is multiplied by reference. A process of its own would bound that, at two
seconds of imports for every file, and not on every system. This reader needs none: it knows the instructions that torch knows,
has no recursion, takes memory in proportion to the file, and describes a tensor until somebody wants its numbers. What the
file wants to have called is told by `pickle_calls`.
"""

from __future__ import annotations

import pickle
import struct
from typing import BinaryIO

from backdoor_audit.model.loading.pickle_calls import Calls
from backdoor_audit.model.loading.pickle_values import Instance, Named, key_of
from backdoor_audit.model.loading.refusals import Deadline, Spending, damaged, not_tensors_alone

_PER_STEP = 4096  # bytes of memory for each instruction: 2 million, 45,000 tensors, at the stated bound
_TOO_MUCH = "its pickle holds more than {most} instructions, or as much text, or entries that it goes over again"
_LONGEST_NAME = 1000
_NEWEST = 2  # protocol of pickles that is read
_AT_ONCE = 1024  # instructions between two looks at the bounds

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
        spent = Spending(_PER_STEP, _TOO_MUCH)
        self._calls, self._spend = Calls(spent), spent.spend
        self.storages, self.strangers = self._calls.storages, self._calls.strangers
        self._file, self._size, self._deadline = file, size, deadline
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
            module, name = self._line(), self._line()
            value = self._calls.named(f"{'builtins' if module == '__builtin__' else module}.{name}")
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
            stack[-2:] = [self._calls.call(function, arguments, made=code == pickle.NEWOBJ)]
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(self._top(_TUPLES[code]))]
        elif code == pickle.TUPLE:
            items = tuple(self._from_mark())
            self._stack.append(items)
        elif code == pickle.BINPERSID:
            stack.append(self._calls.persistent(stack.pop()))
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
            self._calls.build(stack[-1], state)
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
