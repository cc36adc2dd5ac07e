"""Two networks with the same tensors are told apart by what else decides their scores."""

from __future__ import annotations

import functools
import importlib
import re
import sys
import types
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from backdoor_audit.model import origins
from backdoor_audit.model.network_code import network_digest

PLAIN = """
import torch
from torch import nn

LEAST = 0.5

def brighter(x):
    return x.clamp(min=LEAST)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(brighter(x))
"""
ALTERED = {
    "forward": ("self.layer(brighter(x))", "self.layer(brighter(x)) + x.sum()"),
    "a number in forward": ("self.layer(brighter(x))", "self.layer(brighter(x)) * 2"),
    "a function that forward calls": ("x.clamp(min", "x.clamp(max"),
    "a number that such a function uses": ("LEAST = 0.5", "LEAST = 0.25"),
    "a method": ("    def forward", "    def __call__(self, x):\n        return x[:, :2]\n\n    def forward"),
    "a base class": ("class Net(nn.Module)", "class Other(nn.Module):\n    eps = 1\n\nclass Net(Other)"),
}


def network(monkeypatch: pytest.MonkeyPatch, source: str, name: str = "own_networks") -> nn.Module:
    """A network of a module of the user's own with that text, with the same weights every time."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(source, vars(module))
    return with_ones(vars(module)["Net"]())


def with_ones(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    return net


def test_weights_comments_and_repetition_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    known = network_digest(network(monkeypatch, PLAIN))
    again = network(monkeypatch, f"# a comment\n\n{PLAIN}")
    nn.init.zeros_(next(again.parameters()))
    assert network_digest(again) == known


@pytest.mark.parametrize("what", ALTERED)
def test_code_that_forward_runs_makes_another_network(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    altered = PLAIN.replace(*ALTERED[what])
    assert altered != PLAIN
    assert network_digest(network(monkeypatch, altered)) != network_digest(network(monkeypatch, PLAIN))


@pytest.mark.parametrize("imported", ["from own_helpers import scaled", "import own_helpers"])
@pytest.mark.parametrize("late", [False, True])
def test_code_of_another_module_of_the_users_own_counts(
    monkeypatch: pytest.MonkeyPatch, imported: str, *, late: bool
) -> None:
    call = "scaled(x)" if "from" in imported else "own_helpers.scaled(x)"
    body = f"        {imported}\n" * late + f"        return self.layer({call})"
    source = ("" if late else f"{imported}\n") + PLAIN.replace("        return self.layer(brighter(x))", body)
    digests = []
    for factor in (1, 2):
        helpers = types.ModuleType("own_helpers")
        monkeypatch.setitem(sys.modules, "own_helpers", helpers)
        exec(f"def scaled(x):\n    return {factor} * x\n", vars(helpers))
        digests.append(network_digest(network(monkeypatch, source)))
    assert digests[0] != digests[1]


def test_code_of_a_module_that_is_imported_later_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a branch of forward that has not been taken yet."""
    monkeypatch.syspath_prepend(str(tmp_path))
    call = "if x.min() > 9:\n            import own_later\n            x = own_later.altered(x)\n        return self.layer(x)"
    source = PLAIN.replace("return self.layer(brighter(x))", call)
    digests = []
    for factor in (1, 2):
        (tmp_path / "own_later.py").write_text(f"def altered(x):\n    return {factor} * x\n")
        importlib.invalidate_caches()
        digests.append(network_digest(network(monkeypatch, source)))
    assert "own_later" not in sys.modules
    assert digests[0] != digests[1]


class Scaled(nn.Module):
    """A number times its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Holding(nn.Module):
    """A layer that holds something."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return x


def buffered(value: float) -> nn.Module:
    net = nn.Module()
    net.register_buffer("hidden", torch.full((3,), value), persistent=False)
    return net


def hooked(by: float) -> nn.Module:
    net = nn.Identity()
    net.register_forward_hook(lambda module, inputs, output: output + by)
    return net


