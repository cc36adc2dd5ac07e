"""The line about parts of other packages."""

from __future__ import annotations

from dataclasses import replace

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.installed import Plugin, summaries
from backdoor_audit.report.html import page
from backdoor_audit.report.markdown import markdown
from backdoor_audit.report.others import other_parts
from backdoor_audit.report.terminal import summary_lines
from tests.subjects.records import finding
from tests.subjects.whole_records import whole_record

WHOLE = whole_record(2, shape=(1, 8, 8))


def plugin(group: str, name: str, **more: object) -> Plugin:
    return Plugin(group=group, name=name, distribution="theirs", version="1", code="0", **more)  # type: ignore[arg-type]


def with_parts(*plugins: Plugin, advisory: tuple[tuple[str, Verdict], ...] = ()) -> Record:
    found = [replace(finding(), audit=audit, verdict=verdict) for audit, verdict in advisory]
    return replace(WHOLE, environment={**WHOLE.environment, "plugins": summaries(plugins)}, advisory=found)


def test_a_run_of_shipped_parts_says_nothing() -> None:
    assert other_parts(WHOLE) == other_parts(with_parts()) == ""
    assert "other packages" not in page({"a.json": with_parts()}) + markdown(with_parts())


def test_every_part_is_told_with_its_package_and_what_its_word_counts_for() -> None:
    record = with_parts(
        plugin("detectors", "looks"),
        plugin("properties", "holds"),
        plugin("detectors", "rated", false_alarm_rate=0.005),
        plugin("renderers", "lines", file="audit.txt"),
        advisory=(
            ("audit::test_anomaly_index[looks-class_0]", Verdict.PASS),
            ("audit::test_anomaly_index[looks-class_1]", Verdict.FAIL),
        ),
    )
    assert other_parts(record) == (
        "detector looks (theirs 1): advisory, 1 fail, 1 pass; property holds (theirs 1): advisory, no item was answered; "
        "detector rated (theirs 1): counts, and adds 0.50% to the false alarms of the run by its maker's word; "
        "renderer lines (theirs 1)"
    )
    assert record.verdict is WHOLE.verdict
    assert (record.flagged_classes, record.suspected_classes) == (WHOLE.flagged_classes, WHOLE.suspected_classes)


def test_a_name_from_outside_is_text_wherever_it_is_shown() -> None:
    record = with_parts(replace(plugin("repairs", "mends"), distribution="<b>\x1b[31m|x|"))
    assert "<b>" not in page({"a.json": record})
    assert "|x|" not in markdown(record)
    assert "\x1b" not in "".join(line for line, _ in summary_lines(record))
