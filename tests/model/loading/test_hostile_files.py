"""Whatever a model file holds: one line, in bounded memory and time, nothing executed."""

import json
import os
import pickle
import random
import resource
import struct
import sys
import time
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from backdoor_audit import bounds
from backdoor_audit.errors import AuditError, ModelFormatError
from backdoor_audit.model.loading import checkpoint, load_classifier, load_model, save_classifier
from backdoor_audit.model.loading.architecture import build_architecture
from backdoor_audit.model.loading.containers import candidates
from backdoor_audit.model.loading.module_state import strip_prefixes
from backdoor_audit.model.networks import build_network
from tests.subjects import hostile
from tests.subjects.hostile import ORDERED, archived, legacy, number, storage, tensor, text
from tests.subjects.networks import classifier_of

PARSED = "no tensors by name"
BEYOND = "--audit-memory=SIZE"
DEEP = b")" + b"\x85" * 200_000
LAUGHS = b"K\x01\x85q\x00" + b"h\x00h\x00\x86q\x00" * 100  # 2^100 elements by reference
COLLIDING = b"".join(number((2**61 - 1) * (i + 1)) + b"N" for i in range(20))


@pytest.fixture
def small_bounds():
    with bounds.allowing(bounds.Bounds(memory=16 * 2**20)):
        yield


def message_of(path, **options):
    before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelFormatError) as caught:
        load_model(path, **{"arch": "small_cnn", **options})
    assert time.process_time() - since < 10
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 500e6
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert len(said) < 1000
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"}" + DEEP + b"K\x01s", f"{PARSED}: found tuple (int)"),
        (b"}" + text("a") + b"](" + LAUGHS + b"esh\x00Ns", f"{PARSED}: found a (list), tuple (NoneType)"),
        (b"}0", "a pickle that cannot be read as tensors alone (instruction b'0')"),
        (DEEP, "holds a tuple"),
        (b"]" * 10**5 + b"a" * (10**5 - 1), "holds a list"),
        (b"}(" + COLLIDING + b"u", f"{PARSED}: found 2305843009213693951 (NoneType)"),
        (
            b"}" + b"cbuiltins\nbytearray\n" + number(6 * 10**9) + b"\x85R" + b"K\x01s",
            f"{PARSED}: found bytearray (int)",
        ),
        (b"cbuiltins\nbytearray\n" + number(6 * 10**9) + b"\x85R", "holds a bytearray"),
        (b"}" + text("w") + b"ctorch\nFloatTensor\n" + number(10**12) + b"\x85Rs", f"{PARSED}: found w (FloatTensor)"),
        (ORDERED + text("k") + b"K\x01s}" + text("items") + text("x") + b"sb", f"{PARSED}: found k (int)"),
        (b"ccollections\nOrderedDict\n" + text("ab") + b"\x85R", "damaged"),
        (b"ccollections\nOrderedDict\n]]" + text("k") + b"aK\x01aa\x85R", f"{PARSED}: found k (int)"),
        (b"}" + text("module." * 10**6) + b"Ns", f"{PARSED}: found module."),
        (b"}" + text("n" * 10**7) + b"Ns", f"{PARSED}: found nnnn"),
        (b"h\x05", "damaged"),
        (b"", "damaged"),
        (b"t", "damaged"),
        (b"NR", "damaged"),
        (b"N)R", "damaged or incomplete (a pickle that calls what is no function)"),
        (b"X\xff\xff\xff\xff", "damaged or incomplete (the file ends within a text)"),
        (b"c" + b"x" * 10**6, "damaged or incomplete (a pickle with a name that does not end)"),
        (b"cbuiltins\neval\n" + text("1") + b"\x85R", "holds more than tensors: loading it would run builtins.eval;"),
        (
            b"c__builtin__\neval\n" + text("1") + b"\x85R",
            "holds more than tensors: loading it would run builtins.eval;",
        ),
        (b"ctorch\nload\n" + text("x") + b"\x85R", "holds more than tensors: loading it would run torch.load;"),
    ],
)
@pytest.mark.parametrize("form", [archived, legacy])
def test_a_pickle_that_leads_its_reader_astray_is_one_line(body, said, form, tmp_path):
    (tmp_path / "m.pt").write_bytes(form(body))
    assert message_of(tmp_path / "m.pt").startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tensor(10**9, 3), "damaged or incomplete (a tensor of (1000000000,) beyond the end of its numbers)"),
        (tensor(3, offset=1), "damaged"),
        (tensor(3, 5, stride=3), "damaged"),
        (tensor(3, -3), "damaged"),
        (tensor(-3, 3), "damaged"),
        (tensor(3, 3, stride=-1), "damaged"),
        (tensor(3, 3, offset=-1), "damaged"),
        (tensor(2**63), "damaged"),
        (tensor(3, kind="torch\nQInt8Storage"), "w is quantised"),
        (tensor(3, kind="torch\nComplexFloatStorage"), "w is complex"),
        (tensor(3, kind="os\nSystemStorage"), "holds more than tensors: loading it would run os.SystemStorage;"),
        (tensor(3, kind="torch\nOddStorage"), "holds more than tensors: loading it would run torch.OddStorage;"),
        (tensor(3).replace(b"tQ", b"tQ0", 1), "a pickle that cannot be read as tensors alone"),
        (storage(3), f"{PARSED}: found w (Storage)"),
        (b"(" + text("module") + b"NNNNtQ", "damaged"),
        (
            tensor(1) + b"}" + text("data") + tensor(1) + b"sb",
            "a pickle that cannot be read as tensors alone (attributes",
        ),
        (b"ctorch\nFloatTensor\n)\x81", "w is without data"),
    ],
)
@pytest.mark.parametrize("form", [archived, legacy])
def test_a_tensor_that_is_none_is_one_line(content, said, form, tmp_path):
    numbers = {"keys": ["0"], "numbers": [(3, bytes(24))]} if form is legacy and b"storage" in content else {}
    (tmp_path / "m.pt").write_bytes(form(b"}" + text("w") + content + b"s", **numbers))
    assert message_of(tmp_path / "m.pt").startswith(said)


