"""Repairs of copies of the audited model, and how each trigger fares in them; each is tried once."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch

from backdoor_audit.evidence import Limits
from backdoor_audit.repairs import Repair, RepairOutcome, against_all
from backdoor_audit.run import others
from backdoor_audit.run.flagged import FlaggedTriggers
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.kept import Kept
from backdoor_audit.store import Packed, generator_for
from backdoor_audit.triggers.trigger import AnyTrigger


class RepairRuns:
    """The repairs that a run tries."""

    def __init__(self, inputs: Inputs, flagged: FlaggedTriggers, limits: Limits) -> None:
        self.inputs, self.flagged, self.limits = inputs, flagged, limits
        self.done: Kept[tuple[RepairOutcome, ...]] = Kept()

    @cached_property
    def methods(self) -> tuple[Repair, ...]:
        """The repairs of the profile: those that work against a trigger; ``thorough`` tries those that need none as well."""
        thorough = self.inputs.options.profile == "thorough"
        return tuple(entry for entry in self.inputs.catalogue.repairs if entry.needs_trigger or thorough)

    def outcomes(self, name: str) -> tuple[RepairOutcome, ...]:
        """How one method repairs a copy of the model, and how each trigger fares in it."""
        return self.done.once(name, lambda: self._tried(next(entry for entry in self.methods if entry.name == name)))

    def not_applicable(self, name: str) -> str:
        """Why a repair could not be tried on this network, or an empty string; it is tried now."""
        return next((entry.not_applicable for entry in self.outcomes(name) if entry.not_applicable), "")

    def _tried(self, method: Repair) -> tuple[RepairOutcome, ...]:
        inputs, plugin = self.inputs, self.inputs.catalogue.plugin(method)
        triggers, beside = self.flagged.triggers or (self.flagged.likeliest(),), self.flagged.beside()

        def work() -> tuple[RepairOutcome, ...]:
            generator = generator_for(inputs.options.seed, method.name)
            subject = inputs.subject.of(inputs.classifier.copy()) if plugin else inputs.subject
            return against_all(method, subject, triggers, generator=generator, also=beside)[1]

        def kept() -> tuple[RepairOutcome, ...]:
            with inputs.once(f"the repair by {method.name}"):
                return inputs.store.recall(
                    {
                        **inputs.parts,
                        "method": method,
                        "triggers": [_digest(trigger) for trigger in (*triggers, *beside)],
                        **({"plugin": plugin} if plugin else {}),
                    },
                    work,
                    pack=lambda outcomes: Packed({}, {"outcomes": [outcome.summary() for outcome in outcomes]}),
                    unpack=lambda packed: tuple(map(RepairOutcome.of, packed.values["outcomes"])),
                )[0]

        return others.outcomes_of(inputs, self.limits, method, plugin, kept) if plugin else kept()


def _digest(trigger: AnyTrigger) -> str:
    content = torch.cat([tensor.flatten() for tensor in trigger.tensors().values()]).float().numpy().tobytes()
    return hashlib.sha256(content + str(trigger.target_class).encode()).hexdigest()
