import pytest
import torch
from torch import nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.fst import FeatureShiftTuning
from tests.subjects.textured import SHAPE, assert_honest, backdoored, repair


def heads(result):
    return [subject.module.linear.weight.detach().flatten() for subject in (result.classifier, backdoored())]


def test_the_repair_is_honest():
    outcome = assert_honest(FeatureShiftTuning(epochs=5))
    assert outcome.note.startswith("5 epochs over 100 clean images with a new layer 'linear'; cosine to the old one ")


def test_the_new_layer_is_as_long_as_the_old_one_and_points_elsewhere():
    new, old = heads(repair(FeatureShiftTuning(epochs=5)))
    assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-5)
    assert float(nn.functional.cosine_similarity(new, old, dim=0)) < 0.5


def test_alpha_turns_the_layer_further():
    cosines = [
        float(nn.functional.cosine_similarity(*heads(repair(FeatureShiftTuning(alpha=alpha))), dim=0))
        for alpha in (0.0, 1.0)
    ]
    assert cosines[1] < cosines[0] - 0.1


def test_the_backdoor_goes_at_a_low_price():
    outcome = repair(FeatureShiftTuning(learning_rate=0.1)).outcome
    assert outcome.before.attack_success_rate >= 0.9
    assert outcome.after.attack_success_rate <= 0.3
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05


def test_it_does_not_apply_without_a_linear_head():
    module = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    result = repair(FeatureShiftTuning(), Classifier.wrap(module, image_shape=SHAPE))
    assert result.classifier is None
    assert result.outcome.not_applicable == "this network does not end in a linear layer"


def test_a_transformer_can_be_tuned():
    outcome = repair(FeatureShiftTuning(epochs=3), backdoored("small_vit")).outcome
    assert outcome.after.clean_accuracy >= 0.6
    assert torch.isfinite(torch.tensor(outcome.after.attack_success_rate))
