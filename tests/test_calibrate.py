"""A null distribution of one's own, from a folder of clean models."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from backdoor_audit import calibrate as module
from backdoor_audit import cli
from backdoor_audit.calibrate import LEAST_MODELS, calibrate
from backdoor_audit.detectors import DETECTORS, Detection
from backdoor_audit.errors import DataFormatError, OptionError
from backdoor_audit.options import AuditOptions
from backdoor_audit.search.anomaly import DETECTOR_RATE, SteeringNull
from backdoor_audit.store import Store
from tests.subjects.detections import margin_row

STEERING = [entry.name for entry in DETECTORS if entry.needs_twins]


class Found:
    """A run whose detectors found what the number in the model's name says."""

    classes = staticmethod(lambda number: 10)
    reason = ""

    def __init__(self, options, store, suite, *, progress):
        del suite
        self.number = int(Path(options.model).stem)
        self.inputs = SimpleNamespace(preconditions={}, num_classes=self.classes(self.number))
        self.searches = SimpleNamespace(detectors=DETECTORS, detection=self.detection)
        self.reference = SimpleNamespace(twins=SimpleNamespace(kind="plain_grey"))
        self.clean_set = SimpleNamespace(source="images.npz")

    def check(self):
        pass

    def detection(self, name):
        scores = [
            margin_row(row, index=None, p_value=None, deviation=value)
            for row, value in (*((row, 0.1) for row in range(9)), (9, 1 + self.number / 10))
        ]
        return Detection(
            detector=name,
            settings="",
            scores=() if self.reason else scores,
            triggers=(),
            inconclusive=self.reason,
        )


def models(count=LEAST_MODELS):
    return [Path(f"{number}.safetensors") for number in range(count)]


def fitted(tmp_path, files):
    return calibrate(files, AuditOptions(data="images.npz"), store=Store(tmp_path))


def test_the_largest_deviation_of_every_model_counts_for_every_detector(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Run", Found)
    null = fitted(tmp_path, models(12))
    assert (null.classes, null.models, set(null.fits)) == (10, 12, set(STEERING))
    assert "images.npz" in null.source
    largest = [1 + number / 10 for number in range(12)]
    expected = SteeringNull.fit({"warping": largest}, classes=10, models=12, source="")
    assert null.fits["warping"] == expected.fits["warping"]
    cut = null.cut("warping", 10)
    weighed = SteeringNull.fit({"consensus": [value / cut for value in largest]}, classes=10, models=12, source="")
    assert null.fits["consensus"] == pytest.approx(weighed.fits["consensus"])
    for name in STEERING:
        largest = largest if name != "consensus" else [value / cut for value in largest]
        assert null.p_value(name, null.cut(name, 10), 10) == pytest.approx(DETECTOR_RATE)
        assert null.index(name, null.cut(name, 10), 10) == pytest.approx(2.0)
        assert null.cut(name, 10) >= 1.1 * max(largest) - 1e-9


def test_too_few_models_are_refused_before_any_work(tmp_path):
    with pytest.raises(OptionError, match=f"^--clean-models: {LEAST_MODELS - 1} model files; at least {LEAST_MODELS}"):
        fitted(tmp_path, models(LEAST_MODELS - 1))


def test_models_with_different_classes_are_no_common_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "Run", type("Mixed", (Found,), {"classes": staticmethod(lambda number: 10 + number % 2)})
    )
    with pytest.raises(OptionError, match="same number"):
        fitted(tmp_path, models())


def test_a_model_without_an_answer_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Run", type("Silent", (Found,), {"reason": "twins need more images"}))
    with pytest.raises(OptionError, match=r"0\.safetensors: .*twins need more images"):
        fitted(tmp_path, models())


def test_the_command_writes_a_file_that_an_audit_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "Run", Found)
    folder = tmp_path / "clean"
    folder.mkdir()
    for file in models():
        (folder / file.name).write_text(file.name)  # no model is a copy of another
    (folder / "notes.txt").touch()
    out = tmp_path / "reference.json"
    command = ["calibrate", "--clean-models", str(folder), "--data", "images.npz", "--out", str(out)]
    assert cli.main(command) == 0
    assert "patch_scan: index 2 is a deviation of" in capsys.readouterr().out
    assert set(SteeringNull.load(out).fits) == set(STEERING)
    assert cli.main(command) == cli.USAGE_ERROR
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"fits": {}, "classes": 1, "models": 1, "source": ""}',
        '{"fits": {"warping": [1, -1]}, "classes": 10, "models": 1, "source": ""}',
    ],
)
def test_a_file_that_is_no_reference_is_refused_in_one_line(text, tmp_path):
    file = tmp_path / "reference.json"
    file.write_text(text)
    with pytest.raises(DataFormatError, match="backdoor-audit calibrate") as raised:
        SteeringNull.load(file)
    assert "\n" not in str(raised.value)
