"""What other packages bring: their entry points, read here alone, and loaded only where a run asks for them."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from backdoor_audit.errors import AuditError, OptionError
from backdoor_audit.item import Item
from backdoor_audit.printable import printable

PREFIX = "backdoor_audit."
"""Groups of entry points are called so, and then by one of `GROUPS`."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "detectors": ("rows", "needs_twins", "builds_on", "least_classes", "blind_spots", "targets", "__call__"),
    "repairs": ("needs_trigger", "__call__"),
    "properties": ("needs_twins", "__call__"),
    "formats": ("recognises", "read"),
    "renderers": ("file", "draw"),
}
"""What an object of each group has, beside its name."""

RESERVED = frozenset({"auto", "force", "help", "schema"})
"""Words of the command line, which nothing may be called."""

RENDERING = re.compile(r"audit\.[a-z0-9][a-z0-9_.]{0,40}")
"""Names that a renderer may give its file."""

_NAME = re.compile("[a-z][a-z0-9_]{0,59}")
SHIPPED_RENDERINGS: Mapping[str, str] = {"page": "audit.html", "markdown": "audit.md", "sarif": "audit.sarif"}
"""Names and files of the renderers of this package, which no other may have."""

ANSWERED_BY = {
    "detectors": ("anomaly_index",),
    "properties": ("property",),
    "repairs": ("attack_success_rate_after", "robust_accuracy", "clean_accuracy_drop"),
}
"""Questions whose items ask a part of a group: of those of other packages as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One part of another package, in builtins: what it is, whose, and of which code.

    ``false_alarm_rate`` is the share of clean models that the part flags by its maker's word: then its items count. None:
    nobody has measured that, and they are advisory. ``code`` is the SHA-256, its first 16 digits, of the file of the module that
    the entry point names.
    """

    group: str
    name: str
    distribution: str
    version: str
    code: str
    false_alarm_rate: float | None = None
    file: str = ""

    @property
    def whose(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"

    @property
    def singular(self) -> str:
        """What it is, in one word."""
        return "property" if self.group == "properties" else self.group.removesuffix("s")

    @property
    def judges(self) -> bool:
        """Whether a run has items that ask it."""
        return self.group in ANSWERED_BY

    @property
    def counts(self) -> bool:
        """Whether what it finds decides something: a detector or a property whose maker states its rate."""
        return self.group in ("detectors", "properties") and self.false_alarm_rate is not None

    def answers(self, item: Item) -> bool:
        """Whether an item asks this part."""
        return item.question in ANSWERED_BY.get(self.group, ()) and item.asked_of == self.name


def is_advisory(item: Item, plugins: Iterable[Plugin]) -> bool:
    """Whether an item asks a part of another package that decides nothing."""
    return any(not plugin.counts and plugin.answers(item) for plugin in plugins)


def summaries(plugins: Iterable[Plugin]) -> list[dict[str, Any]]:
    """As a record's ``environment`` lists them."""
    return [asdict(plugin) for plugin in plugins]


def plugins_of(environment: Mapping[str, Any]) -> tuple[Plugin, ...]:
    """Those of which `summaries` made what stands in an environment; what another version knows beside is left out."""
    unknown = dict.fromkeys(("group", "name", "distribution", "version", "code"), "")
    known = [entry.name for entry in fields(Plugin)]
    return tuple(
        Plugin(**{**unknown, **{name: entry[name] for name in known if name in entry}})
        for entry in environment.get("plugins", ())
    )


def offered(group: str) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of one of `GROUPS`, by their names; nothing is imported."""
    found = metadata.entry_points(group=f"{PREFIX}{group}")
    return tuple(sorted(found, key=lambda entry: (entry.name, entry.value)))


def listed() -> list[str]:
    """Every entry point with its package and the digest of its code, in a line; nothing is imported."""
    return [
        f"{group} {entry.name} {entry.value} {whose(entry)} {_code_of(entry)}"
        for group in GROUPS
        for entry in offered(group)
    ]


def _code_of(entry: metadata.EntryPoint) -> str:
    try:
        found = importlib.util.find_spec(entry.module.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    if found is None:
        return "unknown"
    return _of_files(found.submodule_search_locations or (), found.origin or "")


def loaded(group: str, taken: Sequence[str], files: Sequence[str] = ()) -> tuple[tuple[Plugin, Any], ...]:
    """The parts of one of `GROUPS` that are installed. ``taken`` names and ``files`` are those of other parts.

    Raises `OptionError` for the first that cannot be imported, is not what is accepted, or has a name or file that is taken.
    """
    names, used, found = set(taken), set(files), []
    for entry in offered(group):
        part, said = _part(entry, GROUPS[group])
        wrong = _wrong_name(said["name"], entry.name, names) or _wrong_rate(said["false_alarm_rate"])
        if group == "renderers":
            wrong = wrong or _wrong_file(said["file"], used)
        if wrong:
            raise _refused(entry, wrong)
        plugin = _plugin(entry, group, said)
        names.add(plugin.name)
        used.add(plugin.file)
        found.append((plugin, part))
    return tuple(found)


def _wrong_name(name: object, entry: str, taken: Collection[str]) -> str:
    if name != entry or not is_name(name):
        words = ", ".join(sorted(RESERVED))
        return f"the part is called {name!r}; accepted is that of the entry point: small letters, digits and _, not {words}"
    return "the name is taken" if name in taken else ""


def _wrong_file(file: object, taken: Collection[str]) -> str:
    if isinstance(file, str) and RENDERING.fullmatch(file) and file not in taken:
        return ""
    return f"its file is {file!r}; accepted is a name of its own that begins with audit."


def _wrong_rate(rate: object) -> str:
    if rate is None or (isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 <= rate <= 1):
        return ""
    return f"false_alarm_rate is {rate!r}; a fraction in [0, 1] is accepted"


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Code of others: all that it raises but Ctrl-C becomes an `OptionError` of one clause that begins with ``what``."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit, AuditError):
        raise
    except BaseException as error:  # SystemExit and the outcomes of pytest as well
        raise OptionError(f"{what}: {type(error).__name__}: {error}") from None


def _part(entry: metadata.EntryPoint, needed: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The object of an entry point, and what it says of itself."""
    try:
        with contained("cannot be imported"):
            part = entry.load()
            missing = [name for name in ("name", *needed) if not hasattr(part, name)]
            said = {name: getattr(part, name, None) for name in ("name", "file", "false_alarm_rate")}
            repr(part)  # under which its work is kept
    except AuditError as error:
        raise _refused(entry, str(error)) from None
    if isinstance(part, type):
        raise _refused(entry, f"{part.__name__} is a class; an object of it is accepted")
    if missing:
        raise _refused(entry, f"{type(part).__name__} has no {', no '.join(missing)}")
    return part, said


def _plugin(entry: metadata.EntryPoint, group: str, said: Mapping[str, Any]) -> Plugin:
    distribution, version = _origin(entry)
    rate = said["false_alarm_rate"]
    return Plugin(
        group=group,
        name=said["name"],
        distribution=distribution,
        version=version,
        code=_digest(entry.module),
        false_alarm_rate=None if rate is None else float(rate),
        file=said["file"] if group == "renderers" else "",
    )


def _refused(entry: metadata.EntryPoint, why: str) -> OptionError:
    return OptionError(
        f"{whose(entry)}: entry point {entry.name} = {entry.value} of {entry.group}: {why}; correct or uninstall that "
        "package, or pass --audit-plugins=off"
    )


def whose(entry: metadata.EntryPoint) -> str:
    """Distribution and version of an entry point."""
    return " ".join(_origin(entry))


def _origin(entry: metadata.EntryPoint) -> tuple[str, str]:
    if entry.dist is None:
        return "a package without metadata", "unknown"
    return printable(str(entry.dist.name)), printable(str(entry.dist.version))


def _digest(module: str) -> str:
    """Of the module's file, or of all sources of the package that it is in: a part may use what stands beside it."""
    package = getattr(sys.modules.get(module.partition(".")[0]), "__path__", ())
    return _of_files(package, str(getattr(sys.modules.get(module), "__file__", "")))


def _of_files(folders: Iterable[str], file: str) -> str:
    """Of all files in the folders of a package, libraries and data too, or of the one file of a module."""
    try:
        found = [entry for folder in folders for entry in sorted(Path(folder).rglob("*"))]
        files = [entry for entry in found if entry.is_file() and entry.suffix != ".pyc"]
        digest = hashlib.sha256()
        for entry in files or [Path(file)]:
            digest.update(entry.read_bytes())
        return digest.hexdigest()[:16]
    except OSError:  # not from a file that can be read
        return "unknown"


def is_name(name: object) -> bool:
    """Whether a part may be called so: small letters, digits and _, and no word of the command line."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and name not in RESERVED
