import pytest

from backdoor_audit.detectors.excess import weight


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
