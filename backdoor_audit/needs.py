"""What an answer needs beside the model, as far as it costs: by this a run says what it is going to take."""

from enum import Enum


class Needs(Enum):
    """Of one question; what its items are asked of says which part."""

    NOTHING = "nothing"
    """No search."""
    ONE_SEARCH = "one search"
    """That of the detector or the property that an item is asked of."""
    EVERY_SEARCH = "every search"
    CANARIES = "canaries"
    """Copies of the model with a known backdoor, each searched."""
    FILTERS = "filters"
    """Every search, and where a trigger was flagged the filter that an item is asked of."""
    REPAIRS = "repairs"
    """Every search, and where a trigger was flagged the repair that an item is asked of."""
