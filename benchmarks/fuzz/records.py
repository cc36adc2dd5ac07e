"""What runs leave and take: records, baselines, counterexamples, references, finished work."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from PIL import Image

from backdoor_audit.baseline import Baseline, baseline_of, compare, regressions, renewed, section
from backdoor_audit.baseline.acceptance import Acceptance
from backdoor_audit.evidence import Record
from backdoor_audit.properties.corpus import Counterexample, load_corpus
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.report.schema import schema
from backdoor_audit.report.terminal import summary_lines
from backdoor_audit.search.anomaly import SteeringNull, shipped_null
from backdoor_audit.store import Packed, Store, key
from backdoor_audit.triggers.written import Numbers, Patch, Sinusoid, SmoothWarp
from benchmarks.fuzz.alter import ODD_TEXTS, altered, altered_json, encoded, special
from benchmarks.fuzz.commands import Command, Refused, command
from benchmarks.fuzz.models import in_order

_CLASSES = 3
_DETECTORS = ("neural_cleanse", "patch_scan", "source_scan")
_TODAY = date(2026, 1, 1)


class WrongResultError(Exception):
    """The product took altered work for a result."""


@cache
def valid_record() -> dict[str, Any]:
    """A record with an entry in every section, made from the published schema, with names and classes that agree."""
    stored: dict[str, Any] = _example(schema(), schema()["$defs"])
    names = {
        "num_classes": _CLASSES,
        "class_names": ["a", "b", "c"],
        "image_shape": [1, 8, 8],
        "mean": [0.5],
        "std": [0.25],
    }
    stored["subject"] |= {**names, "model": "m.safetensors", "data": "images.npz"}
    stored["settings"] |= {
        "limits": asdict(shipped_limits()),
        "report": "r",
        "model": "m.safetensors",
        "data": "images.npz",
    }
    detection, finding, exhibit = stored["detections"][0], stored["findings"][0], stored["exhibits"]["a"]
    stored["detections"], stored["findings"], stored["exhibits"] = [], [], {}
    for name in _DETECTORS:
        rows = [{**detection["classes"][0], "target_class": target} for target in range(_CLASSES)]
        stored["detections"].append({**detection, "detector": name, "classes": rows, "inconclusive": ""})
        for target, verdict in enumerate(("pass", "fail", "inconclusive")):
            item = f"{name}-{'from_' if name == 'source_scan' else ''}class_{target}"
            judged = {
                "audit": f"audit::test_anomaly_index[{item}]",
                "statistic": "anomaly_index",
                "target_class": target,
            }
            details = {"index": 3.0, "size": 4.0, "success_val": 0.9, "landing": 1}
            stored["findings"].append({**finding, **judged, "verdict": verdict, "details": details})
            stored["exhibits"][item] = {**exhibit, "detector": name, "target_class": target}
    for name, statistic in (
        ("test_precondition[accuracy]", "clean_accuracy"),
        ("test_power[badnets]", "detection_power"),
    ):
        stored["findings"].append({**finding, "audit": f"audit::{name}", "statistic": statistic, "target_class": None})
    groups = {group: [0.1, 0.5, 0.2, 0.9] for group in ("clean", "synthetic")}
    norms = {"channels": 4, "norms": dict.fromkeys(("l1", "l2", "linf"), groups)}
    stored["activations"] = {"class_1": {**stored["activations"]["a"], **norms}}
    accepted = {"finding": "audit::test_x[y]", "reason": "known", "owner": "somebody", "expires": "2030-01-31"}
    stored["baseline"] |= {"file": "b.json", "accepted_model": "a", "accepted": [accepted], "expired": [accepted]}
    stored["baseline"] |= {"notes": ["a note"], "unused": ["audit::test_x[z]"]}
    return stored


def _example(wanted: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """A value that is valid by a schema, with one entry in every list and every open object."""
    if "$ref" in wanted:
        return _example(definitions[wanted["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in wanted:
        parts = [part for part in wanted["anyOf"] if part.get("type") != "null" and part.get("maxProperties") != 0]
        return _example(parts[0], definitions)
    kind = wanted.get("type")
    if kind == "object":
        more = {"a": wanted["additionalProperties"]} if isinstance(wanted.get("additionalProperties"), dict) else {}
        return {name: _example(part, definitions) for name, part in {**wanted.get("properties", {}), **more}.items()}
    if kind == "array":
        return [_example(wanted["items"], definitions) for _ in range(wanted.get("minItems", 1))]
    text = _png() if "contentMediaType" in wanted else "a" * 64 if "pattern" in wanted else "a text"
    plain = {"string": text, "boolean": False, "integer": 1, "number": 0.5}.get(str(kind))
    return wanted.get("const", wanted.get("enum", [plain])[0])


@cache
def _png() -> str:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 99).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _put(draw: Random, path: Path, stored: Any) -> Path:
    """An altered JSON file, or something else in its place."""
    if draw.random() < 0.03:
        special(draw, path)
    else:
        path.write_bytes(encoded(draw, altered_json(draw, stored)))
    return path


def record(draw: Random, folder: Path) -> Command:
    """An altered record, to be drawn as a page or exported."""
    file, out = (
        _put(draw, folder / "audit.json", valid_record()),
        [folder / f"out.{end}" for end in ("html", "sarif", "md")],
    )
    if draw.random() < 0.5:
        return Command(["report", str(file), "--out", str(out[0])], out[:1])
    return Command(["export", str(file), f"--sarif={out[1]}", f"--markdown={out[2]}"], out[1:])


def read_record(given: Command) -> Iterable[str]:
    """The command's output, and the summary that a run prints of such a record."""
    shown = list(command(given))
    return [*shown, *(line for line, _ in summary_lines(Record.read(Path(given.arguments[1]))))]


