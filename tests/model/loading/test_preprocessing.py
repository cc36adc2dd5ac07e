"""What the JSON files of a Hugging Face folder say of images, against what the image processors of transformers compute."""

import json

import pytest
import torch

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.preprocessing import hints_of_transformers, takes_blue_first

EFFICIENTNET = {"image_processor_type": "EfficientNetImageProcessor", "image_mean": [0.5], "image_std": [0.4]}
MOBILEVIT = {"image_processor_type": "MobileViTImageProcessor", "image_mean": [0.5], "image_std": [0.5]}


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({**EFFICIENTNET, "include_top": True}, 0.5, 0.16),
        (EFFICIENTNET, 0.5, 0.16),
        ({**EFFICIENTNET, "include_top": False}, 0.5, 0.4),
        ({**EFFICIENTNET, "do_normalize": False}, 0.0, 0.4),
        ({**EFFICIENTNET, "rescale_factor": 1 / 127.5, "rescale_offset": True}, 0.75, 0.08),
        (MOBILEVIT, 0.0, 1.0),
        ({**MOBILEVIT, "do_normalize": True}, 0.0, 1.0),
    ],
)
def test_a_processor_that_normalises_twice_or_never_is_followed(processor, mean, std):
    hints = hints_of_transformers({}, processor)
    assert hints.mean == pytest.approx((mean,))
    assert hints.std == pytest.approx((std,))


def test_a_spread_of_zero_that_is_divided_by_is_refused():
    with pytest.raises(ModelFormatError, match="no usable image_mean"):
        hints_of_transformers({}, {**EFFICIENTNET, "image_std": [0.0], "do_normalize": False})


@pytest.mark.parametrize(
    ("processor", "flipped"),
    [
        (MOBILEVIT, True),
        ({**MOBILEVIT, "do_flip_channel_order": False}, False),
        ({"image_processor": {"do_flip_channel_order": True}}, True),
        (EFFICIENTNET, False),
        ({}, False),
    ],
)
def test_the_order_of_colours_is_that_of_the_processor_wherever_its_settings_lie(processor, flipped):
    assert takes_blue_first(processor) is flipped


def test_images_that_a_processor_does_not_scale_are_of_the_size_of_the_network():
    processor = {"image_mean": [0.5], "image_std": [0.5], "do_resize": False, "size": 224}
    assert hints_of_transformers({}, processor).image_shape is None
    assert hints_of_transformers({"image_size": 32}, processor).image_shape == (3, 32, 32)
    assert hints_of_transformers({}, {**processor, "do_resize": True}).image_shape == (3, 224, 224)


@pytest.mark.parametrize("kind", ["ViT", "ConvNext", "Bit", "DeiT", "Levit", "EfficientNet", "MobileViT", "PoolFormer"])
def test_images_are_prepared_as_transformers_does(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{kind}ImageProcessor")(do_resize=False, do_center_crop=False)
    processor.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "preprocessor_config.json").read_text())
    bytes_ = torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = processor(bytes_, return_tensors="pt")["pixel_values"][0]
    hints = hints_of_transformers({}, told)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (hints.mean, hints.std))
    pixels = (bytes_ / 255 - mean) / std
    assert torch.allclose(pixels.flip(0) if takes_blue_first(told) else pixels, expected, atol=1e-4)
