from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.search import inversion as module
from backdoor_audit.search.cost_controller import CostController
from backdoor_audit.search.inversion import TriggerInversion, _batches_without
from tests.subjects.common import quick, seeded
from tests.subjects.networks import Computed, random_network
from tests.subjects.patches import PatchDetector
from tests.subjects.pixels import pixel_images, pixel_reader
from tests.subjects.rows import row_images, row_reader
from tests.subjects.unchanged import assert_unchanged, snapshot


class Controlled:
    """One class under a `CostController` with patience 5, first cost 1e-3 and multiplier 1.5; sizes fall by themselves."""

    def __init__(self, **options):
        options = {"initial": 1e-3, "multiplier": 1.5, "patience": 5, "stop_patience": 60, **options}
        self.controller = CostController(1, success_threshold=0.99, **options)
        self.size = 100.0

    def step(self, success, size=None):
        self.size = size if size is not None else 0.9 * self.size
        return tuple(
            bool(answer)
            for answer in self.controller.update(torch.tensor([0]), torch.tensor([success]), torch.tensor([self.size]))
        )

    def costs(self, successes):
        """The cost after each step."""
        found = []
        for success in successes:
            self.step(success)
            found.append(float(self.controller.cost))
        return found

    @property
    def flags(self):
        return bool(self.controller.rose), bool(self.controller.fell)


def test_the_cost_of_a_trigger_that_always_works_starts_after_five_steps_and_rises_every_five():
    costs = Controlled().costs([1.0] * 20)
    assert costs == pytest.approx([0] * 4 + [1e-3] * 4 + [1.5e-3] * 5 + [2.25e-3] * 5 + [3.375e-3] * 2)


def test_the_cost_of_a_trigger_that_never_works_stays_zero():
    controlled = Controlled()
    assert controlled.costs([0.0] * 30) == [0.0] * 30
    assert controlled.flags == (False, True)


def test_the_cost_of_a_trigger_that_works_every_other_step_stays_zero():
    controlled = Controlled()
    assert controlled.costs([1.0, 0.0] * 30) == [0.0] * 60
    assert controlled.flags == (False, False)


def test_the_cost_falls_faster_than_it_rose():
    controlled = Controlled()
    costs = controlled.costs([1.0] * 9 + [0.0] * 5)
    assert costs[-2:] == pytest.approx([1.5e-3, 1.5e-3 / 1.5**1.5])
    assert controlled.flags == (True, True)


def test_failures_before_the_cost_started_do_not_count_as_a_fall():
    controlled = Controlled()
    controlled.costs([0.0] * 5)
    assert controlled.flags == (False, True)
    controlled.costs([1.0] * 5)
    assert controlled.flags == (False, False)


def test_success_at_the_threshold_counts():
    controlled = Controlled()
    assert controlled.step(0.99)[0]
    assert not controlled.step(0.9899)[0]


def test_only_a_working_smaller_trigger_is_an_improvement():
    controlled = Controlled()
    improved = [controlled.step(*step)[0] for step in [(0.5, 10.0), (1.0, 20.0), (1.0, 20.0), (0.9, 5.0), (1.0, 19.0)]]
    assert improved == [False, True, False, False, True]
    assert float(controlled.controller.best_size) == 19.0


def test_a_class_settles_when_its_cost_rose_and_fell_and_nothing_got_smaller():
    # Patience 1: step 1 starts the cost and raises it, step 2 lowers it; the size stands still in steps 2, 3 and 4.
    controlled = Controlled(patience=1, stop_patience=3)
    settled = [controlled.step(success, size)[1] for success, size in [(1.0, 10.0), (0.0, 9.0), (0.0, 8.0), (0.0, 7.0)]]
    assert settled == [False, False, False, True]


