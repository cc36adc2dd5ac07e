"""Training that does not throw a model out of what it knows: where it did, the same again with shorter gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject

LONGEST = (math.inf, 1.0, 0.3)
"""L2 norms over all weights to which gradients are shortened, one after the other."""

LEAST_AGREEMENT = 0.8
"""Share of clean images that a model has to go on answering as before."""

Train = Callable[[Classifier, float], None]
"""Trains a copy of the audited model in place, with gradients of so much length at most."""


def steadily(subject: Subject, train: Train, *, least: float = LEAST_AGREEMENT) -> tuple[Classifier, str]:
    """A trained copy of the subject's model, and a few words on how, for a note; empty where nothing had to be shortened.

    A learning rate that suits networks with batch norm destroys many without, above all those that were trained for long: from
    there no repair comes back. So a copy that answers fewer than ``least`` of the clean images of the search set as before is
    trained anew from the beginning. If all do, the one that agrees most is taken.
    """
    images = subject.search_set.images
    before = subject.classifier.predict(images)
    found: list[tuple[float, Classifier, float]] = []
    for longest in LONGEST:
        copy = subject.classifier.copy()
        train(copy, longest)
        found.append((float((copy.predict(images) == before).float().mean()), copy, longest))
        if found[-1][0] >= least:
            break
    _, best, longest = found[-1] if found[-1][0] >= least else max(found, key=lambda entry: entry[0])
    return best, "" if longest == math.inf else f", gradients shortened to {longest:g}"
