"""The audited network anew: the same architecture with other weights, what tells one architecture from another, what it costs."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backdoor_audit.errors import ModelError, ModelFormatError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.own_code import own_code


def with_new_weights(like: Classifier) -> nn.Module:
    """A copy of the audited network with first weights from torch's global random state: nothing that it learned is left.

    Layers that can draw their weights do (``reset_parameters``); all other parameters, such as embeddings of positions or
    scales of layers, are drawn from the normal distribution with their own mean and standard deviation. Buffers that no layer
    resets stay, as those are constants of the architecture. Raises `ModelError` for what the network's own code raises, and for
    a network whose state is more than tensors.
    """
    with own_code("when its weights were drawn anew"):
        module = copy.deepcopy(like.module)
        if not all(isinstance(value, Tensor) for value in module.state_dict().values()):
            raise ModelError("a state that is more than tensors cannot be drawn")
        drawn: set[int] = set()
        for layer in module.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
                drawn.update(map(id, layer.parameters()))
        with torch.no_grad():
            for parameter in module.parameters():
                if id(parameter) not in drawn:
                    spread = parameter.std() if parameter.numel() > 1 else torch.zeros(())
                    parameter.copy_(parameter.mean() + spread * torch.randn(parameter.shape).to(parameter.device))
        return module


@dataclass(frozen=True, slots=True)
class Likeness:
    """What two models share if their twins of their own architecture are the same.

    ``structure`` is a digest of layers, shapes and image size, ``behaviour`` the scores that a copy with new weights from a fixed
    seed gives to grey images: layers of the same name may do another thing. Another machine rounds these otherwise.
    """

    structure: str
    behaviour: tuple[float, ...]

    @classmethod
    def of(cls, classifier: Classifier) -> Likeness:
        """Of one model. Networks whose code refuses new weights all behave alike: they have no twins of their own."""
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(0)
            try:
                fresh = with_new_weights(classifier)
                copied = Classifier.wrap(fresh, image_shape=classifier.image_shape, device=classifier.device)
                grey = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, *classifier.image_shape)
                scores = copied.logits(grey).flatten().tolist()
            except (ModelError, ModelFormatError):
                scores = []
        state = classifier.module.state_dict()
        shapes = [(name, tuple(tensor.shape)) for name, tensor in state.items() if isinstance(tensor, Tensor)]
        layers = [type(layer).__qualname__ for layer in classifier.module.modules()]
        structure = hashlib.sha256(repr((layers, shapes, classifier.image_shape)).encode()).hexdigest()
        return cls(structure, tuple(scores))

    @property
    def digest(self) -> str:
        """In a few characters, with scores to three digits."""
        scores = [f"{score:.3g}" for score in self.behaviour]
        return hashlib.sha256(repr((self.structure, scores)).encode()).hexdigest()

    def matches(self, other: Likeness) -> bool:
        """Whether these are one architecture, as far as two machines can agree."""
        if self.structure != other.structure or len(self.behaviour) != len(other.behaviour):
            return False
        largest = max(map(abs, (*self.behaviour, *other.behaviour, 1e-6)))
        return all(
            abs(mine - theirs) < 1e-2 * largest for mine, theirs in zip(self.behaviour, other.behaviour, strict=True)
        )


def products_per_image(classifier: Classifier) -> float:
    """Multiplications that the network takes for one image, as torch counts them: of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        classifier.logits(torch.full((1, *classifier.image_shape), 0.5))
    return float(counter.get_total_flops()) / 2
