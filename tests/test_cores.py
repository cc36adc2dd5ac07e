"""Which cores a process may use, and how its threads share them."""

import os
import sys

import pytest

from backdoor_audit import cores


def grouped(root, *, version, quota, period=100_000):
    """A machine whose process is in a group without a bound, inside of one that has one."""
    first = version == 1
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("4:memory:/other\n3:cpu,cpuacct:/pod/box\n" if first else "0::/pod/box\n")
    inner = root / "sys/fs/cgroup" / ("cpu" if first else "") / "pod/box"
    inner.mkdir(parents=True)
    for folder, value in ((inner, None), (inner.parent, quota)):
        if first:
            (folder / "cpu.cfs_quota_us").write_text(f"{-1 if value is None else value}\n")
            (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
        else:
            (folder / "cpu.max").write_text(f"{'max' if value is None else value} {period}\n")
    return root


@pytest.fixture
def many_cores(monkeypatch):
    """A machine of sixteen cores, all of them for this process."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("quota", "expected"), [(200_000, 2), (250_000, 3), (5_000, 1), (6_400_000, 16), (None, 16)])
def test_a_container_bounds_the_cores_of_its_processes(tmp_path, many_cores, version, quota, expected):
    assert cores.available(grouped(tmp_path, version=version, quota=quota)) == expected


@pytest.mark.parametrize("text", ["", "max", "200000", "1 0", "many words\n", "\udcff"])
def test_a_bound_that_cannot_be_read_is_none(tmp_path, many_cores, text):
    grouped(tmp_path, version=2, quota=100_000)
    (tmp_path / "sys/fs/cgroup/pod/cpu.max").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert cores.available(tmp_path) == 16


def test_a_process_that_is_bound_to_some_cores_has_no_others(tmp_path, monkeypatch, many_cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 7}, raising=False)
    assert cores.available(tmp_path) == 2


@pytest.mark.parametrize(
    ("processes", "bound", "threads"),
    [(1, 16, None), (1, 2, "2"), (2, 16, "8"), (3, 16, "5"), (40, 16, "1"), (0, 4, "4")],
)
def test_each_process_gets_its_share(monkeypatch, many_cores, processes, bound, threads):
    environment = {}
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    cores.share(processes, environment, bound)
    assert environment.get("OMP_NUM_THREADS") == threads


def test_a_number_of_threads_that_somebody_has_set_stays(many_cores):
    environment = {"OMP_NUM_THREADS": "3"}
    cores.share(2, environment, 16)
    assert environment == {"OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "4000"), ({"GOMP_SPINCOUNT": "3"}, "3"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_wait_asleep_unless_somebody_has_said_how(monkeypatch, given, expected):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environment = dict(given)
    cores.wait_asleep(environment)
    assert environment.get("GOMP_SPINCOUNT") == expected


def test_where_torch_is_there_already_nothing_is_said_any_more(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    environment = {}
    cores.wait_asleep(environment)
    assert environment == {}
