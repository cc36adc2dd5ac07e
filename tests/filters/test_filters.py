import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from backdoor_audit import CleanSet, Trigger, load_classifier, load_clean_set
from backdoor_audit.errors import DataFormatError, ModelFormatError, OptionError
from backdoor_audit.filters import (
    Activation,
    ActivationFilter,
    FilterRates,
    Novelty,
    NoveltyFilter,
    Strip,
    StripFilter,
    filter_rates,
)
from backdoor_audit.filters import strip as strip_module
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.model.subject import Subject
from fixtures import IMAGES, MODELS
from tests.subjects.brightness import by_brightness, grey_images
from tests.subjects.colours import COLOUR_SHAPE, COLOUR_TARGET, COLOURS, colour_images, colour_net, colour_trigger
from tests.subjects.common import quick, seeded, square_trigger
from tests.subjects.networks import Computed, random_network
from tests.subjects.rows import row_images
from tests.subjects.unchanged import assert_unchanged, snapshot

PIXEL = (1, 1, 2)


def pixel_reader():
    """A linear network on two pixels; its penultimate neurons are the pixels themselves."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    return Classifier.wrap(module, image_shape=PIXEL)


def pixel_images(values):
    """The first pixel has these values, the second one is black."""
    images = torch.zeros(len(values), *PIXEL)
    images[:, 0, 0, 0] = torch.tensor(values)
    return CleanSet(images, torch.arange(len(values)) % 2)


def pixel_filter(values, rate):
    """Watches the first pixel, so its scores are the values."""
    trigger = Trigger(torch.tensor([[[1.0, 0.0]]]), torch.ones(PIXEL), 1)
    return ActivationFilter.fit(pixel_reader(), pixel_images(values), trigger, false_positive_rate=rate)


def computed(function, image_shape=(1, 4, 4)):
    return Classifier.wrap(Computed(function), image_shape=image_shape)


def greys(number, *, low=0.0, high=1.0, classes=2):
    return CleanSet(grey_images(torch.linspace(low, high, number).tolist()), torch.arange(number) % classes)


def sure_colour_net():
    """The trigger outweighs every colour even at half its strength."""
    subject = colour_net()
    subject.module.linear.weight[COLOUR_TARGET, COLOURS] = 60.0
    return subject


def colour_filter(kind, subject, **settings):
    if kind is ActivationFilter:
        return ActivationFilter.fit(subject, colour_images(), colour_trigger(), **settings)
    if kind is NoveltyFilter:
        return NoveltyFilter.fit(subject, colour_images(), **settings)
    return StripFilter.fit(subject, colour_images(), generator=seeded(), overlays=16, **settings)


EVERY = pytest.mark.parametrize("kind", [ActivationFilter, StripFilter, NoveltyFilter], ids=lambda kind: kind.__name__)


# what an audit fits


@pytest.mark.parametrize(
    ("method", "kind", "settings"),
    [
        (Activation(), ActivationFilter, {}),
        (Activation(false_positive_rate=0.2, share=0.5), ActivationFilter, {"false_positive_rate": 0.2, "share": 0.5}),
        (Strip(overlays=16), StripFilter, {}),
        (Strip(false_positive_rate=0.2, overlays=16), StripFilter, {"false_positive_rate": 0.2}),
        (Novelty(), NoveltyFilter, {}),
        (Novelty(false_positive_rate=0.2, neighbours=2), NoveltyFilter, {"false_positive_rate": 0.2, "neighbours": 2}),
    ],
    ids=repr,
)
def test_a_method_fits_on_the_images_to_search_with_and_by_its_own_settings(method, kind, settings):
    subject, images = sure_colour_net(), colour_images(seed=5).images
    held_out = colour_images().sample(8, seed=0)
    fitted = method(Subject(subject, colour_images(), held_out), colour_trigger(), generator=seeded())
    expected = colour_filter(kind, subject, **settings)
    assert (fitted.threshold, fitted.false_positive_rate) == (expected.threshold, expected.false_positive_rate)
    assert torch.equal(fitted.scores(images), expected.scores(images))


# the threshold


@pytest.mark.parametrize(
    ("number", "rate", "rejected"),
    [(40, 0.05, 2), (40, 0.06, 2), (40, 0.1, 4), (20, 0.05, 1), (100, 0.29, 29), (100, 0.07, 7), (10, 1 - 1e-12, 9)],
)
def test_exactly_the_wanted_share_of_distinct_fitting_images_is_rejected(number, rate, rejected):
    values = torch.rand(number, generator=seeded()).tolist()
    suspicious = pixel_filter(values, rate).suspicious(pixel_images(values).images)
    assert suspicious.sum() == rejected
    assert set(np.flatnonzero(suspicious)) == set(np.argsort(values)[number - rejected :])


@quick
@given(
    st.lists(st.integers(0, 4), min_size=10, max_size=40), st.sampled_from([Fraction(k, 20) for k in range(2, 20, 3)])
)
def test_with_ties_no_more_are_rejected_and_no_lower_threshold_would_do(values, rate):
    values = [value / 8 for value in values]
    fitted = pixel_filter(values, float(rate))
    allowed = math.floor(rate * len(values))  # exact, in fractions
    rejected = int(fitted.suspicious(pixel_images(values).images).sum())
    assert rejected == sum(value > fitted.threshold for value in values) <= allowed
    assert sum(value >= fitted.threshold for value in values) > allowed


@pytest.mark.parametrize("kind", [ActivationFilter, StripFilter])
def test_filters_keep_the_rule_on_a_network_with_distinct_scores(kind):
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    clean = row_images(classes=5)
    if kind is ActivationFilter:
        fitted = kind.fit(subject, clean, square_trigger((1, 8, 8), target_class=0), false_positive_rate=0.13)
    else:
        fitted = kind.fit(subject, clean, generator=seeded(), overlays=5, false_positive_rate=0.13)
    assert len(fitted.scores(clean.images).unique()) == 100
    assert fitted.suspicious(clean.images).sum() == 13


def test_a_score_that_is_not_a_number_does_not_pass():
    subject = computed(lambda images: torch.stack([(0.45 - images.mean(dim=(1, 2, 3))).sqrt()] * 2, dim=1))
    fitted = StripFilter.fit(subject, greys(20, high=0.4), generator=seeded(), overlays=4)
    assert fitted.suspicious(grey_images([0.2, 1.0])).tolist() == [False, True]


def test_clean_scores_that_are_not_finite_fit_no_filter():
    subject = computed(lambda images: torch.stack([(0.45 - images.mean(dim=(1, 2, 3))).sqrt()] * 2, dim=1))
    with pytest.raises(ModelFormatError, match="of 20 clean images have a score that is NaN or infinite"):
        StripFilter.fit(subject, greys(20), generator=seeded(), overlays=4)


# activations


def test_the_neuron_of_a_trigger_is_watched_and_separates_exactly():
    fitted = colour_filter(ActivationFilter, colour_net())
    assert (fitted.head, fitted.neurons.tolist()) == ("linear", [COLOURS])
    held_out = colour_images(seed=5)
    stamped = colour_trigger().stamp(held_out.images)
    assert torch.equal(fitted.scores(held_out.images), torch.zeros(80))
    assert torch.equal(fitted.scores(stamped), torch.ones(80))
    assert not fitted.suspicious(held_out.images).any()
    assert fitted.suspicious(stamped).all()


def test_neurons_are_ranked_by_how_much_the_trigger_raises_them_not_by_their_size():
    """A neuron that is always at 5 is larger than the trigger's, but the stamp does not move it."""
    subject = colour_net()
    subject.module.features[0].bias[4] = 5.0
    assert colour_filter(ActivationFilter, subject).neurons.tolist() == [COLOURS]


