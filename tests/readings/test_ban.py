import pytest
import torch
from torch import nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.ban import BAN, norm_parameters
from tests.subjects import row_images, row_reader, seeded

TARGET = 3


class Balanced(nn.Module):
    """Class k is row k. Eight dormant neurons speak for class 3; each rests on two biases that cancel until there is noise."""

    def __init__(self, strength, norm=nn.BatchNorm1d):
        super().__init__()
        self.spare = norm(16)
        with torch.no_grad():
            self.spare.bias.copy_(torch.tensor([strength, -strength] * 8))

    def forward(self, images):
        rows = 10 * images[:, 0].mean(dim=2)
        neurons = self.spare(torch.zeros(len(images), 16)).view(-1, 8, 2).sum(dim=2).relu()
        return rows + neurons.sum(dim=1, keepdim=True) * nn.functional.one_hot(torch.tensor(TARGET), 8)


def measure(classifier, **fields):
    return BAN(**fields).measure(classifier, row_images(per_class=10), row_images(seed=5), generator=seeded())


def balanced(strength, norm=nn.BatchNorm1d):
    return Classifier.wrap(Balanced(strength, norm), image_shape=(1, 8, 8))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_predictions_collapse_onto_the_class_that_noise_reaches(norm):
    reading = measure(balanced(40.0, norm))
    assert reading.target_class == TARGET
    assert reading.value == pytest.approx(7 / 8)  # all images, less the eighth that is of class 3
    assert reading.per_class == pytest.approx([-1 / 8] * 3 + [7 / 8] + [-1 / 8] * 4)


def test_a_network_on_which_noise_has_no_hold_keeps_its_predictions():
    reading = measure(balanced(0.0))
    assert reading.value == 0
    assert reading.per_class == (0,) * 8


def test_the_steps_go_up_the_loss_and_the_start_is_not_enough():
    values = [measure(balanced(20.0), steps=steps).per_class[TARGET] for steps in (0, 20)]
    assert values[0] == pytest.approx(0, abs=0.05)
    assert values[1] > 0.25


def test_a_tenth_of_the_noise_does_not_reach_it():
    assert measure(balanced(40.0), eps=0.005).value < 0.1


def test_batch_norms_are_taken_and_layer_norms_where_there_are_none():
    both = nn.Sequential(nn.BatchNorm2d(2), nn.LayerNorm(3), nn.BatchNorm1d(4), nn.Linear(2, 2))
    assert [len(parameter) for parameter in norm_parameters(both)] == [2, 2, 4, 4]
    bare = nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.LayerNorm(3), nn.LayerNorm(5, bias=False))
    assert [len(parameter) for parameter in norm_parameters(bare)] == [3, 3, 5]
    assert norm_parameters(nn.Linear(2, 2)) == []


def test_a_network_without_normalisation_is_inconclusive():
    reading = measure(row_reader())
    assert reading.value is None
    assert "neither batch norm nor layer norm" in reading.inconclusive
