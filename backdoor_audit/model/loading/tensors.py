"""What the tensors of a file must be like to be the weights of a network here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.refusals import odd_tensor


def as_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with floating-point ones in single precision. Raises `ModelFormatError` for kinds that no network takes."""
    if not state:
        raise ModelFormatError("holds no tensors; accepted: the state_dict of a classifier")
    refuse_odd(state)
    try:
        return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    except (RuntimeError, NotImplementedError):
        found = sorted({str(tensor.dtype) for tensor in state.values()})
        raise ModelFormatError(f"tensors of {', '.join(found)}; save the model as float32 or float16") from None


def refuse_odd(state: Mapping[str, object]) -> None:
    """Raise `ModelFormatError` for quantised, sparse, complex tensors and those without all of their numbers."""
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (what := _oddity(tensor)):
            raise odd_tensor(name, what)


def _oddity(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.is_complex():
        return "complex"
    if tensor.is_meta:
        return "without data (a meta tensor)"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"a {tuple(tensor.shape)} view of less data"
    return ""
