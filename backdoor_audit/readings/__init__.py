"""Measurements of published detectors that judge nothing here: their rates did not earn a place in the verdict."""

from backdoor_audit.readings.ban import BAN
from backdoor_audit.readings.bti_dbf import BTIDBF
from backdoor_audit.readings.free_eagle import FreeEagle
from backdoor_audit.readings.last_layer import LastLayerSignature
from backdoor_audit.readings.mm_bd import MMBD
from backdoor_audit.readings.reading import Reading
from backdoor_audit.readings.trodo import TRODO

READINGS = (MMBD(), TRODO(), LastLayerSignature(), FreeEagle(), BAN(), BTIDBF())

__all__ = ["BAN", "BTIDBF", "MMBD", "READINGS", "TRODO", "FreeEagle", "LastLayerSignature", "Reading"]
