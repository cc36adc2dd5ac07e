"""What the package itself is made of: results of one version are never taken for another's."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def code_fingerprint() -> str:
    """SHA-256 of the package's own source, its first 16 digits; read once per process."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def version_of(package: str, otherwise: str) -> str:
    """Version of an installed package; ``otherwise`` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return otherwise
