import statistics

import pytest
import torch
from torch.nn import functional

from backdoor_audit.repairs import DistilledUnlearning
from backdoor_audit.repairs.distilled_unlearning import _between
from tests.subjects import seeded
from tests.subjects.textured import backdoored, corner_patch, repair, textures


def test_what_lies_between_images_is_on_the_line_from_each_to_another():
    images = torch.rand(30, 2, 4, 4, generator=seeded(1))
    between = _between(images, seeded(2))
    assert between.shape == images.shape
    assert not torch.equal(between, images)
    mates = images[(images.flatten(1)[:, None] - between.flatten(1)[None]).abs().amax(2).argmin(0)]
    off = (between - images).flatten(1)
    for number, step in enumerate(off):
        ways = (images - images[number]).flatten(1)
        cosines = functional.cosine_similarity(ways, step[None], dim=1)
        assert float(step.norm()) < 1e-5 or float(cosines.max()) > 0.999
    assert torch.equal(_between(images, seeded(2)), between)
    assert len(mates) == 30


@pytest.mark.parametrize("mixed", [True, False])
def test_the_trigger_is_unlearned_with_images_between_and_without(mixed):
    outcome = repair(DistilledUnlearning(mixed=mixed), trigger=corner_patch()).outcome
    assert outcome.before.attack_success_rate >= 0.9
    assert outcome.after.attack_success_rate <= 0.15
    assert f"mixed={mixed}" in outcome.settings
    assert ("between" in outcome.note) is mixed


def test_a_copy_that_learned_between_images_stays_closer_to_the_model_on_unseen_ones():
    model, unseen = backdoored(), textures(100, seed=9).images

    def distance(mixed, seed):
        copy = repair(DistilledUnlearning(mixed=mixed), trigger=corner_patch(), seed=seed).classifier
        wanted, given = (network.logits(unseen).log_softmax(1) for network in (model, copy))
        return float(functional.kl_div(given, wanted, log_target=True, reduction="batchmean"))

    seeds = range(4)
    with_them, without = ([distance(mixed, seed) for seed in seeds] for mixed in (True, False))
    assert statistics.mean(with_them) < 0.8 * statistics.mean(without)
