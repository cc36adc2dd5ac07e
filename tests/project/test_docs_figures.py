"""Figures in the texts are those of the files that the benchmarks and the fixtures wrote."""

from __future__ import annotations

import re
from statistics import mean, median
from typing import Any

import pytest

from backdoor_audit.baseline.difference import INDEX_NOISE, STEERED_NOISE
from backdoor_audit.model.metrics import Rate
from benchmarks import speed
from benchmarks.zoo.population_attacked import ATTACKED as PLANNED_BACKDOORED
from benchmarks.zoo.population_clean import CLEAN as PLANNED_CLEAN
from benchmarks.zoo.subjects import REPAIRED, SUBJECTS
from tests.subjects.figures import RESULTS, rounded, squeezed, stored, told
from tests.subjects.texts import DOCS, ROOT, text_of

README = text_of(ROOT / "README.md")
DETECTION = text_of(DOCS / "detection.md")
COST = text_of(DOCS / "explanation" / "cost.md")
PROPERTIES = text_of(DOCS / "how-to" / "properties.md")
BASELINE = text_of(DOCS / "how-to" / "baseline.md")
NORMS = text_of(DOCS / "explanation" / "norms.md")
ZOO = text_of(DOCS / "explanation" / "zoo.md")
IMAGES = text_of(DOCS / "images.md")


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


def verdicts(name: str = "verdicts", *, hidden: bool) -> list[dict[str, Any]]:
    """The rows of the clean or of the backdoored models."""
    return [entry for entry in stored(RESULTS / f"{name}.json")["models"] if bool(entry["attack"]) is hidden]


def stopped_of(some: list[dict[str, Any]]) -> str:
    return told(sum(bool(entry["stopped"]) for entry in some), len(some))


def test_models_of_strangers_with_the_calibration_that_ships() -> None:
    clean = [entry for entry in verdicts(hidden=False) if entry["maker"] == "strangers"]
    assert stopped_of(clean) in DETECTION
    assert f"{len(clean)} such networks" in DETECTION
    signs = [entry for entry in clean if entry["data"] == "gtsrb"]
    assert stopped_of(signs) in DETECTION
    one_architecture = sum(entry["architecture"] == "signs30" for entry in signs)
    assert (one_architecture, len(signs)) == (12, 13)
    assert "(12 networks of one architecture, one with a spatial transformer)" in DETECTION
    tutorials = sum(entry["architecture"] == "tutorial" for entry in clean)
    assert f"but for the {tutorials} tutorial networks" in DETECTION
    assert sum(entry["architecture"].startswith("resnet20") for entry in clean) == 2
    assert "and two ResNet-20" in squeezed(DETECTION)


def test_how_accurate_the_networks_of_strangers_are() -> None:
    clean = [entry for entry in verdicts(hidden=False) if entry["maker"] == "strangers"]
    accuracies = [entry["accuracy"] for entry in clean]
    assert f"Their clean accuracy is {min(accuracies):.2f} to {max(accuracies):.2f}." in DETECTION
    assert f"with accuracies from {min(accuracies):.2f} to {max(accuracies):.2f} on 1,000 images" in IMAGES
    unmet = sum("precondition" in entry["stopped"] for entry in clean)
    assert f"it alarmed on {told(unmet, len(clean))}" in IMAGES


def test_the_calibrations_have_seen_as_many_networks_as_is_said() -> None:
    """Beside twins: of strangers and of ours, by the words that stand beside every verdict."""
    kinds = {entry["twins"]: entry for entry in stored(ROOT / "backdoor_audit" / "measured_rates.json")["rates"]}
    counts = {}
    for kind in ("plain_grey", "plain_colour", "normalised"):
        found = re.search(r"(\d+) published by other people and (\d+) of our own", kinds[kind]["which"])
        assert found
        counts[kind] = (int(found[1]), int(found[2]))
        assert sum(counts[kind]) == kinds[kind]["models"]
    for kind in ("plain_grey", "normalised"):
        strangers, ours = counts[kind]
        assert f"{strangers} of strangers and {ours} of our own" in DETECTION
    assert f"which has seen {sum(strangers for strangers, _ in counts.values())} of them" in DETECTION


