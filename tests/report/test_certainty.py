"""How sure a verdict is, in words that no measurement contradicts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from backdoor_audit.evidence import STEERED, Finding, Record, Verdict
from backdoor_audit.report.certainty import certainty, distance, most_suspicious
from backdoor_audit.search.anomaly import SteeringNull, shipped_null
from tests.subjects.records import finding
from tests.subjects.whole_records import whole_record

OWN = SteeringNull({"patch_scan": (0.5, 0.2)}, classes=10, models=40, source="40 models of ours")


def searched(null: SteeringNull, *, deviation: float, verdict: Verdict = Verdict.FAIL) -> Record:
    """A record of ten classes in which ``patch_scan`` saw class 3 that far out, judged by that distribution."""
    deviations = [deviation if target == 3 else 0.1 * target for target in range(10)]
    rows: list[dict[str, Any]] = [
        {
            "target_class": target,
            "deviation": value,
            "index": null.index("patch_scan", value, 10),
            "p_value": null.p_value("patch_scan", value, 10),
        }
        for target, value in enumerate(deviations)
    ]
    found = [
        finding(
            verdict if target == 3 else Verdict.PASS,
            audit=f"audit::test_anomaly_index[patch_scan-class_{target}]",
            value=row["index"],
            target_class=target,
            details={"p_value": row["p_value"]},
        )
        for target, row in enumerate(rows)
    ]
    record = whole_record(10, findings=found, rates=["its detectors flag 0 of 13 clean networks"])
    (detection,) = [entry for entry in record.detections if entry["detector"] == "patch_scan"]
    return replace(
        record, detections=[{**detection, "classes": rows, "reference": f"{null.source}; twins: our own networks"}]
    )


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (5.0, "stands out 2.5 times as far as the limit allows (index 5.00, limit 2)"),
        (1.5, "stands out 75% as far as the limit allows (index 1.50, limit 2)"),
        (2.06, "stands out 1.03 times as far as the limit allows (index 2.06, limit 2)"),
        (-0.4, "stands out no further than the usual class (index -0.40, limit 2)"),
    ],
)
def test_an_index_is_told_in_words(index: float, words: str) -> None:
    assert distance(index, 2.0) == words


def test_a_p_value_is_never_smaller_than_the_clean_models_can_tell() -> None:
    null = shipped_null("plain_grey")
    record = searched(null, deviation=20.0)
    assert most_suspicious(record).details["p_value"] < 1e-6  # type: ignore[union-attr]
    far = certainty(record, "").far
    assert f"below 1 in {null.models} go as far ({null.models} were measured)" in far
    times = null.index("patch_scan", 20.0, 10) / 2
    assert times > 4
    assert far.startswith(f"Class 3 (sign 3) stands out {times:.1f} times as far")


def test_what_some_clean_models_do_is_told_with_their_share() -> None:
    null = shipped_null("plain_grey")
    location, scale = null.fits["patch_scan"]
    deviation = location - scale * math.log(-math.log1p(-0.25))  # of one in four clean models
    deviation *= null.cut("patch_scan", 10) / null.bare_cut("patch_scan", 10)
    far = certainty(searched(null, deviation=deviation, verdict=Verdict.PASS), "").far
    assert f"of clean models, about 1 in 4 go as far (by a fit to {null.models})" in far


def test_the_chart_has_the_limit_the_model_and_the_number_of_clean_models() -> None:
    null = shipped_null("plain_grey")
    chart = certainty(searched(null, deviation=6.0), "x-").chart
    assert f"this model: {null.index('patch_scan', 6.0, 10):.2f}" in chart
    assert "limit 2" in chart
    assert f"clean models (fit to {null.models})" in chart
    assert "largest anomaly index of any class" in chart
    peak = 2 * null.fits["patch_scan"][0] / null.bare_cut("patch_scan", 10)
    assert f"most about {peak:.2f}; limit 2" in chart


def test_of_a_calibration_of_ones_own_the_distribution_is_told_by_its_p_values() -> None:
    told = certainty(searched(OWN, deviation=6.0), "")
    peak = 2 * OWN.fits["patch_scan"][0] / OWN.bare_cut("patch_scan", 10)
    assert f"most about {peak:.2f}; limit 2" in told.chart
    assert "fit to" not in told.chart
    assert "of the clean models of its calibration, below 1 in 10 go as far" in told.far


def test_images_of_a_class_stand_out() -> None:
    found = finding(audit="audit::test_anomaly_index[source_scan-from_class_1]", value=3.0, target_class=3)
    told = certainty(whole_record(5, infected=(), findings=[found]), "")
    assert told.far.startswith("Images of class 1 (sign 1) stand out 1.5 times as far as the limit allows")


def test_classes_compared_among_themselves_stand_beside_no_clean_models() -> None:
    told = certainty(whole_record(5), "")
    assert told.chart == ""
    assert "simulated, below 1 in 1,000 go as far" in told.far


def test_searches_that_agree_are_named_and_what_only_weighs_them_stands_apart() -> None:
    found = {"patch_scan": 4.0, "additive": 1.7, "smooth": 0.2, "consensus": 2.5}
    findings: list[Finding] = [
        finding(
            Verdict.FAIL if index > 2 else Verdict.PASS,
            audit=f"audit::test_anomaly_index[{name}-class_3]",
            value=index,
            target_class=3,
        )
        for name, index in found.items()
    ]
    findings += [
        finding(audit="audit::test_anomaly_index[source_scan-from_class_1]", value=2.4, target_class=3),
        finding(audit="audit::test_property[no_small_patch_steers]", statistic=STEERED, value=0.9, target_class=3),
    ]
    told = dict(certainty(whole_record(5, findings=findings), "").agreement)
    assert told == {
        "flag it": "patch_scan, source_scan (from class 1 (sign 1)), the property no small patch steers",
        "nearly do": "additive",
        "see nothing": "smooth",
        "all weighed together": "yes",
    }


def test_of_a_model_that_passes_the_searches_that_came_near_are_named() -> None:
    far = whole_record(5, infected=())
    assert certainty(far, "").agreement == [("flag or nearly flag a class", "none of 9")]
    near = [finding(Verdict.PASS, audit="audit::test_anomaly_index[additive-class_3]", value=1.8, target_class=3)]
    told = certainty(whole_record(5, infected=(), findings=near), "").agreement
    assert told == [("flag or nearly flag a class", "additive, of 9")]


def test_measured_rates_are_told_or_that_there_are_none() -> None:
    record = searched(OWN, deviation=6.0)
    assert certainty(record, "").rates == ["its detectors flag 0 of 13 clean networks"]
    assert "is not known" in certainty(replace(record, rates=[]), "").rates[0]


def test_a_record_without_a_search_says_so() -> None:
    told = certainty(whole_record(3, findings=[], detections=[]), "")
    assert (told.chart, told.agreement) == ("", [])
    assert "No search gave an answer" in told.far
