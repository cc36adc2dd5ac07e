import torch

from backdoor_audit.triggers.quantisation import Quantisation
from tests.subjects import seeded


def test_quantisation_rounds_the_mean_of_a_plain_block():
    """A plain block of level v has one cosine coefficient, 8 v: 8 x 101 = 808 is 12.6 steps of 64, so 13 x 64 / 8 = 104."""
    images = torch.full((1, 3, 9, 20), 101 / 255)
    assert torch.allclose(Quantisation(step=64).stamp(images), torch.tensor(104 / 255), atol=1e-5)


def test_quantisation_keeps_the_image_without_a_step_and_loses_detail_with_a_large_one():
    images = torch.rand(4, 1, 11, 13, generator=seeded())
    assert torch.equal(Quantisation(step=0).stamp(images), images)
    lost = [float((Quantisation(step=step).stamp(images) - images).abs().mean()) for step in (1, 16, 128)]
    assert lost[0] < 1 / 255 < lost[1] < lost[2]
