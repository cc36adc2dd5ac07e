"""Which classes a model is led to most easily, whichever they are."""

import pytest
import torch

from backdoor_audit.search.scanning import PatchScan, Stage
from backdoor_audit.search.screening import Screened, gathering, mean_margins
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.label_rule import Gathered
from backdoor_audit.triggers.perturbations import Additive
from tests.subjects import assert_unchanged, row_images, row_reader, seeded, snapshot

PROBES = (Steering(family=Additive(strength=0.1), steps=10), PatchScan(stages=(Stage(4, 2, 6, 3, 0.3),)))
SCORES = torch.tensor([[[5.0, 1, 0], [0, 3, 1], [2, 0, 4]]])  # three images, of classes 0, 1, 2
OWN = torch.tensor([[0, 1, 2]])


def test_margins_worked_by_hand():
    # less the best other score, over images of other classes: class 0: -3 and -2; class 1: -4 and -4; class 2: -5 and -2
    assert mean_margins(SCORES, OWN).tolist() == [[-2.5, -4.0, -3.5]]


@pytest.mark.parametrize(("taken", "nearest"), [((), -2.5), ((0,), -3.5), ((0, 2), -4.0)])
def test_images_are_gathered_in_the_nearest_class_that_is_not_taken(taken, nearest):
    losses = gathering(SCORES.flatten(0, 1), OWN, [Gathered(0.01, taken)])
    assert losses.shape == (1, 3)
    assert (0.01 * losses).tolist() == [pytest.approx([-nearest] * 3)]


def test_of_two_screenings_the_further_counts():
    first = Screened(torch.tensor([1.0, -1]), torch.tensor([0.5, 0]), (0,), 3)
    both = Screened.nothing(2).beside(first).beside(Screened(torch.tensor([0.0, 2]), torch.tensor([0, 0.9]), (1, 0), 4))
    assert (both.margins.tolist(), both.landed, both.image_passes) == ([1, 2], (0, 1), 7)
    assert both.success.tolist() == pytest.approx([0.5, 0.9])


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_a_planted_class_is_the_foremost_and_others_are_named_as_well(probe):
    model, clean = row_reader(backdoors=(3,)), (row_images(), row_images(seed=1))
    before = snapshot(model.module)
    found = probe.screened(model, *clean, rounds=2, generator=seeded())
    assert int(found.margins.argmax()) == 3
    assert found.landed[0] == 3
    assert len(found.landed) > 1
    assert_unchanged(before, model.module)
    assert found.image_passes == pytest.approx(probe.passes_of_screening((1, 8, 8), rounds=2, images=160), rel=0.02)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_the_same_seed_names_the_same_classes(probe):
    model, clean = row_reader(), (row_images(), row_images(seed=1))
    one, other = (probe.screened(model, *clean, rounds=1, generator=seeded(4)) for _ in range(2))
    assert torch.equal(one.margins, other.margins)
    assert one.landed == other.landed
