import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backdoor_audit import bounds
from backdoor_audit.model.loading import checkpoint, class_names, class_names_of, load_model
from backdoor_audit.model.loading.hints import hints_of
from backdoor_audit.model.loading.pickle_values import StoredTensor
from backdoor_audit.model.networks import build_network
from tests.subjects.forbidden import forbid

WEIGHTS = {"weight": torch.zeros(2, 3)}
PLACES = {"cat": 1, "ant": 0, "dog": 2}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda found: found, lambda found: {"hyper_parameters": found, "epoch": 3}])
def test_a_checkpoint_may_say_the_place_of_each_class(wrap, legacy, tmp_path):
    path = tmp_path / "m.pth"
    content = {"model": WEIGHTS, **wrap({"class_to_idx": PLACES})}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert class_names_of(path) == ("ant", "cat", "dog")


@pytest.mark.parametrize(
    "told",
    [
        {"meta": {"dataset_meta": {"classes": ("ant", "cat", "dog")}}},
        {"hyper_parameters": {"class_names": ["ant", "cat", "dog"]}},
        {"idx_to_class": {2: "dog", 0: "ant", 1: "cat"}},
        {"classes": 3, "id2label": {"0": "ant", "1": "cat", "2": "dog"}},
    ],
)
def test_names_that_are_told_of_a_checkpoint_are_those_that_number_the_images(told, tmp_path):
    torch.save({"model": WEIGHTS, **told}, tmp_path / "m.pth")
    assert class_names_of(tmp_path / "m.pth") == ("ant", "cat", "dog")
    assert hints_of(checkpoint.content_of(tmp_path / "m.pth")).class_names == ("ant", "cat", "dog")


@pytest.mark.parametrize(
    "told",
    [
        {"label_map": PLACES},
        {"class2idx": PLACES},
        {"idx2label": {0: "ant", 1: "cat", 2: "dog"}},
        {"target_names": ["ant", "cat", "dog"]},
        {"args": Namespace(class_names=["ant", "cat", "dog"])},
        {"classes": ["cat", "ant", "dog"], "class_to_idx": PLACES},
    ],
)
def test_other_words_for_the_classes_and_objects_that_hold_them_are_read(told, tmp_path):
    torch.save({"model": WEIGHTS, **told}, tmp_path / "m.pth")
    assert class_names_of(tmp_path / "m.pth") == ("ant", "cat", "dog")
    assert hints_of(checkpoint.content_of(tmp_path / "m.pth")).class_names == ("ant", "cat", "dog")


@pytest.mark.parametrize(
    "told", ['{"cat": 1, "ant": 0, "dog": 2}', '["ant", "cat", "dog"]', "['ant', 'cat', 'dog']", "ant, cat,dog"]
)
def test_the_header_of_a_safetensors_file_may_name_its_classes(told, tmp_path):
    path, header = tmp_path / "m.safetensors", {"architecture": "small_cnn", "image_shape": "3x32x32", "classes": told}
    network = build_network("small_cnn", num_classes=3, in_channels=3, width=4)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, path, metadata=header)
    assert class_names_of(path) == load_model(path).class_names == ("ant", "cat", "dog")


@pytest.mark.parametrize("told", ["3", "", "ant", "[[", '{"cat": 0}', "[" * 100_000])
def test_a_header_that_names_no_classes_gives_none(told, tmp_path):
    save_file(WEIGHTS, tmp_path / "m.safetensors", metadata={"classes": told})
    assert class_names_of(tmp_path / "m.safetensors") == ()


def test_the_names_in_a_checkpoint_come_before_those_of_a_config_beside_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "1": "dog", "2": "ant"}}))
    torch.save({"class_to_idx": PLACES, "model": WEIGHTS}, tmp_path / "m.pth")
    assert class_names_of(tmp_path / "m.pth") == ("ant", "cat", "dog")
    assert class_names_of(tmp_path) == ("cat", "dog", "ant")


@pytest.mark.parametrize(
    "found",
    [
        np.array(["cat", "dog", "\N{SNOWMAN}"]),
        np.array(["cat", "dog", "\N{SNOWMAN}"], dtype=object),
        {"cat": np.int64(0), "dog": np.uint8(1), "\N{SNOWMAN}": np.array(2)[()]},
    ],
)
def test_names_by_values_of_numpy_are_read(found, tmp_path):
    torch.save({"model": WEIGHTS, "class_to_idx": found}, tmp_path / "m.pth")
    assert class_names_of(tmp_path / "m.pth") == ("cat", "dog", "\N{SNOWMAN}")


