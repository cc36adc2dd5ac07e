import pytest
import torch
from torch import nn

from backdoor_audit.attacks.trigger_network import TriggerNetwork, draw_share, new_network, rounded
from tests.subjects import seeded


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
def test_what_is_drawn_has_the_size_of_the_image(size: tuple[int, int]):
    assert TriggerNetwork(3, 1, 2)(torch.zeros(2, 3, *size)).shape == (2, 1, *size)


def test_a_new_network_depends_on_its_seed_alone_and_leaves_the_global_random_state():
    before = torch.random.get_rng_state()
    first, again, other = (new_network(lambda: nn.Linear(3, 2), seed, torch.device("cpu")) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_rounding_lets_gradients_pass_where_it_clamps():
    pixels = torch.tensor([-0.5, 0.4999, 2.0], requires_grad=True)
    result = rounded(pixels)
    assert result.tolist() == pytest.approx([0, 127 / 255, 1])  # 0.4999 * 255 = 127.47
    (3 * result).sum().backward()
    assert pixels.grad.tolist() == [3, 3, 3]


def test_a_share_below_one_image_is_drawn_now_and_then():
    candidates = torch.tensor([True, False, True, True])
    drawn = [draw_share(candidates, 0.1, generator) for generator in [seeded()] for _ in range(1000)]
    counts = [len(indices) for indices in drawn]
    assert set(counts) == {0, 1}
    assert 330 < sum(counts) < 470  # 0.1 of 4 images: 400 wanted, standard deviation 15.5
    assert set(torch.cat(drawn).tolist()) == {0, 2, 3}


def test_a_share_is_at_most_all_candidates():
    assert draw_share(torch.tensor([True, False, False, True]), 0.75, seeded()).sort().values.tolist() == [0, 3]
