"""Options of an audit: one table for the command line, ``[tool.backdoor_audit]`` and Python. Imports neither torch nor pytest."""

from __future__ import annotations

import difflib
import enum
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor_audit import bounds
from backdoor_audit import option_texts as read
from backdoor_audit.errors import OptionError
from backdoor_audit.files import UnreadableError, read_text
from backdoor_audit.structure import brief

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - same module under its older name
    import tomli as tomllib

TABLE = "tool.backdoor_audit"
_ALIKE = re.compile(r"(?:tool\.)?backdoor[-_]?audits?", re.IGNORECASE)
"""What somebody may have called the table."""

_MOST_TOLD = 20  # unknown keys


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """What a run was asked to do; paths are absolute or relative to the folder the run started in.

    Empty strings and tuples mean: not given. ``budget`` is in seconds, 0 for no bound.
    ``memory`` (bytes) and ``reading_time`` (seconds) bound what reading one input may take. ``limits`` are numbers that
    findings are judged by in place of those of the suite, by name.
    """

    model: str = ""
    data: str = ""
    arch: str = ""
    classes: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    normalization: str = ""
    resize: tuple[int, ...] = ()
    channels: int = 0
    max_images: int = 1000
    class_names: str = ""
    class_order: str = ""
    trigger: str = ""
    device: str = "auto"
    seed: int = 0
    report: str = "backdoor-audit-report"
    min_accuracy: float = 0.0
    profile: str = "standard"
    repairs: str = "flagged"
    reference: str = ""
    twins: str = ""
    baseline: str = ""
    update_baseline: bool = False
    corpus: str = ""
    budget: float = 0.0
    index: str = "calibrated"
    inconclusive: str = "fail"
    steps: int = 100
    restarts: int = 1
    canary: bool = False
    canary_targets: int = 1
    allow_pickle: bool = False
    plugins: str = "on"
    memory: int = bounds.MEMORY
    reading_time: float = bounds.SECONDS
    suite: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)


