"""A repair that throws a model out of what it knows is done again with shorter gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs import DistilledUnlearning
from backdoor_audit.repairs.steady import LEAST_AGREEMENT, LONGEST, steadily
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects import row_images, row_reader, seeded


def subject() -> Subject:
    return Subject(row_reader(), row_images(seed=0), row_images(seed=1))


def spoilt(copy: Classifier, share: float) -> None:
    """Give that share of the classes another name."""
    with torch.no_grad():
        layer = copy.module[1]  # type: ignore[index]
        classes = round(share * len(layer.weight))
        layer.weight[:classes] = layer.weight[:classes].roll(1, dims=0)
        layer.bias[:classes] = layer.bias[:classes].roll(1, dims=0)


@pytest.mark.parametrize(
    ("damage", "tried", "told"),
    [
        ({math.inf: 0.0}, [math.inf], ""),
        ({math.inf: 1.0, 1.0: 0.0}, [math.inf, 1.0], ", gradients shortened to 1"),
        ({math.inf: 1.0, 1.0: 0.5, 0.3: 0.0}, list(LONGEST), ", gradients shortened to 0.3"),
        (
            {math.inf: 1.0, 1.0: 0.25, 0.3: 0.5},
            list(LONGEST),
            ", gradients shortened to 1",
        ),  # the best of all that are bad
    ],
)
def test_gradients_are_shortened_until_the_copy_still_knows_what_it_knew(
    damage: dict[float, float], tried: list[float], told: str
) -> None:
    asked = []

    def train(copy: Classifier, longest: float) -> None:
        asked.append(longest)
        spoilt(copy, damage[longest])

    given = subject()
    before = given.classifier.predict(given.search_set.images)
    repaired, how = steadily(given, train)
    assert (asked, how) == (tried, told)
    agreement = float((repaired.predict(given.search_set.images) == before).float().mean())
    assert agreement == pytest.approx(1 - min(damage[entry] for entry in tried), abs=0.05)
    assert (agreement >= LEAST_AGREEMENT) == (min(damage[entry] for entry in tried) == 0)


def test_unlearning_survives_a_learning_rate_that_destroys_the_model() -> None:
    plain = row_reader(backdoors=(3,))
    deep = nn.Sequential(*plain.module, nn.ReLU(), nn.Linear(8, 8))  # type: ignore[misc]
    with torch.no_grad():
        deep[3].weight.copy_(60 * torch.eye(8))
        deep[3].bias.zero_()
    given = replace(subject(), classifier=Classifier.wrap(deep, image_shape=plain.image_shape))
    mask = torch.zeros(1, 8, 8)
    mask[0, 3, 7] = 1
    trigger = Trigger(mask, torch.ones(1, 8, 8), 3)
    result = DistilledUnlearning(learning_rate=1.0)(given, trigger, generator=seeded())
    assert result.classifier is not None
    assert "gradients shortened to" in result.outcome.note
    assert result.outcome.after is not None
    assert result.outcome.after.clean_accuracy > 0.9
    assert result.outcome.after.attack_success_rate < 0.1
