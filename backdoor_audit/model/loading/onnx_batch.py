"""ONNX graphs that were exported for a fixed number of images, made to take any where that provably changes no score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.foreign import brief
from backdoor_audit.model.loading.onnx_opset import EXPORT, whole_numbers

_MOST = 16  # images that a graph is tried with
_LARGEST_SIDE = 1024  # px


def for_any_batch(
    onnx: Any, model: Any, convert: Callable[[Any], nn.Module], shape: tuple[int, int, int], batch: int
) -> tuple[nn.Module, str]:
    """The network of a model for images of ``shape``, exported for ``batch`` of them, and a note if it had to be changed.

    Where it takes other numbers of images, or images are too large to try, it stays as it is. Otherwise shapes that begin with
    ``batch`` are written as those of any batch, and the outcome is taken if it scores single images as the file's own graph
    scores them in its batch, and as it scores them itself beside other images. Raises `ModelFormatError` if it does not.
    """
    original = convert(_copy(onnx, model)).eval()
    if max(shape) > _LARGEST_SIDE:
        return original, ""
    scores = _scores(original, torch.full((2 if batch != 2 else 3, *shape), 0.5))
    if isinstance(scores, Tensor):
        return original, ""
    freed = _freed(onnx, _copy(onnx, model), batch) if batch <= _MOST else None
    if freed is not None:
        module = convert(freed).eval()
        images = torch.rand(batch + 1, *shape, generator=torch.Generator().manual_seed(0))
        expected, together = _scores(original, images[:batch]), _scores(module, images)
        parts = [_scores(module, image[None]) for image in images]
        if isinstance(expected, Tensor) and isinstance(together, Tensor):
            single = torch.cat([part for part in parts if isinstance(part, Tensor)] or [together[:0]])
            if _same(single[:batch], expected) and _same(together, single):
                return module, f"exported for batches of {batch}, made to take any; it scores images as before"
    raise ModelFormatError(f"an ONNX file that takes batches of {batch} only ({scores}); {EXPORT}")


def _copy(onnx: Any, model: Any) -> Any:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    return found


def _scores(module: nn.Module, images: Tensor) -> Tensor | str:
    """Scores with one row for each image, or why there are none."""
    try:
        with torch.no_grad():
            scores = module(images.to(_dtype(module)))
    except Exception as error:
        return brief(error)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(images):
        return f"{len(images)} images give no {len(images)} rows of scores"
    return scores


def _dtype(module: nn.Module) -> torch.dtype:
    found = (value.dtype for value in module.state_dict().values() if value.is_floating_point())
    return next(found, torch.float32)


def _same(scores: Tensor, expected: Tensor) -> bool:
    """Up to rounding, which differs between batches."""
    if scores.shape != expected.shape:
        return False
    return bool((scores - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-6))


def _freed(onnx: Any, model: Any, batch: int) -> Any | None:
    """The model with every constant shape that begins with ``batch`` beginning with that of its input; None without one."""
    constants = whole_numbers(onnx, model.graph)
    made: dict[str, str] = {}
    for node in model.graph.node:
        name = node.input[1] if node.op_type == "Reshape" and len(node.input) == 2 else ""
        sizes = constants.get(name, ())
        if sizes[:1] != (batch,) or 0 in sizes:
            continue
        if name not in made:
            made[name] = f"{name} of any batch"
            freed = (0, *sizes[1:])  # as many as there are in what is given a shape
            model.graph.initializer.append(
                onnx.helper.make_tensor(made[name], onnx.TensorProto.INT64, [len(freed)], freed)
            )
        node.input[1] = made[name]
    if not made:
        return None
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    del model.graph.value_info[:]
    return model
