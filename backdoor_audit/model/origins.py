"""Where code comes from: an installed package, Python itself, or neither."""

from __future__ import annotations

import functools
import hashlib
import os
import site
import sys
import sysconfig
from pathlib import Path

_MOST_MODULES = 64  # of a package of the user's own
_CODE = frozenset({".py", ".so", ".pyd", ".dll", ".dylib"})


@functools.cache
def _site_folders() -> tuple[str, ...]:
    given = (
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
        *site.getsitepackages(),
    )
    return tuple({_folder(folder) for folder in given})


@functools.cache
def is_installed(file: str) -> bool:
    """Whether a file belongs to an installed package."""
    return os.path.realpath(file).startswith(_site_folders())


@functools.cache
def is_of_python(file: str) -> bool:
    """Whether a file belongs to Python itself."""
    return os.path.realpath(file).startswith(_folder(sysconfig.get_path("stdlib")))


def _folder(path: str) -> str:
    return os.path.realpath(path) + os.sep


@functools.cache
def is_large(package: str) -> bool:
    """Whether so many modules of a package are loaded that it is known by its files, wherever it lies, as installed ones are."""
    folder = f"{package}."
    return sum(name.startswith(folder) for name in list(sys.modules)) > _MOST_MODULES


@functools.cache
def package_digest(name: str, file: str) -> str:
    """Of the files of a package, of which ``file`` is one; read once per process. Elsewhere than installed, data do not count."""
    folder = next((entry for entry in _site_folders() if file.startswith(entry)), "")
    packages = [Path(folder, name)] if folder else [Path(entry) for entry in sys.modules[name].__path__]
    found = [(package, source) for package in packages for source in sorted(package.rglob("*")) if source.is_file()]
    sources = [
        (package, source) for package, source in found if source.suffix in _CODE or (folder and source.suffix != ".pyc")
    ]
    digest = hashlib.sha256()
    for package, source in sources or [(Path(file), Path(file))]:
        digest.update(os.fsencode(source.relative_to(package.parent)))
        digest.update(source.read_bytes())
    return digest.hexdigest()
