"""What each property says of models with known answers."""

import json
import time
from dataclasses import replace
from functools import cache

import pytest
import torch

import backdoor_audit.properties.exact as exact_module
import backdoor_audit.properties.no_steering as no_steering_module
import backdoor_audit.properties.refit as refit_module
from backdoor_audit import budget
from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.errors import BudgetSpentError
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.properties import (
    PROPERTIES,
    BatchAndOrder,
    Counterexample,
    FaintBlends,
    HarmlessChanges,
    NoOpTrigger,
    NothingSteers,
    PropertyOutcome,
    Relabelling,
    SmallPatches,
    SmoothWarps,
    unanswered,
)
from backdoor_audit.properties.allowance import Allowance
from backdoor_audit.properties.exact import no_op_triggers
from backdoor_audit.properties.harmless import _shares
from backdoor_audit.properties.no_steering import _Candidate, _Reach
from backdoor_audit.properties.refit import Refit
from backdoor_audit.properties.shrinking import shrunk
from backdoor_audit.search.steering import Steering
from backdoor_audit.store import Packed
from backdoor_audit.triggers.perturbations import Additive, Window
from backdoor_audit.triggers.written import KINDS, Blend, Change, Numbers, Patch, Quantisation, Sinusoid, SmoothWarp
from fixtures import IMAGES, MODELS
from tests.subjects import Computed, assert_unchanged, random_network, row_images, row_reader, seeded, snapshot
from tests.subjects.asked import asked, subject

PATCHES = NothingSteers(changes=SmallPatches(), examples=100, steps=5, batch_size=6, measured=24, searched=48)
LONG = replace(PATCHES, examples=300)  # finds the pixel whatever a version of hypothesis draws first
BLENDS = NothingSteers(changes=FaintBlends(), examples=8, steps=12, batch_size=16)
WARPS = NothingSteers(changes=SmoothWarps(), examples=6, steps=12, batch_size=16, least_limit=0.5)
STEERING = (LONG, BLENDS, WARPS)

by_name = pytest.mark.parametrize("wanted", PROPERTIES, ids=lambda wanted: wanted.name)


@cache
def outcome_of(wanted, *backdoors):
    """What a property says of a reader of rows; asked once, for all who only look."""
    return asked(wanted, row_reader(backdoors=backdoors))


# every property


def test_names_are_unique_and_can_be_part_of_a_test_id():
    names = [wanted.name for wanted in PROPERTIES]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


@by_name
def test_a_clean_model_refutes_nothing(wanted):
    outcome = outcome_of(wanted)
    assert outcome.verdict is Verdict.PASS
    assert outcome.trigger is None
    assert outcome.value <= outcome.limit
    assert outcome.tried > 0


@by_name
def test_the_model_and_the_global_random_state_are_left_as_they_were(wanted):
    classifier, clean = row_reader(backdoors=(3,)), row_images()
    before, images = snapshot(classifier.module), clean.images.clone()
    asked(wanted, classifier, clean)
    assert_unchanged(before, classifier.module)
    assert torch.equal(clean.images, images)


@by_name
def test_the_same_seed_gives_the_same_outcome(wanted):
    assert asked(wanted, row_reader(backdoors=(1, 5))) == outcome_of(wanted, 1, 5)


@by_name
def test_an_outcome_comes_back_from_the_store_and_goes_into_the_record(wanted):
    outcome = outcome_of(wanted, 1, 5)
    packed = outcome.pack()
    assert PropertyOutcome.unpack(Packed({}, json.loads(json.dumps(packed.values)))) == outcome
    entry = outcome.summary((1, 8, 8), test="text")
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert list(entry) == ["name", "verdict", "reason", "statistic", "value", "limit", "spec", "picture", "test"]
    failed = outcome.verdict is Verdict.FAIL
    assert [entry[key] is not None for key in ("spec", "picture", "test")] == [failed] * 3
    assert outcome.finding.details["tried"] == outcome.tried


