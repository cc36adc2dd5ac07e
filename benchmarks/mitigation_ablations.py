"""What settings of repairs do: ``python -m benchmarks.mitigation_ablations --data-root DIR``, on a BadNets model (CIFAR-10).

Feature map pruning (FMP, arXiv 2307.11565) over ``epsilon``, ``p`` and the number of clean images, all layers as in the paper;
and FMP beside both unlearnings over the poison rate, on models that are trained for it. Clean images beyond those of an audit
are clean images of the training set. Accuracy, success rate and robust accuracy of the attacker's trigger in percent on test
images. Then the gain of sharing a backward pass among maps. Finished lines are kept in ``benchmarks/cache``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from backdoor_audit.attacks import Attack, load_attack
from backdoor_audit.data import CleanSet
from backdoor_audit.detectors import NeuralCleanse
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.subject import Subject as Repaired
from backdoor_audit.repairs import DistilledUnlearning, FeatureMapPruning, FineTuning, Repair, Unlearning
from backdoor_audit.repairs.fmp import map_layers
from backdoor_audit.store import generator_for
from backdoor_audit.triggers.trigger import AnyTrigger
from benchmarks.measured import RESULTS, of_subject
from benchmarks.mitigation import MEASURED, Row, kept, rates
from benchmarks.zoo.data import audited_and_held_out, training_images
from benchmarks.zoo.subject import MODELS, Subject
from benchmarks.zoo.subjects import EVERY

SUBJECT = "cifar10-preact_resnet18-badnets-208"
FMP = FeatureMapPruning(stages=None)
EPSILONS = tuple(value / 255 for value in (1, 4, 16))
PS = (64, 8, 2)
IMAGES = (100, 500, 2_500)
POISON_RATES = (0.02,)  # the subject itself has 0.1


@dataclass(eq=False)
class Bench:
    """The subject, its images, and the trigger that Neural Cleanse finds."""

    subject: Subject
    root: Path

    @cached_property
    def images(self) -> tuple[CleanSet, CleanSet, CleanSet]:
        """Images to repair with, to judge on, and to report on."""
        audited, held_out = audited_and_held_out(self.subject.data, self.root)
        return (*audited.split(0), held_out.sample(MEASURED, 0))

    @cached_property
    def classifier(self) -> Classifier:
        """The backdoored model."""
        return self.subject.load()

    @cached_property
    def attack(self) -> Attack:
        """What it obeys."""
        return load_attack(self.subject.attack_file)

    @cached_property
    def trigger(self) -> AnyTrigger:
        """The found one for the attacker's class."""
        found = of_subject(self.subject, self.root).found(NeuralCleanse()).trigger(int(self.attack.target_class or 0))
        assert found is not None
        return found

    def clean(self, images: int) -> CleanSet:
        """So many clean images: the audit's own, beyond those from the training set."""
        opt = self.images[0]
        if images <= len(opt):
            return opt.sample(images, 0)
        return training_images(self.subject.data, self.subject.training_images, self.root).sample(images, 0)

    def row(self, label: str, work: Callable[[], Classifier], attack: Attack | None = None) -> tuple[str, Row]:
        """A labelled line, from the cache if it is there."""

        def measured() -> Row:
            began = time.perf_counter()
            classifier = work()
            seconds = time.perf_counter() - began
            return rates(classifier, self.images[2], attack or self.attack, seconds=seconds)

        return label, kept({"ablation": label, "subject": self.subject.name, "measured": MEASURED}, measured)

    def repaired(self, method: Repair, opt: CleanSet) -> Classifier:
        """A copy after one repair."""
        generator = generator_for(0, method.name)
        given = Repaired(self.classifier, opt, self.images[1])
        copy = method(given, self.trigger, generator=generator).classifier
        assert copy is not None
        return copy


