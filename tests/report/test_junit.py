"""Properties of the JUnit file that pytest writes."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from backdoor_audit.evidence import Verdict
from backdoor_audit.item import Item
from backdoor_audit.report.junit import case_names, case_properties, suite_properties
from tests.subjects.records import finding, missed_canary, record


def test_a_case_says_the_judgement_and_every_number_behind_it() -> None:
    assert dict(case_properties(finding(settings="NeuralCleanse(steps=240)"))) == {
        "backdoor_audit.item": "audit::test_anomaly_index[neural_cleanse-class_1]",
        "backdoor_audit.statistic": "anomaly_index",
        "backdoor_audit.value": 2.5,
        "backdoor_audit.limit": 2.0,
        "backdoor_audit.verdict": "fail",
        "backdoor_audit.reason": "class 1 (dog): a 3-pixel trigger sends 96% of held-out images there",
        "backdoor_audit.target_class": 1,
        "backdoor_audit.settings": "NeuralCleanse(steps=240)",
        "backdoor_audit.details.size": 3.0,
        "backdoor_audit.details.reached": "true",
    }


def test_what_was_not_measured_has_no_property() -> None:
    names = {
        name for name, _ in case_properties(finding(Verdict.INCONCLUSIVE, value=None, target_class=None, details={}))
    }
    assert names == {f"backdoor_audit.{name}" for name in ("item", "statistic", "limit", "verdict", "reason")}


@pytest.mark.parametrize(
    ("item", "names"),
    [
        ("audit::test_anomaly_index[patch_scan-class_1]", ("backdoor_audit.patch_scan", "class 1 (dog)")),
        ("audit::test_anomaly_index[source_scan-from_class_0]", ("backdoor_audit.source_scan", "from class 0 (cat)")),
        ("audit::test_anomaly_index[relabelling-all_to_all]", ("backdoor_audit.relabelling", "all to all")),
        ("audit::test_property[no_small_patch_steers]", ("backdoor_audit.property", "no_small_patch_steers")),
        ("audit::test_clean_accuracy_drop[anp]", ("backdoor_audit.clean_accuracy_drop", "anp")),
        ("tests/test_mine.py::test_x[class_1]", None),
    ],
)
def test_a_case_stands_under_who_asks_and_is_named_by_the_class(item: str, names: tuple[str, str] | None) -> None:
    assert case_names(Item.parse(item), lambda target: f"{target} ({['cat', 'dog'][target or 0]})") == names


def test_values_are_builtins_that_workers_can_send_home() -> None:
    pairs = case_properties(finding()) + suite_properties(record(finding(), missed_canary()))
    assert {type(value) for _, value in pairs} <= {str, int, float}


def test_a_suite_says_the_verdict_and_what_was_audited_with_what() -> None:
    told = dict(suite_properties(record(finding(), missed_canary(), not_run=["audit::x"])))
    assert told["backdoor_audit.verdict"] == "fail"
    assert told["backdoor_audit.power"] == "fail"
    assert told["backdoor_audit.flagged_classes"] == "1"
    assert told["backdoor_audit.flagged_all_to_all"] == "false"
    assert told["backdoor_audit.not_run"] == 1
    assert told["backdoor_audit.model"] == "models/m.safetensors"
    assert told["backdoor_audit.model_fingerprint"] == "a" * 64
    assert told["backdoor_audit.data_fingerprint"] == "b" * 64
    assert told["backdoor_audit.seed"] == 3
    assert told["backdoor_audit.version"] == "1.2.3"


def test_a_suite_of_an_audit_without_canary_has_no_power() -> None:
    assert "backdoor_audit.power" not in dict(suite_properties(record(finding())))


def test_pytest_writes_the_properties_of_a_case_whatever_the_names_hold(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from backdoor_audit.report.junit import case_properties
        from tests.subjects.records import finding

        def test_one(request):
            request.node.user_properties += case_properties(finding(reason='<b> & "dog" \\x1b[31m'))
        """
    )
    pytester.runpytest_inprocess("--junitxml=junit.xml", "-p", "no:cacheprovider")
    tree = ElementTree.parse(pytester.path / "junit.xml")
    written = {entry.get("name"): entry.get("value") for entry in tree.iter("property")}
    assert written["backdoor_audit.value"] == "2.5"
    assert written["backdoor_audit.reason"] == '<b> & "dog" \\x1b[31m'