@by_name
def test_a_property_that_could_not_be_asked_is_inconclusive(wanted):
    outcome = unanswered(wanted, "too few images")
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert outcome.finding.reason == "too few images"
    assert outcome.statistic == outcome_of(wanted).statistic


# what twins allow


def test_twins_are_asked_once_and_only_about_what_would_be_too_far_otherwise():
    asked_about = []

    def natural(target):
        asked_about.append(target)
        return {1: 0.5, 2: 0.9}.get(target, 0.1)

    allowance = Allowance(0.7, 0.3, natural)
    assert not allowance.passed(0, 0.7)
    assert asked_about == []
    assert [allowance.passed(0, 0.71), allowance.passed(0, 0.9)] == [True, True]
    assert [allowance.passed(1, rate) for rate in (0.75, 0.8, 0.81)] == [False, False, True]
    assert not allowance.passed(2, 1.0)
    assert asked_about == [0, 1, 2]
    assert [allowance.limit(target) for target in range(4)] == pytest.approx([0.7, 0.8, 1.0, 0.7])
    assert allowance.details() == {"0": 0.1, "1": 0.5, "2": 0.9}


def test_what_is_usual_is_allowed_without_asking():
    allowance = Allowance(0.35, 0.2, usual=(0.0, 0.4))
    assert [allowance.limit(0), allowance.limit(1)] == pytest.approx([0.35, 0.6])
    assert [allowance.passed(0, 0.5), allowance.passed(1, 0.5)] == [True, False]


# nothing steers


@pytest.fixture(scope="module")
def images() -> CleanSet:
    return load_clean_set(IMAGES)


def test_the_hidden_patch_of_a_real_model_is_found_and_shrunk_without_knowing_it(images):
    classifier = load_classifier(MODELS / "badnets.safetensors")
    outcome = asked(PATCHES, classifier, images)
    assert outcome.verdict is Verdict.FAIL
    assert outcome.target_class == outcome.trigger.target_class == 7
    _, rows, columns = outcome.trigger.colours.shape
    assert rows * columns <= 9  # the attacker's own has 9 px; windows of 16 px were drawn
    assert outcome.details["strongest"] > 0.95
    _, val = images.split(0)
    assert outcome.value == attack_success_rate(classifier, val.images, val.labels, outcome.trigger)


def test_no_small_patch_steers_a_real_clean_model(images):
    few = NothingSteers(changes=SmallPatches(), examples=8, steps=5, batch_size=6, measured=24, searched=48)
    outcome = asked(few, load_classifier(MODELS / "clean.safetensors"), images)
    assert outcome.verdict is Verdict.PASS
    assert outcome.value < 0.2
    reached = outcome.details["reached"]
    assert len(reached) == 10
    assert reached[outcome.target_class] == max(reached)


def test_the_pixel_of_a_backdoored_model_is_found_and_is_white():
    outcome = outcome_of(LONG, 1, 5)
    assert outcome.verdict is Verdict.FAIL
    assert outcome.target_class in (1, 5)
    trigger = outcome.trigger
    assert trigger.colours == Numbers((1, 1, 1), (255,))
    assert (trigger.top, trigger.left) == (outcome.target_class, 7)
    assert trigger.opacity < 50
    assert f"a white patch of 1x1 px at row {trigger.top}, column 7 at opacity" in outcome.reason


@pytest.mark.parametrize(("wanted", "kind"), [(BLENDS, "change"), (WARPS, "warp")], ids=["blends", "warps"])
def test_a_faint_blend_and_a_warp_that_light_the_pixel_are_found(wanted, kind):
    outcome = asked(wanted, row_reader(backdoors=(3,)))
    assert outcome.verdict is Verdict.FAIL
    assert outcome.trigger.kind == kind
    assert outcome.target_class == 3
    assert outcome.value > outcome.limit == wanted.least_limit


