"""The fleet as one page: its models by suspicion, each with a link to its own evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from backdoor_audit.fleet.outcome import ERROR, FALSE_DISCOVERIES, STATES, Row
from backdoor_audit.report.html import policy, style_sheet, templates
from backdoor_audit.report.paths import shown_path, without_folders
from backdoor_audit.report.section import duration


def page(rows: Sequence[Row], *, data: str) -> str:
    """One HTML page that loads nothing; every word of a model is escaped. The same rows give the same text."""
    environment = templates(
        Path(__file__).parent,
        duration=duration,
        path=shown_path,
        shown=without_folders,
        number=_number,
        badge=lambda state: _BADGES[state],
    )
    style = style_sheet()
    html: str = environment.get_template("fleet.html.j2").render(
        rows=rows,
        data=data,
        counts=Counter(row.state for row in rows),
        states=STATES,
        error=ERROR,
        measured=[row for row in rows if row.p_value is not None],
        found=[row for row in rows if row.corrected is not None and row.corrected <= FALSE_DISCOVERIES],
        false_discoveries=FALSE_DISCOVERIES,
        rates=list(dict.fromkeys(text for row in rows for text in row.rates)),
        policy=policy(style, ""),
        style=Markup(style),
    )
    return html


_BADGES = {state: "inconclusive" if state == ERROR else state for state in STATES}


def _number(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3g}".replace("-", "\u2212")
