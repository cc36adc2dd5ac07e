"""Which norm sees a trigger best, and does the network look at it: ``python -m benchmarks.activation_norms --data-root DIR``.

Cheng et al. (arXiv 2002.12162) say that a trigger shows best in the l-infinity norm of the last feature map. For every subject
of the zoo with one target class: the `separation` of l1, l2 and l-infinity norms between clean images (those that an audit gets,
of the classes that the attack claims) and the same with the *attacker's* trigger. Then, per kind of trigger, the means, and
how far l-infinity lies above the others, with 95 % bootstrap intervals over subjects. For patches also which share of the
target's Grad-CAM lies on the patch, beside the patch's share of the image, in the subject and in its clean twin. Takes two
minutes. Nothing is chosen on these figures, so both halves of the zoo are used.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from backdoor_audit.attacks import Attack, load_attack
from backdoor_audit.model.activations import NORMS, channel_auc, channel_norms, separation
from backdoor_audit.model.metrics import Rate
from backdoor_audit.run.grad_cam import grad_cam, inside_share, localised_support
from benchmarks.jobs import finished
from benchmarks.measured import RESULTS
from benchmarks.zoo.build import read_table
from benchmarks.zoo.data import audited_and_held_out
from benchmarks.zoo.subject import Subject
from benchmarks.zoo.subjects import EVERY

KINDS = {
    "patch": ("badnets", "trojannn", "adaptive_patch", "several_triggers"),
    "patch, weights edited": ("planted_channel", "bit_trojan", "architectural_branch"),
    "patch, one source class": ("tact",),
    "blend": ("blended", "adaptive_blend"),
}
OTHER = "other"
TIMES_AREA = 3.0  # a map with this many times the patch's share of the image on the patch looks at it
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One subject. ``separation`` and ``best_channel`` (the largest `channel_auc`) are by norm, None without a feature map.

    ``inside`` is the share of the target's Grad-CAM on the patch, ``inside_twin`` the same in the clean twin, ``area`` the
    patch's share of the image; None for triggers that are no patch.
    """

    subject: str
    attack: str
    kind: str
    images: int
    separation: dict[str, float] | None
    best_channel: dict[str, float] | None = None
    inside: float | None = None
    inside_twin: float | None = None
    area: float | None = None


def kind_of(attack: str) -> str:
    """The row of the table that an attack counts in."""
    return next((kind for kind, names in KINDS.items() if attack in names), OTHER)


def measured(subject: Subject, *, twin: Subject | None, root: Path) -> Row:
    """One subject with its attacker's trigger; of several triggers the first."""
    attack = load_attack(subject.attack_file)
    audited, _ = audited_and_held_out(subject.data, root)
    claimed = attack.eligible(audited.labels)
    clean = audited.images[claimed]
    stamped = attack.stamp(clean)
    classifier = subject.load()
    layer = classifier.layers().feature_layer
    row = partial(Row, subject=subject.name, attack=attack.name, kind=kind_of(attack.name), images=len(clean))
    if layer is None:
        return row(separation=None)
    before, after = (channel_norms(classifier, layer, images) for images in (clean, stamped))
    inside, inside_twin, area = _looked_at(subject, twin, attack, stamped)
    return row(
        separation={norm: separation(before[norm], after[norm]) for norm in NORMS},
        best_channel={norm: float(channel_auc(before[norm], after[norm]).max()) for norm in NORMS},
        inside=inside,
        inside_twin=inside_twin,
        area=area,
    )