@pytest.mark.parametrize(
    "made",
    [
        Holding,
        lambda value: Holding({"threshold": [value]}),
        lambda value: Holding(torch.tensor(value)),
        lambda value: Holding([nn.Parameter(torch.tensor(value))]),  # in a list: not in the state dict
        lambda value: Holding([with_ones(nn.Linear(1, 1)), nn.Dropout(value / 10)]),
        lambda value: Holding(functools.partial(torch.add, other=value)),
        lambda value: Holding(lambda x: x + value),
        buffered,
        hooked,
        lambda value: nn.Sequential(nn.LeakyReLU(value)),
        lambda value: Holding(functional.relu if value == 1.0 else functional.gelu),
        lambda value: Holding(torch.relu if value == 1.0 else torch.sigmoid),  # both of C
        lambda value: Holding(re.compile("a" * int(value))),
        lambda value: symbolic_trace(Scaled(value)),
    ],
)
def test_what_layers_hold_beside_the_state_dict_counts(made: Callable[[float], nn.Module]) -> None:
    assert network_digest(made(1.0)) == network_digest(made(1.0))
    assert network_digest(made(1.0)) != network_digest(made(2.0))


def test_layers_in_another_order_are_another_network() -> None:
    nets = [nn.Sequential(*layers) for layers in ([nn.ReLU(), nn.Tanh()], [nn.Tanh(), nn.ReLU()])]
    assert network_digest(nets[0]) != network_digest(nets[1])


def test_weights_of_a_parametrised_layer_make_no_difference() -> None:
    nets = [spectral_norm(nn.Linear(2, 2)) for _ in range(2)]
    assert network_digest(nets[0]) == network_digest(nets[1])


@pytest.mark.parametrize("modules", [3, 80])
def test_a_package_of_the_users_own_counts_by_what_is_used_or_as_a_large_one_by_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, modules: int
) -> None:
    digests = []
    for name, text in (("first", ""), ("second", ""), ("third", "# altered")):
        package = tmp_path / name / f"own_package_{modules}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("\n".join(f"from . import part_{n}" for n in range(modules)))
        for number in range(modules):
            (package / f"part_{number}.py").write_text(f"from own_side import side\n{PLAIN}" + (text if number else ""))
        side = (
            "import threading\n\nheld = threading.local()\n\ndef side():\n    return held\n"  # what cannot be looked at
        )
        (package.parent / "own_side.py").write_text(side)
        with monkeypatch.context() as patched:
            patched.syspath_prepend(package.parent)
            origins.is_large.cache_clear()
            origins.package_digest.cache_clear()
            digests.append(network_digest(importlib.import_module(f"{package.name}.part_0").Net()))
            for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] in (package.name, "own_side")]:
                del sys.modules[loaded]
    assert digests[0] == digests[1]
    assert (digests[2] == digests[0]) == (modules == 3)


def test_an_import_of_what_is_no_package_makes_no_network_like_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PLAIN.replace("        return self.layer", "        import functools as later\n        return self.layer")
    digests = []
    for _ in range(2):
        net = network(monkeypatch, source)
        vars(sys.modules["own_networks"])["__package__"] = "own_networks"
        digests.append(network_digest(net))
    assert digests[0] == digests[1]


def test_code_by_a_name_that_is_put_together_when_it_runs_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = PLAIN.replace("self.layer(brighter(x))", "globals()['_'.join(('far', 'off'))](x)")
    digests = []
    for factor in (1, 2, 2):
        (tmp_path / "own_named.py").write_text(f"{source}\ndef far_off(x):\n    return {factor} * x\n")
        with monkeypatch.context() as patched:
            patched.syspath_prepend(str(tmp_path))
            patched.setattr(sys, "dont_write_bytecode", True)
            digests.append(network_digest(importlib.import_module("own_named").Net()))
            del sys.modules["own_named"]
    assert digests[0] != digests[1] == digests[2]


class Unreadable:
    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        raise RuntimeError("no")


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        made: nn.Module = torch.jit.script(nn.ReLU())
    return made


@pytest.mark.parametrize("net", [Holding(Unreadable()), scripted(), nn.Sequential(scripted())])
def test_a_network_that_cannot_be_told_is_like_no_other(net: nn.Module) -> None:
    assert all(one != other for one, other in pairwise(network_digest(net) for _ in range(3)))