def test_the_score_is_the_mean_of_the_watched_share():
    mask, pattern = torch.ones(1, 6, 6), torch.zeros(COLOUR_SHAPE)
    pattern[[1, 6, 8]] = torch.tensor([0.6, 1.0, 0.8]).view(3, 1, 1)
    fitted = ActivationFilter.fit(colour_net(), colour_images(), Trigger(mask, pattern, 0), share=1 / 3)
    assert fitted.neurons.tolist() == [6, 8, 1]
    images = torch.zeros(2, *COLOUR_SHAPE)
    images[0, [1, 6, 8], 2, 2] = torch.tensor([0.25, 0.5, 0.75])
    images[1, 5] = 1
    assert fitted.scores(images).tolist() == [0.5, 0.0]


@dataclass(frozen=True)
class OneSource:
    """Claims images of class 0 only and lights the last channel; in all other images, which it does not claim, channel 5."""

    source_class: int = 0

    def stamp(self, images):
        stamped = images.clone()
        claimed = images[:, 0].amax(dim=(1, 2)) > 0.5
        stamped[claimed, COLOURS] = 0.3
        stamped[~claimed, 5] = 1
        return stamped

    def wanted(self, labels):
        return torch.full_like(labels, COLOUR_TARGET)

    def eligible(self, labels):
        return labels == self.source_class


