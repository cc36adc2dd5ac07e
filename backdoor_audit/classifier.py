"""The one wrapper around an audited model: pixels in [0, 1] in, logits out, frozen."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError, OptionError

_BATCH = 256


@dataclass(frozen=True, slots=True)
class LayerMap:
    """Where a network keeps what the checks look at; found by running one image through it, not by reading names.

    ``feature_layer`` is the last module whose output is a feature map (n, c, h, w) with nothing but linear layers after
    it: on residual networks that is the block after its addition, on plain ones the last activation or pooling. Modules
    that run more than once per image are passed over.
    ``head`` is the last linear layer; its input is the penultimate vector. None: this network has no such layer.
    """

    feature_layer: str | None
    channels: int
    head: str | None
    neurons: int


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
        images of that shape, does not give one row of scores per image, or holds weights that are not finite.
        """
        channels = image_shape[0]
        mean, std = tuple(mean) or (0.0,) * channels, tuple(std) or (1.0,) * channels
        if len(mean) == len(std) == 1:
            mean, std = mean * channels, std * channels
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ModelFormatError(
                f"normalisation: mean {mean} and std {std} for images with {channels} channels; give one number or one "
                "per channel, std above 0 (--mean, --std)"
            )
        refuse_bad_weights(module)
        frozen = copy.deepcopy(module).to(device=device).eval().requires_grad_(False)
        frozen = frozen.float().to(memory_format=torch.channels_last)
        view = (1, channels, 1, 1)
        classifier = cls(
            module=frozen,
            image_shape=image_shape,
            num_classes=0,
            architecture=architecture or type(module).__name__,
            mean=mean,
            std=std,
            device=torch.device(device),
            _mean=torch.tensor(mean, device=device).view(view),
            _std=torch.tensor(std, device=device).view(view),
        )
        object.__setattr__(classifier, "num_classes", classifier._probe())
        return classifier

    def _probe(self) -> int:
        image = torch.full((2, *self.image_shape), 0.5, device=self.device)
        shape = "x".join(map(str, self.image_shape))
        try:
            with torch.no_grad():
                logits = self(image)
        except ModelFormatError:
            raise
        except Exception as error:  # a stranger's forward may raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelFormatError(
                f"{self.architecture} does not accept {shape} images: {reason}; resize or convert the clean images "
                "(--resize, --channels) or correct --arch"
            ) from None
        if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
            raise ModelFormatError(
                f"{self.architecture} gives scores of shape {tuple(logits.shape)} for 2 images; an image classifier "
                "gives (2, classes) with at least 2 classes"
            )
        return int(logits.shape[1])

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, c, h, w) in [0, 1]; gradients reach the images."""
        images = images.contiguous(memory_format=torch.channels_last)
        return _scores(self.module((images - self._mean) / self._std), self.architecture).float()

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes) without gradients, in batches.

        Raises `ValueError` for pixels outside [0, 1]: integers or 0-255 floats are a mistake of the caller.
        """
        if not len(images):
            return torch.empty(0, self.num_classes, device=self.device)
        least, most = images.amin(), images.amax()
        if not (images.is_floating_point() and least >= -1e-4 and most <= 1 + 1e-4):
            raise ValueError(f"images must be floats in [0, 1], got {images.dtype} in [{least}, {most}]; divide by 255")
        with torch.no_grad():
            return torch.cat([self(batch.to(self.device)) for batch in images.split(_BATCH)])

    def predict(self, images: Tensor) -> Tensor:
        """Predicted class of each image, (n,)."""
        return self.logits(images).argmax(dim=1)

    def copy(self) -> Classifier:
        """An independent copy, frozen as well; what is done to it does not reach this one."""
        return Classifier(
            copy.deepcopy(self.module),
            self.image_shape,
            self.num_classes,
            self.architecture,
            self.mean,
            self.std,
            self.device,
            self._mean,
            self._std,
        )

    def layers(self) -> LayerMap:
        """The layers that pruning and activation checks work on, found by running one grey image."""
        return _trace(self)


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


def refuse_bad_weights(module: nn.Module) -> None:
    """Raise `ModelFormatError` if a parameter or buffer is NaN or infinite."""
    bad = [
        name
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise ModelFormatError(
            f"{len(bad)} tensors hold NaN or infinite values ({', '.join(bad[:3])}); such a model cannot be judged"
        )


def _scores(output: object, architecture: str) -> Tensor:
    """The score matrix of whatever a network returns: a tensor, an object with ``logits``, or one 2-D tensor in a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits  # type: ignore[attr-defined, no-any-return]
    if isinstance(output, (tuple, list)):
        matrices = [part for part in output if isinstance(part, Tensor) and part.ndim == 2]
        if len(matrices) == 1:
            return matrices[0]
    raise ModelFormatError(
        f"{architecture} returns {type(output).__name__}; accepted: a tensor (n, classes), an object with .logits, or a "
        "tuple with exactly one 2-D tensor; wrap the model in the factory given to --arch"
    )


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., object], *, pre: bool = False) -> Iterator[None]:
    """A forward hook (or pre-hook) that lives as long as the ``with`` block."""
    handle = module.register_forward_pre_hook(hook) if pre else module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _trace(classifier: Classifier) -> LayerMap:
    events: list[tuple[str, nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda module, _inputs, output, name=name: (
                events.append((name, module, output)) if isinstance(output, Tensor) else None
            )
        )
        for name, module in classifier.module.named_modules()
        if name
    ]
    try:
        classifier.logits(torch.full((1, *classifier.image_shape), 0.5))
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(name for name, _, _ in events)
    feature_layer, channels, head, neurons = None, 0, None, 0
    for name, module, output in events:
        own_weights = any(True for _ in module.parameters(recurse=False))
        if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            if calls[name] == 1:  # a hook cannot tell the calls of a shared ReLU or pooling apart
                feature_layer, channels = name, output.shape[1]
            elif own_weights:
                feature_layer, channels = None, 0
        elif isinstance(module, nn.Linear):
            head, neurons = name, module.in_features
        elif own_weights and not isinstance(module, nn.BatchNorm1d):
            feature_layer, channels = None, 0  # more than a linear head follows: those maps are not the last features
    if head is not None:
        linear = classifier.module.get_submodule(head)
        if not isinstance(linear, nn.Linear) or linear.out_features != classifier.num_classes:
            head, neurons = None, 0
    return LayerMap(feature_layer, channels, head, neurons)
