"""How many image passes a search takes, before it is made: forward and backward of one image, as records count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from backdoor_audit.detectors import Consensus, Detector, NeuralCleanse, PatchScan, Relabelling, Stage
from backdoor_audit.progress import FORWARD_ONLY
from backdoor_audit.properties import HarmlessChanges, NothingSteers, Property
from backdoor_audit.search.inversion import TriggerInversion
from backdoor_audit.search.scanning import starts
from backdoor_audit.search.steering import Steering
from backdoor_audit.triggers.perturbations import REFERENCE_SIDE

_SETTLING = 0.92  # of the steps that classes take until their triggers no longer shrink, on average
_WATCHED = 2 * 32  # images on which every window of the last stage of a scan is looked at
_FIRST_LOOK = 2 * 4 + 8 * FORWARD_ONLY  # passes for a class that a property decides by whether to steer for it
_MOST_LOOKED_AT = 64  # classes of one example
_EXACT = 50  # passes for a class of the properties that compare two computations

ImageShape = tuple[int, int, int]


def of_detector(detector: Detector, image_shape: ImageShape, classes: int, images: int) -> float:
    """Of one search in one model, with so many clean images in either half."""
    if isinstance(detector, Consensus):
        return 0.0
    if isinstance(detector, NeuralCleanse):
        return _of_inversion(detector, classes) + classes * images * FORWARD_ONLY
    if isinstance(detector, Relabelling):
        drawn = detector.per_class * classes
        return sum(_of_probe(probe, image_shape, measured=images, least=drawn) for probe in detector.probes)
    most = images // classes if detector.by_source else images - images // classes
    return classes * _of_probe(detector.probe, image_shape, measured=min(detector.probe.measured, most), most=most)


def of_property(claim: Property, classes: int, images: int) -> float:
    """Of a search that refutes nothing, in the audited model alone."""
    if isinstance(claim, HarmlessChanges):
        return claim.examples * min(claim.searched, images) * FORWARD_ONLY
    if not isinstance(claim, NothingSteers):
        return float(_EXACT * classes)
    looks = _FIRST_LOOK * min(classes, _MOST_LOOKED_AT) if classes > claim.classes else 0.0
    each = claim.steps * claim.batch_size + claim.measured * FORWARD_ONLY
    return claim.examples * (looks + min(classes, claim.classes) * each)


def _of_inversion(detector: NeuralCleanse, classes: int) -> float:
    race = TriggerInversion(steps=detector.steps, race_above=detector.race_above)
    staying = race.staying(classes)
    steps = classes * race.screening_steps + staying * (detector.steps - race.screening_steps)
    return _SETTLING * detector.restarts * detector.batch_size * steps


def _of_probe(
    probe: PatchScan | Steering, image_shape: ImageShape, *, measured: int, least: int = 0, most: int = 10**9
) -> float:
    """For one goal, with ``least`` to ``most`` images in every step."""
    if isinstance(probe, Steering):
        return probe.steps * min(most, max(probe.batch_size, least)) + measured * FORWARD_ONLY
    stages = [replace(stage, images=min(most, max(stage.images, least))) for stage in probe.stages]
    return _of_scan(stages, probe.judged, image_shape, measured=measured)


def _of_scan(stages: Sequence[Stage], judged: int, image_shape: ImageShape, *, measured: int) -> float:
    height, width = image_shape[1:]
    scale = max(1, round(max(height, width) / (REFERENCE_SIDE + 4)))
    places, before, passes = 0, 0, 0.0
    for number, stage in enumerate(stages, start=1):
        side, stride = min(stage.side * scale, height, width), stage.stride * scale
        if not places:
            places = len(starts(height, side, stride)) * len(starts(width, side, stride))
        elif side < before:
            places *= len(starts(before, side, stride)) ** 2
        before = side
        passes += places * stage.images * stage.steps
        if number == len(stages):
            passes += places * _WATCHED / 2 * FORWARD_ONLY
        places = min(places, max(judged, int(stage.kept * places)))
    return passes + places * (_WATCHED / 2 + measured) * FORWARD_ONLY
