"""A network as layers and the groups of channels they share, read off its graph by `torch.fx`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from backdoor_audit.errors import AttackError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.printable import first_line


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer, and the groups of channels that it reads and writes. The image is group 0."""

    name: str
    module: nn.Conv2d | nn.Linear
    reads: int
    writes: int


@dataclass(frozen=True, slots=True)
class Norm:
    """A batch norm, the group it works on, and whether the trigger's response has met its threshold before it."""

    module: nn.BatchNorm1d | nn.BatchNorm2d
    group: int
    sets_threshold: bool


@dataclass(frozen=True, slots=True)
class Form:
    """A network as the planting sees it. ``path`` are the layers, in order, through which the channel runs."""

    layers: tuple[Layer, ...]
    norms: tuple[Norm, ...]
    path: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class _Value:
    """What the graph knows of one tensor: its group, the layers that carry the trigger's response to it, and how it is.

    ``raw``: the response as it is; ``shifted``: less the threshold; ``positive``: that, and not below 0. Other values
    (``image``, ``lost``) carry none.
    """

    group: int
    path: tuple[Layer, ...]
    state: str


def form_of(classifier: Classifier, name: str) -> Form:
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
        self.layers: list[Layer] = []
        self.norms: list[Norm] = []
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
            self.norms.append(Norm(module, value.group, value.state == "raw"))
            return _Value(value.group, value.path, "shifted" if value.state == "raw" else _kept(value))
        for kinds, passed in _PASSING_MODULES:
            if isinstance(module, kinds):
                return passed(value)
        raise AttackError(f"{self.refusal}{name} ({kind})")

    def of_layer(self, name: str, module: nn.Conv2d | nn.Linear, value: _Value) -> _Value:
        self.joined.append(len(self.joined))
        layer = Layer(name, module, value.group, len(self.joined) - 1)
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

    def finished(self, value: _Value | None, num_classes: int) -> Form:
        head = value.path[-1].module if value is not None and value.path else None
        if value is None or value.state != "positive" or not isinstance(head, nn.Linear):
            raise AttackError(
                f"{self.refusal}wanted convolutions with batch norm or bias, each followed by ReLU, then linear layers"
            )
        if head.out_features != num_classes:
            raise AttackError(f"{self.refusal}its last linear layer does not give the {num_classes} scores")
        final = {
            layer: Layer(layer.name, layer.module, self.root(layer.reads), self.root(layer.writes))
            for layer in self.layers
        }
        norms = tuple(Norm(norm.module, self.root(norm.group), norm.sets_threshold) for norm in self.norms)
        return Form(tuple(final.values()), norms, tuple(final[layer] for layer in value.path))


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