def test_numbers_are_looked_for_in_the_file_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0").write_bytes(THREE)
    (tmp_path / "m.pt").write_bytes(archived(ROW.replace(text("0"), text("../../data/0"))))
    with pytest.raises(ModelFormatError, match=r"the numbers \.\./\.\./data/0 are absent"):
        loaded(tmp_path / "m.pt")


def test_attributes_that_would_change_a_tensor_are_refused(tmp_path):
    inner = tensor(3).removeprefix(b"ctorch._utils\n_rebuild_tensor_v2\n").removesuffix(b"R")
    for name, loads in (("tag", True), ("data", False)):
        body = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n"
        body += inner + b"}" + text(name) + tensor(3, key="1") + b"s" + b"tR"
        file = tmp_path / f"{name}.pt"
        file.write_bytes(archived(b"}" + text("w") + body + b"s", [("archive/data/0", struct.pack("<3f", 1, 2, 3))]))
        if loads:
            assert loaded(file)["w"].tolist() == [1, 2, 3]
        else:
            assert "a tensor with attributes that are its own" in message_of(file)


def loaded(path):
    with checkpoint.opened(path) as saved:
        found = candidates(saved.content)[0].tensors
        checkpoint.described(found)
        return saved.tensors(found)


THREE = struct.pack("<3f", 1, 2, 3)
ROW = b"}" + text("w") + tensor(3) + b"s"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "absent or of another size"),
        ([("archive/data/0", THREE[:-1])], "absent or of another size"),
        ([("archive/data/0", THREE + b"\0")], "absent or of another size"),
        ([("other/data/0", THREE)], "in 2 folders"),
        ([("archive/data/0/", THREE)], "absent or of another size"),
        ([("archive/data/0", THREE), ("archive/DATA/0", bytes(12))], "two members named archive/DATA/0"),
        ([("archive/data/0", THREE), ("archive/constants.pkl", b"")], "a TorchScript archive"),
        ([("archive/data/0", THREE), ("archive/byteorder", "middle")], "a byte order that there is not"),
    ],
)
def test_an_archive_that_two_readers_could_read_differently_is_one_line(members, said, tmp_path):
    (tmp_path / "m.pt").write_bytes(archived(ROW, members))
    with pytest.raises(ModelFormatError, match=said):
        loaded(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data + b"more",
        lambda data: data[:4] + b"more" + data[4:],
        lambda data: data.replace(b"archive/data/0", b"archive/data/1", 1),
        lambda data: data.replace(b"archive/data/0", b"archive/data\x000"),
        lambda data: data[:-12] + b"\x09\0" + data[-10:],
        lambda data: data[:-2] + b"\x01\0",
        lambda data: with_attribute(data, 0x10),
    ],
)
def test_a_zip_file_with_a_part_that_contradicts_another_is_refused(damage, tmp_path):
    (tmp_path / "m.pt").write_bytes(damage(archived(ROW, [("archive/data/0", THREE)])))
    with pytest.raises(ModelFormatError, match=r"damaged or incomplete"):
        loaded(tmp_path / "m.pt")


