"""Image classifiers of transformers, built from a configuration that was read here; no code in a folder is imported."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.foreign import contained
from backdoor_audit.model.loading.refusals import odd_tensor, refuse_above

_LARGEST = 1_000_000  # a whole number in a configuration
_REPEATED = ("layers", "depth", "depths", "blocks", "stages")  # of which each has tensors of its own
_PLAIN = frozenset(
    (
        *("beit", "bit", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers"),
        *("efficientnet", "focalnet", "hiera", "ijepa", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit"),
        *("mobilevitv2", "poolformer", "pvt", "pvt_v2", "regnet", "resnet", "segformer", "swiftformer", "swin"),
        *("swinv2", "vit", "vit_msn"),
    )
)
"""Kinds whose code is all in transformers: they take no network, kernel or file from elsewhere."""

_ELSEWHERE = re.compile(
    r"model_args|checkpoint_path|_?(?:attn|experts)_implementation.*|use_pretrained_backbone|backbone|use_timm_backbone|"
    r"use_kernels|kernel_config|auto_map|custom_pipelines|trust_remote_code"
)
"""Keys by which a configuration asks for code, kernels or files from elsewhere."""

_LAST = re.compile(r"(?:\w+_)?classifier\.(?:[0-9]+\.)?bias")
"""What the biases of the last layer are called."""

_AUTOSET = "_attn_implementation_autoset"  # a mere flag, which some versions of transformers save as true


class Logits(nn.Module):
    """A network of transformers that takes images and gives logits; ``flipped`` ones take blue first."""

    def __init__(self, network: nn.Module, *, flipped: bool) -> None:
        super().__init__()
        self.network, self.flipped = network, flipped

    def forward(self, images: Tensor) -> Tensor:
        """Scores (n, classes)."""
        logits: Tensor = self.network(pixel_values=images.flip(1) if self.flipped else images).logits
        return logits


def transformers_network(
    config: Mapping[str, Any], state: Mapping[str, Tensor], *, flipped: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    """The classifier that a config.json describes, with these tensors, and notes.

    Nothing is downloaded. Raises `ModelFormatError` for a network that is none of `_PLAIN`, for a configuration that asks for
    anything from elsewhere, if transformers is missing or does not know the network, or if the tensors do not fit it.
    """
    name = str(config["model_type"])[:60]
    _refuse_elsewhere(config)
    wrapped = str(config.get("architecture"))
    if name == "timm_wrapper" and re.fullmatch(r"[A-Za-z0-9_.]{1,100}", wrapped):
        raise ModelFormatError(
            f"the folder wraps a network of timm; pass --arch=timm:{wrapped}, which reads it as that network"
        )
    if name not in _PLAIN:
        raise ModelFormatError(
            f"{name} is none of the image classifiers of transformers that are built here ({', '.join(sorted(_PLAIN))}); pass "
            "--arch=package.module:factory with this folder, whose mean, std and names of classes are read"
        )
    if "quantization_config" in config:
        raise odd_tensor("the network of config.json", "quantised")
    _refuse_huge(config, len(state))
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        raise ModelFormatError(
            "a Hugging Face folder; pip install 'backdoor-audit[transformers]', or pass --arch if it is a network known here"
        ) from None
    classes = _classes(config, state)
    plain = {key: value for key, value in config.items() if not _ELSEWHERE.fullmatch(key)}
    plain |= {"num_labels": classes} if classes else {}
    with contained(f"transformers does not load this {name}"), _quiet(transformers):
        kind, settings = _class(transformers, name, plain)
        settings._attn_implementation = "eager"
        with torch.device("meta"):
            wanted = kind(settings)
        refuse_above(
            2 * 4 * sum(tensor.numel() for tensor in wanted.state_dict().values()), "the network of config.json"
        )
        network, told = kind.from_pretrained(
            None,
            config=settings,
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
    _refuse_misfit(told, name)
    notes: tuple[str, ...] = ("the network takes blue, green, red, as preprocessor_config.json says",) * flipped
    notes += (f"{classes} classes, as its tensors say, since config.json does not",) if classes else ()
    return Logits(network, flipped=flipped), notes


def _classes(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> int:
    """How many classes the last layer has, where the configuration does not say; 0 where it does, or this cannot be told."""
    if config.get("id2label") or config.get("num_labels"):
        return 0
    ends = {len(tensor) for name, tensor in state.items() if _LAST.fullmatch(name) and tensor.ndim == 1}
    return ends.pop() if len(ends) == 1 else 0


def _class(transformers: Any, name: str, plain: dict[str, Any]) -> tuple[Any, Any]:
    """The class of the network, and its settings."""
    try:
        settings = transformers.CONFIG_MAPPING[name].from_dict(plain)
        found = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(settings)]
    except KeyError:
        raise ModelFormatError(
            f"{name} is no image classifier that transformers {transformers.__version__} knows; pass "
            "--arch=package.module:factory"
        ) from None
    kinds = found if isinstance(found, (list, tuple)) else (found,)
    said = plain.get("architectures")
    wanted = said[0] if isinstance(said, list) and said else ""
    return next((kind for kind in kinds if kind.__name__ == wanted), kinds[0]), settings


def _refuse_elsewhere(config: Mapping[str, Any]) -> None:
    """Raise `ModelFormatError` for a key of `_ELSEWHERE` at any depth, whatever its value is, unless that is empty."""
    stack: list[Any] = [config]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack.extend(part)
        elif isinstance(part, Mapping):
            for key, value in part.items():
                if value and _ELSEWHERE.fullmatch(key) and not (key == _AUTOSET and value is True):
                    raise ModelFormatError(
                        f"config.json: {key[:60]} asks for code or files from elsewhere, which are not loaded; pass "
                        "--arch=package.module:factory with this folder, whose mean, std and names of classes are read"
                    )
                stack.append(value)


def _refuse_huge(config: Mapping[str, Any], tensors: int) -> None:
    """Sizes in a stranger's file: layers are built one by one, and labels are counted out."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _refuse_huge(value, tensors)
            continue
        numbers = [number for number in (value if isinstance(value, list) else [value]) if type(number) is int]
        most = tensors if key.rpartition("_")[2] in _REPEATED else _LARGEST
        if any(abs(number) > most for number in numbers):
            raise ModelFormatError(f"config.json: {key[:60]} of {str(max(numbers, key=abs))[:20]}; at most {most} here")


def _refuse_misfit(told: Mapping[str, Any], name: str) -> None:
    parts = [
        f"{len(told[key])} {what} ({', '.join(sorted(map(str, told[key]))[:3])})"
        for key, what in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "extra"),
            ("mismatched_keys", "of another shape"),
        )
        if told.get(key)
    ]
    if parts or told.get("error_msgs"):
        raise ModelFormatError(
            f"the weights do not fit the {name} of config.json: {', '.join(parts)[:300]}; copy both from one source, or give the "
            "folder with --arch=NAME"
        )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without bars and remarks; torch's random state is left as found."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.FATAL)
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
