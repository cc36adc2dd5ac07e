"""Reference networks made before any audit, for the architectures of some models and one set of clean images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backdoor_audit import store as stored
from backdoor_audit.detectors import compares
from backdoor_audit.errors import OptionError
from backdoor_audit.model.anew import Likeness
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run.reference import portable
from backdoor_audit.run.run import Run
from backdoor_audit.search.references import References
from backdoor_audit.search.twin_recipe import LIBRARY, OWN_ARCHITECTURE
from backdoor_audit.store import Packed, Store


def prepare(
    models: Sequence[Path],
    options: AuditOptions,
    *,
    store: Store,
    progress: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> References:
    """Train the twins of every model's architecture and measure in them what detectors and properties compare with.

    Models of one architecture share them, whatever their weights. ``tell`` gets a line for each model. Raises `OptionError` for
    no model, for different numbers of classes and where no twins can be trained, and `AuditError` for input that cannot be read.
    """
    if not models:
        raise OptionError("no model whose architecture could be taken; give at least one")
    made: References | None = None
    for file in models:
        run = Run(replace(options, model=str(file)), store, shipped(), progress=progress)
        run.check()
        if not run.reference.twins.classifiers:
            raise OptionError(f"{file}: {run.reference.twins.reason}")
        if made is not None and made.classes != run.inputs.num_classes:
            raise OptionError(
                f"{file}: {run.inputs.num_classes} classes, {models[0]} has {made.classes}; make a file for each number"
            )
        likeness = Likeness.of(run.classifier)
        if made is not None and made.name_of(likeness):
            tell(f"{file}: {run.classifier.architecture}, an architecture that is there already")
            continue
        tell(f"{file}: {run.classifier.architecture}, {run.reference.twins.described}")
        entries = {} if made is None else made.entries
        known = () if made is None else made.architectures
        made = References(
            run.clean_set.fingerprint,
            run.inputs.num_classes,
            options.seed,
            {**entries, **_entries(run, likeness)},
            (*known, (likeness, run.classifier.architecture)),
        )
    assert made is not None  # there is a model
    return made


def _entries(run: Run, likeness: Likeness) -> Mapping[str, Packed]:
    """The twins of one run and all that is found in them, by `store.key`; why there are none of its own comes with them."""
    library = run.reference.twins.kind == "library"
    own = portable(OWN_ARCHITECTURE, likeness.digest)
    there = portable(LIBRARY, "") if library else own
    found: dict[str, Packed] = {stored.key(there): run.reference.twins.pack()}
    if library:
        found[stored.key(own)] = replace(
            run.reference.twins, classifiers=(), accuracies=(), reason=run.reference.twins.instead
        ).pack()
    for detector in run.searches.detectors:
        if compares(detector):
            natural = run.reference.natural(detector)
            assert natural is not None  # there are twins
            found[stored.key({**there, "natural": detector})] = natural.pack()
    for wanted in run.properties.ours:
        for target in range(run.inputs.num_classes):
            if (rate := run.properties.natural_rate(wanted, target)) > 0:
                parts = {**there, "natural rate": wanted, "class": target}
                found[stored.key(parts)] = Packed({}, {"rate": rate})
    return {name: stored.as_stored(packed) for name, packed in found.items()}