def _looked_at(subject: Subject, twin: Subject | None, attack: Attack, stamped: Tensor) -> tuple[float | None, ...]:
    """Share of the target's Grad-CAM on the patch, the same in the twin, and the patch's share of the image."""
    channels, height, width = stamped.shape[1:]
    trigger = attack.triggers()[0].trigger((channels, height, width))
    support = None if trigger is None else localised_support(trigger)
    if support is None:
        return None, None, None
    labels = torch.full((len(stamped),), int(attack.target_class or 0))

    def share(network: Subject | None) -> float | None:
        if network is None:
            return None
        classifier = network.load()
        layer = classifier.layers().feature_layer
        return inside_share(grad_cam(classifier, layer, stamped, labels), support) if layer else None

    return share(subject), share(twin), float(support.float().mean())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean: 2.5 % and 97.5 % quantiles over resamples, seed 0."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = torch.tensor(values, dtype=torch.float64)[drawn].mean(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def table(rows: Sequence[Row]) -> list[str]:
    """Means per kind, differences of l-infinity from the others, and where Grad-CAM looks, in lines."""
    known = [row for row in rows if row.separation is not None]
    lines = [
        f"{'kind':24} {'n':>3} {'l1':>6} {'l2':>6} {'linf':>6} {'linf - l1':>26} {'linf - l2':>26} {'linf highest':>20}"
    ]
    for kind in (*KINDS, OTHER):
        found = [row.separation for row in known if row.kind == kind and row.separation is not None]
        if not found:
            continue
        means = " ".join(f"{statistics.mean(entry[norm] for entry in found):6.3f}" for norm in NORMS)
        gaps = " ".join(f"{_difference([entry['linf'] - entry[norm] for entry in found]):>26}" for norm in ("l1", "l2"))
        best = _share(sum(entry["linf"] >= max(entry.values()) for entry in found), len(found))
        lines.append(f"{kind:24} {len(found):3d} {means} {gaps} {best:>20}")
    best_channel = [row.best_channel for row in known if row.best_channel and row.kind == "patch"]
    if best_channel:
        means = ", ".join(f"{norm} {statistics.mean(entry[norm] for entry in best_channel):.3f}" for norm in NORMS)
        lines.append(f"best single channel, patch: {means}")
    return [*lines, "", *looking(rows)]


def looking(rows: Sequence[Row]) -> list[str]:
    """How many networks look at the patch, subjects and clean twins; pairs of which one has no map are left out."""
    found = [
        (row.inside / row.area, row.inside_twin / row.area)
        for row in rows
        if row.kind == "patch" and row.area and row.inside is not None and row.inside_twin is not None
    ]
    if not found:
        return []
    lines = [
        f"Grad-CAM of the target on stamped images: share on the patch over the patch's share of the image, n = {len(found)}"
    ]
    for name, place in (("backdoored", 0), ("clean twin", 1)):
        ratios = [pair[place] for pair in found]
        above = _share(sum(ratio > TIMES_AREA for ratio in ratios), len(ratios))
        lines.append(
            f"{name}: median {statistics.median(ratios):.1f}, mean {_difference(ratios)}, above {TIMES_AREA:g}: {above}"
        )
    return lines


def _difference(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{statistics.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def _share(hits: int, n: int) -> str:
    low, high = Rate(hits, n).interval
    return f"{hits}/{n} [{low:.0%}, {high:.0%}]"


def line(row: Row) -> str:
    """One subject in one line."""
    if row.separation is None:
        return f"{row.subject:46} {row.kind:24} no feature map"
    values = " ".join(f"{row.separation[norm]:6.3f}" for norm in NORMS)
    shares = " ".join(
        "     -" if value is None else f"{value:6.3f}" for value in (row.inside, row.inside_twin, row.area)
    )
    return f"{row.subject:46} {row.kind:24} {values} {shares}"


def _measured(pair: tuple[Subject, Subject | None], *, root: Path) -> Row:
    return measured(pair[0], twin=pair[1], root=root)


def main() -> None:
    """Measure, print; write ``benchmarks/results/activation_norms.json`` after a whole run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="subjects at a time, one thread each (default: 1)")
    parser.add_argument("--only", default="", help="only subjects whose name contains this; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known, by_name = read_table(), {entry.name: entry for entry in EVERY}
    chosen = [
        (entry, by_name.get(entry.twin))
        for entry in EVERY
        if entry.attack is not None
        and options.only in entry.name
        and known.get(entry.name, {}).get("target_class") is not None
    ]
    print(f"{'subject':46} {'kind':24} {'l1':>6} {'l2':>6} {'linf':>6} {'inside':>6} {'twin':>6} {'area':>6}")
    done: dict[str, Row] = {}
    for (subject, _), result in finished(partial(_measured, root=options.data_root), chosen, options.jobs):
        done[subject.name] = result()
        print(line(done[subject.name]), flush=True)
    rows = [done[subject.name] for subject, _ in chosen]
    print("\n" + "\n".join(table(rows)))
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        stored = {"command": "python -m benchmarks.activation_norms", "subjects": [asdict(row) for row in rows]}
        (RESULTS / "activation_norms.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
