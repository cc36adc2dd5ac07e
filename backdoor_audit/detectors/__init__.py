"""Detectors: each takes a classifier and clean images, or what others found, and gives a `Detection`; none knows the answer."""

from backdoor_audit.detectors.by_margin import ByMargin
from backdoor_audit.detectors.by_screening import ByScreening
from backdoor_audit.detectors.by_size import BySize
from backdoor_audit.detectors.consensus import Consensus
from backdoor_audit.detectors.detection import Detection
from backdoor_audit.detectors.detector import Compared, Cost, Detector, Reference, compares, no_answer
from backdoor_audit.detectors.natural import Natural
from backdoor_audit.detectors.neural_cleanse import NeuralCleanse
from backdoor_audit.detectors.relabelling import Relabelling
from backdoor_audit.detectors.row import Row
from backdoor_audit.detectors.universal_perturbation import UniversalPerturbation
from backdoor_audit.search.racing import Race
from backdoor_audit.search.scanning import CLOSER, SHRINKING, PatchScan, Stage
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.perturbations import Additive, Smooth, Stripes, Warping

DETECTORS: tuple[Detector, ...] = (
    NeuralCleanse(),
    UniversalPerturbation(probe=PatchScan(closer=CLOSER)),
    UniversalPerturbation(probe=Steering(family=Additive())),
    UniversalPerturbation(probe=Steering(family=Smooth())),
    UniversalPerturbation(probe=Steering(family=Stripes())),
    # its loss falls little: more images show it
    UniversalPerturbation(probe=Steering(family=Warping(), batch_size=24)),
    UniversalPerturbation(probe=PatchScan(stages=SHRINKING), by_source=True),
    Relabelling(),
    Consensus(),
)

__all__ = [
    "DETECTORS",
    "Additive",
    "ByMargin",
    "ByScreening",
    "BySize",
    "Compared",
    "Consensus",
    "Cost",
    "Detection",
    "Detector",
    "Natural",
    "NeuralCleanse",
    "PatchScan",
    "Race",
    "Reference",
    "Relabelling",
    "Row",
    "Smooth",
    "Stage",
    "Steering",
    "Stripes",
    "UniversalPerturbation",
    "Warping",
    "compares",
    "no_answer",
]
