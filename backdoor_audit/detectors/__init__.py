"""Detectors: each takes a classifier and clean images and gives a `Detection`; none knows the answer."""

from backdoor_audit.detectors.detection import ClassScore, Detection
from backdoor_audit.detectors.neural_cleanse import NeuralCleanse
from backdoor_audit.detectors.universal_perturbation import Natural, SourceScan, UniversalPerturbation
from backdoor_audit.perturbations import Additive, Smooth, Stripes, Warping
from backdoor_audit.steering import PatchScan, Steering

Detector = NeuralCleanse | UniversalPerturbation

DETECTORS: tuple[Detector, ...] = (
    NeuralCleanse(),
    UniversalPerturbation(probe=PatchScan()),
    UniversalPerturbation(probe=Steering(family=Additive())),
    UniversalPerturbation(probe=Steering(family=Smooth())),
    UniversalPerturbation(probe=Steering(family=Stripes())),
    UniversalPerturbation(probe=Steering(family=Warping())),
    SourceScan(),
)

__all__ = [
    "DETECTORS",
    "Additive",
    "ClassScore",
    "Detection",
    "Detector",
    "Natural",
    "NeuralCleanse",
    "PatchScan",
    "Smooth",
    "SourceScan",
    "Steering",
    "Stripes",
    "UniversalPerturbation",
    "Warping",
]
