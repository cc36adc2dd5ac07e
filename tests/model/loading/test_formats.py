"""Formats beside safetensors and torch.save: what loads, and what is said of what does not."""

import importlib
import io
import json
import re
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backdoor_audit import bounds
from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import fingerprint_of, load_classifier, load_model
from backdoor_audit.model.loading.format import Format, Network
from backdoor_audit.model.loading.formats import FORMATS, SUFFIXES
from backdoor_audit.model.networks import build_network
from backdoor_audit.options import OPTIONS


def network():
    return build_network("small_cnn", num_classes=5, in_channels=1, width=4).eval()


def refusal(path, **options):
    with pytest.raises(ModelFormatError) as caught:
        load_model(path, **{"arch": "small_cnn", **options})
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.count(f"{path}: ") == 1
    assert said.isprintable()
    return said.removeprefix(f"{path}: ")


def without(monkeypatch, *missing):
    real = importlib.import_module

    def import_module(name, *rest):
        if name in missing:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_names_and_suffixes_belong_to_one_format():
    assert len({entry.name for entry in FORMATS}) == len(FORMATS)
    assert len(set(SUFFIXES)) == len(SUFFIXES)
    assert all(suffix.startswith(".") and suffix.islower() for suffix in SUFFIXES)


def test_the_help_of_the_model_names_every_format_that_is_read():
    told = next(option.help for option in OPTIONS if option.key == "model")
    assert [entry.name for entry in FORMATS if not entry.refused and entry.name not in told] == []


def test_a_file_of_no_format_is_told_which_there_are(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"\0nothing that is known")
    assert refusal(tmp_path / "m.pt").startswith(
        "neither safetensors, torch.save nor ONNX (begins with b'\\x00nothing')"
    )


def of_others(**changes):
    """A format that another package brings, for any file: a network of ours."""
    read = {"read": lambda asked: Network(network(), f"theirs, {asked.size} bytes"), **changes}
    return Format("theirs", lambda asked: True, **read)


def test_a_format_of_another_package_reads_what_no_shipped_one_reads(tmp_path):
    (tmp_path / "m.theirs").write_bytes(b"nothing that is known")
    loaded = load_model(tmp_path / "m.theirs", more_formats=(of_others(),))
    assert loaded.architecture == "theirs, 21 bytes"
    assert loaded.notes[0] == "format: theirs, read by code of another package"
    zip_of(tmp_path / "m.keras", config_dot_json=b"{}")  # which a shipped format recognises to refuse it
    assert load_model(tmp_path / "m.keras", more_formats=(of_others(),)).architecture.startswith("theirs")


