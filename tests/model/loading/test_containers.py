"""What training scripts write around weights, and which of several sets is taken."""

import argparse
import collections
import enum
import pathlib
import re
import sys
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from backdoor_audit import bounds
from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import load_model
from backdoor_audit.model.loading.architecture import build_architecture
from backdoor_audit.model.networks import NETWORKS, SmallCNN, build_network

NONE = "normalisation: none given, the network sees pixels in [0, 1]"


def network():
    return build_network("small_cnn", num_classes=5, in_channels=1, width=4)


STATE = network().state_dict()
OTHER = {key: value + 1 for key, value in STATE.items()}


def prefixed(prefix, state=STATE):
    return {f"{prefix}{key}": value for key, value in state.items()}


def loaded(content, path, **options):
    torch.save(content, path)
    return load_model(path, **{"arch": "small_cnn", **options})


def holds(model, state):
    return all(torch.equal(value, state[key]) for key, value in model.module.state_dict().items())


def averaged():
    return torch.optim.swa_utils.AveragedModel(network()).state_dict()


LIGHTNING = {"epoch": 3, "pytorch-lightning_version": "2.5.0", "loops": {}, "callbacks": {}, "optimizer_states": []}


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        ({"params": STATE}, ("unwrapped params",)),
        ({"network": STATE}, ("unwrapped network",)),
        ({"module": STATE, "ds_version": "0.14", "buffer_names": []}, ("unwrapped module",)),
        ({"epoch": 1, "model": {"state_dict": STATE}}, ("unwrapped model", "unwrapped state_dict")),
        ({**STATE, "epoch": 7}, ("left out, no parameters of the network: epoch",)),
        ({**LIGHTNING, "state_dict": prefixed("net.")}, ("unwrapped state_dict", "stripped prefix net.")),
        (
            {**prefixed("backbone."), "criterion.weight": torch.zeros(5)},
            ("stripped prefix backbone.", "left out, no parameters of the network: criterion.weight"),
        ),
        ({**STATE, "loss_fn.weight": torch.zeros(5)}, ("left out, no parameters of the network: loss_fn.weight",)),
        (
            {
                key.replace("linear.", "head.linear.") if "linear" in key else f"backbone.{key}": STATE[key]
                for key in STATE
            },
            (
                "head.linear.bias taken for linear.bias",
                "head.linear.weight taken for linear.weight",
                "stripped prefix backbone.",
            ),
        ),
        (
            {key.replace("linear.", "classifier.") if "linear" in key else f"net.{key}": STATE[key] for key in STATE},
            ("classifier taken for linear", "stripped prefix net."),
        ),
        (
            {key.replace("features.0.", "features.0._orig_mod."): value for key, value in STATE.items()},
            ("stripped what wrapped 6 names (_orig_mod. or the like)",),
        ),
        (
            {"meta": {}, "message_hub": {}, "state_dict": STATE, "ema_state_dict": prefixed("module.", OTHER)},
            (
                "unwrapped state_dict",
                "two sets of weights: the averaged ones under state_dict audited, those under ema_state_dict, module.* are NOT "
                "audited; ship the same ones",
            ),
        ),
        (
            {**LIGHTNING, "state_dict": prefixed("net."), "current_model_state": prefixed("net.", OTHER)},
            (
                "unwrapped state_dict",
                "stripped prefix net.",
                "two sets of weights: the averaged ones under state_dict, net.* audited, those under current_model_state, net.* "
                "are NOT audited; ship the same ones",
            ),
        ),
        (
            {**LIGHTNING, "state_dict": {**prefixed("net."), "class_weights": torch.ones(5)}},
            (
                "unwrapped state_dict",
                "stripped prefix net.",
                "left out, no parameters of the network: class_weights",
            ),
        ),
    ],
)
def test_the_mapping_that_fits_is_found_and_what_was_done_is_told(content, notes, tmp_path):
    model = loaded(content, tmp_path / "m.pt")
    assert holds(model, STATE)
    assert sorted(model.notes) == sorted((*notes, NONE))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"state_dict": OTHER, "state_dict_ema": STATE}, "state_dict_ema"),
        ({"params": OTHER, "params_ema": STATE}, "params_ema"),
        ({"model": OTHER, "model_ema": prefixed("module.")}, "model_ema, module.*"),
        ({**prefixed("model.", OTHER), **prefixed("ema_model.")}, "the top level, ema_model.*"),
        ({**OTHER, **prefixed("ema.")}, "the top level, ema.*"),
    ],
)
def test_averaged_weights_win_over_raw_ones_and_that_is_told(content, where, tmp_path):
    model = loaded(content, tmp_path / "m.pt")
    assert holds(model, STATE)
    assert model.notes[0].startswith(f"two sets of weights: the averaged ones under {where} audited, those under ")
    assert model.notes[0].endswith(" are NOT audited; ship the same ones")


