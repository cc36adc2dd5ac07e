"""What the pages say of repairs is what the files of their benchmarks hold."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks import harmlessness
from tests.subjects.figures import RESULTS, rounded, squeezed, stored
from tests.subjects.texts import DOCS, text_of

REPAIRS, FULL_SIZE = text_of(DOCS / "explanation" / "repairs.md").split("## Networks of ordinary accuracy")


def test_what_repairs_cost_clean_models() -> None:
    rows = stored(RESULTS / "harmlessness.json")["models"]
    for maker in ("strangers", "zoo"):
        assert harmlessness.summary([row for row in rows if row["maker"] == maker]) in REPAIRS
    repaired = [row for row in rows if "lost" in row]
    *most, worst = sorted((row for row in repaired if row["maker"] == "strangers"), key=lambda row: row["lost"])
    assert f"a network of {100 * worst['before']:.0f} % on CIFAR-10" in REPAIRS
    assert f"The other eight of strangers lose {told_losses(most)}" in REPAIRS
    assert len(most) == 8
    seen = ("c-0b31b5", "a-0d9b68", "j-87359e", "a-835af4", "bn-a-c0e9c4")
    assert f"The other three lose {told_losses([row for row in most if not row['name'].endswith(seen)])}" in REPAIRS
    ours = [row["lost"] for row in repaired if row["maker"] == "zoo" and not row["name"].endswith(("-106", "-103"))]
    assert f"the zoo's other three {rounded(100 * mean(ours), 2)} and {rounded(100 * max(ours), 2)}." in REPAIRS


def told_losses(rows: list[dict[str, Any]]) -> str:
    lost = [100 * row["lost"] for row in rows]
    return (
        f"{rounded(mean(lost), 2)}{' points' if len(rows) > 3 else ''} on average and {rounded(max(lost), 2)} at most"
    )


def test_what_repairs_cost_a_clean_model_that_is_not_flagged() -> None:
    subjects = stored(RESULTS / "mitigation.json")["subjects"]
    (rows,) = (rows for name, rows in subjects.items() if "clean" in name)
    variants = {"before", "auto", "salience_highest", "nad_no_distillation"}
    lost = {
        name: 100 * (rows["before"]["accuracy"] - row["accuracy"]) for name, row in rows.items() if name not in variants
    }
    dear = {name: points for name, points in lost.items() if points > 2}
    assert (len(lost) - len(dear), len(lost)) == (12, 15)
    told_dear = ", ".join(f"`{name}` {points:.1f}" for name, points in dear.items())
    assert (
        f"twelve of fifteen methods cost at most 2 points; {told_dear}.".replace(
            "`nc_unlearning` ", "`nc_unlearning` costs "
        )
        in REPAIRS
    )


def test_what_was_tried_with_fmp() -> None:
    rows = stored(RESULTS / "mitigation_ablations.json")["rows"]
    whole = rows["before"]["accuracy"]
    left = {name: f"{100 * row['success']:.0f}" for name, row in rows.items()}
    cost = {name: f"{100 * (whole - row['accuracy']):.0f}" for name, row in rows.items()}
    fewer, more = "fmp, 500 clean images", "fmp, 2500 clean images"
    text = squeezed(REPAIRS)
    assert f"it leaves {left[fewer]} % for {cost[fewer]} points." in text
    assert f"it leaves {left[more]} % for {cost[more]} points, where fine-tuning on as many leaves" in text
    assert f"on as many leaves {left['fine_tuning, 2500 clean images']} %" in text
    assert (
        f"(p = 8: {left['fmp, p 8']} %, p = 2: {left['fmp, p 2']} %) costs {cost['fmp, p 8']} and {cost['fmp, p 2']} points"
        in text
    )
    sparse = [100 * rows[f"poison rate 2.0%, {name}"]["success"] for name in ("nc_unlearning", "distilled_unlearning")]
    assert (
        f"FMP leaves {left['poison rate 2.0%, fmp']} %, the two unlearnings {sparse[0]:.1f} and {sparse[1]:.1f} %"
        in text
    )


def test_what_is_said_below_the_table_of_repairs() -> None:
    rows = repaired()
    left = {name: f"{100 * mean(row['success'] for row in some):.1f}" for name, some in rows.items()}
    whole = mean(row["accuracy"] for row in rows["before"])
    cost = {name: f"{100 * (whole - mean(row['accuracy'] for row in some)):.1f}" for name, some in rows.items()}
    text = squeezed(REPAIRS)
    for sentence in (
        f"it removes more ({left['nc_unlearning']} % left on average) and costs {cost['nc_unlearning']} points",
        f"it leaves {left['distilled_unlearning']} % and costs {cost['distilled_unlearning']}.",
        f"{left['fmp']} % are left, as after plain fine-tuning ({left['fine_tuning']} %)",
        f"leaves {left['salience_highest']} %, the *lowest*, as their text says, {left['benign_salience']} %",
        f"attention distillation leaves {left['nad']} %, the same training without it (beta = 0) {left['nad_no_distillation']} %",
    ):
        assert sentence in text, sentence


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


def test_what_is_said_below_the_table_of_networks_of_ordinary_accuracy() -> None:
    subjects = stored(RESULTS / "mitigation_full_size.json")["subjects"]
    hidden = {name: rows for name, rows in subjects.items() if "clean" not in name}
    known = [100 * rows["before"]["accuracy"] for rows in hidden.values()]
    assert f"These know {rounded(min(known))} to {rounded(max(known))} %" in FULL_SIZE

    def left(name: str) -> str:
        return f"{rounded(100 * mean(rows[name]['success'] for rows in hidden.values()), 1)} %"

    def cost(name: str) -> str:
        whole = mean(rows["before"]["accuracy"] for rows in hidden.values())
        return rounded(100 * (whole - mean(rows[name]["accuracy"] for rows in hidden.values())), 1)

    rest = [100 * rows["nc_unlearning"]["success"] for name, rows in hidden.items() if "-sig-" not in name]
    text = squeezed(FULL_SIZE)
    for sentence in (
        f"{left('nc_unlearning')} are left on average for {cost('nc_unlearning')} points",
        f"without `sig` {rounded(min(rest), 1)} to {rounded(max(rest), 1)} %",
        f"own answers leaves {left('distilled_unlearning')} for {cost('distilled_unlearning')} points",
        f"FT-SAM leaves {left('ft_sam')} for {cost('ft_sam')} points, FST {left('fst')} for {cost('fst')}",
        f"fine-tuning alone {left('fine_tuning')} for {cost('fine_tuning')}",
        f"on average and costs {cost('nc_unlearning_128')} points",
    ):
        assert sentence in text, sentence
