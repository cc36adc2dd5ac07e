"""Factories that the user names: what they get, and what is said of those that give no network."""

import sys

import pytest
import torch
from torchvision import models

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading import load_model
from backdoor_audit.model.loading.architecture import architecture_of

SOURCE = """
import sys
from torch import nn

if __name__ != "nets_of_a_user":
    raise SystemExit("read, not imported")


def make():
    return nn.Linear(3, 2)


def of_classes(num_classes, width=3):
    return nn.Linear(width, num_classes)


def of_anything(**options):
    return nn.Linear(3, options.get("num_classes", 2))


def of_what_net_takes(**options):
    return Fixed(**options)


def of_a_typing_error(**options):
    return Fixed(nmu_classes=options["num_classes"])


def of_settings(settings, *, depth, num_classes=2):
    return nn.Linear(settings.width, num_classes)


def _hidden():
    return nn.Linear(3, 2)


class Net(nn.Linear):
    def __init__(self, num_classes=2):
        super().__init__(3, num_classes)


class Fixed(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)


class Gained(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def get_extra_state(self):
        return {"gain": 1.0}

    def set_extra_state(self, state):
        self.gain = state["gain"]


class Settings:
    pass


network = nn.Linear(3, 2)
"""
NAMES = ("make", "of_classes", "of_anything", "of_what_net_takes", "of_a_typing_error")
LISTED = ", ".join(f"nets_of_a_user:{name}" for name in NAMES)


@pytest.fixture(autouse=True)
def source(tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_user.py").write_text(SOURCE)
    (tmp_path / "package_of_nets").mkdir()
    (tmp_path / "package_of_nets" / "inner.py").write_text(SOURCE)
    (tmp_path / "broken_net.py").write_text("def make(:\n")
    (tmp_path / "empty_net.py").write_text("")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("nets_of_a_user", None)


def refusal(arch, num_classes=None):
    with pytest.raises(ModelFormatError) as caught:
        architecture_of(arch, num_classes=num_classes)
    assert str(caught.value).isprintable()
    return str(caught.value)


def classes(arch, num_classes):
    module = architecture_of(f"nets_of_a_user:{arch}", num_classes=num_classes).build({}).module
    return module.out_features


@pytest.mark.parametrize("arch", ["of_classes", "of_anything", "Net"])
def test_a_factory_gets_the_number_of_classes_in_whatever_way_it_takes_it(arch):
    assert classes(arch, 7) == 7


def test_a_factory_without_a_number_of_classes_is_called_without_one():
    assert classes("make", 7) == 2
    assert classes("of_anything", None) == 2
    assert classes("of_what_net_takes", 7) == 2  # a network that scores other classes than the user said is refused


def test_another_error_of_a_factory_that_takes_any_name_is_told():
    assert "unexpected keyword argument 'nmu_classes'" in refusal("nets_of_a_user:of_a_typing_error", 7)


def test_a_factory_that_needs_the_number_of_classes_asks_for_it():
    assert (
        refusal("nets_of_a_user:of_classes") == "--arch=nets_of_a_user:of_classes needs num_classes; pass --classes=N"
    )


def test_a_factory_that_needs_more_says_what():
    assert refusal("nets_of_a_user:of_settings", 3).startswith(
        "--arch=nets_of_a_user:of_settings needs settings, depth; a factory gets num_classes at most"
    )


def test_a_network_is_no_factory_and_those_beside_it_are_named():
    assert refusal("nets_of_a_user:network") == (
        f"--arch=nets_of_a_user:network is a network itself; name a function or class that returns it ({LISTED})"
    )


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("nets_of_a_user:Make", "; did you mean nets_of_a_user:make?"),
        ("nets_of_a_user:net", "; did you mean nets_of_a_user:Net?"),
        ("nets_of_a_user:Net()", "; did you mean nets_of_a_user:Net?"),
        ("nets_of_a_user:of_clases", "; did you mean nets_of_a_user:of_classes"),
        ("nets_of_a_user:xyzzy", f" ({LISTED})"),
        ("nets_of_a_user:", f" ({LISTED})"),
        ("./nets_of_a_user.py:make", "; did you mean nets_of_a_user:make?"),
    ],
)
def test_a_function_that_is_not_there_is_told_with_those_that_are(arch, said):
    assert said in refusal(arch)


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("nets_of_a_user", "nets_of_a_user:make or nets_of_a_user:of_classes or "),
        ("nets_of_a_user.py", "nets_of_a_user:make or "),
        ("package_of_nets.inner", "package_of_nets.inner:make or "),
        ("package_of_nets/inner.py", "package_of_nets.inner:make or "),
        ("nets_of_a_user.make", "nets_of_a_user:make?"),
        ("broken_net", "broken_net:FUNCTION, which returns the network?"),
        ("empty_net", "empty_net:FUNCTION, which returns the network?"),
    ],
)
def test_a_file_without_a_function_is_read_for_its_functions_and_not_imported(arch, said):
    before = set(sys.modules)
    assert f"unknown architecture {arch!r}; did you mean {said}" in refusal(arch)
    assert not {"nets_of_a_user", "package_of_nets", "broken_net", "empty_net"} & (set(sys.modules) - before)


def test_a_path_in_place_of_a_module_says_where_it_can_be_imported(tmp_path, monkeypatch):
    inner = tmp_path / "package_of_nets"
    assert "; did you mean package_of_nets.inner:make?" in refusal(f"{inner}/inner.py:make")
    (tmp_path / "my-nets.py").write_text(SOURCE)
    assert f"; call the file my_nets.py, start in {tmp_path}, or with PYTHONPATH={tmp_path}, and pass" in refusal(
        "my-nets.py:make"
    )
    monkeypatch.chdir(inner)
    for arch in ("../nets_of_a_user.py:make", f"{tmp_path}/nets_of_a_user:make"):
        message = refusal(arch)
        assert "did you mean" not in message
        assert message.endswith(f"with PYTHONPATH={tmp_path}, and pass --arch=nets_of_a_user:make")
    assert refusal("/nowhere/nets.py:make").endswith("returns a torch.nn.Module")


def test_a_factory_with_another_number_of_classes_than_the_file_says_how_to_give_it(tmp_path):
    torch.save({"weight": torch.zeros(5, 3), "bias": torch.zeros(5)}, tmp_path / "m.pt")
    asked = "; pass --classes=N if it has another number of classes, which nets_of_a_user:Net takes as num_classes"
    with pytest.raises(ModelFormatError) as caught:
        load_model(tmp_path / "m.pt", arch="nets_of_a_user:Net")
    assert str(caught.value).endswith(asked)
    for arch, said in (("nets_of_a_user:make", None), ("nets_of_a_user:Net", 4)):
        with pytest.raises(ModelFormatError, match=r"check --arch$"):
            load_model(tmp_path / "m.pt", arch=arch, num_classes=said)


def test_a_function_of_torchvision_that_does_not_fit_says_which_name_does(tmp_path):
    torch.save(models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "m.pt")
    arch = "torchvision.models:squeezenet1_1"
    with pytest.raises(
        ModelFormatError, match=r"--arch=torchvision:squeezenet1_1 reads the sizes off the file, or pass"
    ):
        load_model(tmp_path / "m.pt", arch=arch)
    assert load_model(tmp_path / "m.pt", arch=arch, num_classes=3).architecture == arch


def test_what_a_network_reads_beside_its_tensors_is_not_left_out(tmp_path):
    state = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "_extra_state": {"gain": 60.0}}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ModelFormatError, match="keeps _extra_state beside its tensors, which is not read from files"):
        load_model(tmp_path / "m.pt", arch="nets_of_a_user:Gained")
