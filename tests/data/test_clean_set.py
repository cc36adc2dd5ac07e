import itertools
import os
import time

import numpy as np
import pytest
import torch

from backdoor_audit import bounds
from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.data.clean_set import choose
from backdoor_audit.errors import DataFormatError
from tests.subjects.clean_images import class_folders, message_of
from tests.subjects.messages import one_line


def numbered(labels, names=()):
    """A set in which the first pixel of image i is i / 255."""
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return CleanSet.of(images, np.array(labels), names)


def numbers(clean_set):
    return (clean_set.images[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((5, 8, 6, 3), (3, 8, 6)),
        ((5, 3, 8, 6), (3, 8, 6)),
        ((5, 8, 6, 1), (1, 8, 6)),
        ((5, 1, 8, 6), (1, 8, 6)),
        ((5, 3, 8, 3), (3, 8, 3)),
        ((5, 8, 6), (1, 8, 6)),
        ((5, 3, 6), (1, 3, 6)),
    ],
)
@pytest.mark.parametrize("convert", [torch.from_numpy, lambda array: array])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_the_channel_is_the_axis_of_one_or_three(shape, found, convert, dtype):
    clean_set = CleanSet.of(convert(np.ones(shape, dtype)), convert(np.arange(5, dtype=np.uint8)))
    assert clean_set.image_shape == found
    assert clean_set.images.dtype == torch.float32
    assert clean_set.labels.dtype == torch.int64
    assert float(clean_set.images.max()) == pytest.approx(1 / 255 if dtype == np.uint8 else 1)


DARK = (
    "no pixel is above 1 of 255, as where pixels in [0, 1] were divided by 255 again or became whole numbers; give bytes of "
    "0-255, floats in [0, 1] up to 1, or pictures saved from such"
)


@pytest.mark.parametrize(
    ("scaled", "notes"),
    [
        (lambda pixels: (pixels / 255).astype(np.uint8), (DARK,)),
        (lambda pixels: (pixels / 255 / 255).astype(np.float32), (DARK,)),
        (lambda pixels: (pixels / 255 / 255).astype(np.float64), (DARK,)),
        (lambda pixels: np.minimum(pixels, 2), ()),
        (lambda pixels: (pixels / 255).astype(np.float32), ()),
        (np.zeros_like, ()),
    ],
)
def test_images_that_were_divided_twice_are_told(scaled, notes, tmp_path):
    pixels = np.arange(256, dtype=np.uint8).repeat(2).reshape(2, 16, 16)
    clean_set = CleanSet.of(scaled(pixels), np.array([0, 1]))
    assert clean_set.notes == notes
    np.savez(tmp_path / "images.npz", images=scaled(pixels), labels=[0, 1])
    assert load_clean_set(tmp_path / "images.npz").notes == notes


def test_pictures_of_such_images_are_told_as_well(tmp_path):
    class_folders(tmp_path, ["a"], each=2)  # whose brightest pixel is 1
    assert load_clean_set(tmp_path).notes == (DARK,)


def test_a_channels_last_image_keeps_its_pixels_in_place():
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3), np.uint8)
    pixel = CleanSet.of(image, np.array([0])).images[0, 2, 3, 4]
    assert float(pixel) == pytest.approx(image[0, 3, 4, 2] / 255)


