import pytest
import torch

from backdoor_audit.attacks import Blended
from backdoor_audit.attacks.blended import PICTURES, draw_picture
from backdoor_audit.errors import AttackError


def test_blending_by_hand():
    """At opacity 0.25 a pixel of 0.4 under a picture pixel of 1 becomes 0.75 * 0.4 + 0.25 = 0.55, to the nearest 1/255."""
    attack = Blended(opacity=0.25, picture="smooth", seed=3)
    picture = draw_picture("smooth", (1, 8, 8), seed=3)
    row, column = (picture[0] == 1).nonzero()[0].tolist()
    stamped = attack.stamp(torch.full((1, 1, 8, 8), 0.4))
    assert stamped[0, 0, row, column] == pytest.approx(round(0.55 * 255) / 255)
    row, column = (picture[0] == 0).nonzero()[0].tolist()
    assert stamped[0, 0, row, column] == pytest.approx(round(0.3 * 255) / 255)


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("shape", [(1, 9, 12), (3, 8, 8)])
def test_pictures_depend_on_the_seed_and_use_the_range(kind, shape):
    picture = draw_picture(kind, shape, seed=1)
    assert picture.shape == shape
    assert torch.equal(picture, draw_picture(kind, shape, seed=1))
    assert not torch.equal(picture, draw_picture(kind, shape, seed=2))
    assert 0 <= picture.min() < 0.5 < picture.max() <= 1


def test_an_unknown_picture_is_refused():
    with pytest.raises(AttackError, match="picture 'kitty' is not known; accepted: noise, smooth, shapes"):
        Blended(picture="kitty").stamp(torch.zeros(1, 1, 8, 8))
