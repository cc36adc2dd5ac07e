import pytest
import torch

from backdoor_audit.errors import DataFormatError
from backdoor_audit.triggers.numbers import Numbers
from backdoor_audit.triggers.patch import Patch, Trigger, Window
from tests.subjects import seeded

SHAPE = (3, 5, 4)


def test_a_stamp_worked_by_hand():
    mask = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]])
    pattern = torch.tensor([[[0.9, 1.0], [0.3, 0.0]]])
    stamped = Trigger(mask, pattern, 0).stamp(torch.tensor([[[[0.2, 0.4], [0.8, 1.0]]]]))
    assert torch.allclose(stamped, torch.tensor([[[[0.2, 0.7], [0.3, 0.75]]]]))


def test_one_mask_serves_every_colour_channel():
    generator = seeded(0)
    trigger = Trigger(torch.rand(1, 5, 4, generator=generator), torch.rand(SHAPE, generator=generator), 6)
    images = torch.rand(2, *SHAPE, generator=seeded(1))
    expected = images.clone()
    for channel in range(3):
        expected[:, channel] += trigger.mask[0] * (trigger.pattern[channel] - images[:, channel])
    assert torch.allclose(trigger.stamp(images), expected)


def test_where_the_mask_is_zero_the_image_is_untouched():
    images = torch.rand(3, *SHAPE, generator=seeded(2))
    assert torch.equal(Trigger(torch.zeros(1, 5, 4), torch.ones(SHAPE), 0).stamp(images), images)


def test_the_mask_norm_is_the_sum_of_the_mask():
    assert Trigger(torch.full((1, 5, 4), 0.25), torch.ones(SHAPE), 0).mask_norm == pytest.approx(5.0)


def test_a_patch_covers_its_rectangle_alone():
    colours = Numbers((1, 2, 3), (255, 0, 51, 102, 153, 204))
    stamped = Patch(colours=colours, top=1, left=2, opacity=50).stamp(torch.full((2, 1, 5, 6), 0.4))
    expected = torch.full((5, 6), 0.4)
    expected[1:3, 2:5] = torch.tensor([[0.7, 0.2, 0.3], [0.4, 0.5, 0.6]])
    for image in stamped:
        assert torch.allclose(image[0], expected)


@pytest.mark.parametrize("place", [{"top": 8}, {"left": 11}])
def test_a_patch_that_does_not_fit_is_refused_in_one_line(place):
    patch = Patch(colours=Numbers((3, 2, 2), (0,) * 12), **place)
    with pytest.raises(DataFormatError, match="do not fit") as refused:
        patch.stamp(torch.zeros(1, *SHAPE))
    assert "\n" not in str(refused.value)


def test_a_window_stamps_as_its_trigger_does_and_keeps_to_the_pixel_range():
    window, shape = Window(top=2, left=1, height=3, width=2), (3, 7, 6)
    parameters = window.initial(4, shape, seeded(1))
    for _ in range(3):
        parameters = window.stepped(parameters, torch.randn(parameters.shape, generator=seeded(2)), 0.5, shape)
    images = torch.rand(4, 5, *shape, generator=seeded(3))
    stamped = window.stamp(parameters, images)
    assert float(stamped.min()) >= 0
    assert float(stamped.max()) <= 1
    for row in range(4):
        trigger = window.trigger(parameters[row], row, shape)
        assert trigger.mask_norm == 6
        assert torch.allclose(trigger.stamp(images[row]), stamped[row])


def test_a_window_moves_inside_the_image():
    window = Window(top=0, left=1, height=3, width=2)
    assert {(moved.top, moved.left) for moved in window.moved(1, (1, 7, 6))} == {(1, 1), (0, 0), (0, 2)}
    assert window.moved(9, (1, 7, 6)) == []


def test_a_window_is_what_searches_for_the_colours_of_a_patch():
    patch = Patch(colours=Numbers((1, 2, 3), (9,) * 6), top=4, left=1)
    window = patch.family()
    assert window == Window(top=4, left=1, height=2, width=3)
    written = window.trigger(torch.full((1, 2, 3), 9 / 255), 0, (1, 7, 6)).in_whole_numbers()
    assert written == patch


def test_a_patch_gets_smaller_by_an_outer_row_or_column_of_its_longer_sides_first():
    patch = Patch(colours=Numbers((1, 2, 3), (1, 2, 3, 4, 5, 6)), top=4, left=1)
    assert [(form.colours.values, form.top, form.left) for form in patch.smaller()] == [
        ((1, 2, 4, 5), 4, 1),
        ((2, 3, 5, 6), 4, 2),
        ((1, 2, 3), 4, 1),
        ((4, 5, 6), 5, 1),
    ]
    assert not list(Patch(colours=Numbers((1, 1, 1), (9,))).smaller())
