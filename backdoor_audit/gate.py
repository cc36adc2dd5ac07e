"""The gate as a Python call."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from backdoor_audit import bounds
from backdoor_audit.data import CleanSet, names_from, names_in
from backdoor_audit.data.conversion import Wish, converted
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import OptionError
from backdoor_audit.evidence import Finding, Record
from backdoor_audit.model import surroundings
from backdoor_audit.option_sources import options_of
from backdoor_audit.options import OPTIONS, AuditOptions
from backdoor_audit.questions.question import Skipped
from backdoor_audit.questions.record import judged_record
from backdoor_audit.questions.regression import beside_baseline, write_baseline
from backdoor_audit.questions.suite import Suite, suite_of
from backdoor_audit.run.run import Run
from backdoor_audit.store import Store
from backdoor_audit.structure import brief
from backdoor_audit.words import About

_MOST_NUMBERS = 16  # of an array that is an option: no more are means of channels or sides of images
_AS_ARRAYS = "give images (n, c, h, w) and labels (n,) as tensors or numpy arrays: audit(model, images, labels)"
_OPTION = re.compile(r"(--[a-z-]+)(?:: |=)")
_ARGUMENTS = {name: option.argument for option in OPTIONS for name in (option.flag, option.alias)}


def audit(
    model: nn.Module | str | Path,
    images: Any = None,
    labels: Any = None,
    *,
    class_names: Iterable[str] | Mapping[int, str] | Path | None = (),
    store: str | Path | None = None,
    progress: bool = True,
    today: date | None = None,
    **options: Any,
) -> Record:
    """Audit a module or a model file and return the record that ``audit.json`` holds.

    ``images`` are uint8 (n, h, w, c) or (n, c, h, w), or floats in [0, 1]; ``labels`` are integers (n,). Leave both out and
    pass ``data="folder or .npz"`` to load them. ``class_names`` are in the order of the model's scores, or what
    ``--audit-class-names`` takes. Other options are the fields of `AuditOptions`, as texts of the command line or as numbers,
    sequences, arrays, tensors, paths and devices; None is as good as the default. The module is not changed.
    Finished work is kept in ``store``, or dropped without one. Raises `AuditError` with one line for input that cannot
    be used; it is an `OptionError` that names the argument where one is of the wrong kind, cannot be read, or would be ignored.
    """
    began = time.perf_counter()
    _refuse_kinds(model, images, options.get("data"), store, today)
    if (images is None) != (labels is None):
        raise OptionError("audit() takes images and labels together, or data=...")
    module = model if isinstance(model, nn.Module) else None
    with _naming_arguments(), tempfile.TemporaryDirectory() as scratch, surroundings.gradients():
        chosen, names = _chosen(model, images, class_names, options)
        run = Run(
            chosen,
            Store(Path(store or scratch)),
            Suite.of(chosen),
            module=module,
            given_images=None if images is None else _given(images, labels, names, chosen),
            progress=progress,
        )
        run.check()
        if images is not None and names and len(names) != run.classifier.num_classes:
            raise OptionError(
                f"audit(class_names=...): {len(names)} names, the model scores {run.classifier.num_classes} classes; give the "
                f"names of all {run.classifier.num_classes}, in that order"
            )
        record, day = judged_record(run, shown=True), today or date.today()
        if changed := run.inputs.changed():  # before a baseline is made of it, or it is compared with one
            record = replace(record, errors={**record.errors, "audit": changed})
        if run.options.update_baseline:
            write_baseline(run, record, day)
        if run.baseline is not None:
            record = _with_regressions(run, record, day)
    return replace(record, seconds=time.perf_counter() - began)


@contextmanager
def _naming_arguments() -> Iterator[None]:
    """An `OptionError` of this block that begins with an option of the command line begins with the argument instead."""
    try:
        yield
    except OptionError as error:
        found = _OPTION.match(str(error))
        argument = _ARGUMENTS.get(found[1]) if found else None
        if found is None or argument is None:
            raise
        raise OptionError(f"{argument}: {str(error)[found.end() :]}") from None


def _refuse_kinds(model: object, images: object, data: object, store: object, today: object) -> None:
    """Raise `OptionError` for an argument that is of no kind that `audit` takes."""
    if not isinstance(model, (nn.Module, str, os.PathLike)):
        found, cure = brief(model), "; put what is called into the forward of a module" * callable(model)
        if isinstance(model, Mapping):
            found = f"a mapping of {len(model)} entries"
            cure = "; weights alone are no network: load them into one, network.load_state_dict(...)"
        raise OptionError(f"audit(model=...): {found}; accepted: a torch.nn.Module, or the path of a model file{cure}")
    for name, value in (("images", images), ("data", data)):
        if isinstance(value, CleanSet):
            raise OptionError(
                f"audit({name}=...): a CleanSet; give its parts: audit(model, clean.images, clean.labels)"
            )
        if isinstance(value, (Dataset, DataLoader)):
            raise OptionError(f"audit({name}=...): {brief(value)}; {_AS_ARRAYS}")
    if isinstance(images, (str, os.PathLike)):
        raise OptionError(f"audit(images=...): a path, {brief(str(images))}; pass it as data=...")
    if not isinstance(data, (str, os.PathLike, type(None))):
        raise OptionError(f"audit(data=...): {brief(data)}; accepted: a path; else {_AS_ARRAYS}")
    if not isinstance(store, (str, os.PathLike, type(None))):
        raise OptionError(f"audit(store=...): {brief(store)}; accepted: the path of a folder")
    if not isinstance(today, (date, type(None))):
        raise OptionError(f"audit(today=...): {brief(today)}; accepted: a datetime.date")


def _chosen(
    model: Any, images: object, class_names: Any, options: Mapping[str, Any]
) -> tuple[AuditOptions, tuple[str, ...]]:
    """The options, and the names of the classes of images that are given. Raises `OptionError`."""
    given = {name: _plain(value) for name, value in options.items()}
    if not isinstance(model, nn.Module):
        given["model"] = os.fspath(model)
    as_text = images is None and isinstance(class_names, (str, os.PathLike))
    names = () if as_text or class_names is None else _names_of(class_names)
    if as_text:
        given["class_names"] = os.fspath(class_names)
    elif images is None and names:
        if len(names) < 2 or any(not isinstance(name, str) or "," in name for name in names):
            raise OptionError("audit(class_names=...): accepted: two or more texts without commas")
        given["class_names"] = ",".join(names)
    chosen = options_of(given)
    if images is None and not chosen.data:
        raise OptionError("audit() needs clean images: pass images and labels, or data=...")
    _refuse_ignored(chosen, file=not isinstance(model, nn.Module), data=images is None)
    return chosen, names


def _refuse_ignored(options: AuditOptions, *, file: bool, data: bool) -> None:
    """Raise `OptionError` for an option that nothing would come of in this call."""
    whys = {
        "report": "a Python call writes no page; write the record, record.write(FILE), and run backdoor-audit report FILE"
    }
    if not file:
        whys |= dict.fromkeys(("arch", "allow_pickle"), "the model is a module and no file; leave it out")
    if not data:
        whys["data"] = "images and labels are given as well; leave one of them out"
        whys["class_order"] = (
            "images and labels are given; leave it out, the labels are the places of the model's scores"
        )
    usual = AuditOptions()
    for name, why in whys.items():
        if getattr(options, name) != getattr(usual, name):
            raise OptionError(f"audit({name}=...): {why}")
    if options.update_baseline and not options.baseline:
        raise OptionError("audit(update_baseline=...) needs the file to write: pass baseline=FILE")


def _names_of(given: Any) -> tuple[str, ...]:
    """Names of the classes, from whatever Python programs have them in. Raises `OptionError`."""
    if isinstance(given, (str, os.PathLike)):
        return names_from(os.path.expanduser(os.fspath(given))) if given else ()
    names: object = names_in(given) or None if isinstance(given, Mapping) else given
    if isinstance(names, Iterable):
        return tuple(names)
    raise OptionError(
        f"audit(class_names=...): {brief(given)}; accepted: a sequence of names, a mapping of every label from 0 on to its name, "
        "or what --audit-class-names takes"
    )


def _plain(value: object) -> object:
    """What Python programs have options in, as TOML would hold it; anything else as it is."""
    if isinstance(value, (str, os.PathLike, torch.device)):
        return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():  # of a count or a side that was computed
        return int(value)
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and np.prod(value.shape) <= _MOST_NUMBERS:
        with suppress(RuntimeError):  # a tensor without numbers
            return _plain(value.reshape(-1).tolist() if value.ndim else value.item())
    return value


def _given(images: Any, labels: Any, names: tuple[str, ...], options: AuditOptions) -> CleanSet:
    """The images of the call, as many, as large and with such channels as the options say. Raises `DataFormatError`."""
    clean = CleanSet.of(images, labels, class_names=names).sample(options.max_images, seed=options.seed)
    size = (options.resize[0], options.resize[1]) if options.resize else None
    channels, height, width = clean.image_shape
    wanted = (options.channels or channels, *(size or (height, width)))
    if wanted == clean.image_shape:
        return clean
    with bounds.allowing(bounds.Bounds(options.memory, options.reading_time)):
        Reading.begun(clean.source).check_images(len(clean), wanted)
    wish = Wish(size, options.channels or None, None, options.seed)
    return replace(clean, images=converted(clean.images, wish))


def _with_regressions(run: Run, record: Record, today: date) -> Record:
    """The record with the items about the baseline, and its section."""
    found = [(item.node_id, answer) for _, item, answer in suite_of(run).answers(run, about={About.CHANGE})]
    findings = [answer for _, answer in found if isinstance(answer, Finding)]
    skipped = {name: answer.reason for name, answer in found if isinstance(answer, Skipped)}
    errors = {name: str(answer) for name, answer in found if not isinstance(answer, (Finding, Skipped))}
    whole = replace(
        record,
        findings=[*record.findings, *findings],
        skipped={**record.skipped, **skipped},
        errors={**record.errors, **errors},
    )
    return beside_baseline(run, whole, today)
