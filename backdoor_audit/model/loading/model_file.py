"""One entrance for model files: which format it is, which network, which normalisation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from backdoor_audit.errors import ModelFormatError, OptionError
from backdoor_audit.files import UnreadableError, refuse_special
from backdoor_audit.model.classifier import Classifier, refuse_bad_weights
from backdoor_audit.model.loading import folders, onnx_file
from backdoor_audit.model.loading.archive import names_in
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.format import Asked, Format, Network
from backdoor_audit.model.loading.formats import FORMATS, unknown
from backdoor_audit.model.loading.header import LARGEST_NUMBER, header_normalization, header_shape
from backdoor_audit.model.loading.refusals import refuse_above

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10_std202": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "none": ((0.0,), (1.0,)),
    "gtsrb": ((0.0,), (1.0,)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
"""Mean and std, per channel or one number for all, that training scripts use for pixels in [0, 1]; the widely used ones first.

The two of CIFAR-10 differ in how the spread was averaged, and both are in wide use; BackdoorBench has ``cifar10``,
takes GTSRB as it is and uses ``half`` for MNIST.
"""

_BEGINNING = 512  # bytes by which a file is told; those of an archive of tar stand at 257


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A network read from a file, in evaluation mode, and what the file or the user said about it.

    ``image_shape`` (c, h, w) is None where nobody gave it. ``mean`` and ``std`` are empty where nobody gave them.
    ``fingerprint`` is the SHA-256 of the file, or of a folder's files. ``notes`` tell what was assumed or taken off on the way.
    ``class_names`` are those in the file, in the order of the scores; empty where it has none. ``num_classes`` is what the
    user said.
    """

    module: nn.Module
    architecture: str
    image_shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    notes: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    num_classes: int | None = None

    def classifier(
        self, image_shape: tuple[int, int, int] | None = None, device: torch.device | str = "cpu"
    ) -> Classifier:
        """The network as a classifier of images of ``image_shape`` (c, h, w), or of the shape in the file's header.

        Raises `ModelFormatError` if nobody gave a shape, the header says another one, the network does not take it, or it
        scores another number of classes than the user said.
        """
        shape = image_shape or self.image_shape
        if shape is None:
            raise ModelFormatError("no image_shape in the header; pass image_shape=(channels, height, width)")
        if self.image_shape not in (None, shape):
            wanted, found = ("x".join(map(str, sizes)) for sizes in (self.image_shape or (), shape))
            channels, height, width = self.image_shape or shape
            cures = [f"--resize={height}" if height == width else f"--resize={height}x{width}"] * (
                (height, width) != shape[1:]
            )
            cures += [f"--channels={channels}"] * (channels != shape[0] and channels in (1, 3))
            cure = " ".join(cures) or "--arch with the network for these images"
            raise ModelFormatError(
                f"takes {wanted} images (as its file says), the clean images are {found}; pass {cure}"
            )
        built = Classifier.wrap(
            self.module,
            image_shape=shape,
            mean=self.mean,
            std=self.std,
            architecture=self.architecture,
            device=device,
        )
        refuse_other_classes(self.num_classes, built)
        return built


def refuse_other_classes(said: int | None, classifier: Classifier) -> None:
    """Raise `ModelFormatError` if somebody said another number of classes than the network scores."""
    if said and said != classifier.num_classes:
        raise ModelFormatError(
            f"scores {classifier.num_classes} classes, --classes={said} says {said}; correct --classes, or leave it out"
        )


def load_model(
    path: Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    normalization: str | None = None,
    allow_pickle: bool = False,
    more_formats: Sequence[Format] = (),
) -> LoadedModel:
    """The network in a file or folder of one of `FORMATS`; which it is, is read off its content, not its name.

    ``more_formats`` are asked about a file that none of them reads; the notes say so.

    The file is taken as hostile: nothing in it is executed or imported, and its header only picks from our tables.
    ``allow_pickle`` gives that up: **the file's own code is then executed**, and a whole pickled module is accepted.
    Mean and std win over the named preset of `NORMALIZATIONS`, which wins over what the file says.

    Raises `ModelFormatError`, one line that begins with the path, if the file cannot be read, takes more memory or time
    than `bounds.current` allows, does not fit the architecture, or holds weights that are not finite; `OptionError` if the
    options on normalisation contradict each other.
    """
    path = Path(path)
    chosen = normalization_of(mean, std, normalization)
    try:
        with contained("cannot be read"):
            network = _read(_asked(path, arch, num_classes, allow_pickle), more_formats)
            refuse_bad_weights(network.module)
            module = network.module.float().eval()
            image_shape = header_shape(network.header) or network.hints.image_shape
            final_mean, final_std = chosen or header_normalization(network.header)
            fingerprint = fingerprint_of(path)
    except ModelFormatError as error:
        raise ModelFormatError(f"{path}: {error}") from None
    notes, hints = network.notes, network.hints
    if not final_mean and chosen is None:
        final_mean, final_std = NORMALIZATIONS[hints.preset] if hints.preset else (hints.mean, hints.std)
        if final_mean:
            notes += (f"normalisation: mean {_shown(final_mean)}, std {_shown(final_std)}, {hints.whose}",)
    if not final_mean:
        notes += (f"normalisation: none given, the network sees pixels in [0, 1]{_beside(path)}",)
    if hints.class_names:
        more = " and more" if len(hints.class_names) > 5 else ""
        notes += (f"class names in the file: {', '.join(hints.class_names[:5])}{more}",)
    return LoadedModel(
        module,
        network.architecture,
        image_shape,
        final_mean,
        final_std,
        fingerprint,
        notes,
        hints.class_names,
        num_classes,
    )


