"""A CUDA device that is not there: shapes, types and devices are followed, nothing is computed.

Tensors on it are fake (`torch._subclasses.fake_tensor`), so an operation that mixes devices fails as it would on a card. What the
host asks of them is answered with small numbers and counted: on a card every such question waits for all work before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda")
_ASKING = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"})


class PretendedCuda(TorchFunctionMode):
    """While it is entered, ``cuda`` is such a device. ``asked`` counts what was copied to the host, by the name of the call.

    Gradients on it are empty tensors: autograd's engine would look for the card.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.asked: Counter[str] = Counter()
        self._grad = torch.autograd.grad

    def __enter__(self) -> PretendedCuda:
        torch.autograd.grad = self._gradients
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        torch.autograd.grad = self._grad
        super().__exit__(*error)

    def _gradients(self, outputs: Tensor, inputs: Tensor | Sequence[Tensor], **options: Any) -> tuple[Tensor, ...]:
        """Empty tensors for inputs on the device; it does not ask modes."""
        wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if not all(map(_there, wanted)):
            return tuple(self._grad(outputs, inputs, **options))
        with self.fake:
            return tuple(torch.empty_like(entry) for entry in wanted)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The call as it is, unless it is one of the device's."""
        del types
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if args and _there(args[0]):
            if name == "cpu" or (name == "to" and any(str(entry) == "cpu" for entry in (*args[1:], *given.values()))):
                self.asked["cpu"] += 1
                return _answer(args[0])
            if name in _ASKING:
                self.asked[name] += 1
                return func(_answer(args[0]), *args[1:], **given)
            if name in ("__getitem__", "__setitem__"):
                args = (args[0], _by_number(args[1]), *args[2:])
            if name == "backward":
                for leaf in _leaves(args[0].grad_fn):
                    with self.fake:
                        leaf.grad = torch.empty_like(leaf)
                return None
        on_device = any(str(entry).startswith("cuda") for entry in (*args, *given.values()) if _may_name(entry))
        if on_device or any(map(_there, args)):
            with self.fake:
                return func(*args, **given)
        return func(*args, **given)


def _may_name(value: object) -> bool:
    return isinstance(value, (torch.device, str))


def _there(value: object) -> bool:
    return isinstance(value, FakeTensor) and value.device.type == "cuda"


def _by_number(index: Any) -> Any:
    """An index in which masks on the host are numbers of places, as the card gets them."""
    if isinstance(index, tuple):
        return tuple(map(_by_number, index))
    mask = isinstance(index, Tensor) and index.dtype == torch.bool and index.ndim == 1 and not _there(index)
    return index.nonzero().flatten() if mask else index


def _answer(tensor: Tensor) -> Tensor:
    """On the host, in its shape: 0 to 7 in turn, for floats divided by 8."""
    numbers = (torch.arange(tensor.numel()) % 8).view(tensor.shape)
    return (numbers / 8 if tensor.is_floating_point() else numbers).to(tensor.dtype)


def _leaves(node: Any) -> Iterator[Tensor]:
    """The tensors that a gradient of this node reaches."""
    found, waiting = set(), [node]
    while waiting:
        step = waiting.pop()
        if step is None or step in found:
            continue
        found.add(step)
        if hasattr(step, "variable"):
            yield step.variable
        waiting.extend(entry for entry, _ in step.next_functions)
