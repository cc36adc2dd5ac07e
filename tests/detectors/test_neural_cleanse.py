import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from backdoor_audit.data import load_clean_set
from backdoor_audit.detectors import NeuralCleanse
from backdoor_audit.detectors.neural_cleanse import _screened, _searched_in_full, _still_shrinking
from backdoor_audit.errors import DegenerateScoresError
from backdoor_audit.evidence import Verdict
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier
from backdoor_audit.model.metrics import attack_success_rate
from backdoor_audit.model.subject import Subject
from backdoor_audit.questions.suite import shipped_limits
from backdoor_audit.search.anomaly import anomaly, null_quantile
from backdoor_audit.search.inversion import Inversion
from fixtures import IMAGES, MODELS
from tests.subjects import random_network, row_images, row_reader, seeded, square_trigger
from tests.subjects.pixels import pixel_images, pixel_reader

LIMITS = shipped_limits()


def detect(subject, *, classes=8, steps=240, **options):
    images = row_images(classes=classes), row_images(classes=classes, seed=5)
    return NeuralCleanse(steps=steps)(Subject(subject, *images), generator=seeded(1), **options)


def flagged(detection, **options):
    return [trigger.target_class for trigger in detection.flagged(LIMITS, **options)]


@pytest.fixture(scope="module")
def backdoored():
    return detect(row_reader(backdoors=(3,)))


@pytest.fixture(scope="module")
def clean():
    return detect(row_reader())


def test_exactly_the_planted_class_is_flagged(backdoored):
    assert flagged(backdoored) == [3]
    assert flagged(backdoored, index="paper") in ([3], [])
    verdicts = [backdoored.judge(target, LIMITS).verdict for target in range(8)]
    assert verdicts == [Verdict.PASS] * 3 + [Verdict.FAIL] + [Verdict.PASS] * 4


def test_the_trigger_found_is_the_planted_pixel(backdoored):
    mask = backdoored.trigger(3).mask[0]
    assert int(mask.argmax()) == 3 * 8 + 7
    assert float(mask[3, 7] / mask.sum()) > 0.8


def test_a_clean_model_is_not_flagged(clean):
    assert clean.inconclusive == ""
    assert flagged(clean) == []
    assert [clean.judge(target, LIMITS).verdict for target in range(8)] == [Verdict.PASS] * 8


@pytest.mark.parametrize(("steps", "restarts"), [(1, 1), (12, 3), (17, 1)])
@pytest.mark.parametrize("backdoors", [(3,), ()])
def test_no_class_passes_while_triggers_have_hardly_been_pressed(steps, restarts, backdoors):
    search = NeuralCleanse(steps=steps, restarts=restarts)
    subject = Subject(row_reader(backdoors=backdoors), row_images(), row_images(seed=5))
    detection = search(subject, generator=seeded(1))
    assert Verdict.PASS not in {detection.judge(target, LIMITS).verdict for target in range(8)}


def test_a_twentieth_of_the_steps_passes_no_class_of_a_real_backdoored_model():
    images = load_clean_set(IMAGES).sample(200, seed=0).split(seed=0)
    subject = Subject(load_classifier(MODELS / "badnets.safetensors"), *images)
    detection = NeuralCleanse(steps=12)(subject, generator=seeded())
    findings = [detection.judge(target, LIMITS) for target in range(10)]
    assert Verdict.PASS not in {finding.verdict for finding in findings}
    assert "raise --audit-steps" in findings[0].reason


def test_a_planted_class_is_flagged_while_all_others_still_shrink(backdoored):
    scores = [replace(score, unconverged="moving") for score in backdoored.scores]
    moving = replace(backdoored, scores=scores, unconverged="in 8 of 8 classes")
    assert flagged(moving) == [3]
    assert {moving.judge(target, LIMITS).verdict for target in range(8) if target != 3} == {Verdict.INCONCLUSIVE}


def test_two_planted_classes_are_both_flagged():
    assert sorted(flagged(detect(row_reader(classes=12, backdoors=(2, 6), size=12), classes=12))) == [2, 6]


