"""Neural attention distillation (Li et al., ICLR 2021): make the model look where a fine-tuned copy of itself looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.subject import Subject
from backdoor_audit.model.training import fit
from backdoor_audit.repairs.augmentation import augmentation_of
from backdoor_audit.repairs.descent import descend
from backdoor_audit.repairs.outcome import RepairResult, not_applicable, reported
from backdoor_audit.triggers.trigger import AnyTrigger

_HIGH_RATE_SHARE = 0.1  # 2 of the paper's 20 epochs run at the full learning rate, the others at a tenth of it


@dataclass(frozen=True, slots=True, kw_only=True)
class NAD:
    """Train a copy by ``cross-entropy + sum of beta * distance of attention`` to a teacher that was fine-tuned before.

    The teacher is a copy after ``teacher_epochs`` of plain fine-tuning, frozen from then on. `attention` of a stage is
    where in the image its activations have their energy; the distance is the mean squared difference. ``betas`` weigh the
    last stages in the order they run, as many as the network has of them (see `stages`): 500, 1000, 1000 are the paper's
    for the three groups of a WRN-16-1, ``betas=(0, 0, 0)`` is the control without distillation. The learning rate is high
    for the first tenth of the steps, then a tenth of it.

    Batches of 64 over 2,500 images become batches of 32 over a few hundred, and the rate is a tenth of the paper's 0.1: half of
    it takes a PreActResNet-18 on CIFAR-10 from 70 % to 32 % accuracy (success rate 5 %), this one to 65 % (58 %). The teacher
    is trained on `fit`'s one-cycle schedule. Images are not cut out; ``augment`` moves and mirrors them where
    `harmless_augmentation` finds that harmless.
    """

    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    power: float = 2.0
    teacher_epochs: int = 10
    teacher_learning_rate: float = 0.01
    epochs: int = 20
    learning_rate: float = 0.01
    batch_size: int = 32
    weight_decay: float = 1e-4
    augment: bool = True

    name: ClassVar[str] = "nad"
    needs_trigger: ClassVar[bool] = False

    def __call__(self, subject: Subject, trigger: AnyTrigger, *, generator: torch.Generator) -> RepairResult:
        """A distilled copy, scored on held-out images; the trigger serves for the scores alone.

        Not applicable to networks in which no module gives a feature map or a sequence of tokens.
        """
        clean = subject.search_set
        layers = stages(subject.classifier, len(self.betas))
        if self.betas and not layers:
            reason = "no module of this network gives a feature map or a sequence of tokens"
            return not_applicable(self, trigger, reason)
        betas = self.betas[len(self.betas) - len(layers) :]
        teacher, repaired = subject.classifier.copy(), subject.classifier.copy()
        augmentation = augmentation_of(self, subject)
        fit(
            teacher,
            clean.images,
            clean.labels,
            epochs=self.teacher_epochs,
            learning_rate=self.teacher_learning_rate,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            on_batch=augmentation.on_batch(generator),
            generator=generator,
        )
        augmentation.settle(teacher, clean, generator)

        def backward(images: Tensor, labels: Tensor) -> None:
            with recorded(teacher, layers) as taught, torch.no_grad():
                teacher(images)
            with recorded(repaired, layers) as learnt:
                loss = functional.cross_entropy(repaired(images), labels)
            distances = (
                beta * attention_distance(student, wanted, self.power)
                for beta, (_, student), (_, wanted) in zip(betas, learnt, taught, strict=True)
            )
            sum(distances, start=loss).backward()

        descend(
            repaired,
            clean,
            backward,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            factor=lambda progress: 1.0 if progress < _HIGH_RATE_SHARE else 0.1,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            nesterov=True,
            augmentation=augmentation,
            generator=generator,
        )
        note = (
            f"{self.epochs} epochs over {len(clean)} clean images, attention of {', '.join(map(repr, layers)) or 'no layer'} "
            f"as in a copy fine-tuned for {self.teacher_epochs}"
        )
        return reported(self, subject, repaired, trigger, note=note)


def attention(activations: Tensor, power: float = 2.0) -> Tensor:
    """Where the energy lies (n, places): ``sum over channels of |activation|^power``, divided by its L2 norm + 1e-6.

    Takes feature maps (n, c, h, w), places in rows, or tokens (n, places, width).
    """
    energy = activations.abs().pow(power).sum(dim=1 if activations.ndim == 4 else 2).flatten(1)
    length: Tensor = torch.linalg.vector_norm(energy, dim=1, keepdim=True)
    return energy / (length + 1e-6)


def attention_distance(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of the two attentions, over images and places; a scalar."""
    return functional.mse_loss(attention(student, power), attention(teacher, power))


def stages(classifier: Classifier, most: int) -> tuple[str, ...]:
    """Names of at most ``most`` modules whose attention is compared, in the order they run; found by running one image.

    Of a convolutional network, the last feature map of each resolution above one pixel, which on residual networks are the
    groups; the last ``most`` of them. Layers at the start of a block that goes on to another resolution do not count. Of a
    transformer, the blocks in a row that pass tokens on, evenly chosen up to the last: a layer norm after them gives every
    token nearly the same energy. Modules that run more than once per image are passed over.
    """
    modules = dict(classifier.module.named_modules())
    with recorded(classifier, [name for name in modules if name]) as events:
        classifier.logits(torch.full((1, *classifier.image_shape), 0.5))
    calls = Counter(name for name, _ in events)
    once = [(name, output) for name, output in events if calls[name] == 1]
    blocks = [name for name, output in once if output.ndim == 3 and output.shape[1] > 1 and _is_block(modules, name)]
    if blocks:
        ends = sorted({max(round((index + 1) * len(blocks) / most), 1) - 1 for index in range(most)})
        return tuple(blocks[end] for end in ends)
    sizes = {name: output.shape[2:] for name, output in once if output.ndim == 4}
    last = {size: name for name, size in sizes.items() if size.numel() > 1 and not _is_on_the_way(modules, sizes, name)}
    found = [name for name in sizes if name in last.values()]
    return tuple(found[max(len(found) - most, 0) :])


def _is_on_the_way(modules: dict[str, nn.Module], sizes: dict[str, torch.Size], name: str) -> bool:
    """Whether a module around this one, other than a plain chain, gives maps of another size."""
    around = name.rpartition(".")[0]
    while around:
        if not isinstance(modules[around], nn.Sequential) and sizes.get(around, sizes[name]) != sizes[name]:
            return True
        around = around.rpartition(".")[0]
    return False


def _is_block(modules: dict[str, nn.Module], name: str) -> bool:
    inside = modules[name.rpartition(".")[0]]
    return isinstance(inside, (nn.Sequential, nn.ModuleList)) and any(True for _ in modules[name].children())


@contextmanager
def recorded(classifier: Classifier, layers: Iterable[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """While the block lasts, the tensors that these modules give, with their names, in the order they are given."""
    events: list[tuple[str, Tensor]] = []

    def keeper(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _arguments: object, output: object) -> None:
            if isinstance(output, Tensor):
                events.append((name, output))

        return keep

    with ExitStack() as stack:
        for name in layers:
            stack.enter_context(hooked(classifier.module.get_submodule(name), keeper(name)))
        yield events
