"""What holds for every test here, and for no audit: one thread for each process, a temporary folder that goes with the run, and
a process that gates are begun from.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator

import pytest

from tests.subjects.warm import Warm


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: a second thread costs more than it does, most of all where workers share the cores.

    Processes that a test starts have one as well. The audits of this repository are no tests and take what they get.
    """
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder() -> Iterator[None]:
    """What a killed process leaves in its temporary folder goes with the run.

    It is none of pytest's folders: a browser has sockets in it, whose paths may have 107 bytes.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def imported_for_good() -> None:
    """What was imported and collected stays to the end: looking through it again for garbage takes a twentieth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def brief_look() -> Iterator[None]:
    """How fast a toy is need not be known well: what a gate tells of its pace is looked at where it is made."""
    from backdoor_audit.run import effort

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "_A_LOOK", 0.02)
        patch.setattr(effort, "_A_MEASUREMENT", 0.05)
        yield


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """What begins a gate in a process of its own."""
    kept = Warm()
    yield kept
    kept.close()