def test_success_is_reported_on_the_held_out_images(backdoored):
    val = row_images(seed=5)
    for score, trigger in zip(backdoored.scores, backdoored.triggers, strict=True):
        expected = attack_success_rate(row_reader(backdoors=(3,)), val.images, val.labels, trigger)
        assert score.success_val == expected


def test_the_p_value_of_the_model_is_that_of_its_smallest_trigger(backdoored, clean):
    assert backdoored.p_value == backdoored.score(3).p_value == min(score.p_value for score in backdoored.scores)
    assert backdoored.p_value <= 0.05 < clean.p_value


def test_sizes_are_compared_with_the_median_of_all_classes(backdoored):
    sizes = sorted(score.measured.size for score in backdoored.scores)
    assert backdoored.median_size == pytest.approx((sizes[3] + sizes[4]) / 2)
    assert backdoored.score(3).measured.size_ratio == pytest.approx(
        backdoored.score(3).measured.size / backdoored.median_size
    )
    assert backdoored.score(3).measured.size < backdoored.cut_size < sizes[1]


def test_a_class_that_is_naturally_easy_is_not_flagged_when_references_say_so(backdoored):
    natural = [score.measured.size_ratio if score.target_class == 3 else 1.0 for score in backdoored.scores]
    again = detect(row_reader(backdoors=(3,)), reference_sizes=natural)
    assert flagged(again) == []
    assert again.score(3).index == pytest.approx(0, abs=0.5)


def test_too_few_reached_classes_are_inconclusive():
    detection = detect(row_reader(), steps=1)
    assert not any(score.measured.reached for score in detection.scores)
    assert "0 of 8 classes only" in detection.inconclusive
    assert [detection.judge(target, LIMITS).verdict for target in range(8)] == [Verdict.INCONCLUSIVE] * 8
    assert all(score.index is None and score.measured.size_ratio is None for score in detection.scores)
    assert detection.p_value is None


def test_four_classes_are_too_few_to_tell_an_outlier():
    detection = detect(row_reader(classes=4, backdoors=(1,)), classes=4)
    assert "4 classes" in detection.inconclusive
    assert flagged(detection) == []


def test_an_unreached_class_is_inconclusive_and_stays_out_of_the_comparison():
    subject = row_reader(backdoors=(3,))
    subject.module[1].bias[5] = -1e4
    detection = detect(subject)
    assert detection.judge(5, LIMITS).verdict is Verdict.INCONCLUSIVE
    assert detection.score(5).index is None
    assert detection.score(3).index > LIMITS.anomaly_index
    sizes = sorted(score.measured.size for score in detection.scores if score.measured.reached)
    assert detection.median_size == pytest.approx(sizes[3])


def test_an_untrained_network_has_no_flagged_class():
    subject = Classifier.wrap(random_network("small_cnn", classes=8), image_shape=(1, 8, 8))
    assert flagged(detect(subject, steps=60)) == []


def test_the_same_seed_gives_the_same_detection(backdoored):
    again = detect(row_reader(backdoors=(3,)))
    assert again.summary() == backdoored.summary()
    assert all(
        torch.equal(one.mask, other.mask) for one, other in zip(again.triggers, backdoored.triggers, strict=True)
    )


def detect_many(*backdoors, **options):
    subject = Subject(pixel_reader(backdoors=backdoors), pixel_images(), pixel_images(seed=5))
    detector = NeuralCleanse(batch_size=96, **options)  # so large that what works on a batch works on nearly all images
    return detector(subject, generator=seeded(1))


@pytest.fixture(scope="module")
def raced():
    return detect_many(30)


def test_in_a_race_of_forty_three_classes_exactly_the_planted_one_is_flagged(raced):
    assert flagged(raced) == [30]
    verdicts = [raced.judge(target, LIMITS).verdict for target in range(43)]
    assert verdicts == [Verdict.PASS] * 30 + [Verdict.FAIL] + [Verdict.PASS] * 12


def test_a_clean_model_of_forty_three_classes_is_not_flagged():
    detection = detect_many()
    assert [detection.judge(target, LIMITS).verdict for target in range(43)] == [Verdict.PASS] * 43


