"""The one wrapper around an audited model: pixels in [0, 1] in, logits out, frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from backdoor_audit import budget, progress
from backdoor_audit.errors import AuditError, ModelError, ModelFormatError, OptionError
from backdoor_audit.model import surroundings
from backdoor_audit.model.chunks import TooManyAtOnceError, in_chunks, is_out_of_memory
from backdoor_audit.model.layers import LayerMap, layers_of
from backdoor_audit.model.layout import fitting_layout
from backdoor_audit.model.own_code import as_model_error, from_outside, own_code, told_line

_BATCH = 256
_CHANNELS = frozenset({1, 3})  # that clean images can be converted to
_MOST_CHANNELS = 16  # that a network is asked about; satellites have 13


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A frozen network in evaluation mode that takes pixels in [0, 1], (n, c, h, w), and gives logits (n, classes).

    Normalisation lives in here and nowhere else. Build one with `Classifier.wrap`.
    """

    module: nn.Module
    image_shape: tuple[int, int, int]
    num_classes: int
    architecture: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    _mean: Tensor
    _std: Tensor
    _layout: torch.memory_format = torch.channels_last

    @classmethod
    def wrap(
        cls,
        module: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        architecture: str = "",
        device: torch.device | str = "cpu",
    ) -> Classifier:
        """A classifier over a copy of the module; the module itself is not touched.

        Empty mean and std: the network takes pixels as they are. Raises `ModelFormatError` if the network cannot take
        images of that shape, does not give one row of scores per image, cannot be copied, or holds weights that are not
        finite; `ModelError` if its code tries to end more than the call. What it does meanwhile to torch's settings and to
        random states is undone.
        """
        channels = image_shape[0]
        mean, std = tuple(mean) or (0.0,) * channels, tuple(std) or (1.0,) * channels
        mean, std = (numbers * channels if len(numbers) == 1 else numbers for numbers in (mean, std))
        fits = len(mean) == len(std) == channels and min(std) > 0
        used_mean, used_std = (mean, std) if fits else ((0.0,) * channels, (1.0,) * channels)
        device, view = torch.device(device), (1, channels, 1, 1)
        with surroundings.kept(device):
            frozen = _frozen(module, device)
            classifier = cls(
                module=frozen,
                image_shape=image_shape,
                num_classes=0,
                architecture=architecture or type(module).__name__,
                mean=used_mean,
                std=used_std,
                device=device,
                _mean=torch.tensor(used_mean, device=device).view(view),
                _std=torch.tensor(used_std, device=device).view(view),
                _layout=fitting_layout(frozen, device),
            )
            object.__setattr__(classifier, "num_classes", classifier._probe())
        if not fits:  # said after the network has taken such images: it may be those that have to change
            raise ModelFormatError(
                f"normalisation: mean {mean} and std {std} for images with {channels} channels; give one number or one "
                "per channel, std above 0 (--mean, --std)"
            )
        return classifier

    def _probe(self) -> int:
        image = torch.full((2, *self.image_shape), 0.5, device=self.device)
        shape = "x".join(map(str, self.image_shape))
        with torch.no_grad(), own_code("in its forward pass"):
            try:
                logits = self._scored(self._normalised(image))
            except AuditError:
                raise
            except Exception as error:  # a stranger's forward may raise anything
                if type(error).__module__.startswith("_pytest."):  # pytest.exit: no matter of shapes
                    raise
                channels = self._other_channels()
                if channels and channels not in _CHANNELS:
                    raise ModelFormatError(
                        f"{self.architecture} takes images with {channels} channels; audited are networks of 1 or 3: give the "
                        "network of those, or a factory for --arch that makes the rest of them"
                    ) from None
                if channels:
                    raise ModelFormatError(
                        f"{self.architecture} takes images with {channels} channels, the clean images have "
                        f"{self.image_shape[0]} ({shape}): pass --channels={channels}, or correct --arch"
                    ) from None
                reason = told_line(error) or type(error).__name__
                raise ModelFormatError(
                    f"{self.architecture} does not accept {shape} images: {reason}; resize or convert the clean images "
                    "(--resize, --channels) or correct --arch"
                ) from None
        if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
            sizes, cure = tuple(logits.shape), ""
            if sizes in {(2,), (2, 1)}:
                pair = "cat" if logits.ndim == 2 else "stack"
                cure = f"; give one score for two classes as two: torch.{pair}([-score, score], dim=1) in a factory for --arch"
            elif logits.ndim > 2 and logits[0].numel() == max(sizes[1:]):
                cure = "; take the sides of length 1 away, scores.flatten(1), in a factory for --arch"
            raise ModelFormatError(
                f"{self.architecture} gives scores of shape {sizes} for 2 images; an image classifier "
                f"gives (2, classes) with at least 2 classes{cure}"
            )
        return int(logits.shape[1])

    def _other_channels(self) -> int:
        """With how many channels the network takes images of this size that it does not take with their own; 0 if with none."""
        others = (*sorted(_CHANNELS), *sorted(set(range(1, _MOST_CHANNELS + 1)) - _CHANNELS))
        for channels in (count for count in others if count != self.image_shape[0]):
            try:
                scores = self._scored(torch.full((2, channels, *self.image_shape[1:]), 0.5, device=self.device))
            except AuditError:
                continue
            except Exception as error:
                if type(error).__module__.startswith("_pytest."):
                    raise
                continue
            if scores.ndim == 2 and len(scores) == 2:
                return channels
        return 0

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, c, h, w) in [0, 1], new tensors; gradients reach the images.

        Raises `ModelError` for whatever the network raises, but for Ctrl-C, and for what are no scores of these classes.
        """
        inputs = self._normalised(images)
        progress.count(len(inputs), backward=torch.is_grad_enabled())
        try:
            return self._scored(inputs)
        except (KeyboardInterrupt, ModelError):
            raise
        except ModelFormatError as error:
            raise ModelError(str(error)) from None
        except BaseException as error:
            if from_outside(error):
                raise
            if is_out_of_memory(error):
                raise self._too_many(len(inputs)) from None
            raise as_model_error(error, "in its forward pass") from None

    def _too_many(self, count: int) -> TooManyAtOnceError:
        pixels = " x ".join(map(str, self.image_shape))
        return TooManyAtOnceError(
            f"{self.architecture} takes more memory than there is on {self.device} for {count} images of {pixels} at once; "
            "give it more memory, or run it on another device (--device)"
        )

    def _normalised(self, images: Tensor) -> Tensor:
        """What the network sees, a new tensor even at mean 0 and std 1: networks may work in place."""
        return (images.contiguous(memory_format=self._layout) - self._mean) / self._std

    def _scored(self, inputs: Tensor) -> Tensor:
        count = len(inputs)
        scores = _scores(self.module(inputs), self.architecture, self.device)
        if scores.ndim == 1 and count == 1:  # of a network that squeezes
            scores = scores.unsqueeze(0)
        if self.num_classes and (scores.ndim != 2 or scores.shape[1] != self.num_classes):
            raise ModelFormatError(
                f"{self.architecture} gives scores of shape {tuple(scores.shape)} for {count} images, and gave "
                f"{self.num_classes} classes before; an image classifier gives (n, classes), the same ones for all images"
            )
        return scores

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) without gradients, in batches.

        Raises `ValueError` for pixels outside [0, 1] (integers or 0-255 floats are a mistake of the caller), `ModelError` for
        what the network does wrong, and `BudgetSpentError` if memory runs out. The time budget is not asked here: what a search
        has found must still be measured when its time is over.
        """
        return self._in_batches(images, torch.empty(0, self.num_classes, device=self.device), lambda scores: scores)

    def predict(self, images: Tensor) -> Tensor:
        """Predicted class of each image, (n,)."""
        none = torch.empty(0, dtype=torch.long, device=self.device)
        return self._in_batches(images, none, lambda scores: scores.argmax(dim=1))

    def _in_batches(self, images: Tensor, none: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """``of`` the scores of every batch, in one tensor; only that is kept, as rows of very many classes are large."""
        if not len(images):
            return none
        least, most = images.amin(), images.amax()
        if not (images.is_floating_point() and least >= -1e-4 and most <= 1 + 1e-4):
            raise ValueError(f"images must be floats in [0, 1], got {images.dtype} in [{least}, {most}]; divide by 255")

        def part(rows: Tensor) -> Tensor:
            budget.check_memory()
            scores = self(images[int(rows[0]) : int(rows[-1]) + 1].to(self.device))
            if len(scores) != len(rows):
                raise ModelError(
                    f"{self.architecture} gives {len(scores)} rows of scores for {len(rows)} images; an image "
                    "classifier gives one per image"
                )
            return of(scores)

        with torch.no_grad():
            return torch.cat(in_chunks(torch.arange(len(images), device="cpu"), _BATCH, self.device, part))

    def copy(self) -> Classifier:
        """An independent copy, frozen as well; what is done to it does not reach this one."""
        with own_code("when it was copied"):
            return replace(self, module=copy.deepcopy(self.module))

    def layers(self) -> LayerMap:
        """The layers that pruning and activation checks work on, found by running one grey image."""
        with own_code("when its layers were looked for"):
            return layers_of(
                self.module, self.num_classes, lambda: self.logits(torch.full((1, *self.image_shape), 0.5))
            )


def choose_device(wanted: str, worker: int = 0) -> torch.device:
    """The device of ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; workers share the GPUs in turn.

    Raises `OptionError` if a GPU is asked for that is not there.
    """
    count = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    if not count or (":" in wanted and int(wanted.partition(":")[2]) >= count):
        raise OptionError(f"--device: {wanted} asked for, {count} CUDA devices are visible; pass --device=cpu")
    return torch.device(wanted if ":" in wanted else f"cuda:{worker % count}")


def autocast(device: torch.device, module: nn.Module) -> torch.autocast:
    """The context in which a search may run ``module`` forward on ``device``: bfloat16 where that is faster.

    That is on CUDA, and for convolutional networks on x86 CPUs that compute bfloat16 themselves and a torch that can tell
    (`torch.cpu.get_capabilities`): half to two thirds of the time. Not for a network with a `torch.nn.LayerNorm` on a CPU:
    attention in bfloat16 takes 4 to 8 times as long there. Elsewhere, even inside another autocast, full precision.
    bfloat16 has 8 significant bits: measure a rate that is reported, or compared, outside.
    """
    faster = device.type == "cuda" or (device.type == "cpu" and _cpu_has_bfloat16() and _is_convolutional(module))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=faster)


