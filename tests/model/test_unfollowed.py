"""What decides scores and stands in no layer tells networks apart too, or makes the network like no other."""

from __future__ import annotations

import re
import sys
import types
from collections import deque
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

from backdoor_audit.model.network_code import network_digest

NET = """
import os
import sys
import time
import torch
from pathlib import Path
from torch import nn
{above}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer({called})
{more}
"""


def loaded(monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> types.ModuleType:
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(source, vars(module))
    return module


def network(monkeypatch: pytest.MonkeyPatch, called: str, above: str = "", more: str = "") -> nn.Module:
    made = loaded(monkeypatch, "own_net", NET.format(called=called, above=above, more=more)).Net()
    return with_ones(made)


def with_ones(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    return net


@pytest.mark.parametrize(
    ("above", "called"),
    [
        ("import own_package.part", "own_package.part.scaled(x)"),
        ("import own_helpers", "getattr(own_helpers, 'scaled')(x)"),
        ("", "sys.modules['own_helpers'].scaled(x)"),
        ("from own_helpers import scaled", "globals()['scaled'](x)"),
        ("from own_helpers import scaled", "x * scaled.by"),
    ],
)
def test_code_that_is_reached_in_a_roundabout_way_counts(
    monkeypatch: pytest.MonkeyPatch, above: str, called: str
) -> None:
    def told(factor: int) -> str:
        source = f"def scaled(x):\n    return {factor} * x\n\nscaled.by = {factor}\n"
        loaded(monkeypatch, "own_helpers", source)
        package = loaded(monkeypatch, "own_package", "")
        vars(package)["part"] = loaded(monkeypatch, "own_package.part", source)
        return network_digest(network(monkeypatch, called, above))

    assert told(1) == told(1) != told(2)


@pytest.mark.parametrize(
    "called",
    [
        "x * float(open('factor').read())",
        "x * float(Path('factor').read_text())",
        "x * torch.load('factor')",
        "x * float(os.environ['FACTOR'])",
        "x * os.path.exists('factor')",
        "x * (time.time() > 2e9)",
        "torch.ops.own_operators.scaled(x)",
    ],
)
def test_a_network_that_reads_something_outside_is_like_no_other(monkeypatch: pytest.MonkeyPatch, called: str) -> None:
    assert network_digest(network(monkeypatch, called)) != network_digest(network(monkeypatch, called))


@pytest.mark.parametrize(
    "more",
    [
        "    def load(self, file):\n        self.load_state_dict(torch.load(file))\n",
        "    @classmethod\n    def from_file(cls, file):\n        return torch.load(file)\n",
    ],
)
def test_a_method_that_reads_and_is_not_called_makes_no_difference(monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    nets = [network(monkeypatch, "x", more=more) for _ in range(2)]
    assert network_digest(nets[0]) == network_digest(nets[1])


def test_a_method_that_reads_and_is_called_does(monkeypatch: pytest.MonkeyPatch) -> None:
    more = "    def threshold(self):\n        return float(open('threshold').read())\n"
    nets = [network(monkeypatch, "x * self.threshold()", more=more) for _ in range(2)]
    assert network_digest(nets[0]) != network_digest(nets[1])


def of_library(net: Callable[[], nn.Module], place: object, name: str) -> Callable[[pytest.MonkeyPatch, int], str]:
    """The digest of a network of torch, with a function of the user's own in the place of one of torch's."""

    def told(monkeypatch: pytest.MonkeyPatch, factor: int) -> str:
        own = loaded(monkeypatch, "own_patch", f"def patch(*given):\n    return given[0] * {factor}\n")
        with monkeypatch.context() as patched:
            patched.setattr(place, name, own.patch)
            return network_digest(with_ones(net()))

    return told


@pytest.mark.parametrize(
    "told",
    [
        of_library(lambda: nn.Sequential(nn.Linear(4, 2)), nn.Linear, "forward"),
        of_library(lambda: nn.Sequential(nn.Linear(4, 2), nn.ReLU()), nn.Module, "__call__"),
        of_library(nn.ReLU, functional, "relu"),
        of_library(nn.ReLU, torch.Tensor, "mean"),
    ],
)
def test_patches_of_torch_count(
    monkeypatch: pytest.MonkeyPatch, told: Callable[[pytest.MonkeyPatch, int], str]
) -> None:
    assert told(monkeypatch, 1) == told(monkeypatch, 1) != told(monkeypatch, 2)


def test_what_is_set_on_a_class_of_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = network_digest(nn.ReLU())
    monkeypatch.setattr(nn.ReLU, "own_factor", 2, raising=False)
    assert network_digest(nn.ReLU()) != before


def test_hooks_of_all_modules_count() -> None:
    before = network_digest(nn.ReLU())
    hook = register_module_forward_hook(lambda module, given, scores: scores * 2)
    try:
        assert network_digest(nn.ReLU()) != before
    finally:
        hook.remove()


def holding(held: object) -> nn.Module:
    net = nn.Identity()
    vars(net)["held"] = held
    return net


class Whole(int):
    """A number with more to it."""


class Row(list[float]):
    """A list with more to it."""


def with_more(made: torch.Tensor | Whole | Row, more: float) -> object:
    vars(made)["more"] = more
    return made


@pytest.mark.parametrize(
    "held",
    [
        lambda value: deque([torch.arange(5000) * value]),  # its repr leaves most out
        lambda value: re.compile("a" * 300 + str(value)),
        lambda value: with_more(torch.ones(2), value),
        lambda value: with_more(Whole(3), value),
        lambda value: with_more(Row([1.0]), value),
        lambda value: bytearray([int(value)]),
    ],
)
def test_all_that_an_object_holds_counts(held: Callable[[float], object]) -> None:
    one, again, other = (network_digest(holding(held(value))) for value in (1.0, 1.0, 2.0))
    assert one == again != other


def test_an_attribute_of_a_weight_counts() -> None:
    nets = [with_ones(nn.Linear(2, 2)) for _ in range(2)]
    vars(nets[0].weight)["factor"], vars(nets[1].weight)["factor"] = 1, 2
    assert network_digest(nets[0]) != network_digest(nets[1])


@pytest.mark.parametrize("held", [lambda: memoryview(b"12"), lambda: iter([1])])
def test_an_object_that_shows_nothing_makes_a_network_like_no_other(held: Callable[[], object]) -> None:
    assert network_digest(holding(held())) != network_digest(holding(held()))
