"""Pickles of ``torch.save`` altered, or written by hand to do harm."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from random import Random

from benchmarks.fuzz.alter import CANARY, CANARY_MODULE, ODD_TEXTS, altered


def altered_pickle(draw: Random, content: bytes) -> bytes:
    """A pickle with operations put in, doubled, removed, swapped or nested; or with hostile ones in front or inside."""
    try:
        places = [place for _, _, place in pickletools.genops(content) if place is not None]
    except Exception:  # a pickle that was altered before
        return altered(draw, content)
    parts = [content[at:end] for at, end in zip(places, [*places[1:], len(content)], strict=True)]
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at = draw.randrange(1, len(parts))
        how = draw.randrange(6)
        if how == 0:
            parts.insert(at, draw.choice(SNIPPETS))
        elif how == 1:
            parts.insert(at, parts[at])
        elif how == 2 and len(parts) > 2:
            del parts[at]
        elif how == 3:
            other = draw.randrange(1, len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif how == 4:
            parts[at] = draw.choice(SNIPPETS)
        else:
            parts.insert(at, hostile(draw) + draw.choice((b"", b"0", b"\x85", b"R")))
    return b"".join(parts)


def as_text(text: str) -> bytes:
    """What puts a text on the stack."""
    content = text.encode("utf-8", "surrogatepass")
    return b"X" + len(content).to_bytes(4, "little") + content


def as_long(value: int) -> bytes:
    """What puts a whole number on the stack."""
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def as_tensor(offset: bytes, size: bytes, stride: bytes, *, count: int = 16, kind: str = "FloatStorage") -> bytes:
    """A tensor over storage 0."""
    storage = b"(" + as_text("storage") + _name("torch", kind) + as_text("0") + as_text("cpu") + as_long(count) + b"tQ"
    hooks = _name("collections", "OrderedDict") + b")R"
    return (
        _name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + offset + size + stride + b"\x89" + hooks + b"tR"
    )


_COMMAND = f"touch {CANARY}"
_SOURCE = f"open({CANARY!r}, 'w')"
_CALLS = (
    ("os", "system", _COMMAND),
    ("posix", "system", _COMMAND),
    ("subprocess", "check_call", _COMMAND),
    ("subprocess", "Popen", _COMMAND),
    ("builtins", "eval", _SOURCE),
    ("builtins", "exec", _SOURCE),
    ("builtins", "__import__", CANARY_MODULE),
    ("__builtin__", "eval", _SOURCE),
    ("importlib", "import_module", CANARY_MODULE),
    ("runpy", "run_path", f"{CANARY_MODULE}.py"),
    ("pydoc", "locate", f"{CANARY_MODULE}.make"),
    ("torch.hub", "load_state_dict_from_url", "file:///etc/passwd"),
    ("torch", "load", CANARY),
    ("torch.jit.unsupported_tensor_ops", "execWrapper", _SOURCE),
    ("torch._dynamo", "eval_frame.eval", _SOURCE),
    ("numpy.testing._private.utils", "runstring", _SOURCE),
    ("timeit", "timeit", _SOURCE),
    (CANARY_MODULE, "make", ""),
)
_DEPTHS = (5, 90, 500, 5_000, 20_000, 200_000, 1_000_000)
_SIZES = (0, 1, -1, 2**20, 3 * 10**9, 10**11, 2**62)


def _call(draw: Random) -> bytes:
    module, name, argument = draw.choice(_CALLS)
    how = draw.randrange(5)
    given = as_text(argument) + b"\x85"
    if how == 0:
        return b"(" + as_text(argument) + f"i{module}\n{name}\n".encode()
    if how == 1:
        return b"(" + _name(module, name) + as_text(argument) + b"o"
    if how == 2:
        return as_text(module) + as_text(name) + b"\x93" + given + b"R"
    if how == 3:
        return _name(module, name) + given + b"\x81"
    return _name(module, name) + given + b"R" + b"\x85R" * draw.choice((0, 0, 3, 1000))


def _deep(draw: Random) -> bytes:
    depth = draw.choice(_DEPTHS)
    inside = draw.choice(
        (
            b")" + b"\x85" * depth,
            b"]" * depth + b"a" * (depth - 1),
            b"(" * depth + b"t" * depth,
            b"}" * depth + b"",
            (b"}" + as_text("state_dict")) * depth + b"}" + b"s" * depth,
        )
    )
    return draw.choice((inside, b"}" + inside + b"K\1s", b"}" + as_text("w") + inside + b"s"))


def _grown(draw: Random) -> bytes:
    """Few bytes that mean very many objects: each level holds the one below twice."""
    levels = draw.choice((3, 20, 30, 60))
    doubled = draw.choice(
        (b")" + b"2\x86" * levels, b"]" + b"".join(b"2\x86" for _ in range(levels)), b"K\1" + b"2\x86" * levels)
    )
    return draw.choice((b"}" + doubled + b"K\1s", b"}" + as_text("w") + doubled + b"s", doubled))


def _asking(draw: Random) -> bytes:
    """Calls that are allowed, with arguments that ask for too much."""
    size = as_long(draw.choice(_SIZES))
    asked = draw.choice(
        (
            _name("builtins", "bytearray") + size + b"\x85R",
            _name("builtins", "bytearray")
            + as_text("a" * 9)
            + as_text(draw.choice(("utf-8", "zip", CANARY_MODULE)))
            + b"\x86R",
            _name("torch", "Size") + b"(" + size + size + b"t\x85R",
            _name("torch", "FloatStorage") + size + b"\x85R",
            _name("torch.storage", "UntypedStorage") + size + b"\x85R",
            _name("torch", "device") + as_text("cuda:99") + b"\x85R",
            _name("collections", "Counter") + b"}" + as_text("a") + size + b"s\x85R",
            _name("torch._utils", "_rebuild_parameter") + b"N\x88N\x87R",
            _name("torch._utils", "_rebuild_meta_tensor_no_storage") + b"N" + size + b"\x85" + size + b"\x85\x89tR",
            b"(" + as_text("storage") + _name("torch", "FloatStorage") + as_text("0") + as_text("cpu") + size + b"tQ",
            b"(" + as_text(draw.choice(ODD_TEXTS)) + b"tQ",
        )
    )
    return draw.choice((asked, b"}" + as_text("w") + asked + b"s", b"}" + asked + b"K\1s"))


def _view(draw: Random) -> bytes:
    """Tensors whose shape, stride, offset or storage lie."""
    offset = draw.choice((b"K\0", b"K\x08", as_long(draw.choice(_SIZES))))
    size = draw.choice((b"K\4\x85", b"K\2K\2\x86", as_long(draw.choice(_SIZES)) + b"\x85", b")", b"N"))
    stride = draw.choice((b"K\1\x85", b"K\0\x85", as_long(draw.choice(_SIZES)) + b"\x85", b")", b"K\2K\1\x86"))
    kind = draw.choice(
        ("FloatStorage", "BoolStorage", "QInt8Storage", "ComplexFloatStorage", "UntypedStorage", "BFloat16Storage")
    )
    tensor = as_tensor(offset, size, stride, count=draw.choice((16, 4, 2**40, 0)), kind=kind)
    return b"}" + as_text("w") + tensor + b"s"


def _built(draw: Random) -> bytes:
    """An object whose attributes are set from the file."""
    name = draw.choice(
        ("items", "keys", "values", "get", "__class__", "__dict__", "__len__", "__iter__", "_metadata", "x")
    )
    value = draw.choice((as_text("x"), b"N", b"]", b"}", _name("collections", "OrderedDict"), _name("os", "system")))
    holder = draw.choice(
        (
            _name("collections", "OrderedDict") + b")R",
            _name("torch.nn", "Parameter"),
            _name("collections", "OrderedDict"),
        )
    )
    filled = holder + draw.choice(
        (b"", as_text("k") + b"K\1s", as_text("w") + as_tensor(b"K\0", b"K\4\x85", b"K\1\x85") + b"s")
    )
    return filled + b"}" + as_text(name) + value + b"sb"


def _keyed(draw: Random) -> bytes:
    """State dicts with odd names, or that hold themselves."""
    key = draw.choice(
        (
            as_text(draw.choice(("module.", "model.", "_orig_mod.")) * draw.choice((1, 50, 20_000)) + "w"),
            as_text(draw.choice(ODD_TEXTS)),
            as_text("a" * 2_000_000),
            b"K\7",
            b"N",
            b"]",
            b"G\x7f\xf8\0\0\0\0\0\0",
        )
    )
    value = draw.choice((as_tensor(b"K\0", b"K\4\x85", b"K\1\x85"), b"K\1", b"}", b"N"))
    itself = b"}q\0" + as_text("state_dict") + b"h\0s"
    pairs = b"}(" + b"".join(as_text(f"module.{'a.' * 40}{n}") + b"K\1" for n in range(draw.choice((1, 3000)))) + b"u"
    return draw.choice(
        (b"}" + key + value + b"s", itself, pairs, b"}" + as_text("state_dict") + b"}" + key + value + b"ss")
    )


_HOSTILE: tuple[Callable[[Random], bytes], ...] = (_call, _call, _deep, _grown, _asking, _view, _built, _keyed)


def hostile(draw: Random) -> bytes:
    """The body of a pickle that leaves one object."""
    return draw.choice(_HOSTILE)(draw)


SNIPPETS = (
    *(
        b"(",
        b"}",
        b"]",
        b")",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"0",
        b"2",
        b"R",
        b"b",
        b"s",
        b"u",
        b"a",
        b"e",
        b"Q",
        b"o",
        b"1",
    ),
    *(
        b"\x81",
        b"\x93",
        b"N",
        b"\x88",
        b"\x89",
        b"K\1",
        b"M\xff\xff",
        b"J\xff\xff\xff\xff",
        b"h\0",
        b"j\xff\xff\xff\x7f",
        b"q\0",
    ),
    *(
        b"r\xff\xff\xff\x7f",
        b"\x94",
        b"\x82\1",
        b"\x84\xff\xff\xff\x7f",
        b"\x95" + b"\xff" * 8,
        b"\x8a\xff" + b"\1" * 255,
    ),
    *(
        b"X\xff\xff\xff\x7f",
        b"\x8d" + b"\xff" * 7 + b"\x7f",
        b"T\xff\xff\xff\x7f",
        b"I99999999999999999999\n",
        b"L1L\n",
        b"V\\ud800\n",
    ),
    *(
        _name("os", "system"),
        _name("builtins", "eval"),
        _name("builtins", "getattr"),
        _name("collections", "OrderedDict"),
    ),
    *(
        _name("torch._utils", "_rebuild_tensor_v2"),
        _name("torch", "FloatStorage"),
        _name("torch.serialization", "_get_layout"),
    ),
    *(
        _name("torch._tensor", "_rebuild_from_type_v2"),
        _name("builtins", "set"),
        _name("builtins", "complex"),
        as_long(2**70),
    ),
)
"""Single operations of a pickle."""