def test_a_format_of_another_package_takes_no_file_from_a_shipped_one(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in network().state_dict().items()}
    save_file(tensors, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", arch="small_cnn", more_formats=(of_others(),))
    assert loaded.architecture == "small_cnn"
    (tmp_path / "broken.safetensors").write_bytes(b"\x02" + bytes(7) + b"{")
    assert "theirs" not in refusal(tmp_path / "broken.safetensors", more_formats=(of_others(),))


def test_a_format_of_another_package_that_fails_is_one_line(tmp_path):
    def fails(asked):
        raise SystemExit(0)

    (tmp_path / "m.theirs").write_bytes(b"\0nothing that is known")
    assert "SystemExit" in refusal(tmp_path / "m.theirs", more_formats=(of_others(read=fails),))
    nobodys = Format("theirs", lambda asked: False, fails, (".theirs",))
    said = refusal(tmp_path / "m.theirs", more_formats=(nobodys,))
    assert said.startswith("neither safetensors, torch.save, ONNX nor theirs (begins with")


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file, as Keras writes it"),
        (b"\x1c\0\0\0TFL3" + bytes(9), "a TensorFlow Lite file"),
        (b"GGUF" + bytes(20), "a GGUF file"),
        (b"\x1f\x8b\x08" + bytes(20), "packed with gzip"),
        (b"<!DOCTYPE html><html>", "a web page instead of the model"),
        (b"\x93NUMPY\x01\0v\0", "an array of numpy"),
        (b"7z\xbc\xaf\x27\x1c", "packed with 7z"),
        (b"BZh91AY" + bytes(20), "packed with bzip2"),
        (b"m.pt" + bytes(253) + b"ustar", "packed with tar"),
        (b"\xef\xbb\xbf\n <HTML><head>", "a web page instead of the model"),
        (b"<?xml version='1.0'?><Error>", "a web page instead of the model"),
        (b"Entry not found", "a text instead of the model (begins with 'Entry not found')"),
    ],
)
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.onnx"])
def test_files_of_others_are_named_with_the_way_out(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(said)


def test_zip_archives_of_others_are_named_with_the_way_out(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.zeros(2))
    assert refusal(tmp_path / "m.npz").startswith("an .npz of numpy arrays")
    zip_of(tmp_path / "m.zip", inner__m_dot_pt=b"x")
    assert refusal(tmp_path / "m.zip") == "a zip archive with m.pt in it; unpack it and give that file"
    zip_of(tmp_path / "m.keras", **{"model_dot_weights_dot_h5": b"x", "config_dot_json": b"{}"})
    assert refusal(tmp_path / "m.keras").startswith("a Keras archive")
    zip_of(tmp_path / "other", readme=b"x")
    assert refusal(tmp_path / "other").startswith("a zip archive, but no model (holds readme)")


def test_a_folder_without_a_model_names_what_is_in_it(tmp_path):
    assert refusal(tmp_path).startswith("not a file but a folder, without a model in it")
    (tmp_path / "best.ckpt").write_bytes(b"x")
    assert f"give the model file in it, {tmp_path / 'best.ckpt'} (" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("saved_model.pb", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("m.mlmodel", "Core ML"),
        ("m.caffemodel", "Caffe"),
        ("m.engine", "TensorRT"),
    ],
)
def test_files_that_only_their_names_tell_are_to_be_converted(name, whose, tmp_path):
    (tmp_path / name).write_bytes(b"\x08\x01\x12" + bytes(20))
    assert refusal(tmp_path / name) == f"a file of {whose}; convert the network to PyTorch or ONNX"
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path).startswith(
        f"not a file but a folder with {name} of {whose}; convert the network to PyTorch"
    )


def test_parts_of_a_distributed_checkpoint_say_how_they_become_one_file(tmp_path):
    part = tmp_path / "__0_0.distcp"
    part.write_bytes(b"PK\x03\x04" + bytes(40))
    (tmp_path / "other.pt").write_bytes(b"x")
    command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {tmp_path} m.pt, and pass --model=m.pt"
    assert refusal(tmp_path).endswith(command)
    assert refusal(part).endswith(command)
    (tmp_path / ".metadata").write_bytes(b"\x80\x04}.")
    assert refusal(tmp_path / ".metadata").endswith(command)


def test_parts_of_a_distributed_checkpoint_are_found_in_the_folder_that_trainers_give_it(tmp_path):
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    (tmp_path / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"PK\x03\x04" + bytes(40))
    assert f"dcp_to_torch {tmp_path}/pytorch_model_fsdp_0 m.pt" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "zzz.pt"])
def test_the_model_file_of_a_folder_is_told_from_what_trainers_write_beside_it(name, tmp_path):
    beside = (
        "optimizer.bin",
        "random_states_0.pkl",
        "scheduler.pt",
        "training_args.bin",
        "lr_scheduler_1.pt",
        "scaler.pt",
    )
    for file in (name, *beside):
        (tmp_path / file).write_bytes(b"x")
    assert f"give the model file in it, {tmp_path / name} (" in refusal(tmp_path)


def test_the_checkpoints_of_a_folder_are_named_and_load(folder):
    path, module = folder
    steps = [path / f"checkpoint-{step}" for step in (500, 1000)]
    for step in steps:
        step.mkdir()
        for file in ("config.json", "model.safetensors"):
            (step / file).write_bytes((path / file).read_bytes())
    (path / "model.safetensors").unlink()
    said = refusal(path, arch=None)
    assert said.startswith(f"not a file but a folder with 2 checkpoints in it; pass --model={steps[1]} or {steps[0]} (")
    assert torch.equal(load_model(steps[1]).module.network.classifier.weight, module.classifier.weight)