@cache
def valid_baseline() -> dict[str, Any]:
    """The baseline of the record, with acceptances."""
    accepted = [
        Acceptance(
            finding=f"audit::test_anomaly_index[{name}-*]", reason="known", owner="somebody", expires=date(2030, 1, 31)
        )
        for name in _DETECTORS
    ]
    stored: dict[str, Any] = baseline_of(_record(), acceptances=accepted).to_json()
    return stored


@cache
def _record() -> Record:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "audit.json")
        file.write_text(json.dumps({**valid_record(), "errors": {}, "not_run": []}))
        return Record.read(file)


def comparison(draw: Random, folder: Path) -> Command:
    """Two files to be compared, of which at least one is altered."""
    valid, out = folder / "valid.json", folder / "out.html"
    valid.write_text(json.dumps(draw.choice((valid_record(), valid_baseline()))))
    file = _put(draw, folder / "altered.json", draw.choice((valid_record(), valid_baseline())))
    files = draw.choice(([valid, file], [file, valid], [file, file]))
    return Command(["compare", *map(str, files), "--out", str(out)], [out])


def baseline(draw: Random, folder: Path) -> Path:
    """An altered baseline."""
    return _put(draw, folder / "baseline.json", valid_baseline())


def read_baseline(path: Path) -> Iterable[str]:
    """What a run does with it: compare, judge, excuse, renew."""
    read = Baseline.read(path)
    read.refuse(_record(), source="baseline.json")
    difference = compare(read, _record(), source="baseline.json")
    told = section("baseline.json", read, _record(), difference, _TODAY)
    regressions(difference)
    renewed(_record(), read, _TODAY)
    return [line for line, _ in summary_lines(Record.read(_rewritten(path.parent, told)))]


def _rewritten(folder: Path, told: Mapping[str, Any]) -> Path:
    """The record as a run with this baseline leaves it."""
    file = folder / "beside.json"
    file.write_text(json.dumps({**valid_record(), "baseline": told}))
    return file


@cache
def _counterexamples() -> tuple[dict[str, Any], ...]:
    numbers = Numbers((1, 2, 2), (1, 2, 3, 4))
    drawn = (
        Patch(colours=numbers, target_class=1),
        Sinusoid(amplitude=20, target_class=1),
        SmoothWarp(flow=Numbers((2, 1, 1), (5, 6))),
    )
    return tuple(
        Counterexample(name="patch", trigger=trigger, image_shape=(1, 8, 8), value=0.9, limit=0.5).to_json()
        for trigger in drawn
    )


