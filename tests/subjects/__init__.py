"""Hand-made subjects with known answers: networks with weights set by hand, and the clean images that suit them."""

from tests.subjects.brightness import ByBrightness, by_brightness, grey_images
from tests.subjects.colours import (
    COLOUR_SHAPE,
    COLOUR_TARGET,
    COLOURS,
    ColourNet,
    colour_images,
    colour_net,
    colour_trigger,
)
from tests.subjects.common import quick, seeded, square_trigger
from tests.subjects.networks import Computed, random_network
from tests.subjects.patches import PatchDetector
from tests.subjects.rows import row_images, row_reader
from tests.subjects.unchanged import assert_same, assert_unchanged, snapshot

__all__ = [
    "COLOURS",
    "COLOUR_SHAPE",
    "COLOUR_TARGET",
    "ByBrightness",
    "ColourNet",
    "Computed",
    "PatchDetector",
    "assert_same",
    "assert_unchanged",
    "by_brightness",
    "colour_images",
    "colour_net",
    "colour_trigger",
    "grey_images",
    "quick",
    "random_network",
    "row_images",
    "row_reader",
    "seeded",
    "snapshot",
    "square_trigger",
]
