"""The words of a record's questions: those it was written with, or the shipped ones for records that have none."""

from __future__ import annotations

from collections.abc import Mapping

from backdoor_audit.evidence import Finding, Record
from backdoor_audit.questions.suite import shipped_words
from backdoor_audit.words import About, Words


def words_of(record: Record) -> Mapping[str, Words]:
    """The words of every question, by its name, in the order of the run."""
    own = {name: Words.from_json(stored) for name, stored in record.questions.items()}
    return {**own, **{name: words for name, words in shipped_words().items() if name not in own}}


def about(record: Record, finding: Finding) -> About:
    """What a finding speaks against if it is not a pass; a test of a project's own speaks against the model."""
    words = words_of(record).get(finding.item.question)
    return words.about if words else About.MODEL


def counts_of(record: Record) -> Mapping[str, str]:
    """What the number of each statistic counts, in words, where a question says so."""
    return {statistic: text for words in words_of(record).values() for statistic, text in words.counts.items()}
