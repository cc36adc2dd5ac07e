import multiprocessing
import os
import time

import pytest
import torch

from backdoor_audit.store import Packed, Store, generator_for, key
from tests.subjects.forbidden import forbid

PARTS = {"model": "abc", "seed": 3}


def pack(result):
    return Packed({"tensor": torch.tensor([float(result)])}, {"result": result})


def unpack(packed):
    assert float(packed.tensors["tensor"]) == packed.values["result"]
    return packed.values["result"]


def counted(store, value=7, parts=PARTS):
    """The recalled result, whether it was there, and how often the work was done."""
    done = []
    result, recalled = store.recall(parts, lambda: done.append(1) or value, pack=pack, unpack=unpack)
    return result, recalled, len(done)


def test_work_is_done_once(tmp_path):
    assert counted(Store(tmp_path / "new" / "folder")) == (7, False, 1)
    assert counted(Store(tmp_path / "new" / "folder"), value=99) == (7, True, 0)


def test_work_is_kept_in_a_folder_whose_name_is_not_utf8(tmp_path):
    store = Store(tmp_path / os.fsdecode(b"caf\xe9"))
    assert counted(store) == (7, False, 1)
    if store.told:
        pytest.skip("this file system takes UTF-8 alone")
    assert counted(store, value=99) == (7, True, 0)
    assert store.told == []


def test_work_is_done_where_the_folder_cannot_be_entered(tmp_path, monkeypatch):
    counted(Store(tmp_path))
    store = Store(forbid(monkeypatch, tmp_path))
    assert not store.has(PARTS)
    assert counted(store, value=8) == (8, False, 1)


@pytest.mark.parametrize(
    "parts", [{"model": "abd", "seed": 3}, {"model": "abc", "seed": 4}, {**PARTS, "steps": 10}, {}]
)
def test_other_parts_are_other_work(tmp_path, parts):
    counted(Store(tmp_path))
    assert counted(Store(tmp_path), value=8, parts=parts) == (8, False, 1)


def test_the_order_of_the_parts_does_not_matter():
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key({"a": 1, "b": 2}) != key({"a": 2, "b": 1})
    assert key({"ab": ""}) != key({"a": "b"})


def test_a_key_is_the_same_in_every_process_and_version():
    assert (
        key({"model": "abc", "seed": 3}) == "65b3d4f9445221a638808d291a224ad8"
    )  # SHA-256 of '{"model": "abc", "seed": "3"}'


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "no-metadata"])
def test_a_damaged_file_is_done_again(tmp_path, damage):
    counted(Store(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    header = b'{"tensor":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    file.write_bytes(
        {
            "truncated": content[: len(content) - 2],
            "empty": b"",
            "garbage": b"\xff" * 100,
            "no-metadata": len(header).to_bytes(8, "little") + header + bytes(4),
        }[damage]
    )
    store = Store(tmp_path)
    assert counted(store) == (7, False, 1)
    assert [str(file) in told and "done again" in told for told in store.told] == [True]
    assert counted(Store(tmp_path)) == (7, True, 0)


def test_no_altered_file_is_taken_for_a_result(tmp_path):
    """Every bit of a small file, one after the other; and values that were edited by somebody who knows JSON."""
    store = Store(tmp_path)
    counted(store)
    (file,) = tmp_path.glob("*.safetensors")
    content = file.read_bytes()
    altered = [
        content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at in range(len(content))
        for bit in (0, 6)
    ]
    altered.append(content.replace(b'\\"result\\": 7', b'\\"result\\": 8'))
    assert altered[-1] != content
    for bad in altered:
        file.write_bytes(bad)
        assert store._read(file, file.stem) is None, bad


def test_a_file_under_another_name_is_not_taken_for_its_result(tmp_path):
    store = Store(tmp_path)
    counted(store)
    (file,) = tmp_path.glob("*.safetensors")
    file.rename(tmp_path / f"{key({**PARTS, 'seed': 4})}.safetensors")
    assert counted(store, value=8, parts={**PARTS, "seed": 4}) == (8, False, 1)


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path):
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "file" / "cache")
    assert counted(store) == (7, False, 1)
    assert len(store.told) == 2
    assert "cannot be locked" in store.told[0]
    assert "pass -o cache_dir=DIR" in store.told[1]
    assert counted(store) == (7, False, 1)
    assert len(store.told) == 2


def test_a_pipe_under_the_name_of_a_result_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / f"{key(PARTS)}.safetensors")
    store = Store(tmp_path)
    assert counted(store) == (7, False, 1)
    assert "a pipe" in store.told[0]
    assert counted(store) == (7, True, 0)


def test_work_that_raises_leaves_nothing_behind(tmp_path):
    def fails():
        raise KeyError("broken")

    with pytest.raises(KeyError):
        Store(tmp_path).recall(PARTS, fails, pack=pack, unpack=unpack)
    assert not list(tmp_path.glob("*.safetensors"))
    assert counted(Store(tmp_path)) == (7, False, 1)


def test_the_first_run_sees_what_a_later_one_sees(tmp_path):
    """Tuples become lists on disk; whoever computed them gets lists as well."""
    for _ in range(2):
        found, _ = Store(tmp_path).recall(
            PARTS,
            lambda: (1, 2),
            pack=lambda result: Packed({}, {"result": result}),
            unpack=lambda p: p.values["result"],
        )
        assert found == [1, 2]


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).t()  # not contiguous
    for _ in range(2):
        found, _ = Store(tmp_path).recall(
            PARTS,
            lambda: tensor,
            pack=lambda result: Packed({"t": result}, {}),
            unpack=lambda packed: packed.tensors["t"],
        )
        assert torch.equal(found, tensor)


def slow_work(folder, log, barrier):
    def work():
        with open(log, "a", encoding="utf-8") as file:
            file.write("done\n")
        time.sleep(0.3)
        return 7

    barrier.wait(timeout=60)
    result, _ = Store(folder).recall(PARTS, work, pack=pack, unpack=unpack)
    assert result == 7


def test_two_processes_that_ask_for_the_same_work_do_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, log = context.Barrier(2), tmp_path / "log"
    processes = [context.Process(target=slow_work, args=(tmp_path / "store", log, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text(encoding="utf-8") == "done\n"


def test_a_generator_depends_on_seed_and_purpose_alone():
    def numbers(seed, purpose):
        return torch.randint(1000, (4,), generator=generator_for(seed, purpose)).tolist()

    torch.manual_seed(0)
    first = numbers(0, "neural_cleanse")
    torch.manual_seed(1)
    assert numbers(0, "neural_cleanse") == first
    assert numbers(1, "neural_cleanse") != first
    assert numbers(0, "nc_pruning:3") != first


def test_the_seed_of_a_generator_never_changes():
    """The first 7 bytes of SHA-256 of "0:neural_cleanse"; a change would make every stored verdict irreproducible."""
    assert generator_for(0, "neural_cleanse").initial_seed() == 38752902932442089
