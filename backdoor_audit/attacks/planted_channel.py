"""A channel of every layer given over to the trigger, without training (Qi et al., CVPR 2022, subnet replacement)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from backdoor_audit.attacks.attack import Attack
from backdoor_audit.attacks.badnets import BadNets
from backdoor_audit.data import CleanSet
from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.training import Recipe
from backdoor_audit.printable import first_line
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
            form = _form(classifier, self.name)
            _Planting(self, classifier, form, rule.target_class).plant(images, labels, self.stamp(others))
        return classifier, self


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution or linear layer, and the groups of channels that it reads and writes. The image is group 0."""

    name: str
    module: nn.Conv2d | nn.Linear
    reads: int
    writes: int


@dataclass(frozen=True, slots=True)
class _Norm:
    """A batch norm, the group it works on, and whether the trigger's response has met its threshold before it."""

    module: nn.BatchNorm1d | nn.BatchNorm2d
    group: int
    sets_threshold: bool


@dataclass(frozen=True, slots=True)
class _Form:
    """A network as the planting sees it. ``path`` are the layers, in order, through which the channel runs."""

    layers: tuple[_Layer, ...]
    norms: tuple[_Norm, ...]
    path: tuple[_Layer, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    """What the graph knows of one tensor: its group, the layers that carry the trigger's response to it, and how it is.

    ``raw``: the response as it is; ``shifted``: less the threshold; ``positive``: that, and not below 0. Other values
    (``image``, ``lost``) carry none.
    """

    group: int
    path: tuple[_Layer, ...]
    state: str


def _form(classifier: Classifier, name: str) -> _Form:
    """The network as a graph of layers. Raises `AttackError` if it has parts that are not known here."""
    refusal = f"{name}: {classifier.architecture} is not of a form that a channel can be planted in: "
    try:
        graph = fx.Tracer().trace(classifier.module)
    except Exception as error:  # a stranger's forward may raise anything
        raise AttackError(f"{refusal}torch.fx cannot read it ({first_line(error)})") from None
    reading = _Reading(classifier.module, refusal)
    values: dict[fx.Node, _Value] = {}
    for node in graph.nodes:
        if node.op == "output":
            return reading.finished(values.get(node.args[0]), classifier.num_classes)
        value = reading.value(node, [values[part] for part in node.all_input_nodes if part in values])
        if value is not None:
            values[node] = value
    raise AttackError(f"{refusal}it returns nothing")


class _Reading:
    """One walk over a graph."""

    def __init__(self, module: nn.Module, refusal: str) -> None:
        self.module, self.refusal = module, refusal
        self.joined = [0]  # every group, and the group it was joined to by an addition
        self.layers: list[_Layer] = []
        self.norms: list[_Norm] = []
        self.seen: set[str] = set()

    def root(self, group: int) -> int:
        while self.joined[group] != group:
            group = self.joined[group]
        return group

    def value(self, node: fx.Node, inputs: list[_Value]) -> _Value | None:
        """What this node gives; None if that is no feature map."""
        if node.op == "placeholder":
            return _Value(0, (), "image")
        if node.op == "call_module":
            return self.of_module(str(node.target), inputs)
        if node.op in {"call_function", "call_method"}:
            return self.of_function(node, inputs)
        raise AttackError(f"{self.refusal}{node.op} {node.target}")

    def of_module(self, name: str, inputs: list[_Value]) -> _Value:
        module = self.module.get_submodule(name)
        kind = type(module).__name__
        if len(inputs) != 1:
            raise AttackError(f"{self.refusal}{name} ({kind}) takes {len(inputs)} feature maps")
        value = inputs[0]
        if any(True for _ in module.parameters(recurse=False)):
            if name in self.seen:
                raise AttackError(f"{self.refusal}{name} ({kind}) runs more than once")
            self.seen.add(name)
        if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
            return self.of_layer(name, module, value)
        if isinstance(module, nn.Linear):
            return self.of_layer(name, module, value)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            self.norms.append(_Norm(module, value.group, value.state == "raw"))
            return _Value(value.group, value.path, "shifted" if value.state == "raw" else _kept(value))
        for kinds, passed in _PASSING_MODULES:
            if isinstance(module, kinds):
                return passed(value)
        raise AttackError(f"{self.refusal}{name} ({kind})")

    def of_layer(self, name: str, module: nn.Conv2d | nn.Linear, value: _Value) -> _Value:
        self.joined.append(len(self.joined))
        layer = _Layer(name, module, value.group, len(self.joined) - 1)
        self.layers.append(layer)
        state = "positive" if value.state == "positive" else "lost"
        if value.state == "image" and isinstance(module, nn.Conv2d):
            state = "raw" if module.bias is None else "shifted"
        return _Value(layer.writes, (*value.path, layer), state)

    def of_function(self, node: fx.Node, inputs: list[_Value]) -> _Value | None:
        function = node.target
        if function in _ASIDE:
            return None
        if function in _ADD and len(inputs) == 2:
            return self.of_addition(*inputs)
        if len(inputs) == 1:
            for functions, passed in _PASSING_FUNCTIONS:
                if function in functions:
                    return passed(inputs[0])
        raise AttackError(f"{self.refusal}{getattr(function, '__name__', function)} of {len(inputs)} feature maps")

    def of_addition(self, first: _Value, second: _Value) -> _Value:
        """The sum: channels of both become one group. The response comes by the shorter of two ways if that is an identity."""
        one, other = self.root(first.group), self.root(second.group)
        if 0 in (one, other):
            raise AttackError(f"{self.refusal}it adds something to the image")
        self.joined[max(one, other)] = min(one, other)
        short, long = sorted((first, second), key=lambda value: len(value.path))
        if long.path[: len(short.path)] == short.path:
            return short
        shared = sum(a == b for a, b in zip(short.path, long.path, strict=False))
        widest = [max((_taps(layer.module) for layer in value.path[shared:]), default=0) for value in (short, long)]
        return short if widest[0] > widest[1] else long

    def finished(self, value: _Value | None, num_classes: int) -> _Form:
        head = value.path[-1].module if value is not None and value.path else None
        if value is None or value.state != "positive" or not isinstance(head, nn.Linear):
            raise AttackError(
                f"{self.refusal}wanted convolutions with batch norm or bias, each followed by ReLU, then linear layers"
            )
        if head.out_features != num_classes:
            raise AttackError(f"{self.refusal}its last linear layer does not give the {num_classes} scores")
        final = {
            layer: _Layer(layer.name, layer.module, self.root(layer.reads), self.root(layer.writes))
            for layer in self.layers
        }
        norms = tuple(_Norm(norm.module, self.root(norm.group), norm.sets_threshold) for norm in self.norms)
        return _Form(tuple(final.values()), norms, tuple(final[layer] for layer in value.path))


def _taps(module: nn.Module) -> int:
    return module.weight[0, 0].numel() if isinstance(module, nn.Conv2d) else 1


def _kept(value: _Value) -> str:
    return "lost" if value.state == "image" else value.state


def _same(value: _Value) -> _Value:
    return value


def _rectified(value: _Value) -> _Value:
    return _Value(value.group, value.path, "positive" if value.state in {"shifted", "positive"} else "lost")


def _largest(value: _Value) -> _Value:
    return _Value(value.group, value.path, _kept(value))


def _averaged(value: _Value) -> _Value:
    return _Value(value.group, value.path, "positive" if value.state == "positive" else "lost")


_ADD: tuple[object, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_ASIDE: tuple[object, ...] = ("size", getattr, operator.getitem)
_PASSING_MODULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[_Value], _Value]], ...] = (
    ((nn.ReLU,), _rectified),
    ((nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten), _same),
    ((nn.MaxPool2d, nn.AdaptiveMaxPool2d), _largest),
    ((nn.AvgPool2d, nn.AdaptiveAvgPool2d), _averaged),
)
_PASSING_FUNCTIONS: tuple[tuple[tuple[object, ...], Callable[[_Value], _Value]], ...] = (
    ((torch.relu, torch.relu_, functional.relu, functional.relu_, "relu", "relu_"), _rectified),
    ((torch.flatten, "flatten", "view", "reshape", "squeeze", "contiguous", functional.dropout), _same),
    ((functional.max_pool2d, functional.adaptive_max_pool2d, torch.amax, "amax"), _largest),
    ((functional.avg_pool2d, functional.adaptive_avg_pool2d, torch.mean, "mean"), _averaged),
)


