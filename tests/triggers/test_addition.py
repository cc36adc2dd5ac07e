import torch

from backdoor_audit.triggers.addition import Addition, Change
from backdoor_audit.triggers.numbers import Numbers


def test_an_addition_worked_by_hand_is_clipped_to_the_pixel_range():
    change = torch.tensor([[[0.5, -0.5], [0.25, 0.0]]])
    stamped = Addition(change, 0).stamp(torch.tensor([[[[0.2, 0.4], [0.9, 0.3]]], [[[1.0, 0.75], [0.0, 1.0]]]]))
    assert torch.allclose(stamped, torch.tensor([[[[0.7, 0.0], [1.0, 0.3]]], [[[1.0, 0.25], [0.25, 1.0]]]]))


def test_a_change_of_one_value_shifts_the_colour_and_is_clipped():
    change = Change(levels=Numbers((3, 1, 1), (51, -51, 255)))
    stamped = change.stamp(torch.full((1, 3, 9, 12), 0.4))
    for channel, value in enumerate((0.6, 0.2, 1.0)):
        assert torch.allclose(stamped[0, channel], torch.tensor(value))
