"""Archives of ``torch.export`` (.pt2): a graph, which torch would run code to read, so they are refused."""

from __future__ import annotations

from typing import NoReturn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.format import Asked, Format

_MARKS = frozenset(
    {
        "data/weights/model_weights_config.json",
        "data/weights/model.pt",
        "serialized_exported_program.json",
        "models/model.json",
    }
)


def _recognises(asked: Asked) -> bool:
    return not _MARKS.isdisjoint(asked.members)


def _refuse(asked: Asked) -> NoReturn:
    raise ModelFormatError(
        "a torch.export archive, which is a program: it is not run here, and its weights alone would not audit it; re-save the "
        'weights where its origin is trusted, torch.save(torch.export.load(f).state_dict, "weights.pt"), audit and deploy those '
        "with --arch=NAME"
    )


FORMAT = Format("torch.export", _recognises, _refuse, (".pt2",), refused=True)
