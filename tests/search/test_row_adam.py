"""Adam by rows is torch's Adam for every row that is still moved."""

import torch

from backdoor_audit.search.row_adam import RowAdam
from backdoor_audit.store import generator_for

LEARNING_RATE = 0.1


def seeded():
    return generator_for(1, "row adam")


def reference(tensors):
    """Torch's Adam on copies, and the copies."""
    copies = [tensor.clone().requires_grad_() for tensor in tensors]
    return torch.optim.Adam(copies, lr=LEARNING_RATE, betas=(0.5, 0.9)), copies


def test_it_is_adam():
    generator = seeded()
    start = {name: torch.randn(3, 4, 2, generator=generator) for name in ("mask", "pattern")}
    adam, theirs = reference(start.values())
    ours = RowAdam({name: tensor.clone() for name, tensor in start.items()}, learning_rate=LEARNING_RATE)
    for _ in range(25):
        gradients = {name: torch.randn(3, 4, 2, generator=generator) for name in start}
        for copy, gradient in zip(theirs, gradients.values(), strict=True):
            copy.grad = gradient.clone()
        adam.step()
        ours.step(gradients, torch.arange(3))
    for copy, tensor in zip(theirs, ours.parameters.values(), strict=True):
        assert torch.allclose(copy, tensor, atol=1e-5)


def test_a_row_that_stopped_stays_where_it_was_and_the_others_go_on():
    generator = seeded()
    start = torch.randn(2, 3, generator=generator)
    adam, (one,) = reference([start[:1]])
    ours = RowAdam({"mask": start.clone()}, learning_rate=LEARNING_RATE)
    for step in range(10):
        gradient = torch.randn(2, 3, generator=generator)
        one.grad = gradient[:1].clone()
        rows = torch.arange(2 if step < 4 else 1)
        ours.step({"mask": gradient[rows]}, rows)
        adam.step()
        if step == 3:
            stopped = ours.parameters["mask"][1].clone()
    assert torch.equal(ours.parameters["mask"][1], stopped)
    assert torch.allclose(ours.parameters["mask"][0], one[0], atol=1e-5)


def test_rows_that_are_kept_go_on_as_if_they_had_been_alone():
    generator = seeded()
    start = torch.randn(4, 3, generator=generator)
    kept = torch.tensor([3, 1])
    adam, (alone,) = reference([start[kept]])
    ours = RowAdam({"content": start.clone()}, learning_rate=LEARNING_RATE)
    for step in range(8):
        gradient = torch.randn(4, 3, generator=generator)
        alone.grad = gradient[kept].clone()
        adam.step()
        ours.step({"content": gradient if step < 3 else gradient[kept]}, torch.arange(4 if step < 3 else 2))
        if step == 2:
            ours.keep(kept)
    assert ours.parameters["content"].shape == (2, 3)
    assert torch.allclose(ours.parameters["content"], alone, atol=1e-5)
