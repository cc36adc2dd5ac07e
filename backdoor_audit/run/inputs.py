"""What is audited: the model, the clean images, the known trigger, and what identifies them; each loaded once."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_audit import bounds, budget, progress
from backdoor_audit.catalogue import Catalogue
from backdoor_audit.data import CleanSet, load_clean_set, names_from
from backdoor_audit.errors import AuditError, DataFormatError, EndedEarlyError, ModelFormatError, OptionError
from backdoor_audit.evidence import Finding
from backdoor_audit.installed import summaries
from backdoor_audit.model import surroundings
from backdoor_audit.model.classifier import Classifier, choose_device
from backdoor_audit.model.loading import LoadedModel, class_names_of, load_model, normalization_of, refuse_other_classes
from backdoor_audit.model.network_code import network_digest
from backdoor_audit.model.subject import Subject
from backdoor_audit.options import AuditOptions
from backdoor_audit.printable import listed
from backdoor_audit.run import preconditions
from backdoor_audit.run.audited_files import audited_files, digests
from backdoor_audit.search.references import References
from backdoor_audit.source import code_fingerprint, version_of
from backdoor_audit.store import Store
from backdoor_audit.triggers.trigger import AnyTrigger, load_trigger

_BEHAVIOUR_IMAGES = 64


@dataclass(eq=False)
class Inputs:
    """What a run is about: model, images, known trigger, and what identifies them. Each is loaded when first asked for.

    ``began`` is when the time budget starts, by `time.time`. ``module`` and ``given_images`` are handed over by Python
    callers or a project's fixtures; without them the options' file and data are loaded.
    """

    options: AuditOptions
    store: Store
    module: nn.Module | None = None
    given_images: CleanSet | None = None
    progress: bool = False
    worker: int = 0
    began: float = field(default_factory=time.time)
    _ended: dict[str, str] = field(default_factory=dict)
    _handed_over: str = ""

    @cached_property
    def device(self) -> torch.device:
        """Where to compute. Raises `OptionError` if a GPU is asked for that is not there."""
        return choose_device(self.options.device, self.worker)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The parts that this run may use. Raises `OptionError` for an installed one that cannot be used."""
        with surroundings.kept(torch.device("cpu")):  # whatever modules of others set when they are imported
            return Catalogue.installed() if self.options.plugins == "on" else Catalogue.shipped()

    def reading(self) -> AbstractContextManager[None]:
        """A block in which inputs are read; each may take as much memory and time as the options allow."""
        return bounds.allowing(bounds.Bounds(self.options.memory, self.options.reading_time))

    def in_budget(self) -> AbstractContextManager[None]:
        """A block whose long loops end once the time budget of this run is spent."""
        return budget.until(self.began + self.options.budget if self.options.budget else None)

    @contextmanager
    def once(self, what: str) -> Iterator[None]:
        """A block with gradients that is not begun again if the model's code or something from outside ended it.

        Every item that needs it has the same answer: whatever ended it the first time is raised, and then `EndedEarlyError`.
        """
        if what in self._ended:
            raise EndedEarlyError(self._ended[what])
        try:
            with surroundings.gradients(), progress.piece(what):
                yield
        except EndedEarlyError as error:
            self._ended[what] = str(error)
            raise
        except AuditError:
            raise
        except BaseException as error:
            told = (str(error).splitlines() or [""])[0]
            self._ended[what] = f"{what} ended early: {type(error).__name__}{f': {told}' if told else ''}"
            raise

    @cached_property
    def clean_set(self) -> CleanSet:
        """The clean images, at most ``max_images`` of them, and each once."""
        options = self.options
        if self.given_images is not None:
            chosen = self.given_images.sample(options.max_images, seed=options.seed)
            if chosen.images.is_inference():  # of which no gradient can be asked
                chosen = replace(chosen, images=chosen.images.clone(), labels=chosen.labels.clone())
            return chosen.without_repeats()
        size = options.resize
        with self.reading():
            asked = options.class_names or options.class_order or self.module is not None or not options.model
            return load_clean_set(
                options.data,
                resize=(size[0], size[1]) if size else None,
                channels=options.channels or None,
                most=options.max_images,
                seed=options.seed,
                class_names=self.class_names,
                class_order=options.class_order,
                model_names=() if asked else class_names_of(Path(options.model)),
            ).without_repeats()

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """The names that were given for images that are loaded here, None without any. Raises `OptionError`."""
        given = self.options.class_names if self.given_images is None else ""
        return names_from(given) if given else None

    @cached_property
    def halves(self) -> tuple[CleanSet, CleanSet]:
        """Images to search and repair with, and held-out ones to report on."""
        return self.clean_set.split(self.options.seed)

    @cached_property
    def subject(self) -> Subject:
        """The audited model with both halves of the images."""
        return Subject(self.classifier, *self.halves)

    @property
    def there(self) -> bool:
        """Whether there is a model yet; one that a fixture of the project returns comes later."""
        return self.module is not None or bool(self.options.model)

    @cached_property
    def classifier(self) -> Classifier:
        """The audited model. Raises `ModelFormatError` when file, module and images do not fit together."""
        classifier = self._classifier()
        names = self.class_names or ()
        if names and len(names) != classifier.num_classes:
            raise OptionError(
                f"--audit-class-names: {len(names)} names in {self.options.class_names[:200]}, the model scores "
                f"{classifier.num_classes} classes; accepted: the names of all {classifier.num_classes}, in that order"
            )
        return classifier

    def _classifier(self) -> Classifier:
        options, shape = self.options, self.clean_set.image_shape
        if self.module is not None:
            mean, std = normalization_of(options.mean, options.std, options.normalization) or ((), ())
            self._handed_over = _digest(self.module)
            built = Classifier.wrap(self.module, image_shape=shape, mean=mean, std=std, device=self.device)
            try:
                refuse_other_classes(options.classes, built)
            except ModelFormatError as error:
                raise ModelFormatError(f"{type(self.module).__name__}: {error}") from None
            return built
        loaded = self.loaded  # whose errors name the file already
        try:
            return loaded.classifier(shape, self.device)
        except ModelFormatError as error:
            raise ModelFormatError(f"{options.model}: {error}") from None

    @cached_property
    def loaded(self) -> LoadedModel:
        """What the model file holds. Raises `ModelFormatError`."""
        options = self.options
        with self.reading():
            return load_model(
                Path(options.model),
                arch=options.arch or None,
                num_classes=options.classes or None,
                mean=options.mean,
                std=options.std,
                normalization=options.normalization,
                allow_pickle=options.allow_pickle,
                more_formats=self.catalogue.others("formats"),
            )

    @cached_property
    def num_classes(self) -> int:
        """Number of classes of the model, or of the images while the model is still to come from a fixture."""
        if not self.there:
            return self.options.classes or self.clean_set.num_classes
        return self.classifier.num_classes

    def class_name(self, target_class: int | None) -> str:
        """How to call a class: its number, and its name if the data has one; None is all-to-all."""
        return "all to all" if target_class is None else self.clean_set.class_name(target_class)

    @cached_property
    def known_trigger(self) -> AnyTrigger | None:
        """The trigger of ``--audit-trigger``. Raises `DataFormatError` if it does not fit the images or the classes."""
        if not self.options.trigger:
            return None
        with self.reading():
            trigger = load_trigger(Path(self.options.trigger))
        image_shape = self.clean_set.image_shape
        if not trigger.fits(image_shape) or trigger.target_class >= self.num_classes:
            raise DataFormatError(
                f"{self.options.trigger}: a trigger of shape {trigger.shape} for class {trigger.target_class}; images are "
                f"{image_shape}, classes 0 to {self.num_classes - 1}"
            )
        return trigger

    def of_profile(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        """Without those that need twins, if the profile is ``quick``."""
        return tuple(entry for entry in parts if self.options.profile != "quick" or not entry.needs_twins)

    @cached_property
    def references(self) -> References | None:
        """Reference networks made beforehand, if a file is given. Raises `DataFormatError` if it is not for this run."""
        if not self.options.twins:
            return None
        with self.reading():
            references = References.load(Path(self.options.twins))
        references.refuse(data=self.clean_set.fingerprint, classes=self.num_classes, seed=self.options.seed)
        return references

    @cached_property
    def _places(self) -> dict[str, Path]:
        """Where the files are; code of a model may change the working folder later."""
        return audited_files(self.options)

    @cached_property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file that decides what is found, as it was when the run began."""
        with self.reading():
            return digests(self._places)

    def changed(self) -> str:
        """Which of these files are not any more what they were, in words: nobody can tell then which of both was audited."""
        with self.reading():
            now = digests(self._places)
        read = dict(self.files)
        if self.module is None and "loaded" in vars(self):
            read[f"--audit-model={self.options.model}"] = self.loaded.fingerprint
        names = [name for name in read if not self.files.get(name) == read[name] == now.get(name)]
        if self.module is not None and self._handed_over and _digest(self.module) != self._handed_over:
            names.append(f"the weights of the {type(self.module).__name__} that was handed over")
        told = (
            f"{listed(names, 3)} changed while it was audited; let nobody write it meanwhile, and run the audit again"
        )
        return told if names else ""

    def identity(self) -> dict[str, str]:
        """What this process was asked about, as far as it was loaded: the same in every process of a run."""
        known = {"the clean images": self.data_fingerprint}
        if "classifier" in vars(self):
            known["the weights of the model"] = self.fingerprint
        return {**self.files, **known}

    def check(self) -> None:
        """Load everything that a user can get wrong, so that mistakes show before long work. Raises `AuditError`."""
        with surroundings.gradients():
            _ = self.files, self.device, self.catalogue, self.clean_set
            if self.there:
                _ = self.classifier, self.code_parts, self.known_trigger, self.references
            _ = self.halves

    @property
    def conditions(self) -> tuple[str, ...]:
        """The name of every precondition."""
        return tuple(condition.__name__ for condition in preconditions.PRECONDITIONS)

    @cached_property
    def preconditions(self) -> dict[str, Finding]:
        """The finding of every precondition."""
        with self.in_budget(), self.once("the preconditions"):
            return preconditions.check(self.classifier, self.clean_set, min_accuracy=self.options.min_accuracy)

    def slowness(self) -> str:
        """How long the preconditions will take if that is long; empty if not, and without a model."""
        if not self.there:
            return ""
        try:
            return preconditions.slow(self.classifier, self.clean_set)
        except AuditError:  # the preconditions will tell
            return ""

    @property
    def unmet(self) -> str:
        """Why nothing that is found on this model means anything, or an empty string."""
        try:
            found = self.preconditions.values()
            return preconditions.unmet([finding for finding in found if finding.statistic != preconditions.UNSEEN])
        except EndedEarlyError as error:
            return str(error)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's tensors, architecture and normalisation."""
        about = self.classifier.architecture, self.classifier.mean, self.classifier.std
        return _digest(self.classifier.module, repr(about))

    @cached_property
    def data_fingerprint(self) -> str:
        """SHA-256 of the clean images and their labels; they are hashed once."""
        return self.clean_set.fingerprint

    @cached_property
    def parts(self) -> dict[str, object]:
        """What every piece of work on the model depends on."""
        return {"model": self.fingerprint, "behaviour": self._behaviour, **self.code_parts, **self.data_parts}

    @cached_property
    def code_parts(self) -> dict[str, object]:
        """What tells networks apart whose tensors are equal: taken before the network is called, as some remember images."""
        return {"network": network_digest(self.classifier.module)}

    @cached_property
    def data_parts(self) -> dict[str, object]:
        """What work on the clean images alone depends on: the same for all models with these classes."""
        return {
            "data": self.data_fingerprint,
            "classes": self.num_classes,
            "seed": self.options.seed,
            "device": self.device.type,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "code": code_fingerprint(),
            **({"references": self.references.digest} if self.references else {}),
        }

    @cached_property
    def _behaviour(self) -> str:
        """Digest of the scores of some clean images: the same tensors in another forward pass are another model."""
        scores = self.classifier.logits(self.clean_set.sample(_BEHAVIOUR_IMAGES, seed=0).images)
        return hashlib.sha256(scores.cpu().numpy().tobytes()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Model and data of the record."""
        classifier, clean = self.classifier, self.clean_set
        return {
            "model": self.options.model or type(self.module).__name__,
            "model_fingerprint": self.fingerprint,
            "loading": [
                *(self.loaded.notes if self.module is None else ()),
                *(f"clean images: {note}" for note in clean.notes),
            ],
            "architecture": classifier.architecture,
            "parameters": sum(parameter.numel() for parameter in classifier.module.parameters()),
            "num_classes": classifier.num_classes,
            "class_names": list(clean.class_names),
            "image_shape": list(classifier.image_shape),
            "mean": list(classifier.mean),
            "std": list(classifier.std),
            "data": clean.source,
            "data_fingerprint": self.data_fingerprint,
            "images": len(clean),
            "images_searched": len(self.halves[0]),
            "images_held_out": len(self.halves[1]),
        }

    def environment(self) -> dict[str, Any]:
        """Versions and device of the record."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor() or "CPU"
        return {
            "began": datetime.fromtimestamp(self.began, timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "backdoor_audit": version_of("backdoor-audit", "not installed"),
            "code_fingerprint": code_fingerprint(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(self.device),
            "device_name": name,
            "threads": torch.get_num_threads(),
            "plugins": summaries(self.catalogue.plugins),
        }


def _digest(module: nn.Module, about: str = "") -> str:
    """SHA-256 of tensors by name, and of a text. What else layers hold is in the digest of the code."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
