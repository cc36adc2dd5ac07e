"""The page for people: one self-contained HTML file, drawn from records alone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from backdoor_audit.content import content_of
from backdoor_audit.evidence import WORST_FIRST, Record
from backdoor_audit.item import AUDIT
from backdoor_audit.printable import printable
from backdoor_audit.report.paths import shown_path, without_folders
from backdoor_audit.report.section import Section, duration, section
from backdoor_audit.report.svg import Ink
from backdoor_audit.source import version_of

_FOLDER = Path(__file__).parent
_LARGE = 1e9  # of numbers; from here on they have few digits
_CONTENTS = (
    ("verdict", "Verdict"),
    ("next", "What to do"),
    ("not-tested", "Not looked for"),
    ("indices", "Classes"),
    ("triggers", "Triggers"),
    ("repairs", "Repairs"),
    ("network", "Inside the network"),
    ("baseline", "Accepted model"),
    ("canary", "Canary"),
    ("properties", "Properties"),
    ("kept", "Other questions"),
    ("sizes", "Sizes"),
    ("tested", "What was tested"),
    ("items", "All items"),
    ("reproduce", "Run it again"),
)


def page(records: Mapping[str, Record]) -> str:
    """One HTML page about the audits in ``records``, which are named by the files they come from; at least one.

    The page loads nothing: pictures, styles and script are inside, and its policy forbids all else. Every word of a record is
    escaped. Several records make one page with an overview, the worst verdict first. The same records give the same text.
    Raises `DataFormatError` for a record whose content is not that of an audit, naming its file.
    """
    if not records:
        raise ValueError("a page is about at least one record")
    ordered = sorted(records.items(), key=lambda entry: WORST_FIRST.index(entry[1].verdict))
    environment = _environment()
    drawn = [
        _drawn(environment, record, source, f"m{number}-" if len(ordered) > 1 else "")
        for number, (source, record) in enumerate(ordered, start=1)
    ]
    sections = [one for one, _ in drawn]
    style, script = style_sheet(), (_FOLDER / "page.js").read_text(encoding="utf-8")
    html: str = environment.get_template("page.html.j2").render(
        title=_title(sections),
        sections=sections,
        audits=[text for _, text in drawn],
        contents=_contents(sections[0]),
        references=_references(sections),
        version=version_of("backdoor-audit", "from source"),
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
    )
    return html


def _drawn(environment: Environment, record: Record, source: str, prefix: str) -> tuple[Section, Markup]:
    """One audit and its part of the page; headings are one level lower where there are several."""
    with content_of(source, record):
        one = section(record, source=printable(source), prefix=prefix)
        macros: Any = environment.get_template("section.html.j2").module
        return one, macros.audit(one, 3 if prefix else 2)


def _title(sections: list[Section]) -> str:
    return (
        f"Backdoor audit of {sections[0].model}" if len(sections) == 1 else f"Backdoor audits of {len(sections)} models"
    )


def policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which nothing is loaded and nothing but our own style and script takes effect."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def style_sheet() -> str:
    """The style sheet, with a rule for every ink of the charts."""
    inks = "".join(f".{use}-{ink.word}{{{use}:var(--{ink.word})}}" for ink in Ink for use in ("fill", "stroke"))
    return (_FOLDER / "page.css").read_text(encoding="utf-8") + inks


def _contents(one: Section) -> list[tuple[str, str]]:
    sized = one.size_charts or one.index_chart or one.sizes
    present = (("properties", one.properties), ("kept", one.tables), ("baseline", one.baseline), ("sizes", sized))
    absent = {name for name, there in present if not there}
    return [(one.prefix + anchor, name) for anchor, name in _CONTENTS if anchor not in absent]


def _references(sections: list[Section]) -> list[tuple[Any, str]]:
    """Every entry of a framework that any audit speaks to, once."""
    speaking: dict[Any, dict[str, None]] = {}
    for one in sections:
        for reference, evidence in one.references:
            speaking.setdefault(reference, {}).update(dict.fromkeys(evidence.split(", ")))
    return [(reference, ", ".join(evidence)) for reference, evidence in speaking.items()]


@cache
def _environment() -> Environment:
    """The templates, compiled once for all pages that this process draws."""
    return templates(
        _FOLDER,
        breakable=_breakable,
        cell=_cell,
        capitalised=lambda text: str(text)[:1].upper() + str(text)[1:],
        decimals=_decimals,
        duration=duration,
        number=_number,
        path=lambda text: shown_path(str(text)),
        percent=_percent,
        sentence=_sentence,
        setting=_setting,
        shell_words=_shell_words,
        short=lambda name: str(name).removeprefix(f"{AUDIT}::test_"),
        shown=lambda text: without_folders(str(text)),
        svg=Markup,
        words=lambda text: str(text).replace("_", " "),
    )


def templates(folder: Path, **filters: Callable[..., Any]) -> Environment:
    """The templates in a folder: what they show is escaped, and what they do not know is an error."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment


def _breakable(text: object) -> Markup:
    """A long identifier that may be broken after its separators."""
    broken = str(escape(text))
    for separator in ("_", "(", "[", ", "):
        broken = broken.replace(separator, f"{separator}<wbr>")
    return Markup(broken)


def _shell_words(command: object) -> Markup:
    """A command whose lines break between its words alone."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in str(command).split(" "))


def _number(value: float | None) -> str:
    """A number with as many digits as mean something; a dash for none."""
    if value is None:
        return "\u2013"
    if abs(value) >= _LARGE:
        text = f"{value:.3g}"
    elif abs(value) >= 1000 or float(value).is_integer():
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return text.replace("-", "\u2212")


def _decimals(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals, and no minus before a zero; a dash for none."""
    if value is None:
        return "\u2013"
    text = f"{round(value, digits) + 0.0:.{digits}f}" if abs(value) < _LARGE else f"{value:.3g}"
    return text.replace("-", "\u2212")


def _percent(value: float | None, digits: int = 0) -> str:
    return "\u2013" if value is None else f"{value:.{digits}%}"


def _sentence(text: object) -> str:
    """Words that begin large and end with a stop."""
    words = str(text).strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def _setting(value: Any) -> str:
    return without_folders(value) if isinstance(value, str) else json.dumps(value)


def _cell(value: Any) -> str:
    """A value of any kind in a table that nobody here has drawn up."""
    if isinstance(value, float) or value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return _number(value)
    return _setting(value)
