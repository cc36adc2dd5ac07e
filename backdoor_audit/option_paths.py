"""Whether the files and folders that options name are there. Imports neither torch nor pytest, and opens nothing."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from backdoor_audit.errors import OptionError
from backdoor_audit.files import obstacle
from backdoor_audit.option_texts import named
from backdoor_audit.options import TABLE, AuditOptions

_IS_FOLDER, _IS_ABSENT = "is a folder", "does not exist"


def check_paths(options: AuditOptions) -> None:
    """Raise `OptionError` for files that are not there, before anything slow is imported."""
    problems = []
    if options.model and (absence := _absence(options.model)) not in ("", _IS_FOLDER):  # the loader knows folders
        hint = _to_fetch(options.model)
        problems.append(
            f"--audit-model: {named(options.model)} {absence}; give a model file or a Hugging Face folder{hint}"
        )
    if not options.data:
        problems.append(
            "no clean images: pass --audit-data=SOURCE (a folder of class folders, an .npz with images and labels, a .csv "
            f"of paths and labels, or torchvision:NAME?root=DIR), or set data in [{TABLE}] of pyproject.toml"
        )
    elif not options.data.startswith("torchvision:") and (absence := _absence(options.data)) not in ("", _IS_FOLDER):
        problems.append(
            f"--audit-data: {named(options.data)} {absence}; give a folder of class folders, an .npz or .csv file, or "
            "torchvision:NAME?root=DIR"
        )
    for name in ("trigger", "reference", "twins"):
        file = getattr(options, name)
        if file and (absence := _absence(file)):
            problems.append(f"--audit-{name}: {named(file)} {absence}")
    names = options.class_names
    if names and "," not in names and (absence := _absence(names)):
        problems.append(f"--audit-class-names: {named(names)} {absence}; give a file, or names between commas")
    problems += _baseline_problems(options)
    if options.suite and (found := _absence(options.suite)) != _IS_FOLDER:
        problems.append(
            f"--audit-suite: {named(options.suite)} {found or 'is a file'}; give a folder of files test_*.py"
        )
    for name in ("report", "corpus"):
        folder = getattr(options, name)
        if folder and (found := _no_folder(folder)):
            problems.append(
                f"--audit-{name}: {named(folder)} {found}; give a folder that exists, or a new one in a folder"
            )
    if problems:
        raise OptionError("; ".join(problems))


def _to_fetch(model: str) -> str:
    """What to do about the name of a model elsewhere, to be put behind an error: nothing is downloaded here. Or nothing."""
    name = re.fullmatch(r"(?:https?://(?:www\.)?huggingface\.co/|hf-hub:|hf://)?([\w.-]{1,96}/[\w.-]{1,96})/?", model)
    if name and not os.path.isdir(name[1].partition("/")[0]):
        return (
            f"; of a model on the Hugging Face hub the folder, once fetched: hf download {name[1]} --local-dir model/"
        )
    return "; download the file first" if model.startswith(("http://", "https://")) else ""


def _baseline_problems(options: AuditOptions) -> list[str]:
    file = options.baseline
    if not file:
        return ["--audit-update-baseline needs the file to write: pass --audit-baseline=FILE"] * options.update_baseline
    absence = _absence(file)
    if absence and not options.update_baseline:
        return [f"--audit-baseline: {named(file)} {absence}; make it with --audit-update-baseline"]
    dangling = absence == _IS_ABSENT and os.path.islink(file)
    if absence not in ("", _IS_ABSENT) or dangling or not os.path.isdir(os.path.dirname(file) or "."):
        why = " (a link that leads to nothing)" if dangling else ""
        return [f"--audit-baseline: {named(file)} cannot be written{why}; give a file in a folder that exists"]
    return []


def _absence(path: str) -> str:
    """Why there is no file to read at a path, or an empty string. Nothing is opened."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _IS_ABSENT
    except (OSError, ValueError) as error:
        return f"cannot be used ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISDIR(mode):
        return _IS_FOLDER
    return "" if stat.S_ISREG(mode) else "is a pipe, device or socket"


def _no_folder(path: str) -> str:
    """Why a path is neither a folder nor a place where one can be made, or an empty string."""
    found = _absence(path)
    if found == _IS_ABSENT:
        return obstacle(Path(path))
    return "" if found == _IS_FOLDER else found or "is a file"
