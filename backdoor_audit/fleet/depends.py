"""What an audit of a fleet depends on: while none of it has changed, finished work stands."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_audit.data import load_clean_set, names_from
from backdoor_audit.data.folder import files_within
from backdoor_audit.data.reading import Reading
from backdoor_audit.files import UnreadableError, read_text, read_toml, refuse_special
from backdoor_audit.fleet.models import Model
from backdoor_audit.installed import listed
from backdoor_audit.model.loading import parts_of
from backdoor_audit.model.networks import NETWORKS
from backdoor_audit.option_sources import build_options, read_table
from backdoor_audit.option_texts import RaisingParser, expanded
from backdoor_audit.options import OPTIONS, AuditOptions, Role, options_with
from backdoor_audit.properties import corpus_folder
from backdoor_audit.source import version_of

BEHIND = "behind --: "
"""Where the options of the gate stand."""

_CHUNK = 2**20  # bytes
_PROJECT = (
    *("conftest.py", "pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini"),
    *("pyproject.toml", "tox.ini", "setup.cfg"),
)
"""In the order in which pytest takes its settings from them."""
_SECTIONS = {"tox.ini": "pytest", "setup.cfg": "tool:pytest"}
_WRITTEN = ("--junitxml", "--junit-xml", "--log-file", "--basetemp", "--rootdir", "--confcutdir", "--html")
"""Options of pytest that name what a run writes, or a folder that is only a bound."""

_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "onnx")
"""Packages whose code networks are built of."""

_MADE = {"__pycache__", ".pytest_cache", ".git"}
_READ = (
    *("allow_pickle", "resize", "channels", "max_images", "seed", "class_names", "class_order"),
    *("memory", "reading_time", "arch"),
)


@dataclass(frozen=True, slots=True)
class Common:
    """What all audits of a fleet depend on: ``settings`` is its SHA-256, ``own_code`` the option that runs own code.

    ``unwritten`` is the SHA-256 of the part that no audit writes itself, as it may a corpus: nothing may change it meanwhile.
    """

    settings: str
    own_code: str
    unwritten: str


def common(data: str, options: Sequence[str], code: str) -> Common:
    """Read what all audits have in common: images, options, and files that these name. Raises `AuditError`, `OSError`."""
    here = Path.cwd()
    project = next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)
    table = read_table(project)
    given = expanded([*_project_options(here), *shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *options], BEHIND)
    asked = _asked(given, table, project)
    files = {name: content(Path(name)) for name in _named([*given, *options]) if os.path.exists(name)}
    for key in set(options_with(Role.PATH)) - set(options_with(Role.MACHINE)):
        if isinstance(value := table.get(key), str) and (file := project / os.path.expanduser(value)).exists():
            files[f"[table] {key}"] = content(file)
    corpus = corpus_folder("", Path())
    parts: Mapping[str, object] = {
        "data": _images(data, asked),
        "options": [*options, "", *given],
        "table": json.dumps(table, sort_keys=True, default=str),
        "files": files,
        "corpus": content(corpus) if corpus else "",
        "project": [
            [content(folder / name) if (folder / name).is_file() else "" for name in _PROJECT]
            for folder in (here, *here.parents)
        ],
        "code": code,
        "plugins": listed(),
        "libraries": {name: version_of(name, "") for name in _LIBRARIES},
    }
    own_code = f"--arch={asked.arch}" if _is_own(asked.arch) else "--allow-pickle" * asked.allow_pickle
    unwritten = {name: part for name, part in parts.items() if name not in ("files", "corpus")}
    return Common(_digest_of(parts), own_code, _digest_of(unwritten))


def key(model: Model, settings: str) -> str:
    """SHA-256 of what one audit depends on: the model, and the config.json beside it. Raises `OSError`."""
    beside = model.file.parent / "config.json"
    config = content(beside) if beside.is_file() and not model.file.is_dir() else ""
    return hashlib.sha256(f"{content(model.file)}:{config}:{settings}".encode()).hexdigest()


def content(path: Path) -> str:
    """SHA-256 of a file, with what lies beside it as part of a model, or of the names and contents of all below a folder.

    Links are followed, in bounded time.

    Raises `OSError` for what cannot be read, `DataFormatError` when the time is over.
    """
    reading = Reading.begun(str(path))
    if not path.is_dir():
        return ":".join(_digest(part, reading) for part in parts_of(path))
    digest = hashlib.sha256()
    for file in files_within(path, reading, follow=True):
        inner = file.relative_to(path)
        if not _MADE.intersection(inner.parts):
            digest.update(os.fsencode(f"{inner.as_posix()}\0"))
            digest.update(_digest(file, reading).encode())
    return digest.hexdigest()


def _digest_of(parts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


def _digest(file: Path, reading: Reading) -> str:
    try:
        refuse_special(file)
    except UnreadableError as error:  # a broken link, a pipe: there is nothing to read
        return str(error)
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            reading.check_time()
    return digest.hexdigest()


def _images(data: str, asked: AuditOptions) -> list[object]:
    """The clean images as every gate reads them, and the names by which a model's own file may order their classes."""
    clean = load_clean_set(
        data,
        resize=(asked.resize[0], asked.resize[1]) if asked.resize else None,
        channels=asked.channels or None,
        most=asked.max_images,
        seed=asked.seed,
        class_names=names_from(asked.class_names) if asked.class_names else None,
        class_order=asked.class_order,
    )
    return [clean.fingerprint, clean.class_names]