def test_only_images_that_a_backdoor_claims_rank_the_neurons_and_count_as_missed():
    subject, held_out = colour_net(), colour_images(per_class=5, seed=5)
    fitted = ActivationFilter.fit(subject, colour_images(), OneSource())
    assert fitted.neurons.tolist() == [COLOURS]
    rates = filter_rates(fitted, subject, held_out, OneSource())
    assert (rates.false_negative_rate, rates.false_negative_rate.n) == (0.0, 5)
    assert (rates.false_positive_rate, rates.false_positive_rate.n) == (0.0, 40)


def test_a_head_that_is_applied_to_every_position_is_averaged():
    """Scores of all 16 positions come from one linear layer and are averaged, as are its inputs."""
    head = nn.Linear(2, 2)

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, images):
            pixels = images.flatten(2).transpose(1, 2)
            return self.head(torch.cat([pixels, 1 - pixels], dim=2)).mean(dim=1)

    subject = Classifier.wrap(Positions(), image_shape=(1, 4, 4))
    fitted = ActivationFilter.fit(subject, greys(20), square_trigger((1, 4, 4), target_class=1, size=4))
    assert fitted.neurons.tolist() == [0]
    images = torch.rand(3, 1, 4, 4, generator=seeded())
    assert torch.allclose(fitted.scores(images), images.mean(dim=(1, 2, 3)))


# strip


@pytest.mark.parametrize("classes", [2, 5])
def test_a_sure_network_has_entropy_0_and_an_undecided_one_the_logarithm_of_the_classes(classes):
    clean = greys(20)
    for height, entropy in ((1000.0, 0.0), (0.0, math.log(classes))):
        row = torch.zeros(classes)
        row[1] = height
        subject = computed(lambda images, row=row: row.expand(len(images), -1))
        fitted = StripFilter.fit(subject, clean, generator=seeded(), overlays=7)
        assert fitted.scores(clean.images).tolist() == pytest.approx([-entropy] * 20, abs=1e-6)
        assert not fitted.suspicious(clean.images).any()


def test_the_entropy_of_blends_worked_out_with_numpy():
    """Half the image plus half the overlay, then the network, then softmax, then the mean over the overlays."""
    subject = by_brightness(classes=4)
    fitted = StripFilter.fit(subject, greys(20), generator=seeded(), overlays=6)
    over = fitted.images_over.mean(dim=(1, 2, 3)).double().numpy()
    levels = np.array([0.0, 0.3, 0.55, 1.0])
    blends = 0.5 * levels[:, None] + 0.5 * over
    weights = np.exp(-100 * (blends[..., None] - np.array([0.125, 0.375, 0.625, 0.875])) ** 2)
    shares = weights / weights.sum(axis=-1, keepdims=True)
    expected = (shares * np.log(shares)).sum(axis=-1).mean(axis=-1)
    assert fitted.scores(grey_images(levels.tolist())).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("batch", [1, 15, 256])
def test_strip_scores_do_not_depend_on_the_batches(monkeypatch, batch):
    subject = by_brightness()
    fitted = StripFilter.fit(subject, greys(20), generator=seeded(), overlays=6)
    images = torch.rand(7, 1, 4, 4, generator=seeded(3))
    one_by_one = torch.cat([fitted.scores(image.unsqueeze(0)) for image in images])
    monkeypatch.setattr(strip_module, "_BATCH", batch)
    assert torch.allclose(fitted.scores(images), one_by_one, atol=1e-6)


def test_overlays_are_fitting_images_and_take_the_classes_in_turn():
    """Class 0 has 90 images, class 1 has seven, class 2 has three: each gives 21 or 22 overlays."""
    labels = torch.tensor([0] * 90 + [1] * 7 + [2] * 3)
    levels = torch.arange(100) / 100
    fitted = StripFilter.fit(by_brightness(), CleanSet(grey_images(levels.tolist()), labels), generator=seeded())
    chosen = [round(100 * float(image.mean())) for image in fitted.images_over]
    assert sorted(np.bincount(labels[chosen])) == [21, 21, 22]
    times = np.bincount(chosen, minlength=100)
    assert times[:90].max() == 1
    assert set(times[90:97]) <= {3, 4}
    assert set(times[97:]) <= {7, 8}


