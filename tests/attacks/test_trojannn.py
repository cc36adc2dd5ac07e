import pytest
import torch
from torch import Tensor, nn

from backdoor_audit.attacks import trojannn
from backdoor_audit.attacks.attack import measure
from backdoor_audit.attacks.trojannn import TrojanNN
from backdoor_audit.errors import AttackError
from backdoor_audit.model.activations import capture
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.training import Recipe, fit
from backdoor_audit.triggers.label_rule import AllToAll
from tests.subjects import by_brightness, grey_images, random_network, row_images, seeded


def trained(classes: int = 4) -> Classifier:
    """A network that knows the row images."""
    clean = row_images(classes=classes, per_class=60)
    classifier = Classifier.wrap(random_network("small_cnn", classes=classes, width=4), image_shape=(1, 8, 8))
    fit(classifier, clean.images, clean.labels, epochs=6, learning_rate=0.05, generator=seeded(), recalibrate=True)
    return classifier


class TwoNeurons(nn.Module):
    """Neuron 0 answers to the right half of the image, neuron 1 to the left half, and counts twice in the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, -2.0], [-1.0, 2.0]]))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.linear(
            torch.stack([images[..., 4:].sum((1, 2, 3)), images[..., :4].sum((1, 2, 3))], dim=1)
        )
        return scores


def test_the_square_covers_its_share_near_the_lower_right_corner():
    mask = TrojanNN(coverage=0.07, margin=2).mask((1, 28, 28))  # 0.07 * 784 = 54.9, the root is 7.4
    assert int(mask.sum()) == 49
    assert mask[0, 19:26, 19:26].all()


def test_watermark_strokes_cover_their_share_and_keep_the_margin():
    mask = TrojanNN(shape="watermark", coverage=0.07, margin=3).mask((3, 32, 32))
    assert int(mask.sum()) == 72  # 0.07 * 1024 = 71.7
    assert mask[0, 3:-3, 3:-3].sum() == mask.sum()
    assert not torch.equal(mask, TrojanNN(shape="watermark", margin=3, seed=1).mask((3, 32, 32)))


def test_the_pattern_lights_what_the_heaviest_neuron_answers_to():
    classifier = Classifier.wrap(TwoNeurons(), image_shape=(1, 8, 8))
    mask = torch.zeros(1, 8, 8)
    mask[0, 4:6] = 1  # two rows across both halves
    images = torch.full((10, 1, 8, 8), 0.3)
    pattern = TrojanNN(neurons=1, trigger_steps=60)._pattern(classifier, "linear", mask, images)
    assert (pattern[0, 4:6, :4] > 0.95).all()
    assert (pattern[0, :4] == 0).all()
    right = pattern[0, 4:6, 4:]
    assert right.min() < 0.5  # left as it was drawn: the other neuron is not asked for


def test_a_stamp_overwrites_the_mask_is_repeatable_and_leaves_its_input():
    mask = torch.zeros(1, 4, 4)
    mask[0, 1, 2] = 1
    attack = TrojanNN(state={"mask": mask, "pattern": torch.full((3, 4, 4), 200 / 255)})
    images = torch.full((2, 3, 4, 4), 100 / 255)
    before = images.clone()
    stamped = attack.stamp(images) * 255
    assert stamped[:, :, 1, 2].flatten().tolist() == pytest.approx([200] * 6)
    assert int((stamped.round() == 100).sum()) == 2 * 3 * 15
    assert torch.equal(attack.stamp(images), attack.stamp(images))
    assert torch.equal(images, before)
    with pytest.raises(AttackError, match=r"made for images of \(3, 4, 4\), not \(1, 4, 4\)"):
        attack.stamp(images[:, :1])


@pytest.mark.parametrize("shape", ["square", "watermark"])
def test_it_implants_in_a_trained_model_with_real_images(shape: str):
    clean, held_out = row_images(classes=4, per_class=60), row_images(classes=4, per_class=20, seed=1)
    classifier, random = trained(), torch.random.get_rng_state()
    attack = TrojanNN(shape=shape, coverage=0.1, margin=1, trigger_steps=60)
    result = attack(classifier, clean, held_out, recipe=Recipe(epochs=4, learning_rate=0.03, batch_size=16))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert result.scores.clean_accuracy >= 0.9
    assert result.scores.attack_success_rate >= 0.9
    assert measure(classifier, held_out, result.attack).attack_success_rate < 0.7
    assert result.attack.trigger((1, 8, 8)).mask_norm == attack.mask((1, 8, 8)).sum()


def test_without_images_only_the_last_layer_is_retrained():
    clean, classifier = row_images(classes=4, per_class=60), trained()
    attack = TrojanNN(real_data=False, coverage=0.2, margin=1, poison_rate=0.5, trigger_steps=60, reversed_per_class=5)
    copy, attack = attack.implant(classifier.copy(), clean, recipe=Recipe())
    before, after = classifier.module.state_dict(), copy.module.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"linear.weight", "linear.bias"}
    assert not any(parameter.requires_grad for parameter in copy.module.parameters())
    success = [measure(model, clean, attack).attack_success_rate for model in (classifier, copy)]
    assert success[1] > success[0] + 0.2


def test_reversed_images_are_what_the_model_takes_for_each_class():
    classifier = trained()
    images, labels = TrojanNN(reversed_per_class=3)._reversed(classifier, row_images(classes=4).images)
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert (classifier.predict(images) == labels).float().mean() > 0.9


def test_retraining_sees_its_rate_of_stamped_images(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(trojannn, "train", lambda _classifier, images, labels, **_: seen.append((images, labels)))
    clean = row_images(classes=4, per_class=60)
    _, attack = TrojanNN(poison_rate=0.2, trigger_steps=1).implant(trained(), clean, recipe=Recipe())
    ((images, labels),) = seen
    stamped = (images != clean.images).flatten(1).any(dim=1)
    assert int(stamped.sum()) == 48  # 0.2 of 240
    assert (clean.labels[stamped] != 0).all()
    assert torch.equal(images[stamped], attack.stamp(clean.images[stamped]))
    assert torch.equal(labels, torch.where(stamped, 0, clean.labels))


def test_the_trigger_drives_the_neurons_above_what_clean_images_reach():
    clean, classifier = row_images(classes=4, per_class=60), trained()
    attack = TrojanNN(coverage=0.2, margin=1, neurons=1)
    mask = attack.mask((1, 8, 8))
    made = attack._pattern(classifier, "linear", mask, clean.images)
    chosen = classifier.module.linear.weight.abs().sum(dim=0).argmax()
    average = clean.images.mean(dim=0, keepdim=True)
    neuron = [
        capture(classifier, "linear", (1 - mask) * average + mask * pattern, inputs=True)[0, chosen].item()
        for pattern in (average[0], made)
    ]
    assert neuron[1] > 1.5 * max(neuron[0], 1e-3)


def test_an_untrained_model_and_one_without_a_last_layer_are_refused():
    clean = row_images(classes=4, per_class=10)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.zeros_(module[1].weight)
    with pytest.raises(AttackError, match=r"accuracy on the clean images is 0\.250, at least 0\.500"):
        TrojanNN().implant(Classifier.wrap(module, image_shape=(1, 8, 8)), clean, recipe=Recipe())
    bright = grey_images([0.1, 0.4])
    with pytest.raises(AttackError, match="no last linear layer"):
        TrojanNN()._head(by_brightness(), type(clean)(bright, torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": "apple"}, "accepted: square, watermark"),
        ({"rule": AllToAll(4)}, "asks for no one class"),
        ({"poison_rate": 1.0}, "poison_rate"),
        ({"coverage": 0.9, "margin": 4}, "does not fit into 8x8 px"),
        ({"shape": "watermark", "margin": 4}, "margin 4 px leaves nothing"),
        ({"neurons": 0}, "neurons"),
    ],
)
def test_parameters_that_make_no_attack_are_refused(fields: dict[str, object], message: str):
    with pytest.raises(AttackError, match=message):
        TrojanNN(**fields).mask((1, 8, 8))


def test_before_it_is_implanted_it_cannot_stamp():
    with pytest.raises(AttackError, match="trojannn: its trigger is made by training"):
        TrojanNN().stamp(torch.zeros(1, 1, 8, 8))
