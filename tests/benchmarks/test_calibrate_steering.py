"""How the consensus is calibrated apart from what it weighs."""

import json

import pytest

from backdoor_audit.detectors.consensus import FAMILIES
from backdoor_audit.search.anomaly import shipped_null
from benchmarks import calibrate_steering
from benchmarks.calibrate_steering import CONSENSUS, SHIPPED, consensus_fit, consensus_of, fit_consensus


def row(name: str, share: float, *, twins: str = "plain_grey", architecture: str = "lenet") -> dict[str, object]:
    """A clean model of ten classes, of which one is steered to in every family by that share of an outlier's deviation."""
    null = shipped_null(twins)
    detectors = {}
    for family in FAMILIES:
        furthest = share * null.cut(family, 10)
        scores = [
            {"kind": "margin", "target_class": target, "deviation": furthest if target == 3 else 0.0, "margin": 0.0}
            for target in range(10)
        ]
        detectors[family] = {
            **dict.fromkeys(("inconclusive", "unconverged", "unusual", "means"), ""),
            "median_size": None,
            "rows": "target",
            "scores": scores,
        }
    known = {"maker": "population", "half": "development", "data": "fmnist", "attack": "", "unmet": "", "seed": 0}
    return {**known, "name": name, "architecture": architecture, "twins": twins, "detectors": detectors}


def models(share: float, **known: str) -> list[dict[str, object]]:
    return [row(f"{known.get('architecture')}-{number}", share * (1 + number / 20), **known) for number in range(10)]


def test_the_mean_over_families_is_that_of_the_class_that_goes_furthest():
    assert consensus_of(row("one", 0.25)) == pytest.approx(0.25)


def test_no_kind_of_twins_has_a_cut_below_that_of_all_kinds_together():
    low, high = models(0.02, architecture="lenet"), models(0.1, twins="plain_colour", architecture="vgg")
    alone = consensus_fit(low, "plain_grey").cut(CONSENSUS, 10)
    together = consensus_fit([*low, *high], "plain_grey").cut(CONSENSUS, 10)
    assert alone < together
    assert together > 1.09 * max(map(consensus_of, high))


def test_many_classes_keep_the_bar_that_they_had():
    null = consensus_fit(models(0.02), "plain_grey")
    for classes, shipped in ((43, "library"), (100, "library")):
        assert null.cut(CONSENSUS, classes) >= shipped_null(shipped).cut(CONSENSUS, classes) - 1e-9
    assert null.cut(CONSENSUS, 10) < shipped_null("library").cut(CONSENSUS, 10)


def test_a_kind_of_which_a_network_is_flagged_when_left_out_keeps_its_fit(capsys):
    calm = [*models(0.02, architecture="lenet"), *models(0.021, architecture="mlp")]
    odd = row("odd", 0.4, twins="plain_colour", architecture="vgg")
    stored = {kind: {"fits": {}, "growth": {}} for kind in calibrate_steering.OWN}
    fit_consensus([*calm, odd], stored)
    assert "  odd\n" in capsys.readouterr().out
    assert stored["plain_colour"]["fits"] == {}
    assert stored["plain_grey"]["fits"][CONSENSUS]


def test_what_ships_is_lower_than_the_old_bar_where_that_was_measured_alone():
    assert json.loads(SHIPPED.read_text())["library"]["fits"][CONSENSUS]
    cuts = {kind: shipped_null(kind).cut(CONSENSUS, 10) for kind in (*calibrate_steering.OWN, "library")}
    assert cuts["plain_colour"] == cuts["library"]
    assert cuts["plain_grey"] == cuts["normalised"] < 0.6 * cuts["library"]