@pytest.mark.parametrize(
    "found",
    [
        np.array([b"cat", b"dog"]),
        {"cat": torch.tensor(0), "a": torch.tensor(1)},
    ],
)
def test_names_in_arrays_and_by_tensors_are_told_as_not_read(found, tmp_path):
    torch.save({"model": WEIGHTS, "class_to_idx": found}, tmp_path / "m.pth")
    notes = hints_of(checkpoint.content_of(tmp_path / "m.pth")).notes
    assert [note[:37] for note in notes] == ["class_to_idx in the file is not read "]
    assert hints_of({"labels": StoredTensor(), "classes": 3, "class_names": {}}).notes == ()


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"cat": 0},
        {"cat": 0, "dog": 0},
        {"cat": 0, "dog": 2},
        {"cat": "a", "dog": "b"},
        {1: 0, 2: 1},
        [("a", 0)],
        "ab",
    ],
)
def test_places_that_are_none_give_no_names(found, tmp_path):
    torch.save({"class_to_idx": found, "model": WEIGHTS}, tmp_path / "m.pth")
    assert class_names_of(tmp_path / "m.pth") == ()


def test_the_config_beside_a_model_names_its_classes(tmp_path):
    model, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    model.write_bytes(b"x")
    assert class_names_of(model) == ()
    for told, names in (
        ({"id2label": {"1": "dog", "0": "cat"}}, ("cat", "dog")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ()),
        ({"id2label": {"0": "cat", "2": "dog"}}, ()),
        ({"id2label": 3}, ()),
        ({"label_names": ["dog", "cat"]}, ("dog", "cat")),
        ({"pretrained_cfg": {"label_names": ["dog", "cat"]}}, ("dog", "cat")),
        ([], ()),
    ):
        config.write_text(json.dumps(told))
        assert class_names_of(model) == class_names_of(tmp_path) == names
    config.write_text("{")
    assert class_names_of(model) == ()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x02cos\nsystem\n", b"\x80"])
def test_a_file_that_is_no_checkpoint_has_no_names(content, tmp_path):
    (tmp_path / "m.pth").write_bytes(content)
    assert class_names_of(tmp_path / "m.pth") == ()
    assert class_names_of(tmp_path / "gone.pth") == ()


def test_dicts_that_are_shared_are_looked_at_once(tmp_path):
    asked = []

    class Counted(dict):
        def get(self, key, default=None):
            asked.append(key)
            return super().get(key, default)

    lowest = Counted({"class_to_idx": {}})
    middle = {number: Counted(dict.fromkeys(range(50), lowest)) for number in range(50)}
    top = Counted({**middle, "again": Counted(middle)})
    assert class_names.names_within(top) == ()
    assert asked.count("class_to_idx") == 1 + 50 + 1 + 1


def test_places_that_many_dicts_share_are_looked_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(class_names, "names_told", lambda found: asked.append(found) or ())
    shared = {"cat": 0, "dog": 2}
    assert class_names.names_within({number: {"class_to_idx": shared, "of": number} for number in range(50)}) == ()
    assert len([found for found in asked if found is shared]) == 1


def test_a_dict_that_is_its_own_places_has_no_names(tmp_path):
    content = {"model": WEIGHTS}
    content["class_to_idx"] = content
    torch.save(content, tmp_path / "m.pth")
    assert class_names_of(tmp_path / "m.pth") == ()


def test_names_that_are_not_found_in_time_are_none(tmp_path):
    torch.save({"class_to_idx": PLACES, "model": WEIGHTS}, tmp_path / "m.pth")
    with bounds.allowing(bounds.Bounds(seconds=0)):
        assert class_names_of(tmp_path / "m.pth") == ()


def test_a_model_in_a_folder_that_cannot_be_entered_has_no_names(tmp_path, monkeypatch):
    torch.save({"class_to_idx": PLACES, "model": WEIGHTS}, tmp_path / "m.pth")
    assert class_names_of(forbid(monkeypatch, tmp_path) / "m.pth") == ()
