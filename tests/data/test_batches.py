import torch
from hypothesis import given
from hypothesis import strategies as st

from backdoor_audit.data.batches import draw
from tests.subjects import quick, seeded


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 40), st.floats(0.1, 1), st.integers(0, 1000))
@quick
def test_every_row_gets_as_many_of_its_own_images_and_a_poor_one_each_of_its_as_often(
    rows, images, batch_size, share, seed
):
    eligible = torch.rand(rows, images, generator=seeded(seed)) < share
    drawn, counts = draw(eligible, batch_size, seeded(seed)), eligible.sum(dim=1)
    most = min(batch_size, int(counts.max())) if counts.all() else 0
    assert drawn.shape == (rows, most)
    for row, indices in zip(eligible, drawn.tolist() if most else [], strict=False):
        assert bool(row[indices].all())
        times = torch.tensor(indices).bincount(minlength=images)[row]
        assert int(times.max() - times.min()) <= 1


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
