import pytest
import torch

from backdoor_audit.errors import DataFormatError
from backdoor_audit.triggers.written import (
    Blend,
    Change,
    Numbers,
    Patch,
    Quantisation,
    Sinusoid,
    SmoothWarp,
    trigger_from_spec,
)

SHAPE = (3, 9, 12)


@pytest.mark.parametrize(
    "trigger",
    [
        Patch(colours=Numbers((1, 1, 1), (0,))),
        Blend(picture=Numbers((1, 1, 1), (0,))),
        Change(levels=Numbers((1, 1, 1), (0,))),
    ],
)
def test_a_trigger_for_another_number_of_channels_is_refused(trigger):
    with pytest.raises(DataFormatError, match="channels"):
        trigger.stamp(torch.zeros(1, *SHAPE))


PATCH = Patch(colours=Numbers((1, 1, 2), (7, 9)), top=3).spec()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "kind None is not known"),
        ({"kind": ["patch"]}, "is not known"),
        ({"kind": "unheard_of"}, "kind 'unheard_of' is not known; known: blend, change"),
        ({**PATCH, "more": 1}, "missing or not known: 'more'"),
        ({key: value for key, value in PATCH.items() if key != "top"}, "missing or not known: 'top'"),
        ({**PATCH, "top": -1}, "-1 where a whole number in"),
        ({**PATCH, "top": 1.5}, "1.5 where a whole number"),
        ({**PATCH, "top": True}, "True where a whole number"),
        ({**PATCH, "opacity": 101}, "in \\[0, 100\\]"),
        ({**PATCH, "colours": {"shape": [1, 1, 2], "values": [0, 256]}}, "in \\[0, 255\\]"),
        ({**PATCH, "colours": {"shape": [1, 2], "values": [0, 1]}}, "three axes"),
        ({**PATCH, "colours": {"shape": [1, 1, 2], "values": [0]}}, "1 numbers for an array of shape"),
        ({**PATCH, "colours": {"shape": [1, 1, 2]}}, "an array is a shape"),
        ({**PATCH, "colours": {"shape": "112", "values": [0, 1]}}, "where a list belongs"),
        ({**PATCH, "colours": {"shape": [1, 1, 2], "deflated": "no base64!"}}, "cannot be read"),
        ({**PATCH, "colours": {"shape": [1, 1, 2], "deflated": "AAAA"}}, "cannot be read"),
        ({**PATCH, "colours": {"shape": [2**22, 2, 2], "deflated": ""}}, "at most"),
        ({**Sinusoid(amplitude=1).spec(), "down": 1}, "accepted: true or false"),
    ],
)
def test_a_spec_that_describes_no_trigger_is_refused_in_one_line(spec, said):
    with pytest.raises(DataFormatError, match=said) as refused:
        trigger_from_spec(spec)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (
            Patch(colours=Numbers((1, 3, 3), (255,) * 9), top=2, left=4),
            "a white patch of 3x3 px at row 2, column 4",
        ),
        (Patch(colours=Numbers((1, 1, 1), (0,))), "a black patch of 1x1 px at row 0, column 0"),
        (
            Patch(colours=Numbers((3, 1, 2), (9, 9, 8, 8, 7, 7)), opacity=30),
            "a plain patch of 1x2 px at row 0, column 0 at opacity 0.30",
        ),
        (Patch(colours=Numbers((1, 1, 2), (0, 255))), "a patch of 1x2 px at row 0, column 0"),
        (Blend(picture=Numbers((1, 1, 1), (0,)), opacity=7), "a picture blended in at opacity 0.07"),
        (Change(levels=Numbers((3, 1, 1), (-4, -4, -4))), "-4 of 255 levels of brightness"),
        (Change(levels=Numbers((3, 1, 1), (-4, 0, 9))), "a colour shift by -4, +0, +9 of 255 levels"),
        (Change(levels=Numbers((1, 1, 2), (-4, 3))), "a change by up to 4 of 255 levels"),
        (Sinusoid(amplitude=9, half_periods=5, down=True), "a sine wave of 9 of 255 levels, 2.5 periods down"),
        (SmoothWarp(flow=Numbers((2, 1, 1), (-25, 5))), "a shift by -0.25 px across and 0.05 px down"),
        (SmoothWarp(flow=Numbers((2, 1, 2), (-25, 5, 0, 0))), "a warp by up to 0.25 px"),
        (Quantisation(step=3), "re-encoding by steps of 3 of 255 levels"),
    ],
)
def test_a_trigger_is_described_in_a_few_words(trigger, words):
    assert trigger.described() == words