def test_an_improvement_of_more_than_a_hundredth_starts_the_wait_again():
    controlled = Controlled(patience=1, stop_patience=3)
    steps = [(1.0, 10.0), (0.0, 9.0), (0.0, 9.0), (1.0, 9.8), (0.0, 9.0), (0.0, 9.0), (0.0, 9.0)]
    assert [controlled.step(*step)[1] for step in steps] == [False] * 6 + [True]


def test_an_improvement_of_less_than_a_hundredth_does_not():
    controlled = Controlled(patience=1, stop_patience=3)
    assert [controlled.step(*step)[1] for step in [(1.0, 10.0), (0.0, 9.0), (0.0, 9.0), (1.0, 9.95)]][-1]


def test_a_class_whose_cost_never_fell_does_not_settle():
    controlled = Controlled(patience=1, stop_patience=3)
    assert not any(controlled.step(1.0, 10.0)[1] for _ in range(30))


def test_a_size_that_fell_is_compared_with_that_of_sixty_steps_before():
    controlled = Controlled(stop_patience=10)
    sizes = [100, 90, 80, 70, 60, 50, 45, 44, 43, 42, 41, 40, 40, 40, 39, 39, 39, 38, 38, 38]
    found = []
    for size in sizes:
        controlled.step(1.0, float(size))
        found.append(float(controlled.controller.shrinkage()))
    # the cost starts at the fifth step, with size 60: what was before has not been pressed
    assert found[:14] == [1.0] * 14
    assert found[14:] == pytest.approx([1 - size / sizes[place - 10] for place, size in enumerate(sizes)][14:])


def test_a_trigger_that_never_works_for_long_has_not_been_pressed():
    controlled = Controlled(stop_patience=10)
    for step in range(60):
        controlled.step(float(step % 2), 100.0)
    assert float(controlled.controller.best_size) == 100.0
    assert float(controlled.controller.shrinkage()) == 1.0


def test_the_last_steps_of_a_class_are_its_own():
    """The second class stopped 15 steps before the first, while it still shrank."""
    controller = CostController(2, initial=1e-3, multiplier=1.5, patience=5, stop_patience=10, success_threshold=0.99)
    for step in range(40):
        rows = torch.tensor([0, 1] if step < 25 else [0])
        controller.update(rows, torch.ones(len(rows)), torch.full((len(rows),), 100 - 2.0 * min(step, 24)))
    assert controller.shrinkage().tolist() == pytest.approx([0.0, 1 - 52 / 72])


def test_classes_are_controlled_one_by_one():
    """Three classes in one controller, some of them left out of some steps, as three controllers of their own."""
    options = {"initial": 1e-3, "multiplier": 1.5, "patience": 2, "stop_patience": 4, "success_threshold": 0.9}
    together = CostController(3, **options)
    alone = [CostController(1, **options) for _ in range(3)]
    generator = seeded(4)
    for _ in range(80):
        rows = (torch.rand(3, generator=generator) < 0.8).nonzero().flatten()
        success = torch.rand(len(rows), generator=generator).sqrt() + 0.1
        size = 10 * torch.rand(len(rows), generator=generator)
        improved, settled = together.update(rows, success, size)
        for position, row in enumerate(rows.tolist()):
            one = alone[row].update(torch.tensor([0]), success[position, None], size[position, None])
            assert (bool(improved[position]), bool(settled[position])) == (bool(one[0]), bool(one[1]))
            assert float(together.cost[row]) == float(alone[row].cost)
    assert bool(together.rose.any())
    assert bool(together.fell.any())


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
    st.integers(1, 40),
    st.integers(0, 1000),
)
@quick
def test_images_of_the_target_class_are_never_drawn(labels, targets, batch_size, seed):
    labels = torch.tensor(labels)
    batches = _batches_without(labels, torch.tensor(targets), batch_size, seeded(seed))
    counts = [int((labels != target).sum()) for target in targets]
    assert batches.shape == (len(targets), min(batch_size, max(counts)) if min(counts) else 0)
    for target, batch in zip(targets, batches, strict=True):
        assert not bool((labels[batch] == target).any())
        assert len(set(batch.tolist())) == min(len(batch), int((labels != target).sum()))


