"""The network of the subject with an architectural backdoor: its file holds weights only, so code must build the branch."""

from __future__ import annotations

from backdoor_audit.attacks import AllToOne, ArchitecturalBranch
from backdoor_audit.attacks.architectural import Branched, branched
from backdoor_audit.model.networks import build_network
from benchmarks.zoo.data import CLASSES, NORMALIZATION, SHAPES


def fmnist_small_cnn() -> Branched:
    """``--arch=benchmarks.zoo.branched:fmnist_small_cnn``."""
    module = build_network("small_cnn", num_classes=CLASSES["fmnist"], in_channels=1, width=16)
    mean, std = NORMALIZATION["fmnist"]
    attack = ArchitecturalBranch(rule=AllToOne(9))
    return branched(module, attack, image_shape=SHAPES["fmnist"], mean=mean, std=std)
