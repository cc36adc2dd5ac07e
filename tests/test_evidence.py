import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from backdoor_audit.errors import DataFormatError
from backdoor_audit.evidence import SCHEMA_VERSION, Finding, Record, Verdict, inconclusive, judge
from backdoor_audit.presentable import plain
from tests.subjects.messages import one_line


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [
        (0.1, {"at_most": 0.1}, Verdict.PASS),
        (0.1000001, {"at_most": 0.1}, Verdict.FAIL),
        (-5.0, {"at_most": 0.1}, Verdict.PASS),
        (0.9, {"at_least": 0.9}, Verdict.PASS),
        (0.8999999, {"at_least": 0.9}, Verdict.FAIL),
        (0.0, {"at_least": 0.0}, Verdict.PASS),
        (-0.1, {"at_least": 0.0}, Verdict.FAIL),
        (0.0, {"at_most": 0.0}, Verdict.PASS),
        (math.nan, {"at_most": 0.1}, Verdict.INCONCLUSIVE),
        (math.nan, {"at_least": 0.1}, Verdict.INCONCLUSIVE),
        (math.inf, {"at_least": 0.1}, Verdict.INCONCLUSIVE),
        (-math.inf, {"at_most": 0.1}, Verdict.INCONCLUSIVE),
    ],
)
def test_a_value_at_the_limit_passes_and_one_that_is_not_finite_is_inconclusive(value, limit, verdict):
    finding = judge("rate", value, reason="why", **limit)
    assert finding.verdict is verdict
    assert finding.limit == next(iter(limit.values()))
    assert ("not finite" in finding.reason) == (verdict is Verdict.INCONCLUSIVE)


@pytest.mark.parametrize("limits", [{}, {"at_most": 0.1, "at_least": 0.2}])
def test_a_judgement_has_exactly_one_limit(limits):
    with pytest.raises(ValueError, match="exactly one limit"):
        judge("rate", 0.5, reason="why", **limits)


def finding_of(verdict, **values):
    return Finding(
        **{"audit": "a", "statistic": "s", "value": 1.0, "limit": 2.0, "reason": "r", **values}, verdict=verdict
    )


def record_of(*findings, **values):
    defaults = {
        "subject": {"model": "m.safetensors", "image_shape": [1, 8, 8]},
        "settings": {"seed": 0, "limits": {"anomaly_index": 2.0}},
        "environment": {"torch": "2.6"},
        "detections": [{"detector": "neural_cleanse", "classes": [{"target_class": 3, "p_value": None}]}],
        "repairs": [],
        "skipped": {"audit::b": "nothing to repair"},
        "errors": {},
        "not_run": [],
        "not_tested": ["the training data"],
        "seconds": 1.25,
    }
    return Record(findings=list(findings), **{**defaults, **values})


GOOD, BAD, OPEN = (finding_of(verdict) for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE))


@pytest.mark.parametrize(
    ("findings", "values", "verdict"),
    [
        ([GOOD], {}, Verdict.PASS),
        ([GOOD, GOOD], {"skipped": {"x": "y"}}, Verdict.PASS),
        ([GOOD, BAD], {}, Verdict.FAIL),
        ([BAD, OPEN], {}, Verdict.FAIL),
        ([BAD], {"errors": {"x": "broke"}, "not_run": ["y"]}, Verdict.FAIL),
        ([GOOD, OPEN], {}, Verdict.INCONCLUSIVE),
        ([GOOD], {"errors": {"x": "broke"}}, Verdict.INCONCLUSIVE),
        ([GOOD], {"not_run": ["y"]}, Verdict.INCONCLUSIVE),
        ([], {}, Verdict.INCONCLUSIVE),
        ([], {"skipped": {"x": "y"}}, Verdict.INCONCLUSIVE),
    ],
)
def test_a_run_passes_only_if_everything_was_measured_and_inside_its_limit(findings, values, verdict):
    assert record_of(*findings, **values).verdict is verdict


def test_flagged_classes_are_those_of_failed_anomaly_indices():
    record = record_of(
        finding_of(Verdict.FAIL, statistic="anomaly_index", target_class=7),
        finding_of(Verdict.FAIL, statistic="anomaly_index", target_class=2),
        finding_of(Verdict.FAIL, statistic="anomaly_index", target_class=7),
        finding_of(Verdict.PASS, statistic="anomaly_index", target_class=1),
        finding_of(Verdict.INCONCLUSIVE, statistic="anomaly_index", target_class=4),
        finding_of(Verdict.FAIL, statistic="attack_success_rate", target_class=5),
    )
    assert record.flagged_classes == (2, 7)


