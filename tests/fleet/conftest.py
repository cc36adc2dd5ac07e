"""A folder with models, and a gate that says of each what the model file says: no network is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_audit.cli import main
from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.fleet import gate
from tests.subjects.fleets import Fleet, detections, write_images
from tests.subjects.records import finding, record

FAKE = """
import json, os, pathlib, shutil, signal, sys, time

given = dict(text.partition("=")[::2] for text in sys.argv[1:])
model, report = pathlib.Path(given["--audit-model"]), pathlib.Path(given["--audit-report"])
here = pathlib.Path(__file__).parent
says = (model / "config.json" if model.is_dir() else model).read_text().split()
with (here / "asked.jsonl").open("a") as log:
    log.write(json.dumps({"model": model.stem, "arguments": sys.argv[1:], "pid": os.getpid(),
                          "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "step": os.environ.get("GITHUB_STEP_SUMMARY")}) + "\\n")
if "killed" in says and not (here / f"{model.stem}.killed").exists():
    (here / f"{model.stem}.killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)
if "worker" in says and not (here / f"{model.stem}.killed").exists():
    (here / f"{model.stem}.killed").touch()
    leash = int(pathlib.Path(f"/proc/{os.getppid()}/stat").read_text().split()[3])
    os.kill(leash, signal.SIGKILL)  # the process that waits for the leash
    time.sleep(600)
if "lost" in says:
    os.kill(os.getpid(), signal.SIGKILL)
if "sleep" in says:
    (here / "sleeping").touch()
    time.sleep(600)
for changed in [word for word in says if (here / f"new.{word}").exists()]:
    shutil.move(here / f"new.{changed}", here / changed)
if "usage" in says:
    print("ERROR: backdoor_audit: it holds\\x1b[31m no network")
    sys.exit(4)
records = [word for word in says if (here / f"{word}.json").exists()]
if records:
    report.mkdir()
    shutil.copy(here / f"{records[0]}.json", report / "audit.json")
    (report / "audit.html").write_text("evidence")
sys.exit(int(says[-1]))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with images and the fake gate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gate, "GATE", (str(tmp_path / "gate.py"),))
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    (tmp_path / "gate.py").write_text(FAKE)
    write_images(tmp_path / "images.npz")
    records: dict[str, Record] = {
        "good": record(finding(Verdict.PASS, value=0.4), detections=detections(0.5, 0.9)),
        "bad": record(finding(Verdict.FAIL, value=3.5), detections=detections(0.0001, 0.3)),
        "unsure": record(finding(Verdict.INCONCLUSIVE), detections=detections(None)),
        "partly": record(finding(Verdict.PASS, value=0.4), detections=[], not_run=["audit::test_x[y]"]),
    }
    for name, kept in records.items():
        kept.write(tmp_path / f"{name}.json")
    return tmp_path


@pytest.fixture
def models(place: Path) -> Callable[..., None]:
    """Write model files: ``models(a="good 0")`` is one that the fake gate lets pass."""

    def write(**says: str) -> None:
        for name, text in says.items():
            (place / f"{name}.pt").write_text(text)

    return write


@pytest.fixture
def fleet(place: Path) -> Fleet:
    """Run the command; its exit code."""

    def start(*arguments: str, data: str = "images.npz", out: str = "out") -> int:
        head, behind = arguments, ()
        if "--" in arguments:
            at = arguments.index("--")
            head, behind = arguments[:at], arguments[at:]
        return main(["fleet", *head, "--data", data, "--out", out, *behind])

    return start
