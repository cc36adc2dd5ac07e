"""BAN: noise on the normalisation layers makes a backdoored network fall for its own target class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class BAN:
    """The share of images that go to one class once adversarial noise lies on the network's normalisation layers.

    Assumes that the neurons of a backdoor answer more strongly to noise than others, so that predictions collapse onto
    the target. Every weight and bias of every batch norm, or of every layer norm where there is no batch norm, is
    multiplied by ``1 + noise``. The noise starts uniform in [-eps, eps] and takes ``steps`` signed gradient steps of
    ``eps / steps`` up the cross-entropy, each on another batch of ``opt``; as in the authors' code it is not clipped, so it
    may reach twice ``eps``. Needs labels. Cost: ``steps * batch_size`` image passes and two forward passes of ``val``:
    2,560 and 2/3 per image of ``val`` by default.

    Xu et al., "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS 2024, section 4. The paper gives
    no rule for a verdict, and its code keeps the noise of the last batch only. The statistic here is ours: the largest
    share of predictions with noise, less the share that the same class has without. The paper's feature mask is left out.
    Its ``eps`` is 0.3, for wide networks; under so much noise small ones collapse onto one class, backdoored or not.
    """

    eps: float = 0.05
    steps: int = 20
    batch_size: int = 128

    name = "ban"
    blind_spots = (
        "networks without batch norm: noise on layer norms is our extension, not the paper's",
        "attacks that send every class elsewhere (all-to-all), or several to several targets",
        "clean networks that fall back on one class under any noise",
        "attacks trained to withstand noise on the neurons",
    )

    def measure(
        self,
        classifier: Classifier,
        opt: CleanSet,
        val: CleanSet,
        *,
        generator: torch.Generator,
        progress: bool = False,
    ) -> Reading:
        """The rise of the peak class's share on ``val``, in [-1, 1], and that class; ``per_class`` are the rises of all.

        All work is done on a copy, in evaluation mode. Inconclusive if the network has neither batch norms nor layer norms
        with weights.
        """
        noisy = classifier.copy()
        norms = norm_parameters(noisy.module)
        if not norms:
            return Reading.without(self, "the network has neither batch norm nor layer norm weights to put noise on")
        self._perturb(noisy, norms, opt, generator, progress=progress)
        without, with_noise = (_shares(model, val.images) for model in (classifier, noisy))
        rise = (with_noise - without).tolist()
        peak = int(with_noise.argmax())
        passes = self.steps * min(self.batch_size, len(opt)) + round(2 * len(val) / 3)
        return Reading.of(self, rise[peak], target_class=peak, per_class=rise, image_passes=passes)

    def _perturb(
        self,
        noisy: Classifier,
        norms: list[nn.Parameter],
        opt: CleanSet,
        generator: torch.Generator,
        *,
        progress: bool,
    ) -> None:
        """Multiply the parameters of this copy by one plus noise that raises its loss on ``opt``."""
        clean = [parameter.detach().clone() for parameter in norms]
        noise = [
            ((2 * torch.rand(values.shape, generator=generator) - 1) * self.eps).to(values.device) for values in clean
        ]
        _apply(norms, clean, noise)
        for parameter in norms:
            parameter.requires_grad_()
        bar = tqdm(range(self.steps), desc="neuron noise", unit="step", disable=None if progress else True)
        for _ in bar:
            batch = torch.randperm(len(opt), generator=generator)[: self.batch_size]
            images, labels = opt.images[batch].to(noisy.device), opt.labels[batch].to(noisy.device)
            gradients = torch.autograd.grad(functional.cross_entropy(noisy(images), labels), norms, allow_unused=True)
            for part, values, gradient in zip(noise, clean, gradients, strict=True):
                if gradient is not None:  # a layer that the network does not run
                    part.add_((gradient * values).sign(), alpha=self.eps / self.steps)
            _apply(norms, clean, noise)


def norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of all batch norms; of all layer norms if no batch norm has any."""
    kinds: tuple[type[nn.Module], ...] = (_BatchNorm, nn.LayerNorm)
    for kind in kinds:
        parts = [part for part in module.modules() if isinstance(part, kind)]
        found = [parameter for part in parts for parameter in part.parameters(recurse=False)]
        if found:
            return found
    return []


@torch.no_grad()
def _apply(norms: list[nn.Parameter], clean: list[Tensor], noise: list[Tensor]) -> None:
    for parameter, values, part in zip(norms, clean, noise, strict=True):
        parameter.copy_(values * (1 + part))


def _shares(classifier: Classifier, images: Tensor) -> Tensor:
    """Share of the images that each class is predicted for, (classes,)."""
    return torch.bincount(classifier.predict(images), minlength=classifier.num_classes).double() / len(images)
