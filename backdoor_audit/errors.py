"""What can go wrong with input. Each message is one line: where, what was found, what is accepted, what to do."""

from __future__ import annotations

from backdoor_audit.printable import printable


class AuditError(Exception):
    """Anything that stops an audit because of what it was given; its message is one line and printable."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class OptionError(AuditError):
    """An option or a key of ``[tool.backdoor_audit]`` cannot be used."""


class ModelFormatError(AuditError):
    """A model file, architecture or module cannot be audited."""


class DataFormatError(AuditError):
    """Clean images or a trigger file cannot be used."""


class DegenerateScoresError(AuditError):
    """Per-class scores carry no spread, so no class can be called an outlier."""


class AttackError(AuditError):
    """An attack cannot be carried out as asked, or did not implant: the result would be a mislabelled subject."""


class BudgetSpentError(AuditError):
    """The time that a run may take is over; what was not done is inconclusive."""


class BaselineError(AuditError):
    """A baseline cannot be read, cannot be compared with this run, or cannot be made from it."""
