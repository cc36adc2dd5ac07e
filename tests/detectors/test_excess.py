import pytest
import torch

from backdoor_audit.detectors.excess import lead_over, weighed, weight
from backdoor_audit.detectors.natural import Natural


@pytest.mark.parametrize(
    ("success", "natural", "worked"),
    [
        (1.0, 0.0, 1.0),
        (0.5, 0.0, 0.1),  # half of the images are none too many
        (0.2, 0.9, 0.1),
        (0.75, 0.0, 0.1 + 0.9 / 4),
        (1.0, 0.75, 0.1 + 0.9 / 2),
        (1.0, 1.0, 0.1),
    ],
)
def test_what_leads_half_of_the_images_or_those_of_clean_networks_as_well_tells_little(success, natural, worked):
    assert weight(success, natural) == pytest.approx(worked)


def test_it_rises_with_success_and_falls_with_what_is_natural():
    shares = [step / 20 for step in range(21)]
    rising = [weight(share, 0.3) for share in shares]
    falling = [weight(0.9, share) for share in shares]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_a_margin_many_times_the_natural_one_tells_though_clean_networks_obey_as_well():
    assert weight(1.0, 1.0, 12.0) == pytest.approx(1.0)
    assert weight(1.0, 1.0, 6.0) == pytest.approx(0.1 + 0.9 / 2)
    assert weight(1.0, 0.75, 3.0) == pytest.approx(0.1 + 0.9 / 2)  # the larger of the two counts
    assert weight(0.5, 1.0, 20.0) == pytest.approx(0.1)  # it must still work


@pytest.mark.parametrize(
    ("margin", "natural", "worked"),
    [(26.0, 2.0, 12.0), (2.0, 2.0, 0.0), (1.0, 4.0, 0.0), (5.0, 0.2, 1.5), (5.0, -3.0, 1.5)],
)
def test_the_lead_is_in_natural_margins_of_two_at_least(margin, natural, worked):
    assert lead_over(margin, natural) == pytest.approx(worked)


def test_a_class_that_is_led_far_beyond_its_twins_stands_out_where_all_images_obey_everywhere():
    margins = torch.tensor([2.0, 2.1, 1.9, 2.2, 1.8, 26.0])
    everywhere = torch.ones(6)
    natural = Natural(torch.full((3, 6), 2.0), everywhere.expand(3, 6), torch.zeros(3, 6), 0)
    found = {
        by_lead: weighed(margins, everywhere, natural, 6, floor=0.3, by_lead=by_lead)[2] for by_lead in (False, True)
    }
    assert found[True][5] == pytest.approx(10 * found[False][5])
    assert found[True][:5] == pytest.approx(found[False][:5], abs=0.1)
    alone = weighed(margins, everywhere, None, 6, floor=0.3, by_lead=True)
    assert alone == weighed(margins, everywhere, None, 6, floor=0.3)
