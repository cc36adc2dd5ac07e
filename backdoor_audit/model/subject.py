"""What a search or a repair works on: a classifier, and the clean images that it is searched with and judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A classifier with clean images: ``search_set`` to search and to repair with, ``held_out`` to report on."""

    classifier: Classifier
    search_set: CleanSet
    held_out: CleanSet

    @property
    def num_classes(self) -> int:
        """Number of classes of the classifier."""
        return self.classifier.num_classes

    def of(self, classifier: Classifier) -> Subject:
        """Another classifier with the same images."""
        return replace(self, classifier=classifier)

    def exchanged(self) -> Subject:
        """The same classifier; what was held out is searched, and the other way round."""
        return replace(self, search_set=self.held_out, held_out=self.search_set)
