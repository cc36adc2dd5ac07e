"""ONNX graphs of newer operator sets, written down in an older one that the converter knows, where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_KNOWN = 17  # the newest set of which onnx2torch converts what classifiers use
_NEWEST = 23  # whose changes were read for what follows
_MOST_AXES = 8
_MORE_TYPES = frozenset(
    {
        *("Cast", "Constant", "ConstantOfShape", "Equal", "Flatten", "Identity", "IsInf", "IsNaN", "Shape", "Size"),
        *("Squeeze", "Transpose", "Unsqueeze"),
        *("Conv", "ConvTranspose", "Cos", "Dropout", "Elu", "GlobalAveragePool", "HardSigmoid", "HardSwish"),
        *("InstanceNormalization", "MaxPool", "Round", "Selu", "Sin", "Softplus", "Softsign", "Tan"),
    }
)
"""What newer sets changed only in the kinds of number that it takes, float8 and the like, which no network here has."""

_REDUCTIONS = frozenset(
    {
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSumSquare"),
    }
)
"""Whose axes were an attribute, and are an input since set 18."""

EXPORT = "export it with torch.onnx.export(..., dynamo=False, opset_version=17, input_names=['x'], dynamic_axes={'x': {0: 'n'}})"
"""What to do where a graph cannot be used: such ones of the networks of torchvision and timm can."""

Change = Callable[[Any], None]


def name_weights_once(model: Any) -> None:
    """Give weights that go by further names, as exporters name equal ones, their first name everywhere; the nodes then go."""
    graph = model.graph
    first = {tensor.name: tensor.name for tensor in graph.initializer}
    kept_names = {value.name for value in (*graph.output, *graph.input)}
    nested = any(entry.HasField("g") or entry.graphs for node in graph.node for entry in node.attribute)
    kept = []
    for node in graph.node:
        alias = (
            node.op_type == "Identity" and node.domain in {"", "ai.onnx"} and len(node.input) == len(node.output) == 1
        )
        if alias and not nested and node.input[0] in first.keys() - kept_names and node.output[0] not in kept_names:
            first[node.output[0]] = first[node.input[0]]
            continue
        for at, name in enumerate(node.input):
            node.input[at] = first.get(name, name)
        kept.append(node)
    if len(kept) < len(graph.node):
        copies = [type(node).FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)


def lower(onnx: Any, model: Any) -> int:
    """Rewrite the model in place for operator set 17; the set that it had, or 0 if it is left as it is.

    That is done only if every operation has a form there that computes the same.
    """
    sets = [entry for entry in model.opset_import if entry.domain in {"", "ai.onnx"}]
    if len(sets) != 1 or sets[0].version > _NEWEST or len(model.functions):
        return 0
    graph = _Graph(onnx, sets[0].version, whole_numbers(onnx, model.graph))
    changes = [graph.change(node) for node in model.graph.node]
    if any(change is None for change in changes):
        return 0
    for change, node in zip(changes, model.graph.node, strict=True):
        if change is not None:
            change(node)
    if sets[0].version <= _KNOWN:
        return 0
    found, sets[0].version = int(sets[0].version), _KNOWN
    return found


def whole_numbers(onnx: Any, graph: Any) -> dict[str, tuple[int, ...]]:
    """Short rows of whole numbers by name, as axes and shapes are given."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.output) == 1:
            tensors.update((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")
    inputs = {value.name for value in graph.input}  # of which the file only says what they are by default
    return {
        name: tuple(map(int, onnx.numpy_helper.to_array(tensor)))
        for name, tensor in tensors.items()
        if name not in inputs
        and tensor.data_type == onnx.TensorProto.INT64
        and len(tensor.dims) == 1
        and tensor.dims[0] <= _MOST_AXES
    }


@dataclass(frozen=True, slots=True)
class _Graph:
    """A graph of operator set ``version``, and the whole numbers in it."""

    onnx: Any
    version: int
    constants: Mapping[str, tuple[int, ...]]

    def change(self, node: Any) -> Change | None:
        """What makes a node one of the older set, or None if nothing is known to."""
        given = {entry.name: entry for entry in node.attribute}
        if node.domain not in {"", "ai.onnx"} or any(entry.HasField("g") or entry.graphs for entry in node.attribute):
            return None
        if node.op_type == "Reshape":
            return self._reshape(node, given)
        if self.version <= _KNOWN or self._since(node, self.version) == self._since(node, _KNOWN) > 0:
            return _keep
        if node.op_type in _REDUCTIONS:
            return self._reduction(node, given)
        same = node.op_type in _MORE_TYPES and "saturate" not in given
        if node.op_type == "Pad":
            same = len(node.input) < 4 and ("mode" not in given or given["mode"].s != b"wrap")
        elif node.op_type == "Split":
            same = len(node.input) == 2 and "num_outputs" not in given
        elif node.op_type == "AveragePool":
            same = "dilations" not in given and ("ceil_mode" not in given or not given["ceil_mode"].i)
        return _keep if same else None

    def _since(self, node: Any, version: int) -> int:
        """The set that gave the operation the form that it has in set ``version``; 0 if it is not in it."""
        if not self.onnx.defs.has(node.op_type, version, ""):
            return 0
        return int(self.onnx.defs.get_schema(node.op_type, version, "").since_version)

    def _reshape(self, node: Any, given: Mapping[str, Any]) -> Change | None:
        """A zero in a shape means something else with ``allowzero``; without one nothing does."""
        if "allowzero" not in given or not given["allowzero"].i:
            return _keep
        sizes = self.constants.get(node.input[1], (0,)) if len(node.input) == 2 else (0,)
        return _without("allowzero") if 0 not in sizes else None

    def _reduction(self, node: Any, given: Mapping[str, Any]) -> Change | None:
        axes = self.constants.get(node.input[1]) if len(node.input) == 2 and node.input[1] else ()
        if axes is None or "axes" in given or (not axes and "noop_with_empty_axes" in given):
            return None

        def change(node: Any) -> None:
            del node.input[1:]
            _without("noop_with_empty_axes")(node)
            if axes:
                node.attribute.append(self.onnx.helper.make_attribute("axes", axes))

        return change


def _keep(node: Any) -> None:
    """Nothing has to change."""


def _without(name: str) -> Change:
    """Takes an attribute off."""

    def change(node: Any) -> None:
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)

    return change
