"""Figures in the texts are those of the files that the benchmarks and the fixtures wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from backdoor_audit.model.metrics import Rate
from benchmarks import harmlessness, speed
from tests.subjects.texts import DOCS, ROOT, text_of

RESULTS = ROOT / "benchmarks" / "results"
README = text_of(ROOT / "README.md")
DETECTION = text_of(DOCS / "detection.md")
COST = text_of(DOCS / "explanation" / "cost.md")
PROPERTIES = text_of(DOCS / "how-to" / "properties.md")
BASELINE = text_of(DOCS / "how-to" / "baseline.md")
REPAIRS, FULL_SIZE = text_of(DOCS / "explanation" / "repairs.md").split("## Networks of ordinary accuracy")
NORMS = text_of(DOCS / "explanation" / "norms.md")
ZOO = text_of(DOCS / "explanation" / "zoo.md")


def stored(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def told(hits: int, n: int, digits: int = 1) -> str:
    """``3 of 35 = 8.6 % [3.0 %, 22.4 %]``, as the texts write it."""
    rate = Rate(hits, n)
    low, high = rate.interval

    def percent(share: float) -> str:
        return f"{100 * share:.{digits}f} %" if share else "0 %"

    return f"{hits} of {n} = {percent(rate)} [{percent(low)}, {percent(high)}]"


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_a_rate_is_told_as_the_texts_write_it() -> None:
    assert told(3, 35) == "3 of 35 = 8.6 % [3.0 %, 22.4 %]"
    assert told(0, 13) == "0 of 13 = 0 % [0 %, 22.8 %]"
    assert told(15, 27, 0) == "15 of 27 = 56 % [37 %, 72 %]"


def test_the_rates_beside_every_verdict_are_those_in_the_texts() -> None:
    rates = stored(ROOT / "backdoor_audit" / "measured_rates.json")["rates"]
    assert rates
    for entry in rates:
        sentence = told(entry["stopped"], entry["models"])
        assert sentence in README
        assert sentence in DETECTION


def test_what_searches_announce_and_what_others_take() -> None:
    assert speed.announced() in COST
    assert speed.others() in COST


def test_models_of_strangers_with_the_calibration_that_ships() -> None:
    models = stored(RESULTS / "verdicts.json")["models"]
    clean = [entry for entry in models if not entry["attack"] and entry["maker"] == "strangers"]
    assert told(sum(bool(entry["stopped"]) for entry in clean), len(clean)) in DETECTION
    signs = [entry for entry in clean if entry["data"] == "gtsrb"]
    assert told(sum(bool(entry["stopped"]) for entry in signs), len(signs)) in DETECTION


def test_all_clean_models_beside_twins() -> None:
    clean = [entry for entry in stored(RESULTS / "verdicts.json")["models"] if not entry["attack"]]
    for text in (README, DETECTION):
        assert told(sum(bool(entry["stopped"]) for entry in clean), len(clean)) in text
    assert f"those of {sum(entry['maker'] == 'strangers' for entry in clean)} strangers" in README


def test_models_that_no_calibration_has_seen() -> None:
    models = stored(RESULTS / "verdicts.json")["models"]
    clean = [entry for entry in models if not entry["attack"] and entry["half"] == "report"]
    assert told(sum(bool(entry["stopped"]) for entry in clean), len(clean)) in DETECTION
    hidden = [entry for entry in models if entry["attack"]]
    stopped = [entry for entry in hidden if entry["stopped"]]
    assert told(len(stopped), len(hidden)) in README
    assert told(len(stopped), len(hidden)) in DETECTION
    named = [{str(target) for targets in entry["stopped"].values() for target in targets} for entry in stopped]
    asked_for = [set(map(str, entry["targets"])) for entry in stopped]
    right = sum(bool(found & wanted) for found, wanted in zip(named, asked_for, strict=True))
    others = sum(bool(found - wanted) for found, wanted in zip(named, asked_for, strict=True))
    assert f"{right} of {len(stopped)} with the right class and {others} with a wrong one" in squeezed(DETECTION)
    assert f"right class {right} of {len(stopped)}" in README
    for data in ("fmnist", "cifar10"):
        some = [entry for entry in hidden if entry["data"] == data and entry["maker"] == "zoo"]
        assert told(sum(bool(entry["stopped"]) for entry in some), len(some)) in DETECTION


def test_models_without_twins() -> None:
    models = stored(RESULTS / "verdicts_alone.json")["models"]
    many = [entry for entry in models if entry["data"] in ("gtsrb", "joined")]
    for some in (
        [entry for entry in many if not entry["attack"]],
        [entry for entry in many if not entry["attack"] and entry["half"] == "report"],
        [entry for entry in many if entry["attack"]],
        [entry for entry in models if entry["attack"] and entry["maker"] == "zoo" and entry not in many],
    ):
        assert told(sum(bool(entry["stopped"]) for entry in some), len(some)) in DETECTION


def test_what_repairs_cost_clean_models() -> None:
    rows = stored(RESULTS / "harmlessness.json")["models"]
    for maker in ("strangers", "zoo"):
        assert harmlessness.summary([row for row in rows if row["maker"] == maker]) in REPAIRS


def asked() -> dict[bool, list[dict[str, Any]]]:
    """What was asked of clean (False) and of backdoored subjects (True) of the report half: verdicts and classes by property."""
    rows = stored(RESULTS / "properties-report.json")["subjects"]
    return {hidden: [row for row in rows if bool(row["attack"]) is hidden] for hidden in (False, True)}


def refuted(rows: list[dict[str, Any]], name: str = "") -> int:
    """Rows in which a property, or any, was refuted."""
    return sum(
        any(entry["verdict"] == "fail" for key, entry in row["properties"].items() if name in ("", key)) for row in rows
    )


def test_properties_on_the_report_half() -> None:
    rows = asked()
    for hidden, some in rows.items():
        assert told(refuted(some), len(some)) in README, hidden
        assert told(refuted(some), len(some), 0) in PROPERTIES, hidden


@pytest.mark.parametrize("name", [name for name in asked()[True][0]["properties"] if name in PROPERTIES])
def test_each_property_on_the_report_half(name: str) -> None:
    (line,) = (line for line in PROPERTIES.splitlines() if line.startswith(f"| `{name}` |"))
    for some in asked().values():
        hits = refuted(some, name)
        assert (told(hits, len(some), 0) if hits else f"{hits} of {len(some)}") in line


def test_what_a_baseline_calls_worse() -> None:
    report = stored(RESULTS / "regression_noise.json")["report"]
    clean, hidden = report["worse_clean"], report["worse_backdoored"]
    worse = [entry["by_verdict"] + entry["by_index_alone"] for entry in (clean, hidden)]
    assert told(worse[0], clean["n"]) in README
    assert told(worse[1], hidden["n"]) in README
    sentence = f"of {clean['n']} pairs of clean models {worse[0]} are called worse by an index"
    assert sentence in squeezed(BASELINE)
    assert f"of {hidden['n']} pairs clean -> backdoored, {worse[1]} by an index or its verdict" in squeezed(BASELINE)


def repaired() -> dict[str, list[dict[str, Any]]]:
    """The rows of each method over the seven backdoored models of CIFAR-10, in the order of the file."""
    subjects = stored(RESULTS / "mitigation.json")["subjects"]
    hidden = [rows for name, rows in subjects.items() if name.startswith("cifar10-") and "clean" not in name]
    return {method: [rows[method] for rows in hidden] for method in hidden[0]}


def cell(*rows: dict[str, Any]) -> str:
    return " / ".join(f"{100 * mean(row[key] for row in rows):.1f}" for key in ("accuracy", "success", "robust"))


def test_the_table_of_repairs_is_that_of_its_file() -> None:
    found = {line.split(" | ")[0].strip("|` "): line for line in REPAIRS.splitlines() if line.count(" / ") > 10}
    methods = {name: rows for name, rows in repaired().items() if name in found}
    assert len(methods) > 10
    for name, rows in methods.items():
        assert " | ".join([*map(cell, rows), cell(*rows)]) in found[name], name


def test_the_table_of_networks_of_ordinary_accuracy_is_that_of_its_file() -> None:
    subjects = stored(RESULTS / "mitigation_full_size.json")["subjects"]
    hidden = [rows for name, rows in subjects.items() if "clean" not in name]
    lines = [line for line in FULL_SIZE.splitlines() if line.count(" / ") > 6]
    assert len(lines) >= 6
    for line in lines:
        rows = [rows[line.split(" | ")[0].strip("|` ")] for rows in hidden]
        assert line.endswith("| " + " | ".join([*map(cell, rows), cell(*rows)]) + " |"), line
    (clean,) = (rows for name, rows in subjects.items() if "clean" in name)
    lost = {name: f"{100 * (clean['before']['accuracy'] - row['accuracy']):.1f}" for name, row in clean.items()}
    for name in ("nc_unlearning", "distilled_unlearning", "fine_tuning", "fst", "ft_sam"):
        assert f"`{name}` {lost[name]}" in FULL_SIZE
    assert f"{lost['nc_unlearning_128']} and {lost['distilled_unlearning_128']} points" in FULL_SIZE
    blended = next(rows for name, rows in subjects.items() if "blended" in name)
    for name in ("ft_sam_gentle", "nc_unlearning_gentle"):
        row = blended[name]
        lost_there = blended["before"]["accuracy"] - row["accuracy"]
        assert f"{100 * row['success']:.1f} % for {100 * lost_there:.1f} points" in FULL_SIZE


def test_the_table_of_norms_is_that_of_its_file() -> None:
    rows = stored(RESULTS / "activation_norms.json")["subjects"]
    (patches,) = (line for line in NORMS.splitlines() if line.startswith("| patch, all-to-one |"))
    some = [row for row in rows if row["kind"] == "patch" and row["separation"]]
    values = [f"{mean(row['separation'][norm] for row in some):.3f}" for norm in ("l1", "l2", "linf")]
    assert f"| {len(some)} | {' | '.join(values)} |" in patches


def test_the_models_in_the_repository_are_as_accurate_as_is_said() -> None:
    subjects = stored(ROOT / "fixtures" / "subjects.json")
    for subject in subjects:
        (line,) = (line for line in ZOO.splitlines() if line.startswith(f"| `{subject['name']}` |"))
        assert f"| {subject['architecture']} |" in line
        assert f"| {subject['clean_accuracy']:.3f} |" in line
        if "attack_success_rate" in subject:
            assert f"| {subject['attack_success_rate']:.3f} |" in line
            assert f"| {subject['target_class']} (" in line