GOOD = np.zeros((2, 4, 4, 1), np.float32)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD + 255, [0, 1], "pixels in [255, 255]; accepted: floats in [0, 1]; divide by 255"),
        (GOOD - 2, [0, 1], "undo the normalisation"),
        (GOOD * np.nan, [0, 1], "images with NaN or infinite pixels"),
        (GOOD.astype(np.int64), [0, 1], "images of torch.int64; accepted: uint8"),
        ((GOOD + 7).astype(np.int64), [0, 1], "floats in [0, 1]; convert them to uint8"),
        ((GOOD + 999).astype(np.uint16), [0, 1], "lie in [999, 999]: divide them by the largest value"),
        (GOOD > 1, [0, 1], "images of torch.bool; accepted: uint8 in 0-255 or floats in [0, 1]; convert"),
        (np.zeros((2, 4, 4, 4), np.uint8), [0, 1], "images of shape (2, 4, 4, 4)"),
        (np.zeros((2, 4), np.uint8), [0, 1], "images of shape (2, 4)"),
        (
            np.zeros((8, 6, 3, 2), np.uint8),
            [0, 1],
            "of (h, w, c, n), as MATLAB has them, give images.transpose(3, 0, 1, 2)",
        ),
        (np.zeros((2, 8, 8, 4), np.uint8), [0, 1], "leave transparency out, images[..., :3]"),
        (np.zeros((2, 4, 8, 8), np.uint8), [0, 1], "leave transparency out, images[:, :3]"),
        (np.zeros((2, 3072), np.uint8), [0, 1], "of rows as CIFAR has them give images.reshape(-1, 3, 32, 32)"),
        (np.zeros((2, 784), np.uint8), [0, 1], "of rows as MNIST has them give images.reshape(-1, 28, 28)"),
        (np.zeros((0, 4, 4, 1), np.uint8), [], "no images"),
        (np.array([["a"]]), [0], "images are no dense array of numbers (numpy type <U1)"),
        ([[1], [2, 3]], [0, 1], "images are no dense array of numbers (setting an array element"),
        (np.zeros(2, [("a", "f4")]), [0, 1], "images are no dense array of numbers (numpy type [('a', '<f4')])"),
        (GOOD + 0j, [0, 1], "images are no dense array of numbers (numpy type complex64)"),
        (torch.zeros(2, 1, 4, 4, device="meta"), [0, 1], "(a tensor with is_meta)"),
        (torch.zeros(2, 1, 4, 4).to_sparse(), [0, 1], "(a tensor with is_sparse)"),
        (torch.zeros(1).expand(2**50, 1, 28, 28), [0, 1], "too large for this machine's memory"),
        (GOOD, [0, 1, 1], "2 images and 3 labels"),
        (GOOD, [0.0, 1.0], "the class of each image; convert them to int64"),
        (GOOD, [0.0, 0.5], "labels of torch.float64, shape (2,); accepted: integers (n,), the class of each image"),
        (GOOD, [[1, 0], [0, 1]], "labels of torch.int64, shape (2, 2)"),
        (GOOD, [True, False], "labels of torch.bool"),
        (GOOD, [0, -1], "label -1; labels count from 0"),
        (GOOD, [0, 100_000], "label 100000; accepted: labels from 0 to 99999"),
        (GOOD, [0, 2**40], "label 1099511627776; accepted: labels from 0 to 99999"),
        (GOOD, np.array([0, 2**64 - 1], np.uint64), "label 18446744073709551615; accepted"),
        (GOOD, [0, 2**70], "labels are no dense array of numbers (numpy type object)"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_line(images, labels, message):
    with one_line(DataFormatError, message, begins="here: "):
        CleanSet.of(images, np.array(labels), source="here")


def _byte_swapped(array):
    return array.astype(array.dtype.newbyteorder(">"))


def _read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "odd",
    [
        _byte_swapped,
        _read_only,
        lambda array: array[::-1].copy()[::-1],
        lambda array: np.repeat(array, 2, axis=1)[:, ::2],
        np.asfortranarray,
        np.ndarray.tolist,
        lambda array: torch.from_numpy(array).requires_grad_(),
        lambda array: torch.from_numpy(array).as_subclass(torch.nn.Parameter),
    ],
)
def test_arrays_of_any_layout_give_the_same_set(odd):
    images = np.random.default_rng(0).random((3, 4, 5, 1)).astype(np.float32)
    plain = CleanSet.of(images.copy(), np.arange(3))
    clean_set = CleanSet.of(odd(images), np.arange(3))
    assert clean_set.fingerprint == plain.fingerprint
    assert type(clean_set.images) is torch.Tensor
    assert not clean_set.images.requires_grad


@pytest.mark.parametrize("dtype", [">i8", "u1", "<u2", "<u4", "u8", ">i2"])
def test_labels_of_every_integer_type_are_labels(dtype):
    assert CleanSet.of(GOOD, np.array([1, 7], dtype)).labels.tolist() == [1, 7]


def test_a_set_shares_no_memory_with_what_it_was_made_of():
    images, labels = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
    clean_set = CleanSet.of(images, labels)
    images += 1
    labels += 1
    assert float(clean_set.images.max()) == 0
    assert clean_set.labels.tolist() == [0, 1]


def test_class_names_are_printable_and_of_bounded_length():
    names = ["\x1b[31mred", "a\n::error::b", "\udcff", "x" * 10**6, 5, "\x1b[31mred"]
    clean_set = numbered([0, 1], names)
    assert clean_set.class_names[:3] == ("\\x1b[31mred", "a : :error::b", "\\udcff")
    assert [len(name) for name in clean_set.class_names[3:5]] == [200, 1]
    assert clean_set.num_classes == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "class names that are no texts"),
        (5, "class names that are no texts"),
        (itertools.repeat("a"), "more than 100000 class names"),
    ],
)
def test_class_names_that_are_none_are_one_line(names, message):
    with pytest.raises(DataFormatError, match=message):
        numbered([0, 1], names)


def test_a_choice_among_as_many_classes_as_images_takes_no_time():
    began = time.process_time()
    assert choose(torch.arange(99_999), 1000, 0).unique().numel() == 1000
    assert time.process_time() - began < 5


def test_classes_are_counted_by_labels_or_by_names_whichever_is_more():
    assert numbered([0, 4]).num_classes == 5
    assert numbered([0, 1], ("a", "b", "c")).num_classes == 3
    assert numbered([0]).without_class(0).num_classes == 0


