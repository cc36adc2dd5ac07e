"""ONNX files as exporters write them: newer operator sets, weights beside the file, batches of a fixed size."""

import os

import pytest
import torch
from torch import nn

from backdoor_audit import bounds
from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import fingerprint_of, load_model
from backdoor_audit.model.ways import unseen_way

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx2torch")
make_node = onnx.helper.make_node


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def whole_numbers(name, *values):
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values)


def reduce_mean(**attributes):
    return make_node("ReduceMean", ["r", "axes"], ["p"], keepdims=1, **attributes)


MEAN = reduce_mean(noop_with_empty_axes=0)
FLAT = make_node("Reshape", ["p", "shape"], ["f"], allowzero=1)
CENTRED = (
    make_node("ReduceMean", ["f", "first"], ["m"], keepdims=1),
    make_node("Sub", ["f", "m"], ["d"]),
    make_node("Add", ["f", "d"], ["h"]),
)


def model_of(*, opset=20, mean=MEAN, flat=FLAT, axes=(2, 3), shape=(-1, 4), batch="n", more=()):
    """A convolution, a ReLU, a mean, a reshaping and a linear layer, as torch's exporter writes them; and the network."""
    module = network()
    weights = {"cw": module[0].weight, "cb": module[0].bias, "lw": module[4].weight, "lb": module[4].bias}
    nodes = [
        make_node("Conv", ["x", "cw", "cb"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make_node("Relu", ["c"], ["r"]),
        mean,
        flat,
        *more,
        make_node("Gemm", ["h" if more is CENTRED else "f", "lw", "lb"], ["y"], transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 5])],
        [
            *(onnx.numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()),
            whole_numbers("axes", *axes),
            whole_numbers("first", 0),
            whole_numbers("shape", *shape),
        ],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10), module


def written(path, **changes):
    model, module = model_of(**changes)
    path.write_bytes(model.SerializeToString())
    return module


def scores_alike(loaded, module, count=5):
    images = torch.rand(count, 3, 8, 8)
    return torch.allclose(loaded.classifier((3, 8, 8))(images), module(images), atol=1e-5)


def refusal(path):
    with pytest.raises(ModelFormatError) as caught:
        load_model(path)
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"axes": (-2, -1)},
        {"mean": make_node("GlobalAveragePool", ["r"], ["p"])},
        {"flat": make_node("Flatten", ["p"], ["f"])},
        {"flat": make_node("Reshape", ["p", "shape"], ["i"]), "more": [make_node("Identity", ["i"], ["f"])]},
    ],
)
def test_a_graph_of_a_newer_operator_set_classifies_as_its_network(opset, changes, tmp_path):
    module = written(tmp_path / "m.onnx", opset=opset, **changes)
    loaded = load_model(tmp_path / "m.onnx")
    assert scores_alike(loaded, module)
    assert f"of operator set {opset}, written down in set 17, in which it computes the same" in loaded.notes


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": make_node("ReduceMean", ["r", "x"], ["p"])},  # axes that are not constant
        {"mean": reduce_mean(noop_with_empty_axes=1), "axes": ()},  # which means none of them
        {"mean": make_node("Gelu", ["r"], ["p"])},
        {"shape": (0, 4)},  # with allowzero: no images at all
        {"opset": 99},
    ],
)
def test_what_has_no_known_older_form_is_refused_with_the_export_that_loads(changes, tmp_path):
    written(tmp_path / "m.onnx", **changes)
    said = refusal(tmp_path / "m.onnx")
    assert said.startswith("an ONNX file that onnx2torch cannot convert (")
    assert (
        "torch.onnx.export(..., dynamo=False, opset_version=17, input_names=['x'], dynamic_axes={'x': {0: 'n'}})"
        in said
    )