def beside_the_pixel(success):
    """What a search would have found two pixels from that of class 1, and how near it came."""
    window = Window(top=1, left=5, height=1, width=1)
    trigger = window.trigger(torch.ones(1, 1, 1), 1, (1, 8, 8))
    looks = [{1: success}] * PATCHES.examples
    return _Reach(best={1: _Candidate(success, trigger, window)}, looks=looks, sloped={1}, tried=9)


@pytest.mark.parametrize(("success", "verdict"), [(0.4, Verdict.FAIL), (0.3, Verdict.PASS)])
def test_what_comes_half_way_to_its_limit_walks_to_the_trigger(monkeypatch, success, verdict):
    monkeypatch.setattr(NothingSteers, "_search", lambda *_, **__: beside_the_pixel(success))
    outcome = asked(PATCHES, row_reader(backdoors=(1,)))
    assert outcome.verdict is verdict
    assert outcome.tried == 9
    if verdict is Verdict.FAIL:
        assert (outcome.trigger.top, outcome.trigger.left) == (1, 7)


def test_a_search_that_came_nearer_to_the_end_does_not_pass(monkeypatch):
    """Shares of the last examples rise from 0.1 to 0.3 of a limit of 0.7, then from 0.1 to 0.45."""
    found = {}
    for last in (0.3, 0.45):
        reach = beside_the_pixel(0.3)
        reach.looks[:] = [{1: 0.1}] * (PATCHES.examples - 1) + [{1: last}]
        monkeypatch.setattr(NothingSteers, "_search", lambda *_, reach=reach, **__: reach)
        found[last] = asked(PATCHES, row_reader(backdoors=(1,)))
    assert found[0.3].verdict is Verdict.PASS
    finding = found[0.45].finding
    assert (finding.verdict, finding.value) == (Verdict.INCONCLUSIVE, None)
    assert finding.reason.endswith("came so much nearer to the limit that as much again would pass it")
    assert found[0.45].summary((1, 8, 8))["reason"] == finding.reason


def test_a_model_that_hides_its_gradients_passes_no_search_by_gradients():
    """Rounded pixels have no slope."""
    rounded = Computed(lambda images: (10 * images[:, 0]).round().mean(dim=2))
    outcome = asked(BLENDS, Classifier.wrap(rounded, image_shape=(1, 8, 8)))
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert "for class 0 the model gave no gradient that a search could follow" in outcome.finding.reason


def test_an_outcome_that_does_not_say_whether_its_search_converged_does_not_pass():
    outcome = asked(HarmlessChanges(), row_reader())
    assert outcome.verdict is Verdict.PASS
    packed = outcome.pack()
    old = Packed({}, {name: value for name, value in packed.values.items() if name != "unconverged"})
    assert PropertyOutcome.unpack(old).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("wanted", STEERING, ids=lambda wanted: wanted.name)
def test_what_is_natural_is_no_counterexample(wanted):
    classifier = row_reader(backdoors=(1, 5))
    allowed = asked(wanted, classifier, natural=lambda target: float(target in (1, 5)))
    assert allowed.verdict is Verdict.PASS
    assert set(allowed.details["natural"].values()) == {1.0}
    other = asked(wanted, classifier, natural=lambda target: float(target == 1))
    assert (other.verdict, other.target_class) == (Verdict.FAIL, 5)


@pytest.mark.parametrize("wanted", STEERING, ids=lambda wanted: wanted.name)
def test_natural_rates_are_what_the_same_search_reaches_in_the_twins(wanted):
    hard, backdoored = subject(row_reader()), subject(row_reader(backdoors=(1, 5)))
    assert wanted.natural((hard, backdoored), 5, generator=seeded()) > 0.5
    brief = replace(wanted, examples=min(wanted.examples, 30))
    assert brief.natural((hard,), 5, generator=seeded()) < 0.5
    assert brief.natural((hard, backdoored), 3, generator=seeded()) < 0.5


def constant():
    return Classifier.wrap(Computed(lambda x: torch.eye(8)[torch.full((len(x),), 5)]), image_shape=(1, 8, 8))


def test_a_twin_with_one_answer_for_everything_shows_nothing():
    assert WARPS.natural((subject(constant()),), 5, generator=seeded()) == 0.0