def settings_of_fmp(bench: Bench) -> Iterator[tuple[str, Row]]:
    """FMP over its own settings, and plain fine-tuning on as many images."""
    opt = bench.images[0]
    yield bench.row("before", lambda: bench.classifier)
    rankings: dict[float, dict[str, Tensor]] = {}

    def fmp(method: FeatureMapPruning, images: CleanSet) -> Classifier:
        if method.epsilon not in rankings:
            rankings[method.epsilon] = method.rank(bench.classifier, opt, generator=generator_for(0, "rank"))
        generator = generator_for(0, method.name)
        given = Repaired(bench.classifier, images, bench.images[1])
        copy = method.prune(given, bench.trigger, rankings[method.epsilon], generator=generator).classifier
        assert copy is not None
        return copy

    for epsilon in EPSILONS:
        method = replace(FMP, epsilon=epsilon, noise=epsilon / 2)
        yield bench.row(f"fmp, epsilon {255 * epsilon:.0f}/255", lambda method=method: fmp(method, opt))  # type: ignore[misc]
    for p in PS:
        method = replace(FMP, p=p)
        yield bench.row(f"fmp, p {p}", lambda method=method: fmp(method, opt))  # type: ignore[misc]
    for count in IMAGES:
        clean = bench.clean(count)
        yield bench.row(f"fmp, {count} clean images", lambda clean=clean: fmp(FMP, clean))  # type: ignore[misc]
        for other in (FineTuning(), Unlearning(), DistilledUnlearning()):
            label = f"{other.name}, {count} clean images"
            yield bench.row(label, lambda other=other, clean=clean: bench.repaired(other, clean))  # type: ignore[misc]


def rates_of_poison(bench: Bench) -> Iterator[tuple[str, Row]]:
    """The same attack with other poison rates: before, after FMP and after unlearning the trigger found in the subject."""
    for rate in POISON_RATES:
        assert bench.subject.attack is not None
        attack = replace(bench.subject.attack, poison_rate=rate)
        poisoned = Bench(replace(bench.subject, attack=attack), bench.root)
        trained: list[Classifier] = []

        def model(poisoned: Bench = poisoned, trained: list[Classifier] = trained) -> Classifier:
            if not trained:
                trained.append(_trained(poisoned))
            return trained[0]

        yield bench.row(f"poison rate {rate:.1%}, before", model)
        for method in (FMP, Unlearning(), DistilledUnlearning()):

            def work(method: Repair = method, model: Callable[[], Classifier] = model) -> Classifier:
                given = Repaired(model(), *bench.images[:2])
                copy = method(given, bench.trigger, generator=generator_for(0, method.name)).classifier
                assert copy is not None
                return copy

            yield bench.row(f"poison rate {rate:.1%}, {method.name}", work)


def _trained(bench: Bench) -> Classifier:
    """A model with the attack of the bench's subject, as the zoo trains it."""
    subject = bench.subject
    assert subject.attack is not None
    clean = training_images(subject.data, subject.training_images, bench.root)
    start = load_classifier(MODELS / f"{subject.warm_start}.safetensors")
    return subject.attack.implant(start, clean, recipe=subject.recipe)[0]


def sharing(bench: Bench) -> str:
    """Time to rank the maps of one layer with one map per backward pass, over that with eight; the rankings are equal."""
    (*_, layer) = map_layers(bench.classifier)
    seconds: list[float] = []
    ranked: list[Tensor] = []
    for group in (1, 8, 1, 8):
        method = replace(FMP, group=group)
        began = time.perf_counter()
        ranked += method.rank(
            bench.classifier, bench.images[0], generator=generator_for(0, "rank"), only=(layer,)
        ).values()
        seconds.append(time.perf_counter() - began)
    same = all(torch.equal(ranked[0], other) for other in ranked[1:])
    ratio = (seconds[0] + seconds[2]) / (seconds[1] + seconds[3])
    return f"one map per backward pass takes {ratio:.2f} times as long as eight (layer {layer!r}, equal accuracies: {same})"


def line(label: str, row: Row) -> str:
    """Accuracy / success rate / robust accuracy in percent."""
    cells = [row.accuracy, row.success or 0.0, row.robust or 0.0]
    return f"{label:48} {' / '.join(f'{100 * value:.1f}' for value in cells):>20} {row.seconds:6.0f} s"


def main() -> None:
    """Measure, print, and write ``benchmarks/results/mitigation_ablations.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(next(entry for entry in EVERY if entry.name == SUBJECT), options.data_root)
    rows: dict[str, Row] = {}
    for label, row in chain(settings_of_fmp(bench), rates_of_poison(bench)):
        rows[label] = row
        print(line(label, row), flush=True)
    told = sharing(bench)
    print(told)
    stored = {
        "command": "python -m benchmarks.mitigation_ablations",
        "subject": SUBJECT,
        "rows": {label: asdict(row) for label, row in rows.items()},
        "sharing": told,
    }
    (RESULTS / "mitigation_ablations.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
