"""Archives of ``torch.export`` (.pt2): their weights are read; the graph, which torch would run code to read, is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError, parsed_json
from backdoor_audit.loading import checkpoint
from backdoor_audit.loading.archive import Archive, Member
from backdoor_audit.loading.containers import Candidate
from backdoor_audit.loading.format import Asked, Format, Network
from backdoor_audit.loading.hints import Hints
from backdoor_audit.loading.pickled import Storage, StoredTensor, tensor_of
from backdoor_audit.loading.placing import Source
from backdoor_audit.loading.refusals import Deadline, damaged, refuse_above
from backdoor_audit.loading.torch_save import placed

_CONFIG = "data/weights/model_weights_config.json"
_MARKS = frozenset({_CONFIG, "data/weights/model.pt", "serialized_exported_program.json", "models/model.json"})
_PER_BYTE = 16  # of JSON, in memory
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""Numbers of the kinds of number in the archive (`torch._export.serde.schema.ScalarType`)."""

_ADVICE = "save what was exported as weights, safetensors.torch.save_file(model.state_dict(), 'm.safetensors')"


def _recognises(asked: Asked) -> bool:
    return not _MARKS.isdisjoint(asked.members)


def _read(asked: Asked) -> Network:
    if not asked.arch:
        raise ModelFormatError(
            "a torch.export archive; reading its graph would run code, so that is not done; pass --arch=NAME, and its weights "
            "are put into that network"
        )
    if _CONFIG not in asked.members:
        raise ModelFormatError(
            f"a torch.export archive of an older torch, which keeps no list of its weights; {_ADVICE}"
        )
    deadline = Deadline()
    with asked.path.open("rb") as file:
        saved = _weights(file, asked.size, deadline)
        content = saved.content
        assert isinstance(content, dict)
        source = Source([Candidate((), content)], checkpoint.described, saved.tensors)
        network = placed(source, asked, Hints())
    notes = ("a torch.export archive: its weights were read, its graph was neither run nor looked at", *network.notes)
    return Network(network.module, network.architecture, notes, hints=network.hints)


def _weights(file: BinaryIO, size: int, deadline: Deadline) -> checkpoint.Saved:
    archive = Archive.open(file, size)
    listing = archive.find(_CONFIG)
    assert listing is not None
    refuse_above(listing.size * _PER_BYTE, f"a list of weights of {listing.size / 1e6:.0f} MB")
    try:
        config = parsed_json(archive.content(listing, deadline).decode("utf-8"))
    except (UnreadableError, UnicodeDecodeError) as error:
        raise damaged(f"a list of weights that is {error}") from None
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise damaged("a list of weights without its entries")
    stored = {name: _described(archive, entry) for name, entry in entries.items()}

    def fetch(storage: Storage, target: memoryview) -> None:
        archive.fill(_member(archive, storage.key), target, deadline)

    return checkpoint.Saved(stored, (), False, deadline, fetch)


def _described(archive: Archive, entry: Any) -> StoredTensor:
    meta = entry.get("tensor_meta") if isinstance(entry, Mapping) else None
    if not isinstance(meta, Mapping) or not isinstance(entry.get("path_name"), str):
        raise damaged("a weight that is not described")
    if entry.get("use_pickle"):
        raise ModelFormatError(f"a torch.export archive with pickled weights; {_ADVICE}")
    number = meta.get("dtype")
    dtype = _DTYPES.get(number) if type(number) is int else None
    if dtype is None:
        raise ModelFormatError(f"a torch.export archive with weights of kind {str(number)[:20]}; {_ADVICE}")
    member = _member(archive, entry["path_name"])
    storage = Storage(entry["path_name"], dtype, member.size // dtype.itemsize)
    if storage.nbytes != member.size:
        raise damaged("a weight that is cut off")
    sizes, strides = (tuple(_whole(part) for part in _listed(meta.get(key))) for key in ("sizes", "strides"))
    return tensor_of(storage, _whole(meta.get("storage_offset")), sizes, strides, dtype)


def _member(archive: Archive, name: str) -> Member:
    found = archive.find(f"data/weights/{name}")
    if found is None:
        raise damaged(f"the weight {name[:40]} is absent")
    return found


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _whole(value: object) -> object:
    return value.get("as_int") if isinstance(value, Mapping) else None


FORMAT = Format("torch.export", _recognises, _read)