def test_every_image_of_other_classes_is_drawn_as_often():
    labels, generator = torch.tensor([0, 0, 1, 1, 1, 2]), seeded(3)
    counts = torch.zeros(6)
    for _ in range(3000):
        counts[_batches_without(labels, torch.tensor([1]), 1, generator)[0]] += 1
    # three eligible images, a third each; the standard error is 0.0086
    assert (counts / 3000).tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0, 0, 1 / 3], abs=0.04)


def test_the_trigger_of_a_hand_made_patch_detector_lies_where_its_filter_looks():
    subject = Classifier.wrap(PatchDetector(), image_shape=(1, 12, 12))
    labels = torch.arange(4).repeat_interleave(15)
    images = 0.1 * torch.rand(60, 1, 12, 12, generator=seeded(5))
    for label in range(4):
        images[labels == label, :, 3 * label : 3 * label + 3] += 0.8
    inversions = TriggerInversion()(subject, CleanSet(images, labels), generator=seeded(1))
    planted = inversions[3]
    assert planted.reached
    assert planted.attack_success_rate >= 0.95
    mask = planted.trigger.mask[0]
    assert float(mask[2:5, 2:5].sum() / mask.sum()) >= 0.8
    assert all(not other.reached or other.size >= 3 * planted.size for other in inversions[:3])
    assert any(other.reached for other in inversions[:3])


def search(subject=None, clean=None, *, seed=1, **options):
    options = {"steps": 12, "batch_size": 8, "extension": 0.0, **options}
    classes = options.pop("classes", None)
    return TriggerInversion(**options)(
        subject or row_reader(), clean or row_images(), generator=seeded(seed), classes=classes
    )


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.trigger.mask, other.trigger.mask)
        assert torch.equal(one.trigger.pattern, other.trigger.pattern)
        for name in ("size", "attack_success_rate", "reached", "steps", "image_passes", "target_class"):
            assert getattr(one, name) == getattr(other, name)


def test_the_same_generator_seed_gives_the_same_triggers_bit_for_bit():
    assert_equal(search(steps=40), search(steps=40))
    assert not torch.equal(search()[0].trigger.mask, search(seed=2)[0].trigger.mask)


@pytest.mark.parametrize("pixels", [1, 3 * 8 * 64])
def test_searching_in_chunks_gives_the_same_triggers(monkeypatch, pixels):
    whole = search()
    monkeypatch.setattr(module, "_CHUNK_PIXELS", {"cpu": pixels})
    for one, other in zip(whole, search(), strict=True):
        assert torch.allclose(one.trigger.mask, other.trigger.mask, atol=1e-4)
        assert one.size == pytest.approx(other.size, rel=1e-4)
        assert one.image_passes == other.image_passes


def test_a_class_that_cannot_be_reached_is_not_reached():
    subject = row_reader()
    subject.module[1].bias[5] = -1e4
    found = search(subject, steps=60, learning_rate=0.3)
    assert not found[5].reached
    assert found[5].attack_success_rate == 0.0
    assert all(inversion.reached for inversion in found if inversion.target_class != 5)


def test_a_reached_trigger_met_the_success_threshold_and_its_size_is_its_mask_norm():
    subject, clean = row_reader(backdoors=(3,)), row_images()
    for inversion in search(subject, clean, steps=80):
        assert inversion.reached
        assert inversion.size == pytest.approx(inversion.trigger.mask_norm, rel=1e-5)
        assert inversion.attack_success_rate == attack_success_rate(
            subject, clean.images, clean.labels, inversion.trigger
        )
        assert 0 <= float(inversion.trigger.mask.min()) <= float(inversion.trigger.mask.max()) <= 1


