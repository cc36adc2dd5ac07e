"""Run-time filters in front of the audited model, and how they do on the flagged triggers; each is fitted once."""

from __future__ import annotations

from backdoor_audit import progress
from backdoor_audit.errors import AuditError, BudgetSpentError
from backdoor_audit.filters import FilterRates, filter_rates
from backdoor_audit.run.flagged import FlaggedTriggers
from backdoor_audit.run.inputs import Inputs
from backdoor_audit.run.kept import Kept
from backdoor_audit.store import generator_for


class FilterRuns:
    """The filters that a run tries."""

    def __init__(self, inputs: Inputs, flagged: FlaggedTriggers) -> None:
        self.inputs, self.flagged = inputs, flagged
        self._done: Kept[tuple[FilterRates, ...]] = Kept()

    def rates(self, name: str) -> tuple[FilterRates, ...] | str:
        """How one filter does on each trigger, or why it could not be tried."""
        if self.flagged.none:
            return self.flagged.none
        try:
            return self._done.once(name, lambda: self._measured(name))
        except BudgetSpentError:
            raise
        except AuditError as error:
            return str(error)

    def _measured(self, name: str) -> tuple[FilterRates, ...]:
        subject, seed = self.inputs.subject, self.inputs.options.seed
        method = next(entry for entry in self.inputs.catalogue.filters if entry.name == name)
        rates = []
        with progress.piece(f"the filter {name}"):
            for trigger in self.flagged.triggers:
                generator = generator_for(seed, f"filter:{name}:{trigger.target_class}")
                fitted = method(subject, trigger, generator=generator)
                rates.append(filter_rates(fitted, subject.classifier, subject.held_out, trigger))
        return tuple(rates)
