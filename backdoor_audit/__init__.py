"""Does this image classifier carry a hidden trigger? ``pytest --model=PATH``, or `audit` from Python."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backdoor_audit.data import CleanSet, load_clean_set
    from backdoor_audit.detectors import DETECTORS, Detection, NeuralCleanse
    from backdoor_audit.errors import AuditError
    from backdoor_audit.evidence import Finding, Limits, Record, Verdict
    from backdoor_audit.gate import audit
    from backdoor_audit.model.classifier import Classifier
    from backdoor_audit.model.loading import load_classifier, save_classifier
    from backdoor_audit.options import AuditOptions
    from backdoor_audit.repairs import REPAIRS
    from backdoor_audit.triggers.trigger import Trigger

_HOMES = {
    "AuditError": "errors",
    "AuditOptions": "options",
    "Classifier": "model.classifier",
    "CleanSet": "data",
    "DETECTORS": "detectors",
    "Detection": "detectors",
    "Finding": "evidence",
    "Limits": "evidence",
    "REPAIRS": "repairs",
    "NeuralCleanse": "detectors",
    "Record": "evidence",
    "Trigger": "triggers.trigger",
    "Verdict": "evidence",
    "audit": "gate",
    "load_classifier": "model.loading",
    "load_clean_set": "data",
    "save_classifier": "model.loading",
}

__all__ = [
    "DETECTORS",
    "REPAIRS",
    "AuditError",
    "AuditOptions",
    "Classifier",
    "CleanSet",
    "Detection",
    "Finding",
    "Limits",
    "NeuralCleanse",
    "Record",
    "Trigger",
    "Verdict",
    "audit",
    "load_classifier",
    "load_clean_set",
    "save_classifier",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: pytest loads the plugin in every run, and torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