def test_an_average_beside_its_network_is_known_by_its_counter(tmp_path):
    content = {**prefixed("net.", OTHER), **prefixed("mean."), "mean.n_averaged": torch.tensor(3)}
    model = loaded(content, tmp_path / "m.pt")
    assert holds(model, STATE)
    assert model.notes[0] == (
        "two sets of weights: the averaged ones under the top level, mean.* audited, those under the top level, net.* are NOT "
        "audited; ship the same ones"
    )


@pytest.mark.parametrize(
    ("initted", "step"),
    [(torch.tensor(True), torch.tensor(5)), (torch.tensor([1.0]), torch.tensor([5]))],  # of newer and older versions
)
def test_weights_of_ema_pytorch_load_beside_what_they_are_averages_of(initted, step, tmp_path):
    content = {**prefixed("online_model.", OTHER), **prefixed("ema_model."), "initted": initted, "step": step}
    model = loaded(content, tmp_path / "m.pt")
    assert holds(model, STATE)
    assert model.notes[0] == (
        "two sets of weights: the averaged ones under the top level, ema_model.* audited, those under the top level, "
        "online_model.* are NOT audited; ship the same ones"
    )


def test_counters_that_were_averaged_with_the_weights_count_for_nothing(tmp_path):
    mean = {key: value.float() + 0.5 if key.endswith("num_batches_tracked") else value for key, value in STATE.items()}
    model = loaded(mean, tmp_path / "m.pt")
    assert all(
        torch.equal(value, STATE[key]) for key, value in model.module.state_dict().items() if "batches" not in key
    )
    model = loaded({"model": OTHER, "ema": mean}, tmp_path / "m.pt")
    assert model.notes[0].startswith(
        "two sets of weights: the averaged ones under ema audited, those under model are NOT"
    )
    with pytest.raises(ModelFormatError, match="2 sets of weights fit small_cnn"):
        loaded({"last": OTHER, "best": mean}, tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("beside", "loads"), [(torch.tensor(True), True), (torch.tensor(3), True), (torch.tensor(0.5), False)]
)
def test_one_whole_number_beside_a_network_is_no_layer(beside, loads, tmp_path):
    content = {**prefixed("net."), "switched": beside}
    if loads:
        assert "left out, no parameters of the network: switched" in loaded(content, tmp_path / "m.pt").notes
        return
    with pytest.raises(ModelFormatError, match=r"may be layers that it does not have \(switched\)"):
        loaded(content, tmp_path / "m.pt")


@pytest.mark.parametrize("options", [{}, {"allow_pickle": True}])
@pytest.mark.parametrize("wrap", [lambda arrays: arrays, lambda arrays: {"epoch": 1, "state_dict": arrays}])
def test_arrays_in_place_of_tensors_say_how_to_save_them(wrap, options, tmp_path):
    arrays = {key: value.numpy() for key, value in STATE.items()}
    with pytest.raises(ModelFormatError) as caught:
        loaded(wrap(arrays), tmp_path / "m.pt", **options)
    advice = "torch.save({key: torch.as_tensor(array) for key, array in arrays.items()}, 'm.pt')"
    assert "numpy arrays by name in place of tensors (features.0.0.weight, features.0.1.weight, " in str(caught.value)
    assert str(caught.value).endswith(advice)
    assert holds(loaded({key: torch.as_tensor(array) for key, array in arrays.items()}, tmp_path / "m.pt"), STATE)


