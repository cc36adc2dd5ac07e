"""ONNX files, by the converter onnx2torch: a graph of known operations becomes a module, and gradients reach the images."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError, refuse_special
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.format import Asked, Format, Network
from backdoor_audit.model.loading.hints import Hints
from backdoor_audit.model.loading.onnx_batch import for_any_batch
from backdoor_audit.model.loading.onnx_opset import EXPORT, lower, name_weights_once
from backdoor_audit.model.loading.refusals import refuse_above
from backdoor_audit.printable import printable

_COPIES = 6  # of the file that are in memory while it is converted
_LARGEST_SIDE = 4096
_FIRST_FIELDS = frozenset(b"\x12\x1a\x22\x2a\x32\x3a\x42\x72")  # of a model, after its version
_BESIDE = (".data", "_data")  # ends the names of the file of weights beside a model, as exporters write it
_ADVICE = "or save the weights of the network that it was made from, and pass --arch"
_CHANNELS = frozenset({1, 3})
_ONE_FILE = "save it as one file, onnx.save(onnx.load('m.onnx'), 'one.onnx'), or export it with external_data=False"
_EXPORT = f"{EXPORT}, {_ADVICE}"


def _recognises(asked: Asked) -> bool:
    start = asked.start
    begins = start[:1] == b"\x08" and 2 < start[1] < 64 and start[2] in _FIRST_FIELDS if len(start) > 2 else False
    begins = begins and asked.path.suffix.lower() != ".mlmodel"  # which begins alike
    return begins or (asked.path.suffix == ".onnx" and start[:1] == b"\x08")


def files_of(path: Path) -> tuple[Path, ...]:
    """The file, and the file of weights beside it if there is one."""
    beside = [path.with_name(path.name + end) for end in _BESIDE] if path.suffix == ".onnx" else []
    return (path, *(file for file in beside if file.is_file()))


def _read(asked: Asked) -> Network:
    refuse_above(asked.size * _COPIES, "an ONNX file")
    try:
        onnx: Any = importlib.import_module("onnx")
        converter: Any = importlib.import_module("onnx2torch")
    except ImportError:
        raise ModelFormatError(f"an ONNX file; pip install 'backdoor-audit[onnx]' to read it, {_ADVICE}") from None
    with contained("an ONNX file that cannot be read", _ADVICE):
        model = onnx.load_model_from_string(asked.path.read_bytes())
        beside = _fill(onnx, asked, model)
        images = _input(model)
        _refuse_several(model, images.name)
        shape, batch, last = _images(onnx, images)
    with contained("an ONNX file that onnx2torch cannot convert", _EXPORT), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name_weights_once(model)
        lowered = lower(onnx, model)
        if shape and batch:
            module, changed = for_any_batch(onnx, model, converter.convert, shape, batch)
        else:
            module, changed = converter.convert(model), ""
    if not isinstance(module, nn.Module):
        raise ModelFormatError(f"an ONNX file that gives no network; {_ADVICE}")
    notes: tuple[str, ...] = ("an ONNX graph, converted by onnx2torch",)
    notes += (f"with the weights in {printable(beside)}",) if beside else ()
    notes += (f"of operator set {lowered}, written down in set 17, in which it computes the same",) if lowered else ()
    notes += (f"--arch={asked.arch} not needed",) if asked.arch else ()
    notes += (changed,) if changed else ()
    if last:
        module, shape = _ChannelsLast(module), shape and (shape[2], shape[0], shape[1])
        notes += ("its images have their channels last, as Keras has them; they are turned",)
    return Network(module, "onnx", notes, hints=Hints(image_shape=shape))


class _ChannelsLast(nn.Module):
    """A network of images (n, h, w, c) that takes them as (n, c, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """What the network gives."""
        scores: Tensor = self.network(images.permute(0, 2, 3, 1).contiguous())
        return scores


def _fill(onnx: Any, asked: Asked, model: Any) -> str:
    """Put the weights that lie in a file beside the model into it; the name of that file, empty if there are none.

    Raises `ModelFormatError` for any other file, and for places that are not in it or that overlap in part.
    """
    outside = [tensor for tensor in _tensors(model.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if not outside:
        return ""
    told = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    file = _beside(asked.path, {entry.get("location", "") for entry in told})
    try:
        size = refuse_special(file)
    except UnreadableError as error:
        raise ModelFormatError(
            f"an ONNX file whose weights lie in {printable(file.name)}: {error}; {_ONE_FILE}"
        ) from None
    places = [_place(entry, size) for entry in told]
    if any(end > size for _, end in places) or sum(end - start for start, end in set(places)) > size:
        raise ModelFormatError(
            f"{printable(file.name)} is damaged or of another model; copy both again from their source"
        )
    filled = sum(end - start for start, end in places)  # tied weights share a place, and take memory each
    refuse_above((asked.size + max(size, filled)) * _COPIES, "an ONNX file with its weights")
    whole = memoryview(file.read_bytes())
    for tensor, (start, end) in zip(outside, places, strict=True):
        tensor.raw_data = bytes(whole[start:end])
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return file.name


def _beside(path: Path, names: Collection[str]) -> Path:
    """The file of weights of a model, which has the model's own name and lies, as a link does, where the model does."""
    file = next((file for file in files_of(path)[1:] if {file.name} == set(names)), None)
    if file is None:
        accepted = f"{printable(path.stem)}.onnx{_BESIDE[0]} beside it"
        found = printable(", ".join(sorted(names)))[:80]
        raise ModelFormatError(f"an ONNX file whose weights lie in {found}; accepted: {accepted}; {_ONE_FILE}")
    if file.resolve().parent not in {path.parent.resolve(), path.resolve().parent}:
        raise ModelFormatError(f"{printable(file.name)} is a link to another folder; {_ONE_FILE}")
    return file


def _place(entry: Mapping[str, str], size: int) -> tuple[int, int]:
    """Where a tensor begins and ends in a file of ``size`` bytes; without a length it ends with the file."""
    start = _whole_number(entry.get("offset", ""))
    return start, start + _whole_number(entry["length"]) if entry.get("length") else max(size, start)


def _whole_number(text: str) -> int:
    """A number in the description of a place; none given is 0."""
    if text and not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise ModelFormatError(f"an ONNX file whose weights lie at {printable(text)[:40]}; {_ONE_FILE}")
    return int(text or 0)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph, those of its operations and of graphs in it as well."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _input(model: Any) -> Any:
    """What a graph takes beside its weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ModelFormatError(f"an ONNX file with {len(inputs)} inputs; an image classifier has one")
    return inputs[0]


def _refuse_several(model: Any, images: str) -> None:
    """Raise `ModelFormatError` for a graph that gives several things of which not exactly one can be scores."""
    outputs = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.output}  # 0: not told
    if len(outputs) > 1 and all(outputs.values()) and list(outputs.values()).count(2) != 1:
        shown = ", ".join(printable(name)[:40] for name in list(outputs)[:4])
        raise ModelFormatError(
            f"an ONNX file with {len(outputs)} outputs ({shown}); an image classifier gives scores (n, classes); keep these "
            f"alone: onnx.utils.extract_model('m.onnx', 'one.onnx', ['{printable(images)[:40]}'], ['NAME'])"
        )


def _images(onnx: Any, images: Any) -> tuple[tuple[int, int, int] | None, int, bool]:
    """The sizes of an image of an input where all are fixed, its batch, 0 if that is free, and whether channels are last."""
    found = images.type.tensor_type
    if found.elem_type not in {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}:
        raise ModelFormatError(
            f"an ONNX file whose input is not of floating point, which has no gradient; export it again to take floats, {_ADVICE}"
        )
    sizes = [int(size.dim_value) for size in found.shape.dim]
    if len(sizes) != 4:
        raise ModelFormatError(f"an ONNX file whose input has {len(sizes)} dimensions; images are (n, c, h, w)")
    batch, *image = sizes
    last = image[2] in _CHANNELS and image[0] not in _CHANNELS
    if not all(0 < side <= _LARGEST_SIDE for side in image):
        return None, batch, last
    return (image[0], image[1], image[2]), batch, last


FORMAT = Format("ONNX", _recognises, _read, (".onnx",))
