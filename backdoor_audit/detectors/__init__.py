"""Detectors: each takes a classifier and clean images and gives a `Detection`; none knows the answer."""

from backdoor_audit.detectors.detection import ClassScore, Detection
from backdoor_audit.detectors.neural_cleanse import NeuralCleanse

DETECTORS: tuple[NeuralCleanse, ...] = (NeuralCleanse(),)

__all__ = ["DETECTORS", "ClassScore", "Detection", "NeuralCleanse"]
