"""Where a fleet keeps what it found: a folder, or any address that fsspec knows, with one folder of evidence per model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from backdoor_audit.errors import AuditError, OptionError
from backdoor_audit.evidence import Record
from backdoor_audit.files import UnreadableError, parsed_json, read_bytes, whole
from backdoor_audit.fleet.models import MANIFEST, Model, named
from backdoor_audit.report.paths import RECORD
from backdoor_audit.schema_of import Definitions, Stored
from backdoor_audit.structure import misfit

JOB = "job.json"
_SCHEMA_VERSION = 1
_LONGEST = 1e9  # seconds of one audit, 30 years: the times of a fleet are added up
_TEXT, _COUNT = {"type": "string"}, {"type": "integer"}


def _object(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_LIST = _object(
    schema_version=_COUNT,
    settings=_TEXT,
    data=_TEXT,
    models={"type": "array", "items": _object(name=_TEXT, file=_TEXT)},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How the audit of one model ended, kept beside its evidence.

    ``key`` is what it depended on, ``settings`` the part of that which the fleet has in common, ``record`` the SHA-256 of the
    record, empty if there is none. ``told`` says why there is none.
    """

    name: str
    file: str
    key: str
    settings: str
    exit_code: int
    told: str
    seconds: Annotated[float, Stored(minimum=0, maximum=_LONGEST)]
    attempts: int
    record: str
    schema_version: int = _SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Which models the fleet has: one that has no evidence was not audited."""

    settings: str
    data: str
    models: tuple[Model, ...]


class Results(ABC):
    """The results of a fleet at one place."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a file, None if it is not there. Raises `OSError`."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all. Raises `OSError`."""

    @abstractmethod
    def clear(self, folder: str) -> None:
        """Remove what an earlier audit left in the folder of a model. Raises `OSError`."""

    def keep(self, job: Job, files: Mapping[str, bytes]) -> None:
        """Keep the evidence of a model; the word that it is whole comes last. Raises `OSError`."""
        self.clear(job.name)
        for name, content in files.items():
            self.write(f"{job.name}/{name}", content)
        self.write(f"{job.name}/{JOB}", _written(asdict(job)))

    def job(self, name: str) -> Job | None:
        """How the audit of a model ended; None where nothing that can be read tells, or it tells of another model."""
        stored = self._stored(f"{name}/{JOB}", Definitions({}).whole(Job))
        known = {entry.name for entry in fields(Job)}
        told = stored is not None and stored.keys() == known and stored["name"] == name
        return Job(**stored) if stored is not None and told else None

    def record(self, job: Job) -> Record | None:
        """The record of a model, if it is the one that its audit left and can be read."""
        content = self.read(f"{job.name}/{RECORD}") if job.record else None
        if content is None or digest(content) != job.record:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / RECORD).write_bytes(content)
            try:
                return Record.read(Path(scratch) / RECORD)
            except AuditError:
                return None

    def write_manifest(self, manifest: Manifest) -> None:
        """Keep which models the fleet has. Raises `OSError`."""
        models = [{"name": model.name, "file": str(model.file)} for model in manifest.models]
        self.write(
            MANIFEST,
            _written(
                {
                    "schema_version": _SCHEMA_VERSION,
                    "settings": manifest.settings,
                    "data": manifest.data,
                    "models": models,
                }
            ),
        )

    def manifest(self) -> Manifest | None:
        """Which models the fleet has; None where nothing that can be read tells."""
        stored = self._stored(MANIFEST, _LIST)
        if stored is None:
            return None
        models = tuple(Model(entry["name"], Path(entry["file"])) for entry in stored["models"])
        if any(named(model.name) != model.name for model in models):  # a folder here, and no way to another place
            return None
        return Manifest(settings=stored["settings"], data=stored["data"], models=models)

    def _stored(self, name: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
        content = self.read(name)
        with suppress(ValueError):
            stored = parsed_json((content or b"").decode("utf-8"))
            if not misfit(stored, schema) and stored["schema_version"] == _SCHEMA_VERSION:
                return dict(stored)
        return None


class Folder(Results):
    """Results in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None also for what is none."""
        file = self.folder / name
        if not file.is_file():
            return None
        try:
            return read_bytes(file)
        except UnreadableError as error:
            raise OSError(f"{file}: {error}") from None

    def write(self, name: str, content: bytes) -> None:
        """Write a file in its place, with the folders above it."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as partial:
            partial.write_bytes(content)

    def clear(self, folder: str) -> None:
        """Remove what fleets leave there, and nothing else."""
        (self.folder / folder / JOB).unlink(missing_ok=True)
        for pattern in ("audit.*", "report.html", "gate.log", "triggers/*.safetensors"):
            for file in (self.folder / folder).glob(pattern):
                file.unlink()


class Remote(Results):
    """Results at an address of fsspec, such as ``s3://bucket/fleet``."""

    def __init__(self, address: str) -> None:
        try:
            import fsspec  # noqa: PLC0415 - an extra
        except ImportError:
            raise OptionError(
                f"--out: {address} needs fsspec; pip install 'backdoor-audit[fleet]', or give a folder"
            ) from None
        self.address = address
        try:
            self._system, self._root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:  # the protocol needs a further package, or is none
            raise OptionError(f"--out: {address} cannot be used ({error})") from None

    def __str__(self) -> str:
        return self.address

    def read(self, name: str) -> bytes | None:
        """The content of an object."""
        with _as_os_error(self.address):
            try:
                content: bytes = self._system.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write an object; the store makes it visible when it is whole."""
        path = f"{self._root}/{name}"
        with _as_os_error(self.address):
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(path, content)

    def clear(self, folder: str) -> None:
        """Remove all objects of a model."""
        path = f"{self._root}/{folder}"
        with _as_os_error(self.address):
            if self._system.exists(path):
                self._system.rm(path, recursive=True)
            self._system.invalidate_cache()


@contextmanager
def _as_os_error(address: str) -> Iterator[None]:
    """What a remote store raises, whatever its kind, is an `OSError` with its address."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # every store has its own
        raise OSError(f"{address}: {type(error).__name__}: {error}") from None


def results_at(place: str) -> Results:
    """The results at a path or an address. Raises `OptionError` for an address that cannot be used."""
    return Remote(place) if "://" in place else Folder(Path(place))


def digest(content: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def _written(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
