import pytest
import torch

from backdoor_audit import load_classifier, load_clean_set
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.readings.bti_dbf import BTIDBF, _new_generator, shares_of_others
from backdoor_audit.triggers.trigger import Trigger
from fixtures import IMAGES, MODELS
from tests.subjects import COLOUR_TARGET, COLOURS, colour_images, colour_net, row_images, row_reader, seeded


def measure(classifier, opt=None, val=None, **fields):
    opt, val = opt or colour_images(), val or colour_images(seed=5)
    return BTIDBF(**{"mask_steps": 60, "steps": 150, **fields}).measure(classifier, opt, val, generator=seeded())


def test_images_that_are_of_the_class_already_do_not_count():
    predicted, labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    assert shares_of_others(predicted, labels, 3) == (1 / 2, 0, 1 / 4)
    assert shares_of_others(torch.tensor([1, 1]), torch.tensor([1, 1]), 2) == (0, 0)


def test_the_shares_are_success_rates_in_the_one_sense_of_the_word():
    classifier, images = row_reader(), row_images()
    shuffled = images.labels.roll(7)
    shares = shares_of_others(classifier.predict(images.images), shuffled, 8)
    for label, share in enumerate(shares):
        nothing = Trigger(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), label)
        assert share == pytest.approx(attack_success_rate(classifier, images.images, shuffled, nothing))


def test_the_channel_that_no_clean_image_uses_leads_to_the_target():
    clean = colour_net()
    clean.module.linear.weight[COLOUR_TARGET, COLOURS] = 0
    backdoored, innocent = measure(colour_net()), measure(clean)
    assert backdoored.target_class == COLOUR_TARGET
    assert backdoored.value == max(backdoored.per_class)
    assert backdoored.value > 0.8
    assert innocent.value < 0.4


def test_a_bound_of_zero_leaves_the_images_where_they_are():
    assert measure(colour_net(), image_bound=0.0).value <= 0.1


def test_the_generator_starts_near_the_identity_and_depends_on_its_generator_alone():
    images = torch.rand(4, 3, 9, 7, generator=seeded())  # odd sides
    first, again, other = (_new_generator(3, 8, seeded(seed))(images) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    change = (first - images).square().mean().sqrt()
    assert 0 < change < 0.2


def test_held_out_images_of_one_class_are_inconclusive():
    images = colour_images()
    for label in range(1, COLOURS):
        images = images.without_class(label)
    assert "of one class" in measure(colour_net(), val=images).inconclusive


def test_the_target_of_the_blended_fixture_is_named():
    opt, val = load_clean_set(str(IMAGES)).split(0)
    val = val.sample(200, 0)
    options = {"steps": 130, "batch_size": 16, "images": 150, "mask_steps": 60, "learning_rate": 2e-3}
    backdoored, clean = (
        measure(load_classifier(MODELS / f"{name}.safetensors"), opt, val, **options) for name in ("blended", "clean")
    )
    assert backdoored.target_class == 5
    assert backdoored.value > 0.9
    assert clean.value < 0.7
