import pytest
import torch
from torch import nn

from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.repairs.nad import NAD, attention, attention_distance, recorded, stages
from tests.subjects import assert_unchanged, random_network, row_reader, seeded, snapshot
from tests.subjects.textured import assert_honest, backdoored, repair, weights


def wrapped(name, size=16):
    return Classifier.wrap(random_network(name, image_shape=(1, size, size)), image_shape=(1, size, size))


def test_the_attention_of_a_map_by_hand():
    """Two channels of 1x2: energies 3^2 + 0 and (-2)^2 + 2 * 0; divided by the length of (9, 4)."""
    maps = torch.tensor([[[[3.0, -2.0]], [[0.0, 0.0]]]])
    assert torch.allclose(attention(maps), torch.tensor([[9.0, 4.0]]) / 97**0.5, atol=1e-6)
    assert torch.allclose(attention(maps, power=1.0), torch.tensor([[3.0, 2.0]]) / 13**0.5, atol=1e-6)


def test_the_attention_of_tokens_is_that_of_the_map_they_came_from():
    maps = torch.randn(3, 5, 2, 4, generator=seeded(1))
    assert torch.allclose(attention(maps.flatten(2).transpose(1, 2)), attention(maps))
    assert attention(maps).shape == (3, 8)


def test_the_distance_by_hand():
    """Attentions (1, 0) and (0.6, 0.8): squared differences 0.16 and 0.64, their mean 0.4."""
    student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[3**0.5, 2.0]]]])
    assert float(attention_distance(student, teacher)) == pytest.approx(0.4, abs=1e-5)


def test_attention_forgets_scale_and_dark_maps_have_a_gradient():
    maps = torch.randn(2, 3, 4, 4, generator=seeded(2))
    assert torch.allclose(attention(7 * maps), attention(maps), atol=1e-5)
    dark = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_distance(dark, maps).backward()
    assert bool(torch.isfinite(dark.grad).all())


@pytest.mark.parametrize("name", ["small_cnn", "small_vit"])
def test_a_student_equal_to_its_teacher_has_no_distance(name):
    subject = wrapped(name)
    layers, images = stages(subject, 3), torch.rand(4, 1, 16, 16, generator=seeded(3))
    for layer in layers:
        maps = capture(subject, layer, images)
        assert float(attention_distance(maps, capture(subject.copy(), layer, images))) == 0.0
        other = wrapped(name).module.requires_grad_(False)
        other.get_submodule(layers[0].split(".")[0]).apply(_halve_one_filter)
        moved = Classifier.wrap(other, image_shape=(1, 16, 16))
        assert float(attention_distance(maps, capture(moved, layer, images))) > 0


def _halve_one_filter(module):
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        module.weight[0] *= -3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("small_cnn", ("features.0", "features.2", "features")),
        ("small_resnet", ("layer1", "layer2", "layer3")),
        ("preact_resnet18", ("layer2", "layer3", "layer4")),
        ("small_vit", ("blocks.0", "blocks.2", "blocks.3")),
    ],
)
def test_the_stages_are_the_groups_of_a_network(name, expected):
    found = stages(wrapped(name), 3)
    assert found == expected


def test_fewer_stages_are_the_last_ones_and_tracing_leaves_no_hook():
    subject = wrapped("small_resnet")
    before = snapshot(subject.module)
    assert [stages(subject, most) for most in (0, 1, 2)] == [(), ("layer3",), ("layer2", "layer3")]
    assert stages(wrapped("small_vit"), 1) == ("blocks.3",)
    assert stages(wrapped("small_vit"), 9) == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert_unchanged(before, subject.module)


def test_modules_that_run_twice_are_passed_over():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared = nn.Conv2d(1, 2, 3), nn.ReLU()
            self.linear = nn.Linear(2, 3)

        def forward(self, images):
            maps = self.shared(self.shared(self.first(images)))
            return self.linear(maps.mean(dim=(2, 3)))

    assert stages(Classifier.wrap(Twice(), image_shape=(1, 8, 8)), 3) == ("first",)


def test_outputs_are_recorded_in_the_order_they_are_given():
    subject, images = wrapped("small_resnet"), torch.rand(2, 1, 16, 16, generator=seeded(3))
    with recorded(subject, ("layer3", "layer1")) as events:
        subject(images)
    subject(images)
    assert [name for name, _ in events] == ["layer1", "layer3"]
    assert torch.equal(events[1][1], capture(subject, "layer3", images))


def test_distillation_is_honest_and_lowers_the_success_rate_where_the_control_does_not():
    control = repair(NAD(learning_rate=0.03, betas=(0.0, 0.0, 0.0))).outcome
    outcome = assert_honest(NAD(learning_rate=0.03))
    assert control.after.attack_success_rate >= 0.9
    assert outcome.after.attack_success_rate <= 0.2
    assert 0.5 < outcome.after.clean_accuracy < control.after.clean_accuracy  # it costs accuracy
    assert outcome.note == (
        "20 epochs over 100 clean images, attention of 'features.0', 'features.2', 'features' as in a copy fine-tuned for 10"
    )


def test_without_distillation_the_teacher_does_not_matter():
    plain = [
        repair(NAD(betas=(0.0,) * count, power=power, epochs=2)) for count, power in ((3, 2.0), (3, 1.0), (0, 2.0))
    ]
    assert torch.equal(weights(plain[0]), weights(plain[1]))
    assert torch.equal(weights(plain[0]), weights(plain[2]))
    assert not torch.equal(weights(plain[0]), weights(repair(NAD(epochs=2))))


def test_the_last_beta_belongs_to_the_last_stage():
    """Two stages of a network that has only two: of three betas the last two count."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(seed)))
    subject = Classifier.wrap(module, image_shape=(1, 8, 8))
    settings = {"epochs": 2, "teacher_learning_rate": 0.1}
    three, two, other = (
        weights(repair(NAD(betas=betas, **settings), subject))
        for betas in ((99.0, 5.0, 50.0), (5.0, 50.0), (99.0, 5.0))
    )
    assert torch.equal(three, two)
    assert not torch.equal(three, other)


def test_the_student_starts_from_the_audited_model_not_from_the_teacher():
    still = repair(NAD(epochs=1, learning_rate=1e-12, teacher_learning_rate=0.1)).classifier
    assert torch.allclose(still.module.linear.weight, backdoored().module.linear.weight, atol=1e-6)


def test_no_hook_is_left_on_the_copy():
    repaired = repair(NAD(epochs=1, teacher_epochs=1)).classifier
    assert snapshot(repaired.module)["hooks"] == snapshot(backdoored().module)["hooks"]


def test_transformers_can_be_distilled():
    outcome = repair(NAD(learning_rate=0.05), backdoored("small_vit")).outcome
    assert outcome.after.clean_accuracy >= outcome.before.clean_accuracy - 0.04
    assert outcome.after.attack_success_rate <= outcome.before.attack_success_rate - 0.2
    assert "'blocks.0', 'blocks.2', 'blocks.3'" in outcome.note


def test_a_network_without_maps_or_tokens_is_not_applicable():
    subject = row_reader(classes=4)
    result = repair(NAD(), subject)
    assert result.classifier is None
    assert result.outcome.not_applicable == "no module of this network gives a feature map or a sequence of tokens"
    assert result.outcome.before is None
