"""What a repair costs a clean model: ``python -m benchmarks.harmlessness --data-root DIR --models zoo|population|FOLDER``.

A clean model that was flagged by mistake is repaired like any other. So the class that Neural Cleanse finds easiest is taken for
a target, its trigger for the attacker's, and ``backdoor-audit repair --method auto`` does the rest, with the quick profile. Lost
accuracy is measured on test images that neither repair nor audit has seen. ``--most`` bounds the number of models, and
``--rows FILE`` keeps what is finished, and goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import NeuralCleanse
from backdoor_audit.errors import AuditError
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.options import AuditOptions
from backdoor_audit.repair import repair
from backdoor_audit.store import Store
from benchmarks.jobs import finished
from benchmarks.measured import RESULTS, Candidate
from benchmarks.verdicts import candidates, read_rows
from benchmarks.zoo.data import audited_and_held_out

GIVEN, MEASURED = 1000, 4000  # images to repair with, and at most so many to measure on

Row = dict[str, Any]


def harmed(candidate: Candidate, root: Path) -> Row:
    """What a repair of this clean model costs."""
    began = time.perf_counter()
    given, unseen = _halves(candidate, root)
    run = candidate.run()
    found = run.found(NeuralCleanse())
    easiest = max(found.scores, key=lambda row: row.index or 0.0)
    trigger = found.trigger(easiest.target_class)
    row: Row = {"name": candidate.name, "maker": candidate.maker, "architecture": candidate.architecture}
    if trigger is None:
        return {**row, "refused": "no trigger was found for any class"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trigger.save(folder / "trigger.safetensors")
        pixels = (255 * given.images).round().byte().permute(0, 2, 3, 1).numpy()
        np.savez(folder / "images.npz", images=pixels, labels=given.labels.numpy())
        _, mean, std = candidate.load()
        options = AuditOptions(
            model=str(candidate.file),
            data=str(folder / "images.npz"),
            arch=candidate.arch or "",
            mean=mean,
            std=std,
            trigger=str(folder / "trigger.safetensors"),
            profile="quick",
            device="cpu",
        )
        out = folder / "repaired.safetensors"
        attempts = repair(options, out, store=Store(folder / "store"))
        row |= {"tried": [str(attempt) for attempt in attempts], "seconds": round(time.perf_counter() - began)}
        if not out.exists():
            return {**row, "refused": "no method held"}
        taken = next(attempt for attempt in reversed(attempts) if not attempt.refused)
        network = load_classifier(out, arch=candidate.arch, mean=mean, std=std)
        rates = [clean_accuracy(one, unseen.images, unseen.labels) for one in (run.classifier, network)]
    before, after = (float(rate) for rate in rates)
    return {**row, "method": taken.method, "before": before, "after": after, "lost": before - after, "n": len(unseen)}


def _halves(candidate: Candidate, root: Path) -> tuple[CleanSet, CleanSet]:
    """Test images to repair with, and others to measure on."""
    if candidate.maker != "strangers":
        given, others = audited_and_held_out(candidate.data, root)
        return given, others.sample(MEASURED, 0)
    images = candidate.images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    return _chosen(images, order[:GIVEN]), _chosen(images, order[GIVEN : GIVEN + MEASURED])


def _chosen(images: CleanSet, numbers: torch.Tensor) -> CleanSet:
    return CleanSet(images.images[numbers], images.labels[numbers], images.class_names, images.source)


def work(name: str, *, models: str, root: Path) -> Row:
    """One model by its name, in a worker process."""
    candidate = next(entry for entry in candidates(models, root) if entry.name == name)
    try:
        return harmed(candidate, root)
    except AuditError as error:
        return {"name": name, "maker": candidate.maker, "architecture": candidate.architecture, "refused": str(error)}


def table(rows: list[Row]) -> str:
    """One line for each model, then mean and worst by who trained them."""
    lines = ["| model | method | accuracy | after | points lost |", "|---|---|---:|---:|---:|"]
    for row in rows:
        if "lost" in row:
            cells = (f"`{row['method']}`", f"{row['before']:.1%}", f"{row['after']:.1%}", f"{100 * row['lost']:.2f}")
        else:
            cells = (row["refused"], "", "", "")
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    for maker in sorted({row["maker"] for row in rows}):
        lines.append(f"{maker}: {summary([row for row in rows if row['maker'] == maker])}")
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """Mean and worst loss in words, and of how many models nothing was written."""
    lost = [100 * row["lost"] for row in rows if "lost" in row]
    if not lost:
        return f"of {len(rows)} nothing was written"
    told = f"mean {statistics.mean(lost):.2f}, worst {max(lost):.2f} points of {len(lost)} models"
    left = len(rows) - len(lost)
    return told + (f"; of {left} nothing was written" if left else "")


def main() -> None:
    """Repair, print a line for each model and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="zoo, population, or a folder of published networks")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder with the data (default: data)")
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--most", type=int, default=10, help="so many models at most (default: 10)")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each (default: 1)")
    parser.add_argument("--rows", type=Path, default=None, help="gather the rows of several calls (JSON lines)")
    parser.add_argument("--write", action="store_true", help="write results/harmlessness.json, the rows in brief")
    options = parser.parse_args()
    rows = read_rows(options.rows)
    if options.models:
        clean = [entry for entry in candidates(options.models, options.data_root) if not entry.attack]
        names = [entry.name for entry in clean if options.only in entry.name][: options.most]
        names = [name for name in names if name not in {row["name"] for row in rows}]
        for _, result in finished(partial(work, models=options.models, root=options.data_root), names, options.jobs):
            rows.append(result())
            print(rows[-1], flush=True)
            if options.rows is not None:
                with options.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))
    if options.write:
        brief = [{name: value for name, value in row.items() if name not in ("tried", "seconds")} for row in rows]
        text = ",\n".join(json.dumps(row) for row in brief)
        command = "python -m benchmarks.harmlessness"
        (RESULTS / "harmlessness.json").write_text(f'{{"command": "{command}", "models": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
