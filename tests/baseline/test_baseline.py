"""Real runs beside the baseline of a real, tiny model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from backdoor_audit import Verdict, audit
from backdoor_audit.baseline import Baseline, compare, renewed
from tests.subjects import toy
from tests.subjects.baselines import TODAY


def network(*, backdoored: bool) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, toy.CLASSES))
    module.load_state_dict(toy.weights(backdoored=backdoored))
    return module


def test_real_runs_of_a_clean_and_a_backdoored_model_are_told_apart(tmp_path: Path) -> None:
    clean, backdoored = (
        audit(network(backdoored=flag), *toy.images(), steps=150, device="cpu", profile="quick", progress=False)
        for flag in (False, True)
    )
    file = tmp_path / "baseline.json"
    renewed(clean, None, TODAY)[0].write(file)
    baseline = Baseline.read(file)
    assert compare(baseline, clean).worse == ()
    assert list(compare(baseline, clean).notes) == ["the weights are those of the accepted model"]
    found = compare(baseline, backdoored)
    assert found.verdict is Verdict.FAIL
    assert {change.target_class for change in found.worse if change.regression == "anomaly_index"} == {toy.TARGET}
    assert f"class {toy.TARGET}, neural_cleanse: anomaly index" in found.reason("anomaly_index")
