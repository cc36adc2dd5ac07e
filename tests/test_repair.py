"""A repaired file: written only when it holds, and loaded and audited again before that."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from backdoor_audit import repair as module
from backdoor_audit.errors import OptionError
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.metrics import attack_success_rate, clean_accuracy
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import Suite, shipped
from backdoor_audit.repair import Attempt, repair, summary
from backdoor_audit.repairs import REPAIRS, NeuronPruning, RepairOutcome, RepairResult, Scores
from backdoor_audit.run.run import Run
from backdoor_audit.store import Store
from tests.subjects import toy
from tests.subjects.catalogues import choose
from tests.subjects.corner import Corner
from tests.subjects.packages import install
from tests.subjects.suites import OWN

ARCH = "tests.test_repair:network"


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, toy.CLASSES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repair")
    toy.write(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def options(folder, name="backdoored", **changes):
    given = {"arch": ARCH, "profile": "quick", "steps": 150, "device": "cpu"}
    return AuditOptions(
        model=str(folder / f"{name}.safetensors"), data=str(folder / "images.npz"), **{**given, **changes}
    )


def test_a_backdoored_model_is_repaired_and_its_file_passes(folder, store, tmp_path):
    out, lines = tmp_path / "fixed.safetensors", []
    before = (folder / "backdoored.safetensors").read_bytes()
    attempts = repair(options(folder), out, store=store, tell=lines.append)
    assert attempts[-1].refused == ""
    assert all(attempt.refused for attempt in attempts[:-1])
    assert [line.partition(":")[0] for line in lines] == [attempt.method for attempt in attempts]
    assert lines[-1].count("loaded again and audited again: pass") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["fixed.safetensors"]
    assert (folder / "backdoored.safetensors").read_bytes() == before
    assert summary(attempts, out) == f"written: {out}, repaired by {attempts[-1].method}"
    run = Run(options(folder), store, shipped())
    trigger, val = run.flagged.triggers[0], run.inputs.halves[1]
    fixed = load_classifier(out, arch=ARCH)
    assert trigger.target_class == toy.TARGET
    assert attack_success_rate(run.classifier, val.images, val.labels, trigger) > 0.9
    found = attack_success_rate(fixed, val.images, val.labels, trigger)
    assert found == pytest.approx(attempts[-1].after[0].attack_success_rate, abs=1e-6)
    assert found <= 0.1
    drop = clean_accuracy(run.classifier, val.images, val.labels) - clean_accuracy(fixed, val.images, val.labels)
    assert drop <= 0.03
    again = Run(replace(options(folder), model=str(out)), store, shipped())
    assert not again.flagged.triggers


def test_a_network_that_no_file_of_weights_can_name_is_refused_before_any_search(folder, store, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "check", lambda _self: pytest.fail("it was searched"))
    whole = network()
    whole.load_state_dict(toy.weights(backdoored=True))
    torch.save(whole, tmp_path / "backdoored.pt")
    asked = replace(options(folder, arch="", allow_pickle=True), model=str(tmp_path / "backdoored.pt"))
    with pytest.raises(
        OptionError, match=r"a repaired copy of Sequential could not be written, .*--arch=package.module:factory"
    ):
        repair(asked, tmp_path / "fixed.safetensors", store=store)


def test_where_nothing_is_flagged_nothing_is_tried_or_written(folder, store, tmp_path):
    out = tmp_path / "fixed.safetensors"
    attempts = repair(options(folder, "clean"), out, store=store)
    assert attempts == ()
    assert not list(tmp_path.iterdir())
    assert summary(attempts, out).startswith("no trigger that a repair can work against was flagged")


class Fake:
    """A repair with a given end: nothing done, or a network that answers one class."""

    needs_trigger = True

    def __init__(self, name, *, ruins=False, applicable=True):
        self.name, self.ruins, self.applicable = name, ruins, applicable

    def __call__(self, subject, trigger, *, generator):
        if not self.applicable:
            outcome = RepairOutcome(method=self.name, settings="", target_class=0, not_applicable="no batch norm")
            return RepairResult(outcome, None)
        copy = subject.classifier.copy()
        if self.ruins:
            with torch.no_grad():
                copy.module[1].bias[0] = 1000.0
        return RepairResult(RepairOutcome(method=self.name, settings="", target_class=0), copy)


def test_methods_that_do_not_hold_are_told_with_their_reason_and_leave_no_file(folder, store, tmp_path, monkeypatch):
    fakes = (Fake("idle"), Fake("ruin", ruins=True), Fake("absent", applicable=False))
    choose(monkeypatch, repairs=fakes)
    out = tmp_path / "fixed.safetensors"
    out.write_bytes(b"kept")
    attempts = repair(options(folder), out, store=store)
    reasons = [attempt.refused for attempt in attempts]
    assert reasons[0] == "the trigger still works (limit 10%)"
    assert reasons[1].startswith("it costs ")
    assert reasons[2] == "no batch norm"
    assert out.read_bytes() == b"kept"
    assert [file.name for file in tmp_path.iterdir()] == ["fixed.safetensors"]
    assert summary(attempts, out) == "no method held (3 tried): nothing is written"


def test_a_draft_is_neither_the_file_that_was_asked_for_nor_one_of_somebody_else(folder, store, tmp_path):
    asked, theirs = tmp_path / "fixed.partial", tmp_path / "other.partial"
    theirs.write_bytes(b"precious")
    for out in (asked, tmp_path / "other.safetensors"):
        assert not repair(options(folder), out, store=store)[-1].refused
    assert asked.is_file()
    assert theirs.read_bytes() == b"precious"


def test_a_method_that_only_meets_the_limits_is_taken_when_none_reaches_the_aim(folder, store, tmp_path, monkeypatch):
    """The first leaves more of the trigger than is aimed at, the second ruins the network: the first is what there is."""
    found = repair(options(folder), tmp_path / "reached.safetensors", store=store)[-1]
    working = next(entry for entry in REPAIRS if entry.name == found.method)
    choose(monkeypatch, repairs=(working, Fake("ruin", ruins=True)))
    monkeypatch.setattr(module, "AIM", {"attack_success_rate": -1.0})
    out = tmp_path / "fixed.safetensors"
    attempts = repair(options(folder), out, store=store)
    assert [attempt.method for attempt in attempts] == [found.method, "ruin", found.method]
    assert [attempt.reserve for attempt in attempts] == [True, False, False]
    assert attempts[0].refused.startswith("in reserve, the trigger still works")
    assert attempts[-1].refused == ""
    assert out.exists()


def test_a_method_that_costs_more_than_is_aimed_at_is_not_taken_unless_it_is_named(
    folder, store, tmp_path, monkeypatch
):
    out = tmp_path / "fixed.safetensors"
    method = repair(options(folder), out, store=store)[-1].method
    out.unlink()
    choose(monkeypatch, repairs=(next(entry for entry in REPAIRS if entry.name == method),))
    monkeypatch.setattr(module, "AIM", {"clean_accuracy_drop": -1.0})
    (attempt,) = repair(options(folder), out, store=store)
    assert attempt.refused.startswith("it costs ")
    assert (attempt.reserve, out.exists()) == (False, False)
    assert repair(options(folder), out, method=method, store=store)[-1].refused == ""
    assert out.exists()


class Partial(Fake):
    """Removes the trigger, and answers one class of the images that it is given as another."""

    def __call__(self, subject, trigger, *, generator):
        result = NeuronPruning()(subject, trigger, generator=generator)
        known = subject.search_set.images[:60]

        class Odd(torch.nn.Module):
            def __init__(self, inside):
                super().__init__()
                self.inside = inside

            def forward(self, images):
                scores = self.inside(images)
                seen = (images[:, None] == known[None]).flatten(2).all(2).any(1)
                return torch.where(seen[:, None], scores.roll(1, dims=1), scores)

        odd = replace(result.classifier, module=Odd(result.classifier.module).eval())
        return RepairResult(result.outcome, odd)


def test_what_is_lost_on_the_images_that_a_method_was_given_counts_as_well(folder, store, tmp_path, monkeypatch):
    """A few hundred held-out images may miss what pruning costs; those that it did not learn from say it as well."""
    choose(monkeypatch, repairs=(Partial("partial"),))
    (attempt,) = repair(options(folder), tmp_path / "fixed.safetensors", method="partial", store=store)
    assert attempt.lost_held_out < attempt.drop == attempt.lost_given
    assert re.fullmatch(
        r"it costs \d+\.\d% of clean accuracy on the images that it was given \(limit 3\.0%\)", attempt.refused
    )


class Forgetful(Fake):
    """Takes several triggers; the first time it does nothing, with more of them it does what pruning does."""

    def __init__(self, name, *, enough):
        super().__init__(name)
        self.enough, self.seen = enough, []

    def together(self, subject, triggers, *, generator):
        self.seen.append(len(triggers))
        if len(triggers) < self.enough:
            return RepairResult(RepairOutcome(method=self.name, settings="", target_class=0), subject.classifier.copy())
        return NeuronPruning()(subject, triggers[0], generator=generator)


def test_unlearning_runs_again_with_the_triggers_that_are_still_found(folder, store, tmp_path, monkeypatch):
    method = Forgetful("forgetful", enough=2)
    choose(monkeypatch, repairs=(method,))
    lenient = options(folder)
    lenient = replace(lenient, limits={"attack_success_rate": 1.0})
    (attempt,) = repair(lenient, tmp_path / "fixed.safetensors", method="forgetful", store=store)
    assert method.seen == [1, 2]
    assert (attempt.rounds, attempt.refused) == (2, "")
    assert attempt.after[0].attack_success_rate <= 0.1


def test_a_repair_that_only_fools_the_found_trigger_is_not_taken(folder, store, tmp_path, monkeypatch):
    """With limits that let anything pass, the audit of the written file still finds the backdoor."""
    choose(monkeypatch, repairs=(Fake("idle"),))
    lenient = options(folder)
    lenient = replace(lenient, limits={"attack_success_rate": 1.0})
    (attempt,) = repair(lenient, tmp_path / "fixed.safetensors", method="idle", store=store)
    assert attempt.refused.startswith(f"audited again: fail, neural_cleanse: class {toy.TARGET}")
    assert not list(tmp_path.iterdir())


def test_what_refutes_a_property_is_repaired_where_no_detector_sees_anything(folder, store, tmp_path, monkeypatch):
    """Its trigger is what repairs work against, and the repaired file is asked the same, its counterexample first."""
    choose(monkeypatch, properties=(Corner(),))
    blind = options(folder)
    blind = replace(blind, limits={"anomaly_index": 1000.0})
    run = Run(blind, store, Suite.of(blind))
    (trigger,) = run.flagged.triggers
    assert trigger.mask.nonzero().tolist() == [[0, 7, 7]]
    assert [beside.target_class for beside in run.flagged.beside()] == [toy.TARGET]
    out = tmp_path / "fixed.safetensors"
    assert repair(blind, out, store=store)[-1].refused == ""
    again = Run(replace(blind, model=str(out)), store, Suite.of(blind), given_corpus=run.properties.refuted())
    assert (
        again.properties.outcome("no_corner_steers").verdict,
        again.properties.outcome("no_corner_steers").kept,
    ) == (Verdict.PASS, 1)
    assert run.properties.refuted()
    assert not again.properties.refuted()
    assert not again.flagged.triggers


def test_a_repair_that_leaves_a_property_refuted_is_not_taken(folder, store, tmp_path, monkeypatch):
    choose(monkeypatch, repairs=(Fake("idle"),))
    choose(monkeypatch, properties=(Corner(),))
    blind = options(folder)
    blind = replace(blind, limits={"attack_success_rate": 1.0, "anomaly_index": 1000.0})
    (attempt,) = repair(blind, tmp_path / "fixed.safetensors", method="idle", store=store)
    assert attempt.refused.startswith("audited again: fail, no_corner_steers")
    assert not list(tmp_path.iterdir())


def test_what_refutes_a_property_stands_beside_the_triggers_of_detectors(folder, store, monkeypatch):
    choose(monkeypatch, properties=(Corner(),))
    run = Run(options(folder), store, shipped())
    assert [trigger.target_class for trigger in run.flagged.triggers] == [toy.TARGET]
    assert not torch.equal(run.flagged.triggers[0].mask, run.properties.refuting()[0].mask)
    assert [trigger.mask.nonzero().tolist() for trigger in run.flagged.beside()] == [[[0, 7, 7]]]


def test_a_file_that_answers_otherwise_is_not_taken(folder, store, tmp_path, monkeypatch):
    choose(monkeypatch, repairs=(Fake("idle"),))
    monkeypatch.setattr(module, "_outside", lambda *_: "")
    saved = module.save_classifier

    def another(classifier, path, **notes):
        copy = classifier.copy()
        with torch.no_grad():
            copy.module[1].bias += torch.arange(float(toy.CLASSES))
        saved(copy, path, **notes)

    monkeypatch.setattr(module, "save_classifier", another)
    (attempt,) = repair(options(folder), tmp_path / "fixed.safetensors", store=store)
    assert attempt.refused == "its file gives other answers than the repaired network"


@pytest.mark.parametrize(
    "own", ["", "from backdoor_audit.questions import Skipped\nFlipDrop.answer = lambda *_: Skipped('not today')\n"]
)
def test_a_file_about_which_a_suite_says_nothing_is_not_taken(folder, store, tmp_path, monkeypatch, own):
    choose(monkeypatch, repairs=(Fake("idle"),))
    monkeypatch.setattr(module, "_outside", lambda *_: "")
    suite = tmp_path / "mine"
    suite.mkdir()
    shutil.copy(shipped().folder / "test_precondition.py", suite)
    if own:
        (suite / "test_flip_drop.py").write_text(OWN + own)
    (attempt,) = repair(options(folder, suite=str(suite)), tmp_path / "fixed.safetensors", store=store)
    assert attempt.refused.startswith("no question of the suite about the model has an answer")
    assert not (tmp_path / "fixed.safetensors").exists()


def test_one_method_can_be_named_and_others_are_refused(folder, store, tmp_path):
    out = tmp_path / "fixed.safetensors"
    attempts = repair(options(folder), out, method="nc_unlearning", store=store)
    assert [attempt.method for attempt in attempts] == ["nc_unlearning"]
    with pytest.raises(OptionError, match=f"no method 'magic'; accepted: auto, {REPAIRS[0].name}"):
        repair(options(folder), out, method="magic", store=store)


OTHERS = """
from dataclasses import dataclass
from backdoor_audit.detectors import ByMargin, Detection, Row
from backdoor_audit.repairs import NeuronPruning