def test_classes_come_back_in_the_order_they_were_asked_for():
    assert [inversion.target_class for inversion in search(classes=[6, 0, 3])] == [6, 0, 3]


def test_passes_are_steps_times_batch_and_a_third_for_the_last_measurement():
    # 160 images, 20 of each class: 12 * 8 + 140 // 3
    assert [inversion.image_passes for inversion in search()] == [12 * 8 + 46] * 8
    assert [inversion.steps for inversion in search()] == [12] * 8


def test_a_batch_is_never_larger_than_what_the_other_classes_have():
    clean = row_images(per_class=1)
    assert [inversion.image_passes for inversion in search(clean=clean)] == [12 * 7 + 7 // 3] * 8


def test_classes_that_have_not_converged_go_on_alone_for_as_many_steps_again_at_most():
    usual, longer = search(steps=60, batch_size=48), search(steps=60, batch_size=48, extension=1.0)
    assert {inversion.steps for inversion in usual} == {60}
    for before, after in zip(usual, longer, strict=True):
        assert after.steps in ({60} if before.converged else {60 + 34})
        assert after.size <= before.size
    assert any(inversion.converged for inversion in longer)
    assert {inversion.steps for inversion in search(steps=10, extension=1.0)} == {20}


def test_a_class_that_settled_takes_no_more_steps():
    found = search(row_reader(backdoors=(3,)), steps=200, patience=2, stop_patience=6)
    assert min(inversion.steps for inversion in found) < 200
    for inversion in found:
        assert inversion.image_passes == inversion.steps * 8 + 46


def test_of_several_restarts_the_smallest_valid_trigger_is_kept_and_all_passes_are_paid():
    one, generator = TriggerInversion(steps=40, batch_size=8, extension=0.0), seeded(1)
    runs = [one(row_reader(), row_images(), generator=generator) for _ in range(3)]
    kept = search(steps=40, restarts=3)
    for row, inversion in enumerate(kept):
        candidates = [run[row] for run in runs if run[row].reached]
        smallest = min(candidates, key=lambda candidate: candidate.size)
        assert inversion.size == smallest.size
        assert torch.equal(inversion.trigger.mask, smallest.trigger.mask)
        assert inversion.image_passes == sum(run[row].image_passes for run in runs)
    assert len({min(range(3), key=lambda number: runs[number][row].size) for row in range(8)}) > 1


def test_a_reached_trigger_beats_a_smaller_one_that_does_not_work():
    found = search(steps=40)
    bad = module.Inversion(found[0].trigger, 0.1, 0.3, False, 40, 100)
    for pair in ((bad, found[0]), (found[0], bad)):
        kept = module._smaller(*pair)
        assert kept.reached
        assert kept.size == found[0].size
        assert kept.image_passes == found[0].image_passes + 100


@pytest.mark.parametrize("name", ["small_vgg", "small_resnet"])
def test_the_search_leaves_the_classifier_as_it_found_it(name):
    subject = Classifier.wrap(random_network(name), image_shape=(1, 8, 8))
    before = snapshot(subject.module)
    search(subject, row_images(classes=5), steps=3)
    assert_unchanged(before, subject.module)


def test_a_search_of_few_steps_has_not_converged_and_a_full_one_has():
    assert not any(inversion.converged for inversion in search(steps=34))
    assert {inversion.shrinkage for inversion in search(steps=34)} == {1.0}
    full = search(steps=240)
    assert all(inversion.converged for inversion in full)
    assert max(inversion.shrinkage for inversion in full) <= module.MOST_SHRINKAGE


def test_what_was_not_reached_has_not_converged():
    found = search(steps=40)[0]
    assert not replace(found, reached=False, shrinkage=0.0).converged
    assert replace(found, reached=True, shrinkage=module.MOST_SHRINKAGE).converged
    assert not replace(found, reached=True, shrinkage=module.MOST_SHRINKAGE + 0.01).converged


def test_the_smallest_working_step_is_handed_over_not_the_last_one(monkeypatch):
    steps = []
    update = CostController.update

    def recorded(self, rows, success, size):
        steps.append((rows.tolist(), success.tolist(), size.tolist()))
        return update(self, rows, success, size)

    monkeypatch.setattr(CostController, "update", recorded)
    found = search(steps=240, patience=2, batch_size=48)
    worked, last = {}, {}
    for step in steps:
        for row, success, size in zip(*step, strict=True):
            last[row] = size
            if success >= 0.99:
                worked.setdefault(row, []).append(size)
    assert [inversion.size for inversion in found] == pytest.approx([min(worked[row]) for row in range(8)], rel=1e-5)
    assert any(min(worked[row]) < 0.999 * last[row] for row in range(8))


def test_a_step_minimises_mean_cross_entropy_plus_cost_times_size(monkeypatch):
    """In two chunks, for two of three rows, with another cost for each."""
    monkeypatch.setattr(module, "_CHUNK_PIXELS", {"cpu": 1})
    subject, clean, search_options = row_reader(), row_images(), TriggerInversion()
    parameters = search_options.family.initial(3, (1, 8, 8), seeded(2))
    active, targets, cost = torch.tensor([0, 2]), torch.tensor([4, 6]), torch.tensor([0.1, 0.7])
    batches = torch.randint(0, 160, (2, 10), generator=seeded(3))
    success, size, losses, ours = search_options._gradients(
        subject, clean.images, batches, targets, parameters, active, cost
    )
    for position, row in enumerate(active.tolist()):
        mask, pattern = (parameters[name][row].clone().requires_grad_() for name in ("mask", "pattern"))
        opacity, colours = (torch.tanh(mask) + 1) / 2, (torch.tanh(pattern) + 1) / 2
        logits = subject((1 - opacity) * clean.images[batches[position]] + opacity * colours)
        loss = functional.cross_entropy(logits, targets[position].expand(10))
        assert float(losses[position]) == pytest.approx(float(loss.detach()), rel=1e-5)
        (loss + cost[position] * opacity.sum()).backward()
        assert torch.allclose(ours["mask"][position], mask.grad, atol=1e-6)
        assert torch.allclose(ours["pattern"][position], pattern.grad, atol=1e-6)
        assert float(size[position]) == pytest.approx(float(opacity.detach().sum()), rel=1e-5)
        assert float(success[position]) == float((logits.argmax(dim=1) == targets[position]).float().mean())
    assert {name: len(gradient) for name, gradient in ours.items()} == {"mask": 2, "pattern": 2}


def test_the_search_runs_in_bfloat16_where_that_is_faster_and_success_is_measured_in_full_precision(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    seen = []
    inner = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Computed(lambda scores: seen.append(scores.dtype) or scores, inner)
    subject = Classifier.wrap(network, image_shape=(1, 8, 8))
    seen.clear()
    search(subject, row_images(classes=3), steps=2)
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 3


INFECTED = 30


@pytest.fixture(scope="module")
def raced():
    return race()


def race(seed=1, **options):
    options = {"steps": 240, "batch_size": 32, **options}
    return search(pixel_reader(backdoors=(INFECTED,)), pixel_images(), seed=seed, **options)


def test_forty_three_classes_cost_little_more_than_three_times_what_ten_cost(raced):
    ten = race(classes=range(10))
    assert all(inversion.complete for inversion in ten)
    ratio = sum(each.image_passes for each in raced) / sum(each.image_passes for each in ten)
    assert 2 < ratio <= 3.3


def test_the_infected_class_survives_the_race_and_has_the_smallest_trigger(raced):
    winner = raced[INFECTED]
    assert winner.complete
    assert not winner.control
    assert winner.reached
    assert winner.size == min(inversion.size for inversion in raced)


def test_finalists_and_controls_take_all_steps_and_the_others_those_of_the_screening(raced):
    finalists = [each for each in raced if each.complete and not each.control]
    controls = [each for each in raced if each.control]
    stopped = [each for each in raced if not each.complete]
    assert (len(finalists), len(controls), len(stopped)) == (6, 12, 25)
    assert {each.steps for each in stopped} == {72}
    assert all(each.steps > 72 for each in [*finalists, *controls])
    assert all(each.size == pytest.approx(each.screening_size, rel=1e-5) for each in stopped)
    assert all(each.size < each.screening_size for each in [*finalists, *controls])


def test_the_screening_is_the_search_with_fewer_steps():
    fewer, raced = race(steps=36, race_above=43), race(steps=120)
    assert all(one.complete and one.screening_size is None for one in fewer)
    for one, other in zip(fewer, raced, strict=True):
        assert other.screening_size == pytest.approx(one.size, rel=1e-5)
        if not other.complete:
            assert torch.equal(one.trigger.mask, other.trigger.mask)


def test_without_more_classes_than_places_nobody_stops():
    assert_equal(search(race_above=2, finalists=4, controls=4), search())
    assert [each.complete for each in search(race_above=2, finalists=4, controls=3)].count(False) == 1


def test_controls_are_drawn_by_lot_from_those_that_are_no_finalists():
    drawn = []
    for seed in (1, 2):
        found = race(seed, steps=4, finalists=4, controls=4)
        drawn.append({each.target_class for each in found if each.control})
        assert len(drawn[-1]) == 4
        assert sum(each.complete for each in found) == 8
    assert drawn[0] != drawn[1]


def test_of_several_restarts_all_are_screened_and_a_class_goes_on_in_all_or_none():
    found = race(steps=20, restarts=2)
    third = 168 // 3
    for each in found:
        assert each.image_passes == 2 * ((20 if each.complete else 6) * 32 + third)
    assert sum(each.complete for each in found) == 18


def standing(costs, sizes, losses):
    return SimpleNamespace(
        controller=SimpleNamespace(cost=torch.tensor(costs)), size=torch.tensor(sizes), loss=torch.tensor(losses)
    )


def finalists(*searches, places):
    return TriggerInversion(finalists=places)._finalists(list(searches)).tolist()


def test_finalists_are_the_smallest_triggers_that_work_or_nearly_do():
    one = standing([0.1] * 5, [50.0, 30.0, 31.0, 90.0, 20.0], [0.0, 0.2, 0.0, 0.0, 9.0])
    # size times one plus loss: 50, 36, 31, 90, 200
    assert finalists(one, places=3) == [2, 1, 0]


def test_a_class_on_which_no_cost_has_pressed_yet_is_judged_by_its_loss_and_not_lost():
    costs = [0.1] * 6 + [0.0, 0.0]
    sizes = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 500.0, 500.0]
    one = standing(costs, sizes, [0.1] * 6 + [2.0, 0.5])
    assert finalists(one, places=4) == [0, 1, 2, 7]
    assert finalists(one, places=1) == [7]
    assert sorted(finalists(one, places=7)) == [0, 1, 2, 3, 4, 6, 7]


def test_where_no_class_works_yet_those_with_the_smallest_loss_go_on():
    assert finalists(standing([0.0] * 4, [9.0] * 4, [3.0, 1.0, 2.0, 4.0]), places=2) == [1, 2]


def test_where_all_but_a_few_wait_the_places_are_filled():
    one = standing([0.1, 0.0, 0.0, 0.0, 0.0, 0.0], [9.0] * 6, [1.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert finalists(one, places=4) == [0, 5, 4, 3]


def test_a_class_is_ranked_by_its_best_restart():
    first = standing([0.1, 0.1, 0.0], [10.0, 40.0, 500.0], [0.0, 0.0, 1.0])
    second = standing([0.1, 0.1, 0.1], [90.0, 30.0, 20.0], [0.0, 0.0, 0.0])
    assert finalists(first, second, places=2) == [0, 2]
