"""The readers of the product, each with what it is given."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz import commands, models, pictures, records, settings


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of input: ``make`` writes one into an empty folder, ``read`` gives what it returns to the product.

    ``read`` returns the texts that the product showed, and raises what the product raised. ``share`` is this kind's part of all
    inputs, beside the others'.
    """

    name: str
    share: int
    make: Callable[[Random, Path], Any]
    read: Callable[[Any], Iterable[str]]

    def given(self, number: int, folder: Path) -> Any:
        """Input ``number``, in an empty folder: the same whenever it is made."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's and zipfile's remarks on what is asked of them
            return self.make(Random(f"{self.name}:{number}"), folder)


KINDS: tuple[Kind, ...] = (
    Kind("safetensors", 8, models.safetensors, models.read_model),
    Kind("torch_zip", 8, models.torch_zip, models.read_model),
    Kind("torch_legacy", 4, models.torch_legacy, models.read_model),
    Kind("pickle", 12, models.hostile_pickle, models.read_model),
    Kind("trigger", 6, models.trigger, models.read_trigger),
    Kind("folder", 12, pictures.folder, pictures.read_images),
    Kind("npz", 12, pictures.npz, pictures.read_images),
    Kind("record", 10, records.record, records.read_record),
    Kind("compare", 6, records.comparison, commands.command),
    Kind("baseline", 6, records.baseline, records.read_baseline),
    Kind("corpus", 5, records.corpus, records.read_corpus),
    Kind("reference", 4, records.reference, records.read_reference),
    Kind("toml", 6, settings.project, settings.read_project),
    Kind("options", 5, settings.options, settings.read_options),
    Kind("command", 4, settings.arguments, commands.command),
    Kind("store", 8, records.store, records.read_store),
)
"""Every reader; a new one is fuzzed by being here."""
