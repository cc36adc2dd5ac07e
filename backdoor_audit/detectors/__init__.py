"""Detectors: each takes a classifier and clean images, or what others found, and gives a `Detection`; none knows the answer."""

from backdoor_audit.detectors.consensus import Consensus
from backdoor_audit.detectors.detection import ClassScore, Detection
from backdoor_audit.detectors.neural_cleanse import NeuralCleanse
from backdoor_audit.detectors.relabelling import Relabelling
from backdoor_audit.detectors.universal_perturbation import Natural, UniversalPerturbation
from backdoor_audit.search.scanning import SHRINKING, PatchScan, Stage
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.perturbations import Additive, Smooth, Stripes, Warping

Compared = UniversalPerturbation | Relabelling
"""A detector that compares the model with reference twins."""

Search = NeuralCleanse | Compared
"""A detector that looks at the model itself."""

Detector = Search | Consensus
"""Any detector. A `Consensus` looks at what others found, and comes after them."""

DETECTORS: tuple[Detector, ...] = (
    NeuralCleanse(),
    UniversalPerturbation(probe=PatchScan()),
    UniversalPerturbation(probe=Steering(family=Additive())),
    UniversalPerturbation(probe=Steering(family=Smooth())),
    UniversalPerturbation(probe=Steering(family=Stripes())),
    UniversalPerturbation(probe=Steering(family=Warping())),
    UniversalPerturbation(probe=PatchScan(stages=SHRINKING), by_source=True),
    Relabelling(),
    Consensus(),
)

__all__ = [
    "DETECTORS",
    "Additive",
    "ClassScore",
    "Compared",
    "Consensus",
    "Detection",
    "Detector",
    "Natural",
    "NeuralCleanse",
    "PatchScan",
    "Relabelling",
    "Search",
    "Smooth",
    "Stage",
    "Steering",
    "Stripes",
    "UniversalPerturbation",
    "Warping",
]