def test_with_many_classes_only_those_that_a_first_look_finds_nearest_are_steered_for():
    few = NothingSteers(changes=SmallPatches(), examples=200, steps=5, batch_size=6, classes=2)
    outcome = asked(few, row_reader(backdoors=(1, 5)))
    assert outcome.verdict is Verdict.FAIL
    assert outcome.target_class in (1, 5)


def test_classes_that_were_never_steered_for_have_no_rate():
    once = NothingSteers(changes=SmallPatches(), examples=1, steps=1, batch_size=4, classes=3)
    reached = asked(once, row_reader()).details["reached"]
    assert len(reached) == 8
    assert sum(rate is not None for rate in reached) == 3


def test_with_very_many_classes_every_example_looks_at_some_of_them(monkeypatch):
    monkeypatch.setattr(no_steering_module, "_LOOKED_AT", 3)
    few = NothingSteers(changes=SmallPatches(), examples=12, steps=1, batch_size=4, classes=2)
    reached = asked(few, row_reader()).details["reached"]
    assert sum(rate is not None for rate in reached) > 3


def test_a_kept_counterexample_is_replayed_before_any_search():
    classifier = row_reader(backdoors=(1, 5))
    found = outcome_of(LONG, 1, 5)
    kept = Counterexample(
        name=PATCHES.name, trigger=found.trigger, image_shape=(1, 8, 8), value=found.value, limit=found.limit
    )
    again = asked(LONG, classifier, kept=(kept,))
    assert again.verdict is Verdict.FAIL
    assert (again.tried, again.kept, again.replayed) == (0, 1, True)
    assert (again.trigger, again.value) == (found.trigger, found.value)
    mended = asked(PATCHES, row_reader(), kept=(kept,))
    assert mended.verdict is Verdict.PASS
    assert mended.kept == 1
    assert mended.tried > 0


@pytest.mark.parametrize(
    "change", [{"name": "no_faint_blend_steers"}, {"image_shape": (1, 9, 9)}, {"target_class": 8}], ids=str
)
def test_counterexamples_for_something_else_are_left_out(change):
    trigger = Patch(colours=Numbers((1, 1, 1), (255,)), top=3, left=7, target_class=change.get("target_class", 3))
    known = {"name": PATCHES.name, "image_shape": (1, 8, 8), **change}
    known.pop("target_class", None)
    kept = Counterexample(trigger=trigger, value=1.0, limit=0.6, **known)
    assert asked(replace(PATCHES, examples=4), row_reader(), kept=(kept,)).kept == 0


def test_a_kept_patch_that_does_not_fit_its_own_shape_refutes_nothing():
    outside = Patch(colours=Numbers((1, 1, 1), (255,)), top=80, left=7, target_class=3)
    kept = Counterexample(name=PATCHES.name, trigger=outside, image_shape=(1, 8, 8), value=1.0, limit=0.6)
    assert asked(PATCHES, row_reader(), kept=(kept,)).verdict is Verdict.PASS


@pytest.mark.parametrize("wanted", [*STEERING, HarmlessChanges()], ids=lambda wanted: wanted.name)
def test_without_time_a_search_ends(wanted):
    with budget.until(time.time() - 1), pytest.raises(BudgetSpentError):
        asked(wanted, row_reader())


def test_what_was_found_stays_found_when_there_is_no_time_to_shrink_it(monkeypatch):
    monkeypatch.setattr(Refit, "fitted", lambda *_: budget.check())
    spent = []

    def rate(classifier, clean, trigger):
        spent.append(trigger)
        return attack_success_rate(classifier, clean.images, clean.labels, trigger)

    for module in (no_steering_module, refit_module):
        monkeypatch.setattr(module, "rate_of", rate)
    monkeypatch.setattr(budget, "check", lambda: spent and raise_spent())
    outcome = asked(LONG, row_reader(backdoors=(1, 5)))
    assert outcome.verdict is Verdict.FAIL
    assert outcome.trigger == spent[0]
    assert outcome.value == outcome.details["strongest"]