def test_weights_given_in_place_of_their_folder_are_told_which_folder_to_give(folder):
    path = folder[0]
    expected = f"no architecture in the header; config.json lies beside it: pass --model={path}, or pass --arch=NAME ("
    assert refusal(path / "model.safetensors", arch=None).startswith(expected)
    assert load_model(path).architecture == "transformers:vit"
    for name in ("config.json", "preprocessor_config.json"):
        assert refusal(path / name) == f"one file of a folder that holds a network; pass --model={path}"
    (path / "model.safetensors").rename(path / "best.safetensors")
    said = refusal(path / "best.safetensors", arch=None)
    assert f"config.json lies beside it: call the file model.safetensors and pass --model={path}, or" in said
    (path / "config.json").write_text("{}")
    assert "config.json" not in refusal(path / "best.safetensors", arch=None)


def in_parts(folder, state, suffix="safetensors", count=2, stem="model"):
    """The tensors in files as save_pretrained writes them, and the map from tensors to files."""
    saving = save_file if suffix == "safetensors" else torch.save
    names = [f"{stem}-{at:05}-of-{count:05}.{suffix}" for at in range(1, count + 1)]
    listed = {key: names[at % count] for at, key in enumerate(state)}
    for name in names:
        saving({key: state[key].contiguous() for key in state if listed[key] == name}, folder / name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return listed


@pytest.mark.parametrize(("suffix", "stem"), [("safetensors", "model"), ("bin", "pytorch_model")])
def test_a_folder_with_weights_in_several_files_loads_by_its_index(suffix, stem, tmp_path):
    state = network().state_dict()
    files = sorted(set(in_parts(tmp_path, state, suffix, stem=stem).values()))
    loaded = load_model(tmp_path, arch="small_cnn")
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())
    assert refusal(tmp_path, arch=None).startswith("a folder without a config.json that names its network")
    for name in (*files, f"{stem}.{suffix}.index.json"):
        assert refusal(tmp_path / name) == f"one file of a folder that holds a network; pass --model={tmp_path}"
    (tmp_path / files[1]).write_bytes((tmp_path / files[1]).read_bytes() + b"x")
    assert fingerprint_of(tmp_path) != loaded.fingerprint


def test_a_network_of_transformers_in_several_files_is_the_same(folder):
    path, module = folder
    (path / "model.safetensors").unlink()
    in_parts(path, module.state_dict(), count=3)
    images = torch.rand(2, 3, 16, 16)
    seen = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.5
    assert torch.allclose(load_classifier(path)(images), module(seen).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda listed: {}, "model.safetensors.index.json: weight_map names 0 files; accepted: 1 to 64"),
        (lambda listed: [], "model.safetensors.index.json: weight_map names 0 files"),
        (
            lambda listed: {**listed, "a": "../secret.safetensors"},
            "model.safetensors.index.json: '../secret.safetensors' is no part",
        ),
        (lambda listed: {**listed, "a": "/dev/zero"}, "model.safetensors.index.json: '/dev/zero' is no part"),
        (lambda listed: {**listed, "a": 3}, "model.safetensors.index.json: '3' is no part"),
        (
            lambda listed: {**listed, "a": "pytorch_model-00001-of-00002.bin"},
            "model.safetensors.index.json: 'pytorch_model-00001-of-00002.bin' is no part",
        ),
        (
            lambda listed: {f"{at}": f"model-{at:05}-of-00065.safetensors" for at in range(65)},
            "model.safetensors.index.json: weight_map names 65 files",
        ),
        (
            lambda listed: {**listed, "a": "model-00009-of-00009.safetensors"},
            "model-00009-of-00009.safetensors: No such file or directory",
        ),
        (
            lambda listed: {**listed, "a": "model-00001-of-00002.safetensors"},
            "model-00001-of-00002.safetensors and model.safetensors.index.json contradict each other (a); copy the folder",
        ),
    ],
)
def test_an_index_that_does_not_name_the_files_of_its_folder_is_one_line(change, said, tmp_path):
    listed = in_parts(tmp_path, network().state_dict())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change(listed)}))
    assert refusal(tmp_path).startswith(said)


