import json
import re
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import class_names_of, load_model
from backdoor_audit.model.loading.hints import hints_of
from backdoor_audit.model.loading.preprocessing import hints_of_timm
from backdoor_audit.model.loading.timm_network import configured_name, is_named

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def network(**given):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model("test_resnet", pretrained=False, num_classes=3, **given).eval()


def folder(path, module, **config):
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 3, **config}))
    return path


def trained(path, module, *, name="test_resnet", **args):
    args = {"gp": None, "model_kwargs": {}, "bn_eps": None, "mean": None, "std": None, "num_classes": 3, **args}
    torch.save({"arch": name, "state_dict": module.state_dict(), "version": 2, "args": Namespace(**args)}, path)
    return path


def same(loaded, module):
    return torch.allclose(loaded.module(IMAGES), module(IMAGES), atol=1e-5)


def test_the_data_configuration_of_a_folder_names_the_pooling_where_its_arguments_do_not(tmp_path):
    module = network(global_pool="max")
    assert same(load_model(folder(tmp_path, module, pretrained_cfg={"global_pool": "max"})), module)


def test_another_pooling_of_the_saved_network_than_timm_builds_is_refused(tmp_path):
    path = folder(tmp_path, network(global_pool="max"), global_pool="max", pretrained_cfg={})
    for arch in (None, "timm:test_resnet"):
        with pytest.raises(ModelFormatError, match="pass --arch=timm:test_resnet,global_pool=max or global_pool=avg"):
            load_model(path, arch=arch)
    assert same(load_model(path, arch="timm:test_resnet,global_pool=max"), network(global_pool="max"))
    assert load_model(folder(tmp_path, network(), global_pool="avg")).architecture == "timm:test_resnet"


def test_a_named_network_of_timm_is_built_as_its_folder_says(tmp_path, monkeypatch):
    module = network(act_layer="silu")
    path = folder(tmp_path, module, model_args={"act_layer": "silu"})
    with pytest.raises(ModelFormatError, match="model_args builds another test_resnet") as caught:
        load_model(path, arch="timm:test_resnet")
    told = re.search(r"my_model\.py, (def make\(\): .*), and pass --arch=my_model:make$", str(caught.value))
    (tmp_path / "named_silu.py").write_text(told[1])
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_model(path, arch="named_silu:make")
    assert same(loaded, module)
    assert "--arch=named_silu:make instead of test_resnet in config.json" in loaded.notes


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("arch", [None, "timm:test_resnet"])
def test_a_checkpoint_of_timms_script_has_the_pooling_that_it_was_trained_with(arch, allow_pickle, tmp_path):
    module = network(global_pool="max")
    loaded = load_model(trained(tmp_path / "m.pth", module, gp="max"), arch=arch, allow_pickle=allow_pickle)
    assert loaded.architecture == "timm:test_resnet,global_pool=max"
    assert same(loaded, module)
    assert loaded.mean == tuple(module.pretrained_cfg["mean"])


def test_a_checkpoint_of_timms_script_without_timm_is_no_other_network(tmp_path, monkeypatch):
    from torchvision.models import resnet18

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    module = resnet18(num_classes=3)
    plain = load_model(trained(tmp_path / "m.pth", module, name="resnet18", gp="avg"))
    assert plain.architecture == "torchvision:resnet18"
    with pytest.raises(ModelFormatError, match="pass --arch=timm:resnet18,global_pool=max"):
        load_model(trained(tmp_path / "m.pth", module, name="resnet18", gp="max"))
    for told in ({"model_kwargs": {"act_layer": "silu"}}, {"bn_eps": 0.1}):
        with pytest.raises(ModelFormatError, match=r"args of timm's train.py: .* timm.create_model\('resnet18'"):
            load_model(trained(tmp_path / "m.pth", module, name="resnet18", **told))


def test_the_configuration_of_old_versions_has_its_normalisation_and_names_at_the_top(tmp_path):
    config = {"architecture": "test_resnet", "mean": [0.1, 0.2, 0.3], "std": [0.2] * 3, "labels": ["z", "b", "a"]}
    hints = hints_of_timm(config)
    assert (hints.mean, hints.std, hints.class_names) == ((0.1, 0.2, 0.3), (0.2, 0.2, 0.2), ("z", "b", "a"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert class_names_of(tmp_path) == ("z", "b", "a")
    assert hints_of_timm({"label_names": {"1": "a", "0": "b"}, "pretrained_cfg": {}}).class_names == ("b", "a")


def test_normalisation_of_a_checkpoint_for_pixels_to_255_is_divided():
    hints = hints_of({"args": {"mean": [127.5], "std": [51]}})
    assert (hints.mean, hints.std) == ((0.5,), (0.2,))
    assert hints.whose.endswith("which is for pixels in 0 to 255, divided by 255")


def test_a_given_pooling_is_the_users_word():
    config = {"model_args": {"global_pool": "max"}}
    assert configured_name(config, "vit") == "timm:vit,global_pool=max"
    assert configured_name(config, "vit.tag,img_size=64") == "timm:vit.tag,img_size=64,global_pool=max"
    assert configured_name(config, "vit,global_pool=avg") == "timm:vit,global_pool=avg"
    assert is_named("timm:vit.tag,img_size=3", "vit")
    assert not is_named("torchvision:vit", "vit")
    assert not is_named("timm:vit", None)


@pytest.mark.parametrize("usual", [0, 16])  # none, and as many as there are channels
def test_the_last_layer_of_a_network_that_timm_builds_with_other_classes_is_read(usual, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    plain = timm.create_model

    def made(name, pretrained, num_classes=usual, **given):
        return plain(name, pretrained=pretrained, num_classes=num_classes, **given)

    module = network()
    monkeypatch.setattr("timm.create_model", made)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", arch="timm:test_resnet")
    assert same(loaded, module)
    assert "num_classes=3 as its tensors say" in loaded.notes
    torch.save({key: value for key, value in module.state_dict().items() if "fc." not in key}, tmp_path / "m.pt")
    with pytest.raises(ModelFormatError, match=r"2 missing \(fc.weight, fc.bias\)"):
        load_model(tmp_path / "m.pt", arch="timm:test_resnet")


def test_the_norm_of_another_pooling_names_it(tmp_path):
    timm = pytest.importorskip("timm")
    module = timm.create_model("test_vit", pretrained=False, num_classes=3, global_pool="avg").eval()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ModelFormatError, match=r"pass --arch=timm:test_vit,global_pool=avg$"):
        load_model(tmp_path / "m.pt", arch="timm:test_vit")
    assert load_model(tmp_path / "m.pt", arch="timm:test_vit,global_pool=avg")
