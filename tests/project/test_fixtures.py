import json
import math

import numpy as np
import pytest
import torch

from backdoor_audit import Trigger, load_classifier, load_clean_set
from backdoor_audit.model.metrics import attack_success_rate, clean_accuracy, robust_accuracy
from fixtures import FOLDER, IMAGES, MODELS

SUBJECTS = {subject["name"]: subject for subject in json.loads((FOLDER / "subjects.json").read_text(encoding="utf-8"))}
BACKDOORED = [name for name, subject in SUBJECTS.items() if subject["attack"] != "none"]


@pytest.fixture(scope="module")
def images():
    return load_clean_set(str(IMAGES))


def tolerance(rate, number):
    """Four binomial standard errors of a rate measured on so many images, and never less than three images."""
    return max(4 * math.sqrt(rate * (1 - rate) / number), 3 / number)


def test_every_fixture_is_small_enough_for_a_repository():
    sizes = {
        file.name: file.stat().st_size for file in FOLDER.rglob("*") if file.suffix in (".safetensors", ".npz", ".json")
    }
    assert len(sizes) >= 10
    assert {name: size for name, size in sizes.items() if size > 450_000} == {}
    assert {name: size for name, size in sizes.items() if size > 200_000 and name.endswith(".safetensors")} == {}


def test_there_are_a_hundred_images_of_every_class(images):
    assert torch.bincount(images.labels).tolist() == [100] * 10
    assert images.image_shape == (1, 28, 28)
    assert len(images.class_names) == 10
    with np.load(IMAGES, allow_pickle=False) as stored:
        assert stored["images"].dtype == np.uint8


def test_models_triggers_and_the_table_agree_on_what_there_is():
    files = {file.name for file in MODELS.iterdir()}
    expected = {f"{name}.safetensors" for name in SUBJECTS} | {f"{name}.trigger.safetensors" for name in BACKDOORED}
    assert files == expected
    assert len(SUBJECTS) - len(BACKDOORED) >= 2


@pytest.mark.parametrize("name", SUBJECTS)
def test_clean_accuracy_is_what_the_table_says(name, images):
    classifier = load_classifier(MODELS / f"{name}.safetensors")
    assert classifier.architecture == SUBJECTS[name]["architecture"]
    expected = SUBJECTS[name]["clean_accuracy"]
    measured = clean_accuracy(classifier, images.images, images.labels)
    assert measured == pytest.approx(expected, abs=tolerance(expected, len(images)))


@pytest.mark.parametrize("name", BACKDOORED)
def test_the_planted_trigger_works_as_the_table_says(name, images):
    classifier = load_classifier(MODELS / f"{name}.safetensors")
    trigger = Trigger.load(MODELS / f"{name}.trigger.safetensors")
    assert trigger.target_class == SUBJECTS[name]["target_class"]
    for key, rate in (("attack_success_rate", attack_success_rate), ("robust_accuracy", robust_accuracy)):
        expected = SUBJECTS[name][key]
        measured = rate(classifier, images.images, images.labels, trigger)
        assert measured == pytest.approx(expected, abs=tolerance(expected, 900)), key


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name not in BACKDOORED])
@pytest.mark.parametrize("trigger_of", BACKDOORED)
def test_a_clean_model_does_not_answer_to_the_triggers_of_the_others(name, trigger_of, images):
    classifier = load_classifier(MODELS / f"{name}.safetensors")
    trigger = Trigger.load(MODELS / f"{trigger_of}.trigger.safetensors")
    assert attack_success_rate(classifier, images.images, images.labels, trigger) < 0.2