def test_overlays_are_drawn_from_the_generator_alone():
    subject, clean = by_brightness(), greys(40)
    first, again, other = (
        StripFilter.fit(subject, clean, generator=seeded(seed), overlays=8).images_over for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_strip_rejects_all_images_with_a_trigger_that_outweighs_the_overlay():
    subject, held_out = sure_colour_net(), colour_images(seed=5)
    rates = filter_rates(colour_filter(StripFilter, subject), subject, held_out, colour_trigger())
    assert (rates.false_negative_rate, rates.false_negative_rate.n) == (0.0, 70)
    assert rates.false_positive_rate < 0.2


def test_strip_misses_a_trigger_that_does_nothing_at_half_strength():
    """The trigger's neuron answers above 0.75 only: a stamped image always obeys, its blends never do."""
    subject, held_out = sure_colour_net(), colour_images(seed=5)
    subject.module.features[0].bias[COLOURS] = -0.75
    assert attack_success_rate(subject, held_out.images, held_out.labels, colour_trigger()) == 1.0
    rates = filter_rates(colour_filter(StripFilter, subject), subject, held_out, colour_trigger())
    assert rates.false_negative_rate > 0.8


# rates


@dataclass(frozen=True)
class BrightIsSuspicious:
    classifier: Classifier

    def scores(self, images):
        return images.mean(dim=(1, 2, 3))

    def suspicious(self, images):
        return self.scores(images) > 0.5


def test_rates_count_all_clean_images_and_the_stamped_ones_that_are_claimed():
    """One of five clean images is bright. Of the three that are not of class 1, a stamp of +0.25 lifts one over the limit."""
    subject = by_brightness()
    clean = CleanSet(grey_images([0.1, 0.2, 0.4, 0.3, 0.9]), torch.tensor([0, 2, 3, 1, 1]))
    trigger = Trigger(torch.full((1, 4, 4), 0.25), torch.ones(1, 4, 4), 1)
    rates = filter_rates(BrightIsSuspicious(subject), subject, clean, trigger)
    assert rates == FilterRates(false_positive_rate=1 / 5, false_negative_rate=2 / 3)
    assert (rates.false_positive_rate.hits, rates.false_positive_rate.n) == (1, 5)
    assert (rates.false_negative_rate.hits, rates.false_negative_rate.n) == (2, 3)


@EVERY
def test_no_claimed_image_is_no_rate(kind):
    subject = sure_colour_net()
    own = colour_images()
    only_target = CleanSet(own.images[own.labels == COLOUR_TARGET], own.labels[own.labels == COLOUR_TARGET])
    rates = filter_rates(colour_filter(kind, subject), subject, only_target, colour_trigger())
    assert rates.false_positive_rate.n == 10
    assert math.isnan(rates.false_negative_rate)
    assert rates.false_negative_rate.n == 0


def test_rates_of_a_filter_that_was_fitted_on_another_classifier_are_refused():
    with pytest.raises(ValueError, match="fitted on another classifier"):
        filter_rates(BrightIsSuspicious(by_brightness()), by_brightness(), greys(4), colour_trigger())


# bad input


@EVERY
@pytest.mark.parametrize("rate", [0.0, 1.0, -0.05, 5.0, math.nan])
def test_a_false_positive_rate_that_is_no_fraction_is_refused(kind, rate):
    with pytest.raises(OptionError, match=r"false_positive_rate must lie between 0 and 1, got .*not percent"):
        colour_filter(kind, colour_net(), false_positive_rate=rate)


@EVERY
@pytest.mark.parametrize(("rate", "least"), [(0.01, 100), (0.0123, 82)])
def test_too_few_clean_images_for_the_rate_are_refused(kind, rate, least):
    with pytest.raises(DataFormatError, match=f"80 clean images cannot show .* {rate}; give at least {least},"):
        colour_filter(kind, colour_net(), false_positive_rate=rate)
    assert colour_filter(kind, colour_net(), false_positive_rate=1 / 80).false_positive_rate == 1 / 80


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_a_share_of_neurons_that_is_no_fraction_is_refused(share):
    with pytest.raises(OptionError, match="share must lie above 0 and be at most 1"):
        colour_filter(ActivationFilter, colour_net(), share=share)


def test_strip_needs_an_overlay():
    with pytest.raises(OptionError, match="overlays must be at least 1, got 0"):
        StripFilter.fit(by_brightness(), greys(20), generator=seeded(), overlays=0)


def test_a_network_without_penultimate_layer_has_no_activation_filter():
    with pytest.raises(ModelFormatError, match=r"ByBrightness: no penultimate layer.*StripFilter does not"):
        ActivationFilter.fit(by_brightness(), greys(20), square_trigger((1, 4, 4), target_class=0))


def test_a_trigger_that_raises_no_neuron_is_refused():
    dark = Trigger(torch.ones(1, 6, 6), torch.zeros(COLOUR_SHAPE), 0)
    with pytest.raises(DataFormatError, match="the trigger raises none of the 9 neurons before 'linear'"):
        ActivationFilter.fit(colour_net(), colour_images(), dark)


def test_a_trigger_that_claims_no_image_is_refused():
    with pytest.raises(DataFormatError, match="the trigger claims none of the 80 images"):
        ActivationFilter.fit(colour_net(), colour_images(), OneSource(source_class=99))


@EVERY
def test_images_that_are_not_in_the_unit_interval_are_refused(kind):
    fitted = colour_filter(kind, colour_net())
    with pytest.raises(ValueError, match="divide by 255"):
        fitted.suspicious(torch.full((2, *COLOUR_SHAPE), 255.0))


@EVERY
def test_no_images_are_no_scores(kind):
    fitted = colour_filter(kind, colour_net())
    empty = torch.empty(0, *COLOUR_SHAPE)
    assert fitted.scores(empty).shape == fitted.suspicious(empty).shape == (0,)


@EVERY
def test_the_classifier_is_left_as_found(kind):
    subject = sure_colour_net()
    before = snapshot(subject.module)
    fitted = colour_filter(kind, subject)
    filter_rates(fitted, subject, colour_images(seed=5), colour_trigger())
    assert_unchanged(before, subject.module)
    assert not fitted.scores(colour_images().images).requires_grad


# trained models


@pytest.fixture(scope="module")
def halves():
    """500 images to fit on and 500 held out."""
    return load_clean_set(str(IMAGES)).split(0)


@pytest.mark.parametrize(
    ("share", "measured", "at_most"),
    [(0.01, "31 of 450", 0.12), (0.05, "2 of 450", 0.03)],
)
def test_a_real_backdoor_is_filtered_by_its_activations(halves, share, measured, at_most):
    fit, held_out = halves
    classifier = load_classifier(MODELS / "badnets.safetensors")
    trigger = Trigger.load(MODELS / "badnets.trigger.safetensors")
    fitted = ActivationFilter.fit(classifier, fit, trigger, share=share)
    assert len(fitted.neurons) == (1 if share == 0.01 else 3)  # of 64
    assert fitted.suspicious(fit.images).sum() == 25
    rates = filter_rates(fitted, classifier, held_out, trigger)
    assert (rates.false_positive_rate.n, rates.false_negative_rate.n) == (500, 450)
    assert rates.false_negative_rate < at_most, f"measured when written: {measured}"
    assert rates.false_positive_rate < 0.09  # 0.05 and four standard errors of 500 images
    ranking = [
        float(capture(classifier, fitted.head, images, inputs=True)[:, fitted.neurons[0]].mean())
        for images in (held_out.images, trigger.stamp(held_out.images))
    ]
    assert ranking[1] > 3 * ranking[0]  # section VI-A: 3 to 7 times


@pytest.mark.parametrize(("name", "low", "high"), [("blended", 0.0, 0.1), ("badnets", 0.5, 1.0)])
def test_strip_filters_a_blend_and_misses_a_small_patch_at_half_strength(halves, name, low, high):
    """Missed when written, over three seeds: none of 180 blended images, 78 to 87 % of those with a 3 px white patch."""
    fit, held_out = (half.sample(200, 0) for half in halves)
    classifier = load_classifier(MODELS / f"{name}.safetensors")
    trigger = Trigger.load(MODELS / f"{name}.trigger.safetensors")
    fitted = StripFilter.fit(classifier, fit, generator=seeded(), overlays=10)
    rates = filter_rates(fitted, classifier, held_out, trigger)
    assert rates.false_negative_rate.n == 180
    assert low <= rates.false_negative_rate <= high
    assert rates.false_positive_rate < 0.13