def test_classes_that_stopped_are_compared_at_the_effort_of_the_screening(raced):
    stopped = [score for score in raced.scores if score.measured.steps == 30]
    assert len(stopped) == 25
    early = {score.measured.size / score.measured.size_ratio for score in stopped}
    assert max(early) == pytest.approx(min(early))
    assert max(early) > 1.3 * raced.median_size
    finished = [score for score in raced.scores if score.measured.steps != 30]
    assert [score.measured.size / score.measured.size_ratio for score in finished] == pytest.approx(
        [raced.median_size] * 18
    )


def test_how_far_a_race_went_is_said(raced):
    coverage = "43 classes raced: 6 finalists and 12 controls searched in full, 25 for 30 of 100 steps"
    assert raced.coverage == coverage
    assert coverage in raced.judge(0, LIMITS).settings


def test_a_full_search_of_many_classes_can_be_asked_for(raced):
    whole = detect_many(30, race_above=43)
    assert whole.settings == "NeuralCleanse(steps=100, batch_size=96, restarts=1, race_above=43)"
    assert whole.coverage == ""
    assert flagged(whole) == [30]
    assert raced.image_passes < 0.7 * whole.image_passes


def inversion(target_class, size, **options):
    options = {"reached": True, "shrinkage": 0.0, **options}
    trigger = square_trigger((1, 4, 4), target_class=target_class)
    return Inversion(trigger, size, 1.0, options.pop("reached"), 10, 100, **options)


def race_of(finalists, controls, stopped):
    """Inversions in that order; sizes of classes that stopped are those of the screening."""
    sizes = [
        *((size, {}) for size in finalists),
        *((size, {"control": True}) for size in controls),
        *((size, {"complete": False, "screening_size": size}) for size in stopped),
    ]
    return [inversion(target, size, **options) for target, (size, options) in enumerate(sizes)]


def moving(inversions, **options):
    return NeuralCleanse(**options)._unconverged(inversions, 60)


def test_where_half_of_the_classes_still_shrink_none_passes():
    settled, shrinking = (
        [inversion(target, 9.0) for target in range(4)],
        [inversion(target, 9.0, shrinkage=0.31) for target in range(4)],
    )
    assert moving([*settled, *shrinking[:3]]) == ""
    assert moving([*settled, *shrinking]) == (
        "in 4 of 8 classes the trigger was still shrinking after 10 steps: by more than 30% over the last 60, or pressed for "
        "fewer; raise --audit-steps"
    )
    assert moving([inversion(0, 9.0, shrinkage=0.3)]) == ""  # the limit itself counts as converged
    assert moving([*settled, *(inversion(target, 9.0, reached=False) for target in range(5))]) == ""  # told otherwise


def test_classes_that_stopped_by_design_are_not_blamed_and_their_controls_are():
    race = race_of([1.0], [2.0, 3.0], [500.0] * 9)
    stopped = [replace(entry, shrinkage=1.0) if not entry.complete else entry for entry in race]
    assert moving(stopped) == ""
    assert {_still_shrinking(entry) for entry in stopped} == {""}
    shrinking = [replace(entry, shrinkage=0.5) if entry.control else entry for entry in stopped]
    assert moving(shrinking).startswith("in 2 of 3 classes")
    assert "still shrinking, by 50% at the end of 10 steps" in _still_shrinking(shrinking[1])
    assert "nothing had pressed on the size" in _still_shrinking(replace(race[0], shrinkage=1.0))


def test_classes_that_stopped_count_as_values_between_those_of_the_controls():
    # four that stopped between logs 0 and 1 of two controls: 0, 0.25, 0.75 and 1
    inversions = race_of([np.exp(-3), np.exp(-2)], [1.0, np.e], [500.0] * 4)
    compared = _searched_in_full(inversions, None)
    logs = [-3, -2, 0, 1, 0, 0.25, 0.75, 1]
    centre = statistics.median(logs)
    mad = 1.4826 * statistics.median(abs(value - centre) for value in logs)
    assert compared.result.log_index == pytest.approx([(centre - value) / mad for value in logs])
    assert compared.result.median_size == pytest.approx(statistics.median(np.exp(logs)))
    assert compared.positions == {0: 0, 1: 1, 2: 2, 3: 3}


