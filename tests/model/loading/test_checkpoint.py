import contextlib
import hashlib
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from backdoor_audit.data import load_clean_set
from backdoor_audit.errors import ModelFormatError, OptionError
from backdoor_audit.model.loading import load_classifier, load_model
from backdoor_audit.model.networks import build_network

PUBLISHED = [  # file, factory, shape, options, accuracy on the 10,000 test images, test set
    ("badnet-MNIST.pth", "badnet_mnist", (1, 28, 28), {"normalization": "half"}, 0.9808, "mnist_test.npz"),
    ("mnist2.pt", "four_linear_layers", (1, 28, 28), {}, 0.9227, "mnist_test.npz"),
    ("mnist.pt", "four_linear_layers", (1, 28, 28), {}, 0.9379, "mnist_test.npz"),
    ("backdoor_model.pth", "five_convolutions", (3, 32, 32), {"normalization": "cifar10"}, 0.7871, "cifar10_test.npz"),
    ("resnet20-12fca82f.th", "resnet20", (3, 32, 32), {"normalization": "imagenet"}, 0.9173, "cifar10_test.npz"),
]


def state_of(width=4, classes=7):
    return build_network("small_cnn", num_classes=classes, in_channels=1, width=width).state_dict()


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def message_of(path, **options):
    with pytest.raises(ModelFormatError) as caught:
        load_model(path, **{"arch": "small_cnn", **options})
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    return text.removeprefix(f"{path}: ")


class WritesAFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (Path(self.path), "executed"))


class CallsTheSystem:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"echo executed > {self.path}",))


def save_plain(content, path):
    path.write_bytes(pickle.dumps(content))


def save_plain_protocol_2(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_plain, save_plain_protocol_2, torch.save, save_legacy])
@pytest.mark.parametrize("evil", [WritesAFile, CallsTheSystem])
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_a_file_that_runs_code_is_refused_and_does_not_run_it(save, evil, name, tmp_path):
    mark = tmp_path / "executed"
    save({"state_dict": state_of(), "extra": evil(mark)}, tmp_path / name)
    plain = save in (save_plain, save_plain_protocol_2)
    assert ("that torch.load does not read" if plain else "--audit-allow-pickle") in message_of(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("save", [save_plain, save_plain_protocol_2])
def test_a_plain_pickle_is_not_advised_to_be_executed(save, tmp_path):
    save(state_of(), tmp_path / "m.pt")
    assert message_of(tmp_path / "m.pt").startswith(
        "a pickle that torch.save has not written (pickle.dump, joblib.dump)"
    )
    assert "torch.save must have written it" in message_of(tmp_path / "m.pt", allow_pickle=True)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_another_protocol_is_told(zipped, tmp_path):
    torch.save(state_of(), tmp_path / "m.pt", pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    assert "(pickle_protocol=4, torch.save writes 2 unless asked); re-save it" in message_of(tmp_path / "m.pt")
    load_model(tmp_path / "m.pt", arch="small_cnn", allow_pickle=True)


@pytest.mark.parametrize("save", [save_plain, save_plain_protocol_2, torch.save, save_legacy])
@pytest.mark.parametrize("evil", [WritesAFile, CallsTheSystem])
def test_the_files_above_would_have_run_it_with_leave_to_unpickle(save, evil, tmp_path):
    save({"state_dict": state_of(), "extra": evil(tmp_path / "executed")}, tmp_path / "m.pt")
    with contextlib.suppress(ModelFormatError):  # a plain pickle runs first and is refused after that
        load_model(tmp_path / "m.pt", arch="small_cnn", allow_pickle=True)
    assert (tmp_path / "executed").read_text().strip() == "executed"


def test_the_refusal_names_what_the_file_would_have_run(tmp_path):
    torch.save({"state_dict": state_of(), "extra": CallsTheSystem(tmp_path / "mark")}, tmp_path / "m.pt")
    assert message_of(tmp_path / "m.pt").startswith(f"holds more than tensors: loading it would run {os.name}.system;")


@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best_prec1": 91.78},
        lambda state: {"netC": state, "identity_grid": torch.zeros(2), "epoch_current": 3},
        lambda state: {"model": {"model_state_dict": state}, "epoch": 1},
        lambda state: {"clsmodel": state, "atkmodel": {"conv.weight": torch.zeros(1)}},
        lambda state: {"net": prefixed("module.", state)},
        lambda state: prefixed("model.", state),
        lambda state: prefixed("_orig_mod.module.", state),
        lambda state: prefixed("module._orig_mod.model.", state),
    ],
)
@pytest.mark.parametrize("name", ["m.pt", "m.th", "m.pth.tar", "m.ckpt", "m.safetensors"])
def test_wrappers_and_prefixes_come_off(save, wrap, name, tmp_path):
    state = state_of()
    save(wrap(state), tmp_path / name)
    loaded = load_model(tmp_path / name, arch="small_cnn").module
    assert not loaded.training
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_what_came_off_is_noted(tmp_path):
    torch.save({"state_dict": prefixed("module.", state_of())}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch="small_cnn")
    assert loaded.notes == (
        "unwrapped state_dict",
        "stripped prefix module.",
        "normalisation: none given, the network sees pixels in [0, 1]",
    )
    assert loaded.fingerprint == hashlib.sha256((tmp_path / "m.pt").read_bytes()).hexdigest()