def with_attribute(data, attribute):
    """The last member is called a folder: torch then hands out memory that nobody has filled."""
    at = data.rindex(b"PK\x01\x02") + 38
    return data[:at] + bytes([attribute]) + data[at + 1 :]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("order", ["little", "big"])
def test_stored_deflated_and_big_endian_numbers_come_back(method, order, tmp_path):
    content = struct.pack("<3f" if order == "little" else ">3f", 1, 2, 3)
    data = archived(ROW, [("archive/data/0", content), ("archive/byteorder", order)], method=method)
    (tmp_path / "m.pt").write_bytes(data)
    assert loaded(tmp_path / "m.pt")["w"].tolist() == [1, 2, 3]
    assert torch.load(tmp_path / "m.pt", weights_only=True)["w"].tolist() == [1, 2, 3]


def test_what_is_in_an_old_file_comes_back(tmp_path):
    empty = (
        b"ctorch\nFloatTensor\n)\x81("
        + storage(3, views=b"N")
        + number(1)
        + number(2)
        + b"\x85"
        + number(1)
        + b"\x85tb"
    )
    (tmp_path / "m.pt").write_bytes(legacy(b"}" + text("w") + empty + b"s", ["0"], [(3, THREE)]))
    assert loaded(tmp_path / "m.pt")["w"].tolist() == [2, 3]
    assert torch.load(tmp_path / "m.pt", weights_only=True)["w"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("keys", "numbers"),
    [
        ([], []),
        (["0"], []),
        (["0", "0"], [(3, THREE)] * 2),
        (["1"], [(3, THREE)]),
        (["0"], [(2, THREE)]),
        (["0"], [(3, b"")]),
    ],
)
def test_an_old_file_whose_numbers_are_not_those_of_its_tensors_is_refused(keys, numbers, tmp_path):
    (tmp_path / "m.pt").write_bytes(legacy(ROW, keys, numbers))
    with pytest.raises(ModelFormatError, match="damaged or incomplete"):
        loaded(tmp_path / "m.pt")


