"""The plan of a run: which pieces, how many passes, how long."""

from pathlib import Path

import pytest
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.item import Item
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.options import AuditOptions
from backdoor_audit.progress import Meter, watched_by
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run.effort import TWINS, plan, seconds_per_pass
from backdoor_audit.run.run import Run
from backdoor_audit.store import Store
from tests.subjects import Computed, assert_unchanged, row_images, row_reader, snapshot


def run_of(folder: Path, per_class: int = 30, **options: object) -> Run:
    images = row_images(per_class=per_class)
    run = Run(AuditOptions(**options), Store(folder), shipped(), module=row_reader().module, given_images=images)  # type: ignore[arg-type]
    run.check()
    return run


def names(run: Run, items: list[Item]) -> list[str]:
    made = plan(run, items)
    assert made is not None
    return [piece.name for piece in made.pieces]


def test_a_whole_run_has_a_piece_for_everything_it_does(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    found = names(run, shipped().items(run))
    assert found[:3] == [
        "the search of neural_cleanse",
        TWINS,
        "the search of patch_scan in reference twins",
    ]
    assert f"the search of {run.properties.ours[0].name}" in found
    assert len(set(found)) == len(found)


def test_too_few_images_for_any_comparison_cost_no_search_that_compares(tmp_path: Path) -> None:
    run = run_of(tmp_path, per_class=20)
    found = names(run, shipped().items(run))
    assert TWINS not in found
    comparing = {entry.name for entry in (*run.searches.detectors, *run.properties.ours) if entry.needs_twins}
    assert comparing
    assert not {f"the search of {name}" for name in comparing} & set(found)


def test_twins_that_cannot_be_trained_cost_nothing_but_their_searches_do(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    images = run.clean_set
    keep = (images.labels != 3) | (torch.arange(len(images)) % 10 == 0)
    few = CleanSet(images.images[keep], images.labels[keep])
    run = Run(AuditOptions(), Store(tmp_path), shipped(), module=row_reader().module, given_images=few)
    found = names(run, [Item.parse("audit::test_anomaly_index[smooth-class_1]")])
    assert found == ["the search of smooth"]


@pytest.mark.parametrize(
    ("items", "pieces"),
    [
        ([Item("precondition", "accuracy")], []),
        (
            [Item.parse("audit::test_anomaly_index[smooth-class_1]")],
            [TWINS, "the search of smooth in reference twins", "the search of smooth"],
        ),
        (
            [Item.parse("audit::test_property[a_no_op_trigger_changes_nothing]")],
            ["the search of a_no_op_trigger_changes_nothing"],
        ),
    ],
)
def test_a_part_of_a_run_has_the_pieces_that_its_items_need(
    tmp_path: Path, items: list[Item], pieces: list[str]
) -> None:
    assert names(run_of(tmp_path), items) == pieces


def test_work_that_is_kept_costs_nothing_more(tmp_path: Path) -> None:
    run = run_of(tmp_path, profile="quick", steps=3)
    items = [Item.parse("audit::test_anomaly_index[neural_cleanse-class_1]")]
    before = plan(run, items)
    run.searches.detection("neural_cleanse")
    after = plan(run_of(tmp_path, profile="quick", steps=3), items)
    assert before is not None
    assert after is not None
    assert [piece.kept for piece in (*before.pieces, *after.pieces)] == [False, True]
    assert after.passes < before.passes


def test_the_pieces_are_called_as_the_run_calls_them(tmp_path: Path) -> None:
    run, meter = run_of(tmp_path, profile="quick", steps=2), Meter()
    made = plan(run, shipped().items(run))
    with watched_by(meter):
        for _ in shipped().answers(run):
            pass
    assert made is not None
    assert {piece.name for piece in made.pieces if not piece.on_demand} == meter.finished - {"the preconditions"}


def test_a_model_that_sleeps_is_slower_by_that(tmp_path: Path) -> None:
    import time

    def sleeping(images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return row_reader()(images)

    slow = Classifier.wrap(Computed(sleeping), image_shape=(1, 8, 8))
    clean = row_images()
    assert seconds_per_pass(slow, clean, patience=0.05) * 4096 >= 0.02


def test_a_clock_that_stands_still_does_not_keep_the_speed_from_being_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    assert seconds_per_pass(row_reader(), row_images(), patience=0.05) > 0


def test_measuring_leaves_the_model_and_the_random_state_alone() -> None:
    classifier = row_reader()
    before, state = snapshot(classifier.module), torch.get_rng_state()
    seconds_per_pass(classifier, row_images(), patience=0.05)
    assert_unchanged(before, classifier.module)
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_without_gradients_has_no_plan(tmp_path: Path) -> None:
    module = Computed(lambda images: images.detach().flatten(1)[:, :8].round())
    run = Run(AuditOptions(), Store(tmp_path), shipped(), module=module, given_images=row_images())
    assert plan(run, [Item("precondition", "accuracy")]) is None
