"""Files of ``torch.save`` made by hand: any pickle, any members."""

from __future__ import annotations

import io
import pickle
import zipfile

ORDERED = b"ccollections\nOrderedDict\n)R"


def text(value):
    encoded = value if isinstance(value, bytes) else value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def storage(numel, key="0", kind="torch\nFloatStorage", *, views=b""):
    return b"(" + text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + number(numel) + views + b"tQ"


def tensor(size, numel=None, *, offset=0, stride=1, key="0", kind="torch\nFloatStorage"):
    """A row of ``size`` float32 numbers, unless said otherwise."""
    stored = storage(size if numel is None else numel, key, kind)
    shape = number(offset) + number(size) + b"\x85" + number(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + shape + b"\x89" + ORDERED + b"tR"


def archived(body, members=(), *, method=zipfile.ZIP_STORED, folder="archive"):
    """A zip file around a pickle without its first and last instruction, and around other members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(f"{folder}/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr(f"{folder}/version", "3\n")
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def legacy(body, keys=(), numbers=()):
    """The older format: pickles, then for each key a count of elements and bytes."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    stored = b"".join(count.to_bytes(8, "little") + content for count, content in numbers)
    return b"".join(parts) + b"\x80\x02" + body + b"." + pickle.dumps(list(keys), 2) + stored
