"""One audit of one model: loads, detects and repairs once, remembers finished work, and lists what there is to judge."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_audit import preconditions
from backdoor_audit.canary import CANARIES, Sighting, canary_targets, judge_power
from backdoor_audit.classifier import Classifier, choose_device
from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.detectors import DETECTORS, Detection, NeuralCleanse
from backdoor_audit.errors import DataFormatError, ModelFormatError
from backdoor_audit.evidence import Finding
from backdoor_audit.loading import LoadedModel, load_model, normalization_of
from backdoor_audit.mitigations import MITIGATIONS, Outcome, judge_drop, judge_success
from backdoor_audit.options import AuditOptions
from backdoor_audit.preconditions import PRECONDITIONS
from backdoor_audit.store import Store, generator_for
from backdoor_audit.trigger import Trigger

_BEHAVIOUR_IMAGES = 64


@dataclass(eq=False)
class Audit:
    """A run over one subject. Everything is computed when first asked for, and kept.

    ``module`` and ``given_images`` are handed over by Python callers or a project's fixtures; without them the options'
    file and data are loaded.
    """

    options: AuditOptions
    store: Store
    module: nn.Module | None = None
    given_images: CleanSet | None = None
    progress: bool = False
    worker: int = 0
    _detections: dict[str, Detection] = field(default_factory=dict)
    _repairs: dict[str, tuple[Outcome, ...]] = field(default_factory=dict)
    _sightings: dict[str, tuple[Sighting, ...]] = field(default_factory=dict)
    recalled: set[str] = field(default_factory=set)

    @cached_property
    def device(self) -> torch.device:
        """Where to compute. Raises `OptionError` if a GPU is asked for that is not there."""
        return choose_device(self.options.device, self.worker)

    @cached_property
    def clean_set(self) -> CleanSet:
        """The clean images, at most ``max_images`` of them."""
        if self.given_images is not None:
            return self.given_images.sample(self.options.max_images, seed=self.options.seed)
        size = self.options.resize
        return load_clean_set(
            self.options.data,
            resize=(size[0], size[1]) if size else None,
            channels=self.options.channels or None,
            most=self.options.max_images,
            seed=self.options.seed,
        )

    @cached_property
    def split(self) -> tuple[CleanSet, CleanSet]:
        """Images to search and repair with, and held-out ones to report on."""
        return self.clean_set.split(self.options.seed)

    @cached_property
    def classifier(self) -> Classifier:
        """The audited model. Raises `ModelFormatError` when file, module and images do not fit together."""
        options, shape = self.options, self.clean_set.image_shape
        if self.module is not None:
            mean, std = normalization_of(options.mean, options.std, options.normalization) or ((), ())
            return Classifier.wrap(self.module, image_shape=shape, mean=mean, std=std, device=self.device)
        try:
            return self.loaded.classifier(shape, self.device)
        except ModelFormatError as error:
            raise ModelFormatError(f"{options.model}: {error}") from None

    @cached_property
    def loaded(self) -> LoadedModel:
        """What the model file holds. Raises `ModelFormatError`."""
        options = self.options
        return load_model(
            Path(options.model),
            arch=options.arch or None,
            num_classes=options.classes or None,
            mean=options.mean,
            std=options.std,
            normalization=options.normalization,
            allow_pickle=options.allow_pickle,
        )

    @cached_property
    def num_classes(self) -> int:
        """Number of classes of the model, or of the images while the model is still to come from a fixture."""
        if self.module is None and not self.options.model:
            return self.options.classes or self.clean_set.num_classes
        return self.classifier.num_classes

    def class_name(self, target_class: int) -> str:
        """How to call a class: its number, and its name if the data has one."""
        return self.clean_set.class_name(target_class)

    @cached_property
    def known_trigger(self) -> Trigger | None:
        """The trigger of ``--audit-trigger``. Raises `DataFormatError` if it does not fit the images or the classes."""
        if not self.options.trigger:
            return None
        trigger = Trigger.load(Path(self.options.trigger))
        wanted = self.clean_set.image_shape
        if tuple(trigger.pattern.shape) != wanted or trigger.target_class >= self.num_classes:
            raise DataFormatError(
                f"{self.options.trigger}: a trigger of shape {tuple(trigger.pattern.shape)} for class "
                f"{trigger.target_class}; images are {wanted}, classes 0 to {self.num_classes - 1}"
            )
        return trigger

    def check(self) -> None:
        """Load everything that a user can get wrong, so that mistakes show before long work. Raises `AuditError`."""
        _ = self.device, self.clean_set
        if self.module is not None or self.options.model:
            _ = self.classifier, self.known_trigger

    @cached_property
    def preconditions(self) -> dict[str, Finding]:
        """The finding of every precondition."""
        return preconditions.check(self.classifier, self.clean_set, min_accuracy=self.options.min_accuracy)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's tensors, architecture and normalisation."""
        digest = hashlib.sha256(
            repr((self.classifier.architecture, self.classifier.mean, self.classifier.std)).encode()
        )
        for name, tensor in self.classifier.module.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            if isinstance(tensor, Tensor):
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def detectors(self) -> tuple[NeuralCleanse, ...]:
        """The detectors with the effort that the options ask for."""
        return tuple(replace(entry, steps=self.options.steps, restarts=self.options.restarts) for entry in DETECTORS)

    def finished(self, name: str) -> bool:
        """Whether this process has the answer of that detector, repair or canary at hand."""
        return name in self._detections or name in self._repairs or name in self._sightings

    def detection(self, name: str) -> Detection:
        """The detection of one detector; inconclusive, without any search, if a precondition does not hold."""
        if name not in self._detections:
            self._detections[name] = self._detect(next(entry for entry in self.detectors() if entry.name == name))
        return self._detections[name]

    def _detect(self, detector: NeuralCleanse) -> Detection:
        unmet = preconditions.unmet(list(self.preconditions.values()))
        if unmet:
            return Detection(
                detector=detector.name,
                settings=repr(detector),
                scores=(),
                triggers=(),
                inconclusive=unmet,
                blind_spots=detector.blind_spots,
            )

        def work() -> Detection:
            began = time.perf_counter()
            generator = generator_for(self.options.seed, detector.name)
            detection = detector(self.classifier, *self.split, generator=generator, progress=self.progress)
            return detection.timed(time.perf_counter() - began)

        detection, recalled = self.store.recall(
            {**self._parts, "detector": detector}, work, pack=Detection.pack, unpack=Detection.unpack
        )
        if recalled:
            self.recalled.add(detector.name)
        return detection

    @cached_property
    def triggers(self) -> tuple[Trigger, ...]:
        """What repairs work against: the known trigger if one was given, else those of the flagged classes."""
        if self.known_trigger is not None:
            return (self.known_trigger,)
        return self.triggers_found()

    def triggers_found(self) -> tuple[Trigger, ...]:
        """The triggers of all flagged classes, detector by detector."""
        found = [
            self.detection(entry.name).flagged(self.options.limits, index=self.options.index) for entry in DETECTORS
        ]
        return tuple(trigger for triggers in found for trigger in triggers)

    @cached_property
    def no_repair(self) -> str:
        """Why there is nothing to repair, or an empty string."""
        unmet = preconditions.unmet(list(self.preconditions.values()))
        if unmet:
            return unmet
        return "" if self.triggers else "no trigger was flagged, so there is nothing to repair"

    def repair(self, name: str) -> tuple[Outcome, ...]:
        """How one method repairs the model, trigger by trigger, each time on a fresh copy."""
        if name not in self._repairs:
            method = next(entry for entry in MITIGATIONS if entry.name == name)

            def work(trigger: Trigger) -> Outcome:
                generator = generator_for(self.options.seed, f"{name}:{trigger.target_class}")
                return method(self.classifier, *self.split, trigger, generator=generator).outcome

            self._repairs[name] = tuple(
                self.store.recall(
                    {**self._parts, "method": method, "trigger": _digest(trigger)},
                    lambda trigger=trigger: work(trigger),  # type: ignore[misc]
                    pack=Outcome.pack,
                    unpack=Outcome.unpack,
                )[0]
                for trigger in self.triggers
            )
        return self._repairs[name]

    def sightings(self, name: str) -> tuple[Sighting, ...]:
        """What the detectors make of one kind of canary, for each class that it asks for, each time in a fresh copy."""
        if name not in self._sightings:
            options = self.options
            canary = next(entry for entry in CANARIES if entry.name == name)
            unmet = preconditions.unmet(list(self.preconditions.values()))

            def work(target: int) -> Sighting:
                if unmet:
                    return Sighting(canary=name, settings=repr(canary), target_class=target, reason=unmet)
                return canary(
                    self.classifier,
                    *self.split,
                    target,
                    detectors=self.detectors(),
                    limits=options.limits,
                    index=options.index,
                    seed=options.seed,
                    progress=self.progress,
                )

            judged = (canary, self.detectors(), options.limits, options.index)
            self._sightings[name] = tuple(
                self.store.recall(
                    {**self._parts, "canary": judged, "target": target},
                    lambda target=target: work(target),  # type: ignore[misc]
                    pack=Sighting.pack,
                    unpack=Sighting.unpack,
                )[0]
                for target in canary_targets(self.num_classes, options.canary_targets, options.seed)
            )
        return self._sightings[name]

    def item_names(self) -> list[str]:
        """Every item of a complete run, in order; the names are pytest's node ids."""
        names = [f"audit::test_precondition[{condition.__name__}]" for condition in PRECONDITIONS]
        names += [
            f"audit::test_anomaly_index[{detector.name}-class_{target}]"
            for detector in DETECTORS
            for target in range(self.num_classes)
        ]
        names += [
            f"audit::{test}[{method.name}]"
            for test in ("test_attack_success_rate_after", "test_clean_accuracy_drop")
            for method in MITIGATIONS
        ]
        names += [f"audit::test_power[{canary.name}]" for canary in CANARIES if self.options.canary]
        return names

    def judge_all(self) -> Iterator[tuple[str, Finding | str]]:
        """Every item with its finding, or with the reason why it was skipped: what a pytest run does, without pytest."""
        limits = self.options.limits
        names = iter(self.item_names())
        for condition in PRECONDITIONS:
            yield next(names), self.preconditions[condition.__name__]
        for detector in DETECTORS:
            for target in range(self.num_classes):
                detection = self.detection(detector.name)
                name = self.class_name(target)
                yield next(names), detection.judge(target, limits, index=self.options.index, name=name)
        for judgement in (judge_success, judge_drop):
            for method in MITIGATIONS:
                reason = self.no_repair or not_applicable(self.repair(method.name))
                yield next(names), reason or judgement(self.repair(method.name), limits)
        for canary in CANARIES if self.options.canary else ():
            suspicion_stops = self.options.inconclusive == "fail"
            yield next(names), judge_power(self.sightings(canary.name), allow_suspected=suspicion_stops)

    @cached_property
    def _parts(self) -> dict[str, object]:
        """What every piece of work depends on."""
        return {
            "model": self.fingerprint,
            "behaviour": self._behaviour,
            "data": self.clean_set.fingerprint,
            "seed": self.options.seed,
            "device": self.device.type,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "code": _code_fingerprint(),
        }

    @cached_property
    def _behaviour(self) -> str:
        """Digest of the scores of some clean images: the same tensors in another forward pass are another model."""
        scores = self.classifier.logits(self.clean_set.sample(_BEHAVIOUR_IMAGES, seed=0).images)
        return hashlib.sha256(scores.cpu().numpy().tobytes()).hexdigest()

    def subject(self) -> dict[str, Any]:
        """Model and data of the record."""
        classifier, clean = self.classifier, self.clean_set
        return {
            "model": self.options.model or type(self.module).__name__,
            "model_fingerprint": self.fingerprint,
            "loading": list(self.loaded.notes) if self.module is None else [],
            "architecture": classifier.architecture,
            "parameters": sum(parameter.numel() for parameter in classifier.module.parameters()),
            "num_classes": classifier.num_classes,
            "class_names": list(clean.class_names),
            "image_shape": list(classifier.image_shape),
            "mean": list(classifier.mean),
            "std": list(classifier.std),
            "data": clean.source,
            "data_fingerprint": clean.fingerprint,
            "images": len(clean),
            "images_searched": len(self.split[0]),
            "images_held_out": len(self.split[1]),
        }

    def settings(self) -> dict[str, Any]:
        """Options of the record."""
        stored = {entry.name: getattr(self.options, entry.name) for entry in fields(self.options)}
        stored["limits"] = {
            entry.name: getattr(self.options.limits, entry.name) for entry in fields(self.options.limits)
        }
        return stored

    def environment(self) -> dict[str, Any]:
        """Versions and device of the record."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor() or "CPU"
        return {
            "backdoor_audit": version(),
            "code_fingerprint": _code_fingerprint(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(self.device),
            "device_name": name,
            "threads": torch.get_num_threads(),
        }

    def sections(self) -> dict[str, Any]:
        """What was computed so far, as the record keeps it; a part of an unfinished run is there as well."""
        return {
            "subject": self.subject(),
            "environment": self.environment(),
            "detections": {
                name: {**detection.summary(), "recalled": name in self.recalled}
                for name, detection in self._detections.items()
            },
            "repairs": {
                f"{name}-class_{outcome.target_class}": outcome.summary()
                for name, outcomes in self._repairs.items()
                for outcome in outcomes
            },
            "canaries": {
                f"{name}-class_{sighting.target_class}": sighting.summary()
                for name, sightings in self._sightings.items()
                for sighting in sightings
            },
        }


def not_applicable(outcomes: tuple[Outcome, ...]) -> str:
    """Why a method could not be tried on this network, or an empty string."""
    return next((outcome.not_applicable for outcome in outcomes if outcome.not_applicable), "")


def version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("backdoor-audit")
    except metadata.PackageNotFoundError:
        return "not installed"


def _digest(trigger: Trigger) -> str:
    content = torch.cat([trigger.mask.flatten(), trigger.pattern.flatten()]).float().numpy().tobytes()
    return hashlib.sha256(content + str(trigger.target_class).encode()).hexdigest()


def _code_fingerprint() -> str:
    """Of the package's own source, so that finished work of another version is never taken for this one's."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
