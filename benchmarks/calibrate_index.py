"""Rebuild the table that gives an anomaly index of 2 one false-alarm rate: ``python -m benchmarks.calibrate_index``.

For every number of classes, outlier-free sizes are drawn log-normal and independent, and the quantiles of the largest
log index are kept. The raw rule's false-alarm rates are printed beside it, to show why the table is needed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import backdoor_audit
from backdoor_audit.search.anomaly import FALSE_ALARM_RATE, MAD_TO_DEVIATION, PROBABILITIES, simulate_null

CLASSES = (*range(5, 21), 25, 30, 40, 43, 50, 75, 100, 150, 200, 300, 500, 1000)
SEED = 20190519


def draws(classes: int) -> int:
    """Fewer draws where each one is longer."""
    return 400_000 if classes <= 100 else 100_000


def raw_rule_false_alarms(classes: int) -> float:
    """Share of outlier-free models with normal sizes that have a raw index above 2."""
    values = np.random.default_rng([SEED, classes, 2]).standard_normal((20_000, classes))
    below = np.median(values, axis=1, keepdims=True) - values
    return float((below.max(axis=1) > 2 * MAD_TO_DEVIATION * np.median(np.abs(below), axis=1)).mean())


def main() -> None:
    """Write the table into the package and print the cuts."""
    quantiles = {}
    print(f"classes   cut for {FALSE_ALARM_RATE:.0%}   false alarms of 'index > 2'")
    for classes in CLASSES:
        row = simulate_null(classes, draws=draws(classes), seed=SEED)
        quantiles[str(classes)] = [round(value, 4) for value in row]
        cut = row[PROBABILITIES.index(FALSE_ALARM_RATE)]
        print(f"{classes:7d}   {cut:10.2f}   {raw_rule_false_alarms(classes):.1%}", flush=True)
    stored = {"seed": SEED, "probabilities": PROBABILITIES, "quantiles": quantiles}
    lines = json.dumps(stored, indent=1).replace("\n   ", " ").replace("\n  ]", " ]")
    (Path(backdoor_audit.__file__).parent / "search" / "anomaly_null.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
