"""Measurements of published detectors that judge nothing here: their rates did not earn a place in the verdict."""

from backdoor_audit.readings.abs import ABS
from backdoor_audit.readings.aeva import AEVA
from backdoor_audit.readings.ban import BAN
from backdoor_audit.readings.bti_dbf import BTIDBF
from backdoor_audit.readings.deep_inspect import DeepInspect
from backdoor_audit.readings.free_eagle import FreeEagle
from backdoor_audit.readings.last_layer import LastLayerSignature
from backdoor_audit.readings.mm_bd import MMBD
from backdoor_audit.readings.reading import Reading
from backdoor_audit.readings.tabor import TABOR
from backdoor_audit.readings.trodo import TRODO

READINGS = (
    MMBD(),
    TRODO(),
    LastLayerSignature(),
    FreeEagle(),
    BAN(),
    BTIDBF(),
    TABOR(),
    ABS(),
    DeepInspect(),
    AEVA(),
)

__all__ = [
    "ABS",
    "AEVA",
    "BAN",
    "BTIDBF",
    "MMBD",
    "READINGS",
    "TABOR",
    "TRODO",
    "DeepInspect",
    "FreeEagle",
    "LastLayerSignature",
    "Reading",
]
