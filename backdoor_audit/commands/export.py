"""``backdoor-audit export``: a record for other programs, from ``audit.json`` alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

from backdoor_audit.commands.arguments import (
    argument,
    declare_force,
    declare_plugins,
    output_file,
    plugins_of,
    refuse_to_replace,
    write_out,
)
from backdoor_audit.content import content_of
from backdoor_audit.errors import OptionError
from backdoor_audit.evidence import Record
from backdoor_audit.installed import contained, is_name, loaded, offered, whose
from backdoor_audit.report.renderers import RENDERERS, Renderer
from backdoor_audit.schema import schema

NAME = "export"
HELP = f"write a record in another form: {', '.join(renderer.name for renderer in RENDERERS)}"
_SCHEMA = "schema"
_STDOUT = Path("-")
_DEST = "form_"


def declare(parser: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    parser.description = (
        "Write AUDIT.json, the record of a run, in other forms: SARIF for code scanning, Markdown for a pull request, the page "
        "for people; `-` in place of a file is the terminal. Findings that the record's baseline accepts are marked as "
        "suppressed in SARIF."
    )
    parser.add_argument("record", nargs="?", type=Path, metavar="AUDIT.json", help="record of a run")
    for name, what in _forms().items():
        parser.add_argument(
            f"--{name}", dest=_DEST + name, type=argument(output_file), metavar="FILE", help=f"write {what} here"
        )
    declare_force(parser, "replace files that exist")
    declare_plugins(parser)


def run(options: argparse.Namespace) -> int:
    """Write what was asked for; always 0, whatever the verdict.

    Raises `AuditError` for a file that is no record, and for one that cannot be written; then nothing is written.
    """
    asked = {name: out for name in _forms() if (out := getattr(options, _DEST + name)) is not None}
    if not asked:
        raise OptionError(f"export: nothing to write; pass {', '.join(f'--{name}=FILE' for name in _forms())}")
    for name, out in asked.items():
        if out != _STDOUT:
            refuse_to_replace(out, options, name=name)
    texts = _rendered(options.record, asked, _renderers(asked, plugins_of(options)))
    for name, out in asked.items():
        _write(name, out, texts[name])
    return 0


def _forms() -> dict[str, str]:
    """What can be written, by its option, in words; parts of other packages are not imported for that."""
    ours = {renderer.name: renderer.what for renderer in RENDERERS} | {_SCHEMA: "the JSON schema of records"}
    others = {
        entry.name: f"what {whose(entry)} makes of it".replace("%", "%%")
        for entry in offered("renderers")
        if is_name(entry.name)
    }
    return {**others, **ours}


def _renderers(asked: Collection[str], plugins: str) -> list[Renderer]:
    """Those that were asked for. Raises `OptionError` for one of another package that cannot be used."""
    ours = [renderer for renderer in RENDERERS if renderer.name in asked]
    if len(ours) == len(set(asked) - {_SCHEMA}):
        return ours
    if plugins == "off":
        raise OptionError(
            f"export: {', '.join(asked)}: a part of another package, which --audit-plugins=off leaves out"
        )
    more = loaded("renderers", [renderer.name for renderer in RENDERERS], [renderer.file for renderer in RENDERERS])
    return [*ours, *(part for plugin, part in more if plugin.name in asked)]


def _rendered(file: Path | None, asked: Collection[str], wanted: Sequence[Renderer]) -> dict[str, str]:
    texts = {_SCHEMA: json.dumps(schema(), indent=1) + "\n"} if _SCHEMA in asked else {}
    if wanted:
        if file is None:
            raise OptionError("export: no record; give the audit.json of a run")
        record = Record.read(file)
        with content_of(str(file), record):
            for renderer in wanted:
                with nullcontext() if renderer in RENDERERS else contained(f"export: --{renderer.name}"):
                    text = renderer.draw(record, folder=None, exit_code=None)
                    if not isinstance(text, str):
                        raise TypeError(f"it gave a {type(text).__name__}")
                texts[renderer.name] = text
    return texts


def _write(name: str, out: Path, text: str) -> None:
    if out == _STDOUT:
        sys.stdout.write(text)
        return
    write_out(out, text, name)
