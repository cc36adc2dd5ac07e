import torch

from backdoor_audit.triggers.blend import Blend
from backdoor_audit.triggers.numbers import Numbers

SHAPE = (3, 9, 12)


def test_a_blend_of_one_field_moves_every_pixel_towards_its_colour():
    blend = Blend(picture=Numbers((3, 1, 1), (255, 0, 51)), opacity=25)
    stamped = blend.stamp(torch.full((1, *SHAPE), 0.4))
    for channel, value in enumerate((0.55, 0.3, 0.35)):
        assert torch.allclose(stamped[0, channel], torch.tensor(value))