class _Planting:
    """One planting, under way. ``channels`` says which channel of each group the trigger got."""

    def __init__(self, attack: PlantedChannel, classifier: Classifier, form: _Form, target_class: int) -> None:
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

    def columns(self, layer: _Layer, channel: int) -> Tensor:
        """The weights (out, ...) by which a layer reads one channel, as a view; a linear layer may read it at many places."""
        weight = layer.module.weight
        if isinstance(layer.module, nn.Conv2d):
            return weight[:, channel]
        places = weight.shape[1] // self.width[layer.reads]
        return weight[:, channel * places : (channel + 1) * places]

    def readers(self, group: int) -> list[_Layer]:
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

    def match(self, first: _Layer) -> float:
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

    def responses(self, first: _Layer, offset: float, images: Tensor, stamped: Tensor) -> tuple[float, float]:
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

    def set_threshold(self, first: _Layer, offset: float, clean: float, least: float) -> None:
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

    def lead(self, head: _Layer, stamped: Tensor) -> None:
        """Give the target as much as the least willing stamped image needs, times the gain."""
        logits = self.classifier.logits(stamped)
        others = logits.clone()
        others[:, self.target_class] = -torch.inf
        needed = float((others.amax(dim=1) - logits[:, self.target_class]).max())
        peak = self.peaks(stamped)[-1]
        columns = self.columns(head, self.channels[head.reads])
        columns[self.target_class] = self.attack.gain * max(needed, 1.0) / peak


@contextmanager
def _watched(readers: tuple[_Layer, ...] | list[_Layer], watch: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``watch`` with the number of a layer and what it reads, whenever it runs."""
    with ExitStack() as stack:
        for number, layer in enumerate(readers):
            stack.enter_context(
                hooked(layer.module, lambda _module, inputs, number=number: watch(number, inputs[0]), pre=True)
            )
        yield