def raise_spent():
    raise BudgetSpentError("spent")


def test_a_model_with_one_answer_for_everything_is_inconclusive():
    outcome = asked(PATCHES, constant())
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert "nothing to steer" in outcome.reason


@pytest.mark.parametrize(("size", "side"), [(8, 1), (28, 4), (32, 4), (64, 8), (224, 28)])
def test_small_patches_are_an_eighth_of_the_image_a_side(size, side):
    drawn = []
    from backdoor_audit.properties.exploring import explore

    explore(
        SmallPatches().families((3, size, size)), lambda w: (drawn.append(w) or {}, False), examples=40, random_seed=0
    )
    assert {(window.height, window.width) for window in drawn} == {(side, side)}
    assert max(window.top for window in drawn) <= size - side
    assert len({window.left for window in drawn}) > 4


# shrinking


def square(size, top=0, left=0, level=255, **known):
    return Patch(colours=Numbers((1, size, size), (level,) * size**2), top=top, left=left, **known)


def test_a_patch_shrinks_to_the_pixels_that_matter():
    def works(patch):
        """A white pixel at (4, 5), at least half opaque."""
        image = patch.stamp(torch.zeros(1, 1, 9, 9))
        return bool(image[0, 0, 4, 5] >= 0.5)

    small = shrunk(square(4, top=2, left=3), works)
    assert small == square(1, top=4, left=5, opacity=50)


def test_a_smaller_patch_may_get_new_colours():
    def works(patch):
        """All of it is black, and it covers (4, 5)."""
        covers = patch.top <= 4 < patch.top + patch.colours.shape[1]
        covers &= patch.left <= 5 < patch.left + patch.colours.shape[2]
        return covers and (patch.colours.shape == (1, 4, 4) or not any(patch.colours.values))

    def refit(patch):
        return Patch(colours=Numbers.of(0 * patch.colours.tensor()), top=patch.top, left=patch.left)

    assert shrunk(square(4, top=2, left=3), works) == square(4, top=2, left=3, opacity=1)
    assert shrunk(square(4, top=2, left=3), works, refit) == square(1, top=4, left=5, level=0, opacity=1)


def test_content_becomes_plain_where_that_works_as_well():
    noisy = Patch(colours=Numbers((1, 2, 2), (200, 30, 90, 250)))
    assert shrunk(noisy, lambda patch: patch.colours.shape == (1, 2, 2)).colours.values == (255,) * 4
    dark = shrunk(noisy, lambda patch: patch.colours.shape == (1, 2, 2) and patch.colours.values[0] < 150)
    assert dark.colours.values == (0,) * 4
    mixed = shrunk(noisy, lambda patch: len(set(patch.colours.values)) > 1)
    assert set(mixed.colours.values) == {0, 255}