class Role(enum.Flag):
    """What an option is to the rest of the package, whatever its value.

    A ``PATH`` names a file or a folder. ``READING`` says how model and images are read, ``LOADING`` how the model alone is.
    Runs that differ in a ``CONFIGURATION`` are not compared. What belongs to a ``MACHINE`` may differ between parts of one run.
    """

    NONE = 0
    PATH = enum.auto()
    READING = enum.auto()
    LOADING = enum.auto()
    CONFIGURATION = enum.auto()
    MACHINE = enum.auto()


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its key, how its text becomes a value, and what ``--help`` says. A ``switch`` may stand without a value."""

    key: str
    parse: Callable[[str], Any]
    metavar: str
    help: str
    role: Role = Role.NONE
    switch: bool = False

    @property
    def flag(self) -> str:
        """The long name that belongs to this plugin alone."""
        return "--audit-" + self.key.replace("_", "-")

    @property
    def alias(self) -> str:
        """The short name, added only where nobody else has taken it."""
        return "--" + self.key.replace("_", "-")

    @property
    def argument(self) -> str:
        """How a message names it to who calls `backdoor_audit.audit`."""
        return f"audit({self.key}=...)"


OPTIONS: tuple[Option, ...] = (
    Option(
        "model",
        read.path,
        "PATH",
        "model file (safetensors, torch.save, ONNX) or Hugging Face folder to audit; runs the shipped audits",
        Role.PATH | Role.MACHINE,
    ),
    Option(
        "data",
        read.path,
        "SOURCE",
        "clean images: folder of class folders, .npz, .csv, .jsonl or .txt of paths and labels, or torchvision:NAME?root=DIR",
        Role.PATH | Role.MACHINE,
    ),
    Option(
        "arch",
        read.word,
        "NAME",
        "architecture: small_cnn, resnet18, preact_resnet18, ..., torchvision:NAME, timm:NAME, "
        "package.module:factory (your own code); default: the file's header",
        Role.READING | Role.LOADING,
    ),
    Option("classes", read.whole_number(2), "N", "number of classes, where the file does not tell", Role.READING),
    Option(
        "mean",
        read.numbers,
        "M[,M,M]",
        "mean that the model's training subtracted, for pixels in [0, 1]",
        Role.READING | Role.LOADING,
    ),
    Option(
        "std",
        read.spread,
        "S[,S,S]",
        "standard deviation that the model's training divided by",
        Role.READING | Role.LOADING,
    ),
    Option(
        "normalization",
        read.word,
        "NAME",
        "mean and std by name: none, half, mnist, cifar10, imagenet, ...",
        Role.READING | Role.LOADING,
    ),
    Option(
        "resize", read.size, "N|HxW|H,W", "resize clean images; without it their size must suit the model", Role.READING
    ),
    Option("channels", read.channels, "1|3", "convert clean images to grey or RGB", Role.READING),
    Option(
        "max_images",
        read.most_images,
        "N",
        "use at most this many clean images, evenly from all classes (default: 1000)",
    ),
    Option(
        "class_names",
        read.path,
        "FILE|A,B,...",
        "names of the classes in the order of the model's scores; class folders get their labels by them",
        Role.PATH,
    ),
    Option(
        "class_order",
        read.one_of("text", "number"),
        "text|number",
        "order of the model's classes: of their names as text (as torchvision's ImageFolder: 0, 1, 10, 2) or as numbers, counted "
        "from 0; default: folders that are numbers are the labels",
    ),
    Option(
        "trigger",
        read.path,
        "FILE",
        "also judge repairs against this known trigger (safetensors: mask, pattern)",
        Role.PATH | Role.CONFIGURATION,
    ),
    Option("device", read.device, "auto|cpu|cuda[:N]", "where to compute (default: auto)", Role.READING | Role.MACHINE),
    Option(
        "seed", read.whole_number(0, 2**63 - 1), "N", "seed of every random choice (default: 0)", Role.CONFIGURATION
    ),
    Option(
        "report",
        read.path,
        "DIR",
        "folder for audit.json, the HTML page and triggers (default: backdoor-audit-report)",
        Role.PATH | Role.MACHINE,
    ),
    Option(
        "min_accuracy",
        read.rate,
        "RATE",
        "clean accuracy below this makes the audit inconclusive (default: above chance)",
    ),
    Option(
        "profile",
        read.one_of("quick", "standard", "thorough"),
        "quick|standard|thorough",
        "how much is searched (default: standard): quick leaves out all that needs reference models; thorough searches every "
        "class in full, from two starts",
        Role.CONFIGURATION,
    ),
    Option(
        "repairs",
        read.one_of("flagged", "always"),
        "flagged|always",
        "when to try repairs on a copy (default: flagged): always also does where no trigger was flagged, and asks that they do "
        "no harm to clean accuracy",
    ),
    Option(
        "reference",
        read.path,
        "FILE",
        "calibrate indices on your own clean models: a file written by backdoor-audit calibrate (default: shipped)",
        Role.PATH | Role.CONFIGURATION,
    ),
    Option(
        "twins",
        read.path,
        "FILE",
        "reference networks made beforehand by backdoor-audit references, and what detectors find in them (default: trained in "
        "the run)",
        Role.PATH | Role.CONFIGURATION,
    ),
    Option(
        "baseline",
        read.path,
        "FILE",
        "compare with the accepted model whose baseline this is: what got worse fails, accepted findings do not",
        Role.PATH,
    ),
    Option(
        "update_baseline",
        read.switch,
        "true|false",
        "write the file of --audit-baseline from this run, in place of comparing with it (default: false)",
        switch=True,
    ),
    Option(
        "corpus",
        read.path,
        "DIR",
        "keep counterexamples of properties here and replay them first later on (default: backdoor-audit-corpus, if it exists)",
        Role.PATH,
    ),
    Option(
        "suite",
        read.path,
        "DIR",
        "ask the questions of this folder, a copy of the shipped audits with your own numbers and files (default: the shipped "
        "ones)",
        Role.PATH,
    ),
    Option(
        "budget",
        read.duration,
        "TIME",
        "stop searching after this time (90s, 10m, 1h30m); what was not covered is inconclusive (default: no bound)",
    ),
    Option(
        "index",
        read.one_of("calibrated", "paper"),
        "calibrated|paper",
        "which anomaly index is compared with the limit",
        Role.CONFIGURATION,
    ),
    Option(
        "inconclusive",
        read.one_of("fail", "allow"),
        "fail|allow",
        "whether an inconclusive item fails the run (default: fail)",
    ),
    Option("steps", read.whole_number(1), "N", "optimisation steps per trigger (default: 100)", Role.CONFIGURATION),
    Option(
        "restarts",
        read.whole_number(1),
        "N",
        "independent searches per trigger, the smallest result counts (default: 1)",
        Role.CONFIGURATION,
    ),
    Option(
        "canary",
        read.switch,
        "true|false",
        "plant known backdoors of several kinds in copies of the model and show which of them this audit finds (default: false)",
        switch=True,
    ),
    Option(
        "canary_targets",
        read.whole_number(1),
        "N",
        "plant every kind of canary for this many classes, one after the other (default: 1)",
    ),
    Option(
        "allow_pickle",
        read.switch,
        "true|false",
        "EXECUTE THE CODE in the model file if it is a pickle (default: false)",
        switch=True,
    ),
    Option(
        "plugins",
        read.one_of("on", "off"),
        "on|off",
        "whether parts that other installed packages bring (detectors, repairs, properties, formats, renderers) take part "
        "(default: on)",
    ),
    Option(
        "memory",
        read.size_in_bytes,
        "SIZE",
        "most memory that reading one input (model, images, record) may take, as in 8G, 8GB or 500M (default: 8G)",
    ),
    Option(
        "reading_time",
        read.duration,
        "TIME",
        "most time that reading one input may take (default: 10m)",
    ),
)


def options_with(role: Role) -> tuple[str, ...]:
    """The keys of the options that have a role, in the order of ``--help``."""
    return tuple(option.key for option in OPTIONS if role in option.role)


def read_table(folder: Path) -> dict[str, Any]:
    """The table ``[tool.backdoor_audit]`` of ``pyproject.toml`` in a folder; empty if there is none.

    Raises `OptionError` if the file cannot be read, is not TOML, or has something else in that place.
    """
    file = folder / "pyproject.toml"
    if not os.path.lexists(file):
        return {}
    try:
        table: dict[str, Any] = tomllib.loads(read_text(file))
    except UnreadableError as error:
        raise OptionError(f"{file}: cannot be read ({error})") from None
    except (ValueError, RecursionError, OverflowError) as error:  # numbers, dates and depths that Python does not take
        raise OptionError(f"{file}: not valid TOML ({error})") from None
    tools = table.get("tool")
    within = tools if isinstance(tools, dict) else {}
    for misspelt in (*table, *(f"tool.{name}" for name in within)):
        if misspelt != TABLE and _ALIKE.fullmatch(misspelt):
            raise OptionError(f"{file}: [{misspelt}] is not read; write [{TABLE}]")
    place = ""
    for name in TABLE.split("."):
        table, place = table.get(name, {}), f"{place}.{name}".removeprefix(".")
        if not isinstance(table, dict):
            raise OptionError(f"{file}: {place} is {brief(table)}; a table is accepted")
    return table


def build_options(
    command_line: Mapping[str, str], limits: Mapping[str, str], table: Mapping[str, Any], table_folder: Path
) -> AuditOptions:
    """Options from the command line (raw texts) and the project's table; the command line wins.

    Paths in the table are relative to ``table_folder``. All problems are named in one `OptionError`.
    """
    problems, values = unknown_keys(table), dict[str, Any]()
    for option in OPTIONS:
        given = _given(option, command_line, table)
        if given is None:
            continue
        source, value = given
        try:
            text = _text(value, option)
            listed = option.key == "class_names" and "," in text
            in_table = Role.PATH in option.role and option.key not in command_line and not listed
            values[option.key] = option.parse(_beside(table_folder, text) if in_table and text else text)
        except ValueError as error:
            problems.append(f"{source}: {brief(value)} {_told(option, error)}")
    chosen = table.get("limits", {})
    if not isinstance(chosen, dict):
        problems.append(f"[{TABLE}] limits: a table of numbers is accepted, got {brief(chosen)}")
        chosen = {}
    values["limits"] = {**chosen, **_limit_values(limits)}
    return _agreed(values, problems, {option.key: option.flag for option in OPTIONS})


def unknown_keys(table: Mapping[str, Any]) -> list[str]:
    """What is said of each key of the project's table that there is not."""
    return [f"[{TABLE}] has an unknown key {unknown}{hint}" for unknown, hint in _unknown(table)]


