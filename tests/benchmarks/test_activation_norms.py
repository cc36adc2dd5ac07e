"""What the table of norms prints, from figures made by hand."""

import pytest

from backdoor_audit.attacks import ATTACKS
from benchmarks.activation_norms import KINDS, Row, interval, kind_of, line, looking, table


def row(kind, values, **rest):
    separation = dict(zip(("l1", "l2", "linf"), values, strict=True)) if values else None
    return Row(subject=f"a {kind}", attack="-", kind=kind, images=9, separation=separation, **rest)


ROWS = [
    row("patch", (0.6, 0.7, 0.8), inside=0.4, inside_twin=0.1, area=0.1),
    row("patch", (0.6, 0.6, 0.5), inside=0.2, inside_twin=0.35, area=0.1),
    row("patch", None),
    row("blend", (0.5, 0.5, 0.5)),
]


def test_a_kind_has_means_and_differences_over_subjects_that_have_a_feature_map():
    _, patch, blend, *_ = table(ROWS)
    assert patch.split()[:5] == ["patch", "2", "0.600", "0.650", "0.650"]
    assert "0.050 [-0.100, 0.200]" in patch  # of two subjects: -0.1 and 0.2
    assert "0.000 [-0.100, 0.100]" in patch
    assert "1/2" in patch
    assert blend.split()[:2] == ["blend", "1"]
    assert "1/1" in blend  # equal is not below


def test_looking_at_a_patch_is_counted_in_times_of_its_area():
    _, backdoored, twin = looking(ROWS)
    assert backdoored.startswith("backdoored: median 3.0, mean 3.000 [2.000, 4.000], above 3: 1/2")
    assert twin.startswith("clean twin: median 2.2, mean 2.250 [1.000, 3.500], above 3: 1/2")
    assert looking(ROWS[2:]) == []


def test_an_interval_of_equal_values_is_that_value():
    assert interval([0.25] * 4) == pytest.approx((0.25, 0.25))
    low, high = interval([0.0, 1.0] * 50)
    assert (low, high) == (pytest.approx(0.4, abs=0.02), pytest.approx(0.6, abs=0.02))


def test_every_kind_names_attacks_that_exist():
    known = {attack.name for attack in ATTACKS}
    assert {name for names in KINDS.values() for name in names} <= known
    assert kind_of("badnets") == "patch"
    assert kind_of("wanet") == "other"


def test_a_subject_without_feature_map_is_named_and_not_measured():
    assert line(ROWS[2]).endswith("no feature map")
    assert line(ROWS[3]).split()[-3:] == ["-", "-", "-"]
