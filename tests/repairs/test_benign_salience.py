import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.subject import Subject
from backdoor_audit.repairs.benign_salience import BenignSalience, adaptive_penalty, removal_cost, selected
from backdoor_audit.repairs.outcome import score
from tests.subjects import assert_unchanged, random_network, seeded, snapshot, square_trigger
from tests.subjects.cornered import OPT, TRIGGER, VAL, corner_reader


def repair(method=None, subject=None, trigger=TRIGGER):
    return (method or BenignSalience())(Subject(subject or corner_reader(), OPT, VAL), trigger, generator=seeded(1))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_value_and_slope_of_the_penalty_join_where_the_weight_is_1(sign):
    below, at, above = (torch.tensor(sign * size, dtype=torch.float64) for size in (1 - 1e-9, 1.0, 1 + 1e-9))
    slopes = []
    for weight in (below, at, above):
        weight.requires_grad_()
        penalty = adaptive_penalty(weight, 0.3)
        penalty.backward()
        assert penalty.item() == pytest.approx(0.3, abs=1e-8)
        slopes.append(float(weight.grad))
    assert slopes == pytest.approx([sign * 0.3] * 3, abs=1e-8)


def test_the_penalty_goes_on_straight_where_weights_are_huge():
    weight = torch.tensor([4.0, 5.0, 60.0, -60.0], requires_grad=True)
    penalty = adaptive_penalty(weight, 0.1)
    torch.testing.assert_close(penalty.detach(), 0.1 * math.e**3 * torch.tensor([1.0, 2.0, 57.0, 57.0]))
    penalty.sum().backward()
    torch.testing.assert_close(weight.grad[1:], 0.1 * math.e**3 * torch.tensor([1.0, 1.0, -1.0]))


def test_the_penalty_is_linear_inside_exponential_outside_and_even():
    weights = torch.tensor([0.0, 0.5, 2.0, 3.0])
    expected = torch.tensor([0.0, 0.005, 0.01 * math.e, 0.01 * math.e**2])
    torch.testing.assert_close(adaptive_penalty(weights, 0.01), expected)
    assert torch.equal(adaptive_penalty(-weights, 0.01), adaptive_penalty(weights, 0.01))


def test_the_removal_cost_of_a_parabola():
    """L = (w - 1)^2 / 2 at w = 1.5: slope 0.5, cost -0.75: without w the loss would fall."""
    weight = torch.tensor(1.5, requires_grad=True)
    ((weight - 1).square() / 2).backward()
    assert float(removal_cost(weight.detach(), weight.grad)) == -0.75


def test_the_removal_cost_is_the_first_order_of_what_scaling_a_weight_down_costs():
    generator = seeded(2)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    features, labels = torch.randn(20, 5, generator=generator, dtype=torch.float64), torch.arange(20) % 3

    def loss(values):
        return functional.cross_entropy(features @ values.T, labels)

    loss(weight).backward()
    cost, values = removal_cost(weight.detach(), weight.grad), weight.detach()
    for place in ((0, 0), (1, 3), (2, 4)):
        less = values.clone()
        less[place] *= 1 - 1e-6
        assert float((loss(less) - loss(values)) / 1e-6) == pytest.approx(float(cost[place]), rel=1e-4)


def test_the_share_of_lowest_or_highest_salience_is_selected():
    salience = torch.tensor([[0.3, -0.2], [0.1, 0.0]])
    assert selected(salience, 0.5, "lowest").tolist() == [[0, 1], [0, 1]]
    assert selected(salience, 0.5, "highest").tolist() == [[1, 0], [1, 0]]
    assert selected(salience, 1.0, "highest").tolist() == [[1, 1], [1, 1]]
    assert selected(salience, 0.0, "lowest").tolist() == [[0, 0], [0, 0]]


def test_another_selection_is_refused():
    with pytest.raises(ValueError, match="select must be one of lowest, highest, got 'random'"):
        BenignSalience(select="random")


def test_useless_weights_shrink_and_useful_ones_stay():
    """One clean image feeds the first input of the head alone; the second input is 0 there, so its weights cost nothing."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[2.0, 3.0], [-2.0, 0.5]]))
        module[1].bias.zero_()
    subject = Classifier.wrap(module, image_shape=(1, 1, 2))
    images, labels = torch.zeros(4, 1, 1, 2), torch.zeros(4, dtype=torch.long)
    images[:, 0, 0, 0] = 1.0
    method = BenignSalience(first_share=0.0, epochs=2, strength=0.1, learning_rate=0.01, batch_size=4)
    clean, trigger = type(OPT)(images, labels), square_trigger((1, 1, 2), target_class=1, size=1)
    after = method(Subject(subject, clean, clean), trigger, generator=seeded()).classifier.module[1].weight
    # epoch 1 of 2 takes half of the weights, the two of the second input (salience 0, the others' is above); epoch 2 takes all
    first = torch.tensor([3.0 - 0.01 * 0.1 * math.exp(2), 0.5 - 0.01 * 0.1])
    second = first - 0.01 * 0.1 * torch.tensor([math.exp(float(first[0]) - 1), 1.0])
    torch.testing.assert_close(after[:, 1], second)


@pytest.mark.parametrize("select", ["lowest", "highest"])
def test_clean_accuracy_is_kept_and_the_head_shrinks_more_than_by_fine_tuning_alone(select):
    """A trained trigger survives this on small networks; what the method does do is this."""
    result = repair(BenignSalience(select=select))
    outcome = result.outcome
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.05
    plain = repair(BenignSalience(select=select, strength=0.0))
    sizes = [float(each.classifier.module.linear.weight.abs().sum()) for each in (result, plain)]
    assert sizes[0] < 0.95 * sizes[1]
    assert outcome.note == f"10 epochs over 150 clean images, penalty on the {select} salience of layer 'linear'"


def test_the_two_selections_differ():
    lowest, highest = (repair(BenignSalience(select=select)).classifier for select in ("lowest", "highest"))
    assert not torch.equal(lowest.module.linear.weight, highest.module.linear.weight)


@pytest.mark.parametrize("name", ["small_vgg", "small_vit"])
def test_the_original_is_untouched_and_the_repaired_copy_predicts_as_reported(name):
    subject = Classifier.wrap(random_network(name), image_shape=(1, 8, 8))
    before = snapshot(subject.module)
    result = repair(BenignSalience(epochs=1), subject)
    assert_unchanged(before, subject.module)
    assert result.outcome.after == score(result.classifier, VAL, TRIGGER)
    assert not any(part.training for part in result.classifier.module.modules())
    assert not any(parameter.requires_grad for parameter in result.classifier.module.parameters())


def test_the_same_seed_gives_the_same_result_and_the_trigger_chooses_nothing():
    first, second = repair(), repair(trigger=square_trigger((1, 8, 8), target_class=4))
    assert torch.equal(first.classifier.logits(VAL.images), second.classifier.logits(VAL.images))
    assert first.outcome == repair().outcome


def test_it_does_not_apply_without_a_final_linear_layer():
    module = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = repair(subject=Classifier.wrap(module, image_shape=(1, 8, 8)))
    assert result.classifier is None
    assert result.outcome.not_applicable == "this network does not end in a linear layer"