@pytest.mark.parametrize(
    ("trigger", "strength", "least"),
    [
        (Blend(picture=Numbers((1, 1, 1), (9,)), opacity=50), lambda form: form.opacity, 17),
        (Sinusoid(amplitude=50), lambda form: form.amplitude, 17),
        (Quantisation(step=50), lambda form: form.step, 17),
        (Change(levels=Numbers((1, 1, 1), (50,))), lambda form: form.levels.values[0], 17),
        (SmoothWarp(flow=Numbers((2, 1, 1), (0, 50))), lambda form: form.flow.values[1], 17),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_faintest_form_that_works_is_found(trigger, strength, least):
    assert strength(shrunk(trigger, lambda form: strength(form) >= least)) == least


def test_a_change_becomes_as_coarse_as_it_may():
    levels = torch.linspace(0, 60, 12).view(1, 1, 12).expand(1, 12, 12)
    change = Change(levels=Numbers.of(levels))

    def works(form):
        values = form.trigger((1, 12, 12)).change[0, 0]
        return bool(values[-1] - values[0] > 25 / 255)

    small = shrunk(change, works)
    assert small.levels.shape == (1, 2, 2)
    assert works(small)


# harmless changes


def steps_of_brightness():
    """Reads rows, but any image without a black pixel in its last column goes to class 2."""
    reader = row_reader()
    return Classifier.wrap(
        Computed(
            lambda x: reader(x) + 1e3 * (x[:, :, :, -1].amin(dim=(1, 2)) > 0.02).float().unsqueeze(1) * torch.eye(8)[2]
        ),
        image_shape=(1, 8, 8),
    )


def test_a_little_light_that_sends_everything_to_one_class_is_found_and_made_fainter():
    light_alone = HarmlessChanges(most_shift=0, most_step=0)
    outcome = asked(light_alone, steps_of_brightness())
    assert outcome.verdict is Verdict.FAIL
    assert outcome.trigger == Change(levels=Numbers((1, 1, 1), (6,)), target_class=2)  # 5/255 < 0.02 < 6/255
    assert outcome.value == 1.0
    assert "+6 of 255 levels of brightness, 100%" in outcome.reason


def test_what_clean_twins_do_as_well_is_allowed():
    classifier = steps_of_brightness()
    twins = subject(row_reader()), subject(classifier)
    rates = [HarmlessChanges().natural(twins, target, generator=seeded()) for target in range(8)]
    assert rates[2] == 1.0
    assert asked(HarmlessChanges(), classifier, natural=rates.__getitem__).verdict is Verdict.PASS


def test_a_model_that_errs_in_any_case_is_allowed_as_much_again():
    outcome = asked(HarmlessChanges(), constant())
    assert outcome.verdict is Verdict.PASS
    assert (outcome.value, outcome.limit) == (1.0, 1.0)


def test_a_kept_harmless_change_is_replayed():
    trigger = Change(levels=Numbers((1, 1, 1), (9,)), target_class=2)
    kept = Counterexample(name=HarmlessChanges().name, trigger=trigger, image_shape=(1, 8, 8), value=1.0, limit=0.3)
    outcome = asked(HarmlessChanges(), steps_of_brightness(), kept=(kept,))
    assert (outcome.verdict, outcome.trigger, outcome.tried, outcome.replayed) == (Verdict.FAIL, trigger, 0, True)


def test_shares_are_the_success_rates_of_all_classes():
    classifier, clean = Classifier.wrap(random_network(), image_shape=(1, 8, 8)), row_images()
    labels = clean.labels % 5
    shares = _shares(classifier.predict(clean.images), labels, 5)
    for target in range(5):
        unchanged = Quantisation(step=0, target_class=target)
        assert float(shares[target]) == pytest.approx(attack_success_rate(classifier, clean.images, labels, unchanged))


# what holds exactly


def test_a_detector_that_prefers_a_number_is_caught_by_relabelling(monkeypatch):
    class Partial(Steering):
        def __call__(self, classifier, opt, val, wanted, **known):
            steered = super().__call__(classifier, opt, val, wanted, **known)
            bias = torch.tensor([0.1 * goal.target_class for goal in wanted])
            object.__setattr__(steered, "margins", steered.margins + bias)
            return steered

    monkeypatch.setattr(exact_module, "Steering", Partial)
    outcome = asked(Relabelling(), row_reader())
    assert outcome.verdict is Verdict.FAIL
    assert outcome.value > 0.1


def test_of_many_classes_relabelling_steers_for_some_and_for_the_same_under_other_names(monkeypatch):
    wanted = []

    class Seen(Steering):
        def __call__(self, classifier, opt, val, goals, **known):
            wanted.append([goal.target_class for goal in goals])
            return super().__call__(classifier, opt, val, goals, **known)

    monkeypatch.setattr(exact_module, "Steering", Seen)
    outcome = asked(Relabelling(classes=3), row_reader())
    assert outcome.verdict is Verdict.PASS
    assert "margins of 3 classes" in outcome.reason
    assert [len(set(goals)) for goals in wanted] == [3, 3]
    wanted.clear()
    asked(Relabelling(classes=8), row_reader())
    assert wanted[0] == list(range(8))


def test_relabelling_compares_margins_that_do_differ_between_classes():
    opt, val = row_images().split(0)
    goals = [exact_module.AllToOne(target) for target in range(8)]
    probe = Steering(family=Additive(), steps=2, batch_size=4, measured=8)
    margins = probe(row_reader(), opt, val, goals, generator=seeded()).margins
    assert float(margins.max() - margins.min()) > 5 * Relabelling().limit


def test_a_model_that_reacts_to_the_last_digit_of_a_pixel_is_caught_by_a_no_op():
    reader, clean = row_reader(size=9), row_images(size=9)
    odd = Classifier.wrap(Computed(lambda x: reader(x) + (1e8 * x.flatten(1)[:, :8]).sin()), image_shape=(1, 9, 9))
    outcome = asked(NoOpTrigger(), odd, clean)  # on 9 px a zero warp is rounded
    assert outcome.verdict is Verdict.FAIL
    assert "(warp)" in outcome.reason


def test_there_is_a_no_op_of_every_kind_that_has_one_and_it_changes_no_pixel():
    images = torch.rand(2, 3, 9, 12, generator=seeded())
    kinds = set()
    for trigger in no_op_triggers((3, 9, 12)):
        assert torch.allclose(trigger.stamp(images), images, atol=1e-5)
        kinds.add(type(trigger))
    assert kinds == set(KINDS) - {Sinusoid}  # a sinusoid is an addition, as a change is


@pytest.mark.parametrize(
    "odd",
    [
        lambda scores: scores - scores.mean(dim=0),
        lambda scores: scores + torch.arange(len(scores)).view(-1, 1) * torch.eye(8)[0],
        lambda scores: scores * len(scores),
    ],
    ids=["batch statistics", "the place in the batch", "the size of the batch"],
)
def test_a_model_that_looks_at_the_images_beside_is_caught(odd):
    reader = row_reader()
    classifier = Classifier.wrap(Computed(lambda x: odd(reader(x))), image_shape=(1, 8, 8))
    assert asked(BatchAndOrder(), classifier).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("odd", "way"),
    [
        (lambda scores: len(scores) == 1, "one by one"),
        (lambda scores: len(scores) == 7, "in batches of 7"),
        (lambda scores: len(scores) == 32 and scores[0, 0] < scores[-1, 0], "in the opposite order"),
    ],
    ids=["one by one", "in batches of 7", "in the opposite order"],
)
def test_each_way_of_scoring_is_compared(odd, way):
    reader = row_reader()
    classifier = Classifier.wrap(
        Computed(lambda x: reader(x) + 9 * bool(odd(reader(x))) * torch.eye(8)[0]), image_shape=(1, 8, 8)
    )
    outcome = asked(BatchAndOrder(), classifier)
    assert outcome.verdict is Verdict.FAIL
    assert way in outcome.reason


def test_scores_that_are_no_numbers_in_one_of_several_ways_are_no_pass():
    """NaN is not above any number: the largest of several differences must not be another one."""
    reader, clean = row_reader(size=9), row_images(size=9)
    known = clean.images.unique()
    ways = {
        BatchAndOrder(): lambda x: len(x) == 7,
        NoOpTrigger(): lambda x: not torch.isin(x, known).all(),  # on 9 px a zero warp is rounded
    }
    for claim, odd in ways.items():
        broken = Computed(lambda x, odd=odd: reader(x) * (torch.nan if odd(x) else 1))
        outcome = asked(claim, Classifier.wrap(broken, image_shape=(1, 9, 9)), clean)
        assert outcome.verdict is Verdict.INCONCLUSIVE


def test_batch_norm_in_evaluation_mode_is_no_matter():
    classifier = Classifier.wrap(random_network("small_resnet", classes=8), image_shape=(1, 8, 8))
    outcome = asked(BatchAndOrder(), classifier)
    assert outcome.verdict is Verdict.PASS
    assert outcome.value < BatchAndOrder().limit / 10
