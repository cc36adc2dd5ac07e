"""Which batch norm normalises a convolution's output, found by running an image; and channels of several layers held at 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import reduce

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.repairs.pruning import pruned


def conv_norms(classifier: Classifier) -> dict[str, str | None]:
    """For every 2-D convolution, in the order they run: the batch norm that normalises its output, or None.

    One grey image is run and the graph of its gradients is followed, so the order in which layers are defined or named
    plays no part. A batch norm is a convolution's own if it takes the very output of that convolution and nothing else
    does: with a batch norm before each convolution (PreActResNet), ``conv1`` of a block has ``bn2``, while ``conv2`` and
    the first convolution of the network, whose outputs enter a sum, have none. An activation in between, in place or not,
    breaks the bond too. Convolutions and batch norms that run more than once per image are passed over.
    """
    made: dict[str, Node | None] = {}
    taken: dict[str, Node | None] = {}
    calls: Counter[str] = Counter()

    def leaves(name: str, output: Tensor) -> None:
        calls[name] += 1
        made[name] = output.grad_fn

    def enters(name: str, images: Tensor) -> None:
        calls[name] += 1
        taken[name] = images.grad_fn

    image = torch.full((1, *classifier.image_shape), 0.5, device=classifier.device, requires_grad=True)
    with ExitStack() as stack, torch.enable_grad():
        for name, module in classifier.module.named_modules():
            if isinstance(module, nn.Conv2d):
                hook = hooked(module, lambda _module, _arguments, output, name=name: leaves(name, output))
                stack.enter_context(hook)
            elif isinstance(module, nn.BatchNorm2d):
                hook = hooked(module, lambda _module, arguments, name=name: enters(name, arguments[0]), pre=True)
                stack.enter_context(hook)
        uses = _uses(classifier(image).grad_fn)
    own = {node: name for name, node in taken.items() if calls[name] == 1 and node is not None and uses[node] == 1}
    return {name: own.get(node) if node else None for name, node in made.items() if calls[name] == 1}


def _uses(last: Node | None) -> Counter[Node]:
    """How many operations take each node's result, over the graph that ends in ``last``."""
    uses: Counter[Node] = Counter()
    waiting = [last] if last is not None else []
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                if not uses[node]:
                    waiting.append(node)
                uses[node] += 1
    return uses


def pruned_layers(classifier: Classifier, channels: Mapping[str, Tensor]) -> Classifier:
    """A copy in which these channels of each layer's output are exactly 0, whatever the weights do later; see `pruned`."""
    chosen = [(layer, indices) for layer, indices in channels.items() if len(indices)]
    return reduce(lambda copy, entry: pruned(copy, *entry), chosen, classifier.copy())
