"""What holds for every test here, and for no audit: one thread for each process, and one that gates are begun from."""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """What begins a gate in a process of its own."""
    kept = Warm()
    yield kept
    kept.close()
