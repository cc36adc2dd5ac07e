import numpy as np
import pytest
import torch

from backdoor_audit.attacks import Sig
from backdoor_audit.triggers.sinusoid import Sinusoid


@pytest.mark.parametrize("down", [False, True])
def test_a_sinusoid_is_the_wave_of_the_paper(down):
    stamped = Sinusoid(amplitude=40, half_periods=12, down=down).stamp(torch.full((1, 1, 32, 32), 0.5))[0, 0]
    column = np.arange(32)
    wave = 0.5 + 40 / 255 * np.sin(2 * np.pi * column * 6 / 32)
    assert np.allclose((stamped.T if down else stamped)[3].numpy(), wave, atol=1e-6)
    assert float(stamped.std(dim=1 - int(down)).max()) > 0.1
    assert float(stamped.std(dim=int(down)).max()) < 1e-6
    if not down:
        reference = Sig(amplitude=40, frequency=6).stamp(torch.full((1, 1, 32, 32), 0.5))[0, 0]
        assert float((stamped - reference).abs().max()) <= 0.5 / 255 + 1e-6  # the attack rounds to levels