@pytest.mark.parametrize(
    ("finding", "flagged", "suspected"),
    [
        (finding_of(Verdict.FAIL, statistic="anomaly_index"), True, False),
        (finding_of(Verdict.INCONCLUSIVE, statistic="anomaly_index"), False, True),
        (finding_of(Verdict.INCONCLUSIVE, statistic="anomaly_index", value=None), False, False),
        (finding_of(Verdict.FAIL, statistic="anomaly_index", target_class=3), False, False),
        (finding_of(Verdict.INCONCLUSIVE, statistic="anomaly_index", target_class=3), False, False),
        (finding_of(Verdict.FAIL, statistic="clean_accuracy_drop"), False, False),
    ],
)
def test_all_to_all_is_flagged_or_suspected_by_an_anomaly_index_without_a_class(finding, flagged, suspected):
    record = record_of(finding)
    assert record.flagged_all_to_all is flagged
    assert record.suspected_all_to_all is suspected
    assert None not in (*record.flagged_classes, *record.suspected_classes)
    stored = record.to_json()
    assert (stored["flagged_all_to_all"], stored["suspected_all_to_all"]) == (flagged, suspected)


def test_a_written_record_comes_back_equal(tmp_path):
    findings = [
        finding_of(
            Verdict.FAIL,
            settings="NeuralCleanse(steps=240)",
            target_class=3,
            details={"size": 2.5, "nested": [1, "two", None, {"three": True}]},
            artifacts={"trigger": "class_3.png"},
        ),
        inconclusive("anomaly_index", "Bildformat ü, 画像"),
    ]
    record = record_of(*findings, seconds=12.5)
    record.write(tmp_path / "audit.json")
    assert Record.read(tmp_path / "audit.json") == record


def test_the_file_spells_out_the_verdict_for_readers_that_do_not_judge(tmp_path):
    record_of(finding_of(Verdict.FAIL, statistic="anomaly_index", target_class=3)).write(tmp_path / "audit.json")
    stored = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert (stored["verdict"], stored["flagged_classes"], stored["schema_version"]) == ("fail", [3], SCHEMA_VERSION)
    assert stored["findings"][0]["verdict"] == "fail"


def test_json_holds_no_nan(tmp_path):
    def refuse(token):
        raise AssertionError(token)

    record = record_of(
        judge("rate", math.nan, at_most=0.1, reason="no images", details={"p": math.inf, "all": (math.nan, 1.0)}),
        seconds=math.nan,
        environment={"x": -math.inf},
    )
    record.write(tmp_path / "audit.json")
    stored = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert stored["findings"][0]["value"] is None
    assert stored["findings"][0]["details"] == {"p": None, "all": [None, 1.0]}
    assert stored["seconds"] is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"{}",
        b'{"schema_version": 99}',
        b'{"schema_version": "1"}',
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "findings": [{"verdict": "maybe"}]}',
        b'{"schema_version": 1, "findings": [3]}',
        b'{"schema_version": 1, "findings": [], "surprise": 1}',
        None,
    ],
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "audit.json"
    if content is not None:
        path.write_bytes(content)
    with one_line(DataFormatError, "an audit.json of schema version 1 or 2 is accepted", begins=f"{path}: "):
        Record.read(path)


def test_a_folder_of_evidence_says_which_file_to_give(tmp_path):
    (tmp_path / "audit.json").write_text("{}")
    with one_line(DataFormatError, f"is accepted; give {tmp_path / 'audit.json'}", begins=f"{tmp_path}: "):
        Record.read(tmp_path)


def a_number(stored, value):
    stored["findings"][0]["value"] = value


def a_class(stored, value):
    stored["findings"][0]["target_class"] = value