def test_all_clean_models_beside_twins() -> None:
    clean = verdicts(hidden=False)
    for text in (README, DETECTION):
        assert stopped_of(clean) in text
    assert f"those of {sum(entry['maker'] == 'strangers' for entry in clean)} strangers" in README


def test_what_was_measured_beside_the_aim() -> None:
    """The sentence under the tables: that rate, and the upper end of its interval."""
    clean = verdicts(hidden=False)
    rate = Rate(sum(bool(entry["stopped"]) for entry in clean), len(clean))
    measured, at_most = f"{100 * float(rate):.1f}", f"{100 * rate.interval[1]:.1f}"
    assert f"{measured} per cent was measured, and up to {at_most} would fit that" in squeezed(README)
    assert f"{measured} was measured, and up to {at_most} would fit that" in squeezed(DETECTION)


def test_clean_models_that_are_still_flagged_are_named() -> None:
    flagged = [entry for entry in verdicts(hidden=False) if entry["stopped"]]
    part = DETECTION.partition("What is still flagged:")[2].partition("\n###")[0]
    assert part.count("\n* ") == len(flagged)
    for entry in flagged:
        (detector,) = entry["stopped"]
        assert f"* `{entry['name']}`, by `{detector}`, index {entry['largest_index']:.2f}." in part


def test_backdoored_models_that_are_missed_are_named() -> None:
    missed = [entry for entry in verdicts(hidden=True) if not entry["stopped"]]
    part = DETECTION.partition("| missed | index |")[2].partition("\n\n")[0]
    assert part.count("\n| `") == len(missed)
    for entry in missed:
        assert f"| `{entry['name']}` | {entry['largest_index']:.2f} |" in part


def test_the_rate_without_the_trigger_that_was_in_view() -> None:
    hidden = verdicts(hidden=True)
    others = [entry for entry in hidden if entry["name"] != "fmnist-small_vgg-blended-222"]
    assert len(others) == len(hidden) - 1
    assert f"Without it: {stopped_of(others)}." in squeezed(DETECTION)


def test_what_was_in_view_is_of_the_half_that_is_said() -> None:
    halves = {entry["name"].rpartition("-")[2]: entry["half"] for entry in verdicts(hidden=True)}
    (named,) = re.findall(r"Five are of the report half\s+\(`badnets-(\d+)`,([^)]*)\)", DETECTION)
    numbers = [named[0], *re.findall(r"\d+", named[1])]
    assert [halves[number] for number in numbers] == ["report"] * 5


def test_where_a_single_search_and_the_gate_differ() -> None:
    (entry,) = (entry for entry in verdicts(hidden=True) if entry["name"] == "fmnist-small_cnn-tact-278")
    assert entry["stopped"]
    assert f"stops it with index {entry['largest_index']:.2f}, so the table" in squeezed(DETECTION)


def test_how_much_of_the_zoo_is_measured() -> None:
    planned = {subject.name for subject in SUBJECTS if subject.attack}
    left = planned - {entry["name"] for entry in verdicts(hidden=True)}
    assert f"of the zoo's {len(planned)}, {len(left)} were not measured with today's searches" in squeezed(DETECTION)


def test_how_much_of_the_population_is_measured() -> None:
    measured = [sum(entry["maker"] == "population" for entry in verdicts(hidden=hidden)) for hidden in (False, True)]
    planned = (len(PLANNED_CLEAN), len(PLANNED_BACKDOORED))
    assert f"plans {planned[1]} backdoored subjects, of which {measured[1]} are measured" in squeezed(DETECTION)
    assert f"{planned[0]} clean and {planned[1]} backdoored subjects are planned" in squeezed(ZOO)
    assert f"Of these {measured[0]} and {measured[1]} are measured." in squeezed(ZOO)
    assert sum(planned) > 400
    assert "More than 400 further subjects" in text_of(ROOT / "benchmarks" / "zoo" / "README.md")