def _beside(path: Path) -> str:
    """What a note tells of an image processor beside a file of weights, which is read where the folder is given; or nothing."""
    beside = next((name for name in folders.PREPROCESSORS if (path.parent / name).is_file()), "")
    if path.name not in folders.WHOLE or not beside:
        return ""
    return f"; {beside} lies beside the file, and is read where --model={folders.shown(path.parent)} is given"


def load_classifier(
    path: Path,
    *,
    image_shape: tuple[int, int, int] | None = None,
    device: torch.device | str = "cpu",
    arch: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    normalization: str | None = None,
    allow_pickle: bool = False,
) -> Classifier:
    """The classifier in a model file, for images of ``image_shape`` (c, h, w) or of the shape in the file's header.

    Everything else is as in `load_model`. Raises `ModelFormatError` also if nobody gives the shape of the images or the
    network does not take them.
    """
    loaded = load_model(
        path,
        arch=arch,
        num_classes=num_classes,
        mean=mean,
        std=std,
        normalization=normalization,
        allow_pickle=allow_pickle,
    )
    try:
        return loaded.classifier(image_shape, device)
    except ModelFormatError as error:
        raise ModelFormatError(f"{path}: {error}") from None


def _read(asked: Asked, more: Sequence[Format]) -> Network:
    wanted = next((format for format in FORMATS if format.recognises(asked)), None)
    other = next((format for format in more if format.recognises(asked)), None)
    if other is not None and (wanted is None or wanted.refused):
        network = other.read(asked)
        return replace(network, notes=(f"format: {other.name}, read by code of another package", *network.notes))
    if wanted is None:
        raise ModelFormatError(unknown(asked, (*FORMATS, *more)))
    return wanted.read(asked)


def _asked(path: Path, arch: str | None, num_classes: int | None, allow_pickle: bool) -> Asked:
    asked = Asked(path=path, arch=arch, num_classes=num_classes, allow_pickle=allow_pickle)
    if os.path.isdir(path):
        return asked
    try:
        size = refuse_special(path)
    except UnreadableError as error:
        what = f"not a file that can be read ({error})" if os.path.lexists(path) else "no such file"
        raise ModelFormatError(f"{what}; give the path of a model file or of a Hugging Face folder") from None
    refuse_above(size, "the file")
    with path.open("rb") as file:
        start = file.read(_BEGINNING)
        if not start:
            raise ModelFormatError("the file is empty; copy it again from its source")
        members = names_in(file, size) if start.startswith(b"PK") else frozenset()
    return replace(asked, size=size, start=start, members=members)


def normalization_of(
    mean: Sequence[float], std: Sequence[float], preset: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std from numbers or from the name of a preset; None if neither is given.

    Case, hyphens and underscores of a name do not matter. Raises `OptionError` for an unknown name, for one number without the
    other, for both kinds at once, and for numbers that are those of pixels in 0 to 255.
    """
    if bool(mean) != bool(std):
        raise OptionError(f"--{'std' if mean else 'mean'} is missing; give --mean and --std together")
    if mean and preset:
        raise OptionError(f"--normalization={preset} and --mean, --std contradict each other; give one of them")
    if preset:
        known = {_folded(name): numbers for name, numbers in NORMALIZATIONS.items()}
        if _folded(preset) not in known:
            raise OptionError(
                f"--normalization={preset} is unknown (known: {', '.join(NORMALIZATIONS)}); or give --mean, --std"
            )
        return known[_folded(preset)]
    for name, numbers in (("mean", mean), ("std", std)):
        if any(abs(number) > LARGEST_NUMBER for number in numbers):
            raise OptionError(
                f"--{name}={','.join(f'{number:g}' for number in numbers[:4])}: pixels lie in [0, 1] here; divide --mean and "
                "--std for pixels in 0 to 255 by 255"
            )
    return (tuple(mean), tuple(std)) if mean else None


def _folded(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "").strip()


def _shown(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)


def parts_of(path: Path) -> tuple[Path, ...]:
    """The file itself with what lies beside it, or the files of a folder that a network is made from."""
    return folders.files_of(path) if path.is_dir() else onnx_file.files_of(path)


def fingerprint_of(path: Path) -> str:
    """SHA-256 of a file with what lies beside it, or of the files of a folder that a network is made from. Raises `OSError`."""
    digest = hashlib.sha256()
    for part in parts_of(path):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
