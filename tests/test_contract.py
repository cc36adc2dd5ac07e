"""What every detector and every mitigation keeps to; a new one is tested by standing in its tuple."""

from dataclasses import fields, replace

import pytest
import torch

from backdoor_audit import detectors, mitigations
from backdoor_audit.classifier import Classifier
from backdoor_audit.detectors import DETECTORS, Detection
from backdoor_audit.mitigations import MITIGATIONS, Mitigation
from tests.subjects import assert_unchanged, random_network, row_images, seeded, snapshot, square_trigger

METHODS = (*DETECTORS, *MITIGATIONS)
SHAPE = (1, 8, 8)
BRIEF = {"steps": 6, "epochs": 2, "batch_size": 8}


def named(methods):
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


def brief(method):
    """The same method with little effort."""
    known = {entry.name for entry in fields(method)}
    return replace(method, **{name: value for name, value in BRIEF.items() if name in known})


def subject():
    """Convolutions, batch norm, dropout and two linear layers."""
    return Classifier.wrap(random_network("small_vgg"), image_shape=SHAPE, mean=(0.3,), std=(0.3,))


def run(method, classifier, seed=1):
    opt, val = row_images(classes=5, per_class=6), row_images(classes=5, per_class=6, seed=5)
    generator = seeded(seed)
    if method in DETECTORS:
        return brief(method)(classifier, opt, val, generator=generator)
    return brief(method)(classifier, opt, val, square_trigger(SHAPE, target_class=2), generator=generator)


@named(METHODS)
def test_the_settings_line_makes_the_same_object_again(method):
    scope = {name: getattr(package, name) for package in (detectors, mitigations) for name in package.__all__}
    assert eval(repr(method), {"__builtins__": {}}, scope) == method  # noqa: S307 - our own repr
    assert "\n" not in repr(method)


def test_names_are_unique_and_fit_a_test_id():
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)


@named(METHODS)
def test_a_method_leaves_the_model_as_it_found_it(method):
    classifier = subject()
    before = snapshot(classifier.module)
    run(method, classifier)
    assert_unchanged(before, classifier.module)


@named(METHODS)
def test_the_same_seed_gives_the_same_result_whatever_the_global_random_state(method):
    torch.manual_seed(1)
    first = run(method, subject())
    torch.manual_seed(2)
    second = run(method, subject())
    packed = [(result if isinstance(result, Detection) else result.outcome).pack() for result in (first, second)]
    assert packed[0].values == packed[1].values
    assert packed[0].tensors.keys() == packed[1].tensors.keys()
    assert all(torch.equal(tensor, packed[1].tensors[name]) for name, tensor in packed[0].tensors.items())
    if isinstance(first, Mitigation):
        images = row_images(classes=5).images
        assert torch.equal(first.classifier.logits(images), second.classifier.logits(images))


@named(DETECTORS)
def test_a_detection_names_its_detector_and_has_a_row_for_every_class(method):
    detection = run(method, subject())
    assert (detection.detector, detection.settings) == (method.name, repr(brief(method)))
    assert [score.target_class for score in detection.scores] == list(range(5))
    assert [trigger.target_class for trigger in detection.triggers] == list(range(5))
    assert list(detection.blind_spots) == list(method.blind_spots)
    assert detection.image_passes > 0


@named(MITIGATIONS)
def test_an_outcome_names_its_method_and_the_repair_is_frozen(method):
    mitigation = run(method, subject())
    outcome = mitigation.outcome
    assert (outcome.method, outcome.settings, outcome.target_class) == (method.name, repr(brief(method)), 2)
    assert outcome.before is not None
    assert outcome.note
    assert not any(part.training for part in mitigation.classifier.module.modules())
    assert not any(parameter.requires_grad for parameter in mitigation.classifier.module.parameters())