def test_a_prefix_that_the_network_itself_has_stays(tmp_path):
    state = prefixed("model.", nn.Linear(4, 2).state_dict())
    torch.save(state, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch="tests.model.loading.test_checkpoint:inner_model")
    assert torch.equal(loaded.module.model.weight, state["model.weight"])
    assert not any("prefix" in note for note in loaded.notes)


def inner_model():
    module = nn.Module()
    module.model = nn.Linear(4, 2)
    return module


def test_batch_norm_counters_may_be_absent_or_left_over(tmp_path):
    state = {key: value for key, value in state_of().items() if "num_batches" not in key}
    torch.save({**state, "gone.num_batches_tracked": torch.tensor(3)}, tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt", arch="small_cnn").architecture == "small_cnn"


def itself():
    content = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({}, "holds an empty dict"),
        ({"epoch": 3, "lr": 0.1}, "no tensors by name: found epoch (int), lr (float)"),
        ({3: torch.zeros(1)}, "no tensors by name: found 3 (Tensor)"),
        (itself(), "no tensors by name: found model (dict)"),
        ({"x\n\x1b[2J": 3}, "no tensors by name: found x"),
        ({"a": torch.zeros(2).to_sparse()}, "a is sparse or nested"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a is complex"),
        ({"a": torch.zeros(2, device="meta")}, "a is without data"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "a is a (1000000, 1000000) view of less data"),
        ({"a": torch.zeros(2)}, "does not fit small_cnn: "),
    ],
)
def test_content_that_is_no_state_dict_is_one_line(content, message, tmp_path):
    torch.save(content, tmp_path / "m.pt")
    assert message_of(tmp_path / "m.pt").startswith(message)


def test_quantised_tensors_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)}, tmp_path / "m.pt")
    assert message_of(tmp_path / "m.pt").startswith("a is quantised")


@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_truncated_file_is_one_line(save, kept, tmp_path):
    path = tmp_path / "m.pt"
    save(state_of(), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    message_of(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "a text instead of the model (begins with 'hello')"),
        (b"\x80", ""),
        (b"PK\x03\x04", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_other_files_are_one_line(content, message, tmp_path):
    (tmp_path / "m.pt").write_bytes(content)
    assert message_of(tmp_path / "m.pt").startswith(message)


def test_a_folder_and_a_missing_file_are_one_line(tmp_path):
    assert message_of(tmp_path).startswith("not a file")
    assert message_of(tmp_path / "gone.pt").startswith("no such file")


def test_torchscript_is_not_run_even_with_leave_to_unpickle(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "m.pt"))
    for allow_pickle in (False, True):
        refused = message_of(tmp_path / "m.pt", arch=None, allow_pickle=allow_pickle)
        assert refused.startswith("a TorchScript archive, which is a program: it is not run here")


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: {"model": module, "epoch": 1}])
def test_a_whole_module_is_its_own_architecture_only_with_leave_to_unpickle(wrap, tmp_path):
    path = tmp_path / "m.pt"
    torch.save(wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).half()), path)
    assert message_of(path).startswith("does not fit small_cnn: ")
    classifier = load_classifier(path, allow_pickle=True, image_shape=(1, 2, 2))
    assert (classifier.architecture, classifier.num_classes) == ("Sequential", 2)


def test_a_class_that_cannot_be_imported_is_one_line(tmp_path):
    (tmp_path / "m.pt").write_bytes(
        pickle.dumps(OptionError("x"), 2).replace(b"backdoor_audit.errors", b"gone_module_x")
    )
    assert "gone_module_x" in message_of(tmp_path / "m.pt", allow_pickle=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "--std is missing"),
        ({"std": (0.5,)}, "--mean is missing"),
        ({"mean": (0.5,), "std": (0.5,), "normalization": "half"}, "contradict"),
        ({"normalization": "cifar"}, "--normalization=cifar is unknown"),
    ],
)
def test_normalisation_options_that_contradict_each_other_are_refused(options, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        load_model(tmp_path / "m.pt", **options)


def folder_in(variable):
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set")
    return Path(folder)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published[0])
def test_published_checkpoints_load_and_classify_as_published(published):
    name, factory, shape, options, accuracy, data = published
    path = folder_in("BACKDOOR_AUDIT_CHECKPOINTS") / name
    loaded = load_classifier(path, arch=f"tests.subjects.published:{factory}", image_shape=shape, **options)
    assert loaded.num_classes == 10
    clean_set = load_clean_set(folder_in("BACKDOOR_AUDIT_DATA") / data, most=500)
    measured = (loaded.predict(clean_set.images) == clean_set.labels).float().mean().item()
    assert measured == pytest.approx(accuracy, abs=3 * (accuracy * (1 - accuracy) / 500) ** 0.5)