def corpus(draw: Random, folder: Path) -> Path:
    """A folder of counterexamples, one of them altered."""
    inside = folder / "corpus"
    if draw.random() < 0.02:
        special(draw, inside)
        return inside
    inside.mkdir()
    for number, stored in enumerate(_counterexamples()):
        (inside / f"{number}.json").write_text(json.dumps(stored))
    name = draw.choice((*ODD_TEXTS[:16], "x")).replace("/", "-").replace("\0", "")[:60]
    _put(draw, inside / f"9{name.encode('utf-8', 'replace').decode()}.json", draw.choice(_counterexamples()))
    return inside


def read_corpus(folder: Path) -> Iterable[str]:
    """Load it and stamp with what suits images of its own shape."""
    found = load_corpus(folder)
    for entry in found:
        if entry.image_shape == (1, 8, 8):
            entry.trigger.stamp(torch.zeros(2, *entry.image_shape))
    return [entry.file_name for entry in found if entry.name == "patch"]


def reference(draw: Random, folder: Path) -> Path:
    """An altered reference of ``backdoor-audit calibrate``."""
    return _put(draw, folder / "reference.json", asdict(shipped_null()))


def read_reference(path: Path) -> Iterable[str]:
    """Load it and rescale by it."""
    null = SteeringNull.load(path)
    for name in null.fits:
        null.index(name, 1.0, 10)
        null.p_value(name, 1.0, 10)
    return [null.source]


_PARTS = {"work": "fuzzed", "seed": 0}


@cache
def _piece() -> Packed:
    tensors = {
        "mask": torch.linspace(0, 1, 64).view(1, 8, 8),
        "kept": torch.tensor([True, False]),
        "n": torch.arange(3),
    }
    return Packed(tensors, {"score": 0.25, "flagged": [1, 2], "reason": "", "deep": {"a": None}})


class Work(NamedTuple):
    """A store's folder, and the key's file in it."""

    folder: Path
    file: Path


def store(draw: Random, folder: Path) -> Work:
    """Finished work whose file is altered: bits, header, values, or something else in its place."""
    file = folder / f"{key(_PARTS)}.safetensors"
    Store(folder).recall(_PARTS, _piece, pack=lambda piece: piece, unpack=lambda piece: piece)
    content, how = in_order(file.read_bytes()), draw.random()
    size = int.from_bytes(content[:8], "little")
    if how < 0.04:
        file.unlink()
        special(draw, file)
    elif how < 0.5:
        file.write_bytes(altered(draw, content, bytes(64)))
    elif how < 0.75:
        at = draw.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        file.write_bytes(bytes(flipped))
    else:
        header = json.loads(content[8 : 8 + size])
        values = header["__metadata__"]["values"]
        header["__metadata__"]["values"] = altered_json(draw, json.loads(values)).encode("utf-8", "replace").decode()
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return Work(folder, file)


def read_store(work: Work) -> Iterable[str]:
    """Recall it. Raises `Refused` if the work was done again, and `WrongResultError` if what came back is not what was kept."""
    told = Store(work.folder)
    found, recalled = told.recall(_PARTS, _piece, pack=lambda piece: piece, unpack=lambda piece: piece)
    kept = _piece()
    same = found.tensors.keys() == kept.tensors.keys() and found.values == kept.values
    if not same or not all(torch.equal(found.tensors[name], tensor) for name, tensor in kept.tensors.items()):
        raise WrongResultError(f"recalled {recalled}: {sorted(found.tensors)}, {found.values}")
    if not recalled:
        raise Refused("; ".join(getattr(told, "told", [])) or "done again")
    return []


@cache
def warm() -> None:
    """Draw and compare valid records once: what is imported, compiled and looked up for that is no part of any input."""
    with tempfile.TemporaryDirectory() as name:
        file, out = Path(name, "audit.json"), Path(name, "out")
        file.write_text(json.dumps(valid_record()))
        for arguments in (["report", str(file)], ["compare", str(file), str(file), "--force"]):
            list(command(Command([*arguments, "--out", str(out)])))
