import pytest
import torch

from backdoor_audit import classifier as classifier_module
from backdoor_audit.activations import capture, channel_norm
from backdoor_audit.classifier import Classifier
from tests.subjects import assert_unchanged, random_network, seeded, snapshot


def test_the_three_norms_of_a_channel_worked_by_hand():
    activations = torch.tensor([[[[3.0, -4.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, -1.0]]]])
    assert channel_norm(activations, "l1").tolist() == [[7.0, 4.0]]
    assert channel_norm(activations, "l2").tolist() == [[5.0, 2.0]]
    assert channel_norm(activations, "linf").tolist() == [[4.0, 1.0]]


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2), ("linf", torch.inf)])
def test_norms_are_those_of_the_flattened_map(norm, order):
    activations = torch.randn(4, 3, 5, 6, generator=seeded())
    expected = torch.linalg.vector_norm(activations, ord=order, dim=(2, 3))
    assert torch.allclose(channel_norm(activations, norm), expected, atol=1e-5)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="l1, l2, linf"):
        channel_norm(torch.zeros(1, 1, 1, 1), "l3")


@pytest.mark.parametrize("batch", [2, 256])
def test_captured_inputs_of_the_head_give_the_logits_again(monkeypatch, batch):
    monkeypatch.setattr(classifier_module, "_BATCH", batch)
    subject = Classifier.wrap(random_network("small_vgg"), image_shape=(1, 8, 8))
    images = torch.rand(7, 1, 8, 8, generator=seeded())
    neurons = capture(subject, "linear", images, inputs=True)
    assert neurons.shape == (7, 8)
    assert torch.allclose(subject.module.linear(neurons), subject.logits(images), atol=1e-6)
    assert torch.equal(capture(subject, "linear", images), subject.logits(images))


def test_capturing_leaves_no_hook_and_no_gradient():
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    before = snapshot(subject.module)
    captured = capture(subject, "features", torch.rand(3, 1, 8, 8, generator=seeded()))
    assert not captured.requires_grad
    assert_unchanged(before, subject.module)


def test_hooks_are_gone_even_when_the_images_are_refused():
    subject = Classifier.wrap(random_network("small_cnn"), image_shape=(1, 8, 8))
    before = snapshot(subject.module)
    with pytest.raises(ValueError, match="divide by 255"):
        capture(subject, "features", torch.full((3, 1, 8, 8), 255.0))
    assert_unchanged(before, subject.module)
