import pytest
import torch

from backdoor_audit.classifier import Classifier
from backdoor_audit.detectors import NeuralCleanse
from backdoor_audit.evidence import Limits, Verdict
from backdoor_audit.metrics import attack_success_rate
from tests.subjects import random_network, row_images, row_reader, seeded

LIMITS = Limits()


def detect(subject, *, classes=8, steps=240, **options):
    opt, val = row_images(classes=classes), row_images(classes=classes, seed=5)
    return NeuralCleanse(steps=steps)(subject, opt, val, generator=seeded(1), **options)


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
    sizes = sorted(score.size for score in backdoored.scores)
    assert backdoored.median_size == pytest.approx((sizes[3] + sizes[4]) / 2)
    assert backdoored.score(3).size_ratio == pytest.approx(backdoored.score(3).size / backdoored.median_size)
    assert backdoored.score(3).size < backdoored.cut_size < sizes[1]


def test_a_class_that_is_naturally_easy_is_not_flagged_when_references_say_so(backdoored):
    natural = [score.size_ratio if score.target_class == 3 else 1.0 for score in backdoored.scores]
    again = detect(row_reader(backdoors=(3,)), reference_sizes=natural)
    assert flagged(again) == []
    assert again.score(3).index == pytest.approx(0, abs=0.5)


def test_too_few_reached_classes_are_inconclusive():
    detection = detect(row_reader(), steps=1)
    assert not any(score.reached for score in detection.scores)
    assert "0 of 8 classes only" in detection.inconclusive
    assert [detection.judge(target, LIMITS).verdict for target in range(8)] == [Verdict.INCONCLUSIVE] * 8
    assert all(score.index is None and score.size_ratio is None for score in detection.scores)
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
    assert flagged(detection) == [3]
    sizes = sorted(score.size for score in detection.scores if score.reached)
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
