"""Reference twins: clean networks trained on the user's own clean images, to show what is natural to each class.

Some classes are easy to reach for any network that was trained on such images, and some changes move any network of that
architecture. What a detector finds in the audited model and in its twins alike belongs to the images or to the architecture;
what it finds in the audited model alone belongs to that model. So twins are copies of the audited network with new weights
where such a copy can be trained in minutes, and small networks of ours elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoor_audit.data import CleanSet
from backdoor_audit.errors import DataFormatError
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading.architecture import build_architecture
from backdoor_audit.model.loading.module_state import load_state
from backdoor_audit.model.metrics import Rate, clean_accuracy
from backdoor_audit.model.networks import NETWORKS
from backdoor_audit.model.own_code import own_code
from backdoor_audit.store import Packed
from backdoor_audit.structure import brief

OWN = "own"
"""In place of a name of `NETWORKS`: the architecture of the audited network."""

ALONE = ("alone_plain", "alone_normalised")
"""No twins, where there could be none that know the classes: the classes of the audited network stand beside each other alone, of
one without layers that normalise or with such layers."""

KINDS = ("plain_grey", "plain_colour", "normalised", "library", *ALONE)
"""Twins of the audited network's own architecture, without layers that normalise (for grey or for colour images) or with such
layers, our own small networks, and none.

