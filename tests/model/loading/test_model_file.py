import pytest
from torch import nn

from backdoor_audit.errors import ModelFormatError, OptionError
from backdoor_audit.model.loading import NORMALIZATIONS, LoadedModel, normalization_of


@pytest.mark.parametrize(
    ("written", "name"),
    [("ImageNet", "imagenet"), ("CIFAR-10", "cifar10"), ("FashionMNIST", "fashion_mnist")]
    + [(name.upper().replace("_", "-"), name) for name in NORMALIZATIONS],
)
def test_a_normalisation_goes_by_its_name_however_it_is_written(written, name):
    assert normalization_of((), (), written) == NORMALIZATIONS[name]


@pytest.mark.parametrize(("mean", "std"), [((123.675,), (58.395,)), ((0.5,), (127.5,)), ((-2.5,), (1.0,))])
def test_mean_and_std_of_pixels_up_to_255_are_refused(mean, std):
    with pytest.raises(OptionError, match=r"pixels lie in \[0, 1\] here; divide --mean and --std .* by 255"):
        normalization_of(mean, std, None)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,), (0.00392157,)), ((-0.3,), (1.2,)), ((1.1, 0.5, 0.0), (2.0, 1.0, 0.1))]
)
def test_unusual_mean_and_std_of_pixels_up_to_1_are_taken(mean, std):
    assert normalization_of(mean, std, None) == (mean, std)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 28, 28), "pass --resize=64 --channels=3"),
        ((3, 28, 28), "pass --resize=64"),
        ((1, 64, 64), "pass --channels=3"),
    ],
)
def test_images_of_another_shape_than_the_file_says_are_told_what_to_pass(shape, told):
    loaded = LoadedModel(nn.Flatten(), "x", (3, 64, 64), (), (), "", ())
    with pytest.raises(ModelFormatError, match=rf"^takes 3x64x64 images \(as its file says\), .*; {told}$"):
        loaded.classifier(shape)
