"""What the JSON files of a Hugging Face folder say of images and classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from backdoor_audit.data import names_in
from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.hints import Hints
from backdoor_audit.printable import printable

_LARGEST_SIDE = 4096
_MOST_CHANNELS = 64
_LONGEST = 60
_FLIPS = "MobileViT"
_TWICE = "EfficientNet"
"""How the image processors begin that take blue first and never normalise, and those that divide by the spread twice."""


def hints_of_transformers(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Hints:
    """Mean, std and size from the image processor, names of classes from the configuration.

    Raises `ModelFormatError` for numbers that no image processor has.
    """
    told = _processor(preprocessor)
    mean, std = _normalization(told) if told else ((), ())
    channels = config.get("num_channels", 3)
    scaled = told.get("size") if told.get("do_resize", True) else None  # not scaled: images stay as large as they are
    side = told.get("crop_size") if told.get("do_center_crop") else scaled
    size = _size(side) or _size(config.get("image_size"))
    return Hints(
        mean=mean,
        std=std,
        whose="as preprocessor_config.json says",
        image_shape=_shape(channels, size),
        class_names=_labels(config),
    )


def takes_blue_first(preprocessor: Mapping[str, Any]) -> bool:
    """Whether the image processor turns red, green, blue into blue, green, red."""
    told = _processor(preprocessor)
    return bool(told.get("do_flip_channel_order", _kind(told).startswith(_FLIPS)))


def hints_of_timm(config: Mapping[str, Any]) -> Hints:
    """The same from the configuration that timm writes."""
    told = config.get("pretrained_cfg", config)  # old versions wrote it as the whole
    told = told if isinstance(told, Mapping) else {}
    mean, std = _numbers(told.get("mean")), _numbers(told.get("std"))
    if len(mean) != len(std) or any(value <= 0 for value in std):
        mean, std = (), ()
    names = config.get("label_names") or told.get("label_names") or told.get("labels")
    fixed, size = told.get("fixed_input_size"), told.get("input_size")
    shape = _shape(size[0], (size[1], size[2])) if fixed and isinstance(size, list) and len(size) == 3 else None
    return Hints(
        mean=mean,
        std=std,
        whose="as config.json says",
        image_shape=shape,
        class_names=tuple(printable(name)[:_LONGEST] for name in names_in(names)),
    )


def _processor(preprocessor: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the image processor, which may lie among those of a processor of several kinds of data."""
    inner = preprocessor.get("image_processor", preprocessor)
    return inner if isinstance(inner, Mapping) else {}


def _kind(told: Mapping[str, Any]) -> str:
    return str(told.get("image_processor_type") or told.get("feature_extractor_type") or "")


def _normalization(told: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """For pixels in [0, 1]: the processor multiplies pixels in 0 to 255 by a factor first.

    That of EfficientNet divides by the standard deviation twice where the network has its head; that of MobileViT never
    normalises, whatever mean and std stand in its file.
    """
    (factor,) = _numbers(told.get("rescale_factor", 1 / 255))[:1] or (0.0,)
    factor = 255 * factor if told.get("do_rescale", True) else 255.0
    mean, std = _numbers(told.get("image_mean")), _numbers(told.get("image_std"))
    spread = std if told.get("include_top", _kind(told).startswith(_TWICE)) else ()
    if _kind(told).startswith(_FLIPS) or not told.get("do_normalize", bool(mean)):
        mean, std = (0.0,), (1.0,)
    offset = 1.0 if told.get("rescale_offset") else 0.0
    if not mean or len(mean) != len(std) or min(*std, *spread, 1.0) <= 0 or not 0 < factor < 1e6:
        raise ModelFormatError(
            "preprocessor_config.json: no usable image_mean, image_std and rescale_factor; give --mean, --std"
        )
    mean = tuple((value + offset) / factor for value in mean)
    twice = spread or (1.0,)
    if len(twice) != len(std):
        mean, std, twice = (_widened(numbers, max(len(std), len(twice))) for numbers in (mean, std, twice))
    return mean, tuple(value * again / factor for value, again in zip(std, twice, strict=True))


def _widened(numbers: tuple[float, ...], count: int) -> tuple[float, ...]:
    """As many numbers as there are channels."""
    return numbers * count if len(numbers) == 1 else numbers


def _numbers(value: object) -> tuple[float, ...]:
    parts: list[Any] = value if isinstance(value, list) else [value]
    if len(parts) > _MOST_CHANNELS or not all(type(part) in {int, float} and math.isfinite(part) for part in parts):
        return ()
    return tuple(map(float, parts))


def _size(value: object) -> tuple[Any, Any] | None:
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        return (edge, edge) if edge else (value.get("height"), value.get("width"))
    if isinstance(value, list):
        return (value[-2], value[-1]) if len(value) >= 2 else None
    return (value, value) if value else None


def _shape(channels: object, size: tuple[object, object] | None) -> tuple[int, int, int] | None:
    if size is None:
        return None
    numbers = (channels, *size)
    if not all(type(number) is int and 0 < number <= _LARGEST_SIDE for number in numbers):
        return None
    return numbers  # type: ignore[return-value]  # three whole numbers


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or labels.keys() != {str(at) for at in range(len(labels))}:
        return ()
    names = [labels[str(at)] for at in range(len(labels))]
    made_up = all(name == f"LABEL_{at}" for at, name in enumerate(names))
    return () if made_up else _texts(names)


def _texts(names: list[Any]) -> tuple[str, ...]:
    return tuple(printable(name)[:_LONGEST] for name in names) if all(isinstance(name, str) for name in names) else ()
