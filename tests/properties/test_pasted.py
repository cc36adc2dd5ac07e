"""The test that a counterexample becomes."""

import ast

import pytest
import torch._dynamo
import torchvision

import backdoor_audit.gate
from backdoor_audit.properties import PropertyOutcome, pasted_test
from backdoor_audit.triggers.written import Change, Numbers, Patch
from fixtures import IMAGES, MODELS
from tests.subjects import toy

PRELOADED = (torch._dynamo, torchvision.models, backdoor_audit.gate)
"""pytester forgets modules that a run inside this process imports; torch does not survive a second first import."""

WHITE = Patch(colours=Numbers((1, 3, 3), (255,) * 9), top=24, left=24, target_class=7)
PIXEL = Patch(colours=Numbers((1, 1, 1), (255,)), top=7, left=7, target_class=toy.TARGET)


def outcome(trigger, name="no_small_patch_steers"):
    return PropertyOutcome(name=name, statistic="steered_share", value=0.9, limit=0.6, reason="found", trigger=trigger)


def write(folder, text):
    (folder / "test_pasted.py").write_text(text, encoding="utf-8")


def run(pytester, monkeypatch, *arguments):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "test_pasted.py", *arguments)


@pytest.mark.parametrize(("model", "fails"), [("badnets", True), ("clean", False), ("clean_other", False)])
def test_the_pasted_test_fails_on_the_backdoored_model_and_passes_on_clean_ones(pytester, monkeypatch, model, fails):
    text = pasted_test(outcome(WHITE), model=str(MODELS / f"{model}.safetensors"), data=str(IMAGES))
    write(pytester.path, text)
    result = run(pytester, monkeypatch)
    result.assert_outcomes(failed=int(fails), passed=int(not fails))
    if fails:
        result.stdout.fnmatch_lines(["*of 900 images of other classes go to class 7*"])


@pytest.mark.parametrize(("model", "fails"), [("backdoored", True), ("clean", False)])
def test_the_model_of_the_command_line_comes_before_the_one_in_the_file(pytester, monkeypatch, model, fails):
    toy.write(pytester.path)
    monkeypatch.syspath_prepend(str(pytester.path))
    write(pytester.path, pasted_test(outcome(PIXEL), model="absent.safetensors", data="absent.npz"))
    options = (f"--model={model}.safetensors", "--data=images.npz", "--arch=toy:network", "--device=cpu")
    run(pytester, monkeypatch, *options).assert_outcomes(failed=int(fails), passed=int(not fails))


def test_loading_follows_the_options_of_the_run(pytester, monkeypatch):
    toy.write(pytester.path)
    monkeypatch.syspath_prepend(str(pytester.path))
    text = pasted_test(
        outcome(PIXEL),
        model="backdoored.safetensors",
        data="images.npz",
        loading={"arch": "toy:network", "mean": (0.0,), "std": (1.0,)},
    )
    write(pytester.path, text)
    run(pytester, monkeypatch).assert_outcomes(failed=1)


def test_without_a_model_the_test_says_what_it_needs(pytester, monkeypatch):
    write(pytester.path, pasted_test(outcome(WHITE)))
    result = run(pytester, monkeypatch)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no model: pass --model=PATH and --data=IMAGES*"])


@pytest.mark.parametrize("path", ['a"""b\'', "back\\slash\n", "{braces}", "x'); import os; ('"])
def test_no_path_ends_a_string(path):
    text = pasted_test(outcome(WHITE), model=path, data=path, loading={"arch": path})
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert constants["MODEL"] == constants["DATA"] == constants["LOADING"]["arch"] == path
    assert constants["TRIGGER"] == WHITE.spec()
    assert constants["LIMIT"] == 0.6


def test_a_long_trigger_stays_readable():
    change = Change(levels=Numbers((3, 32, 32), tuple(value % 21 - 10 for value in range(3072))))
    text = pasted_test(outcome(change))
    assert max(map(len, text.splitlines())) <= 130
    assert len(text) < 10_000


def test_an_outcome_without_a_counterexample_has_no_test():
    assert pasted_test(outcome(None)) is None
