"""What a record says of parts that other packages brought, in one line."""

from __future__ import annotations

from collections import Counter

from backdoor_audit.evidence import WORST_FIRST, Record
from backdoor_audit.installed import Plugin, plugins_of


def other_parts(record: Record) -> str:
    """Every such part, whose it is, and what its word counts for; empty where all parts of the run were shipped."""
    return "; ".join(_told(record, plugin) for plugin in plugins_of(record.environment))


def _told(record: Record, plugin: Plugin) -> str:
    who = f"{plugin.singular} {plugin.name} ({plugin.whose})"
    if plugin.counts:
        return (
            f"{who}: counts, and adds {plugin.false_alarm_rate:.2%} to the false alarms of the run by its maker's word"
        )
    if not plugin.judges:
        return who
    found = Counter(finding.verdict for finding in record.advisory if plugin.answers(finding.item))
    told = ", ".join(f"{found[verdict]} {verdict.value}" for verdict in WORST_FIRST if found[verdict])
    return f"{who}: advisory, {told or 'no item was answered'}"
