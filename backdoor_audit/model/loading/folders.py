"""What lies in a Hugging Face folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError, read_json
from backdoor_audit.printable import printable

CONFIG = "config.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
ADAPTER = "adapter_config.json"
INDEX = ".index.json"
WEIGHTS = tuple(name for whole in WHOLE for name in (whole, whole + INDEX))
"""What names the weights, in the order in which transformers looks for it: one file, or the index of several."""

PART = re.compile(r"(?P<stem>model|pytorch_model)-[0-9]{5}-of-(?P<count>[0-9]{5})(?P<suffix>\.safetensors|\.bin)")
"""The name of one file of several."""

DISTRIBUTED = ".distcp"
"""The ending of parts that ``torch.distributed.checkpoint`` writes."""

_MOST_PARTS = 64
_MOST_ENTRIES = 1000  # of a folder in which checkpoints are looked for


def all_weights_in(folder: Path) -> list[Path]:
    """Every file of weights, or index of several."""
    return [folder / name for name in WEIGHTS if (folder / name).is_file()]


def weights_in(folder: Path) -> Path | None:
    """The file of weights, or the index of several, that transformers takes."""
    return next(iter(all_weights_in(folder)), None)


def files_of(folder: Path) -> tuple[Path, ...]:
    """The files that a network is made from, those of them that are there."""
    found = [folder / name for name in (CONFIG, *PREPROCESSORS, *WEIGHTS)]
    if any((folder / name).is_file() for name in WEIGHTS if name.endswith(INDEX)):
        found += sorted(file for file in folder.iterdir() if PART.fullmatch(file.name))
    return tuple(file for file in found if file.is_file())


def parts_by_file(index: Path) -> dict[Path, set[str]]:
    """The files that an index names, and the tensors that it says each of them holds.

    Raises `ModelFormatError` for an index that names none, too many, or what is no part in the same folder.
    """
    told = json_of(index).get("weight_map")
    stem, suffix = index.name.removesuffix(INDEX).rsplit(".", 1)
    found: dict[Path, set[str]] = {}
    for tensor, name in (told if isinstance(told, Mapping) else {}).items():
        part = PART.fullmatch(name) if isinstance(name, str) else None
        if part is None or (part["stem"], part["suffix"]) != (stem, f".{suffix}"):
            raise ModelFormatError(
                f"{index.name}: {str(name)[:60]!r} is no part; accepted: {stem}-00001-of-00002.{suffix} and the like, in "
                "the same folder"
            )
        found.setdefault(index.with_name(name), set()).add(tensor)
    if not 0 < len(found) <= _MOST_PARTS:
        raise ModelFormatError(
            f"{index.name}: weight_map names {len(found)} files; accepted: 1 to {_MOST_PARTS}; save the weights as one, "
            "save_pretrained(..., max_shard_size='100GB')"
        )
    return found


def json_of(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelFormatError` for anything else."""
    try:
        found = read_json(file)
    except UnreadableError as error:
        raise ModelFormatError(f"{file.name}: {error}") from None
    if not isinstance(found, dict):
        raise ModelFormatError(f"{file.name} is no JSON object")
    return found


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders in it that hold a network, as trainers write them; those of the latest step first."""
    entries = (entry for entry, _ in zip(folder.iterdir(), range(_MOST_ENTRIES), strict=False))
    found = [entry for entry in entries if (entry / CONFIG).is_file() and weights_in(entry)]
    return sorted(found, key=lambda entry: (_step(entry.name), entry.name), reverse=True)


def is_distributed(folder: Path) -> bool:
    """Whether a folder holds parts that ``torch.distributed.checkpoint`` has written."""
    return any(entry.suffix == DISTRIBUTED for entry, _ in zip(folder.iterdir(), range(_MOST_ENTRIES), strict=False))


def merged(folder: Path) -> str:
    """What to do about a folder of ``torch.distributed.checkpoint``, whose files hold parts of tensors."""
    return (
        "parts of a checkpoint of torch.distributed; make one file of them, python -m torch.distributed.checkpoint.format_utils "
        f"dcp_to_torch {shown(folder)} m.pt, and pass --model=m.pt"
    )


def shown(path: Path) -> str:
    """A path as the user gave it, in a message, and as a shell reads it."""
    return shlex.quote(printable(str(path)))


def _step(name: str) -> int:
    digits = re.search(r"([0-9]{1,12})$", name)
    return int(digits[1]) if digits else -1