BESIDE = {"file": "b.json", "verdict": "pass", "worse": [], "better": [], "accepted": [], "expired": []}
DAMAGES = {
    "text for a number": (
        lambda stored: a_number(stored, "x"),
        "findings[0].value: 'x' where a number or null belongs",
    ),
    "list for a number": (lambda stored: a_number(stored, [1]), "findings[0].value: a list of 1 where a number"),
    "flag for a number": (lambda stored: a_number(stored, True), "findings[0].value: True where a number"),
    "class below 0": (
        lambda stored: a_class(stored, -1),
        "findings[0].target_class: -1 where a whole number of at least 0",
    ),
    "class of many digits": (lambda stored: a_class(stored, 10**200), "a number of 665 bits where a whole number"),
    "class in parts": (lambda stored: a_class(stored, 1.5), "findings[0].target_class: 1.5 where a whole number"),
    "another verdict": (
        lambda stored: stored["findings"][0].update(verdict="clean"),
        "findings[0].verdict: 'clean' where",
    ),
    "no verdict": (lambda stored: stored["findings"][0].pop("verdict"), "a key is missing: findings[0].verdict"),
    "no findings": (lambda stored: stored.pop("findings"), "a key is missing: findings"),
    "an unknown key": (
        lambda stored: stored["findings"][0].update(colour=1),
        "findings[0].colour: a key that is not known",
    ),
    "a list for the subject": (lambda stored: stored.update(subject=[]), "subject: a list of 0 where an object"),
    "a list of images": (
        lambda stored: stored["subject"].update(images=[1]),
        "subject.images: a list of 1 where a whole",
    ),
    "a name that is none": (
        lambda stored: stored["subject"].update(class_names=[1]),
        "subject.class_names[0]: 1 where a text",
    ),
    "names in a text": (
        lambda stored: stored["subject"].update(class_names="ab"),
        "subject.class_names: 'ab' where a list",
    ),
    "a reason that is none": (lambda stored: stored["skipped"].update(x=3), "skipped.x: 3 where a text belongs"),
    "a number for a detection": (lambda stored: stored.update(detections=[3]), "detections[0]: 3 where an object"),
    "a detection without a name": (
        lambda stored: stored["detections"][0].pop("detector"),
        "a key is missing: detections[0].detector",
    ),
    **{
        f"an item without its {name}": (
            lambda stored, name=name: stored["findings"][0]["item"].pop(name),
            f"a key is missing: findings[0].item.{name}",
        )
        for name in ("question", "asked_of", "row")
    },
    "an empty item": (
        lambda stored: stored["findings"][0].update(item={}),
        "a key is missing: findings[0].item.question",
    ),
    "a number for an item": (
        lambda stored: stored["findings"][0].update(item=3),
        "findings[0].item: 3 where an object",
    ),
    "a row that is no text": (
        lambda stored: stored["findings"][0]["item"].update(row=7),
        "findings[0].item.row: 7 where a text",
    ),
    "an advisory item without its row": (
        lambda stored: stored.update(advisory=[{**stored["findings"][0], "item": {"question": "", "asked_of": ""}}]),
        "a key is missing: advisory[0].item.row",
    ),
    "nobody who answers": (
        lambda stored: stored.update(baseline=BESIDE | {"accepted": [{"finding": "audit::x"}]}),
        "a key is missing: baseline.accepted[0].reason",
    ),
    "a baseline without its file": (lambda stored: stored.update(baseline={}), "a key is missing: baseline.file"),
    "a limit in words": (
        lambda stored: stored["settings"]["limits"].update(a="2"),
        "settings.limits.a: '2' where a number",
    ),
    "a rate in percent": (
        lambda stored: stored["detections"][0]["classes"][0].update(p_value=97),
        "p_value: 97 where a number",
    ),
    "a key of a stranger": (
        lambda stored: stored.update({"\x1b\n::error::": 1}),
        r"['\x1b\n::error::']: a key that is not",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_record_with_something_else_in_it_is_refused_in_one_line_that_names_the_place(tmp_path, name):
    damage, told = DAMAGES[name]
    path = tmp_path / "audit.json"
    record_of(BAD).write(path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    damage(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(DataFormatError) as caught:
        Record.read(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[" * 100_000, "more than 100 deep"),
        ('{"schema_version": 1, "seconds": NaN}', "the number NaN"),
        ('{"schema_version": 1, "seconds": 1e999}', "too large for a float"),
        ('{"schema_version": ' + "1" * 400 + "}", "a number of 400 digits"),
    ],
)
def test_json_that_breaks_readers_is_refused_in_one_line(tmp_path, content, told):
    path = tmp_path / "audit.json"
    path.write_text(content)
    with pytest.raises(DataFormatError, match=told):
        Record.read(path)


def test_a_pipe_in_place_of_a_record_is_refused_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "audit.json")
    with pytest.raises(DataFormatError, match="a pipe, device or socket"):
        Record.read(tmp_path / "audit.json")


def test_a_finding_and_a_record_hold_printable_text_whoever_makes_them(tmp_path):
    text = "caf\udce9 \x1b]0;t\x07\n::error::no"
    shown = r"caf\udce9 \x1b]0;t\x07 : :error::no"
    finding = judge("rate", 0.5, at_most=0.1, reason=text, audit=text, details={text: [text]}, artifacts={text: text})
    assert (finding.reason, finding.audit, finding.details, finding.artifacts) == (
        shown,
        shown,
        {shown: [shown]},
        {shown: shown},
    )
    record = record_of(finding, subject={"class_names": (text,)}, errors={text: text}, not_run=[text])
    assert record.subject["class_names"] == (shown,)
    assert (record.errors, record.not_run) == ({shown: shown}, [shown])
    record.write(tmp_path / "audit.json")
    assert Record.read(tmp_path / "audit.json").errors == {shown: shown}


def test_what_travels_between_processes_is_utf_8():
    value = plain({"caf\udce9": ["\ud800", "\u732b"]})
    assert value == {r"caf\udce9": [r"\ud800", "\u732b"]}
    assert plain(10**400) == 10**400


class Name(str):
    __slots__ = ()


class Number(int):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Verdict.PASS, "pass"),
        (Name("x"), "x"),
        (Number(3), 3),
        (Path("a/b"), "a/b"),
        (np.float64(0.5), 0.5),
        ((1, [True, None]), [1, [True, None]]),
        ({Name("k"): Path("v")}, {"k": "v"}),
    ],
)
def test_plain_values_are_exactly_builtins(value, expected):
    result = plain(value)
    assert result == expected
    assert type(result) is type(expected)
    if isinstance(result, dict):
        assert {type(entry) for pair in result.items() for entry in pair} == {str}
