"""How a network's images and weights lie in memory: channels last, the fastest, unless that crashes."""

from __future__ import annotations

import torch
from torch import nn

_BLOCK = 16  # channels that a CPU takes at once: 8 with AVX2, 16 with AVX-512


def fitting_layout(module: nn.Module, device: torch.device) -> torch.memory_format:
    """``torch.channels_last``, but ``torch.contiguous_format`` for a network that must not be trained with it on a CPU.

    There the gradient by the weights of a strided 1x1 convolution of fewer than `_BLOCK` channels (the shortcuts of a narrow
    residual network) is written past its memory on CPUs with AVX2: it is wrong, or the process dies. oneDNN issue 6035, seen with
    torch 2.14. Nor for one with a tensor of 5 dimensions, to which torch cannot give that layout.
    """
    narrow = device.type == "cpu" and any(map(_is_narrow_shortcut, module.modules()))
    deep = any(tensor.ndim == 5 for tensors in (module.parameters(), module.buffers()) for tensor in tensors)
    return torch.contiguous_format if narrow or deep else torch.channels_last


def _is_narrow_shortcut(part: nn.Module) -> bool:
    return (
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and part.stride != (1, 1)
        and part.in_channels // part.groups < _BLOCK
    )
