import pytest
import torch

from backdoor_audit.repairs import DistilledUnlearning
from backdoor_audit.repairs.distilled_unlearning import BackdoorPath
from tests.subjects import assert_unchanged, snapshot
from tests.subjects.textured import backdoored, corner_patch, repair


def length(tensors):
    return float(torch.cat([tensor.detach().flatten() for tensor in tensors]).norm())


def test_the_way_is_along_the_audited_weights_and_as_long_as_rho():
    audited, repaired = backdoored(), backdoored().copy()
    with torch.no_grad():
        for weight in repaired.module.parameters():
            weight.zero_()
    path, before = BackdoorPath(audited, 0.5), snapshot(repaired.module)
    with path.ahead(repaired):
        weights = [weight.clone() for weight in repaired.module.parameters()]
    assert length(weights) == pytest.approx(0.5, rel=1e-5)
    scale = 0.5 / length(audited.module.parameters())
    for moved, own in zip(weights, audited.module.parameters(), strict=True):
        assert torch.allclose(moved, scale * own, atol=1e-7)
    assert_unchanged(before, repaired.module)


def test_without_rho_nothing_moves():
    repaired = backdoored().copy()
    before = snapshot(repaired.module)
    with BackdoorPath(backdoored(), 0.0).ahead(repaired):
        assert_unchanged(before, repaired.module)


def test_unlearning_along_the_path_unlearns():
    outcome = repair(DistilledUnlearning(path_rho=0.3), trigger=corner_patch()).outcome
    assert outcome.before.attack_success_rate >= 0.9
    assert outcome.after.attack_success_rate <= 0.15
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05
    assert "path_rho=0.3" in outcome.settings
