"""What the same searches say without twins: ``python -m benchmarks.alone --rows FILE --again FILE --out FILE``.

A search on the audited model is the same with twins or without them, and rows of ``benchmarks.verdicts`` hold its margins. So
what stands out among the classes of the model alone is computed from these; only `relabelling`, whose rows hold no more than
the best of its probes, and `patch_scan`, which beside twins judges some classes by smaller windows, are measured again:
``python -m benchmarks.verdicts --alone --detectors relabelling,patch_scan``. Rows of models that were measured ``--alone`` in
full need none of this. The rows that are written can be told and fitted like all others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from backdoor_audit.detectors import DETECTORS, UniversalPerturbation
from backdoor_audit.detectors.excess import weighed
from backdoor_audit.search.twins import ALONE, KINDS
from benchmarks.verdicts import Row, read_rows


def alone(row: Row, again: Mapping[str, Row]) -> Row:
    """A row without twins; ``again`` are the parts of those detectors that were measured so."""
    floors = {entry.name: entry.floor for entry in DETECTORS if isinstance(entry, UniversalPerturbation)}
    parts = {
        name: {**part, "scores": _scores(part["scores"], floors[name])} if name in floors else part
        for name, part in row["detectors"].items()
    }
    kind, found = ALONE[row["twins"] == "normalised"], {**parts, **again}
    return {**row, "twins": kind, "twin_accuracy": [], "detectors": found, "properties": {}}  # those had asked twins


def _scores(scores: list[Row], floor: float) -> list[Row]:
    """Scores of a search for every class, compared with each other."""
    margins, success = (torch.tensor([score[name] for score in scores]) for name in ("margin", "success_val"))
    excess, _, deviations = weighed(margins, success, None, len(scores), floor=floor)
    kept = [
        {
            name: value
            for name, value in score.items()
            if not name.startswith("natural") and name not in ("index", "p_value")
        }
        for score in scores
    ]
    return [
        {**score, "excess": round(more, 4), "deviation": round(deviation, 4)}
        for score, more, deviation in zip(kept, excess, deviations, strict=True)
    ]


def joined(rows: list[Row], again: Mapping[str, Row]) -> list[Row]:
    """All rows of models with up to twenty classes that were compared with twins, without them."""
    told = [row for row in rows if row.get("twins") in KINDS and row["name"] in again]
    return [alone(row, again[row["name"]]["detectors"]) for row in told]


def main() -> None:
    """Read, compute, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="what benchmarks.verdicts gathered")
    parser.add_argument(
        "--again", type=Path, required=True, help="the same models, --alone --detectors relabelling,patch_scan"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    again = {row["name"]: row for row in read_rows(options.again)}
    made = joined(read_rows(options.rows), again)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in made))
    print(f"{len(made)} models without twins")


if __name__ == "__main__":
    main()
