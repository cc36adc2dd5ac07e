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


def test_controls_depend_on_the_number_of_classes_alone():
    controls = Race().controls_of(43)
    assert controls == Race().controls_of(43)
    assert len(set(controls)) == 12
    assert list(controls) == sorted(controls)
    assert controls != Race().controls_of(44)
    assert set(Race().controls_of(43, range(20))) <= set(range(20))


def test_finalists_are_the_foremost_that_are_no_controls():
    margins = torch.arange(43.0)
    assert Race().finalists_of(margins, (42, 40)) == (35, 36, 37, 38, 39, 41)
    assert Race().finalists_of(margins, (42, 40), (1, 42)) == (1,)