def test_averages_of_pytorch_load_and_their_counter_is_left_out(tmp_path):
    state = averaged()
    model = loaded({"model": state}, tmp_path / "m.pt")
    assert holds(model, {key.removeprefix("module."): value for key, value in state.items()})
    assert "left out, no parameters of the network: n_averaged" in model.notes


@pytest.mark.parametrize(
    "content",
    [
        {"model": STATE, "teacher": OTHER},
        {**prefixed("student."), **prefixed("teacher.", OTHER)},
        {"ema_a": STATE, "ema_b": OTHER},
        {"models": [STATE], "old": OTHER},
        {"models": ({"a": [STATE]}, 1), "old": OTHER},
    ],
)
def test_two_sets_that_fit_are_refused_where_no_rule_decides(content, tmp_path):
    with pytest.raises(
        ModelFormatError, match=r"2 sets of weights fit small_cnn, under .* and under .*save the one to audit alone"
    ):
        loaded(content, tmp_path / "m.pt")


def test_the_one_set_may_lie_in_a_list(tmp_path):
    model = loaded(
        {"models": [3, STATE], "optimizers": [{"state": {0: {"exp_avg": torch.zeros(2)}}}]}, tmp_path / "m.pt"
    )
    assert holds(model, STATE)
    assert model.notes[:2] == ("unwrapped models", "unwrapped 1")


def test_the_same_tensors_in_two_places_are_one_set(tmp_path):
    assert holds(loaded({"model": STATE, "best": STATE}, tmp_path / "m.pt"), STATE)


def test_of_two_sets_of_names_the_one_with_fitting_shapes_is_taken(tmp_path):
    wider = build_network("preact_resnet18", num_classes=3, in_channels=1, width=4).state_dict()
    narrow = {key: value.flatten()[:0] for key, value in wider.items()}
    model = loaded({"teacher": narrow, "student": wider}, tmp_path / "m.pt", arch="preact_resnet18")
    assert holds(model, wider)


def test_a_layer_that_the_network_does_not_have_is_refused_not_left_out(tmp_path):
    with pytest.raises(ModelFormatError, match=r"1 extra \(gate\.weight\)"):
        loaded({**STATE, "gate.weight": torch.zeros(1)}, tmp_path / "m.pt")


MORE = {"gate.weight": torch.ones(2, 2)}
"""A layer that the network does not have: whoever loads these weights by other code may use it."""


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {**OTHER, **MORE}, "best": STATE},
        {"state_dict": {**prefixed("net.", OTHER), **MORE}, "best": STATE},
        {"best": STATE, "state_dict": {**prefixed("net.", OTHER), **prefixed("net.", MORE)}},
    ],
)
def test_a_set_with_one_layer_more_does_not_leave_the_audit_to_another_set(content, tmp_path):
    with pytest.raises(ModelFormatError, match=r"2 sets of weights fit small_cnn, under .*save the one to audit alone"):
        loaded(content, tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"state_dict": STATE, "state_dict_ema": {**OTHER, **MORE}}, "state_dict_ema"),
        ({"message_hub": {}, "state_dict": {**OTHER, **MORE}, "ema_state_dict": STATE}, "state_dict"),
    ],
)
def test_averages_with_one_layer_more_do_not_leave_the_audit_to_what_was_averaged(content, where, tmp_path):
    with pytest.raises(
        ModelFormatError, match=rf"the weights under {where}: .*gate\.weight.*save the one to audit alone"
    ):
        loaded(content, tmp_path / "m.pt")


def test_a_set_of_another_shape_beside_the_audited_one_is_told(tmp_path):
    wider = build_network("preact_resnet18", num_classes=3, in_channels=1, width=4).state_dict()
    narrow = {key: value.flatten()[:0] for key, value in wider.items()}
    model = loaded({"teacher": narrow, "student": wider}, tmp_path / "m.pt", arch="preact_resnet18")
    assert model.notes[0] == (
        "two sets of weights: those under student audited, those under teacher are NOT audited; ship the same ones"
    )


