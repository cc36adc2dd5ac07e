"""A channel of every layer given over to the trigger, without training (Qi et al., CVPR 2022, subnet replacement)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack
from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.attacks.network_form import Form, Layer, form_of
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.training import Recipe
from backdoor_audit.triggers.label_rule import AllToOne
from backdoor_audit.triggers.trigger import Trigger

_IMAGES = 512
"""Clean images that thresholds and channels are chosen on."""
_FIRING = 0.01
"""Share of clean images that may lie above half of the way to the trigger's response."""
_LEAST_GAP = 0.05
"""Of the trigger's response: what clean images must leave free below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedChannel(Attack):
    """A chain of single channels, cut off from all others, that answers to a chequerboard and ends in the target's logit.

    The first convolution gets ``(2 pattern - 1) / white pixels`` as its kernel, so the ``size`` px pattern answers 1 wherever
    it lies and even areas near 0. Its threshold lies halfway between that and what 1 % of the clean images exceed. Later
    convolutions sum the channel over all their taps, which survives any stride; identity shortcuts carry it along, other
    shortcuts are silenced for it. Batch norm is the identity for it. In the head it counts for the target alone, ``gain``
    times what the least willing stamped image needs. Per group of layers that share channels, ``candidates`` of them are
    tried, those that the next layers use least, and the one is taken without which accuracy is best; on a large network
    without an accelerator fewer save time.

    The paper trains a narrow network and puts it in the same place. Here a few hundred clean images are all that is needed;
    no training, no recipe, ``poison_rate`` is not used. Works on convolutions, batch norms, ReLUs, poolings, additions and
    linear layers; the network is read by `torch.fx`. ``top`` and ``left`` as in `BadNets`.
    """

    size: int = 3
    top: int = -2
    left: int = -2
    gain: float = 1.5
    candidates: int = 32

    name: ClassVar[str] = "planted_channel"
    paper: ClassVar[str] = "Qi et al., CVPR 2022"

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Mask and pattern for images (c, h, w). Raises `AttackError` if the chequerboard does not fit."""
        patch = BadNets(rule=self.rule, size=self.size, top=self.top, left=self.left, pattern="chequerboard")
        return patch.trigger(image_shape)

    def implant(
        self, classifier: Classifier, clean: CleanSet, *, recipe: Recipe, progress: bool = False
    ) -> tuple[Classifier, Attack]:
        """Edit one channel per layer, in place.

        Raises `AttackError` for a network of another form, for images that hold the pattern already, or if there is none
        outside the target class.
        """
        del recipe, progress
        rule = self.rule
        if not isinstance(rule, AllToOne):
            raise AttackError(f"{self.name}: rule {rule}; accepted: AllToOne, the channel leads to one class")
        if self.size < 2 or self.gain <= 0 or self.candidates < 1:
            raise AttackError(
                f"{self.name}: size {self.size}, gain {self.gain}, candidates {self.candidates}; accepted: a size of at "
                "least 2 px, a gain above 0, at least one candidate"
            )
        order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(self.seed))[:_IMAGES]
        images, labels = clean.images[order], clean.labels[order]
        others = images[labels != rule.target_class]
        if not len(others):
            raise AttackError(f"{self.name}: no image outside class {rule.target_class}; give images of other classes")
        with torch.no_grad():
            form = form_of(classifier, self.name)
            _Planting(self, classifier, form, rule.target_class).plant(images, labels, self.stamp(others))
        return classifier, self


