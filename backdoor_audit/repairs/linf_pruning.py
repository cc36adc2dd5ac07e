"""Cheng et al. (arXiv 2002.12162): prune the channels whose activation peaks when a trigger is stamped."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backdoor_audit.model.activations import capture, channel_norm
from backdoor_audit.model.layers import NO_FEATURE_MAP
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.outcome import RepairResult, not_applicable
from backdoor_audit.repairs.pruning import sweep
from backdoor_audit.triggers.trigger import AnyTrigger


@dataclass(frozen=True, slots=True, kw_only=True)
class LinfPruning:
    """Set channels of the last feature map to 0, those first whose activation norm on stamped images is largest.

    A small trigger makes a local spike in few channels; the maximum (``norm="linf"``) shows it, sums dilute it. The
    threshold is swept downwards until the success rate is at most ``stop_success`` while clean accuracy has lost at most
    ``stop_drop``. On residual networks the map is the one after the addition.
    """

    norm: str = "linf"
    stop_success: float = 0.10
    stop_drop: float = 0.02

    name = "linf_pruning"
    needs_trigger = True

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A pruned copy, judged on held-out images; not applicable without a feature map that linear layers follow."""
        del generator
        layer = subject.classifier.layers().feature_layer
        if layer is None:
            return not_applicable(self, trigger, NO_FEATURE_MAP)
        others = subject.search_set.without_class(trigger.target_class).images
        norms = channel_norm(capture(subject.classifier, layer, trigger.stamp(others)), self.norm).mean(dim=0)
        return sweep(
            self,
            subject,
            trigger,
            layer=layer,
            inputs=False,
            suspicion=norms.cpu(),
            accept=lambda before, after: (
                after.attack_success_rate <= self.stop_success
                and before.clean_accuracy - after.clean_accuracy <= self.stop_drop
            ),
        )
