"""Neural Cleanse: a backdoored class has a far smaller trigger than the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backdoor_audit import anomaly
from backdoor_audit.classifier import Classifier
from backdoor_audit.data import CleanSet
from backdoor_audit.detectors.detection import ClassScore, Detection
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.inversion import Inversion, TriggerInversion
from backdoor_audit.metrics import attack_success_rate

BLIND_SPOTS = (
    "triggers without a small patch: blended, sinusoidal, low-frequency, warped, reflected",
    "triggers that differ from image to image (input-aware, sample-specific)",
    "triggers that work from some source classes only",
    "attacks that send every class elsewhere (all-to-all)",
    "patches larger than about a sixth of the image",
    "triggers for more than about a third of the classes at once",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuralCleanse:
    """Invert a trigger for every class and look for an outlier on the small side.

    Assumes one universal patch-like trigger per infected class and a minority of infected classes. Needs gradients and a
    few hundred clean images, no labels but to leave out images of the class in question. Cost: about
    ``restarts * steps * batch_size`` image passes per class. Wang et al., IEEE S&P 2019, sections IV and V.
    """

    steps: int = 240
    batch_size: int = 32
    restarts: int = 1

    name = "neural_cleanse"
    blind_spots = BLIND_SPOTS

    def __call__(
        self,
        classifier: Classifier,
        opt: CleanSet,
        val: CleanSet,
        *,
        generator: torch.Generator,
        reference_sizes: Sequence[float] | None = None,
        progress: bool = False,
    ) -> Detection:
        """Search on ``opt``, report success on ``val``, compare the classes.

        Inconclusive if fewer than half of the classes reached the success threshold, or their sizes allow no outlier test.
        ``reference_sizes``, one per class, are sizes that are natural for each class.
        """
        search = TriggerInversion(steps=self.steps, batch_size=self.batch_size, restarts=self.restarts)
        inversions = search(classifier, opt, generator=generator, progress=progress)
        reached = [row for row, inversion in enumerate(inversions) if inversion.reached]
        compared: dict[int, int] = {}
        result, reason = None, ""
        if 2 * len(reached) < len(inversions):
            reason = (
                f"a trigger reached the success threshold for {len(reached)} of {len(inversions)} classes only; raise "
                "--audit-steps, or check the model's normalisation"
            )
        else:
            try:
                result = anomaly.anomaly(
                    [inversions[row].size for row in reached],
                    reference_sizes=[reference_sizes[row] for row in reached] if reference_sizes else None,
                )
                compared = {row: position for position, row in enumerate(reached)}
            except DegenerateScoresError as error:
                reason = str(error)
        scores = [
            _score(inversion, classifier, val, result, compared.get(row)) for row, inversion in enumerate(inversions)
        ]
        return Detection(
            detector=self.name,
            settings=repr(self),
            scores=scores,
            triggers=[inversion.trigger for inversion in inversions],
            inconclusive=reason,
            p_value=min(result.p_value) if result else None,
            median_size=result.median_size if result else None,
            cut_size=result.cut_size if result else None,
            blind_spots=BLIND_SPOTS,
        )


def _score(
    inversion: Inversion,
    classifier: Classifier,
    val: CleanSet,
    result: anomaly.Anomaly | None,
    position: int | None,
) -> ClassScore:
    here = result if position is not None else None
    return ClassScore(
        target_class=inversion.target_class,
        size=inversion.size,
        size_ratio=inversion.size / result.median_size if result else None,
        reached=inversion.reached,
        success_opt=inversion.attack_success_rate,
        success_val=attack_success_rate(classifier, val.images, val.labels, inversion.trigger),
        index=here.index[position or 0] if here else None,
        paper_index=here.paper_index[position or 0] if here else None,
        log_index=here.log_index[position or 0] if here else None,
        p_value=here.p_value[position or 0] if here else None,
        steps=inversion.steps,
        image_passes=inversion.image_passes,
    )
