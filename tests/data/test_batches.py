import torch
from hypothesis import given
from hypothesis import strategies as st

from backdoor_audit.data.batches import draw
from tests.subjects import quick, seeded


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 40), st.floats(0.1, 1), st.integers(0, 1000))
@quick
def test_every_row_gets_as_many_of_its_own_images_as_the_poorest_row_has(rows, images, batch_size, share, seed):
    eligible = torch.rand(rows, images, generator=seeded(seed)) < share
    drawn = draw(eligible, batch_size, seeded(seed))
    assert drawn.shape == (rows, min(batch_size, int(eligible.sum(dim=1).min())))
    for row, indices in zip(eligible, drawn.tolist(), strict=True):
        assert len(set(indices)) == len(indices)
        assert bool(row[torch.tensor(indices, dtype=torch.long)].all())


def test_rows_that_may_use_the_same_images_get_the_same_in_the_same_order():
    first, second = draw(torch.ones(2, 20, dtype=torch.bool), 8, seeded(1))
    assert torch.equal(first, second)
    assert first.tolist() != sorted(first.tolist())


def test_rows_differ_by_the_images_that_one_of_them_may_not_use():
    eligible = torch.ones(2, 6, dtype=torch.bool)
    eligible[1, 4] = False
    order, without = draw(eligible, 5, seeded(2)).tolist()
    assert [index for index in torch.randperm(6, generator=seeded(2)).tolist() if index != 4] == without
    assert order == torch.randperm(6, generator=seeded(2)).tolist()[:5]


def test_every_image_is_drawn_about_as_often():
    generator = seeded(3)
    drawn = torch.cat([draw(torch.ones(1, 10, dtype=torch.bool), 4, generator)[0] for _ in range(1000)])
    counts = torch.bincount(drawn, minlength=10)
    assert counts.sum() == 4000
    assert bool(((counts - 400).abs() < 80).all())  # a standard deviation is 15.5


def test_the_generator_alone_decides():
    eligible = torch.ones(3, 50, dtype=torch.bool)
    torch.manual_seed(1)
    one = draw(eligible, 10, seeded(4))
    torch.manual_seed(2)
    assert torch.equal(one, draw(eligible, 10, seeded(4)))
    assert not torch.equal(one, draw(eligible, 10, seeded(5)))
