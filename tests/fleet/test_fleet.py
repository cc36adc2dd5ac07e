"""``backdoor-audit fleet`` from the outside: exit codes, what is kept, what is done again; the gate is a fake one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_audit.cli import main
from backdoor_audit.fleet import leash
from tests.subjects.fleets import Fleet, asked, write_images
from tests.subjects.warm import Warm

Models = Callable[..., None]


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """How each model stands, in the order of the summary at the end."""
    states = ("pass", "fail", "inconclusive", "not audited")
    lines = capsys.readouterr().out.splitlines()
    return {line[12:].split()[0]: line[:12].strip() for line in lines if line[:12].strip() in states}


def test_a_fleet_of_models_that_pass_ends_in_0(place: Path, models: Models, fleet: Fleet) -> None:
    models(a="good 0", b="good 0")
    assert fleet("a.pt", "b.pt", "--", "--audit-profile=quick") == 0
    for name in ("a", "b"):
        assert json.loads((place / "out" / name / "audit.json").read_text())["verdict"] == "pass"
    page = (place / "out" / "fleet.html").read_text()
    assert 'href="a/audit.html"' in page
    arguments = asked(place)[0]["arguments"]
    assert isinstance(arguments, list)
    assert "--audit-profile=quick" in arguments
    assert f"--audit-data={place / 'images.npz'}" in arguments
    assert f"cache_dir={place / '.pytest_cache'}" in arguments


def test_a_model_whose_weights_beside_it_changed_is_audited_again(place: Path, fleet: Fleet) -> None:
    (place / "m.onnx").write_text("good 0")
    for weights, runs in (("1", 1), ("1", 1), ("2", 2)):
        (place / "m.onnx.data").write_text(weights)
        assert fleet("m.onnx") == 0
        assert len(asked(place)) == runs


def test_a_place_that_is_a_link_to_nothing_is_refused_in_one_line(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="good 0")
    (place / "out").symlink_to("nothing")
    assert fleet("a.pt") == 4
    told = capsys.readouterr().err
    assert told.startswith("backdoor-audit: --out: ")
    assert told.endswith("out is a link that leads to nothing; give a folder that exists, or a new one in a folder\n")


@pytest.mark.parametrize(
    ("says", "state"),
    [
        ("bad 1", "fail"),
        ("bad 0", "fail"),
        ("unsure 1", "inconclusive"),
        ("unsure 0", "inconclusive"),  # --audit-inconclusive=allow ends in 0
        ("partly 0", "inconclusive"),
        ("good 1", "inconclusive"),
        ("good 3", "inconclusive"),
        ("nothing 0", "not audited"),
        ("nothing 3", "not audited"),
        ("usage", "not audited"),
        ("lost", "not audited"),
    ],
)
def test_nothing_but_a_whole_record_that_passes_is_a_pass(
    models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str], says: str, state: str
) -> None:
    models(a="good 0", b=says)
    assert fleet("a.pt", "b.pt", "--retries=0") == 1
    assert rows(capsys) == {"b": state, "a": "pass"}


def test_why_a_model_was_not_audited_is_told_without_its_control_characters(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(b="usage")
    fleet("b.pt")
    told = capsys.readouterr().out
    assert r"backdoor_audit: it holds\x1b[31m no network" in told
    assert "no network" in (place / "out" / "fleet.html").read_text()


def test_what_is_finished_is_not_done_again(place: Path, models: Models, fleet: Fleet) -> None:
    models(a="good 0", b="bad 1", c="partly 1", d="nothing 3")
    given = ("a.pt", "b.pt", "c.pt", "d.pt")
    fleet(*given)
    assert fleet(*given) == 1
    assert [entry["model"] for entry in asked(place)] == ["a", "b", "c", "d", "c", "d"]


@pytest.mark.parametrize("change", ["model", "data", "options", "record", "job"])
def test_another_model_other_images_or_options_and_altered_evidence_are_audited_again(
    place: Path, models: Models, fleet: Fleet, change: str
) -> None:
    models(a="good 0")
    assert fleet("a.pt") == 0
    if change == "model":
        models(a="good  0")
    elif change == "data":
        write_images(place / "images.npz", 9)
    elif change == "record":
        (place / "out" / "a" / "audit.json").write_text((place / "bad.json").read_text())
    elif change == "job":
        (place / "out" / "a" / "job.json").write_text("{}")
    assert fleet("a.pt", *(["--", "--audit-seed=1"] if change == "options" else [])) == 0
    assert len(asked(place)) == 2


def test_finished_work_is_never_taken_where_the_network_is_code_of_ones_own(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="good 0", b="good 0")
    for arch, counts in (("own.module:factory", (2, 4)), ("resnet18", (6, 6)), ("torchvision:vgg11", (8, 8))):
        for count in counts:
            capsys.readouterr()
            assert fleet("a.pt", "b.pt", "--", f"--arch={arch}") == 0
            assert len(asked(place)) == count
            assert capsys.readouterr().out.count("runs code of your own") == (count == 4)


@pytest.mark.parametrize("option", ["--audit-allow-pickle", "--allow-pickle=true", "[table]"])
def test_finished_work_is_never_taken_where_pickles_may_run_code(
    place: Path, models: Models, fleet: Fleet, option: str
) -> None:
    models(a="good 0")
    given = ("--", option) if option != "[table]" else ()
    if not given:
        (place / "pyproject.toml").write_text("[tool.backdoor_audit]\nallow_pickle = true\n")
    for count in (1, 2):
        assert fleet("a.pt", *given) == 0
        assert len(asked(place)) == count


def test_an_earlier_record_does_not_stand_for_a_model_that_cannot_be_audited_any_more(
    models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="good 0")
    assert fleet("a.pt") == 0
    models(a="nothing 0")
    assert fleet("a.pt") == 1
    assert rows(capsys) == {"a": "not audited"}


@pytest.mark.parametrize("seconds", ["1e999", "NaN", "1e308", "-1", "9" * 5000, "[" * 5000])
def test_a_word_of_how_an_audit_ended_with_an_odd_number_is_none(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    models(a="good 0", b="good 0")
    assert fleet("a.pt", "b.pt") == 0
    for name in ("a", "b"):
        job = place / "out" / name / "job.json"
        job.write_text(re.sub(r'("seconds": )[^,]+', rf"\g<1>{seconds}", job.read_text()))
    assert main(["fleet", "--from", "out"]) == 1
    assert rows(capsys) == {"a": "not audited", "b": "not audited"}


def test_a_gate_that_is_killed_is_begun_again(place: Path, models: Models, fleet: Fleet) -> None:
    models(a="killed good 0", b="good 0")
    assert fleet("a.pt", "b.pt") == 0
    assert [entry["model"] for entry in asked(place)] == ["a", "b", "a"]
    assert json.loads((place / "out" / "a" / "job.json").read_text())["attempts"] == 2


def test_a_gate_that_takes_too_long_is_ended(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="sleep")
    assert fleet("a.pt", "--time-limit=0.2s") == 1
    assert "the gate took too long" in capsys.readouterr().out
    assert [entry["pid"] for entry in asked(place) if _runs(int(str(entry["pid"])))] == []


def test_models_run_side_by_side_on_the_gpus_of_their_places(
    place: Path, models: Models, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    models(a="good 0", b="good 0")
    assert fleet("a.pt", "b.pt", "--jobs=2", "--gpus-per-model=1") == 0
    assert {entry["model"]: entry["gpu"] for entry in asked(place)} == {"a": "4", "b": "5"}
    assert [entry["step"] for entry in asked(place)] == [None, None]  # that summary is of the job around the fleet


def test_shares_of_a_job_array_make_one_fleet(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="good 0", b="bad 1", c="good 0")
    given = ("a.pt", "b.pt", "c.pt")
    assert fleet(*given, "--shard=1/2") == 0
    assert not (place / "out" / "fleet.html").exists()
    capsys.readouterr()
    assert main(["fleet", "--from", "out"]) == 1
    assert rows(capsys) == {"b": "not audited", "a": "pass", "c": "pass"}
    assert fleet(*given, "--shard=2/2") == 1
    capsys.readouterr()
    assert main(["fleet", "--from", "out"]) == 1
    assert rows(capsys) == {"b": "fail", "a": "pass", "c": "pass"}


def test_a_model_that_one_share_alone_sees_stays_in_the_fleet(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="bad 1", b="good 0", c="good 0")
    assert fleet("a.pt", "b.pt", "--shard=1/2") == 1
    assert fleet("b.pt", "c.pt", "--shard=1/2") == 0
    assert "1 models of other shares are not among those here (a): they stay in the fleet" in capsys.readouterr().out
    assert main(["fleet", "--from", "out"]) == 1
    assert rows(capsys) == {"a": "fail", "b": "pass", "c": "not audited"}
    assert fleet("b.pt", "c.pt") == 0, "without shares the list is what is given"


def test_a_page_drawn_later_counts_no_record_of_other_images_or_another_file(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="good 0", b="good 0")
    assert fleet("a.pt", "b.pt") == 0
    assert main(["fleet", "--from", "out"]) == 0
    models(a="good  0")
    write_images(place / "images.npz", 9)
    assert fleet("a.pt", "b.pt", "--shard=2/2") == 0
    capsys.readouterr()
    assert main(["fleet", "--from", "out"]) == 1
    assert rows(capsys) == {"a": "not audited", "b": "pass"}


@pytest.mark.parametrize("changed", ["images.npz", "pyproject.toml"])
def test_no_audit_stands_where_what_all_depend_on_was_changed_meanwhile(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    models(a=f"{changed} good 0", b="good 0")
    write_images(place / "new.images.npz", 9)
    (place / "new.pyproject.toml").write_text("[tool.backdoor_audit]\nmin_accuracy = 0.1\n")
    assert fleet("a.pt", "b.pt") == 1
    told = capsys.readouterr().out
    assert "were changed while models were audited" in told
    assert told.count("\nnot audited") == 2
    assert main(["fleet", "--from", "out"]) == 1
    assert fleet("a.pt", "b.pt") == 0
    assert len(asked(place)) == 4


def test_a_corpus_that_audits_add_to_takes_no_audit_away(place: Path, models: Models, fleet: Fleet) -> None:
    (place / "backdoor-audit-corpus").mkdir()
    (place / "new.backdoor-audit-corpus").mkdir()
    (place / "new.backdoor-audit-corpus" / "found.json").write_text("{}")
    models(a="backdoor-audit-corpus good 0")
    assert fleet("a.pt") == 0


def test_evidence_of_one_model_does_not_stand_for_another_whose_file_is_gone(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="good 0", b="bad 1")
    assert fleet("a.pt", "b.pt") == 1
    shutil.rmtree(place / "out" / "b")
    shutil.copytree(place / "out" / "a", place / "out" / "b")
    (place / "b.pt").unlink()
    capsys.readouterr()
    assert main(["fleet", "--from", "out"]) == 1
    assert rows(capsys) == {"a": "pass", "b": "not audited"}


def test_a_folder_stands_for_its_model_files_and_equal_names_stay_apart(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    models(a="good 0", b="good 0")
    (place / "other").mkdir()
    (place / "other" / "A.pt").write_text("bad 1")
    (place / "other" / "notes.txt").write_text("no model")
    assert fleet("a.pt", "b.pt", "other") == 1
    found = rows(capsys)
    assert sorted(name.partition("-")[0] for name in found) == ["A", "a", "b"]
    assert len(found) == 3


def test_long_equal_names_stay_apart_and_are_found_again(
    place: Path, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    stem = f"{'x' * 70}.{'y' * 30}"  # the dot is where the name is cut to make room
    for folder, says in (("one", "good 0"), ("two", "bad 1")):
        (place / folder).mkdir()
        (place / folder / f"{stem}.pt").write_text(says)
        (place / folder / f"{'z' * 79}.{folder}.pt").write_text("good 0")
    assert fleet("one", "two") == 1
    capsys.readouterr()
    assert main(["fleet", "--from", "out"]) == 1
    found = rows(capsys)
    assert sorted(found.values()) == ["fail", "pass", "pass", "pass"]
    assert max(map(len, found)) <= 80


def test_results_may_lie_at_an_address(
    place: Path, models: Models, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec = pytest.importorskip("fsspec")
    models(a="good 0", b="bad 1")
    out = f"memory://fleet-{os.getpid()}"
    assert fleet("a.pt", "b.pt", out=out) == 1
    assert fleet("a.pt", "b.pt", out=out) == 1
    assert len(asked(place)) == 2
    capsys.readouterr()
    assert main(["fleet", "--from", out]) == 1
    assert rows(capsys) == {"b": "fail", "a": "pass"}
    system, root = fsspec.core.url_to_fs(out)
    assert b"a/audit.html" in system.cat_file(f"{root}/fleet.html")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.pt", "--out=out"], "--data=SOURCE and --out=PLACE are needed"),
        (["--data=images.npz", "--out=out"], "models, --data=SOURCE"),
        (["missing.pt", "--data=images.npz", "--out=out"], "missing.pt is not a file"),
        (["a.pt", "--data=nowhere", "--out=out"], "--data: nowhere does not exist"),
        (["empty", "--data=images.npz", "--out=out"], "no model file in this folder"),
        (["a.pt", "--data=images.npz", "--out=nothing://x"], "--out: nothing://x"),
        (["a.pt", "--data=images.npz", "--out=out", "--shard=3/2"], "must be I/N"),
        (["a.pt", "--data=images.npz", "--out=out", "--shard=2/3"], "share 2 of 3 is empty, of 1 models"),
        (["a.pt", "--data=images.npz", "--out=out", "--", "--model=b.pt"], "--model=b.pt behind --"),
        (["a.pt", "--data=images.npz", "--out=out", "--", "--audit-report=x"], "--audit-report=x behind --"),
        (["a.pt", "--data=images.npz", "--out=images.npz"], "images.npz"),
        (["--from=out"], "holds no fleet"),
        (["a.pt", "--from=out"], "leave out models"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_4(
    place: Path, models: Models, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    models(a="good 0")
    (place / "empty").mkdir()
    try:
        code = main(["fleet", *arguments])
    except SystemExit as error:  # argparse's own
        code = int(error.code or 0)
    assert code == 4
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert asked(place) == []


def test_a_place_of_strangers_leads_nowhere_else(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out").mkdir()
    stored = {"schema_version": 1, "settings": "x", "data": "d", "models": [{"name": "../bad", "file": "bad.pt"}]}
    (place / "out" / "fleet.json").write_text(json.dumps(stored))
    assert main(["fleet", "--from", "out"]) == 4
    assert "holds no fleet" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_fleet_that_is_ended_leaves_no_gate_behind_and_goes_on_later(
    place: Path, models: Models, fleet: Fleet, warm: Warm, number: signal.Signals
) -> None:
    models(a="good 0", b="sleep", c="good 0")
    code = (
        "import sys; from backdoor_audit.fleet import gate; gate.GATE = ('gate.py',); "
        "from backdoor_audit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    given = ["fleet", "a.pt", "b.pt", "c.pt", "--data=images.npz", "--out=out"]
    process = warm.begin_program(place, code, *given)
    _wait((place / "sleeping").exists)
    process.send_signal(number)
    assert process.ended(30).ret == (1 if number == signal.SIGTERM else -number)
    gate = int(str(asked(place)[-1]["pid"]))
    _wait(lambda: not _runs(gate))
    models(b="good 0")
    assert fleet("a.pt", "b.pt", "c.pt") == 0
    assert [entry["model"] for entry in asked(place)] == ["a", "b", "b", "c"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_command_on_a_leash_does_not_outlive_it(tmp_path: Path, how: str) -> None:
    code = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(600)"
    command = [sys.executable, "-I", leash.__file__, "0", sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path) as process:
        _wait(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
        assert process.stdin is not None
        process.stdin.close() if how == "closed" else process.kill()
        process.wait(30)
    pid = int((tmp_path / "pid").read_text())
    _wait(lambda: not _runs(pid))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" if Path("/proc").exists() else True
    except (ProcessLookupError, FileNotFoundError):  # it may end between one look and the next
        return False


def _wait(done: Callable[[], bool]) -> None:
    last = time.monotonic() + 60
    while not done():
        assert time.monotonic() < last
        time.sleep(0.02)
