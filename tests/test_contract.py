"""What every detector and every result keeps to; a new one is tested by standing in its tuple."""

import re
import sys
from dataclasses import fields, is_dataclass, replace
from functools import cache

import pytest
import torch
from torch.nn import functional

from backdoor_audit import attacks, canary, detectors, filters, properties, readings, repairs
from backdoor_audit.catalogue import Catalogue
from backdoor_audit.detectors import DETECTORS, Natural, compares
from backdoor_audit.model.classifier import Classifier, hooked
from backdoor_audit.model.subject import Subject
from backdoor_audit.readings import READINGS
from backdoor_audit.repairs import REPAIRS, RepairResult, judged_by
from backdoor_audit.search import anomaly
from tests.subjects import assert_same, random_network, row_images, seeded, snapshot, square_trigger
from tests.subjects.detections import Shown

SHIPPED = Catalogue.shipped()
METHODS = (*DETECTORS, *REPAIRS)
PUBLISHED = (*REPAIRS, *SHIPPED.filters, *READINGS)
ROOMS = (canary, detectors, filters, properties, readings, repairs)
PARTS = (*DETECTORS, *SHIPPED.properties, *SHIPPED.canaries, *PUBLISHED)
SHAPE = (1, 8, 8)
BRIEF = {"steps": 6, "mask_steps": 6, "screening_steps": 2, "epochs": 2, "batch_size": 8}


def named(methods):
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


def brief(method):
    """The same method with little effort."""
    known = {entry.name for entry in fields(method)}
    changes = {name: value for name, value in BRIEF.items() if name in known}
    return replace(method, **changes, **({"probe": brief(method.probe)} if "probe" in known else {}))


def images(seed=0):
    return row_images(classes=5, per_class=6, seed=seed)


def subject():
    """Convolutions, batch norm, dropout and two linear layers, the last fitted by least squares: it predicts every class."""
    clean = images()
    classifier = Classifier.wrap(random_network("small_vgg"), image_shape=SHAPE, mean=(0.3,), std=(0.3,))
    last, seen = classifier.module.linear, []
    with hooked(last, lambda _module, inputs: seen.append(inputs[0]), pre=True):
        classifier.logits(clean.images)
    seen = torch.cat([seen[0], torch.ones(len(clean), 1)], dim=1)
    fitted = torch.linalg.lstsq(seen, 10 * functional.one_hot(clean.labels).float()).solution.T
    with torch.no_grad():
        last.weight.copy_(fitted[:, :-1])
        last.bias.copy_(fitted[:, -1])
    return classifier


def twins(rows):
    """What clean networks would show to a detector: random numbers."""
    margins, success = (torch.rand(3, rows, generator=seeded(number)) for number in (8, 9))
    return Natural(margins, success, torch.zeros(3, rows), 1)


def run(method, classifier, seed=1):
    generator = seeded(seed)
    if method in DETECTORS:
        found = [run(entry, classifier, seed) for entry in DETECTORS if entry.name in method.builds_on]
        rows = len(method.probes) if method.name == "relabelling" else 5
        asked = {"reference": Shown(twins(rows)), "found": found, "progress": False}
        return brief(method)(Subject(classifier, images(), images(5)), generator=generator, **asked)
    if method in SHIPPED.filters:
        return method(
            Subject(classifier, images(), images(5)), square_trigger(SHAPE, target_class=2), generator=generator
        )
    if method in READINGS:
        return brief(method).measure(classifier, images(), images(5), generator=generator)
    subject_ = Subject(classifier, images(), images(5))
    return brief(method)(subject_, square_trigger(SHAPE, target_class=2), generator=generator)


@cache
def carried_out(method):
    """What came of the method, and how the model was before and after: for all who only look."""
    torch.manual_seed(1)
    classifier = subject()
    before = snapshot(classifier.module)
    return run(method, classifier), before, snapshot(classifier.module)


@named(PARTS)
def test_the_settings_line_makes_the_same_object_again(method):
    home = next(room for room in ROOMS if type(method).__module__.startswith(f"{room.__name__}."))
    scope = {name: getattr(room, name) for room in (attacks, home) for name in room.__all__}
    assert eval(repr(method), {"__builtins__": {}}, scope) == method  # noqa: S307 - our own repr
    assert "\n" not in repr(method)
    assert is_dataclass(method)
    assert type(method).__dataclass_params__.frozen