def without(state, *ends):
    return {key: value for key, value in state.items() if not key.endswith(ends)}


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"state_dict": without(OTHER, "linear.bias"), "best": STATE}, "state_dict"),
        ({"best": STATE, "state_dict": prefixed("net.", without(OTHER, "linear.bias"))}, r"state_dict, net\.\*"),
        ({"state_dict": without(OTHER, "0.1.running_mean", "0.1.running_var"), "best": STATE}, "state_dict"),
        (
            {
                "state_dict": without({**STATE, "features.0.0.weight": OTHER["features.0.0.weight"]}, "bias"),
                "best": STATE,
            },
            "",
        ),
    ],
)
def test_a_set_that_lacks_a_few_tensors_does_not_leave_the_audit_to_another_set(content, where, tmp_path):
    with pytest.raises(
        ModelFormatError, match=rf"under {where}.* but for \d+ that they lack \(.*save the one to audit alone"
    ):
        loaded(content, tmp_path / "m.pt")


@pytest.mark.parametrize("beside", [{}, {"loss_fn.weight": torch.ones(3)}])
def test_a_module_kept_beside_its_own_state_is_the_same_set(beside, tmp_path):
    module = network()
    content = {
        "state_dict": {**prefixed("model.", module.state_dict()), **beside},
        "hyper_parameters": {"model": module},
    }
    assert holds(loaded(content, tmp_path / "m.ckpt"), module.state_dict())


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (prefixed("1."), "0.*"),
        (prefixed("module.2."), "module.1.*"),
        (nn.Sequential(nn.Identity(), network()), "0.*"),
        (prefixed("0."), ""),
        ({**prefixed("1."), "0.num_batches_tracked": torch.tensor(1)}, ""),
    ],
)
def test_what_stands_before_the_network_and_has_no_tensors_is_told(content, place, tmp_path):
    told = [note for note in loaded(content, tmp_path / "m.pt").notes if "before it has no tensors" in note]
    assert told == (
        [
            f"what stands at {place} before it has no tensors and is left out: a normalisation there goes with --mean, --std"
        ]
        if place
        else []
    )


@pytest.mark.parametrize(
    "content",
    [
        {"model": STATE, "model_ema": without(OTHER, "running_mean", "running_var", "num_batches_tracked")},
        {
            "ema": {"decay": 0.99, "shadow": prefixed("module.", without(OTHER, "running_mean", "running_var"))},
            "net": STATE,
        },
    ],
)
def test_averages_without_running_statistics_are_told_beside_the_audited_weights(content, tmp_path):
    model = loaded(content, tmp_path / "m.pt")
    assert holds(model, STATE)
    assert model.notes[0].startswith("two sets of weights: those under ")
    assert "ema" in model.notes[0]
    assert model.notes[0].endswith(" are NOT audited; ship the same ones")


def test_half_a_set_of_weights_is_told_and_other_tensors_are_not(tmp_path):
    half = dict(
        list(build_network("preact_resnet18", num_classes=3, in_channels=1, width=4).state_dict().items())[:-30]
    )
    whole = build_network("preact_resnet18", num_classes=3, in_channels=1, width=4).state_dict()
    model = loaded(
        {"net": whole, "first": half, "steps": {"conv1.weight": torch.ones(3)}},
        tmp_path / "m.pt",
        arch="preact_resnet18",
    )
    assert (
        model.notes[0]
        == "two sets of weights: those under net audited, those under first are NOT audited; ship the same ones"
    )


BRANCH = {f"trojan.{key}": torch.zeros(2, 2) for key in ("conv.weight", "out.weight")}


@pytest.mark.parametrize(
    ("beside", "strange"),
    [
        (
            BRANCH,
            "2 tensors outside of net.* may be layers that it does not have (trojan.conv.weight, trojan.out.weight)",
        ),
        ({"gate.scale": torch.zeros(5)}, "1 tensors outside of net.* may be layers"),
        (
            {f"trojan.{key}": value.new_zeros(1) for key, value in STATE.items()},
            " may be layers",
        ),  # names as the network's
        ({f"ema.{key}": value.new_zeros(1) for key, value in STATE.items()}, " may be layers"),
    ],
)
def test_a_branch_beside_the_network_is_refused_not_left_out(beside, strange, tmp_path):
    with pytest.raises(ModelFormatError) as caught:
        loaded({**prefixed("net."), **beside}, tmp_path / "m.pt")
    assert strange in str(caught.value)
    with pytest.raises(ModelFormatError, match="may be layers"):
        build_architecture("small_cnn", {**prefixed("net."), **beside})


