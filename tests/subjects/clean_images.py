"""Clean images on disk, and the one line that comes when they cannot be used."""

import pytest
from PIL import Image

from backdoor_audit.data import load_clean_set
from backdoor_audit.errors import DataFormatError
from backdoor_audit.printable import line_of


def image_file(path, colour=(255, 0, 0), size=(6, 4), mode="RGB"):
    """One image of ``size`` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def class_folders(folder, names, each=3):
    for label, name in enumerate(names):
        for index in range(each):
            image_file(folder / name / f"{index}.png", (label * 10, index, 0))
    return folder


def message_of(source, **options):
    with pytest.raises(DataFormatError) as caught:
        load_clean_set(source, **options)
    text = str(caught.value)
    start = line_of(f"{source}:") + " "
    assert text.startswith(start)
    assert text.isprintable()
    return text.removeprefix(start)
