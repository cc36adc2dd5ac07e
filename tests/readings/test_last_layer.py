import pytest
import torch
from torch import nn

from backdoor_audit.data import CleanSet
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.readings.last_layer import LastLayerSignature
from backdoor_audit.search import anomaly
from tests.subjects import by_brightness, row_reader, seeded

NOTHING = CleanSet(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long))


def measure(classifier):
    return LastLayerSignature().measure(classifier, NOTHING, NOTHING, generator=seeded())


def head(weight):
    """A network with these rows (classes, 16)."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, len(weight)))
    with torch.no_grad():
        module[1].weight.copy_(weight)
    return Classifier.wrap(module, image_shape=(1, 4, 4))


def rows(*means):
    """Rows with these means, and the same pattern on top."""
    return torch.tensor(means).unsqueeze(1) + torch.tensor([1.0, -1.0] * 8)


def test_the_value_is_worked_out_from_median_and_deviation():
    reading = measure(head(rows(1.0, 12.0, 3.0, 0.0, 2.0)))  # median 2, deviations 1 10 1 2 0, their median 1
    assert reading.value == pytest.approx(10 / 1.4826)
    assert reading.target_class == 1
    assert reading.per_class == pytest.approx([step / 1.4826 for step in (-1, 10, 1, -2, 0)])


def test_a_row_that_is_unusually_low_is_not_suspicious():
    reading = measure(head(rows(1.0, -12.0, 3.0, 0.0, 2.0)))
    assert reading.target_class == 2
    assert reading.value < 2


def test_the_target_of_a_linear_backdoor_is_named():
    assert measure(row_reader(backdoors=(3,))).target_class == 3
    assert measure(row_reader(backdoors=(3,))).value > 10 > 3 * measure(row_reader()).value


def test_a_row_moved_by_four_deviations_is_named_and_random_heads_are_flagged_as_often_as_they_may():
    weight = torch.randn(1000, 20, 16, generator=seeded())
    limit = anomaly.null_quantile(20, 0.05)
    classifier = head(weight[0])
    linear = classifier.module[1]
    alarms, named = 0, 0
    for rows_of_one in weight:
        linear.weight.copy_(rows_of_one)
        alarms += measure_value(classifier) > limit
        linear.weight[5] += 4 * rows_of_one.mean(dim=1).std()
        reading = measure(classifier)
        named += reading.target_class == 5
    assert alarms / 1000 <= 0.05 + 0.02
    assert alarms > 0
    assert named / 1000 > 0.9


def measure_value(classifier):
    return measure(classifier).value


@pytest.mark.parametrize(
    ("classifier", "reason"),
    [
        (by_brightness(), "does not end in a linear layer"),
        (head(rows(1.0, 2.0, 3.0, 9.0)), "4 classes"),
        (head(rows(1.0, 1.0, 1.0, 1.0, 5.0)), "deviation is 0"),
    ],
    ids=["no head", "few classes", "no spread"],
)
def test_what_cannot_be_measured_is_inconclusive(classifier, reason):
    reading = measure(classifier)
    assert reading.value is None
    assert reason in reading.inconclusive
