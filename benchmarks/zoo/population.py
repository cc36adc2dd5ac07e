"""More than 400 further subjects, trained as strangers train: what error rates of few per cent are measured on.

Only their table is committed; ``python -m benchmarks.zoo build --population`` trains them.
"""

from __future__ import annotations

import hashlib

from benchmarks.zoo.population_attacked import ATTACKED
from benchmarks.zoo.population_clean import CLEAN
from benchmarks.zoo.subject import Subject


def _shuffled(subjects: tuple[Subject, ...]) -> tuple[Subject, ...]:
    """In an order that has nothing to do with data, network or attack, so that half of a build is a fair sample."""
    return tuple(sorted(subjects, key=lambda subject: hashlib.sha256(f"order {subject.name}".encode()).digest()))


POPULATION: tuple[Subject, ...] = _shuffled((*CLEAN, *ATTACKED))
