import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_audit.data import CleanSet
from backdoor_audit.model.activations import NORMS
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.run.exhibits import activation_exhibit, exhibit, overlay
from backdoor_audit.triggers.perturbations import Additive, Smooth, Stripes, Warping
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects.colours import COLOUR_TARGET, COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import seeded, square_trigger
from tests.subjects.networks import random_network
from tests.subjects.rows import row_images, row_reader
from tests.subjects.unchanged import assert_unchanged, snapshot

SHAPES = {"grey": (1, 12, 10), "colour": (3, 12, 10)}
KINDS = ("patch", "blend", Additive(), Smooth(), Stripes(), Warping())


def trigger_of(kind, shape, target=1):
    if kind == "patch":
        return square_trigger(shape, target_class=target)
    if kind == "blend":
        return Trigger(torch.full((1, *shape[1:]), 0.2), torch.rand(shape, generator=seeded()), target)
    return kind.trigger(kind.initial(1, shape, seeded())[0], target, shape)


def subject_of(shape):
    network = random_network("small_cnn", classes=4, image_shape=shape)
    labels = torch.arange(4).repeat(6)
    return Classifier.wrap(network, image_shape=shape), CleanSet(torch.rand(24, *shape, generator=seeded(2)), labels)


def decoded(text):
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    return torch.tensor(np.asarray(picture)).reshape(picture.height, picture.width, -1).permute(2, 0, 1) / 255


def colour_exhibit(found=None, known=None):
    return activation_exhibit(colour_net(), colour_images(), found, known)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind if isinstance(kind, str) else type(kind).__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_kind_of_trigger_on_grey_and_colour_images_becomes_pictures_and_numbers(shape, kind):
    (subject, val), trigger = subject_of(shape), trigger_of(kind, shape)
    before = snapshot(subject.module)
    shown = exhibit(subject, val, trigger, detector="smooth")
    measured = activation_exhibit(subject, val, trigger)
    assert json.loads(json.dumps([shown, measured], allow_nan=False)) == [shown, measured]
    assert (shown["detector"], shown["target_class"]) == ("smooth", 1)
    assert [decoded(entry).shape[1:] for entry in shown["pictures"].values()] == [(12, 10)] * len(trigger.pictures())
    assert list(shown["pictures"]) == list(trigger.pictures())
    assert {decoded(entry["overlay"]).shape for entry in measured["grad_cam"]} == {(3, 12, 10)}
    assert shown == exhibit(subject, val, trigger, detector="smooth")
    assert measured == activation_exhibit(subject, val, trigger)
    assert_unchanged(before, subject.module)


def test_examples_are_the_first_image_of_four_other_classes_with_what_the_model_says():
    subject, val, trigger = colour_net(), colour_images(), colour_trigger()
    examples = exhibit(subject, val, trigger, detector="neural_cleanse")["examples"]
    assert [entry["label"] for entry in examples] == [0, 1, 3, 4]  # 2 is the target
    for entry in examples:
        image = val.images[val.labels == entry["label"]][:1]
        for name, batch in (("", image), ("_stamped", trigger.stamp(image))):
            probabilities = subject.logits(batch).softmax(dim=1)[0]
            assert entry[f"predicted{name}"] == int(probabilities.argmax())
            assert entry[f"confidence{name}"] == pytest.approx(float(probabilities.max()), rel=1e-5)
        assert entry["predicted"] == entry["label"]
        assert entry["predicted_stamped"] == COLOUR_TARGET


def test_an_example_shows_the_very_pixels_before_and_after():
    subject, val = subject_of(SHAPES["colour"])
    trigger = trigger_of("patch", SHAPES["colour"])
    entry = exhibit(subject, val, trigger, detector="patch_scan")["examples"][0]
    assert torch.allclose(decoded(entry["image"]), val.images[0], atol=0.5 / 255 + 1e-6)
    assert torch.allclose(decoded(entry["stamped"]), trigger.stamp(val.images[:1])[0], atol=0.5 / 255 + 1e-6)


def test_examples_of_one_source_class_are_its_first_four_images():
    subject, val, trigger = colour_net(), colour_images(), colour_trigger()
    examples = exhibit(subject, val, trigger, detector="source_scan", source=3)["examples"]
    sure = subject.logits(val.images[val.labels == 3][:4]).softmax(dim=1).max(dim=1).values
    assert [entry["label"] for entry in examples] == [3] * 4
    assert [entry["confidence"] for entry in examples] == pytest.approx(sure.tolist(), rel=1e-5)
    assert {entry["predicted_stamped"] for entry in examples} == {COLOUR_TARGET}
    assert exhibit(subject, val, trigger, detector="source_scan", source=99)["examples"] == []


def test_examples_can_be_left_out():
    shown = exhibit(colour_net(), colour_images(), colour_trigger(), detector="neural_cleanse", examples=False)
    assert shown["examples"] == []
    assert list(shown["pictures"]) == ["mask", "pattern", "pattern under the mask"]


def test_norms_are_those_of_the_stamped_images_of_other_classes():
    """Feature maps are the image's channels; the last one is black until the trigger lights 4 of its 36 pixels."""
    measured = colour_exhibit(colour_trigger())
    assert (measured["target_class"], measured["known"]) == (COLOUR_TARGET, False)
    assert (measured["layer"], measured["channels"]) == ("features", COLOURS + 1)
    lit = {norm: [measured["norms"][norm][group][COLOURS] for group in ("clean", "synthetic")] for norm in NORMS}
    assert lit == {"l1": [0, 4], "l2": [0, 2], "linf": [0, 1]}
    others = colour_images().without_class(COLOUR_TARGET).images
    expected = float(others[:, 0].flatten(1).amax(dim=1).mean())
    assert measured["norms"]["linf"]["clean"][0] == pytest.approx(expected, rel=1e-5)
    assert list(measured["norms"]["l1"]) == ["clean", "synthetic"]
    assert measured["separation"]["linf"] > measured["separation"]["l1"]  # a black square darkens every other channel


