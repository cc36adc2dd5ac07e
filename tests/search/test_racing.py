"""Which of many classes are searched in full."""

import pytest
import torch

from backdoor_audit.search.racing import Race


def test_up_to_twenty_classes_there_is_no_race():
    race = Race()
    assert [race.runs(classes) for classes in (10, 20, 21, 43, 1000)] == [False, False, True, True, True]
    assert not Race(above=4).runs(18)  # all of them are finalists or controls


@pytest.mark.parametrize(("classes", "places"), [(21, (6, 12)), (100, (6, 12)), (1000, (12, 24)), (10_000, (18, 36))])
def test_places_grow_with_the_digits_of_a_number_of_classes(classes, places):
    assert Race().places(classes) == places


def test_controls_and_further_ones_come_first_in_the_lot():
    lot = list(reversed(range(43)))
    assert Race().controls_of(lot) == tuple(range(31, 43))
    assert Race().controls_of(lot, range(20)) == tuple(range(8, 20))
    assert Race().further(lot, range(31, 43)) == tuple(range(19, 31))
    assert Race().further(lot, (19,), range(20)) == tuple(range(7, 19))


def test_finalists_are_the_foremost_that_are_no_controls():
    margins = torch.arange(43.0)
    assert Race().finalists_of(margins, (42, 40)) == (35, 36, 37, 38, 39, 41)
    assert Race().finalists_of(margins, (42, 40), (1, 42)) == (1,)