def test_several_files_together_stay_within_the_bound_for_one(tmp_path):
    in_parts(tmp_path, {f"{at}": torch.zeros(2**16, dtype=torch.float16) for at in range(8)}, count=8)
    with bounds.allowing(bounds.Bounds(memory=2**21)):
        assert "--audit-memory=SIZE" in refusal(tmp_path)
    with bounds.allowing(bounds.Bounds(memory=2**23)):
        assert "--audit-memory=SIZE" not in refusal(tmp_path)


@pytest.mark.parametrize("options", [{}, {"arch": None}, {"allow_pickle": True}])
@pytest.mark.parametrize("member", ["data/weights/model_weights_config.json", "serialized_exported_program.json"])
def test_an_exported_program_is_refused_with_the_way_out(member, options, tmp_path):
    zip_of(tmp_path / "m.pt2", **{f"m/{member}": b"{}", "m/version": b"1"})
    said = refusal(tmp_path / "m.pt2", **options)
    assert said.startswith("a torch.export archive, which is a program: it is not run here")
    assert 'torch.save(torch.export.load(f).state_dict, "weights.pt")' in said


def test_what_torch_exports_is_recognised(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "m.pt2")
    assert refusal(tmp_path / "m.pt2").startswith("a torch.export archive")


def onnx_file(path, change=lambda model, helper: None):
    """A convolution, a ReLU, a mean and a linear layer, written node by node; and the same as a module."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx2torch")
    helper, arrays = onnx.helper, onnx.numpy_helper
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    weights = {"cw": module[0].weight, "cb": module[0].bias, "lw": module[4].weight, "lb": module[4].bias}
    nodes = [
        helper.make_node("Conv", ["x", "cw", "cb"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "lw", "lb"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])],
        [arrays.from_array(value.detach().numpy(), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    change(model, onnx)
    path.write_bytes(model.SerializeToString())
    return module


@pytest.mark.parametrize("name", ["m.onnx", "m.bin"])
def test_an_onnx_graph_is_converted_and_classifies_as_its_network(name, tmp_path):
    module = onnx_file(tmp_path / name)
    loaded = load_model(tmp_path / name)
    assert (loaded.architecture, loaded.image_shape) == ("onnx", (3, 8, 8))
    classifier, images = loaded.classifier(), torch.rand(4, 3, 8, 8)
    assert torch.allclose(classifier(images), module(images), atol=1e-5)
    assert torch.allclose(classifier.copy()(images), module(images), atol=1e-5)


def elsewhere(model, onnx):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def elsewhere_in_a_node(model, onnx):
    node = model.graph.node.add(op_type="Constant", output=["z"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.data_location = onnx.TensorProto.EXTERNAL


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            elsewhere,
            "an ONNX file whose weights lie in /etc/passwd; accepted: m.onnx.data beside it; save it as one file",
        ),
        (
            elsewhere_in_a_node,
            "an ONNX file whose weights lie in ; accepted: m.onnx.data beside it; save it as one file",
        ),
        (lambda model, _: model.graph.input.add(name="other"), "an ONNX file with 2 inputs"),
        (
            lambda model, _: model.graph.input[0].type.tensor_type.shape.dim.add(),
            "an ONNX file whose input has 5 dimensions",
        ),
        (
            lambda model, onnx: setattr(model.graph.input[0].type.tensor_type, "elem_type", onnx.TensorProto.UINT8),
            "an ONNX file whose input is not of floating point, which has no gradient; export it again to take floats, or save",
        ),
        (
            lambda model, onnx: setattr(model.graph.node[1], "op_type", "Nope"),
            "an ONNX file that onnx2torch cannot convert (",
        ),
    ],
)
def test_an_onnx_graph_that_cannot_be_used_is_one_line(change, said, tmp_path):
    onnx_file(tmp_path / "m.onnx", change)
    assert refusal(tmp_path / "m.onnx").startswith(said)


def test_an_onnx_file_says_which_extra_reads_it(tmp_path, monkeypatch):
    without(monkeypatch, "onnx")
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x062.1.0")
    assert "pip install 'backdoor-audit[onnx]'" in refusal(tmp_path / "m.onnx")


def test_an_onnx_file_that_is_cut_off_is_one_line(tmp_path):
    onnx_file(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:200])
    assert refusal(tmp_path / "m.onnx").startswith("an ONNX file that cannot be read (DecodeError")


def timm_state(name, **sizes):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **sizes).eval()


@pytest.mark.parametrize("arch", ["timm:test_vit", "timm:test_vit,img_size=32,in_chans=1"])
def test_sizes_of_a_timm_network_are_read_off_its_tensors_or_its_name(arch, tmp_path):
    module = timm_state("test_vit", img_size=32, in_chans=1, num_classes=3)
    torch.save({"state_dict": module.state_dict(), "arch": "test_vit"}, tmp_path / "m.pth.tar")
    loaded, images = load_model(tmp_path / "m.pth.tar", arch=arch), torch.rand(2, 1, 32, 32)
    assert torch.allclose(loaded.module(images), module(images), atol=1e-5)
    assert loaded.mean == ()  # the data configuration is for three channels


def test_a_timm_network_brings_its_data_configuration(tmp_path):
    torch.save(timm_state("test_resnet", num_classes=3).state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch="timm:test_resnet")
    config = timm_state("test_resnet").pretrained_cfg
    assert (loaded.mean, loaded.std) == (tuple(config["mean"]), tuple(config["std"]))
    assert "timm:test_resnet is made for images of 3x160x160" in loaded.notes
    assert any(note.endswith("that of the network's data configuration") for note in loaded.notes)
    assert load_model(tmp_path / "m.pt", arch="timm:test_resnet", mean=(0.1,), std=(0.2,)).mean == (0.1,)


@pytest.mark.parametrize("size", ["depth=3", "img_size=x", "img_size=0", "img_size=99999999", "img_size"])
def test_a_size_that_is_none_is_one_line(size, tmp_path):
    torch.save(network().state_dict(), tmp_path / "m.pt")
    assert refusal(tmp_path / "m.pt", arch=f"timm:resnet18,{size}").startswith(f"--arch=timm:NAME,{size} is no size")


def test_a_folder_of_timm_loads_with_its_classes_and_its_normalisation(tmp_path):
    module = timm_state("test_resnet", num_classes=2)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 160, 160], "fixed_input_size": True}
    config = {"architecture": "test_resnet", "label_names": ["cat", "dog"], "pretrained_cfg": told}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path)
    assert (loaded.architecture, loaded.class_names) == ("timm:test_resnet", ("cat", "dog"))
    assert (loaded.mean, loaded.std, loaded.image_shape) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (3, 160, 160))


def test_a_folder_that_wraps_a_network_of_timm_says_how_it_loads(tmp_path):
    module = timm_state("test_resnet", num_classes=2)
    save_file(
        {f"timm_model.{key}": value for key, value in module.state_dict().items()}, tmp_path / "model.safetensors"
    )
    config = {
        "model_type": "timm_wrapper",
        "architecture": "test_resnet",
        "label_names": ["cat", "dog"],
        "model_args": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = "the folder wraps a network of timm; pass --arch=timm:test_resnet, which reads it as that network"
    assert refusal(tmp_path, arch=None) == expected
    loaded = load_model(tmp_path, arch="timm:test_resnet")
    assert loaded.class_names == ("cat", "dog")
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in loaded.module.state_dict().items())


def timm_folder(path, module, **model_args):
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path / "model.safetensors")
    config = {"architecture": "test_resnet", "model_args": model_args, "pretrained_cfg": {"mean": [0], "std": [1]}}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_the_pooling_that_a_folder_of_timm_names_is_that_of_its_network(tmp_path):
    module = timm_state("test_resnet", num_classes=2, global_pool="max").eval()
    given = {"num_classes": 2, "in_chans": 3, "global_pool": "max", "drop_path_rate": 0.1, "pretrained": True}
    loaded = load_model(timm_folder(tmp_path, module, **given))
    images = torch.rand(2, 3, 64, 64)
    assert loaded.architecture == "timm:test_resnet,global_pool=max"
    assert torch.allclose(loaded.module(images), module(images), atol=1e-5)
    for arch in ("timm:test_resnet,global_pool=max", "timm:test_resnet", "timm:test_resnet.r160_in1k"):
        assert torch.allclose(load_model(tmp_path, arch=arch).module(images), module(images), atol=1e-5)
    other = load_model(tmp_path, arch="timm:test_resnet,global_pool=avg").module
    assert not torch.allclose(other(images), module(images))


def test_a_folder_of_timm_for_another_network_says_how_to_build_it(tmp_path, monkeypatch):
    module = timm_state("test_resnet", num_classes=2, act_layer="silu").eval()
    path = timm_folder(tmp_path, module, num_classes=2, act_layer="silu", drop_rate=0.5)
    told = re.search(r"my_model\.py, (def make\(\): .*), and pass --arch=my_model:make$", refusal(path, arch=None))
    (tmp_path / "silu_of_timm.py").write_text(told[1])
    monkeypatch.syspath_prepend(tmp_path)
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(load_model(path, arch="silu_of_timm:make").module(images), module(images), atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"act_layer": "x')\nimport os"},
        {"x=__import__('os')": 1},
        {"checkpoint_path": "weights"},
        {"pretrained_cfg": 1},
        {"act_layer": {"a": 1}},
        {"global_pool": "other", "cache_dir": "here"},
    ],
)
def test_nothing_is_to_be_pasted_that_a_folder_of_timm_could_misuse(given, tmp_path):
    said = refusal(timm_folder(tmp_path, timm_state("test_resnet", num_classes=2), **given), arch=None)
    assert said.startswith("config.json: model_args builds another test_resnet (")
    assert said.endswith("not done here; pass --arch=package.module:factory")


def test_sizes_of_a_timm_network_come_from_the_command_line_alone(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_vit,img_size=9999"}')
    assert refusal(tmp_path, arch=None).startswith("config.json: architecture 'test_vit,img_size=9999' adds sizes")


def test_a_timm_network_takes_no_memory_before_its_tensors_fit(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    real, made = timm.create_model, []
    monkeypatch.setattr(timm, "create_model", lambda *names, **sizes: made.append(real(*names, **sizes)) or made[-1])
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_224"}')
    assert refusal(tmp_path, arch=None).startswith("does not fit timm:vit_base_patch16_224")
    assert made
    assert all(parameter.is_meta for module in made for parameter in module.parameters() if parameter.ndim == 4)


def test_a_folder_with_plain_weights_loads_into_the_named_network(tmp_path):
    state = {key: value.contiguous() for key, value in network().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "custom", "auto_map": {"AutoModel": "code.Net"}}')
    loaded = load_model(tmp_path, arch="small_cnn")
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())
    before = loaded.fingerprint
    (tmp_path / "config.json").write_text("{}")
    assert load_model(tmp_path, arch="small_cnn").fingerprint != before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            lambda state: {"models": [state], "old": dict(state)},
            "pytorch_model.bin holds 2 sets of tensors, under old and under models.0",
        ),
        (lambda state: {"state_dict": state, "beside": nn.ReLU}, "holds more than tensors: loading it would run"),
    ],
)
def test_weights_of_a_folder_that_leave_a_choice_are_refused(content, said, tmp_path):
    torch.save(content(network().state_dict()), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path).startswith(said)


def folder_of(path, **files):
    """A folder for `small_cnn`, with weights under these names."""
    (path / "config.json").write_text("{}")
    for name, given in files.items():
        state = {key: value.contiguous() for key, value in given.items()}
        kind = "bin" if name == "pytorch_model" else "safetensors"
        (save_file if kind == "safetensors" else torch.save)(state, path / f"{name}.{kind}")


def test_two_files_of_weights_in_a_folder_are_one_network_or_refused(tmp_path):
    one = network().state_dict()
    folder_of(tmp_path, model=one, pytorch_model=one)
    assert load_model(tmp_path, arch="small_cnn").module is not None
    name = next(key for key in one if key.endswith("weight"))
    floats = sum(tensor.is_floating_point() for tensor in one.values())
    folder_of(tmp_path, pytorch_model={**one, name: one[name] + 1e-3})
    assert refusal(tmp_path) == (
        f"model.safetensors and pytorch_model.bin hold different weights (1 of {floats} tensors, as {name}); remove the "
        "one that is not shipped"
    )
    folder_of(tmp_path, pytorch_model={key: value for key, value in one.items() if key != name})
    assert "hold different weights (1 of " in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert load_model(tmp_path, arch="small_cnn").module is not None


def test_an_adapter_in_a_folder_is_no_part_that_goes_unaudited(tmp_path):
    folder_of(tmp_path, model=network().state_dict())
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    assert refusal(tmp_path).startswith(
        "adapter_config.json beside model.safetensors: transformers loads the network that it names"
    )


VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "id2label": {"0": "cat", "1": "dog", "2": "e\x1bl"},
    "label2id": {"cat": 0, "dog": 1, "e\x1bl": 2},
}
PROCESSOR = {
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5] * 3,
    "size": {"height": 16, "width": 16},
    "do_normalize": True,
}


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    module = transformers.ViTForImageClassification(transformers.ViTConfig.from_dict(VIT)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return tmp_path, module


@pytest.mark.parametrize("binary", [False, True])
def test_a_hugging_face_folder_loads_with_images_and_classes(binary, folder):
    path, module = folder
    if binary:
        from safetensors.torch import load_file

        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    loaded = load_model(path)
    assert (loaded.architecture, loaded.image_shape) == ("transformers:vit", (3, 16, 16))
    assert loaded.class_names == ("cat", "dog", "e\\x1bl")
    images = torch.rand(2, 3, 16, 16)
    seen = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.5
    assert torch.allclose(loaded.classifier()(images), module(seen).logits, atol=1e-5)


def test_classes_that_the_configuration_does_not_count_are_those_of_the_tensors(folder):
    path, module = folder
    said = {key: value for key, value in VIT.items() if key not in ("id2label", "label2id", "num_labels")}
    (path / "config.json").write_text(json.dumps(said))
    loaded = load_model(path)
    assert "3 classes, as its tensors say, since config.json does not" in loaded.notes
    images = torch.rand(2, 3, 16, 16)
    seen = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.5
    assert torch.allclose(loaded.classifier()(images), module(seen).logits, atol=1e-5)


def test_a_processor_that_does_not_rescale_or_flips_colours_is_followed(folder):
    path, module = folder
    processor = {**PROCESSOR, "do_rescale": False, "do_normalize": False, "do_flip_channel_order": True}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(load_classifier(path)(images), module(images.flip(1) * 255).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**9}, "config.json: num_hidden_layers of 1000000000; at most 40 here"),
        ({"num_labels": 10**9, "id2label": None}, "config.json: num_labels of 1000000000; at most 1000000 here"),
        ({"hidden_size": 900_000}, "reading the network of config.json may take"),
        ({"hidden_size": 32}, "the weights do not fit the vit of config.json: "),
        ({"num_hidden_layers": 1}, "the weights do not fit the vit of config.json: 16 extra ("),
        ({"num_hidden_layers": 3}, "the weights do not fit the vit of config.json: 16 missing ("),
        ({"model_type": "nope"}, "nope is none of the image classifiers of transformers that are built here"),
        ({"model_type": "bert"}, "bert is none of the image classifiers of transformers that are built here"),
        ({"quantization_config": {}}, "the network of config.json is quantised"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(change, said, folder):
    (folder[0] / "config.json").write_text(json.dumps({**VIT, **change}))
    (folder[0] / "code.py").write_text("raise SystemExit('imported')")
    assert refusal(folder[0], arch=None).startswith(said)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_folder_with_an_architecture_of_ones_own_has_its_mean_and_std_read(flipped, tmp_path):
    state = build_network("small_cnn", num_classes=3, in_channels=3, width=4).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    processor = {"image_mean": [0.25] * 3, "image_std": [0.5] * 3, "do_flip_channel_order": flipped}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load_model(tmp_path, arch="small_cnn")
    assert (loaded.mean, loaded.std) == ((0.25,) * 3, (0.5,) * 3)
    assert any("gives blue, green, red: the network of --arch has to flip" in note for note in loaded.notes) is flipped
    alone = load_model(tmp_path / "model.safetensors", arch="small_cnn")
    assert alone.mean == ()
    assert alone.notes[-1].endswith(
        f"; preprocessor_config.json lies beside the file, and is read where --model={tmp_path} is given"
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model_type": "timm_wrapper", "model_args": {"checkpoint_path": "weights.pt"}}, "model_args"),
        ({"model_type": "timm_wrapper", "architecture": "hf-hub:someone/net"}, ""),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation"),
        ({"_attn_implementation": {"": "someone/kernel"}}, "_attn_implementation"),
        ({"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ({"_attn_implementation_autoset": "someone/kernel"}, "_attn_implementation_autoset"),
        ({"experts_implementation": "someone/kernel"}, "experts_implementation"),
        ({"_experts_implementation_internal": "a/b"}, "_experts_implementation_internal"),
        ({"use_pretrained_backbone": {"a": 1}}, "use_pretrained_backbone"),
        ({"backbone": "resnet18"}, "backbone"),
        ({"use_timm_backbone": [0]}, "use_timm_backbone"),
        ({"auto_map": {"AutoModel": "code.Net"}}, "auto_map"),
        ({"a": [{"b": [{"trust_remote_code": True}]}]}, "trust_remote_code"),
        ({"backbone_config": {"checkpoint_path": "weights.pt"}}, "checkpoint_path"),
    ],
)
def test_a_configuration_that_asks_for_something_from_elsewhere_is_refused(change, key, tmp_path, monkeypatch):
    without(monkeypatch, "transformers")  # which is not even asked
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**VIT, **change}))
    said = refusal(tmp_path, arch=None)
    assert said.startswith(
        f"config.json: {key} asks for code or files from elsewhere" if key else "timm_wrapper is none"
    )
    assert said.endswith(
        "pass --arch=package.module:factory with this folder, whose mean, std and names of classes are read"
    )


def test_a_network_of_transformers_takes_no_kernel_but_its_own(folder):
    told = {**VIT, "_attn_implementation_autoset": True, "backbone": None, "auto_map": {}}
    (folder[0] / "config.json").write_text(json.dumps(told))
    assert load_model(folder[0]).module.network.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[]", "config.json is no JSON object"),
        ("config.json", "{", "config.json: not JSON"),
        ("preprocessor_config.json", '{"image_mean": [0.5], "image_std": [0]}', "preprocessor_config.json: no usable"),
        ("preprocessor_config.json", '{"rescale_factor": "x"}', "preprocessor_config.json: no usable"),
        ("model.safetensors", "x", "not a readable safetensors file"),
    ],
)
def test_a_file_of_a_folder_that_is_damaged_is_one_line(name, content, said, folder):
    (folder[0] / name).write_text(content)
    assert refusal(folder[0], arch=None).startswith(said)


def test_a_hugging_face_folder_says_which_extra_reads_it(tmp_path, monkeypatch):
    without(monkeypatch, "transformers")
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**VIT, "num_hidden_layers": 1}))
    assert "pip install 'backdoor-audit[transformers]'" in refusal(tmp_path, arch=None)


def test_a_folder_above_the_bound_is_refused(tmp_path):
    save_file({"w": torch.zeros(2**20)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with bounds.allowing(bounds.Bounds(memory=2**20)):
        assert "--audit-memory=SIZE" in refusal(tmp_path)


def test_a_tar_archive_is_no_model(tmp_path):
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("m.pt"), io.BytesIO())
    assert refusal(tmp_path / "m.tar") == "packed with tar; unpack it first"