def test_a_map_lies_on_the_trigger_as_far_as_the_score_comes_from_there():
    val, trigger = colour_images().without_class(COLOUR_TARGET).sample(32, seed=0), colour_trigger()
    entries = {(entry["input"], entry["label"]): entry for entry in colour_exhibit(trigger)["grad_cam"]}
    assert list(entries) == [("clean", "true"), ("clean", "target"), ("synthetic", "true"), ("synthetic", "target")]
    assert [entry["area"] for entry in entries.values()] == pytest.approx([4 / 36] * 4, rel=1e-5)
    stamped = trigger.stamp(val.images)
    mass = (stamped[:, COLOUR_TARGET] + stamped[:, COLOURS]).flatten(1).sum(dim=1)
    assert entries["synthetic", "target"]["inside"] == pytest.approx(float((4 / mass).mean()), rel=1e-5)
    assert entries["synthetic", "true"]["inside"] == 0  # the trigger is black in that channel
    assert entries["synthetic", "target"]["class"] == COLOUR_TARGET
    assert entries["synthetic", "true"]["class"] == 0  # of the first image


def test_with_a_known_trigger_there_are_four_inputs_and_eight_settings():
    found = Trigger(colour_trigger().mask.roll(3, dims=2), colour_trigger().pattern, COLOUR_TARGET)
    measured = colour_exhibit(found, colour_trigger())
    assert measured["known"] is True
    assert list(measured["norms"]["l2"]) == ["clean", "synthetic", "known", "both"]
    assert measured["norms"]["l1"]["both"][COLOURS] == 8
    areas = {entry["input"]: entry["area"] for entry in measured["grad_cam"]}
    assert areas == pytest.approx({"clean": 8 / 36, "synthetic": 4 / 36, "known": 4 / 36, "both": 8 / 36}, rel=1e-5)
    assert len(measured["grad_cam"]) == 8


def test_a_known_trigger_alone_stands_for_itself():
    measured = colour_exhibit(known=colour_trigger())
    assert measured["known"] is True
    assert list(measured["norms"]["l1"]) == ["clean", "known"]
    assert measured["separation"] == colour_exhibit(colour_trigger())["separation"]
    with pytest.raises(ValueError, match="found, known, or both"):
        colour_exhibit()


def test_a_trigger_without_a_place_has_no_share_inside():
    blend = Trigger(torch.full((1, 6, 6), 0.2), colour_trigger().pattern, COLOUR_TARGET)
    entries = colour_exhibit(blend, colour_trigger())["grad_cam"]
    known = {entry["input"] for entry in entries if entry["inside"] is not None}
    assert known == {entry["input"] for entry in entries if entry["area"] is not None} == {"known"}


def brightest(image, channel):
    """The image with nothing but one channel, as bright as can be: a weaker trigger does not move it."""
    alone = torch.zeros_like(image)
    alone[channel] = 1
    return alone


@pytest.mark.parametrize(
    "first", [lambda val: val.images[-1], lambda val: brightest(val.images[0], 0)], ids=["wrong", "not moved"]
)
def test_the_image_shown_is_one_on_which_the_trigger_works(first):
    """The network is wrong about the first image without any trigger, or right about it with the trigger as well."""
    val, trigger = colour_images(per_class=4), colour_trigger()
    changed = CleanSet(val.images.clone(), val.labels)
    changed.images[0] = first(val)
    weaker = Trigger(trigger.mask, 0.9 * trigger.pattern, COLOUR_TARGET)
    drawn = decoded(activation_exhibit(colour_net(), changed, weaker)["grad_cam"][0]["overlay"])
    assert torch.allclose(drawn, overlay(val.images[1], val.images[1, 0]), atol=0.5 / 255 + 1e-5)


def test_without_a_feature_map_the_entry_says_so():
    measured = activation_exhibit(row_reader(), row_images(), square_trigger((1, 8, 8), target_class=3))
    assert measured == {
        "target_class": 3,
        "unavailable": "this network does not end in a feature map followed by linear layers",
    }


def test_without_images_of_other_classes_the_entry_says_so():
    val = colour_images()
    own = CleanSet(val.images[val.labels == COLOUR_TARGET], val.labels[val.labels == COLOUR_TARGET])
    measured = activation_exhibit(colour_net(), own, colour_trigger())
    assert measured == {"target_class": COLOUR_TARGET, "unavailable": "no held-out image of another class"}


@pytest.mark.parametrize("channels", [1, 3])
def test_an_overlay_gets_brighter_with_the_map(channels):
    image = torch.full((channels, 1, 50), 0.4)
    drawn = overlay(image, torch.linspace(0, 2, 50).unsqueeze(0))
    assert drawn.shape == (3, 1, 50)
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    luminance = (drawn * torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)).sum(dim=0)[0]
    assert bool((luminance.diff() > 0).all())
    assert float(drawn[2, 0, 0]) > float(drawn[0, 0, 0])  # blue is none
    assert float(drawn[2, 0, -1]) < float(drawn[0, 0, -1])  # yellow is the most


def test_an_empty_map_is_blue_all_over():
    drawn = overlay(torch.zeros(1, 2, 2), torch.zeros(2, 2))
    assert torch.equal(drawn, drawn[:, :1, :1].expand(3, 2, 2))
    assert float(drawn[2, 0, 0]) > float(drawn[0, 0, 0])
