"""What a repair does beyond the triggers it is given: to a backdoor that nobody told it of, and when images are stamped again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from backdoor_audit.attacks import Attack
from backdoor_audit.canary.kind import CANARIES
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import Rate, attack_success_rate, clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import fit
from backdoor_audit.repairs import Repair, against_all
from backdoor_audit.store import generator_for
from backdoor_audit.triggers.trigger import AnyTrigger

ORDER = ("blended", "badnets", "sig")
"""Kinds of canaries that are planted before a repair, by how surely a short fine-tune implants them."""

MOST_LEFT = 0.1
"""Success rate of a planted canary up to which a repair has cleaned it."""

STAMPED_AGAIN = 5  # images


@dataclass(frozen=True, slots=True, eq=False)
class Stowaway:
    """A canary in a copy of the audited model, of a kind and for a class that the audit flagged nothing of."""

    subject: Subject
    attack: Attack
    called: str

    def left(
        self,
        method: Repair,
        triggers: Sequence[AnyTrigger],
        *,
        also: Sequence[AnyTrigger] = (),
        generator: torch.Generator,
    ) -> Rate | None:
        """Its success rate once the method repaired the copy as it would the model; None where the method is not applicable."""
        repaired, _ = against_all(method, self.subject, triggers, generator=generator, also=also)
        if repaired is None:
            return None
        held_out = self.subject.held_out
        return attack_success_rate(repaired, held_out.images, held_out.labels, self.attack)


def stow_away(subject: Subject, *, seen_by: Collection[str], classes: Collection[int], seed: int) -> Stowaway | None:
    """A canary that no detector of ``seen_by`` is made for, for a class outside ``classes``; None if none can be implanted."""
    kinds = {canary.name: canary for canary in CANARIES}
    free = [target for target in range(subject.num_classes) if target not in classes]
    before = clean_accuracy(subject.classifier, subject.held_out.images, subject.held_out.labels)
    for kind in (kinds[name] for name in ORDER if not set(kinds[name].first) & set(seen_by)):
        doses = kind.doses_for(subject.classifier.image_shape)
        for dose in (doses.usual, *doses.stronger)[-2:] if free else ():
            try:
                planted, attack, _ = kind.plant(subject, free[0], dose, before=before, seed=seed)
            except AttackError:
                continue
            return Stowaway(subject.of(planted), attack, f"{kind.words.format(dose)} for class {free[0]}")
    return None


def learnt_again(repaired: Classifier, subject: Subject, trigger: AnyTrigger, *, seed: int) -> Rate:
    """Success rate of the trigger after one epoch on the search set, of which `STAMPED_AGAIN` images carry it and its label.

    Many repairs hide a backdoor more than they remove it: a few images bring it back (Min et al., NeurIPS 2024).
    """
    generator, clean, copy = generator_for(seed, "learnt again"), subject.search_set, repaired.copy()
    others = (clean.labels != trigger.target_class).nonzero().flatten()
    chosen = others[torch.randperm(len(others), generator=generator)[:STAMPED_AGAIN]]
    images, labels = clean.images.clone(), clean.labels.clone()
    images[chosen], labels[chosen] = trigger.stamp(images[chosen]), trigger.target_class
    fit(copy, images, labels, epochs=1, learning_rate=0.01, batch_size=32, generator=generator)
    return attack_success_rate(copy, subject.held_out.images, subject.held_out.labels, trigger)
