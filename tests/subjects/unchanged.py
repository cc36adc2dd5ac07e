"""What a check must leave as it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything of a module, and of the global random state, that a check must leave as it was."""
    return {
        "state": copy.deepcopy(module.state_dict()),
        "mode": {name: part.training for name, part in module.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "gradients": [name for name, parameter in module.named_parameters() if parameter.grad is not None],
        "hooks": {
            name: [list(getattr(part, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for name, part in module.named_modules()
        },
        "random": torch.random.get_rng_state(),
    }


def assert_unchanged(before: dict[str, Any], module: nn.Module) -> None:
    """The module and the global random state are as `snapshot` found them."""
    assert_same(before, snapshot(module))


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two snapshots of one module have found the same."""
    assert before["state"].keys() == after["state"].keys()
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, after["state"][name]), name
    assert torch.equal(before["random"], after["random"]), "global random state"
    for part in ("mode", "requires_grad", "gradients", "hooks"):
        assert before[part] == after[part], part
