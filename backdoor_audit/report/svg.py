"""A matplotlib figure as SVG inside a page: its colours follow the page's light or dark scheme, its text stays text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_POINTS_PER_INCH = 72
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_DROPPED = {"font-family", "stroke-dashoffset"}


class Ink(str, Enum):
    """What a colour is for; the style sheet of the page has one colour for each, in both schemes.

    The values are the colours that a chart is drawn with; nobody sees them.
    """

    TEXT = "#010101"
    FAINT = "#020202"
    GRID = "#030303"
    FAIL = "#040404"
    UNSURE = "#050505"
    PLAIN = "#060606"
    FIRST = "#070707"
    SECOND = "#080808"
    THIRD = "#090909"
    FOURTH = "#0a0a0a"
    PAPER = "#0b0b0b"

    @property
    def word(self) -> str:
        """How style sheets call it."""
        return self.name.lower()


_WORDS = {ink.value: ink.word for ink in Ink}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "backdoor_audit",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": Ink.GRID.value,
    "axes.labelcolor": Ink.FAINT.value,
    "axes.labelsize": 10,
    "axes.axisbelow": True,
    "text.color": Ink.TEXT.value,
    "text.parse_math": False,
    "xtick.color": Ink.GRID.value,
    "xtick.labelcolor": Ink.FAINT.value,
    "xtick.labelsize": 10,
    "ytick.color": Ink.GRID.value,
    "ytick.labelcolor": Ink.FAINT.value,
    "ytick.labelsize": 10,
    "grid.color": Ink.GRID.value,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "hatch.color": Ink.PAPER.value,
}


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of that many CSS pixels to draw on, with the page's style, whatever matplotlib's own settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd numbers make an odd chart, not lines between those of a run
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        drawn = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="constrained")
        FigureCanvasSVG(drawn)
        yield drawn


def inline(
    drawn: Figure,
    name: str,
    label: str,
    *,
    titles: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> str:
    """The figure as an ``svg`` element for an HTML page; the same figure gives the same text. Call it inside `figure`.

    ``name`` is unique on the page, ``label`` is what screen readers say. ``titles`` are shown when the pointer rests on the
    artist with that gid, ``texts`` replace what the artist with that gid says: words of strangers never reach matplotlib, which
    would read mathematics in them and look for their letters in its own font.
    """
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    by_id = {element.get("id"): element for element in root.iter()}
    for group, title in (titles or {}).items():
        ElementTree.SubElement(by_id[group], "title").text = title
    for group, text in (texts or {}).items():
        next(by_id[group].iter(f"{_SVG}text")).text = text
    _without_style_sheets(root)
    _rename(root, name)
    for element in root.iter():
        _plain(element)
    box = root.get("viewBox", "")
    root.attrib.clear()
    width, height = box.split()[2:]
    root.attrib.update(
        {"class": "chart", "viewBox": box, "width": width, "height": height, "role": "img", "aria-label": label}
    )
    return ElementTree.tostring(root, encoding="unicode")


def _without_style_sheets(root: ElementTree.Element) -> None:
    """Drop matplotlib's style sheet, which would hold for every other SVG on the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}style", f"{_SVG}metadata"):
                parent.remove(child)


def _rename(root: ElementTree.Element, name: str) -> None:
    """Keep only ids that something refers to, and make them unique on the page."""
    used: dict[str, str] = {}
    for element in root.iter():
        for value in element.attrib.values():
            for wanted in _REFERENCE.findall(value):
                used.setdefault(wanted, f"{name}-{len(used)}")
        link = element.get(_LINK, "")
        if link:
            used.setdefault(link[1:], f"{name}-{len(used)}")
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                del element.attrib[key]
                if value in used:
                    element.set("id", used[value])
            elif key == _LINK:
                del element.attrib[key]
                element.set("href", f"#{used[value[1:]]}")
            else:
                element.set(key, _REFERENCE.sub(lambda found: f"url(#{used[found[1]]})", value))


def _plain(element: ElementTree.Element) -> None:
    """No namespace, attributes in place of inline styles, which a page may forbid, classes in place of colours, short numbers."""
    element.tag = element.tag.removeprefix(_SVG)
    style = element.attrib.pop("style", "")
    classes = []
    for declaration in filter(None, style.split(";")):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if value in _WORDS and key in ("fill", "stroke"):
            classes.append(f"{key}-{_WORDS[value]}")
        elif key not in _DROPPED:
            element.set(key, value.removesuffix("px"))
    if classes:
        element.set("class", " ".join(classes))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for key in ("d", "x", "y", "transform", "width", "height"):
        if key in element.attrib:
            short = _NUMBER.sub(lambda found: f"{float(found[0]):.1f}", element.attrib[key])
            element.set(key, " ".join(short.split()))
    if element.text is not None and not element.text.strip():
        element.text = None
    if element.tail is not None and not element.tail.strip():
        element.tail = None