def test_weights_that_go_by_two_names_are_the_same(tmp_path):
    twice = make_node("Identity", ["lb"], ["again"]), make_node("Identity", ["again"], ["bias"])
    model, module = model_of(opset=17, mean=make_node("GlobalAveragePool", ["r"], ["p"]), more=twice)
    del model.graph.node[3].attribute[:]
    model.graph.node[-1].input[2] = "bias"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert scores_alike(load_model(tmp_path / "m.onnx"), module)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_graph_for_a_fixed_number_of_images_takes_any_if_that_changes_no_score(batch, tmp_path):
    module = written(tmp_path / "m.onnx", batch=batch, shape=(batch, 4))
    loaded = load_model(tmp_path / "m.onnx")
    assert scores_alike(loaded, module)
    assert scores_alike(loaded, module, count=1)
    assert f"exported for batches of {batch}, made to take any; it scores images as before" in loaded.notes


def test_a_graph_that_takes_other_numbers_of_images_than_it_says_is_left_as_it_is(tmp_path):
    module = written(tmp_path / "m.onnx", batch=3)
    loaded = load_model(tmp_path / "m.onnx")
    assert scores_alike(loaded, module)
    assert not any("batches" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "changes",
    [
        {"axes": (0, 2, 3), "shape": (1, 4)},  # a mean over the images
        {"more": CENTRED, "shape": (1, 4)},  # less a mean over the images
        {"batch": 17, "shape": (17, 4)},  # more than it is tried with
    ],
)
def test_a_graph_for_a_fixed_number_of_images_is_refused_where_that_is_not_certain(changes, tmp_path):
    written(tmp_path / "m.onnx", **{"batch": 1, **changes})
    said = refusal(tmp_path / "m.onnx")
    assert said.startswith(f"an ONNX file that takes batches of {changes.get('batch', 1)} only (")
    assert "dynamic_axes={'x': {0: 'n'}}" in said


def test_images_with_their_channels_last_are_turned(tmp_path):
    model, module = model_of()
    graph = model.graph
    graph.node[0].input[0] = "turned"
    graph.node.insert(0, make_node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2]))
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8, 9, 3]))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    loaded = load_model(path)
    images = torch.rand(5, 3, 8, 9)
    assert loaded.image_shape == (3, 8, 9)
    assert torch.allclose(loaded.classifier()(images), module(images), atol=1e-5)
    assert "its images have their channels last, as Keras has them; they are turned" in loaded.notes


def test_of_several_outputs_the_scores_are_to_be_kept_alone_by_a_call_that_does_it(tmp_path):
    path, one = tmp_path / "m.onnx", tmp_path / "one.onnx"
    model, module = model_of()
    model.graph.output.append(onnx.helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, ["n", 4]))
    path.write_bytes(model.SerializeToString())
    said = refusal(path)
    assert said.startswith("an ONNX file with 2 outputs (y, f); an image classifier gives scores (n, classes)")
    assert said.endswith("onnx.utils.extract_model('m.onnx', 'one.onnx', ['x'], ['NAME'])")
    onnx.utils.extract_model(path, one, ["x"], ["y"])
    assert scores_alike(load_model(one), module)


def beside(path, location=None, name=None, change=lambda entries: None, **changes):
    """A model whose weights lie in a file beside it, as torch writes it."""
    model, module = model_of(**changes)
    content = b""
    for tensor in model.graph.initializer[:4]:
        entries = {
            "location": location or f"{path.name}.data",
            "offset": str(len(content)),
            "length": str(len(tensor.raw_data)),
        }
        change(entries)
        content += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    path.with_name(name or f"{path.name}.data").write_bytes(content)
    return module


@pytest.mark.parametrize("end", [".data", "_data"])
def test_weights_in_a_file_beside_the_model_are_read_and_counted_as_part_of_it(end, tmp_path):
    path, data = tmp_path / "m.onnx", tmp_path / f"m.onnx{end}"
    module = beside(path, data.name, data.name)
    loaded = load_model(path)
    assert scores_alike(loaded, module)
    assert f"with the weights in {data.name}" in loaded.notes
    data.write_bytes(data.read_bytes()[:-1] + b"\1")
    assert fingerprint_of(path) != loaded.fingerprint
    assert load_model(path).fingerprint != loaded.fingerprint