@dataclass(frozen=True)
class Mends:
    name: str
    raises: bool = False
    needs_trigger = True

    def __call__(self, *arguments, generator):
        return 1 / 0 if self.raises else NeuronPruning()(*arguments, generator=generator)

@dataclass(frozen=True)
class Alarm:
    name: str = "alarm"
    rows, needs_twins, builds_on, least_classes, blind_spots = "target", False, (), 2, ()

    def targets(self, num_classes):
        return (0,)

    def __call__(self, subject, **_):
        measured = ByMargin(margin=1.0)
        score = Row(target_class=0, success_val=1.0, index=9.0, p_value=0.0, image_passes=1, measured=measured)
        return Detection(detector="alarm", settings="", scores=[score], triggers=())

mends, breaks, alarm = Mends("mends"), Mends("breaks", raises=True), Alarm()
"""


def test_a_repair_of_another_package_can_be_chosen_and_its_advice_refuses_no_file(folder, store, tmp_path, monkeypatch):
    points = {"repairs": ("breaks = breaks", "mends = mends"), "detectors": ("alarm = alarm",)}
    install(monkeypatch, tmp_path / "packages", OTHERS, points)
    out = tmp_path / "fixed.safetensors"
    (broken,) = repair(options(folder), out, method="breaks", store=store)
    assert broken.refused == "breaks of example-parts 1.2: ZeroDivisionError: division by zero"
    assert not out.exists()
    (mended,) = repair(options(folder), out, method="mends", store=store)
    assert (mended.method, mended.refused) == ("mends", "")
    assert out.exists()
    with pytest.raises(OptionError, match=f"no method 'mends'; accepted: auto, {REPAIRS[0].name}"):
        repair(replace(options(folder), plugins="off"), out, method="mends", store=store)


class Stowed:
    """A planted backdoor that some methods leave."""

    called = "blend of 0.2 for class 0"

    def __init__(self, left):
        self.rates = left

    def left(self, method, triggers, *, also, generator):
        assert triggers
        assert generator.initial_seed()
        return self.rates[method.name]


def test_auto_prefers_a_method_that_cleans_a_planted_backdoor_too(folder, store, tmp_path, monkeypatch):
    working = next(entry for entry in REPAIRS if entry.name == "nc_pruning")
    first, second = Renamed(working, "first"), Renamed(working, "second")
    choose(monkeypatch, repairs=(Fake("ruin", ruins=True), second, first))
    monkeypatch.setattr(module, "PREFERRED", ("first", "second"))
    monkeypatch.setattr(module, "_stowaway", lambda _run: Stowed({"first": 0.9, "second": 0.1}))
    attempts = repair(options(folder), tmp_path / "fixed.safetensors", store=store)
    assert [(attempt.method, attempt.canary, bool(attempt.refused)) for attempt in attempts] == [
        ("first", 0.9, True),
        ("second", 0.1, False),
    ]
    assert "leaves a planted backdoor of another kind" in attempts[0].refused
    assert "a planted blend of 0.2 for class 0 works on 90.0% after it" in str(attempts[0])


def test_where_no_preferred_method_cleans_it_the_first_that_reaches_the_aim_is_taken(
    folder, store, tmp_path, monkeypatch
):
    working = next(entry for entry in REPAIRS if entry.name == "nc_pruning")
    choose(monkeypatch, repairs=(Fake("ruin", ruins=True), Renamed(working, "first")))
    monkeypatch.setattr(module, "PREFERRED", ("first",))
    monkeypatch.setattr(module, "_stowaway", lambda _run: Stowed({"first": 0.9}))
    attempts = repair(options(folder), tmp_path / "fixed.safetensors", store=store)
    assert [(attempt.method, bool(attempt.refused)) for attempt in attempts] == [("first", True), ("first", False)]
    assert attempts[-1].learnt_again is not None
    assert [attempt.canary for attempt in attempts] == [0.9, 0.9]


class Renamed:
    """Another method under this name."""

    needs_trigger = True

    def __init__(self, method, name):
        self.method, self.name = method, name

    def __call__(self, subject, trigger, *, generator):
        return self.method(subject, trigger, generator=generator)


def test_a_trigger_that_a_few_images_bring_back_is_a_warning():
    scores = Scores(0.9, 0.9, 0.1), Scores(0.9, 0.0, 0.9)
    attempt = Attempt(method="m", classes=(1,), before=scores[:1], after=scores[1:], learnt_again=0.8)
    assert "warning: 5 stamped images bring the trigger back to 80.0%" in str(attempt)
    assert "warning" not in str(replace(attempt, learnt_again=0.4))
