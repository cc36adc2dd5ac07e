"""Fit the null distribution that is shipped: ``python -m benchmarks.calibrate_steering --data-root DIR [--jobs N]``.

The largest deviation that each detector with twins measures on each clean subject of the zoo's *development* half: the
distribution is fitted to those with 10 classes, and widened where one with 43 would be flagged. No rate is reported on them.
Writes ``backdoor_audit/steering_null.json``; detections come from the cache of ``benchmarks.detection`` where they are there.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from backdoor_audit.calibrate import fitted, largest_deviation
from backdoor_audit.detectors import DETECTORS, Detection, UniversalPerturbation
from benchmarks.detection import detect
from benchmarks.jobs import finished
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import SUBJECTS

SHIPPED = Path(__file__).parent.parent / "backdoor_audit" / "steering_null.json"
FITTED = 10  # classes
SEARCHES = [entry for entry in DETECTORS if isinstance(entry, UniversalPerturbation)]


def searched(subject: Subject, root: Path) -> list[Detection]:
    """What every detector with twins found on one subject."""
    return [detect(subject, entry, root, 0) for entry in SEARCHES]


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="subjects at a time, one thread each (default: 1)")
    options = parser.parse_args()
    clean = [entry for entry in SUBJECTS if entry.half == "development" and not entry.attack]
    found = {}
    for subject, result in finished(partial(searched, root=options.data_root), clean, options.jobs):
        found[subject.name] = result()
        print(
            f"{subject.name:48} " + " ".join(f"{largest_deviation(entry) or 0:5.2f}" for entry in result()), flush=True
        )
    source = f"the {len(clean)} clean subjects of the zoo's development half"
    null = fitted([found[subject.name] for subject in clean], classes=FITTED, source=source)
    null.save(SHIPPED)
    for name in null.fits:
        cuts = ", ".join(f"{null.cut(name, classes):.2f} at {classes} classes" for classes in (10, 43))
        print(f"{name}: index 2 is a deviation of {cuts}")


if __name__ == "__main__":
    main()
