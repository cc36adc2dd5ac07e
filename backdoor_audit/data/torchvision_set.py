"""Clean images from a class of ``torchvision.datasets``."""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backdoor_audit.data.clean_set import CleanSet, checked_labels, shown_names
from backdoor_audit.data.conversion import ACCEPTED, Wish, brief, chosen
from backdoor_audit.data.folder import files_within, is_image
from backdoor_audit.data.naming import relabelled
from backdoor_audit.data.opening import opening_within
from backdoor_audit.data.pictures import file_size, pillow_within
from backdoor_audit.data.reading import Reading
from backdoor_audit.errors import DataFormatError
from backdoor_audit.files import UnreadableError


def from_torchvision(source: str, wish: Wish, reading: Reading) -> CleanSet:
    """Images of ``torchvision:NAME?root=DIR&...``. Raises `DataFormatError`."""
    with pillow_within(reading), opening_within(reading), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of data sets and of what they read by
        dataset = _torchvision_dataset(source, reading)
        try:
            count = len(dataset)
            if not count:
                raise ValueError("no images")
            labels = _labels(dataset, reading)
            labels, names = relabelled(labels, _plain_names(getattr(dataset, "classes", ())), wish, reading)
        except DataFormatError:
            raise
        except Exception as error:  # a data set of whatever kind
            raise DataFormatError(f"{source}: cannot be read ({_said(error)}); {ACCEPTED}") from None
        classes = checked_labels(labels, source)
        if len(classes) != count:
            raise DataFormatError(f"{source}: {count} images and {len(classes)} labels; give a set of labelled images")
        pictures = chosen(classes, lambda index: (f"image {index}", _item_opener(dataset, index)), wish, reading)
    return CleanSet(*pictures, shown_names(names, source), source)


def _labels(dataset: Any, reading: Reading) -> NDArray[Any]:
    for name in ("targets", "labels", "_labels"):
        kept = getattr(dataset, name, None)
        if kept is not None:
            return np.asarray(kept)
    labels = []
    for index in range(len(dataset)):
        reading.check_time()
        try:
            labels.append(dataset[index][1])
        except UnreadableError as error:  # some open the picture for its label
            raise UnreadableError(f"image {index}: {error}; replace it") from None
    return np.asarray(labels)


def _plain_names(names: Iterable[object]) -> tuple[object, ...]:
    return tuple(name[0] if isinstance(name, tuple) else name for name in names)  # ImageNet has tuples of synonyms


def _item_opener(dataset: Any, index: int) -> Callable[[], Image.Image]:
    def item() -> Image.Image:
        image = dataset[index][0]
        if not isinstance(image, Image.Image):
            raise TypeError(f"{type(image).__name__} instead of an image")
        return image

    return item


def _torchvision_dataset(source: str, reading: Reading) -> Any:
    from torchvision import datasets  # noqa: PLC0415 - a second of imports that most runs do not need

    name, _, query = source.removeprefix("torchvision:").partition("?")
    known = {
        key: value
        for key in dir(datasets)
        if inspect.isclass(value := getattr(datasets, key)) and issubclass(value, datasets.VisionDataset)
    }
    if name not in known:
        close = difflib.get_close_matches(name.lower(), [key.lower() for key in known], n=3)
        likely = [key for key in known if key.lower() in close]
        hint = f"; did you mean {' or '.join(likely)}?" if likely else "; see torchvision.datasets for the names"
        raise DataFormatError(f"{source}: torchvision has no data set {name!r}{hint}")
    given = dict(parse_qsl(query, keep_blank_values=True))
    takes = _parameters(known[name])
    accepted = [key for key in ("root", "train", "split", "download") if key in takes]
    strange = [key for key in given if key not in accepted]
    if strange or ("root" in takes and not given.get("root")):
        what = f"{name} has no option {strange[0]!r}" if strange else "root is missing"
        raise DataFormatError(
            f"{source}: {what}; accepted: torchvision:{name}?{'&'.join(f'{key}=' for key in accepted)}"
        )
    options: dict[str, object] = {}
    for key in accepted:
        if key in ("train", "download"):
            options[key] = _flag(source, key, given.get(key, "false"))
        elif key == "split":
            options[key] = given.get(key, "test")
    try:
        if "root" in accepted:
            root = Path(given["root"]).expanduser()
            options["root"] = str(root)
            if root.is_dir() and issubclass(known[name], datasets.DatasetFolder):
                _refuse_odd_files(root, reading)
        try:
            return known[name](**options)
        except ValueError as error:
            if "split" in given or "val" not in _valid(error):
                raise
            reading.note("read: the part val, as there is no test")
            return known[name](**{**options, "split": "val"})
    except DataFormatError:
        raise
    except Exception as error:  # each data set complains in its own way
        download = options.get("download")
        cure = _cure(error, given.get("root", ""), None if download is None else bool(download))
        raise DataFormatError(f"{source}: cannot be opened ({_said(error)}){cure}") from None


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """What a data set is made with, also by the class that it hands further keywords to."""
    found: dict[str, inspect.Parameter] = {}
    for one in kind.__mro__:
        own = inspect.signature(one.__init__).parameters
        found = {**own, **found}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return found


def _valid(error: Exception) -> list[str]:
    """The values of an option that torchvision offers in an error; none in any other."""
    return re.findall(r"'([^']+)'", str(error).partition("Valid values are")[2])


def _said(error: Exception) -> str:
    """What an error says: all of it where it is ours, which says what to do at its end."""
    return str(error) if isinstance(error, UnreadableError) else brief(error)


def _cure(error: Exception, root: str, download: bool | None) -> str:
    """What helps a data set. One that can be fetched fetches what is absent, and not what is there and damaged."""
    said = str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"; pip install {error.name}"
    if values := _valid(error):
        return f"; give one, as in &split={values[0]}"
    if download is None:
        return ""
    if "download=True" in said and not download:  # what torchvision says where it finds nothing
        return "; add &download=true to fetch it"
    no_fetch = download and (isinstance(error, OSError) or "ownload" in said)
    if no_fetch or isinstance(error, UnreadableError) or "pip install" in said:  # they say what to do
        return ""
    more = "run again" if download else "add &download=true"
    return f"; where its files are damaged, remove them from {root} first, then {more} to fetch them anew"


def _refuse_odd_files(root: Path, reading: Reading) -> None:
    """Look at the files below a root first, where the data set follows every link and opens whatever has the name of an image."""
    for path in files_within(root, reading, follow=True):
        if path.is_symlink():
            path.stat()  # raises for one that leads nowhere
        if is_image(path.name):
            try:
                file_size(path, reading)
            except UnreadableError as error:
                raise UnreadableError(f"{path.relative_to(root)}: {error}") from None


def _flag(source: str, key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise DataFormatError(f"{source}: {key}={text}; accepted: true or false")
    return text.lower() == "true"
