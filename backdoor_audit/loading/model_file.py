"""One entrance for model files: which format it is, which network, which normalisation."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from backdoor_audit.classifier import Classifier, refuse_bad_weights
from backdoor_audit.errors import ModelFormatError, OptionError
from backdoor_audit.files import UnreadableError, refuse_special
from backdoor_audit.loading import checkpoint, safetensors_file
from backdoor_audit.loading.architecture import build_architecture, load_state, refuse_misfit, strip_prefixes
from backdoor_audit.loading.foreign import contained
from backdoor_audit.loading.refusals import odd_tensor, refuse_above
from backdoor_audit.printable import printable

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10_std202": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.0,), (1.0,)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and std, per channel or one number for all, that training scripts use for pixels in [0, 1].

The two of CIFAR-10 differ in how the spread was averaged, and both are in wide use; BackdoorBench has ``cifar10``,
takes GTSRB as it is and uses ``half`` for MNIST.
"""

_LARGEST_HEADER = 100_000_000  # safetensors' own limit, bytes
_LARGEST_SIDE = 4096
_MOST_CHANNELS = 64


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A network read from a file, in evaluation mode, and what the file or the user said about it.

    ``image_shape`` (c, h, w) is None where nobody gave it. ``mean`` and ``std`` are empty where nobody gave them.
    ``fingerprint`` is the SHA-256 of the file. ``notes`` tell what was assumed or taken off on the way.
    """

    module: nn.Module
    architecture: str
    image_shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    notes: tuple[str, ...]

    def classifier(
        self, image_shape: tuple[int, int, int] | None = None, device: torch.device | str = "cpu"
    ) -> Classifier:
        """The network as a classifier of images of ``image_shape`` (c, h, w), or of the shape in the file's header.

        Raises `ModelFormatError` if nobody gave a shape, the header says another one, or the network does not take it.
        """
        shape = image_shape or self.image_shape
        if shape is None:
            raise ModelFormatError("no image_shape in the header; pass image_shape=(channels, height, width)")
        if self.image_shape not in (None, shape):
            wanted, found = ("x".join(map(str, sizes)) for sizes in (self.image_shape or (), shape))
            raise ModelFormatError(
                f"takes {wanted} images (its header says), the clean images are {found}; convert them with --audit-resize "
                "or --audit-channels"
            )
        return Classifier.wrap(
            self.module,
            image_shape=shape,
            mean=self.mean,
            std=self.std,
            architecture=self.architecture,
            device=device,
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
) -> LoadedModel:
    """The network in a safetensors or ``torch.save`` file; which of the two is read off its content, not its name.

    The file is taken as hostile: nothing in it is executed or imported, and its header only picks from our tables.
    ``allow_pickle`` gives that up: **the file's own code is then executed**, and a whole pickled module is accepted.
    Mean and std win over the named preset of `NORMALIZATIONS`, which wins over the file's header.

    Raises `ModelFormatError`, one line that begins with the path, if the file cannot be read, takes more memory or time
    than `bounds.current` allows, does not fit the architecture, or holds weights that are not finite; `OptionError` if the
    options on normalisation contradict each other.
    """
    path = Path(path)
    chosen = normalization_of(mean, std, normalization)
    try:
        with contained("cannot be read"):
            network = _read(path, arch, num_classes, allow_pickle)
            refuse_bad_weights(network.module)
            module = network.module.float().eval()
            image_shape = _header_shape(network.header)
            final_mean, final_std = chosen or _header_normalization(network.header)
            fingerprint = _fingerprint(path)
    except ModelFormatError as error:
        raise ModelFormatError(f"{path}: {error}") from None
    notes = network.notes
    if not final_mean:
        notes += ("normalisation: none given, the network sees pixels in [0, 1]",)
    return LoadedModel(module, network.architecture, image_shape, final_mean, final_std, fingerprint, notes)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Network:
    """A module with the file's weights, and what the file said beside them."""

    module: nn.Module
    architecture: str
    notes: tuple[str, ...]
    header: Mapping[str, str] = field(default_factory=dict)


def _read(path: Path, arch: str | None, num_classes: int | None, allow_pickle: bool) -> _Network:
    try:
        size = refuse_special(path)
    except UnreadableError as error:
        what = f"not a file that can be read ({error})" if os.path.lexists(path) else "no such file"
        raise ModelFormatError(f"{what}; give --model the path of a safetensors or torch.save file") from None
    refuse_above(size, "the file")
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise ModelFormatError("the file is empty; copy it again from its source")
    if start.startswith((b"PK\x03\x04", b"\x80")) and not _is_safetensors(start, size):
        return (_executed if allow_pickle else _checkpoint)(path, arch, num_classes)
    if _is_safetensors(start, size) or path.suffix == ".safetensors":
        return _safetensors(path, arch, num_classes)
    if start.startswith(b"version https://"):
        raise ModelFormatError("a Git LFS pointer instead of the model; run git lfs pull")
    raise ModelFormatError(
        f"neither safetensors nor torch.save (begins with {start[:8]!r}); convert it to safetensors, "
        "safetensors.torch.save_file(model.state_dict(), 'm.safetensors')"
    )