def _cpu_has_bfloat16() -> bool:
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def _is_convolutional(module: nn.Module) -> bool:
    parts = list(module.modules())
    return any(isinstance(part, nn.Conv2d) for part in parts) and not any(
        isinstance(part, nn.LayerNorm) for part in parts
    )


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy on the device in evaluation mode, in single precision, without gradients of its own."""
    with own_code("when it was copied"):
        try:
            refuse_bad_weights(module)
            frozen = copy.deepcopy(module).to(device=device).eval().requires_grad_(False)
            return frozen.float().to(memory_format=fitting_layout(frozen, device))
        except ModelFormatError:
            raise
        except Exception as error:  # a stranger's module may copy itself in its own way
            raise ModelFormatError(
                f"{type(module).__name__} cannot be copied to {device}, frozen and in single precision: "
                f"{type(error).__name__}: {told_line(error)}"
            ) from None


def refuse_bad_weights(module: nn.Module) -> None:
    """Raise `ModelFormatError` if a parameter or buffer is NaN or infinite, or no dense tensor of plain numbers."""
    tensors = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    odd = [name for name, tensor in tensors.items() if not _is_plain(tensor)]
    if odd:
        raise ModelFormatError(
            f"{len(odd)} tensors are sparse, quantised or without values ({', '.join(odd[:3])}); accepted: dense tensors of "
            "numbers"
        )
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if bad:
        raise ModelFormatError(
            f"{len(bad)} tensors hold NaN or infinite values ({', '.join(bad[:3])}); such a model cannot be judged"
        )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def _is_finite(tensor: Tensor) -> bool:
    asked = tensor.float() if tensor.element_size() == 1 else tensor  # float8 cannot be asked itself
    return bool(torch.isfinite(asked).all())


def _scores(output: object, architecture: str, device: torch.device) -> Tensor:
    """A new float32 tensor on the device with the scores in whatever a network returns."""
    found = _found(output)
    if found is None:
        raise ModelFormatError(
            f"{architecture} returns {type(output).__name__}; accepted: a tensor (n, classes), an object or dict with "
            "logits, or a tuple, list or dict with exactly one 2-D tensor; wrap the model in the factory given to --arch"
        )
    if type(found) is not Tensor:
        with torch._C.DisableTorchFunctionSubclass():  # a subclass may answer for itself what others ask of the scores
            found = found.as_subclass(Tensor)
    if not found.is_floating_point() or found.layout is not torch.strided:
        raise ModelFormatError(
            f"{architecture} gives scores of {found.dtype} ({found.layout}); accepted: dense floating-point scores, which "
            "have a gradient"
        )
    return found.to(device=device, dtype=torch.float32, copy=True)  # a network may give the same tensor every time


def _found(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        logits, parts = output.get("logits"), list(output.values())
    else:
        logits, parts = getattr(output, "logits", None), list(output) if isinstance(output, (tuple, list)) else []
    if isinstance(logits, Tensor):
        return logits
    matrices = [part for part in parts if isinstance(part, Tensor) and part.ndim == 2]
    return matrices[0] if len(matrices) == 1 else None


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., object], *, pre: bool = False) -> Iterator[None]:
    """A forward hook (or pre-hook) that lives as long as the ``with`` block."""
    handle = module.register_forward_pre_hook(hook) if pre else module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
