"""The options of an audit and their table. Imports neither torch nor pytest."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backdoor_audit import bounds
from backdoor_audit import option_texts as read

TABLE = "tool.backdoor_audit"
"""Of ``pyproject.toml``."""


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
        Role.READING,
    ),
    Option(
        "class_names",
        read.path,
        "FILE|A,B,...",
        "names of the classes in the order of the model's scores; class folders get their labels by them",
        Role.PATH | Role.READING,
    ),
    Option(
        "class_order",
        read.one_of("text", "number"),
        "text|number",
        "order of the model's classes: of their names as text (as torchvision's ImageFolder: 0, 1, 10, 2) or as numbers, counted "
        "from 0; default: folders that are numbers are the labels",
        Role.READING,
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
