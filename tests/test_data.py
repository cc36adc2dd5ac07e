import struct

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_audit.data import CleanSet, load_clean_set
from backdoor_audit.errors import DataFormatError


def image_file(path, colour=(255, 0, 0), size=(6, 4), mode="RGB"):
    """One image of ``size`` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def class_folders(folder, names, each=3):
    for label, name in enumerate(names):
        for index in range(each):
            image_file(folder / name / f"{index}.png", (label * 10, index, 0))
    return folder


def message_of(source, **options):
    with pytest.raises(DataFormatError) as caught:
        load_clean_set(source, **options)
    text = str(caught.value)
    assert text.startswith(f"{source}: ")
    assert "\n" not in text
    return text.removeprefix(f"{source}: ")


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
        (np.zeros((2, 4, 4, 4), np.uint8), [0, 1], "images of shape (2, 4, 4, 4)"),
        (np.zeros((2, 4), np.uint8), [0, 1], "images of shape (2, 4)"),
        (np.zeros((0, 4, 4, 1), np.uint8), [], "no images"),
        (np.array([["a"]]), [0], "images of numpy type <U1"),
        (GOOD, [0, 1, 1], "2 images and 3 labels"),
        (GOOD, [0.0, 1.0], "labels of torch.float64"),
        (GOOD, [[1, 0], [0, 1]], "labels of torch.int64, shape (2, 2)"),
        (GOOD, [True, False], "labels of torch.bool"),
        (GOOD, [0, -1], "label -1; labels count from 0"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_line(images, labels, message):
    with pytest.raises(DataFormatError) as caught:
        CleanSet.of(images, np.array(labels), source="here")
    assert str(caught.value).startswith("here: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_sorted_folder_names_are_the_labels(tmp_path):
    class_folders(tmp_path, ["cat", "ant", "dog"])
    image_file(tmp_path / ".hidden" / "0.png")
    (tmp_path / "ant" / ".thumb.png").write_bytes(b"junk")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    image_file(tmp_path / "ant" / "more" / "deep.PNG", (10, 9, 0))
    clean_set = load_clean_set(tmp_path)
    assert clean_set.class_names == ("ant", "cat", "dog")
    assert torch.bincount(clean_set.labels).tolist() == [4, 3, 3]
    reds = (clean_set.images[:, 0, 0, 0] * 255).round().int().tolist()
    assert reds == [10] * 4 + [0] * 3 + [20] * 3
    assert clean_set.image_shape == (3, 4, 6)
    assert clean_set.source == str(tmp_path)


def test_numbers_as_folder_names_are_the_labels_themselves(tmp_path):
    clean_set = load_clean_set(class_folders(tmp_path, ["10", "2", "00007"], each=1))
    assert sorted(clean_set.labels.tolist()) == [2, 7, 10]
    assert clean_set.class_names == ()
    image_file(tmp_path / "7" / "0.png")
    assert message_of(tmp_path) == "folders 00007, 7 are the same class; name each class once"


def test_given_class_names_decide_the_labels(tmp_path):
    class_folders(tmp_path, ["cat", "dog"], each=1)
    clean_set = load_clean_set(tmp_path, class_names=["dog", "emu", "cat"])
    assert clean_set.labels.tolist() == [2, 0]
    assert clean_set.num_classes == 3
    assert message_of(tmp_path, class_names=["dog"]) == "folders cat are not in class_names (dog)"


def test_one_colour_image_makes_all_of_them_rgb(tmp_path):
    image_file(tmp_path / "a" / "0.png", 51, mode="L")
    assert load_clean_set(tmp_path).image_shape == (1, 4, 6)
    image_file(tmp_path / "a" / "1.png", (255, 0, 0, 0), mode="RGBA")
    images = load_clean_set(tmp_path).images
    assert images[:, :, 0, 0].tolist() == [pytest.approx([0.2, 0.2, 0.2]), [1, 0, 0]]
    grey = load_clean_set(tmp_path, channels=1).images
    assert grey[:, :, 0, 0].flatten().tolist() == pytest.approx([0.2, 0.299])


def test_images_of_different_sizes_ask_for_resize(tmp_path):
    for index, size in enumerate([(6, 4), (6, 4), (5, 5)]):
        image_file(tmp_path / "a" / f"{index}.png", size=size)
    assert message_of(tmp_path).startswith("images of 2 sizes, 4x6 (2), 5x5 (1); pass --resize=")
    assert load_clean_set(tmp_path, resize=3).image_shape == (3, 3, 3)
    assert load_clean_set(tmp_path, resize=(3, 8)).image_shape == (3, 3, 8)


def test_resize_takes_the_mean_of_the_pixels_it_merges(tmp_path):
    image = torch.zeros(1, 1, 8, 8)
    image[:, :, ::2] = 1  # without antialiasing every second row would vanish
    np.savez(tmp_path / "rows.npz", images=image.numpy(), labels=[0])
    resized = load_clean_set(tmp_path / "rows.npz", resize=2)
    assert resized.images.flatten().tolist() == pytest.approx([0.5] * 4, abs=0.1)


def test_all_unreadable_files_are_named_at_once(tmp_path):
    class_folders(tmp_path, ["a"])
    for index in range(12):
        (tmp_path / "a" / f"bad{index:02}.png").write_bytes(b"junk")
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "a" / "deep.png")
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(whole[:-30])
    text = message_of(tmp_path)
    assert text.startswith("14 unreadable images: a/0.png (")
    assert "a/bad08.png" in text
    assert "a/bad09.png" not in text
    assert "and 4 more; replace or remove them" in text


def test_images_of_16_bits_are_not_cut_off_in_silence(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 6), 4000, np.uint16)).save(tmp_path / "a" / "deep.png")
    assert "accepted: 8 bits per channel" in message_of(tmp_path)


def test_only_the_chosen_files_are_opened(tmp_path):
    class_folders(tmp_path, ["a", "b"], each=4)
    chosen = load_clean_set(tmp_path, most=4, seed=5)
    assert torch.bincount(chosen.labels).tolist() == [2, 2]
    kept = {(int(image[0, 0, 0] * 255 + 0.5) // 10, int(image[1, 0, 0] * 255 + 0.5)) for image in chosen.images}
    for label, name in enumerate("ab"):
        for index in range(4):
            if (label, index) not in kept:
                (tmp_path / name / f"{index}.png").write_bytes(b"junk")
    assert load_clean_set(tmp_path, most=4, seed=5).fingerprint == chosen.fingerprint


def test_folders_that_cannot_be_used_are_one_line(tmp_path):
    assert message_of(tmp_path).startswith("no class folders; accepted")
    image_file(tmp_path / "0.png")
    assert message_of(tmp_path).startswith("1 images but no class folders")
    class_folders(tmp_path, ["a"])
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    assert message_of(tmp_path).startswith("no images in b, c; put images there")
    assert message_of(tmp_path / "gone").startswith("no such file or folder")


@pytest.mark.parametrize("options", [{"resize": 0}, {"resize": (3, -1)}, {"channels": 4}, {"most": 0}])
def test_wishes_that_cannot_be_met_are_one_line(options, tmp_path):
    assert message_of(tmp_path, **options).startswith("cannot ")


def test_an_npz_file_is_read_chosen_from_and_converted(tmp_path):
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 4
    np.savez(path, images=images, labels=labels, class_names=np.array(["a", "b", "c", "d"]))
    whole = load_clean_set(path)
    assert torch.equal(whole.images, torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert whole.class_names == ("a", "b", "c", "d")
    some = load_clean_set(str(path), most=8, seed=1, resize=4, channels=1, class_names="wxyz")
    assert (some.image_shape, some.class_names) == ((1, 4, 4), ("w", "x", "y", "z"))
    assert torch.equal(some.labels, whole.sample(8, seed=1).labels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_test": GOOD, "y_test": [0, 1]}, "no images and no labels, found x_test, y_test;"),
        ({"images": GOOD}, "no labels, found images;"),
        ({"images": np.array([{}, {}], dtype=object), "labels": [0, 1]}, "cannot be read (Object arrays"),
        ({"images": GOOD, "labels": [0, 1], "class_names": [1, 2]}, "class_names of int64"),
        ({"images": GOOD, "labels": [0]}, "2 images and 1 labels"),
        ({"images": np.float32(1), "labels": [0, 1]}, "images of shape ()"),
    ],
)
@pytest.mark.parametrize("most", [None, 1])
def test_npz_files_that_cannot_be_used_are_one_line(arrays, message, most, tmp_path):
    np.savez(tmp_path / "images.npz", **arrays)
    assert message_of(tmp_path / "images.npz", most=most).startswith(message)


def test_damaged_npz_files_are_one_line(tmp_path):
    path = tmp_path / "images.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).random((20, 8, 8)), labels=np.zeros(20, int))
    content = bytearray(path.read_bytes())
    content[300:400] = b"x" * 100
    path.write_bytes(content)
    assert message_of(path).startswith("cannot be read (")
    path.write_bytes(content[:500])
    assert message_of(path).startswith("not an .npz file; accepted: a folder")


def mnist_files(root):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 6)):
        pixels = np.arange(count * 784, dtype=np.int64).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        labels = bytes(index % 3 for index in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)
    return root


def test_a_torchvision_set_is_opened_by_name(tmp_path):
    root = mnist_files(tmp_path)
    clean_set = load_clean_set(f"torchvision:MNIST?root={root}")
    assert (len(clean_set), clean_set.image_shape) == (6, (1, 28, 28))
    assert clean_set.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert clean_set.class_name(1) == "1 (1 - one)"
    assert clean_set.images[1].flatten()[:3].tolist() == pytest.approx([16 / 255, 17 / 255, 18 / 255])
    train = load_clean_set(f"torchvision:MNIST?root={root}&train=true", most=2, channels=3, resize=14)
    assert (len(train), train.image_shape) == (2, (3, 14, 14))


def test_a_torchvision_set_with_splits_takes_the_test_part(tmp_path, monkeypatch):
    from torchvision import datasets

    class Toy(datasets.VisionDataset):
        def __init__(self, root, split="train", download=False):
            super().__init__(root)
            assert not download
            self.size = {"train": 5, "test": 2}[split]

        def __len__(self):
            return self.size

        def __getitem__(self, index):
            return Image.new("RGB", (4, 4)), index

    monkeypatch.setattr(datasets, "Toy", Toy, raising=False)
    assert len(load_clean_set(f"torchvision:Toy?root={tmp_path}")) == 2
    assert len(load_clean_set(f"torchvision:Toy?root={tmp_path}&split=train")) == 5
    assert message_of(f"torchvision:Toy?root={tmp_path}&split=val").startswith("cannot be opened ('val')")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:CIFAR1?root=x", "torchvision has no data set 'CIFAR1'; did you mean CIFAR10"),
        ("torchvision:Zzzzzzzz", "torchvision has no data set 'Zzzzzzzz'; see torchvision.datasets"),
        ("torchvision:CIFAR10", "root is missing; accepted: torchvision:CIFAR10?root=&train=&download="),
        ("torchvision:CIFAR10?root=x&split=test", "CIFAR10 has no option 'split'"),
        ("torchvision:CIFAR10?root=x&train=no", "train=no; accepted: true or false"),
        ("torchvision:CIFAR10?root=gone", "cannot be opened (Dataset not found or corrupted."),
    ],
)
def test_torchvision_sources_that_cannot_be_used_are_one_line(source, message):
    text = message_of(source)
    assert text.startswith(message)
    assert "gone" not in source or text.endswith("add &download=true to fetch it")