def everything():
    row = torch.arange(40.0)
    return {
        "shared": row[3:10],
        "turned": row[5:25].view(4, 5).t(),
        "wide": torch.zeros(1).expand(1),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(3),
        "nothing": torch.zeros(0, 3),
        "half": torch.rand(3).half(),
        "brain": torch.rand(3).bfloat16(),
        "eight": torch.rand(4).to(torch.float8_e4m3fn),
        "double": torch.rand(2, 2).double(),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "words": torch.tensor([1, 65535], dtype=torch.uint16),
        "parameter": nn.Parameter(torch.rand(2)),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor_comes_back_as_torch_reads_it(zipped, tmp_path):
    content = everything()
    tagged = nn.Parameter(torch.rand(2))
    tagged.tag = "x"
    content["tagged"] = tagged
    if not zipped:  # torch itself cannot read these two in its older format
        del content["eight"], content["words"]
    torch.save({"model": content, "epoch": 3}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    ours, theirs = loaded(tmp_path / "m.pt"), torch.load(tmp_path / "m.pt", weights_only=True)["model"]
    assert ours.keys() == theirs.keys()
    for name, tensor_ in theirs.items():
        assert ours[name].dtype == tensor_.dtype
        assert ours[name].shape == tensor_.shape
        assert ours[name].stride() == tensor_.stride()
        assert torch.equal(ours[name].double(), tensor_.detach().double())
    assert ours["shared"].untyped_storage().data_ptr() == ours["turned"].untyped_storage().data_ptr()


def test_what_a_training_script_saves_beside_the_weights_is_passed_over(tmp_path):
    network = build_network("small_cnn", num_classes=3, in_channels=1, width=4)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    extra = {"size": torch.Size([1]), "device": torch.device("cpu"), "kind": torch.half, "set": {1}, "c": 1j, "b": b"x"}
    torch.save({"net": network.state_dict(), "optimizer": optimizer, **extra}, tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt", arch="small_cnn").notes[0] == "unwrapped net"


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (archived(b"(" + b"]" * 10**5, method=zipfile.ZIP_DEFLATED), "instructions, or as much text"),
        (legacy(text("x" * 10**6) * 5), "instructions, or as much text"),
        (archived(text("x" * 10**7), method=zipfile.ZIP_DEFLATED), "reading a pickle of 10 MB may take 0.2 GB"),
        (archived(b"}", [(f"archive/{i}", b"") for i in range(3000)]), "reading its list of members may take"),
    ],
)
def test_what_takes_more_memory_than_the_bound_is_refused_with_the_option(data, said, tmp_path):
    (tmp_path / "m.pt").write_bytes(data)
    refused = message_of(tmp_path / "m.pt")
    assert said in refused
    assert BEYOND in refused


GET_TENSOR, GET_SHARED, EMPTY = b"h\x01", b"h\x02", b"}"
NUMBERED = b"}(" + b"".join(text(f"p{i}") + GET_TENSOR for i in range(500)) + b"u"


def module(parameters, modules):
    """A module of a class that nobody knows."""
    attributes = text("_parameters") + parameters + text("_buffers") + EMPTY + text("_modules") + modules
    return b"cpkg\nNet\n)\x81}(" + attributes + b"ub"


def module_of_one_child(times, parameters=NUMBERED, called="m"):
    """A module that holds one and the same child many times."""
    again = b"".join(text(f"{called}{i}") + GET_SHARED for i in range(times - 1))
    children = b"}(" + text(called) + module(parameters, EMPTY) + b"q\x02" + again + b"u"
    return b"(" + tensor(1) + b"q\x01" + module(EMPTY, children) + b"t"


def modules_with_one_dict(shared):
    """Many modules that share all of their attributes, or their parameters alone."""
    if shared == "attributes":
        first = text("_parameters") + NUMBERED + text("_buffers") + EMPTY + text("_modules") + EMPTY
        first, one = b"}(" + first + b"uq\x02", b"cpkg\nNet\n)\x81" + GET_SHARED + b"b"
    else:
        first, one = NUMBERED + b"q\x02", module(GET_SHARED, EMPTY)
    return b"(" + tensor(1) + b"q\x01" + first + b"](" + one * 100 + b"et"


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize(
    "body",
    [
        module_of_one_child(300),
        module_of_one_child(300, b"}(" + b"".join(text(f"p{i}") + b"N" for i in range(500)) + b"u"),
        module_of_one_child(50, called="m" * 10_000),
        modules_with_one_dict("parameters"),
    ],
)
def test_few_modules_that_mean_very_many_names_are_refused_with_the_option(body, tmp_path):
    (tmp_path / "m.pt").write_bytes(archived(body, [("archive/data/0", bytes(4))]))
    refused = message_of(tmp_path / "m.pt")
    assert refused.startswith("its modules refer to each other so often that they hold more than 4,096 names, or")
    assert BEYOND in refused


def test_modules_with_the_same_attributes_are_one_place(tmp_path):
    (tmp_path / "m.pt").write_bytes(archived(modules_with_one_dict("attributes"), [("archive/data/0", bytes(4))]))
    with checkpoint.opened(tmp_path / "m.pt") as saved:
        found = candidates(saved.content, saved.deadline)
    assert sorted((place.module, len(place.tensors)) for place in found) == [("", 500), ("Net", 500)]


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize(
    "state", [b"}(" + b"".join(text(f"n{i}") + b"N" for i in range(500)) + b"u", b"(" + EMPTY * 500 + b"t"]
)
def test_attributes_that_many_parameters_share_are_counted_each_time(state, tmp_path):
    one = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + GET_TENSOR + b"\x89N" + GET_SHARED + b"tR"
    many = b"".join(text(f"w{i}") + one for i in range(20))
    body = b"(" + tensor(1) + b"q\x01" + state + b"q\x02}(" + many + b"ut"
    (tmp_path / "m.pt").write_bytes(archived(body, [("archive/data/0", bytes(4))]))
    refused = message_of(tmp_path / "m.pt")
    assert "4,096 instructions, or as much text, or entries that it goes over again" in refused
    assert BEYOND in refused


def zeros(megabytes):
    body = b"}" + text("w") + tensor(megabytes << 18) + b"s"
    return archived(body, [("archive/data/0", bytes(megabytes << 20))], method=zipfile.ZIP_DEFLATED)


def test_numbers_that_inflate_are_not_read_before_the_network_fits(tmp_path):
    (tmp_path / "m.pt").write_bytes(zeros(1).replace(number(1 << 18), number(1 << 40)))
    assert message_of(tmp_path / "m.pt").startswith("does not fit small_cnn")


@pytest.mark.usefixtures("small_bounds")
def test_numbers_that_inflate_beyond_the_bound_are_not_read(tmp_path):
    (tmp_path / "m.pt").write_bytes(zeros(40))
    with pytest.raises(ModelFormatError, match=r"its tensors as 32-bit floats may take 0\.1 GB") as caught:
        loaded(tmp_path / "m.pt")
    assert BEYOND in str(caught.value)


def test_reading_that_takes_too_long_is_refused_with_the_option(tmp_path):
    (tmp_path / "m.pt").write_bytes(archived(b"(" + b"]" * 10**5, method=zipfile.ZIP_DEFLATED))
    with bounds.allowing(bounds.Bounds(seconds=0.0)):
        assert "--audit-reading-time=TIME" in message_of(tmp_path / "m.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_of_holes_is_refused_by_its_size(suffix, tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [5 << 30], "data_offsets": [0, 20 << 30]}}).encode()
    with (tmp_path / f"m.{suffix}").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header if suffix == "safetensors" else archived(b"}"))
        file.truncate(file.tell() + (20 << 30))
    refused = message_of(tmp_path / f"m.{suffix}")
    assert "reading the file may take 21.5 GB of memory; 8.6 GB are allowed" in refused
    assert BEYOND in refused


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.symlink(path, path), lambda path: os.symlink("/dev/zero", path)]
)
def test_what_is_no_regular_file_is_not_opened(make, tmp_path):
    make(tmp_path / "m.pt")
    assert message_of(tmp_path / "m.pt").startswith("not a file that can be read (")


