"""Where a network keeps what the checks look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

NO_HEAD = "this network does not end in a linear layer"
NO_FEATURE_MAP = "this network does not end in a feature map followed by linear layers"


@dataclass(frozen=True, slots=True)
class LayerMap:
    """Where a network keeps what the checks look at; found by running one image through it, not by reading names.

    ``feature_layer`` is the last module whose output is a feature map (n, c, h, w) with nothing but linear layers after
    it: on residual networks that is the block after its addition, on plain ones the last activation or pooling. Modules
    that run more than once per image are passed over.
    ``head`` is the last linear layer; its input is the penultimate vector. None: this network has no such layer.
    """

    feature_layer: str | None
    channels: int
    head: str | None
    neurons: int


def layers_of(network: nn.Module, num_classes: int, look: Callable[[], object]) -> LayerMap:
    """The layers of a network for so many classes, found by what passes through them while ``look`` gives it one image."""
    events: list[tuple[str, nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda module, _inputs, output, name=name: (
                events.append((name, module, output)) if isinstance(output, Tensor) else None
            )
        )
        for name, module in network.named_modules()
        if name
    ]
    try:
        look()
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(name for name, _, _ in events)
    feature_layer, channels, head, neurons = None, 0, None, 0
    for name, module, output in events:
        own_weights = any(True for _ in module.parameters(recurse=False))
        if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            if calls[name] == 1:  # a hook cannot tell the calls of a shared ReLU or pooling apart
                feature_layer, channels = name, output.shape[1]
            elif own_weights:
                feature_layer, channels = None, 0
        elif isinstance(module, nn.Linear):
            head, neurons = name, module.in_features
        elif own_weights and not isinstance(module, nn.BatchNorm1d):
            feature_layer, channels = None, 0  # more than a linear head follows: those maps are not the last features
    if head is not None:
        linear = network.get_submodule(head)
        if not isinstance(linear, nn.Linear) or linear.out_features != num_classes:
            head, neurons = None, 0
    return LayerMap(feature_layer, channels, head, neurons)