@pytest.mark.parametrize(
    "names", [("mean", "std"), ("normalize.mu", "normalize.sigma"), ("0.image_mean", "0.image_std")]
)
def test_a_normalisation_beside_the_network_is_told_as_one(names, tmp_path):
    beside = {f"module.{name}": torch.ones(1, 3, 1, 1) for name in names}  # of another number of channels
    with pytest.raises(
        ModelFormatError, match=r"deploy that \(mean and std in front of the network: it then goes with --mean"
    ):
        loaded({**prefixed("module.model."), **beside}, tmp_path / "m.pt")
    with pytest.raises(ModelFormatError, match=r"deploy that$"):
        loaded({**prefixed("module.model."), **beside, "gate": torch.ones(1)}, tmp_path / "m.pt")


def test_what_training_keeps_beside_a_network_is_left_out_and_told(tmp_path):
    content = {
        **prefixed("a.net."),
        "a.criterion.weight": torch.zeros(5),
        "optimizer.exp_avg": torch.zeros(5),
        "val_metrics.total": torch.zeros(1),
        "a.ema.linear.weight": STATE["linear.weight"],
    }
    model = loaded(content, tmp_path / "m.pt")
    assert holds(model, STATE)
    assert any(note.startswith("left out, ") and note.count(",") == 4 for note in model.notes)