def test_a_class_is_called_by_number_and_name():
    clean_set = numbered([0, 1], ("shirt", "sneaker"))
    assert [clean_set.class_name(label) for label in (1, 2)] == ["1 (sneaker)", "2"]


def test_without_class_leaves_the_others_in_order():
    assert numbers(numbered([2, 0, 1, 2, 0]).without_class(2)) == [1, 2, 4]


def test_the_fingerprint_tells_pixels_labels_and_shape_apart_but_not_names():
    fingerprints = [
        clean_set.fingerprint
        for clean_set in (
            numbered([0, 1]),
            numbered([1, 0]),
            CleanSet.of(np.zeros((2, 2, 2), np.uint8), np.array([0, 1])),
            CleanSet.of(np.zeros((2, 1, 4), np.uint8), np.array([0, 1])),
        )
    ]
    assert len(set(fingerprints)) == 4
    assert numbered([0, 1], ("a", "b")).fingerprint == fingerprints[0]


@pytest.mark.parametrize(("share", "of_each"), [(0.5, [5, 2, 1]), (0.2, [2, 1, 1]), (0.99, [9, 3, 1])])
def test_a_split_is_disjoint_complete_and_stratified(share, of_each):
    clean_set = numbered([0, 1] * 4 + [0] * 6 + [2] * 2)
    opt, val = clean_set.split(seed=3, share=share)
    assert sorted(numbers(opt) + numbers(val)) == list(range(16))
    assert torch.bincount(opt.labels).tolist() == of_each
    assert numbers(opt) == sorted(numbers(opt))


def test_a_picture_that_is_there_again_counts_once():
    once = numbered([0, 1, 0, 1, 1])
    again = CleanSet.of(once.images.repeat(3, 1, 1, 1), once.labels.repeat(3))
    assert numbers(again.without_repeats()) == numbers(once)
    assert again.without_repeats().labels.tolist() == [0, 1, 0, 1, 1]
    assert again.without_repeats().notes == ("10 images left out: the same pixels with the same label again",)
    assert once.without_repeats() is once


def test_a_picture_with_two_labels_is_two_images():
    black = CleanSet.of(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]))
    assert black.without_repeats().labels.tolist() == [0, 1]


def test_a_split_depends_on_the_seed_alone():
    clean_set = numbered([0] * 20 + [1] * 20)
    first = [numbers(part) for part in clean_set.split(seed=1)]
    torch.rand(3)
    assert [numbers(part) for part in clean_set.split(seed=1)] == first
    assert [numbers(part) for part in clean_set.split(seed=2)] != first


def test_one_image_per_class_cannot_be_split():
    with pytest.raises(DataFormatError, match="tensors: 3 images, no class has two"):
        numbered([0, 1, 2]).split(seed=0)


@pytest.mark.parametrize(("most", "of_each"), [(10, [6, 3, 1]), (3, [1, 1, 1]), (40, [24, 12, 4])])
def test_a_sample_is_in_proportion_and_has_every_class(most, of_each):
    clean_set = numbered([0] * 30 + [1] * 15 + [2] * 5)
    assert torch.bincount(clean_set.sample(most, seed=0).labels).tolist() == of_each
    assert len(clean_set.sample(most, seed=0)) == most
    assert clean_set.sample(50, seed=0) is clean_set
    assert numbers(clean_set.sample(most, seed=0)) == numbers(clean_set.sample(most, seed=0))


@pytest.mark.parametrize(
    "options", [{"resize": 0}, {"resize": (3, -1)}, {"resize": 10**30}, {"channels": 4}, {"most": 0}]
)
def test_wishes_that_cannot_be_met_are_one_line(options, tmp_path):
    assert message_of(tmp_path, **options).startswith("cannot ")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have_is_one_line(name):
    with pytest.raises(DataFormatError, match="cannot be read"):
        load_clean_set(name)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "images.npz")
    assert message_of(tmp_path / "images.npz").startswith("neither a file nor a folder")


def test_reading_ends_when_its_time_is_over(tmp_path):
    class_folders(tmp_path / "folder", ["a"])
    np.savez(tmp_path / "images.npz", images=GOOD, labels=[0, 1])
    with bounds.allowing(bounds.Bounds(seconds=0)):
        for name in ("folder", "images.npz"):
            text = message_of(tmp_path / name)
            assert text.startswith("reading takes longer than 0 s; take fewer images by --audit-max-images=N")
            assert "--audit-reading-time=TIME" in text


def test_images_that_are_too_large_once_resized_are_refused_before_they_are_made(tmp_path):
    class_folders(tmp_path / "folder", ["a"])
    np.savez(tmp_path / "images.npz", images=GOOD, labels=[0, 1])
    for name in ("folder", "images.npz"):
        text = message_of(tmp_path / name, resize=60_000)
        assert "images of 1x60000x60000 floats would take" in text
        assert text.endswith("or raise it by --audit-memory=SIZE if the file is what it should be")
