"""Which files decide what an installed package does."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdoor_audit.model import origins


def test_a_library_of_an_installed_package_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "own_installed"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(origins, "_site_folders", lambda: (f"{tmp_path}/",))
    digests = []
    for content in (b"1", b"2"):
        (package / "kernel.so").write_bytes(content)
        digests.append(origins.package_digest.__wrapped__("own_installed", str(package / "__init__.py")))
    assert digests[0] != digests[1]
