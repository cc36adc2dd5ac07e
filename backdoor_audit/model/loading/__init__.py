"""An untrusted model file becomes a `Classifier`; nothing in the file is executed unless the user asks for it."""

from backdoor_audit.model.loading.class_names import class_names_of
from backdoor_audit.model.loading.model_file import (
    NORMALIZATIONS,
    LoadedModel,
    fingerprint_of,
    load_classifier,
    load_model,
    normalization_of,
    parts_of,
    refuse_other_classes,
)
from backdoor_audit.model.loading.safetensors_file import save_classifier

__all__ = [
    "NORMALIZATIONS",
    "LoadedModel",
    "class_names_of",
    "fingerprint_of",
    "load_classifier",
    "load_model",
    "normalization_of",
    "parts_of",
    "refuse_other_classes",
    "save_classifier",
]