def _safetensors(path: Path, arch: str | None, num_classes: int | None) -> _Network:
    tensors, header = safetensors_file.read(path)
    state, said = _as_float32(tensors), header.get("architecture", "")
    module, architecture = build_architecture(arch, state, header=said, num_classes=num_classes)
    notes = load_state(module, state, architecture)
    if arch and said and said != arch:
        notes += (f"--arch={arch} instead of {printable(said[:60])} in the header",)
    return _Network(module, architecture, notes, header)


def _checkpoint(path: Path, arch: str | None, num_classes: int | None) -> _Network:
    """The network is built and compared with the file before any number is read."""
    with checkpoint.opened(path) as saved:
        described = saved.described()
        module, architecture = build_architecture(arch, described, num_classes=num_classes)
        refuse_misfit(module, strip_prefixes(described, module.state_dict())[0], architecture)
        notes = load_state(module, _as_float32(saved.tensors()), architecture)
        return _Network(module, architecture, saved.notes + notes)


def _executed(path: Path, arch: str | None, num_classes: int | None) -> _Network:
    content, notes = checkpoint.executed(path)
    if isinstance(content, nn.Module):
        _refuse_odd_tensors(content.state_dict())
        notes += (f"--arch={arch} not needed",) if arch else ()
        return _Network(content, type(content).__name__, notes)
    state = _as_float32(content)
    module, architecture = build_architecture(arch, state, num_classes=num_classes)
    return _Network(module, architecture, notes + load_state(module, state, architecture))


def _is_safetensors(start: bytes, size: int) -> bool:
    header = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and header <= min(size - 8, _LARGEST_HEADER)


def _as_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not state:
        raise ModelFormatError("holds no tensors; accepted: the state_dict of a classifier")
    _refuse_odd_tensors(state)
    try:
        return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    except (RuntimeError, NotImplementedError):
        found = sorted({str(tensor.dtype) for tensor in state.values()})
        raise ModelFormatError(f"tensors of {', '.join(found)}; save the model as float32 or float16") from None


def _refuse_odd_tensors(state: Mapping[str, object]) -> None:
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (what := _oddity(tensor)):
            raise odd_tensor(name, what)


def _oddity(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.is_complex():
        return "complex"
    if tensor.is_meta:
        return "without data (a meta tensor)"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"a {tuple(tensor.shape)} view of less data"
    return ""


def normalization_of(
    mean: Sequence[float], std: Sequence[float], preset: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std from numbers or from the name of a preset; None if neither is given.

    Raises `OptionError` for an unknown name, for one number without the other, and for both kinds at once.
    """
    if bool(mean) != bool(std):
        raise OptionError(f"--{'std' if mean else 'mean'} is missing; give --mean and --std together")
    if mean and preset:
        raise OptionError(f"--normalization={preset} and --mean, --std contradict each other; give one of them")
    if preset and preset not in NORMALIZATIONS:
        raise OptionError(
            f"--normalization={preset} is unknown (known: {', '.join(NORMALIZATIONS)}); or give --mean, --std"
        )
    if preset:
        return NORMALIZATIONS[preset]
    return (tuple(mean), tuple(std)) if mean else None


def _header_shape(header: Mapping[str, str]) -> tuple[int, int, int] | None:
    text = header.get("image_shape")
    if text is None:
        return None
    parts = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})x([0-9]{1,4})", text)
    if parts is not None:
        channels, height, width = (int(part) for part in parts.groups())
        if 1 <= channels <= _MOST_CHANNELS and 1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE:
            return channels, height, width
    raise ModelFormatError(
        f"image_shape {text[:40]!r} in the header; accepted: CHANNELSxHEIGHTxWIDTH such as 3x32x32, with at most "
        f"{_MOST_CHANNELS} channels and {_LARGEST_SIDE} px"
    )


def _header_normalization(header: Mapping[str, str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = _header_numbers(header, "mean"), _header_numbers(header, "std")
    if len(mean) != len(std) or any(value <= 0 for value in std):
        raise ModelFormatError(
            f"mean {mean} and std {std} in the header; accepted: as many of each, std above 0; or give --mean, --std"
        )
    return mean, std


def _header_numbers(header: Mapping[str, str], key: str) -> tuple[float, ...]:
    text = header.get(key, "")
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    if len(numbers) > _MOST_CHANNELS or not all(math.isfinite(number) for number in numbers):
        raise ModelFormatError(
            f"{key} {text[:40]!r} in the header; accepted: finite numbers between commas; or give --mean, --std"
        )
    return numbers


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
