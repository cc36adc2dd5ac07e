"""Image classifiers of transformers, built from a configuration that was read here; no code in a folder is imported."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.loading.foreign import contained
from backdoor_audit.loading.refusals import odd_tensor, refuse_above

_LARGEST = 1_000_000  # a whole number in a configuration
_REPEATED = ("layers", "depth", "depths", "blocks", "stages")  # of which each has tensors of its own
_CODE = ("auto_map", "custom_pipelines")


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

    Nothing is downloaded. Raises `ModelFormatError` if transformers is missing or does not know the network, or if the tensors
    do not fit it.
    """
    if "quantization_config" in config:
        raise odd_tensor("the network of config.json", "quantised")
    _refuse_huge(config, len(state))
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        raise ModelFormatError(
            "a Hugging Face folder; pip install 'backdoor-audit[transformers]', or pass --arch if it is a network known here"
        ) from None
    plain = {key: value for key, value in config.items() if key not in _CODE}
    name = str(config["model_type"])[:60]
    with contained(f"transformers does not load this {name}"), _quiet(transformers):
        kind, settings = _class(transformers, name, plain, bool(config.get("auto_map")))
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
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
    _refuse_misfit(told, name)
    notes: tuple[str, ...] = ()
    notes += ("config.json names code in the folder, which was not run",) if config.get("auto_map") else ()
    notes += ("the network takes blue, green, red, as preprocessor_config.json says",) if flipped else ()
    return Logits(network, flipped=flipped), notes


def _class(transformers: Any, name: str, plain: dict[str, Any], own_code: bool) -> tuple[Any, Any]:
    """The class of the network, and its settings."""
    try:
        settings = transformers.CONFIG_MAPPING[name].from_dict(plain)
        found = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(settings)]
    except KeyError:
        why = ", its code is in the folder and is not run" if own_code else ""
        raise ModelFormatError(
            f"{name} is no image classifier that transformers {transformers.__version__} knows{why}; pass "
            "--arch=package.module:factory"
        ) from None
    kinds = found if isinstance(found, (list, tuple)) else (found,)
    said = plain.get("architectures")
    wanted = said[0] if isinstance(said, list) and said else ""
    return next((kind for kind in kinds if kind.__name__ == wanted), kinds[0]), settings


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
        if key == "use_pretrained_backbone" and value:
            raise ModelFormatError("config.json asks for a backbone from elsewhere; nothing is downloaded")


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
        raise ModelFormatError(f"the weights do not fit the {name} of config.json: {', '.join(parts)[:300]}")


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