def test_tied_weights_share_a_place_in_the_file_of_weights_and_the_last_may_leave_out_its_length(tmp_path):
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    module = beside(path)
    model = onnx.load(path, load_external_data=False)
    del model.graph.initializer[3].external_data[2]
    for at in range(4):
        tied = model.graph.initializer.add()
        tied.CopyFrom(model.graph.initializer[0])
        tied.name = f"tied{at}"
    path.write_bytes(model.SerializeToString())
    assert scores_alike(load_model(path), module)
    with bounds.allowing(bounds.Bounds(memory=6 * (path.stat().st_size + data.stat().st_size))):  # each takes its own
        assert "an ONNX file with its weights" in refusal(path)


@pytest.mark.parametrize("location", ["/etc/passwd", "../m.onnx.data", "sub/m.onnx.data", "other.data", "", "m.onnx"])
def test_weights_anywhere_else_are_not_read(location, tmp_path):
    for file in (tmp_path / "other.data", tmp_path.parent / "m.onnx.data"):
        file.write_bytes(bytes(10_000))
    beside(tmp_path / "m.onnx", change=lambda entries: entries.update(location=location))
    said = refusal(tmp_path / "m.onnx")
    assert said.startswith(
        f"an ONNX file whose weights lie in {location}; accepted: m.onnx.data beside it; save it as one"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entries: entries.update(offset="999999999"), "m.onnx.data is damaged or of another model"),
        (lambda entries: entries.update(offset="-1"), "an ONNX file whose weights lie at -1; save it as one file"),
        (lambda entries: entries.update(length="9" * 30), "an ONNX file whose weights lie at 999"),
        (lambda entries: entries.update(length="500"), "m.onnx.data is damaged or of another model"),
        (lambda entries: entries.update(length="3"), "an ONNX file that onnx2torch cannot convert ("),
    ],
)
def test_places_that_are_not_in_the_file_of_weights_are_one_line(change, said, tmp_path):
    beside(tmp_path / "m.onnx", change=change)
    assert refusal(tmp_path / "m.onnx").startswith(said)


def test_a_file_of_weights_that_is_no_regular_file_of_the_folder_is_not_read(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    path, data = folder / "m.onnx", folder / "m.onnx.data"
    beside(path)
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    assert refusal(path).startswith("m.onnx.data is a link to another folder")
    data.unlink()
    os.mkfifo(data)
    assert "accepted: m.onnx.data beside it" in refusal(path)


def test_a_file_of_weights_above_the_bound_is_not_read(tmp_path):
    beside(tmp_path / "m.onnx")
    with (tmp_path / "m.onnx.data").open("ab") as file:
        file.truncate(2**20)
    with bounds.allowing(bounds.Bounds(memory=2**20)):
        assert "--audit-memory=SIZE" in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize(("looks", "told"), [("Floor", "by way of floor"), ("Relu", "around all layers with weights")])
def test_what_a_graph_does_with_pixels_beside_its_network_is_seen(looks, told, tmp_path):
    model, _ = model_of()
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.extend(
        [
            make_node(looks, ["x"], ["looked"]),
            make_node("ReduceMean", ["looked", "axes"], ["seen"], keepdims=0),
            make_node("ReduceMean", ["seen", "one"], ["trigger"], keepdims=1),
            make_node("Add", ["scores", "trigger"], ["y"]),
        ]
    )
    model.graph.initializer.append(whole_numbers("one", 1))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    classifier, images = load_model(tmp_path / "m.onnx").classifier((3, 8, 8)), torch.rand(2, 3, 8, 8)
    assert told in unseen_way(classifier.module, lambda: classifier(images), images)
    written(tmp_path / "m.onnx")
    classifier = load_model(tmp_path / "m.onnx").classifier((3, 8, 8))
    assert unseen_way(classifier.module, lambda: classifier(images), images) == ""
