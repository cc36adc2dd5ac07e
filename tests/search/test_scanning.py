"""A window on every place, smaller and smaller: what is found, where it lies, what it costs."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.search import windows as module
from backdoor_audit.search.goals import goals, losses_of, sources
from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.triggers.label_rule import AllToAll, AllToOne, Scattered
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects import Computed, seeded
from tests.subjects.row_readers import CLASSES, EASY, SIZE, bright_rows, reader


def corner_reader():
    """Class 5 gets any image whose last 2x2 pixels are white."""
    corner = torch.zeros(8, 8)
    corner[6:, 6:] = 1
    return reader(0.6 * corner)


def dark_corner(seed=0):
    clean = bright_rows(seed)
    clean.images[:, :, 6:, 6:] = 0
    return clean


SCAN = PatchScan(stages=(Stage(2, 3, 6, 3, 0.4), Stage(2, 3, 16, 18, 1.0)))  # places 0, 3, 6 along each axis
SHRINKING = PatchScan(stages=(Stage(4, 2, 6, 6, 0.3), Stage(2, 2, 16, 12, 1.0)))  # 0, 2, 4; then 0, 2 inside each


def test_a_scan_finds_the_place_of_a_corner_that_a_network_reads():
    steered = SCAN(corner_reader(), dark_corner(), dark_corner(1), goals(CLASSES), generator=seeded(4))
    assert int(steered.margins.argmax()) == EASY
    assert steered.success[EASY] == 1.0
    trigger = steered.triggers[EASY]
    assert isinstance(trigger, Trigger)
    expected = torch.zeros(1, 8, 8)
    expected[:, 6:, 6:] = 1
    assert torch.equal(trigger.mask, expected)
    assert float(trigger.pattern[0, 6:, 6:].min()) > 0.8
    assert float(trigger.pattern[0, :6].abs().max()) == 0
    others = steered.success[[target for target in range(CLASSES) if target != EASY]]
    assert float(others.max()) < 0.8


def test_a_scan_covers_the_image_up_to_its_border():
    assert module.starts(28, 6, 3).tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 22]
    assert module.starts(8, 8, 3).tolist() == [0]


def test_a_window_is_laid_where_its_place_says():
    images = torch.zeros(2, 1, 1, 3, 4)
    content = torch.tensor([[[[-50.0, 50.0]] * 2], [[[50.0, -50.0]] * 2]])  # sigmoids 0 and 1
    laid = module._laid(images + 0.5, content, torch.tensor([[0, 1, 2], [1, 0, 0]]))
    expected = torch.full((2, 3, 4), 0.5)
    expected[0, 1:, 2:] = expected[1, :2, :2] = torch.tensor([0.0, 1.0])
    expected[1, :2, :2] = 1 - expected[1, :2, :2]
    assert torch.allclose(laid[:, 0, 0], expected)


def test_of_each_goal_the_places_that_fit_best_stay():
    goal, fit = torch.tensor([0, 0, 0, 0, 1, 1, 1]), torch.tensor([1.0, 4, 3, 2, -8, -5, -7])
    assert sorted(module._best_places(goal, fit, 0.5, 1).tolist()) == [1, 2, 5]
    assert sorted(module._best_places(goal, fit, 0.0, 2).tolist()) == [1, 2, 5, 6]
    assert sorted(module._best_places(goal, fit, 0.0, 9).tolist()) == list(range(7))


def test_smaller_windows_are_cut_out_of_those_that_are_there():
    windows = module.Windows(reader(), goals(CLASSES)[:1], 0.5)
    windows.lay(4, 4, seeded())
    assert windows.places.tolist() == [[0, 0, 0], [0, 0, 4], [0, 4, 0], [0, 4, 4]]
    windows.keep(torch.tensor([1, 2]))
    whole, before = windows.contents.clone(), windows.places.clone()
    windows.lay(4, 4, seeded())
    assert torch.equal(windows.places, before)
    windows.lay(2, 2, seeded())
    assert len(windows.places) == 2 * 4
    for place, content in zip(windows.places, windows.contents, strict=True):
        row = next(number for number, outer in enumerate(before) if bool(((place - outer)[1:] >= 0).all()))
        top, left = (place - before[row])[1:].tolist()
        assert torch.equal(content, whole[row, :, top : top + 2, left : left + 2])


def test_shrinking_windows_end_at_a_corner_that_a_network_reads():
    steered = SHRINKING(corner_reader(), dark_corner(), dark_corner(1), goals(CLASSES), generator=seeded(4))
    expected = torch.zeros(1, 8, 8)
    expected[:, 6:, 6:] = 1
    assert int(steered.margins.argmax()) == EASY
    assert torch.equal(steered.triggers[EASY].mask, expected)


def test_windows_grow_with_large_images():
    """56x56: windows of 2 px become 4 px wide, 6 px apart, up to the border."""
    large = Classifier.wrap(Computed(lambda images: images.mean(dim=3)[:, 0, :CLASSES]), image_shape=(1, 56, 56))
    clean = CleanSet(torch.rand(40, 1, 56, 56, generator=seeded()), torch.arange(40) % CLASSES)
    steered = SCAN(large, clean, clean, goals(CLASSES), generator=seeded(1))
    assert {int(trigger.mask.sum()) for trigger in steered.triggers[:CLASSES]} == {16}


def test_image_passes_of_a_scan_are_counted():
    """8 goals: 9 places x 3 steps x 6 images, 3 places x 18 steps x 16; forward, a third of the work: 3 places x 20 held-out

    images, and 3 places x 32 search images in the middle of the last stage and at its end.
    """
    scan = replace(SCAN, measured=20)
    steered = scan(reader(), bright_rows(), bright_rows(1), goals(CLASSES), generator=seeded())
    assert steered.image_passes == 8 * (9 * 3 * 6 + 3 * 18 * 16) + 8 * 3 * 20 // 3 + 2 * (8 * 3 * 32 // 3)


CLOSER = replace(
    SHRINKING,
    stages=(Stage(4, 2, 6, 6, 0.3), Stage(4, 2, 16, 12, 1.0)),
    closer=(Stage(2, 1, 5, 8, 0.4), Stage(2, 1, 4, 6, 1.0)),
)


def test_a_closer_look_lies_inside_the_windows_and_changes_nothing_of_theirs():
    searched = (corner_reader(), dark_corner(), dark_corner(1), goals(CLASSES))
    plain = replace(CLOSER, closer=())(*searched, generator=seeded(4))
    both = CLOSER(*searched, generator=seeded(4))
    assert torch.equal(both.margins, plain.margins)
    assert plain.closer is None
    assert both.closer is not None
    large, small = both.triggers[EASY], both.closer.triggers[EASY]
    assert isinstance(large, Trigger)
    assert isinstance(small, Trigger)
    assert (float(large.mask.sum()), float(small.mask.sum())) == (16, 4)
    assert bool((small.mask <= large.mask).all())
    assert both.closer.success[EASY] == 1.0
    assert torch.equal(small.mask[:, 6:, 6:], torch.ones(1, 2, 2))


def test_image_passes_of_a_closer_look_are_counted():
    """Inside one window of 4x4 of each of 8 goals 9 places of 2x2, of which the 3 best stay; 20 images measured on."""
    searched = (corner_reader(), dark_corner(), dark_corner(1), goals(CLASSES))
    both, plain = (
        probe(*searched, generator=seeded(4)).image_passes
        for probe in (replace(CLOSER, measured=20), replace(CLOSER, closer=(), measured=20))
    )
    assert both - plain == 8 * (9 * 5 * 8 + 3 * 4 * 6) + 8 * 3 * 20 // 3
    announced = [8 * probe.passes((1, 8, 8), measured=20) for probe in (CLOSER, replace(CLOSER, closer=()))]
    assert announced[0] - announced[1] == pytest.approx(both - plain, rel=0.01)


def test_a_window_for_one_class_follows_the_margin_of_images_that_obey_as_well():
    """Worked by hand: 60 against 10, and 1 against 3. The first has no slope in the cross-entropy, and the same in the margin."""
    logits = torch.tensor([[60.0, 10, 0], [1, 3, 2]], requires_grad=True)
    own, one_class = torch.tensor([[0, 0]]), [AllToOne(0)]
    losses = module._losses(logits, own, one_class)
    assert losses.tolist() == [[-50.0, 2.0]]
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    assert slope.tolist() == [[-1.0, 1, 0], [-1, 1, 0]]
    (flat,) = torch.autograd.grad(losses_of(logits, own, one_class).sum(), logits)
    assert float(flat[0].abs().max()) < 1e-6
    leaving = sources(3)[:1]
    assert torch.equal(module._losses(logits, own, leaving), losses_of(logits, own, leaving))


def test_windows_that_still_gain_are_told_from_those_that_do_not():
    rising = [
        replace(SCAN, stages=tuple(replace(stage, steps=steps) for stage in SCAN.stages))(
            corner_reader(), dark_corner(), dark_corner(1), [AllToOne(EASY)], generator=seeded(4)
        ).rising
        for steps in (1, 2, 30)
    ]
    assert float(min(rising[:2])) > PatchScan.most_rising
    assert float(rising[2]) < PatchScan.most_rising


def shifting():
    """Reads the bright row; a white last pixel makes it name the next class instead."""

    def forward(images):
        scores = 10 * images[:, 0, :, :4].mean(dim=2)
        seen = images[:, 0, -1, -1:]
        return (1 - seen) * scores + 3 * seen * scores.roll(1, dims=1)

    return Classifier.wrap(Computed(forward), image_shape=(1, SIZE, SIZE))


@pytest.mark.parametrize("goal", [AllToAll(CLASSES), Scattered(CLASSES)])
def test_a_network_that_a_corner_makes_name_the_next_class_is_steered_from_all_to_all(goal):
    scan = replace(SCAN, stages=tuple(replace(stage, images=2 * CLASSES) for stage in SCAN.stages))
    steered = scan(shifting(), dark_corner(), dark_corner(1), [goal], generator=seeded(5))
    assert float(steered.success[0]) > 0.95
    assert steered.triggers == (None,)
    honest = scan(reader(), dark_corner(), dark_corner(1), [goal], generator=seeded(5))
    assert float(honest.success[0]) < 0.5


def source_specific():
    """Reads the bright row; a white last pixel sends images of class 2, and no others, to class 5."""

    def forward(images):
        scores = 10 * images[:, 0, :, :6].mean(dim=2)
        of_class_2 = torch.relu(images[:, 0, 2, :6].mean(dim=1, keepdim=True) - 0.45) / 0.15
        extra = 12 * images[:, 0, -1, -1:] * of_class_2
        return scores + extra * nn.functional.one_hot(torch.tensor(5), CLASSES)

    return Classifier.wrap(Computed(forward), image_shape=(1, SIZE, SIZE))


def test_a_trigger_for_one_source_class_is_found_where_its_images_go():
    steered = SCAN(source_specific(), dark_corner(), dark_corner(1), sources(CLASSES), generator=seeded(6))
    others = [source for source in range(CLASSES) if source != 2]
    assert float(steered.success[2]) == 1.0
    assert int(steered.landing[2]) == 5
    assert float(steered.margins[2]) > float(steered.margins[others].max()) + 0.5
    found = steered.triggers[2]
    assert found.target_class == 5
    assert found.mask[0, -1, -1] == 1  # it lies where the network looks
    of_class_2 = dark_corner(1).images[dark_corner(1).labels == 2]
    assert set(source_specific().predict(found.stamp(of_class_2)).tolist()) == {5}
    to_all = SCAN(source_specific(), dark_corner(), dark_corner(1), goals(CLASSES), generator=seeded(6))
    assert float(to_all.success[5]) < 0.5  # over images of all classes it is not seen
