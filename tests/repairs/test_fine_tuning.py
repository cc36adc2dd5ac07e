import torch

from backdoor_audit.model.training import fit
from backdoor_audit.repairs.fine_tuning import FineTuning
from backdoor_audit.repairs.outcome import score
from tests.subjects import seeded
from tests.subjects.textured import assert_honest, backdoored, corner_patch, repair, textures


def test_the_subjects_are_accurate_and_backdoored():
    for name in ("small_cnn", "small_vit"):
        scores = score(backdoored(name), textures(50, seed=2), corner_patch())
        assert scores.clean_accuracy >= 0.85
        assert scores.attack_success_rate >= 0.9


def test_gentle_fine_tuning_keeps_the_backdoor_and_says_so():
    outcome = assert_honest(FineTuning(epochs=5))
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.04
    assert outcome.after.attack_success_rate >= 0.9
    assert outcome.note == "5 epochs over 100 clean images"


def test_a_high_learning_rate_removes_it():
    outcome = repair(FineTuning(learning_rate=0.1)).outcome
    assert outcome.after.attack_success_rate <= 0.3
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.06


def test_transformers_can_be_fine_tuned():
    outcome = repair(FineTuning(), backdoored("small_vit")).outcome
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.04
    assert outcome.after.attack_success_rate <= outcome.before.attack_success_rate - 0.3


def test_it_is_plain_training_on_the_clean_images():
    expected, opt = backdoored().copy(), textures(25, seed=1)
    fit(
        expected,
        opt.images,
        opt.labels,
        epochs=2,
        learning_rate=0.03,
        batch_size=20,
        weight_decay=0.01,
        generator=seeded(0),
    )
    method = FineTuning(epochs=2, learning_rate=0.03, batch_size=20, weight_decay=0.01, augment=False)
    repaired = repair(method).classifier
    for found, wanted in zip(repaired.module.state_dict().values(), expected.module.state_dict().values(), strict=True):
        assert torch.equal(found, wanted)
