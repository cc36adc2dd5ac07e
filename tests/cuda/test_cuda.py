"""What only a card can show; left out without one."""

import pytest
import torch

from backdoor_audit.data import load_clean_set
from backdoor_audit.detectors import DETECTORS, NeuralCleanse, compares
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import clean_accuracy
from backdoor_audit.model.subject import Subject
from backdoor_audit.search.twin_recipe import OWN_ARCHITECTURE
from fixtures import IMAGES, MODELS
from tests.subjects import random_network, seeded

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


@pytest.fixture(scope="module")
def both():
    """One network on the CPU and on the card, and clean images."""
    clean = load_clean_set(str(IMAGES)).sample(200, seed=0)
    network = random_network("small_cnn", classes=10, image_shape=clean.image_shape, width=8)
    return [Classifier.wrap(network, image_shape=clean.image_shape, device=name) for name in ("cpu", "cuda")], clean


def test_scores_are_those_of_the_cpu(both):
    (here, there), clean = both
    assert torch.allclose(here.logits(clean.images), there.logits(clean.images).cpu(), atol=1e-3)


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda entry: entry.name)
def test_searches_run_on_the_card_and_find_what_the_cpu_finds(detector, both):
    networks, clean = both
    subjects = [Subject(entry, *clean.split(0)) for entry in networks]
    if detector.name == NeuralCleanse.name:
        found = [NeuralCleanse(steps=60)(entry, generator=seeded()) for entry in subjects]
        sizes = [torch.tensor([row.measured.size for row in detection.scores]) for detection in found]
        assert torch.corrcoef(torch.stack(sizes))[0, 1] > 0.5
    elif compares(detector):
        margins = [detector.natural([entry], generator=seeded()).margins.flatten() for entry in subjects]
        assert torch.allclose(*margins, atol=0.3)


def test_twins_learn_on_the_card(both):
    (_, there), _ = both
    clean = load_clean_set(str(IMAGES))
    twins = OWN_ARCHITECTURE(
        clean, num_classes=10, mean=(0.3,), std=(0.3,), device="cuda", generator=seeded(), like=there
    )
    assert not twins.reason
    for twin in twins.classifiers:
        assert twin.device.type == "cuda"
        assert clean_accuracy(twin, clean.images, clean.labels) > 0.6


def test_a_fixture_is_as_accurate_as_on_the_cpu():
    from backdoor_audit.model.loading import load_model

    clean = load_clean_set(str(IMAGES))
    classifier = load_model(MODELS / "clean.safetensors").classifier(clean.image_shape, torch.device("cuda"))
    assert clean_accuracy(classifier, clean.images, clean.labels) > 0.88
