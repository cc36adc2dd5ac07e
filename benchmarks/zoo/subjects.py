"""All subjects of the zoo, the clean ones first."""

from __future__ import annotations

from benchmarks.zoo.attacked_subjects import ATTACKED, REPAIRED
from benchmarks.zoo.clean_subjects import CLEAN
from benchmarks.zoo.subject import Subject

SUBJECTS: tuple[Subject, ...] = (*CLEAN, *ATTACKED)
"""What detection rates are measured on."""

EVERY: tuple[Subject, ...] = (*SUBJECTS, *REPAIRED)
"""And those that are there to be repaired."""