def options_of(arguments: Mapping[str, Any]) -> AuditOptions:
    """Options from the arguments of a Python call: values such as TOML has, or texts as on the command line.

    None, and what is the default anyway, mean: not given. All problems are named in one `OptionError`.
    """
    problems = [f"audit() has no option {unknown}{hint}" for unknown, hint in _unknown(arguments)]
    usual, values = AuditOptions(), dict[str, Any]()
    for option in OPTIONS:
        value = arguments.get(option.key)
        if value is None or _is_usual(value, getattr(usual, option.key)):
            continue
        try:
            if Role.PATH in option.role and not isinstance(value, str):
                raise ValueError("must be a path, as a text or a pathlib.Path")
            values[option.key] = option.parse(_text(value, option))
        except ValueError as error:
            problems.append(f"{option.argument}: {brief(value)} {_told(option, error)}")
    chosen = arguments.get("limits")
    if not isinstance(chosen, (dict, type(None))):
        problems.append(f"audit(limits=...): a mapping of names to numbers is accepted, got {brief(chosen)}")
        chosen = {}
    values["limits"] = chosen or {}
    return _agreed(values, problems, {option.key: option.argument for option in OPTIONS})


def _unknown(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names of no option, some at most, each with what may have been meant."""
    keys = [*(option.key for option in OPTIONS), "limits"]
    found = []
    for unknown in sorted(set(given) - set(keys))[:_MOST_TOLD]:
        close = difflib.get_close_matches(unknown[: read.LONGEST], keys, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known keys are {', '.join(keys)}"
        found.append((brief(unknown), hint))
    return found


def _told(option: Option, error: ValueError) -> str:
    """What a parser says about a value, or else what is accepted."""
    return str(error) if str(error).startswith("must") else f"cannot be read; accepted: {option.metavar}"


def _is_usual(value: object, usual: object) -> bool:
    """Whether a plain value is the default; of other values nobody knows what ``==`` does."""
    empty = usual == () and isinstance(value, (list, tuple)) and not value
    alike = isinstance(value, (str, int, float)) and isinstance(value, bool) == isinstance(usual, bool)
    return empty or (alike and value == usual)


def _agreed(values: Mapping[str, Any], problems: list[str], named: Mapping[str, str]) -> AuditOptions:
    """The options with these values. Raises `OptionError` for all problems at once, or if values contradict each other."""
    problems += filter(None, itertools.starmap(limit_problem, values["limits"].items()))
    if problems:
        raise OptionError("; ".join(problems))
    options = AuditOptions(**values)
    if options.normalization and (options.mean or options.std):
        raise OptionError(f"{named['normalization']} and {named['mean']}/{named['std']} both given; choose one")
    if bool(options.mean) != bool(options.std):
        raise OptionError(f"{named['mean']} and {named['std']} belong together; give both or neither")
    return options


def _limit_values(pairs: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, text in pairs.items():
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = text
    return values


def limit_problem(name: str, value: object) -> str:
    """What is wrong with the value of a limit, whatever it is called, or an empty string; which there are, the suite knows."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        return f"limit {read.named(name)} must be a number of at least 0, got {brief(value)}"
    return ""


def _text(value: Any, option: Option) -> str:
    """A TOML value as the text that the command line would carry. Raises `ValueError` for a table, a date or a nested list."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return ("x" if option.key == "resize" else ",").join(map(str, value))
    raise ValueError("neither a text nor a number nor a list of numbers")


def _given(option: Option, command_line: Mapping[str, str], table: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Where an option was given, and its value; None if it was not."""
    if option.key in command_line:
        return option.flag, str(command_line[option.key])
    return (f"[{TABLE}] {option.key}", table[option.key]) if option.key in table else None


def _beside(folder: Path, text: str) -> str:
    return text if text.startswith("torchvision:") else str(folder / os.path.expanduser(text))
