import os
from pathlib import Path

import pytest

from backdoor_audit import bounds
from backdoor_audit.options import AuditOptions
from backdoor_audit.run.audited_files import audited_files, digests


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "m.safetensors"
    file.write_bytes(b"weights")
    return file


def of(**options: object) -> dict[str, str]:
    return digests(audited_files(AuditOptions(data="images.npz", **options)))  # type: ignore[arg-type]


def test_every_file_that_decides_has_its_own_digest_and_it_follows_the_content(model: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "b.json"
    baseline.write_text("{}")
    before = of(model=str(model), baseline=str(baseline))
    assert list(before) == [f"--audit-model={model}", f"--audit-baseline={baseline}"]
    assert before == of(model=str(model), baseline=str(baseline))
    model.write_bytes(b"other")
    after = of(model=str(model), baseline=str(baseline))
    assert [before[name] == after[name] for name in before] == [False, True]
    assert list(of(model=str(model), baseline=str(baseline), update_baseline=True)) == [f"--audit-model={model}"]


def test_a_folder_is_the_files_that_a_network_is_made_from(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = of(model=str(tmp_path))
    (tmp_path / "notes.txt").write_text("anything")
    assert of(model=str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert of(model=str(tmp_path)) != before


def test_what_reading_will_refuse_is_not_read_here(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    os.truncate(folder / "model.safetensors", 2**40)
    for path in (tmp_path / "pipe", tmp_path / "nothing", Path("/dev/zero"), folder):
        assert of(model=str(path)) == {}
    with bounds.allowing(bounds.Bounds(memory=3)):
        assert of(model=str(model)) == {}


def test_a_place_stays_where_it_was_when_the_working_folder_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = audited_files(AuditOptions(data="images.npz", model=model.name))
    before = digests(places)
    monkeypatch.chdir("/")
    assert digests(places) == before
    assert list(before) == [f"--audit-model={model.name}"]
