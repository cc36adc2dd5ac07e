"""What pruning methods share: channels held at 0, and the sweep that finds how many to take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.record_types import CurvePoint, Scores
from backdoor_audit.repairs.outcome import Repair, RepairResult, reported, score
from backdoor_audit.triggers.trigger import AnyTrigger

PRUNE_RATES = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Silence:
    """A hook that holds channels of a layer's output, or of its ``inputs``, at 0."""

    channels: Tensor
    inputs: bool = False

    def __call__(self, _module: nn.Module, arguments: tuple[Any, ...], output: Tensor | None = None) -> Any:
        """As a forward pre-hook or a forward hook."""
        if self.inputs:
            return (self._silenced(arguments[0]), *arguments[1:])
        assert output is not None
        return self._silenced(output)

    def _silenced(self, activations: Tensor) -> Tensor:
        mask = torch.ones(activations.shape[1], device=activations.device)
        mask[self.channels.to(activations.device)] = 0
        return activations * mask.view(1, -1, *[1] * (activations.ndim - 2))


def pruned(classifier: Classifier, layer: str, channels: Tensor, *, inputs: bool = False) -> Classifier:
    """A copy in which these channels of a layer's output (or input) are 0, whatever the weights do later.

    The zeros are a multiplication in the forward pass, not an edit of weights, so fine-tuning cannot undo them and a
    batch norm's bias cannot leave a constant behind. `baked` writes them into weights.
    """
    repaired = classifier.copy()
    module, silence = repaired.module.get_submodule(layer), Silence(channels, inputs)
    if inputs:
        module.register_forward_pre_hook(silence)
    else:
        module.register_forward_hook(silence)
    return repaired


def sweep(
    method: Repair,
    subject: Subject,
    trigger: AnyTrigger,
    *,
    layer: str,
    inputs: bool,
    suspicion: Tensor,
    accept: Callable[[Scores, Scores], bool],
) -> RepairResult:
    """Prune more and more of the most suspicious channels; keep the first copy that ``accept`` takes.

    ``suspicion`` has one value per channel, the highest is pruned first. ``accept`` sees the scores on the search set before
    and after; what is reported is measured on held-out images. If no copy is accepted, the one with the largest
    ``ASR drop - 5 * accuracy drop`` on the search set is kept and the note says so.
    """
    order = suspicion.argsort(descending=True, stable=True)
    counts = sorted({round(rate * len(order)) for rate in PRUNE_RATES})
    before = score(subject.classifier, subject.search_set, trigger)
    curve: list[CurvePoint] = []
    chosen, best = None, (-float("inf"), subject.classifier, 0)
    for count in counts:
        candidate = pruned(subject.classifier, layer, order[:count], inputs=inputs)
        threshold = float(suspicion[order[count]])
        curve.append(CurvePoint(count / len(order), threshold, score(candidate, subject.held_out, trigger)))
        if chosen is not None:
            continue
        after = score(candidate, subject.search_set, trigger)
        gain = _drop(before, after, "attack_success_rate") - 5 * _drop(before, after, "clean_accuracy")
        best = max(best, (gain, candidate, count), key=lambda entry: entry[0])
        if accept(before, after):
            chosen = (gain, candidate, count)
    _, repaired, count = chosen or best
    note = f"{count} of {len(order)} channels of layer {layer!r} pruned"
    if chosen is None:
        note += "; no pruning up to half of the channels met the method's own stopping rule"
    return reported(method, subject, repaired, trigger, note=note, curve=curve)


def _drop(before: Scores, after: Scores, name: str) -> float:
    return float(getattr(before, name) - getattr(after, name))
