"""What searches say without twins, from what they said beside some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import alone

MARGINS = (1.0, 2.0, 3.0, 4.0, 30.0)


def row(name: str, twins: str) -> dict[str, object]:
    scores = [
        {
            "kind": "margin",
            "target_class": target,
            "index": 0.1,
            "p_value": 0.9,
            "success_val": 1.0,
            "margin": margin,
            "natural_margin": margin,
            "natural_success": 0.9,
            "excess": 0.0,
            "deviation": 0.0,
        }
        for target, margin in enumerate(MARGINS)
    ]
    part = {"inconclusive": "", "unconverged": "", "median_size": None, "passes": 1, "rows": "target", "means": "x"}
    return {
        "name": name,
        "twins": twins,
        "twin_accuracy": [0.9],
        "properties": {"harmless": {"verdict": "fail"}},
        "detectors": {"smooth": {**part, "scores": scores}, "relabelling": {**part, "scores": [{"margin": 0.5}]}},
    }


@pytest.mark.parametrize(("twins", "kind"), [("plain_grey", "alone_plain"), ("normalised", "alone_normalised")])
def test_what_was_natural_counts_again(twins: str, kind: str) -> None:
    again = {"scores": [{"margin": 0.1}]}
    told = alone.alone(row("one", twins), {"relabelling": again})
    assert (told["twins"], told["twin_accuracy"]) == (kind, [])
    scores = told["detectors"]["smooth"]["scores"]
    assert [score["excess"] for score in scores] == [-2, -1, 0, 1, 27]
    spread = 1.4826  # of -2 -1 0 1 27 the median distance from 0 is 1
    assert scores[4]["deviation"] == pytest.approx(27 / (spread**2 + 0.3**2) ** 0.5, abs=1e-4)
    assert not {"natural_margin", "natural_success", "index", "p_value"} & scores[4].keys()
    assert told["detectors"]["relabelling"] == again
    assert told["properties"] == {}


def test_only_models_whose_relabelling_was_measured_again_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("one", "plain_grey"), row("two", "plain_colour"), row("three", "too few images")]
    (tmp_path / "rows").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    (tmp_path / "again").write_text(json.dumps(row("one", "alone_plain")) + "\n")
    given = ["--rows", "rows", "--again", "again", "--out", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["alone", *given])
    alone.main()
    assert [json.loads(line)["name"] for line in (tmp_path / "out").read_text().splitlines()] == ["one"]
