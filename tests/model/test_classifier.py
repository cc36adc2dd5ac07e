from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.classifier import Classifier, autocast, hooked
from backdoor_audit.model.layers import LayerMap
from backdoor_audit.model.loading import load_classifier, save_classifier
from backdoor_audit.repairs.pruning import pruned
from tests.subjects import Computed, assert_unchanged, by_brightness, random_network, seeded, snapshot


def linear(inputs=16, classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


class Tagged(torch.Tensor):
    """A tensor that answers for itself what it is asked, and always gives the wrong answer."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise SystemExit(f"asked for {func.__name__}")


def refusal(module, **options):
    with pytest.raises(ModelFormatError) as caught:
        Classifier.wrap(module, **{"image_shape": (1, 4, 4), **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_normalisation_happens_inside():
    seen = []
    module = Computed(lambda images: seen.append(images.clone()) or images.flatten(1)[:, :2])
    subject = Classifier.wrap(module, image_shape=(3, 2, 2), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    subject(torch.full((1, 3, 2, 2), 0.75))
    assert seen[-1][0, :, 0, 0].tolist() == pytest.approx([0.5, 2.0, 0.375])


def test_one_mean_and_std_serve_all_channels():
    subject = Classifier.wrap(linear(12), image_shape=(3, 2, 2), mean=[0.5], std=[0.25])
    assert subject.mean == (0.5, 0.5, 0.5)
    assert subject.std == (0.25, 0.25, 0.25)
    mixed = Classifier.wrap(linear(12), image_shape=(3, 2, 2), mean=(0.1, 0.2, 0.3), std=[0.25])
    assert (mixed.mean, mixed.std) == ((0.1, 0.2, 0.3), (0.25, 0.25, 0.25))


def test_without_mean_and_std_the_network_sees_the_pixels():
    module = linear()
    images = torch.rand(3, 1, 4, 4, generator=seeded())
    assert torch.allclose(Classifier.wrap(module, image_shape=(1, 4, 4))(images), module(images))


def test_one_score_for_two_classes_is_refused_with_the_way_out():
    assert "torch.cat([-score, score], dim=1) in a factory for --arch" in refusal(linear(classes=1))
    assert "torch.stack([-score, score], dim=1) in a factory for --arch" in refusal(
        nn.Sequential(linear(classes=1), nn.Flatten(0))
    )
    assert refusal(nn.Flatten(0)).endswith("at least 2 classes")


@pytest.mark.parametrize("sides", [(3, 1, 1), (1, 3)])
def test_scores_with_sides_of_length_one_are_refused_with_the_way_out(sides):
    assert "scores.flatten(1), in a factory for --arch" in refusal(nn.Sequential(linear(), nn.Unflatten(1, sides)))
    assert refusal(nn.Unflatten(1, (1, 1))).endswith("at least 2 classes")


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.5), (1.0,)), ((0.0,), (0.0,)), ((0.0,), (-1.0,)), ((0.0,) * 3, (1.0,) * 3)]
)
def test_a_normalisation_that_does_not_fit_the_channels_is_refused(mean, std):
    assert "normalisation" in refusal(linear(), mean=mean, std=std)


@pytest.mark.parametrize(
    "images",
    [
        torch.ones(2, 1, 4, 4, dtype=torch.uint8),
        torch.ones(2, 1, 4, 4, dtype=torch.long),
        torch.full((2, 1, 4, 4), 255.0),
        torch.full((2, 1, 4, 4), 1.01),
        torch.full((2, 1, 4, 4), -0.5),
        torch.full((2, 1, 4, 4), torch.nan),
        torch.full((2, 1, 4, 4), torch.inf),
    ],
    ids=["uint8", "int64", "0-255", "above-1", "below-0", "nan", "inf"],
)
def test_pixels_outside_zero_to_one_are_refused(images):
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        by_brightness().predict(images)


def test_no_images_have_no_scores_even_where_the_network_cannot_take_an_empty_batch():
    module = Computed(lambda images: images.reshape(images.shape[0], -1)[:, :3])
    assert Classifier.wrap(module, image_shape=(1, 4, 4)).logits(torch.empty(0, 1, 4, 4)).shape == (0, 3)


def test_gradients_reach_the_pixels_and_not_the_weights():
    subject = Classifier.wrap(linear(), image_shape=(1, 4, 4), mean=(0.5,), std=(0.25,))
    images = torch.rand(2, 1, 4, 4, generator=seeded()).requires_grad_()
    subject(images)[:, 1].sum().backward()
    weight = subject.module[1].weight
    assert torch.allclose(images.grad.flatten(1), (4 * weight[1]).expand(2, 16))
    assert weight.grad is None


def test_wrapping_leaves_the_users_module_as_it_was():
    module = random_network("small_vgg").train()
    module.features[0].register_forward_hook(lambda *_: None)
    module.linear.weight.requires_grad_(False)
    module.linear.bias.grad = torch.ones(5)
    before = snapshot(module)
    subject = Classifier.wrap(module, image_shape=(1, 8, 8))
    subject.predict(torch.rand(4, 1, 8, 8, generator=seeded()))
    subject.layers()
    assert_unchanged(before, module)
    assert not subject.module.training
    assert not any(parameter.requires_grad for parameter in subject.module.parameters())


def test_later_changes_to_the_users_module_do_not_reach_the_classifier():
    module = linear()
    subject = Classifier.wrap(module, image_shape=(1, 4, 4))
    images = torch.rand(2, 1, 4, 4, generator=seeded())
    before = subject.logits(images)
    with torch.no_grad():
        module[1].weight.zero_()
    assert torch.equal(subject.logits(images), before)


def test_a_copy_shares_no_weights():
    subject = Classifier.wrap(linear(), image_shape=(1, 4, 4), mean=(0.3,), std=(0.2,))
    images = torch.rand(2, 1, 4, 4, generator=seeded())
    before = subject.logits(images)
    copied = subject.copy()
    assert torch.equal(copied.logits(images), before)
    copied.module[1].weight.data.zero_()
    assert torch.equal(subject.logits(images), before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["linear.weight", "features.0.1.running_var"])
def test_weights_and_buffers_that_are_not_finite_are_refused(name, value):
    module = random_network("small_cnn")
    module.state_dict()[name].view(-1)[0] = value
    message = refusal(module, image_shape=(1, 8, 8))
    assert name in message
    assert "1 tensors hold NaN or infinite" in message


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.eye(4).to_sparse(), "sparse"),
        (torch.empty(4, device="meta"), "meta"),
    ],
)
def test_tensors_without_plain_numbers_are_refused(tensor, name):
    module = linear()
    module.register_buffer(name, tensor)
    assert f"1 tensors are sparse, quantised or without values ({name})" in refusal(module)


def test_numbers_of_eight_bits_are_asked_whether_they_are_finite():
    module = linear()
    module.register_buffer("scale", torch.ones(4).to(torch.float8_e5m2))
    assert Classifier.wrap(module, image_shape=(1, 4, 4)).num_classes == 3
    module.scale = torch.full((4,), torch.inf).to(torch.float8_e5m2)
    assert "scale" in refusal(module)


def test_half_precision_weights_are_computed_in_single_precision():
    subject = Classifier.wrap(linear().half(), image_shape=(1, 4, 4))
    assert subject.logits(torch.rand(2, 1, 4, 4, generator=seeded())).dtype == torch.float32


@pytest.mark.parametrize(
    "form",
    [
        lambda scores: scores,
        lambda scores: SimpleNamespace(logits=scores),
        lambda scores: (scores, torch.zeros(2, 4, 3, 3)),
        lambda scores: [torch.zeros(()), scores],
        lambda scores: {"loss": torch.zeros(()), "logits": scores, "embedding": torch.zeros(2, 9)},
        lambda scores: {"out": scores, "maps": torch.zeros(2, 4, 3, 3)},
        lambda scores: scores.double(),
        lambda scores: scores.as_subclass(Tagged),
    ],
    ids=[
        "tensor",
        "logits-attribute",
        "tuple-with-feature-map",
        "list-with-loss",
        "dict-with-logits",
        "dict-with-one-matrix",
        "double-precision",
        "subclass",
    ],
)
def test_scores_are_found_in_whatever_a_network_returns(form):
    inner = linear()
    subject = Classifier.wrap(Computed(form, inner), image_shape=(1, 4, 4))
    images = torch.rand(2, 1, 4, 4, generator=seeded())
    assert subject.num_classes == 3
    assert torch.allclose(subject(images), inner(images))
    assert (type(subject(images)), subject(images).dtype) == (torch.Tensor, torch.float32)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (lambda scores: (scores, scores), "returns tuple"),
        (lambda scores: {"out": scores, "other": scores}, "returns dict"),
        (lambda scores: scores.long(), "torch.int64"),
        (lambda scores: scores > 0, "torch.bool"),
        (lambda scores: scores.to(torch.complex64), "torch.complex64"),
        (torch.Tensor.to_sparse, "torch.sparse_coo"),
        (lambda scores: None, "returns NoneType"),
        (lambda scores: scores[0], r"shape (3,)"),
        (lambda scores: scores[:, :1], r"shape (2, 1)"),
        (lambda scores: scores.view(2, 3, 1, 1), r"shape (2, 3, 1, 1)"),
    ],
)
def test_outputs_that_are_not_one_row_of_scores_per_image_are_refused(form, expected):
    assert expected in refusal(Computed(form, linear()))


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 3), linear(47)])
def test_a_network_that_cannot_take_the_images_is_refused_in_one_line(module):
    assert "does not accept 1x4x4 images" in refusal(module)


@pytest.mark.parametrize(("takes", "have"), [(3, 1), (1, 3), (3, 4)])
@pytest.mark.parametrize(
    "normalisation", [{}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}, {"mean": (0.5,), "std": (0.5,)}]
)
@pytest.mark.parametrize(
    "of",
    [
        lambda channels: random_network("small_cnn", image_shape=(channels, 4, 4)),
        lambda channels: linear(16 * channels),
    ],
)
def test_a_network_for_another_number_of_channels_says_how_to_convert_the_images(of, normalisation, takes, have):
    said = refusal(of(takes), image_shape=(have, 4, 4), architecture="net", **normalisation)
    assert said == (
        f"net takes images with {takes} channels, the clean images have {have} ({have}x4x4): pass --channels={takes}, or "
        "correct --arch"
    )


@pytest.mark.parametrize(("channels", "have"), [(4, 1), (4, 3), (2, 1)])
def test_a_network_for_channels_that_no_images_have_is_told_as_such(channels, have):
    network = random_network("small_cnn", image_shape=(channels, 4, 4))
    with pytest.raises(
        ModelFormatError, match=rf"^net takes images with {channels} channels; audited are networks of 1 or 3: "
    ):
        Classifier.wrap(network, image_shape=(have, 4, 4), architecture="net")


def test_numbers_for_the_channels_of_other_images_are_refused_where_the_network_takes_these():
    said = refusal(linear(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert said.startswith("normalisation: mean (0.485, 0.456, 0.406)")


def test_a_failure_with_a_message_of_many_lines_is_told_in_one():
    def fails(images):
        raise RuntimeError("first\nsecond\nthird")

    assert "images: first;" in refusal(Computed(fails))


@pytest.mark.parametrize(
    ("name", "layer", "channels", "neurons"),
    [
        ("small_cnn", "features", 8, 8),
        ("small_vgg", "features", 8, 8),
        ("small_resnet", "layer3", 8, 8),
        ("preact_resnet18", "layer4", 16, 16),
    ],
)
def test_the_layers_of_the_known_networks(name, layer, channels, neurons):
    subject = Classifier.wrap(random_network(name, image_shape=(3, 16, 16)), image_shape=(3, 16, 16))
    assert subject.layers() == LayerMap(feature_layer=layer, channels=channels, head="linear", neurons=neurons)


def test_a_network_without_feature_maps_has_a_head_only():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
    subject = Classifier.wrap(module, image_shape=(1, 4, 4))
    assert subject.layers() == LayerMap(feature_layer=None, channels=0, head="3", neurons=6)


class TinyTransformer(nn.Module):
    """Patches of 4x4 pixels become tokens; one encoder layer, the mean token, a linear head."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.encoder(tokens)).mean(dim=1))


def test_the_patch_embedding_of_a_transformer_is_not_its_last_feature_map():
    subject = Classifier.wrap(TinyTransformer(), image_shape=(1, 16, 16))
    assert subject.layers() == LayerMap(feature_layer=None, channels=0, head="head", neurons=8)


class SharedPooling(nn.Module):
    """Two convolutions that share one pooling layer, as many tutorials write it."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(24, 3)

    def forward(self, images):
        maps = self.pool(functional.relu(self.conv2(self.pool(functional.relu(self.conv1(images))))))
        return self.fc(maps.flatten(1))


def test_a_layer_that_runs_twice_per_image_is_not_taken_for_the_last_feature_map():
    subject = Classifier.wrap(SharedPooling(), image_shape=(1, 8, 8))
    assert subject.layers() == LayerMap(feature_layer="conv2", channels=6, head="fc", neurons=24)


def test_a_network_that_ends_in_a_convolution_has_no_head():
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert Classifier.wrap(module, image_shape=(1, 8, 8)).layers() == LayerMap("0", 3, None, 0)


def test_a_hook_lives_as_long_as_its_block():
    module, calls = nn.Linear(2, 2), []
    with hooked(module, lambda *_: calls.append(1)):
        module(torch.zeros(1, 2))
    module(torch.zeros(1, 2))
    with pytest.raises(RuntimeError), hooked(module, lambda *_: calls.append(1)):
        module(torch.zeros(1, 3))
    module(torch.zeros(1, 2))
    assert calls == [1]


def test_a_saved_classifier_answers_the_same_after_loading(tmp_path):
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8), mean=(0.3,), std=(0.2,))
    save_classifier(
        Classifier.wrap(subject.module, image_shape=(1, 8, 8), mean=(0.3,), std=(0.2,), architecture="small_cnn"),
        tmp_path / "m.safetensors",
    )
    images = torch.rand(20, 1, 8, 8, generator=seeded())
    assert torch.allclose(load_classifier(tmp_path / "m.safetensors").logits(images), subject.logits(images), atol=1e-6)


@pytest.mark.parametrize(("layer", "inputs"), [("features", False), ("linear", True)])
def test_a_pruned_copy_is_not_saved_as_weights_that_come_back_unpruned(tmp_path, layer, inputs):
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8), architecture="small_cnn")
    with pytest.raises(ModelFormatError, match="forward hook") as caught:
        save_classifier(pruned(subject, layer, torch.tensor([0]), inputs=inputs), tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.safetensors").exists()


def convolution(*extra):
    return nn.Sequential(nn.Conv2d(1, 2, 3), *extra)


@pytest.mark.parametrize(
    ("capabilities", "module", "expected"),
    [
        ({"avx512_bf16": True}, convolution(), torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, convolution(nn.BatchNorm2d(2)), torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, convolution(), torch.float32),
        ({}, convolution(), torch.float32),
        ({"avx512_bf16": True}, convolution(nn.LayerNorm(6)), torch.float32),
        ({"avx512_bf16": True}, linear(), torch.float32),
    ],
)
def test_a_search_on_a_cpu_is_in_bfloat16_if_the_cpu_has_it_and_the_network_gains(
    monkeypatch, capabilities, module, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    images = torch.rand(1, 1, 8, 8, generator=seeded())
    with autocast(torch.device("cpu"), module):
        assert functional.conv2d(images, images).dtype is expected
    assert functional.conv2d(images, images).dtype is torch.float32


def test_where_torch_cannot_tell_what_the_cpu_has_a_search_is_in_full_precision(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    images = torch.rand(1, 1, 8, 8, generator=seeded())
    with autocast(torch.device("cpu"), convolution()):
        assert functional.conv2d(images, images).dtype is torch.float32
