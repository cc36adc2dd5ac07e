"""The gate on 43 classes: ``python -m benchmarks.gtsrb --data-root DIR``.

Trains one clean and one BadNets PreActResNet-18 of reduced width on GTSRB at 32x32 pixels and audits both as ``pytest
--model`` does, with 23 test images of each class; accuracy and attack success rate are measured on the other test images. ``DIR``
holds ``gtsrb32_train.npz`` and ``gtsrb32_test.npz`` (``images`` uint8, ``labels``), or torchvision's copy of GTSRB.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from backdoor_audit import audit
from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.loading import save_classifier
from benchmarks.detection import CACHE, RESULTS
from fixtures.build import Subject, measure, train

PER_CLASS = 23  # about 1,000 audited images
SUBJECTS = tuple(
    Subject(
        name=f"gtsrb-{attack}",
        architecture="preact_resnet18",
        seed=seed,
        attack=attack,
        target_class=target,
        poison_rate=0.05 if target is not None else 0.0,
        epochs=4,
        width=8,
        image_shape=(3, 32, 32),
    )
    for seed, attack, target in ((11, "none", None), (12, "badnets", 33))
)


def read(root: Path, split: str) -> CleanSet:
    """All images of ``train`` or ``test``."""
    stored = root / f"gtsrb32_{split}.npz"
    return (
        load_clean_set(stored)
        if stored.exists()
        else load_clean_set(f"torchvision:GTSRB?root={root}&split={split}", resize=32)
    )


def main() -> None:
    """Train what is missing, audit, print one line per subject."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with the data")
    parser.add_argument("--train-only", action="store_true", help="stop when both models are there")
    options = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    test = read(options.data_root, "test")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    by_class = [order[test.labels[order] == label] for label in range(test.num_classes)]
    audited = torch.cat([chosen[:PER_CLASS] for chosen in by_class])
    rest = torch.cat([chosen[PER_CLASS:] for chosen in by_class])
    missing = [subject for subject in SUBJECTS if not (CACHE / f"{subject.name}.safetensors").exists()]
    training = read(options.data_root, "train") if missing else test
    for subject in missing:
        classifier = train(subject, training.images, training.labels)
        row = measure(subject, classifier, test.images[rest], test.labels[rest])
        save_classifier(classifier, CACHE / f"{subject.name}.safetensors", half=True)
        (CACHE / f"{subject.name}.json").write_text(json.dumps(row))
        print(json.dumps(row), flush=True)
    if options.train_only:
        return
    rows = []
    for subject in SUBJECTS:
        record = audit(
            CACHE / f"{subject.name}.safetensors", test.images[audited], test.labels[audited], store=CACHE / "gtsrb"
        )
        detection = record.detections[0]
        smallest = min(detection["classes"], key=lambda score: score["size"])
        row = {
            "subject": subject.name,
            "target_class": subject.target_class,
            "verdict": record.verdict.value,
            "flagged_classes": list(record.flagged_classes),
            "smallest": smallest["target_class"],
            **{name: smallest[name] for name in ("size", "size_ratio", "index", "log_index", "paper_index")},
            "median_size": detection["median_size"],
            "seconds_detection": round(detection["seconds"]),
            "seconds": round(record.seconds),
            "image_passes_per_class": max(score["image_passes"] for score in detection["classes"]),
            "findings_not_passed": [
                f"{entry.audit}: {entry.reason}" for entry in record.findings if entry.verdict != "pass"
            ],
        }
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gtsrb.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
