import os
import struct

import numpy as np
import pytest
from PIL import Image

from backdoor_audit import bounds
from backdoor_audit.data import load_clean_set
from tests.subjects.clean_images import class_folders, image_file, message_of

IMAGENETTE = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)


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


def test_a_set_without_a_test_part_takes_the_validation_part_and_tells(tmp_path):
    for part, name in (("train", "a"), ("val", "b")):
        for wnid in IMAGENETTE:
            image_file(tmp_path / "imagenette2" / part / wnid / f"{name}.JPEG")
    clean_set = load_clean_set(f"torchvision:Imagenette?root={tmp_path}")
    assert (len(clean_set), clean_set.notes) == (10, ("read: the part val, as there is no test",))
    assert clean_set.class_name(0) == "0 (tench)"


def test_keywords_that_a_set_hands_on_are_options_as_well(tmp_path):
    raw = mnist_files(tmp_path).joinpath("MNIST", "raw").rename(tmp_path / "EMNIST-raw")
    (tmp_path / "EMNIST").mkdir()
    raw = raw.rename(tmp_path / "EMNIST" / "raw")
    for part, of_mnist in (("train", "train"), ("test", "t10k")):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{of_mnist}-{kind}-ubyte").rename(raw / f"emnist-digits-{part}-{kind}-ubyte")
    source = f"torchvision:EMNIST?root={tmp_path}&split=digits"
    assert len(load_clean_set(source)) == 6
    assert len(load_clean_set(f"{source}&train=true")) == 3
    message = message_of(f"torchvision:EMNIST?root={tmp_path}")
    assert message.endswith("'digits', 'mnist'}.); give one, as in &split=byclass")


def test_a_package_that_a_set_lacks_is_told(tmp_path, monkeypatch):
    from torchvision import datasets

    def lacking(self, root, split="train", download=False):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(datasets.SVHN, "__init__", lacking)
    assert message_of(f"torchvision:SVHN?root={tmp_path}").endswith("(No module named 'scipy'); pip install scipy")


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


@pytest.fixture
def toy(monkeypatch):
    """Makes ``torchvision:Toy`` a data set with those attributes and items."""
    from torchvision import datasets

    def make(items=(), **attributes):
        class Toy(datasets.VisionDataset):
            def __init__(self, root):
                super().__init__(root)
                vars(self).update(attributes)

            def __len__(self):
                return len(items)

            def __getitem__(self, index):
                return items[index]

        monkeypatch.setattr(datasets, "Toy", Toy, raising=False)

    return make


PICTURE = Image.new("L", (4, 4))


@pytest.mark.parametrize(
    ("items", "attributes", "message"),
    [
        ([], {}, "cannot be read (no images)"),
        ([None], {}, "cannot be read ('NoneType' object is not subscriptable)"),
        ([(PICTURE,)], {}, "cannot be read (tuple index out of range)"),
        ([(PICTURE, "a")], {}, "labels are no dense array of numbers"),
        ([(PICTURE, {})], {}, "labels are no dense array of numbers"),
        ([(PICTURE, 2**40)], {}, "label 1099511627776; accepted: labels from 0 to 99999"),
        ([(PICTURE, 2**70)], {}, "labels are no dense array of numbers"),
        ([(PICTURE, 0)], {"targets": [0] * 1000}, "1 images and 1000 labels"),
        ([(PICTURE, 0)], {"targets": 5}, "labels of torch.int64, shape ()"),
        ([(PICTURE, 0)], {"classes": None}, "cannot be read ('NoneType' object is not iterable)"),
        ([(PICTURE, 0)], {"classes": [()]}, "cannot be read (tuple index out of range)"),
        ([(np.zeros((4, 4)), 0)], {}, "1 unreadable images: image 0 (ndarray instead of an image)"),
    ],
)
def test_data_sets_with_odd_items_are_one_line(items, attributes, message, toy, tmp_path):
    toy(items, **attributes)
    assert message_of(f"torchvision:Toy?root={tmp_path}").startswith(message)


def test_names_of_a_data_set_are_printable(toy, tmp_path):
    toy([(PICTURE, 0)], classes=["\x1b[31mred", ("first", "second")])
    assert load_clean_set(f"torchvision:Toy?root={tmp_path}").class_names == ("\\x1b[31mred", "first")


@pytest.mark.parametrize("root", ["~nobody-of-that-name/x", "/dev/zero", "a%00b", "x" * 3000])
@pytest.mark.parametrize("name", ["MNIST", "ImageFolder"])
def test_a_root_that_is_no_folder_is_one_line(name, root):
    assert message_of(f"torchvision:{name}?root={root}").startswith("cannot be opened (")


def test_a_data_set_opens_pictures_by_the_same_rules(tmp_path):
    class_folders(tmp_path, ["a", "b"], each=1)
    before = Image.open
    source = f"torchvision:ImageFolder?root={tmp_path}"
    assert len(load_clean_set(source)) == 2
    (tmp_path / "a" / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    assert "image 1 (no PNG, JPEG, BMP, GIF, WebP, TIFF or PPM picture)" in message_of(source)
    (tmp_path / "a" / "eps.png").unlink()
    with bounds.allowing(bounds.Bounds(memory=1000)):
        assert "a file above 0 MB" in message_of(source)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert message_of(source).startswith("cannot be opened (a/pipe.png: a pipe, device or socket")
    (tmp_path / "a" / "pipe.png").unlink()
    (tmp_path / "b" / "up").symlink_to("..")
    assert message_of(source).startswith("cannot be opened (the link up leads back")
    (tmp_path / "b" / "up").unlink()
    (tmp_path / "loop").symlink_to("loop")
    assert message_of(source).startswith("cannot be opened ([Errno 40] Too many levels of symbolic links")
    assert Image.open is before


def damaged(root, name, content):
    (mnist_files(root) / "MNIST" / "raw" / name).write_bytes(content)
    return f"torchvision:MNIST?root={root}"


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("content", [b"", b"junk", struct.pack(">IIII", 2051, 99, 28, 28)])
def test_damaged_files_are_to_be_removed_before_others_are_fetched(name, content, tmp_path):
    source = damaged(tmp_path, name, content)
    removed = f"; where its files are damaged, remove them from {tmp_path} first, then "
    assert message_of(source).endswith(f"{removed}add &download=true to fetch them anew")
    assert message_of(f"{source}&download=true").endswith(f"{removed}run again to fetch them anew")


def test_a_part_that_a_data_set_does_not_have_is_no_damage(tmp_path):
    assert message_of(f"torchvision:GTSRB?root={tmp_path}&split=val").endswith(
        "Valid values are {'train', 'test'}.); give one, as in &split=train"
    )
