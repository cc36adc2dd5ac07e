"""The two repairs of Wang et al. (IEEE S&P 2019, section VI): prune the neurons a trigger excites, or unlearn the trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor_audit.model.activations import capture
from backdoor_audit.model.layers import NO_HEAD
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.fine_tuning import fine_tune
from backdoor_audit.repairs.outcome import RepairResult, not_applicable, reported
from backdoor_audit.repairs.pruning import sweep
from backdoor_audit.repairs.several import OneAsSeveral, stamped_first
from backdoor_audit.triggers.trigger import AnyTrigger

_MOST_STAMPED = 0.5  # of the images, with several triggers


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronPruning:
    """Set penultimate neurons to 0, those first whose mean activation rises most when the trigger is stamped.

    Stops as soon as the trigger's success rate on the images used is at most ``stop_success``. Section VI-B.
    """

    stop_success: float = 0.05

    name = "nc_pruning"
    needs_trigger = True

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A pruned copy, judged on held-out images; not applicable without a final linear layer."""
        del generator
        head = subject.classifier.layers().head
        if head is None:
            return not_applicable(self, trigger, NO_HEAD)
        others = subject.search_set.without_class(trigger.target_class).images
        stamped = capture(subject.classifier, head, trigger.stamp(others), inputs=True).mean(dim=0)
        gap = stamped - capture(subject.classifier, head, others, inputs=True).mean(dim=0)
        return sweep(
            self,
            subject,
            trigger,
            layer=head,
            inputs=True,
            suspicion=gap.cpu(),
            accept=lambda _before, after: after.attack_success_rate <= self.stop_success,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearning(OneAsSeveral):
    """Fine-tune all weights on clean images of which a share carries the trigger with the *true* label. Section VI-C.

    The paper takes one epoch over 10 % of the training data. An audit has fewer images, so several epochs make up for
    the number of updates, and other images are stamped in each. With several triggers each stamps ``stamped_share`` of a batch,
    no image twice and together at most half. ``augment`` moves and mirrors images, before they are stamped, where
    `harmless_augmentation` finds that harmless.
    """

    stamped_share: float = 0.2
    epochs: int = 10
    learning_rate: float = 0.01
    batch_size: int = 32
    augment: bool = True

    name = "nc_unlearning"
    needs_trigger = True

    def together(self, subject: Subject, triggers: Sequence[AnyTrigger], *, generator: torch.Generator) -> RepairResult:
        """A copy that was fine-tuned on images stamped with each of the triggers, judged on held-out images by the first."""
        clean, repaired = subject.search_set, subject.classifier.copy()
        share = min(self.stamped_share * len(triggers), max(self.stamped_share, _MOST_STAMPED))

        def stamp(images: Tensor) -> Tensor:
            return stamped_first(images, triggers, share, generator)

        fine_tune(self, subject, repaired, weight_decay=5e-4, generator=generator, stamp=stamp)
        note = (
            f"{self.epochs} epochs over {len(clean)} clean images, {share:.0%} of each batch stamped with "
            f"{'the trigger' if len(triggers) == 1 else f'one of {len(triggers)} triggers'}"
        )
        return reported(self, subject, repaired, triggers[0], note=note)