def test_references_are_taken_into_account_in_a_race_too():
    generator = np.random.default_rng(2)
    sizes, natural = np.exp(generator.standard_normal(43)), np.exp(3 * generator.standard_normal(43))
    plain = _searched_in_full(race_of(sizes[:8], sizes[8:20], sizes[20:]), None).result
    scaled = sizes * natural
    measured = _searched_in_full(race_of(scaled[:8], scaled[8:20], scaled[20:]), natural.tolist()).result
    assert measured.index == pytest.approx(plain.index)
    assert measured.p_value == pytest.approx(plain.p_value)


def test_controls_that_were_not_reached_stand_for_classes_that_would_not_be():
    inversions = race_of([1.0] * 3 + [2.0], [3.0, 4.0, 5.0, 6.0], [500.0] * 8)
    inversions[4] = inversion(4, 9.0, control=True, reached=False)
    result = _searched_in_full(inversions, None)
    assert len(result.result.index) == 4 + 3 + 6  # three of four controls: six of eight
    assert 4 not in result.positions


def test_a_race_in_which_no_control_was_reached_is_inconclusive():
    inversions = race_of([1.0, 2.0, 3.0, 4.0, 5.0], [1.0], [500.0])
    assert len(_searched_in_full(inversions, None).result.index) == 7
    inversions[5] = inversion(5, 9.0, control=True, reached=False)
    with pytest.raises(DegenerateScoresError, match="for 5 of 6 classes only"):
        _searched_in_full(inversions, None)


def test_a_class_that_stopped_without_a_working_trigger_is_not_compared():
    inversions = race_of([1.0], [2.0], [3.0, 4.0, 5.5, 7.0, 9.0])
    sizes = [3.0, 4.0, 5.5, 7.0, 9.0]
    assert _screened(inversions).result == anomaly(sizes)
    assert _screened(inversions).positions == {2: 0, 3: 1, 4: 2, 5: 3, 6: 4}
    inversions[6] = inversion(6, 300.0, complete=False, reached=False)
    assert _screened(inversions) is None


def test_races_without_an_outlier_have_p_values_as_they_should(monkeypatch):
    """Of clean races 5 % have a p-value of at most 0.05, and so on; taken for 43 independent classes, 13 % would."""
    monkeypatch.setattr(
        "backdoor_audit.search.anomaly._p_value", lambda *_: 1.0
    )  # slow, and replaced by those of races
    generator, cut = np.random.default_rng(11), null_quantile(43, 0.05)
    smallest, unaware = [], []
    for _ in range(600):
        final, noise = generator.standard_normal((2, 43))
        order = np.argsort(0.7 * final + 0.51**0.5 * noise)
        drawn = generator.permutation(order[8:])
        inversions = race_of(np.exp(final[order[:8]]), np.exp(final[drawn[:12]]), np.exp(final[drawn[12:]]))
        result = _searched_in_full(inversions, None).result
        smallest.append(min(result.p_value))
        unaware.append(max(result.log_index) > cut)
    for rate in (0.05, 0.2, 0.5):  # standard errors: 0.009, 0.016, 0.02
        assert np.mean(np.array(smallest) <= rate) == pytest.approx(rate, abs=0.05 if rate > 0.1 else 0.03)
    assert np.mean(unaware) > 0.1


def test_the_cut_of_a_race_is_where_the_index_is_two():
    sizes = np.exp(np.random.default_rng(3).standard_normal(43))
    inversions = race_of(sizes[:8], sizes[8:20], sizes[20:])
    result = _searched_in_full(inversions, None).result
    # any two classes fix the line from log size to index
    slope = (result.index[0] - result.index[1]) / (np.log(sizes[0]) - np.log(sizes[1]))
    assert result.index[0] + slope * (np.log(result.cut_size) - np.log(sizes[0])) == pytest.approx(2)
