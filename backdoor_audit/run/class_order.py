"""Are the labels of the clean images the model's own classes? If not, which, and what mends it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.evidence import Finding, inconclusive, passed
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import chance_accuracy
from backdoor_audit.printable import listed
from backdoor_audit.run import matching
from backdoor_audit.run.probing import in_batches

_PAIRS = 5  # that are named
_MOST_NAMES = 20  # that an option can be spelt out for
_AS_GOOD = 0.02  # accuracy that an order which has a name may be below the best one


def begins_at_one(clean: CleanSet, num_classes: int) -> str:
    """What to do where labels from 1 to the number of classes meet a model that counts from 0; empty elsewhere."""
    if int(clean.labels.min()) != 1 or int(clean.labels.max()) != num_classes:
        return ""
    return (
        "labels seem to begin at 1: pass --audit-class-order=number if the model's classes are in the order of these numbers, "
        "--audit-class-order=text if it was trained with torchvision's ImageFolder (1, 10, 2, ...)"
    )


def class_order(classifier: Classifier, clean: CleanSet, min_accuracy: float) -> Finding:
    """No other order of the classes suits the model much better than the labels that the images have.

    Two folders swapped, one absent, or numbers sorted as text: wrong labels that leave many images right, so that the
    accuracy alone does not tell. An order in which the model would still know nothing is none.
    """
    del min_accuracy
    predicted = torch.cat([classifier.predict(batch).cpu() for batch in in_batches(clean.images)]).numpy()
    found = matching.better_order(clean.labels.numpy(), predicted)
    if found is None or found.matched <= chance_accuracy(classifier.num_classes, clean.labels):
        reason = "no other order of the classes suits the model much better"
        return passed("class_order", reason, value=0, limit=0)
    pairs = [
        f"label {clean.class_name(label)} looks like class {clean.class_name(found.outputs[label])} of the model"
        for label in found.moved
    ]
    return inconclusive(
        "class_order",
        f"another order of the classes gives clean accuracy {found.matched:.3f} instead of {found.as_given:.3f}: "
        f"{listed(pairs, _PAIRS)}; {_cure(clean, found, predicted, classifier.num_classes)}",
        value=len(found.moved),
        limit=0,
    )


def _cure(clean: CleanSet, found: matching.Order, predicted: matching.Counts, num_classes: int) -> str:
    """What to do, by the named order that explains what was found, or else by its shape."""
    for told, outputs in _named_orders(clean).items():
        wanted = [outputs[label] for label in clean.labels.tolist()]
        if (predicted == wanted).mean() >= found.matched - _AS_GOOD:
            return told
    shifts = {found.outputs[label] - label for label in found.moved}
    first = min(found.moved)
    if shifts == {1} and set(found.moved) == set(range(first, int(clean.labels.max()) + 1)):
        return (
            f"from {clean.class_name(first)} on every label is one too low: a class seems to be absent before it; add its "
            "images, or pass --audit-class-names with the names of all classes in the model's order"
        )
    names = _in_the_models_order(clean, found, num_classes)
    if names:
        return f"if that is so, pass --audit-class-names={shlex.quote(','.join(names))}"
    return "correct the labels, or pass --audit-class-names with the names of all classes in the model's order"


def _named_orders(clean: CleanSet) -> Mapping[str, dict[int, int]]:
    """The output of each label under orders that go by a name, with the option that asks for each."""
    labels = sorted(set(clean.labels.tolist()))
    names = {label: clean.class_names[label] if label < len(clean.class_names) else str(label) for label in labels}
    if not all(name.isascii() and name.isdigit() for name in names.values()):
        return {}
    orders: dict[str, Callable[[str], object]] = {
        "pass --audit-class-order=text, the order of torchvision's ImageFolder (1, 10, 2, ...)": str,
        "pass --audit-class-order=number": int,
    }
    ranked = {
        told: {label: place for place, label in enumerate(sorted(labels, key=lambda label: key(names[label])))}  # type: ignore[arg-type, return-value]
        for told, key in orders.items()
    }
    return {**ranked, "leave --audit-class-order out: the numbers are the labels": {k: int(names[k]) for k in labels}}


def _in_the_models_order(clean: CleanSet, found: matching.Order, num_classes: int) -> list[str]:
    """The names as the model has them; none where some class of the model, or some name, stays open."""
    label_of = {output: label for label, output in found.outputs.items()}
    known = len(clean.class_names) == num_classes <= _MOST_NAMES and set(label_of) == set(range(num_classes))
    if not known or any("," in name for name in clean.class_names) or len(set(clean.class_names)) < num_classes:
        return []
    return [clean.class_names[label_of[output]] for output in range(num_classes)]