@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "a\0b"])
def test_a_name_that_no_file_has_is_one_line(name, tmp_path):
    with pytest.raises(ModelFormatError, match="no such file"):
        load_model(tmp_path / name, arch="small_cnn")


def header_of(**entries):
    return {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, **entries}


def written(path, header, data=bytes(4)):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (header_of(w={"dtype": "F32", "shape": [1] * 10**5, "data_offsets": [0, 4]}), "w has 100000 dimensions"),
        (b'{"w":%b,"w":%b}' % ((b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',) * 2), "two entries of one name"),
        (header_of(w={"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}), ""),
        (b'{"w":' + b"[" * 10**5 + b"}", "recursion limit"),
        (b'{"' + b"x" * 10**7 + b'":1}', "a header of 10.0 MB may take 10.2 GB of memory"),
        (header_of(w={"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}), ""),
    ],
)
def test_a_safetensors_header_that_leads_its_reader_astray_is_one_line(header, said, tmp_path):
    assert said in message_of(written(tmp_path / "m.safetensors", header))


@pytest.mark.usefixtures("small_bounds")
def test_numbers_that_grow_beyond_the_bound_as_floats_are_refused(tmp_path):
    data = save({"w": torch.zeros(12 << 20, dtype=torch.int8)})
    (tmp_path / "m.safetensors").write_bytes(data)
    assert "its tensors as 32-bit floats may take 0.1 GB" in message_of(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["regnet_y_128gf", "regnet_x_400mf"])
def test_an_architecture_that_computes_its_widths_is_compared_without_memory(name, tmp_path):
    path = written(tmp_path / "m.safetensors", header_of(__metadata__={"architecture": f"torchvision:{name}"}))
    assert message_of(path, arch=None).startswith(f"does not fit torchvision:{name}")


@pytest.mark.parametrize("shape", [(10**8, 1, 1, 1), (10**8, 10, 0, 3)])
def test_sizes_that_no_network_can_have_are_one_line(shape):
    state = {
        "features.0.0.weight": torch.empty(shape, device="meta"),
        "linear.weight": torch.empty(10**9, 1, device="meta"),
    }
    for name in ("small_cnn", "small_vit"):
        with pytest.raises(ModelFormatError, match="check --arch"):
            build_architecture(name, {**state, "embedding.weight": state["features.0.0.weight"]})


def test_prefixes_without_end_take_no_time():
    names = {"module." * 200_000 + str(i): torch.zeros(0) for i in range(20)}
    since = time.process_time()
    _, gone = strip_prefixes(names, ["0"])
    assert time.process_time() - since < 2
    assert gone == ""
    assert strip_prefixes({"module." * 8 + "w": torch.zeros(0)}, ["w"])[1] == "module." * 8


class Outcome(BaseException):
    """What a test framework raises to skip or fail a test is no `Exception`."""


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError


RAISED = [SystemExit(0), Outcome("skipped"), UnspeakableError(), MemoryError(), RecursionError("deep"), StopIteration()]


def raising(error):
    raise error


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_a_factory_that_raises_anything_is_one_line(error, tmp_path, monkeypatch):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "m.pt")
    monkeypatch.setattr("tests.subjects.published.fails", lambda: raising(error))
    refused = message_of(tmp_path / "m.pt", arch="tests.subjects.published:fails")
    assert refused.startswith(f"--arch=tests.subjects.published:fails failed ({type(error).__name__}")


def test_ctrl_c_in_a_factory_is_passed_on(tmp_path, monkeypatch):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "m.pt")
    monkeypatch.setattr("tests.subjects.published.fails", lambda: raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load_model(tmp_path / "m.pt", arch="tests.subjects.published:fails")


class Wayward(nn.Module):
    """A module of which one method raises what is no `Exception`."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, images):
        return self.linear(images.flatten(1))


@pytest.mark.parametrize("method", ["state_dict", "load_state_dict", "float", "eval", "forward"])
def test_a_module_that_raises_anything_is_one_line(method, tmp_path, monkeypatch):
    torch.save(Wayward().state_dict(), tmp_path / "m.pt")
    monkeypatch.setattr(Wayward, method, lambda *_, **__: raising(SystemExit(0)), raising=False)
    with pytest.raises(AuditError, match="SystemExit") as caught:
        load_classifier(tmp_path / "m.pt", arch="tests.model.loading.test_hostile_files:Wayward", image_shape=(1, 1, 2))
    assert str(caught.value).isprintable()


class Exits:
    def __reduce__(self):
        return (sys.exit, (0,))


def test_a_file_that_exits_with_leave_to_unpickle_is_one_line(tmp_path):
    torch.save({"a": Exits()}, tmp_path / "m.pt")
    assert message_of(tmp_path / "m.pt", allow_pickle=True).startswith("unpickling failed (SystemExit: 0)")


def test_a_model_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_classifier(classifier_of(), path)
    before = path.read_bytes()
    monkeypatch.setattr("backdoor_audit.tensor_file.save_file", lambda *_, **__: raising(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_classifier(classifier_of(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_folder_that_is_not_there_is_told_by_an_oserror(tmp_path):
    with pytest.raises(OSError, match=r"m\.safetensors"):
        save_classifier(classifier_of(), tmp_path / "gone" / "m.safetensors")


EVENTS: list[str] = []
FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "exec", "socket.connect")


def sources():
    state = build_network("small_cnn", num_classes=3, in_channels=1, width=2).state_dict()
    evil = b"}" + text("w") + b"cos\nsystem\n" + text("touch executed") + b"\x85R" + b"s"
    return [
        bytes_of({"state_dict": state, "epoch": 3}, zipped=True),
        bytes_of({"state_dict": state, "epoch": 3}, zipped=False),
        bytes_of(everything(), zipped=True),
        save({name: tensor.contiguous() for name, tensor in state.items()}, {"architecture": "small_cnn"}),
        archived(ROW, [("archive/data/0", THREE)]),
        legacy(ROW, ["0"], [(3, THREE)]),
        archived(evil),
        legacy(evil),
        b"\x80\x02" + evil + b".",
        pickle.dumps({"a": [1, 2]}),
    ]


def bytes_of(content, *, zipped):
    buffer = hostile.io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def changed(data, randomly):
    kind = randomly.choice(["flip", "flip", "cut", "splice", "insert", "end"])
    at = randomly.randrange(len(data))
    if kind == "cut":
        return data[:at]
    if kind == "splice":
        return data[:at] + data[randomly.randrange(len(data)) :]
    if kind == "insert":
        part = randomly.choice(
            [b")\x85\x85", b"\x86", b"R", b"}", b"(", b"b", b"h\x01", number(2**62), b"cos\nsystem\n"]
        )
        return data[:at] + part + data[at:]
    flipped = bytearray(data)
    for _ in range(randomly.choice([1, 2, 8])):
        place = randomly.randrange(max(0, len(data) - 200) if kind == "end" else 0, len(data))
        flipped[place] ^= 1 << randomly.randrange(8)
    return bytes(flipped)


@pytest.fixture(scope="module")
def watched():
    """Names of what would mean that code was executed, from here on; an audit hook cannot be taken off again."""
    list("\x1b".encode("unicode_escape"))  # imports a codec, which is code of Python's own
    active = [True]
    sys.addaudithook(lambda event, _: EVENTS.append(event) if active[0] and event in FORBIDDEN else None)
    yield EVENTS
    active[0] = False


SOURCES = sources()


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(source=st.sampled_from(range(len(SOURCES))), seed=st.integers(0, 2**32))
def test_changed_files_are_loaded_or_refused_in_one_line(source, seed, watched, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"changed{os.getpid()}.pt"
    path.write_bytes(changed(SOURCES[source], random.Random(seed)))
    watched.clear()
    since, said = time.process_time(), f"{path}: "
    try:
        load_model(path, arch=None if source == 3 else "small_cnn")
    except ModelFormatError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert time.process_time() - since < 10
    assert watched == []