def test_names_are_unique_and_fit_a_test_id():
    names = [method.name for method in PARTS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)


@named(PARTS)
def test_a_part_says_what_it_does_and_one_that_others_have_published_names_its_source(method):
    told = type(method).__doc__
    assert re.match(r"[A-Z][^\n]+[.:]?", told)
    if method in PUBLISHED:
        assert re.search(r"\b(19|20)\d\d\b|arXiv", f"{told} {sys.modules[type(method).__module__].__doc__}")


def test_the_detectors_of_a_run_share_its_false_alarms():
    assert len(DETECTORS) == anomaly.DETECTORS_IN_A_RUN


@named((*METHODS, *SHIPPED.filters, *READINGS))
def test_a_method_leaves_the_model_as_it_found_it(method):
    _, before, after = carried_out(method)
    assert_same(before, after)


@named(METHODS)
def test_the_same_seed_gives_the_same_result_whatever_the_global_random_state(method):
    first, _, _ = carried_out(method)
    torch.manual_seed(2)
    second = run(method, subject())
    if isinstance(first, RepairResult):
        assert first.outcome == second.outcome
        assert torch.equal(first.classifier.logits(images().images), second.classifier.logits(images().images))
        return
    packed = [result.pack() for result in (first, second)]
    assert packed[0].values == packed[1].values
    assert packed[0].tensors.keys() == packed[1].tensors.keys()
    assert all(torch.equal(tensor, packed[1].tensors[name]) for name, tensor in packed[0].tensors.items())


@named((*SHIPPED.filters, *READINGS))
def test_filters_and_readings_depend_on_the_seed_alone(method):
    first, _, _ = carried_out(method)
    torch.manual_seed(2)
    second = run(method, subject())
    if method in READINGS:
        assert (first.detector, first.settings) == (method.name, repr(brief(method)))
        assert first == second
    else:
        held_out = images(7).images
        assert torch.equal(first.scores(held_out), second.scores(held_out))
        assert first.false_positive_rate == method.false_positive_rate


@named(DETECTORS)
def test_a_detection_names_its_detector_and_has_a_row_for_every_class(method):
    detection, _, _ = carried_out(method)
    once, twice = brief(method), brief(method).with_effort(2) if compares(method) else method
    assert detection.detector == method.name
    assert detection.settings in (repr(once), repr(twice))  # the latter if it had not converged
    assert tuple(score.target_class for score in detection.scores) == method.targets(5)
    assert method.targets(5) in (tuple(range(5)), (None,))
    assert detection.rows == method.rows
    asks_for_one = method.rows == "target" and method.targets(5) != (None,)
    assert [trigger.target_class for trigger in detection.triggers] == (list(range(5)) if asks_for_one else [])
    assert list(detection.blind_spots) == list(method.blind_spots)
    assert (detection.image_passes > 0) is not bool(method.builds_on)
    assert (method.cost(SHAPE, 5, 30).passes > 0) is not bool(method.builds_on)


@named(REPAIRS)
def test_an_outcome_names_its_method_and_the_repair_is_frozen(method):
    result, _, _ = carried_out(method)
    outcome = result.outcome
    assert (outcome.method, outcome.settings, outcome.target_class) == (method.name, repr(brief(method)), 2)
    assert outcome.before is not None
    assert outcome.note
    assert not any(part.training for part in result.classifier.module.modules())
    assert not any(parameter.requires_grad for parameter in result.classifier.module.parameters())


@named([entry for entry in REPAIRS if not entry.needs_trigger])
def test_a_repair_that_needs_no_trigger_is_the_same_whatever_trigger_it_is_judged_by(method):
    first, _, _ = carried_out(method)
    second = brief(method)(
        Subject(subject(), images(), images(5)), square_trigger(SHAPE, target_class=4), generator=seeded(1)
    )
    assert (first.outcome.target_class, second.outcome.target_class) == (2, 4)
    assert torch.equal(first.classifier.logits(images().images), second.classifier.logits(images().images))
    again = judged_by(first, Subject(subject(), images(), images(5)), square_trigger(SHAPE, target_class=4))
    assert (again.before, again.after, again.target_class) == (second.outcome.before, second.outcome.after, 4)
