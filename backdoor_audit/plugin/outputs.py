"""What a run and other plugins write: where that is, and that it takes the place of nothing that is read or kept."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from backdoor_audit.errors import OptionError
from backdoor_audit.files import UnreadableError, read_bytes
from backdoor_audit.options import OPTIONS, AuditOptions
from backdoor_audit.plugin.given import typed
from backdoor_audit.plugin.recording import EARLIER, HTML, TRIGGER_FILE, rendered_by_others
from backdoor_audit.printable import line_of
from backdoor_audit.report.paths import RECORD
from backdoor_audit.report.picture_files import FILES as PICTURE_FILES
from backdoor_audit.report.picture_files import FOLDER as PICTURES

_OF_OTHERS = ("xmlpath", "htmlpath", "log_file")
"""Options of other plugins for what they write: the first two at the end of a run."""
INPUTS = ("data", "trigger", "reference", "twins", "baseline")


def reports_of_others(config: pytest.Config) -> tuple[Path, ...]:
    """Where JUnit's file and pytest-html's page go at the end of a run, links followed."""
    given = (getattr(config.option, name, None) for name in _OF_OTHERS[:2])
    return tuple(map(_place_of_output, filter(None, given)))


def _place_of_output(given: str | Path) -> Path:
    return Path(os.path.realpath(os.path.expanduser(os.path.expandvars(given))))


def refuse_overlap(config: pytest.Config, options: AuditOptions) -> None:
    """Raise `OptionError` for an input that lies where this run removes and writes its own files, and for another plugin's
    output there (JUnit's, a log) or on an input, which would take the place of the evidence, or of what is audited.
    """
    folder = os.path.realpath(options.report)
    outputs = {name: value for name, value in vars(config.option).items() if not name.startswith("audit_")}
    inputs = {f"--audit-{name}": getattr(options, name) for name in ("model", *INPUTS)}
    read = {os.path.realpath(value) for value in inputs.values() if value}
    for name in _OF_OTHERS:
        if (value := outputs.get(name)) and str(_place_of_output(value)) in read:
            raise OptionError(
                f"{_typed_as(config, value, name)}: {line_of(str(value))} is read by this run; write that to another place"
            )
    for name, value in {**outputs, **inputs}.items():
        if not isinstance(value, (str, Path)) or not str(value):
            continue
        place = Path(os.path.relpath(os.path.realpath(value), folder))
        if _is_own(place, Path(folder)) and not (name in outputs and str(place) == HTML):
            option = _typed_as(config, value, name)
            cure = "write that" if name in outputs else "copy it"
            raise OptionError(
                f"{option}: {line_of(str(value))} is a file that this run writes itself; {cure} to another place, or give "
                "another folder by --audit-report=DIR"
            )


def _typed_as(config: pytest.Config, value: str | Path, name: str) -> str:
    """The option that was typed with this value, or else pytest's name for it; an option of ours has a name of ours."""
    ours = (
        {name for option in OPTIONS for name in (option.flag, option.alias)} if name in vars(config.option) else set()
    )
    words = (word.partition("=") for word in typed(config))
    return next((word for word, _, given in words if given == str(value) and word not in ours), name)


def _is_own(place: Path, folder: Path) -> bool:
    """Whether a run writes or removes such a file, by its path inside of the report's folder."""
    if len(place.parts) == 1:
        from backdoor_audit.report.renderers import FILES

        earlier = b""
        with suppress(UnreadableError):
            earlier = read_bytes(folder / RECORD)
        return place.name in (HTML, EARLIER, *FILES, *rendered_by_others(earlier))
    if len(place.parts) != 2:  # the folder itself, or something deep in it
        return False
    return (place.parts[0] == PICTURES and place.name in PICTURE_FILES) or bool(
        TRIGGER_FILE.fullmatch(place.as_posix())
    )
