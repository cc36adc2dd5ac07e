"""The benchmark for GPUs, as far as a CPU can show it: sizes are those of a toy."""

import sys

import pytest
import torch

from backdoor_audit.model.networks import build_network
from benchmarks import device as module
from benchmarks.device import Subject, line, loops, prepared, throughput

TINY = Subject(
    "tiny", 8, 4, lambda classes: build_network("small_vgg", num_classes=classes, in_channels=3, width=2), 3, 16
)


@pytest.fixture(scope="module")
def tiny():
    return prepared(TINY, torch.device("cpu"))


def test_every_loop_is_measured_beside_the_bare_network(tiny):
    rows = list(loops(*tiny, 1000.0, 60))
    assert [row["what"] for row in rows] == ["loop of neural_cleanse", "loop of additive", "loop of patch_scan"]
    for row in rows:
        assert row["share_of_bare"] == pytest.approx(row["passes_per_second"] / 1000)
        assert row["passes"] > 0


def test_a_loop_without_time_left_says_so(tiny):
    assert "BudgetSpentError" in next(loops(*tiny, 1.0, 0.0))["error"]


def test_bare_passes_are_measured_in_both_precisions_and_a_compiler_that_fails_is_a_row(tiny, monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(module, "_BATCHES", (4,))
    rows = list(throughput(tiny[0], 0.01))
    assert [row["what"].split(",")[0] for row in rows] == ["bare", "bare", "compiled"]
    assert all(row["passes_per_second"] > 0 for row in rows[:2])
    assert rows[2]["error"] == "RuntimeError: no compiler"


def test_a_row_is_one_line():
    row = {"network": "n", "what": "w", "rate": 0.12345, "batch": 4}
    assert line(row).split() == ["n", "w", "rate", "0.123,", "batch", "4"]


def test_without_a_card_the_script_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["device"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        module.main()
    assert "--device cpu --small tries the script without one" in capsys.readouterr().err