Networks without batch norm differ more from each other in how they are steered, and those for colour images far more.
"""

_NORMALISING = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_LARGEST_SIDE = 32  # px; what the small networks are made for, and what keeps a twin a matter of minutes
LEAST_SIDE = 4  # px; two poolings, or one patch of the transformer


def normalises(classifier: Classifier) -> bool:
    """Whether a network has layers that normalise."""
    return any(isinstance(layer, _NORMALISING) for layer in classifier.module.modules())


def alone(classifier: Classifier) -> str:
    """Which of `ALONE` a network without twins is."""
    return ALONE[normalises(classifier)]


@dataclass(frozen=True, slots=True, eq=False)
class Twins:
    """Clean networks that take the same images as the audited model and score the same classes.

    ``accuracies`` are their clean accuracies, each on the images that its twin did not train on. ``reason`` says why there
    are no twins; it is empty when there are. Twins that learned too little leave their accuracies behind. ``seconds`` is
    the wall time of the training. ``kind`` is one of `KINDS`; indices of each are calibrated apart. Without twins it is one of
    `ALONE` where the images are enough to compare the classes of the audited network with each other. ``instead`` says why there
    are none of the architecture's own. ``source`` is the file that they come from; empty if this run trained them.
    """

    classifiers: tuple[Classifier, ...]
    accuracies: tuple[Rate, ...]
    reason: str = ""
    seconds: float = 0.0
    kind: str = "library"
    instead: str = ""
    source: str = ""

    @property
    def described(self) -> str:
        """Which twins there are, for the record."""
        if self.kind in ALONE:
            return f"no twins ({self.reason}): the classes stand beside each other alone"
        each = ", ".join(
            f"{twin.architecture} {accuracy:.2f}"
            for twin, accuracy in zip(self.classifiers, self.accuracies, strict=True)
        )
        whose = "our own networks" if self.kind == "library" else "the audited architecture with new weights"
        why = f" ({self.instead})" if self.instead else ""
        origin = f", from {self.source}" if self.source else ""
        return f"twins: {whose}{why}{origin}, with held-out accuracy: {each}"

    def proven(self, clean: CleanSet) -> Twins:
        """The same, once each has shown on the images that it learned what it is said to have learned.

        Raises `DataFormatError` if one falls below the 95 % interval of its stated accuracy: it was altered, or its file is
        read as another network.
        """
        if not self.classifiers:  # refused, with the accuracies that they were refused for
            return self
        for number, (twin, stated) in enumerate(zip(self.classifiers, self.accuracies, strict=True), 1):
            shown = clean_accuracy(twin, clean.images, clean.labels)
            if float(shown) < stated.interval[0]:
                raise DataFormatError(
                    f"reference network {number} is right on {float(shown):.2f} of the clean images, {float(stated):.2f} is "
                    "stated; make the file again with backdoor-audit references"
                )
        return self

    def pack(self) -> Packed:
        """For the store."""
        tensors = {
            f"{number}.{name}": tensor
            for number, twin in enumerate(self.classifiers)
            for name, tensor in _network(twin).state_dict().items()
        }
        twins = [
            {
                "architecture": twin.architecture,
                "image_shape": list(twin.image_shape),
                "mean": list(twin.mean),
                "std": list(twin.std),
            }
            for twin in self.classifiers
        ]
        accuracies = [[rate.hits, rate.n] for rate in self.accuracies]
        values = {
            "twins": twins,
            "accuracies": accuracies,
            "reason": self.reason,
            "seconds": self.seconds,
            "kind": self.kind,
        }
        return Packed(tensors, values)

    @classmethod
    def from_file(cls, packed: Packed, *, like: Classifier, device: torch.device | str = "cpu") -> Twins:
        """The same from a file that somebody else may have made: networks are ours or the audited one, whatever it names.

        Raises `ValueError` for any other name, which would be code.
        """
        if any(twin["architecture"] not in (OWN, *NETWORKS) for twin in packed.values["twins"]):
            raise ValueError("a network that is none of ours")
        return cls.unpack(packed, like=like, device=device)

    @classmethod
    def unpack(cls, packed: Packed, *, like: Classifier | None = None, device: torch.device | str = "cpu") -> Twins:
        """From the store, onto a device; the weights are those that were packed, bit for bit.

        ``like`` is the audited model, whose architecture its own twins have.
        """
        classifiers = []
        for number, twin in enumerate(packed.values["twins"]):
            start = f"{number}."
            state = {
                name.removeprefix(start): tensor for name, tensor in packed.tensors.items() if name.startswith(start)
            }
            if twin["architecture"] == OWN and like is not None:
                network, architecture = like.copy().module, OWN
                with own_code("when weights were put into a copy"):
                    network.load_state_dict(state)
            else:
                network, architecture = build_architecture(twin["architecture"], state)
                load_state(network, state, architecture)
            channels, height, width = twin["image_shape"]
            classifiers.append(
                as_twin(
                    network, (channels, height, width), architecture, mean=twin["mean"], std=twin["std"], device=device
                )
            )
        values = packed.values
        accuracies = tuple(_counted(hits, n) for hits, n in values["accuracies"])
        if classifiers and len(accuracies) != len(classifiers):
            raise ValueError(f"{len(accuracies)} accuracies of {len(classifiers)} networks")
        return cls(tuple(classifiers), accuracies, str(values["reason"]), float(values["seconds"]), str(values["kind"]))


def _counted(hits: object, n: object) -> Rate:
    """An accuracy from a file. Raises `ValueError` for what is none: nothing is below one that is no number."""
    if type(hits) is not int or type(n) is not int or not 0 <= hits <= n or not n:
        raise ValueError(f"{brief(hits)} right of {brief(n)} where an accuracy belongs")
    return Rate(hits, n)


class _Shrinking(nn.Module):
    """A network behind a shrinking of its images."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of normalised images (n, c, h, w) of any larger size."""
        logits: Tensor = self.network(at_size(images, self.size))
        return logits


def as_twin(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    name: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
) -> Classifier:
    """A twin for images of the audited shape around a copy of a network for the size that twins see."""
    size = image_shape[1:] if name == OWN else seen_size(image_shape)
    module = network if size == image_shape[1:] else _Shrinking(network, size)
    return Classifier.wrap(module, image_shape=image_shape, mean=mean, std=std, architecture=name, device=device)


def _network(twin: Classifier) -> nn.Module:
    return twin.module.network if isinstance(twin.module, _Shrinking) else twin.module


def seen_size(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width in px at which a twin sees images of this shape."""
    height, width = image_shape[1:]
    share = min(1.0, _LARGEST_SIDE / max(height, width))
    return max(LEAST_SIDE, round(share * height)), max(LEAST_SIDE, round(share * width))


def at_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, c, h, w), normalised or not, at this height and width in px."""
    if images.shape[2:] == size:
        return images
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True)
