"""The layer whose input filters look at."""

from __future__ import annotations

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.classifier import Classifier


def head_of(classifier: Classifier, filter_name: str) -> str:
    """The last linear layer, whose input is the penultimate vector. Raises `ModelFormatError` for a network without one."""
    head = classifier.layers().head
    if head is None:
        raise ModelFormatError(
            f"{classifier.architecture}: no penultimate layer, the network does not end in a linear layer; {filter_name} needs "
            "one, StripFilter does not"
        )
    return head
