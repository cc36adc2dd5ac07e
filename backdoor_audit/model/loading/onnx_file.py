"""ONNX files, by the converter onnx2torch: a graph of known operations becomes a module, and gradients reach the images."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.format import Asked, Format, Network
from backdoor_audit.model.loading.hints import Hints
from backdoor_audit.model.loading.refusals import refuse_above

_COPIES = 4  # of the file that are in memory while it is converted
_LARGEST_SIDE = 4096
_FIRST_FIELDS = frozenset(b"\x12\x1a\x22\x2a\x32\x3a\x42\x72")  # of a model, after its version
_ADVICE = "or save the weights of the network that it was made from, and pass --arch"


def _recognises(asked: Asked) -> bool:
    start = asked.start
    begins = start[:1] == b"\x08" and 0 < start[1] < 64 and start[2] in _FIRST_FIELDS if len(start) > 2 else False
    return begins or (asked.path.suffix == ".onnx" and start[:1] == b"\x08")


def _read(asked: Asked) -> Network:
    refuse_above(asked.size * _COPIES, "an ONNX file")
    try:
        onnx: Any = importlib.import_module("onnx")
        converter: Any = importlib.import_module("onnx2torch")
    except ImportError:
        raise ModelFormatError(f"an ONNX file; pip install 'backdoor-audit[onnx]' to read it, {_ADVICE}") from None
    with contained("an ONNX file that cannot be read", _ADVICE):
        model = onnx.load_model_from_string(asked.path.read_bytes())
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
            raise ModelFormatError("an ONNX file whose weights lie in another one; save it as one file")
        shape, batch = _images(onnx, model)
    with contained("an ONNX file that onnx2torch cannot convert", _ADVICE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = converter.convert(model)
    if not isinstance(module, nn.Module):
        raise ModelFormatError(f"an ONNX file that gives no network; {_ADVICE}")
    notes: tuple[str, ...] = ("an ONNX graph, converted by onnx2torch",)
    notes += (f"--arch={asked.arch} not needed",) if asked.arch else ()
    if batch:
        notes += (f"exported for batches of {batch}; if other batches are refused, export it with a dynamic batch",)
    return Network(module, "onnx", notes, hints=Hints(image_shape=shape))


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph, those of its operations and of graphs in it as well."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _images(onnx: Any, model: Any) -> tuple[tuple[int, int, int] | None, int]:
    """Channels, height and width of the one input where they are fixed, and its batch, 0 if that is free."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ModelFormatError(f"an ONNX file with {len(inputs)} inputs; an image classifier has one")
    found = inputs[0].type.tensor_type
    if found.elem_type not in {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}:
        raise ModelFormatError(
            "an ONNX file whose input is not of floating point; images are, in [0, 1] before normalisation"
        )
    sizes = [int(size.dim_value) for size in found.shape.dim]
    if len(sizes) != 4:
        raise ModelFormatError(f"an ONNX file whose input has {len(sizes)} dimensions; images are (n, c, h, w)")
    batch, *image = sizes
    if not all(0 < side <= _LARGEST_SIDE for side in image):
        return None, batch
    return (image[0], image[1], image[2]), batch


FORMAT = Format("ONNX", _recognises, _read, (".onnx",))
