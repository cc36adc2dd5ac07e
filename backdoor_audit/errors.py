"""What can go wrong with input. Each message is one line: where, what was found, what is accepted, what to do."""

from __future__ import annotations

from backdoor_audit.printable import line_of, shortened

_LONGEST = 4000  # characters of a message


class AuditError(Exception):
    """Anything that stops an audit because of what it was given; its message is one line and printable."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(line_of(message), _LONGEST))


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
    """The time or the memory that a run may take is spent; what was not done is inconclusive."""


class EndedEarlyError(BudgetSpentError):
    """Work that something from outside ended (a time limit of pytest, a signal, the model's own code); it is not begun again."""


class ModelError(EndedEarlyError):
    """The model's own code failed when it was called, or gave what are no scores; what was asked of it is inconclusive."""


class BaselineError(AuditError):
    """A baseline cannot be read, cannot be compared with this run, or cannot be made from it."""
