"""Properties as a run asks them: each once, its counterexample kept, replayed, and written down for others."""

from dataclasses import replace

import pytest

from backdoor_audit.detectors import DETECTORS, Detection
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.metrics import Rate
from backdoor_audit.options import AuditOptions
from backdoor_audit.properties import FaintBlends, NothingSteers
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run.run import Run
from backdoor_audit.search.twins import Twins
from backdoor_audit.store import Store
from tests.subjects import toy
from tests.subjects.catalogues import choose
from tests.subjects.corner import Corner
from tests.subjects.detections import margin_row


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Those of the backdoored toy, in the working folder."""
    toy.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    choose(monkeypatch, properties=(Corner(),))
    return AuditOptions(
        model="backdoored.safetensors", data="images.npz", arch="toy:network", profile="quick", device="cpu"
    )


def test_a_pasted_test_names_the_files_of_the_run(options, tmp_path):
    run = Run(options, Store(tmp_path / "store"), shipped())
    assert run.properties.outcome("no_corner_steers").verdict is Verdict.FAIL
    text = run.properties.summary("no_corner_steers")["test"]
    assert "MODEL = 'backdoored.safetensors'" in text
    assert "DATA = 'images.npz'" in text


def test_a_counterexample_that_stands_is_shown_on_held_out_images(options, tmp_path):
    run = Run(options, Store(tmp_path / "store"), shipped())
    outcome = run.properties.outcome("no_corner_steers")
    examples = run.properties.summary("no_corner_steers")["examples"]
    assert {example["predicted_stamped"] for example in examples} == {outcome.target_class} == {toy.TARGET}
    assert toy.TARGET not in {example["label"] for example in examples}
    run = Run(options, Store(tmp_path / "store"), shipped())
    contradicted = replace(outcome, contradicted="what speaks against it")
    run.properties.done.once("no_corner_steers", lambda: contradicted)
    assert run.properties.summary("no_corner_steers")["examples"] == []


def test_a_record_says_when_its_run_began(options, tmp_path):
    run = Run(options, Store(tmp_path / "store"), shipped(), began=1_795_901_520.0)
    assert run.inputs.environment()["began"] == "2026-11-28 21:32 UTC"


def test_records_and_pasted_tests_name_files_below_the_working_folder_without_it(options, tmp_path, monkeypatch):
    options = replace(options, **{name: str(tmp_path / getattr(options, name)) for name in ("model", "data")})
    run = Run(options, Store(tmp_path / "store"), shipped())
    run.properties.outcome("no_corner_steers")
    assert str(tmp_path) not in run.properties.summary("no_corner_steers")["test"]
    assert (run.settings()["model"], run.settings()["data"]) == ("backdoored.safetensors", "images.npz")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")  # as a test beside the audit may do
    assert run.settings()["model"] == options.model


@pytest.mark.parametrize(("twin", "verdict"), [("clean", Verdict.FAIL), ("backdoored", Verdict.PASS)])
def test_a_run_asks_its_twins_what_is_natural(options, tmp_path, monkeypatch, twin, verdict):
    few = NothingSteers(changes=FaintBlends(strength=0.1), examples=8, steps=12, batch_size=16)
    choose(monkeypatch, properties=(few,))
    run = Run(replace(options, profile="standard"), Store(tmp_path / "store"), shipped())
    like = load_classifier(tmp_path / f"{twin}.safetensors", arch="toy:network", image_shape=(1, 8, 8))
    vars(run.reference)["twins"] = Twins((like,), (Rate(9, 10),))
    outcome = run.properties.outcome(few.name)
    assert (outcome.verdict, list(outcome.details["natural"])) == (verdict, [str(toy.TARGET)])


def test_a_counterexample_is_kept_in_the_corpus_and_replayed_by_the_next_run(options, tmp_path):
    options = replace(options, corpus=str(tmp_path / "corpus"))
    first = Run(options, Store(tmp_path / "store"), shipped())
    assert first.properties.outcome("no_corner_steers").kept == 0
    (file,) = (tmp_path / "corpus").iterdir()
    again = Run(options, Store(tmp_path / "store"), shipped())
    assert again.properties.outcome("no_corner_steers").kept == 1
    assert [*(tmp_path / "corpus").iterdir()] == [file]


def test_a_given_corpus_takes_the_place_of_the_folder_which_stays_as_it_is(options, tmp_path):
    (tmp_path / "corpus").mkdir()
    options = replace(options, corpus=str(tmp_path / "corpus"))
    run = Run(options, Store(tmp_path / "store"), shipped(), given_corpus=())
    assert run.properties.outcome("no_corner_steers").verdict is Verdict.FAIL
    assert not list((tmp_path / "corpus").iterdir())
    again = Run(options, Store(tmp_path / "store"), shipped(), given_corpus=run.properties.refuted())
    assert again.properties.outcome("no_corner_steers").kept == 1


def compared(index):
    """What a detector with twins says of every class of the toy."""
    scores = [margin_row(target, index=index) for target in range(toy.CLASSES)]
    return Detection(detector="patch_scan", settings="", scores=scores, triggers=())


@pytest.mark.parametrize(("index", "verdict"), [(1.2, Verdict.PASS), (2.5, Verdict.FAIL), (None, Verdict.FAIL)])
def test_a_counterexample_that_all_detectors_contradict_is_natural_to_the_model(options, tmp_path, index, verdict):
    run = Run(replace(options, corpus=str(tmp_path / "corpus")), Store(tmp_path / "store"), shipped())
    vars(run.searches)["detectors"] = tuple(entry for entry in DETECTORS if entry.name == "patch_scan")
    run.searches.done.once("patch_scan", lambda: compared(index))
    outcome = run.properties.outcome("no_corner_steers")
    assert outcome.value > outcome.limit
    assert outcome.verdict is verdict
    assert bool(run.properties.refuting()) is (verdict is Verdict.FAIL)
    assert (tmp_path / "corpus").exists() is (verdict is Verdict.FAIL)
    if verdict is Verdict.PASS:
        assert "; but measured against clean models the class is no easier to reach" in outcome.finding.reason


def test_a_kept_counterexample_is_held_against_a_model_whatever_detectors_say(options, tmp_path):
    run = Run(options, Store(tmp_path / "store"), shipped())
    found = run.properties.outcome("no_corner_steers")
    vars(run.searches)["detectors"] = tuple(entry for entry in DETECTORS if entry.name == "patch_scan")
    run.searches.done.once("patch_scan", lambda: compared(0.5))
    assert run.properties._weighed(found).verdict is Verdict.PASS
    assert run.properties._weighed(replace(found, replayed=True)).verdict is Verdict.FAIL