def test_how_many_models_the_zoo_has() -> None:
    hidden = sum(bool(subject.attack) for subject in SUBJECTS)
    assert f"* {len(SUBJECTS) - hidden} clean and {hidden} backdoored models, and five more backdoored" in ZOO
    assert len(REPAIRED) == 5
    sizes = [file.stat().st_size for file in (ROOT / "benchmarks" / "zoo" / "models").glob("*.safetensors")]
    assert max(sizes) <= 250_000
    assert f"at most 250 KB each, {sum(sizes) / 1e6:.0f} MB together" in ZOO


def test_models_that_no_calibration_has_seen() -> None:
    models = stored(RESULTS / "verdicts.json")["models"]
    clean = [entry for entry in models if not entry["attack"] and entry["half"] == "report"]
    assert stopped_of(clean) in DETECTION
    assert stopped_of(clean) in README
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
    for data in ("fmnist", "cifar10", "gtsrb"):
        some = [entry for entry in hidden if entry["data"] == data and entry["maker"] == "zoo"]
        assert stopped_of(some) in DETECTION
    for line, key, value in (("| population |", "maker", "population"), ("the report half alone |", "half", "report")):
        assert f"{line} {stopped_of([entry for entry in hidden if entry[key] == value])} |" in DETECTION


def test_models_without_twins() -> None:
    models = stored(RESULTS / "verdicts_alone.json")["models"]
    many = [entry for entry in models if entry["data"] in ("gtsrb", "joined")]
    part = squeezed(DETECTION.partition("Measured without twins:")[2].partition("## The detectors")[0])
    clean = [entry for entry in many if not entry["attack"]]
    assert stopped_of(clean) in part
    assert stopped_of([entry for entry in clean if entry["half"] == "report"]) in part
    flagged = [f"`{entry['name']}` by `{name}`" for entry in clean for name in entry["stopped"]]
    assert f"(flagged: {', '.join(flagged)})" in part
    few = [entry for entry in models if entry["attack"] and entry["maker"] == "zoo" and entry not in many]
    for some in (few, [entry for entry in many if entry["attack"]]):
        found = [
            (
                {str(target) for targets in entry["stopped"].values() for target in targets},
                set(map(str, entry["targets"])),
            )
            for entry in some
            if entry["stopped"]
        ]
        right = sum(bool(named & wanted) for named, wanted in found)
        others = sum(bool(named - wanted) for named, wanted in found)
        assert f"{stopped_of(some)} are stopped, {right} of {len(found)} with the right class and {others} with" in part
    missed = [f"`{entry['name']}`" for entry in many if entry["attack"] and not entry["stopped"]]
    assert f"(missed: {', '.join(missed)})" in part


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
    both = [row["properties"][name] | {"targets": row["targets"]} for some in asked().values() for row in some]
    found = [entry for entry in both if entry["verdict"] == "fail" and entry["targets"]]
    right = sum(entry["class"] in entry["targets"] for entry in found)
    seconds = rounded(median(entry["seconds"] for entry in both))
    cells = [cell.strip() for cell in line.strip("|").split("|")][-2:]
    assert cells == [f"{right} of {len(found)}" if found else "", seconds]


def test_all_properties_on_either_half() -> None:
    rows = [row for some in asked().values() for row in some]
    (line,) = (line for line in PROPERTIES.splitlines() if line.startswith("| any of the seven |"))
    assert len(rows[0]["properties"]) == 7
    seconds = median(sum(entry["seconds"] for entry in row["properties"].values()) for row in rows)
    assert line.endswith(f"| {refuted(asked()[True])} of {refuted(asked()[True])} | {rounded(seconds)} |")
    chosen_on = stored(RESULTS / "properties-development.json")["subjects"]
    clean = [row for row in chosen_on if not row["attack"]]
    assert f"{refuted(clean)} of {len(clean)} are refuted" in squeezed(PROPERTIES)
    hidden = [row for row in chosen_on if row["attack"]]
    assert f"({refuted(hidden, 'no_smooth_warp_steers')} of {len(hidden)} on the development half)" in PROPERTIES


