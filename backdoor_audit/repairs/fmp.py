"""FMP: prune the feature maps through which a tiny change of the image does most harm, then fine-tune (arXiv 2307.11565)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor_audit import budget
from backdoor_audit.data import CleanSet
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.subject import Subject
from backdoor_audit.record_types import CurvePoint
from backdoor_audit.repairs.conv_norm import conv_norms, pruned_layers
from backdoor_audit.repairs.fine_tuning import fine_tune
from backdoor_audit.repairs.outcome import RepairResult, not_applicable, reported, score
from backdoor_audit.triggers.trigger import AnyTrigger

_AT_ONCE = 512  # images in one pass: bounds the memory, changes no result


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMapPruning:
    """Set the maps of every layer to 0 that lead to the lowest accuracy when images are changed to move them, then fine-tune.

    For each map, images start at random signs times ``noise``, take one step of ``epsilon`` (L-infinity, pixels in [0, 1])
    along the sign of the gradient of the map's squared change, and are held within ``epsilon`` of the clean ones. Of C maps
    of a layer, the ``max(1, round(C / p))`` with the lowest accuracy of the whole network are pruned; among equals, the
    first. Fine-tuning cannot bring them back. A map is what leaves the batch norm of a convolution's own, or the
    convolution itself where it has none (see `conv_norms`).

    Algorithm 1 of the paper, scaled to what a CPU does in a minute for a network of some hundred maps: accuracy is counted
    on ``images`` of the clean images, and only in the last ``stages`` (layers with one of the smallest map sizes; None:
    all, as in the paper), as the cost is three passes per map and image; with the thousands of maps of a ResNet-18 it takes
    a GPU. So few images often give maps the same accuracy; the note says in how many layers that happened at the cut.
    Different from its code: changes stay within ``epsilon``, pixels and not normalised values are clipped, a pruned map is
    0 and not a constant, and is the one that was measured, whatever order layers were defined in. The paper leaves the
    size of the noise open. Fine-tuning takes small batches under the schedule of `fit`;
    ``augment`` moves and mirrors images where `harmless_augmentation` finds that harmless. ``group`` maps share one backward
    pass; the result does not depend on it.
    """

    epsilon: float = 1 / 255
    noise: float = 0.5 / 255
    p: int = 64
    images: int = 128
    stages: int | None = 2
    group: int = 8
    epochs: int = 10
    learning_rate: float = 0.01
    batch_size: int = 32
    augment: bool = True

    name = "fmp"
    needs_trigger = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A pruned and fine-tuned copy, judged on held-out images; not applicable without a convolution that may be pruned.

        The curve holds the scores with no map pruned, and with the maps pruned but before fine-tuning.
        """
        layers = map_layers(subject.classifier, self.stages)
        if not layers:
            return not_applicable(
                self, trigger, "this network has no convolution besides the one that gives its scores"
            )
        ranking = self.rank(subject.classifier, subject.search_set, generator=generator)
        return self.prune(subject, trigger, ranking, generator=generator)

    def rank(
        self, classifier: Classifier, clean: CleanSet, *, generator: torch.Generator, only: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Accuracy (maps,) of the network on images changed to move each map, by layer: the lower, the more suspicious.

        ``only`` names the layers that are ranked; all that the settings choose if it is empty.
        """
        sample = clean.sample(self.images, int(torch.randint(2**31, (), generator=generator)))
        signs = torch.randint(0, 2, sample.images.shape, generator=generator) * 2.0 - 1
        start = (sample.images + self.noise * signs).clamp(0, 1)
        layers = map_layers(classifier, self.stages)
        return {
            layer: self._accuracies(classifier, layer, maps, sample, start)
            for layer, maps in layers.items()
            if not only or layer in only
        }

    def prune(
        self,
        subject: Subject,
        trigger: AnyTrigger,
        ranking: Mapping[str, Tensor],
        *,
        generator: torch.Generator,
    ) -> RepairResult:
        """A copy without the maps that come first in a ranking, fine-tuned on the search set, judged on held-out images."""
        clean = subject.search_set
        chosen, ties = {}, 0
        for layer, accuracies in ranking.items():
            chosen[layer] = weakest(accuracies, self.p)
            cut = accuracies[chosen[layer]].max()
            ties += int((accuracies <= cut).sum()) > len(chosen[layer])
        repaired = pruned_layers(subject.classifier, chosen)
        count, total = sum(len(maps) for maps in chosen.values()), sum(len(values) for values in ranking.values())
        before = score(subject.classifier, subject.held_out, trigger)
        curve = [
            CurvePoint(0.0, None, before),
            CurvePoint(count / total, None, score(repaired, subject.held_out, trigger)),
        ]
        fine_tune(self, subject, repaired, weight_decay=0.0, generator=generator)
        used = min(self.images, len(clean))
        forward, backward = used * (len(ranking) + 2 * total), used * total
        note = (
            f"{count} of {total} maps in {len(ranking)} layers pruned ({ties} layers tied at the cut) after {forward} image "
            f"passes forward and {backward} back, then {self.epochs} epochs over {len(clean)} clean images"
        )
        return reported(self, subject, repaired, trigger, note=note, curve=curve)

    def _accuracies(self, classifier: Classifier, layer: str, maps: int, clean: CleanSet, start: Tensor) -> Tensor:
        """Accuracy (maps,) of the whole network on images changed to move each map of the layer."""
        right = torch.zeros(maps, dtype=torch.long)
        batch = max(1, _AT_ONCE // self.group)
        parts = zip(clean.images.split(batch), start.split(batch), clean.labels.split(batch), strict=True)
        for images, begin, labels in parts:
            target = capture(classifier, layer, images)
            for group in torch.arange(maps).split(self.group):
                budget.check()
                gradients = map_gradients(classifier, layer, target, begin, group)
                changed = stepped(images, begin, gradients.cpu(), self.epsilon)
                predicted = classifier.predict(changed.flatten(0, 1)).cpu().view(len(group), -1)
                right[group] += (predicted == labels).sum(dim=1)
        return right / len(clean)


def map_layers(classifier: Classifier, stages: int | None = None) -> dict[str, int]:
    """Layers whose output holds the maps that may be pruned, in the order they run, and how many maps each has.

    With ``stages``, only layers with one of that many smallest map sizes. A network that does not end in a linear layer
    takes its scores from its last convolution: that one is not among them.
    """
    norms = list(conv_norms(classifier).items())
    if classifier.layers().head is None:
        norms = norms[:-1]
    grey = torch.full((1, *classifier.image_shape), 0.5)
    shapes = {norm or conv: capture(classifier, norm or conv, grey).shape for conv, norm in norms}
    sizes = sorted({shape[2] * shape[3] for shape in shapes.values()})[:stages]
    return {layer: shape[1] for layer, shape in shapes.items() if shape[2] * shape[3] in sizes}


def map_gradients(classifier: Classifier, layer: str, target: Tensor, start: Tensor, maps: Tensor) -> Tensor:
    """Gradients (g, n, c, h, w), with respect to ``start``, of the squared L2 change of each of the g ``maps`` of a layer.

    ``target`` (n, maps of the layer, height, width) is the layer's output on the clean images, ``start`` (n, c, h, w)
    where the images are now. All g maps take one backward pass: each has its own copy of the images, and in evaluation
    mode copies do not touch each other.
    """
    copies = start.to(classifier.device).repeat(len(maps), 1, 1, 1).requires_grad_(True)
    captured: list[Tensor] = []
    module = classifier.module.get_submodule(layer)
    with torch.enable_grad():
        with hooked(module, lambda _module, _arguments, output: captured.append(output.clone())):
            classifier(copies)
        moved = captured[0].unflatten(0, (len(maps), len(start)))
        own = torch.stack([moved[copy, :, channel] for copy, channel in enumerate(maps.tolist())])
        loss = (own - target[:, maps.to(target.device)].transpose(0, 1)).square().sum()
        (gradients,) = torch.autograd.grad(loss, copies)
    return gradients.view(len(maps), *start.shape)


def stepped(images: Tensor, start: Tensor, gradients: Tensor, epsilon: float) -> Tensor:
    """Images one signed step of ``epsilon`` on from ``start``, within ``epsilon`` (L-infinity) of ``images`` and in [0, 1]."""
    change = (start + epsilon * gradients.sign() - images).clamp(-epsilon, epsilon)
    return (images + change).clamp(0, 1)


def weakest(accuracies: Tensor, p: int) -> Tensor:
    """Indices of the ``max(1, round(C / p))`` lowest of C accuracies; among equals, the first."""
    count = max(1, round(len(accuracies) / p))
    return accuracies.argsort(stable=True)[:count]