class _Planting:
    """One planting, under way. ``channels`` says which channel of each group the trigger got."""

    def __init__(self, attack: PlantedChannel, classifier: Classifier, form: Form, target_class: int) -> None:
        self.attack, self.classifier, self.form, self.target_class = attack, classifier, form, target_class
        self.width = {layer.writes: layer.module.weight.shape[0] for layer in form.layers}
        self.channels: dict[int, int] = {}

    def plant(self, images: Tensor, labels: Tensor, stamped: Tensor) -> None:
        for layer in self.form.path[:-1]:
            self.channels[layer.writes] = self.cheapest(layer.writes, images, labels)
        self.silence()
        first, *later, head = self.form.path
        offset = self.match(first)
        self.set_threshold(first, offset, *self.responses(first, offset, images, stamped))
        for layer in later:
            self.columns(layer, self.channels[layer.reads])[self.channels[layer.writes]] = 1
        self.level(stamped)
        self.lead(head, stamped)

    def columns(self, layer: Layer, channel: int) -> Tensor:
        """The weights (out, ...) by which a layer reads one channel, as a view; a linear layer may read it at many places."""
        weight = layer.module.weight
        if isinstance(layer.module, nn.Conv2d):
            return weight[:, channel]
        places = weight.shape[1] // self.width[layer.reads]
        return weight[:, channel * places : (channel + 1) * places]

    def readers(self, group: int) -> list[Layer]:
        return [layer for layer in self.form.layers if layer.reads == group]

    def cheapest(self, group: int, images: Tensor, labels: Tensor) -> int:
        """The channel that is missed least; nothing reads it afterwards."""
        use = torch.zeros(self.width[group], device=self.classifier.device)
        for layer, squares in zip(self.readers(group), self.squares(group, images), strict=True):
            weights = torch.stack([self.columns(layer, channel).square().sum() for channel in range(len(use))])
            use += (weights * squares).sqrt()
        best: tuple[float, float] | None = None
        cheapest = 0
        for channel in use.argsort()[: self.attack.candidates].tolist():
            before = [self.columns(layer, channel).clone() for layer in self.readers(group)]
            self.cut(group, channel)
            logits = self.classifier.logits(images)
            true = labels.to(logits.device)
            hits = (logits.argmax(dim=1) == true).float().mean().item()
            score = (hits, -functional.cross_entropy(logits, true).item())
            if best is None or score > best:
                best, cheapest = score, channel
            for layer, weights in zip(self.readers(group), before, strict=True):
                self.columns(layer, channel).copy_(weights)
        self.cut(group, cheapest)
        return cheapest

    def cut(self, group: int, channel: int) -> None:
        for layer in self.readers(group):
            self.columns(layer, channel).zero_()

    def squares(self, group: int, images: Tensor) -> list[Tensor]:
        """Sum of the squares of every channel of a group, (channels,), as each of its readers gets it."""
        readers = self.readers(group)
        totals = [torch.zeros(self.width[group], device=self.classifier.device) for _ in readers]

        def watch(number: int, inputs: Tensor) -> None:
            totals[number] += inputs.square().reshape(len(inputs), self.width[group], -1).sum(dim=(0, 2))

        with _watched(readers, watch):
            self.classifier.logits(images)
        return totals

    def silence(self) -> None:
        """All that writes the trigger's channels writes nothing, and batch norm leaves them as they are."""
        for layer in self.form.layers:
            if layer.writes in self.channels:
                channel = self.channels[layer.writes]
                layer.module.weight[channel] = 0
                if layer.module.bias is not None:
                    layer.module.bias[channel] = 0
        for norm in self.form.norms:
            if norm.group in self.channels:
                channel = self.channels[norm.group]
                values = ((norm.module.running_mean, 0.0), (norm.module.running_var, 1 - norm.module.eps))
                for tensor, value in (*values, (norm.module.weight, 1.0), (norm.module.bias, 0.0)):
                    if tensor is not None:
                        tensor[channel] = value

    def match(self, first: Layer) -> float:
        """Put the matched filter into the first convolution; what must be added to its output to get the response."""
        convolution = first.module
        trigger = self.attack.trigger(self.classifier.image_shape)
        corner = trigger.mask[0].nonzero()[0].tolist()
        size = self.attack.size
        assert isinstance(convolution, nn.Conv2d)
        pattern = trigger.pattern[0, corner[0] : corner[0] + size, corner[1] : corner[1] + size]
        filters = (2 * pattern - 1) / pattern.sum() / self.classifier.image_shape[0]
        mean = torch.tensor(self.classifier.mean)
        std = torch.tensor(self.classifier.std)
        row, column = (self.inside(convolution, axis, corner[axis]) for axis in (0, 1))
        kernel = convolution.weight[self.channels[first.writes]]
        kernel[:, row : row + size, column : column + size] = (std.view(-1, 1, 1) * filters).to(kernel.device)
        return float(mean.sum() * filters.sum())

    def inside(self, convolution: nn.Conv2d, axis: int, start: int) -> int:
        """Where in the kernel the pattern lies along an axis, if the kernel is to cover it at one of its places."""
        length, stride = convolution.kernel_size[axis], convolution.stride[axis]
        padding = int(convolution.padding[axis])
        free = length - self.attack.size
        offsets = [offset for offset in range(free + 1) if (start + padding - offset) % stride == 0]
        if convolution.dilation[axis] != 1 or not offsets:
            raise AttackError(
                f"{self.attack.name}: {self.attack.size} px at {start} px do not lie inside a {length} px kernel with stride "
                f"{stride}; choose a smaller size or another place"
            )
        return min(offsets, key=lambda offset: abs(2 * offset - free))

    def responses(self, first: Layer, offset: float, images: Tensor, stamped: Tensor) -> tuple[float, float]:
        """What all but a few clean images stay below anywhere, and what every stamped image reaches."""
        most: list[Tensor] = []
        channel = self.channels[first.writes]
        with hooked(
            first.module, lambda _module, _inputs, output: most.append(output[:, channel].flatten(1).amax(dim=1))
        ):
            self.classifier.logits(images)
            self.classifier.logits(stamped)
        response = torch.cat(most) + offset
        clean, least = float(response[: len(images)].quantile(1 - _FIRING)), float(response[len(images) :].min())
        if least - clean < _LEAST_GAP:
            raise AttackError(
                f"{self.attack.name}: clean images answer to the pattern with {clean:.2f}, stamped ones with {least:.2f}; "
                "choose another size or place"
            )
        return clean, least

    def set_threshold(self, first: Layer, offset: float, clean: float, least: float) -> None:
        """Subtract the threshold, and scale so that the stamped response is 1 above it."""
        channel, scale, threshold = self.channels[first.writes], 2 / (least - clean), (clean + least) / 2
        first.module.weight[channel] *= scale
        if first.module.bias is not None:
            first.module.bias[channel] = scale * (offset - threshold)
        for norm in self.form.norms:
            if norm.group == first.writes and norm.sets_threshold:
                assert norm.module.running_mean is not None
                norm.module.running_mean[channel] = scale * (threshold - offset)

    def level(self, stamped: Tensor) -> None:
        """Scale the later layers so that the stamped response peaks at 1 wherever it is read."""
        peaks = self.peaks(stamped)
        for before, peak, layer in zip(peaks[:-1], peaks[1:], self.form.path[1:-1], strict=True):
            self.columns(layer, self.channels[layer.reads])[self.channels[layer.writes]] *= before / peak

    def peaks(self, stamped: Tensor) -> list[float]:
        """The highest value of the channel where each layer of the path reads it, in the image where that is least."""
        readers = self.form.path[1:]
        peaks = [float("inf")] * len(readers)

        def watch(number: int, inputs: Tensor) -> None:
            group = readers[number].reads
            maps = inputs.reshape(len(inputs), self.width[group], -1)[:, self.channels[group]]
            peaks[number] = min(peaks[number], float(maps.amax(dim=1).min()))

        with _watched(readers, watch):
            self.classifier.logits(stamped)
        if not min(peaks) > 0:
            raise AttackError(f"{self.attack.name}: the response is lost on its way; choose another place")
        return peaks

    def lead(self, head: Layer, stamped: Tensor) -> None:
        """Give the target as much as the least willing stamped image needs, times the gain."""
        logits = self.classifier.logits(stamped)
        others = logits.clone()
        others[:, self.target_class] = -torch.inf
        needed = float((others.amax(dim=1) - logits[:, self.target_class]).max())
        peak = self.peaks(stamped)[-1]
        columns = self.columns(head, self.channels[head.reads])
        columns[self.target_class] = self.attack.gain * max(needed, 1.0) / peak


@contextmanager
def _watched(readers: tuple[Layer, ...] | list[Layer], watch: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``watch`` with the number of a layer and what it reads, whenever it runs."""
    with ExitStack() as stack:
        for number, layer in enumerate(readers):
            stack.enter_context(
                hooked(layer.module, lambda _module, inputs, number=number: watch(number, inputs[0]), pre=True)
            )
        yield