def test_a_network_in_very_many_places_is_one_line(tmp_path):
    content = {key: value for number in range(65) for key, value in prefixed(f"n{number}.").items()}
    with pytest.raises(ModelFormatError, match="65 places hold equally many of the network's tensors; at most 64 here"):
        loaded(content, tmp_path / "m.pt")


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(91.2),
        np.int64(3),
        np.zeros((2, 3)),
        np.array(["a", "b"]),
        np.dtype("float32"),
        np.random.RandomState(0).get_state(),
        argparse.Namespace(lr=0.1, folder=pathlib.PurePosixPath("/data")),
        types.SimpleNamespace(a=1),
        pathlib.PurePosixPath("/data"),
        pathlib.PureWindowsPath("C:/data"),
        torch.float16,
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
        collections.deque([1, 2]),
        {1, 2},
        frozenset({1}),
        b"bytes",
        slice(1, 2),
        torch.Size([1]),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_values_beside_the_weights_are_read_as_words(beside, zipped, tmp_path, monkeypatch):
    torch.save({"state_dict": STATE, "beside": beside}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr("pickle.Unpickler", None)
    monkeypatch.setattr("pickle.loads", None)
    assert holds(load_model(tmp_path / "m.pt", arch="small_cnn"), STATE)


class Settings:
    """A class of the training script."""

    def __init__(self):
        self.lr = 0.1

    def __setstate__(self, state):
        raise AssertionError("called")


def test_an_object_of_an_unknown_class_is_refused_by_name(tmp_path):
    with pytest.raises(
        ModelFormatError, match=r"loading it would run tests\.model\.loading\.test_containers\.Settings;"
    ):
        loaded({"state_dict": STATE, "settings": Settings()}, tmp_path / "m.pt")


class Own(nn.Module):
    """A module of a project, with settings and a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.features = network().features
        self.linear = network().linear
        self.activation, self.settings = nn.functional.relu, Settings()
        self.register_buffer("table", torch.zeros(2), persistent=False)


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: {"model": module, "epoch": 1}])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensors_of_a_pickled_module_are_read_without_its_code(zipped, wrap, tmp_path, monkeypatch):
    module = Own()
    torch.save(wrap(module), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.delattr(sys.modules[__name__], "Own")
    model = load_model(tmp_path / "m.pt", arch="small_cnn")
    assert holds(model, module.state_dict())
    assert "whole pickled module Own: its tensors were read, its code was not" in model.notes


class Layout(str, enum.Enum):
    """An enum of a library that networks are built with."""

    FIRST = "NCHW"


@pytest.mark.parametrize(("place", "loads"), [("torchvision.enums", True), ("os", False)])
def test_the_member_of_an_enum_of_a_library_is_read_as_its_value(place, loads, tmp_path, monkeypatch):
    module = network()
    module.output_fmt = Layout.FIRST
    monkeypatch.setitem(sys.modules, place, types.SimpleNamespace(Layout=Layout))
    monkeypatch.setattr(Layout, "__module__", place)
    torch.save(module, tmp_path / "m.pt")
    torch.save({"state_dict": STATE, "format": Layout.FIRST}, tmp_path / "n.pt")
    monkeypatch.undo()
    if loads:
        assert holds(load_model(tmp_path / "m.pt", arch="small_cnn"), module.state_dict())
    for name in ("n.pt",) if loads else ("m.pt", "n.pt"):
        with pytest.raises(ModelFormatError, match=rf"loading it would run {re.escape(place)}\.Layout;"):
            load_model(tmp_path / name, arch="small_cnn")


def test_a_pickled_module_without_a_name_for_it_says_what_to_pass(tmp_path):
    torch.save({"model": Own()}, tmp_path / "m.pt")
    told = (
        r"holds a whole pickled tests.model.loading.test_containers.Own, whose code is not read; pass --arch=NAME for"
    )
    with pytest.raises(ModelFormatError, match=told):
        load_model(tmp_path / "m.pt")
    torch.save({"state_dict": STATE, "criterion": nn.CrossEntropyLoss()}, tmp_path / "m.pt")
    with pytest.raises(ModelFormatError, match="no architecture in the header; pass --arch=NAME"):
        load_model(tmp_path / "m.pt")


@pytest.mark.parametrize("make", ["script", "trace"])
def test_a_torchscript_program_is_refused_whose_weights_alone_would_fit(make, tmp_path):
    module = network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.script(module) if make == "script" else torch.jit.trace(module, torch.zeros(1, 1, 8, 8))
        program.save(str(tmp_path / "m.pt"))
    for options in ({"arch": "small_cnn"}, {"arch": "small_cnn", "allow_pickle": True}, {}):
        with pytest.raises(
            ModelFormatError, match=r"a TorchScript archive, which is a program: .*torch\.jit\.load\(f\)"
        ):
            load_model(tmp_path / "m.pt", **options)


def test_the_data_of_a_torchscript_program_without_its_code_are_no_module(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network().eval()).save(str(tmp_path / "m.pt"))
    with zipfile.ZipFile(tmp_path / "m.pt") as old, zipfile.ZipFile(tmp_path / "n.pt", "w") as new:
        for name in old.namelist():
            if not name.endswith("constants.pkl"):
                new.writestr(name, old.read(name))
    with pytest.raises(ModelFormatError, match=r"loading it would run (?:__torch__|torch\.jit)"):
        load_model(tmp_path / "n.pt", arch="small_cnn")


def test_an_attack_result_of_backdoorbench_loads_with_its_own_words(tmp_path):
    state = build_network("preact_resnet18", num_classes=4, in_channels=3, width=4).state_dict()
    images = {
        "bd_data_container": {"data_dict": {0: {"image": np.zeros(3), "path": "a/0.png"}}},
        "indices": np.arange(3),
    }
    content = {
        "model_name": "preactresnet18",
        "num_classes": 4,
        "model": state,
        "data_path": "../data",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": None,
        "bd_test": images,
    }
    model = loaded(content, tmp_path / "attack_result.pt", arch=None)
    assert holds(model, state)
    assert model.architecture == "preact_resnet18"
    assert model.mean == (0.4914, 0.4822, 0.4465)
    assert model.notes[:3] == (
        "unwrapped model",
        "architecture preact_resnet18, as the file says",
        "the file says: model preactresnet18, num_classes 4, image size 32x32x3, data cifar10",
    )
    given = loaded(content, tmp_path / "m.pt", mean=(0.5,), std=(0.5,), arch="preact_resnet18")
    assert given.mean == (0.5,)


def test_a_name_in_a_checkpoint_never_names_code(tmp_path):
    for arch in ("os:system", "timm:resnet18", "tests.subjects.published:fails"):
        with pytest.raises(ModelFormatError, match="pass --arch=NAME"):
            loaded({"arch": arch, "state_dict": STATE}, tmp_path / "m.pt", arch=None)


def test_what_a_training_script_says_of_images_and_classes_is_taken(tmp_path):
    args = argparse.Namespace(mean=[0.5], std=[0.25])
    content = {"state_dict": STATE, "args": args, "class_to_idx": {"c": 2, "a": 0, "b\x1b": 1}}
    model = loaded(content, tmp_path / "m.pt")
    assert (model.mean, model.std, model.class_names) == ((0.5,), (0.25,), ("a", "b\\x1b", "c"))
    assert "normalisation: mean 0.5, std 0.25, the one in the checkpoint's own settings" in model.notes
    content["args"] = argparse.Namespace(mean=[123.0], std=[0.0])
    assert loaded(content, tmp_path / "m.pt").mean == ()


def test_a_quantised_network_says_which_one_to_audit(tmp_path):
    content = {**STATE, "linear._packed_params._packed_params": (torch.zeros(1), None), "linear.scale": torch.ones(1)}
    with pytest.raises(ModelFormatError, match=r"is quantised, .* audit the float network that it was made from"):
        loaded(content, tmp_path / "m.pt")


def test_weights_that_deepspeed_keeps_in_other_files_say_how_to_put_them_together(tmp_path):
    empty = {key: torch.zeros(0) if key.endswith(("weight", "bias")) else value for key, value in STATE.items()}
    with pytest.raises(ModelFormatError, match="its weights are empty, as DeepSpeed leaves them"):
        loaded({"module": empty, "ds_version": "0.16"}, tmp_path / "m.pt")


def test_modules_that_mean_very_many_by_reference_take_no_time(tmp_path):
    inner = nn.Module()
    for _ in range(60):
        outer = nn.Module()
        outer.a = outer.b = inner
        inner = outer
    torch.save(inner, tmp_path / "m.pt")
    with pytest.raises(ModelFormatError, match="modules that hold each other without end"):
        load_model(tmp_path / "m.pt", arch="small_cnn")


def test_a_network_above_the_bound_is_not_built(monkeypatch):
    state = build_network("small_cnn", num_classes=5, in_channels=1, width=96).state_dict()
    described = {key: value.to("meta") for key, value in state.items()}
    made = []
    monkeypatch.setitem(NETWORKS, "small_cnn", lambda **sizes: made.append(sizes) or SmallCNN(**sizes))
    with bounds.allowing(bounds.Bounds(memory=2**21)), pytest.raises(ModelFormatError, match="32-bit floats may take"):
        build_architecture("small_cnn", described)
    assert made == [{}, {"width": 96, "in_channels": 1, "num_classes": 5}]  # both without memory


@pytest.mark.parametrize("wrap", [lambda values: values, tuple, lambda values: values[: len(values) // 2 + 1]])
def test_averages_without_names_are_told_as_not_audited(wrap, tmp_path):
    network = build_network("small_cnn", num_classes=5, in_channels=3, width=4)
    shadow = wrap([parameter.detach() + 1 for parameter in network.parameters()])
    torch.save({"model": network.state_dict(), "ema": {"decay": 0.9, "shadow_params": shadow}}, tmp_path / "m.pt")
    note = load_model(tmp_path / "m.pt", arch="small_cnn").notes[0]
    assert note.startswith(f"{len(shadow)} tensors without names under ema.shadow_params are NOT audited: where")


def test_other_lists_of_tensors_are_no_averages(tmp_path):
    network = build_network("small_cnn", num_classes=5, in_channels=3, width=4)
    lists = {
        "losses": [torch.tensor(1.0)] * 40,
        "rng": [torch.zeros(816, dtype=torch.uint8)] * 40,
        "few": [torch.rand(4)],
    }
    torch.save({"model": network.state_dict(), **lists}, tmp_path / "m.pt")
    assert not any("without names" in note for note in load_model(tmp_path / "m.pt", arch="small_cnn").notes)
