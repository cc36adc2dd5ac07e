"""Pruning written into weights, so that a file can hold a repaired network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.pruning import Silence

_SAME = 1e-4  # of logits: what rounding may do


def baked(classifier: Classifier, probe: Tensor) -> Classifier | None:
    """A copy without hooks whose weights alone do what the hooks of `pruned` did; checked on images ``probe`` (n, c, h, w).

    None where they cannot: a hook that is no pruning, or channels that no weight makes or takes.
    """
    copy = classifier.copy()
    layers = copy.layers()
    for name, module in list(copy.module.named_modules()):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if not isinstance(hook, Silence):
                    return None
                del hooks[key]
                maps = layers.channels if name == layers.feature_layer else 0
                if not (_into_weights(module, hook) or _into_next(copy.module, hook, maps)):
                    return None
    same = torch.allclose(copy.logits(probe), classifier.logits(probe), atol=_SAME)
    return copy if same else None


@torch.no_grad()
def _into_weights(module: nn.Module, silence: Silence) -> bool:
    """Whether the layer itself has weights that make, or take, those channels; they are 0 then."""
    if silence.inputs:
        if isinstance(module, nn.Linear):
            module.weight[:, silence.channels] = 0
        return isinstance(module, nn.Linear)
    if not isinstance(module, (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)) or module.weight is None:
        return False
    module.weight[silence.channels] = 0
    if module.bias is not None:
        module.bias[silence.channels] = 0
    return True


@torch.no_grad()
def _into_next(network: nn.Module, silence: Silence, maps: int) -> bool:
    """Whether a linear layer takes the feature maps, pooled or flattened; its weights for those channels are 0 then."""
    if silence.inputs or not maps:
        return False
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.in_features % maps == 0:
            module.weight.view(module.out_features, maps, -1)[:, silence.channels] = 0
            return True
    return False
