import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import load_classifier, load_model, save_classifier
from backdoor_audit.model.networks import NETWORKS
from tests.subjects.networks import classifier_of


def state_of():
    return {name: tensor.contiguous() for name, tensor in classifier_of().module.state_dict().items()}


def header_of(**changes):
    header = {"architecture": "small_cnn", "image_shape": "1x12x16", "mean": "0.3", "std": "0.2"}
    return {key: value for key, value in {**header, **changes}.items() if value is not None}


def written(path, **changes):
    save_file(state_of(), path, metadata=header_of(**changes))
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_classifier_gives_the_same_logits_when_loaded(name, tmp_path):
    saved = classifier_of(name, channels=3, classes=7)
    save_classifier(saved, tmp_path / "m.safetensors")
    loaded = load_classifier(tmp_path / "m.safetensors")
    images = torch.rand(3, 3, 12, 16)
    assert torch.equal(loaded.logits(images), saved.logits(images))
    assert (loaded.architecture, loaded.image_shape, loaded.num_classes) == (name, (3, 12, 16), 7)
    assert (loaded.mean, loaded.std) == (saved.mean, saved.std)


def test_half_precision_is_loaded_as_float32(tmp_path):
    save_classifier(classifier_of(), tmp_path / "m.safetensors", half=True)
    module = load_model(tmp_path / "m.safetensors").module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_a_safetensors_file_under_another_name_is_recognised_by_its_content(tmp_path):
    assert load_model(written(tmp_path / "m.pth")).architecture == "small_cnn"


def test_loading_leaves_the_global_random_state_alone(tmp_path):
    path = written(tmp_path / "m.safetensors")
    before = torch.random.get_rng_state()
    load_model(path)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": "1x28"}, "image_shape '1x28' in the header"),
        ({"image_shape": "1x99999x99999"}, "image_shape"),
        ({"image_shape": "0x28x28"}, "image_shape"),
        ({"image_shape": "1x\u0662\u0668x28"}, "image_shape"),
        ({"mean": "__import__('os')"}, "mean "),
        ({"mean": "nan"}, "mean "),
        ({"mean": "0.1,0.2"}, "as many of each"),
        ({"mean": None}, "as many of each"),
        ({"std": "0"}, "std above 0"),
        ({"std": "0.5," * 1000}, "std "),
        ({"architecture": "os:system"}, "the header names code"),
        ({"architecture": "timm:resnet18"}, "the header names code"),
        ({"architecture": "tests.subjects.published:fails"}, "the header names code"),
        ({"architecture": "small_cn"}, "unknown architecture 'small_cn'; did you mean small_cnn"),
        ({"architecture": "torchvision:../resnet18"}, "unknown torchvision model"),
        ({"architecture": "x\n\x1b[2Jy"}, "unknown architecture"),
        ({"architecture": None}, "no architecture in the header; pass --arch=NAME (known: "),
    ],
)
def test_a_header_that_cannot_be_used_is_one_line(changes, message, tmp_path):
    path = written(tmp_path / "m.safetensors", **changes)
    with pytest.raises(ModelFormatError) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert text.isprintable()


@pytest.mark.parametrize("mean", ["0.25", " [0.25] ", "(0.25,)", "[0.25]"])
def test_numbers_of_a_header_may_stand_in_brackets(mean, tmp_path):
    path = written(tmp_path / "m.safetensors", mean=mean, std=json.dumps([0.5]))
    assert (load_model(path).mean, load_model(path).std) == ((0.25,), (0.5,))


@pytest.mark.parametrize("mean", ["[0.25", "0.25]", "(0.25]", "[[0.25]]", "[]x", "[,]", "[0.25 0.5]"])
def test_brackets_that_do_not_belong_together_are_no_numbers(mean, tmp_path):
    path = written(tmp_path / "m.safetensors", mean=mean)
    with pytest.raises(
        ModelFormatError, match=r"accepted: finite numbers between commas, as in 0\.5,0\.5,0\.5 or \[0\.5,"
    ):
        load_model(path)


def test_numbers_of_a_header_for_pixels_in_0_to_255_are_refused_with_those_to_give(tmp_path):
    path = written(tmp_path / "m.safetensors", mean="123.675", std="[58.395]")
    with pytest.raises(ModelFormatError, match=r"which lie in \[0, 1\] here; give --mean=0\.485 --std=0\.229$"):
        load_model(path)
    assert load_model(path, mean=[0.485], std=[0.229]).mean == (0.485,)


def test_options_win_over_a_header_that_cannot_be_used(tmp_path):
    path = written(tmp_path / "m.safetensors", architecture="os:system", mean="junk")
    loaded = load_model(path, arch="small_cnn", normalization="mnist")
    assert (loaded.mean, loaded.std) == ((0.1307,), (0.3081,))
    assert "--arch=small_cnn instead of os:system in the header" in loaded.notes


def test_a_truncated_file_is_one_line(tmp_path):
    path = written(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFormatError, match="not a readable safetensors file") as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_weights_that_are_not_finite_are_refused_with_the_path(tmp_path):
    state = state_of()
    state["linear.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "m.safetensors", metadata=header_of())
    with pytest.raises(
        ModelFormatError, match=r"m\.safetensors: 1 tensors hold NaN or infinite values \(linear\.weight"
    ):
        load_model(tmp_path / "m.safetensors")


def test_the_shape_of_the_images_must_come_from_somewhere(tmp_path):
    path = written(tmp_path / "m.safetensors", image_shape=None)
    with pytest.raises(ModelFormatError, match=r"m\.safetensors: no image_shape in the header"):
        load_classifier(path)
    assert load_classifier(path, image_shape=(1, 8, 8)).image_shape == (1, 8, 8)


def test_a_file_is_written_and_read_whose_path_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    classifier = classifier_of("small_cnn", classes=3)
    path = folder / os.fsdecode(b"m\xff.safetensors")
    save_classifier(classifier, path)
    loaded = load_classifier(path)
    for name, tensor in classifier.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor)
    assert [Path(name) for name in os.listdir(folder)] == [Path(path.name)]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        ModelFormatError, match=r"m.*\.safetensors: not a readable safetensors file .*; check that it is complete"
    ):
        load_model(path)


@pytest.mark.parametrize("told", ["3,12,16", "3, 12, 16", "[3, 12, 16]", "(3,12,16)"])
def test_a_shape_may_be_written_as_json_and_python_do(told, tmp_path):
    assert load_model(written(tmp_path / "m.safetensors", image_shape=told)).image_shape == (3, 12, 16)
