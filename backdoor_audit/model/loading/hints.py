"""What a checkpoint says of itself beside its weights: which network it is, images, classes. Words, never code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backdoor_audit.model.loading.building import Built
from backdoor_audit.model.loading.class_names import dicts_within, names_within, unread_names
from backdoor_audit.model.loading.normalising import Read, in_settings, plain_numbers
from backdoor_audit.model.loading.pickle_values import Instance
from backdoor_audit.model.networks import NETWORKS
from backdoor_audit.printable import printable

_ARCHITECTURES = {"preactresnet18": "preact_resnet18"}  # of BackdoorBench, in our words; others are torchvision's
_BENCH_DATA = {"cifar10": "cifar10", "cifar100": "cifar100", "gtsrb": "gtsrb", "mnist": "half", "tiny": "tiny_imagenet"}
_MOST_NAMES = 100_000
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Hints:
    """``arch`` is a key into our tables; ``said`` is what the file says in its own words. Empty: the file says nothing.

    ``unread`` names an entry with names of classes that are not read, ``normalised`` says that there is such a mean and std.
    ``settings`` are the options of the training script.
    ``of_timm`` is a checkpoint of timm's training script as the config.json of its network would be.
    """

    arch: str = ""
    said: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    preset: str = ""
    whose: str = ""
    image_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] = ()
    unread: str = ""
    normalised: bool = False
    settings: Mapping[object, object] = field(default_factory=dict)
    of_timm: Mapping[str, Any] = field(default_factory=dict)

    def or_else(self, built: Built) -> Hints:
        """These, with what the kind of network says where the file says nothing, or with what stands in front of the network."""
        if not built.mean or ((self.mean or self.preset) and not built.whose):
            return self
        whose = built.whose or "that of the network's data configuration"
        return replace(self, mean=built.mean, std=built.std, preset="", whose=whose)

    @property
    def notes(self) -> tuple[str, ...]:
        """The file's own words, and names of classes that were not read."""
        said: tuple[str, ...] = (f"the file says: {self.said}",) if self.said else ()
        if self.normalised:
            said += ("mean and std in the file are not read (arrays or numbers of numpy): give them by --mean, --std",)
        if not self.unread or self.class_names:
            return said
        return (
            *said,
            f"{self.unread} in the file is not read (an array, or tensors for numbers): where images lie in folders of classes, "
            "give the order of its scores by --audit-class-names",
        )


def hints_of(content: object, read: Read | None = None) -> Hints:
    """What is known of the usual entries: those of BackdoorBench, timm, the examples of PyTorch, Lightning and mmengine.

    ``read`` gives the numbers of tensors in the file.
    """
    places = list(_places(content))
    model = _text(places, "model_name", "arch", "model_type") or _text(places[1:], "model")
    sizes = _numbers(places, "img_size", "image_size", "input_size")
    said = {
        "model": model,
        "num_classes": "x".join(f"{value:g}" for value in _numbers(places, "num_classes")),
        "image size": "x".join(f"{value:g}" for value in sizes),
        "data": _text(places, "clean_data", "dataset", "data_name"),
    }
    (mean, std, remark), unread = in_settings(places, dicts_within(content), read)
    whose = f"the one in the checkpoint's own settings{remark}"
    bench = bool(places) and {"model_name", "clean_data", "img_size"} <= places[0].keys()
    return Hints(
        arch=_architecture(model),
        said=", ".join(f"{key} {printable(value)}" for key, value in said.items() if value),
        mean=mean,
        std=std,
        preset=_BENCH_DATA.get(said["data"], "") if bench and not mean else "",
        whose=f"BackdoorBench's for {said['data']}" if bench and not mean else whose,
        class_names=shown_short(names_within(content)),
        unread=unread_names(content),
        normalised=unread,
        settings={key: value for place in reversed(places[1:]) for key, value in place.items()},
        of_timm=_of_timm(places, model),
    )


def _of_timm(places: list[Mapping[object, object]], model: str) -> Mapping[str, Any]:
    """What timm's training script was told of the network, beside its sizes."""
    for place in places:
        if "gp" in place and "model_kwargs" in place:
            more = place["model_kwargs"]
            told = {"global_pool": place["gp"], "bn_eps": place.get("bn_eps"), "bn_tf": place.get("bn_tf") or None}
            told |= more if isinstance(more, Mapping) else {}
            classes = place.get("num_classes")
            arguments = {str(key): value for key, value in told.items() if value is not None}
            return {"architecture": model, "num_classes": classes, "model_args": arguments}
    return {}


def _places(content: object) -> Iterator[Mapping[object, object]]:
    """The outermost dict, and the options of the training script in it."""
    if not isinstance(content, Mapping):
        return
    yield content
    for key in ("args", "hyper_parameters", "hparams", "opt", "config", "cfg", "meta"):
        inner = content.get(key)
        inner = inner.attributes if isinstance(inner, Instance) else inner
        inner = vars(inner) if isinstance(inner, Namespace) else inner
        if isinstance(inner, Mapping):
            yield inner
            data = inner.get("dataset_meta")
            if isinstance(data, Mapping):
                yield data


def _architecture(name: str) -> str:
    if not name or name in _ARCHITECTURES:
        return _ARCHITECTURES.get(name, "")
    from torchvision import models  # noqa: PLC0415 - a second of imports that most runs do not need

    if name in models.list_models(module=models):
        return f"torchvision:{name}"
    return name if name in NETWORKS else ""


def _text(places: list[Mapping[object, object]], *keys: str) -> str:
    found = (place.get(key) for place in places for key in keys)
    return next((value[:_LONGEST] for value in found if isinstance(value, str) and value), "")


def _numbers(places: list[Mapping[object, object]], *keys: str) -> tuple[float, ...]:
    found = (plain_numbers(place.get(key)) for place in places for key in keys)
    return next(filter(None, found), ())


def shown_short(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes from a stranger's file as they are kept."""
    return tuple(printable(name)[:_LONGEST] for name in names[:_MOST_NAMES])
