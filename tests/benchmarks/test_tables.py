"""What the benchmarks print, from figures made by hand."""

import pytest

from backdoor_audit.repairs import FeatureShiftTuning
from benchmarks.mitigation import VARIANTS, Row, rating, stored, table
from benchmarks.properties import beside_detectors
from benchmarks.verdicts import area_under_curve


def row(accuracy, success, robust, **rest):
    return Row(accuracy=accuracy, success=success, robust=robust, **rest)


FOUND = {
    "cifar10-preact_resnet18-badnets-1": {
        "before": row(0.9, 1.0, 0.0),
        "good": row(0.88, 0.1, 0.8, seconds=4.0),
        "absent": row(0.9, 1.0, 0.0, refused="no batch norm"),
    },
    "gtsrb-preact_resnet18-blended-2": {
        "before": row(0.7, 0.9, 0.05),
        "good": row(0.72, 0.3, 0.5, seconds=6.0),
        "absent": row(0.7, 0.9, 0.05, refused="no batch norm"),
    },
    "fmnist-preact_resnet18-clean-3": {
        "before": row(0.95, None, None),
        "good": row(0.94, None, None, seconds=8.0),
        "absent": row(0.95, None, None, refused="no batch norm"),
    },
}


def test_the_rating_of_a_repair_worked_by_hand():
    methods = FOUND["cifar10-preact_resnet18-badnets-1"]
    assert rating(methods["before"], methods["good"]) == pytest.approx((0.9 - 0.02 + 1) / 2)
    assert rating(methods["before"], methods["before"]) == 0.5
    assert rating(row(0.9, None, None), row(0.9, None, None)) is None


def test_the_table_has_a_line_for_every_method_and_means_over_backdoored_subjects():
    lines = table(FOUND)
    assert [line.split()[0] for line in lines] == ["method", "before", "good", "absent"]
    assert "cifar10-badnets-1" in lines[0]
    good = lines[2]
    assert "88.0 / 10.0 / 80.0" in good
    assert "72.0 / 30.0 / 50.0" in good
    assert " 94.0 " in good
    assert "80.0 / 20.0 / 65.0" in good  # means over the two backdoored subjects
    assert f"{((0.9 - 0.02 + 1) / 2 + (0.6 + 1) / 2) / 2:.3f}" in good
    assert good.split()[-1] == "6"
    assert lines[3].count(" - ") == 3


def test_the_area_under_the_curve_counts_ties_half():
    assert area_under_curve([3.0, 2.0], [1.0, 2.0]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)


def test_detectors_and_properties_stop_a_model_together():
    def asked(name, attack, verdict):
        return {
            "subject": name,
            "attack": attack,
            "properties": {"one": {"verdict": "pass"}, "two": {"verdict": verdict}},
        }

    def detected(name, fail, inconclusive):
        return {"subject": name, "fail": fail, "inconclusive": inconclusive}

    rows = [
        asked("a", None, "pass"),
        asked("b", "sig", "fail"),
        asked("c", "sig", "inconclusive"),
        asked("d", "sig", "fail"),
    ]
    found = [detected("a", [], [3]), detected("b", [], [4]), detected("c", [1], []), detected("e", [1], [])]
    lines = {
        line[:34].strip(): line[34:].split() for line in beside_detectors(rows, found)
    }  # d and e are not on both sides
    shares = {way: (words[0], words[5]) for way, words in lines.items() if way != "stopped by"}
    assert shares == {
        "a detector (fail)": ("0/1", "1/2"),
        "a detector (fail or inconclusive)": ("1/1", "2/2"),
        "a property": ("0/1", "1/2"),
        "either (fail)": ("0/1", "2/2"),
        "either": ("1/1", "2/2"),
    }


def test_rows_of_several_runs_stand_in_one_file_while_a_methods_settings_are_the_same(tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    before, first, second = row(0.9, 1.0, 0.0), row(0.8, 0.2, 0.6), row(0.7, 0.1, 0.7)
    assert set(stored(file, {"a": {"before": before, "fst": first}})["a"]) == {"before", "fst", "auto"}
    assert stored(file, {"b": {"before": before, "fst": second}}).keys() == {"b"}
    both = stored(file, {"a": {"before": before, "ft_sam": second}})["a"]
    assert both["fst"] == first
    assert both["ft_sam"] == second
    monkeypatch.setitem(VARIANTS, "fst", FeatureShiftTuning(epochs=99))
    assert set(stored(file, {"a": {"before": before}})["a"]) == {"before", "ft_sam", "auto"}
