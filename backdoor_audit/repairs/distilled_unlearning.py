"""Unlearn triggers with the model as its own teacher: answer stamped images as it answers the same images without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.descent import moved
from backdoor_audit.repairs.outcome import RepairResult, reported
from backdoor_audit.repairs.several import OneAsSeveral, stamped_first
from backdoor_audit.repairs.steady import Learning, tuned
from backdoor_audit.triggers.trigger import AnyTrigger


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilledUnlearning(OneAsSeveral):
    """Fine-tune a copy to give every image, stamped or not, the class probabilities of the model for the clean image.

    Unlearning as in Wang et al. (2019, section VI-C) with another target: instead of the one true label, all probabilities
    of the model itself (distillation, Hinton et al. 2015, temperature 1; the divergence from teacher to copy). A few hundred
    clean images are too few to learn their labels from without losing accuracy on others; what the model says of them is
    more than a label, and for clean images it is already learnt. A copy that loses what it knows is trained again, with shorter
    gradients: see `steady`. In every batch ``stamped_share`` of the images carry a
    trigger, other ones in every epoch; several triggers share them evenly. Labels are not used.

    With ``mixed`` every batch also holds as many images between two clean ones (mixup, Zhang et al., ICLR 2018), with the model's
    own answers to them, as in distillation on mixed images (Beyer et al., CVPR 2022, "A good teacher is patient and consistent"):
    the copy has to stay what the model is between the few clean images too, so that it loses less of what it knows.

    ``path_rho`` takes gradients that far back towards the audited weights (see `BackdoorPath`). ``augment`` moves and mirrors
    images, before they are stamped, where `harmless_augmentation` finds that harmless.
    """

    stamped_share: float = 0.5
    epochs: int = 10
    learning_rate: float = 0.01
    batch_size: int = 32
    path_rho: float = 0.0
    augment: bool = False
    mixed: bool = True

    name = "distilled_unlearning"
    needs_trigger = True

    def together(self, subject: Subject, triggers: Sequence[AnyTrigger], *, generator: torch.Generator) -> RepairResult:
        """A copy that was fine-tuned on images stamped with each of the triggers, judged on held-out images by the first."""
        path = BackdoorPath(subject.classifier, self.path_rho)

        def learning(copy: Classifier) -> Learning:
            def backward(images: Tensor, labels: Tensor) -> None:
                shown = stamped_first(images, triggers, self.stamped_share, generator)
                if self.mixed:
                    between = _between(images, generator)
                    images, shown = torch.cat([images, between]), torch.cat([shown, between])
                with torch.no_grad():
                    wanted = subject.classifier(images).log_softmax(dim=1)
                if self.path_rho:
                    with torch.no_grad():
                        copy(shown)  # for the running statistics, which do not see the weights further on
                with path.ahead(copy):
                    given = copy(shown).log_softmax(dim=1)
                    divergence = functional.kl_div(given, wanted, log_target=True, reduction="none").sum()
                    (divergence / len(labels)).backward()

            return Learning(backward)

        repaired, how = tuned(self, subject, learning, generator=generator, nesterov=True)
        note = (
            f"{self.epochs} epochs over {len(subject.search_set)} clean images, {self.stamped_share:.0%} of each batch stamped "
            f"with {'the trigger' if len(triggers) == 1 else f'one of {len(triggers)} triggers'}, towards the model's own answers"
            f"{' and its answers between them' if self.mixed else ''}{how}"
        )
        return reported(self, subject, repaired, triggers[0], note=note)


def _between(images: Tensor, generator: torch.Generator) -> Tensor:
    """As many images (n, c, h, w), each anywhere between one of these and another."""
    shares = torch.rand(len(images), 1, 1, 1, generator=generator).to(images)
    others = images[torch.randperm(len(images), generator=generator).to(images.device)]
    return images.lerp(others, shares)


class BackdoorPath:
    """From a copy under repair back towards the audited model: ``rho`` along the audited weights, in units of their length.

    Path-aware minimisation, PAM (Min et al., NeurIPS 2024, section 5): gradients from back towards the backdoored weights.

    Repaired models of many methods get their backdoor back from a few stamped images, as they lie in the same basin as before
    (section 4). A gradient that is taken ``rho * weights / |weights|`` further that way leads out of it. In the public code
    ``rho`` lies between 0.05 and 0.9; the weights there are those of the backdoored network, and not the way to it. 0: no move.
    """

    def __init__(self, backdoored: Classifier, rho: float) -> None:
        self.rho = rho
        weights = [parameter.detach() for parameter in backdoored.module.parameters()]
        length = torch.stack([torch.linalg.vector_norm(weight) for weight in weights]).norm().clamp_min(1e-12)
        self.steps = [weight * (rho / length) for weight in weights] if rho else []

    @contextmanager
    def ahead(self, repaired: Classifier) -> Iterator[None]:
        """In this block the weights stand further along the path; the buffers that change there are put back."""
        if not self.rho:
            yield
            return
        with moved(repaired, list(zip(repaired.module.parameters(), self.steps, strict=True))):
            yield