def _asked(given: Sequence[str], table: Mapping[str, Any], project: Path) -> AuditOptions:
    """The options that decide how images are read and whose code the network is."""
    parser = RaisingParser(add_help=False, allow_abbrev=False)
    parser.where = BEHIND
    for option in OPTIONS:
        if option.key in _READ:
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if option.switch else {}
            parser.add_argument(option.flag, option.alias, dest=option.key, **switch)
    known = vars(parser.parse_known_args(list(given))[0])
    line = {name: value for name, value in known.items() if value is not None}
    return build_options(line, {}, {name: table[name] for name in _READ if name in table}, project)


def _project_options(here: Path) -> list[str]:
    """The ``addopts`` of the nearest file of pytest's settings."""
    for folder in (here, *here.parents):
        for name in _PROJECT[1:]:
            try:
                found = _toml_options(folder / name) if name.endswith(".toml") else _ini_options(folder / name)
                return list(map(str, found)) if isinstance(found, list) else shlex.split(str(found))
            except (UnreadableError, ValueError, KeyError, TypeError, AttributeError, configparser.Error):
                continue  # no settings of pytest there; what pytest cannot read itself, every gate tells
    return []


def _toml_options(file: Path) -> object:
    """Those of ``[tool.pytest]`` or ``[tool.pytest.ini_options]``, or of ``[pytest]`` in a file of pytest's own."""
    stored = read_toml(file)
    if file.name != "pyproject.toml":
        return stored.get("pytest", {}).get("addopts", "")
    native = dict(stored["tool"]["pytest"])
    usual = native.pop("ini_options", None)
    chosen = native or usual
    if chosen is None:
        raise KeyError("pytest")
    return chosen.get("addopts", "")


def _ini_options(file: Path) -> object:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(read_text(file))
    return parser[_SECTIONS.get(file.name, "pytest")].get("addopts", "")


def _named(options: Sequence[str]) -> list[str]:
    """All that may be a path in options: ``FILE``, ``--x=FILE``, ``-xFILE``, ``@FILE``, ``FILE::test``."""
    found = []
    for before, text in zip(("", *options), options, strict=False):
        if before in _WRITTEN or text.partition("=")[0] in _WRITTEN:
            continue
        whole = (text, text.partition("=")[2], text.removeprefix("@"), text[2:] * text.startswith("-"))
        found += [part for word in whole for part in (word, word.partition("::")[0]) if part and "\0" not in part]
    return sorted({os.path.expanduser(part) for part in found})


def _is_own(arch: str) -> bool:
    return bool(arch) and arch not in NETWORKS and not arch.startswith(("torchvision:", "timm:"))