def test_what_a_baseline_calls_worse() -> None:
    report = stored(RESULTS / "regression_noise.json")["report"]
    clean, hidden = report["worse_clean"], report["worse_backdoored"]
    worse = [entry["by_verdict"] + entry["by_index_alone"] for entry in (clean, hidden)]
    assert told(worse[0], clean["n"]) in README
    assert told(worse[1], hidden["n"]) in README
    sentence = f"of {clean['n']} pairs of clean models {worse[0]} are called worse by an index"
    assert sentence in squeezed(BASELINE)
    assert f"of {hidden['n']} pairs clean -> backdoored, {worse[1]} by an index or its verdict" in squeezed(BASELINE)
    assert f"and {report['worse_properties']['worse']} by a property" in squeezed(BASELINE)
    assert len(clean["models"]) == 1


def test_what_a_baseline_takes_for_noise() -> None:
    """The largest rise between clean models of the development half, plus a tenth."""
    noise = stored(RESULTS / "regression_noise.json")["development"]
    assert f"among {noise['index']['n']} pairs of clean models" in squeezed(BASELINE)
    largest = {name: 1.1 * noise[name]["largest"] for name in STEERED_NOISE}
    assert f"rises by more than {INDEX_NOISE:.1f} " in BASELINE
    assert pytest.approx(1.1 * noise["index"]["largest"], abs=0.01) == INDEX_NOISE
    for (name, limit), kind in zip(
        STEERED_NOISE.items(), ("patches", "blends", "warps", "harmless changes"), strict=True
    ):
        assert f"{limit:.2f} ({kind})" in BASELINE
        assert limit - 0.01 < largest[name] <= limit + 0.005


def test_the_table_of_norms_is_that_of_its_file() -> None:
    rows = stored(RESULTS / "activation_norms.json")["subjects"]
    kinds = {"patch": "patch, all-to-one", "blend": "blend", "other": "warps, frequencies, encoders and others"}
    for kind, words in kinds.items():
        (line,) = (line for line in NORMS.splitlines() if line.startswith(f"| {words} |"))
        some = [row["separation"] for row in rows if row["kind"] == kind and row["separation"]]
        values = [f"{mean(row[norm] for row in some):.3f}" for norm in ("l1", "l2", "linf")]
        assert f"| {len(some)} | {' | '.join(values)} |" in line
        assert f"| {mean(row['linf'] - row['l1'] for row in some):.3f} [" in line
        assert line.endswith(f"| {sum(row['linf'] == max(row.values()) for row in some)} of {len(some)} |")
    seen = [row for row in rows if row["kind"] == "patch" and None not in (row["inside"], row["inside_twin"])]
    above = [sum(row[place] / row["area"] > 3 for row in seen) for place in ("inside", "inside_twin")]
    assert (
        f"in {above[0]} of {len(seen)} backdoored networks and in {above[1]} of their {len(seen)} clean twins"
        in squeezed(NORMS)
    )


def test_the_models_in_the_repository_are_as_accurate_as_is_said() -> None:
    subjects = stored(ROOT / "fixtures" / "subjects.json")
    for subject in subjects:
        (line,) = (line for line in ZOO.splitlines() if line.startswith(f"| `{subject['name']}` |"))
        assert f"| {subject['architecture']} |" in line
        assert f"| {subject['clean_accuracy']:.3f} |" in line
        if "attack_success_rate" in subject:
            assert f"| {subject['attack_success_rate']:.3f} |" in line
            assert f"| {subject['target_class']} (" in line
