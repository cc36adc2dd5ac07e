"""Measurements of published detectors that judge nothing here: their rates did not earn a place in the verdict."""
