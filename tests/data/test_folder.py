import os

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_audit.data import load_clean_set
from tests.subjects.clean_images import class_folders, image_file, message_of
from tests.subjects.forbidden import forbid


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
    assert clean_set.notes == ("3 not read: .hidden, ant/.thumb.png, ant/notes.txt",)


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
    assert message_of(tmp_path, class_names=["dog"]).startswith("folders cat are not in class_names (dog); name the")


def test_a_class_folder_may_be_a_link_and_links_to_folders_inside_of_it_are_left(tmp_path):
    class_folders(tmp_path / "elsewhere", ["ants", "cats", "more"], each=2)
    folder = class_folders(tmp_path / "images", ["dog"], each=1)
    (folder / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (folder / "dog" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    clean_set = load_clean_set(folder)
    assert clean_set.class_names == ("cat", "dog")
    assert clean_set.labels.tolist() == [0, 0, 1]
    assert clean_set.notes == ("1 not read: dog/more",)


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
    Image.fromarray(np.zeros((4, 6), np.float32)).save(tmp_path / "a" / "deep.tif")
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(whole[:-30])
    text = message_of(tmp_path)
    assert text.startswith("14 unreadable images: a/0.png (")
    assert "a/bad08.png" in text
    assert "a/bad09.png" not in text
    assert "and 4 more; replace or remove them" in text


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_images_of_16_bits_are_divided_by_the_largest_number_of_16_bits(name, tmp_path):
    (tmp_path / "a").mkdir()
    values = np.array([[0, 1, 4000], [257, 65534, 65535]], np.uint16)
    if name.endswith(".pgm"):  # which Pillow writes from version 11 on
        (tmp_path / "a" / name).write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / "a" / name)
    clean_set = load_clean_set(tmp_path)
    assert clean_set.images[0, 0].tolist() == (values.astype(np.float32) / 65535).tolist()
    assert clean_set.notes == ("1 pictures of 16 bits: divided by 65535",)


@pytest.mark.parametrize("name", ["x.jfif", "x.JPEG", "x.jpe", "x.jpg.orig", "x"])
def test_a_jpeg_of_any_name_is_read(name, tmp_path):
    class_folders(tmp_path, ["a"], each=1)
    Image.new("RGB", (6, 4), (200, 0, 0)).save(tmp_path / "a" / name, "JPEG")
    clean_set = load_clean_set(tmp_path)
    assert len(clean_set) == 2
    assert clean_set.notes == ()


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_the_content_tells_a_picture_whatever_it_is_called(form, tmp_path):
    class_folders(tmp_path, ["a"], each=1)
    Image.new("RGB", (6, 4)).save(tmp_path / "a" / "picture.data", form)
    assert len(load_clean_set(tmp_path)) == 2


def test_whatever_is_not_read_is_counted_and_named(tmp_path):
    class_folders(tmp_path, ["a", "b"], each=2)
    image_file(tmp_path / "loose.png")
    for name in ("a/list.txt", "a/BMW.txt", "a/scan.heic", "b/deeper/y.svg", "b/x.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"BM and no picture")
    os.mkfifo(tmp_path / "b" / "pipe")
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    clean_set = load_clean_set(tmp_path)
    assert len(clean_set) == 4
    assert clean_set.notes == ("8 not read: a/BMW.txt, a/list.txt, a/scan.heic, b/link, b/pipe, ...",)


def test_a_path_is_told_as_a_shell_reads_it(tmp_path):
    for part in ("train", "test"):
        class_folders(tmp_path / "my images" / part, ["a", "b"], each=1)
    assert message_of(tmp_path / "my images").endswith(f"as in --audit-data='{tmp_path}/my images/test'")


def test_a_folder_without_images_beside_that_of_the_class_folders_is_told_with_both_ways_out(tmp_path):
    class_folders(tmp_path / "images", ["a", "b"], each=1)
    (tmp_path / "annotations").mkdir()
    message = message_of(tmp_path)
    assert message.startswith("no images in annotations; put images there (")
    assert message.endswith(f"or remove it, or give --audit-data={tmp_path}/images where the classes are in there")


@pytest.mark.parametrize(
    "name", ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints"]
)
def test_folders_that_systems_put_there_are_no_classes_and_told(name, tmp_path):
    class_folders(tmp_path, ["a", "b"], each=1)
    (tmp_path / name).mkdir()
    image_file(tmp_path / "a" / name / "thumb.png")
    notes = load_clean_set(tmp_path).notes
    assert notes == (f"2 not read: {name}, a/{name}",)
    image_file(tmp_path / name / "a" / "thumb.png")
    clean_set = load_clean_set(tmp_path)
    assert clean_set.class_names == ("a", "b")
    assert clean_set.labels.tolist() == [0, 1]
    assert clean_set.notes == notes


AS_TABLE = "lay the images out in one folder per class, or write path and class of each into FILE.csv and give that"


@pytest.mark.parametrize("file", ["0.txt", "val.json", "deep/0.xml"])
def test_labels_beside_the_images_are_not_advised_to_be_removed(file, tmp_path):
    class_folders(tmp_path, ["images"])
    (tmp_path / "labels" / file).parent.mkdir(parents=True)
    (tmp_path / "labels" / file).write_text("0 .5 .5 .1 .1")
    assert message_of(tmp_path) == f"no images in labels, but files of labels (labels/{file}); {AS_TABLE}"


@pytest.mark.parametrize(
    ("order", "labels", "names"),
    [
        ("", {"1": 1, "2": 2, "10": 10}, ()),
        ("number", {"1": 0, "2": 1, "10": 2}, ("1", "2", "10")),
        ("text", {"1": 0, "10": 1, "2": 2}, ("1", "10", "2")),
    ],
)
def test_numbers_are_labels_or_are_sorted_as_asked_for(order, labels, names, tmp_path):
    for name in labels:
        image_file(tmp_path / name / "0.png", (int(name), 0, 0))
    clean_set = load_clean_set(tmp_path, class_order=order)
    reds = (clean_set.images[:, 0, 0, 0] * 255).round().int().tolist()
    assert {str(red): label for red, label in zip(reds, clean_set.labels.tolist(), strict=True)} == labels
    assert clean_set.class_names == names


def test_an_order_that_the_names_do_not_have_is_one_line(tmp_path):
    class_folders(tmp_path, ["1", "cat"], each=1)
    assert message_of(tmp_path, class_order="number").startswith("--audit-class-order=number, but folders cat are no")
    assert message_of(tmp_path, class_order="size") == "no class order 'size'; accepted: text, number"


def test_names_in_the_models_file_decide_where_they_have_all_classes(tmp_path):
    class_folders(tmp_path, ["0", "1", "10", "2"], each=1)
    clean_set = load_clean_set(tmp_path, model_names=("0", "1", "10", "2", "3"))
    assert clean_set.labels.tolist() == [0, 1, 2, 3]
    assert clean_set.notes == ("class order: by the names in the model's file",)
    assert sorted(load_clean_set(tmp_path, model_names=("0", "1", "2")).labels.tolist()) == [0, 1, 2, 10]


def test_names_agree_but_for_case_and_hyphens(tmp_path):
    class_folders(tmp_path, ["ice_cream", "Hot-Dog"], each=1)
    assert load_clean_set(tmp_path, class_names=["ice cream", "hot dog"]).labels.tolist() == [1, 0]


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
    assert message_of(tmp_path).startswith("no images in b, c (1 not read: 0.png); put images there")
    assert message_of(tmp_path / "gone").startswith("no such file or folder")


def test_names_that_look_the_same_are_still_two_classes(tmp_path):
    class_folders(tmp_path, ["a b", "a  b", os.fsdecode(b"\xff"), r"\udcff"], each=1)
    clean_set = load_clean_set(tmp_path)
    assert sorted(clean_set.labels.tolist()) == [0, 1, 2, 3]
    assert clean_set.class_names == (r"\udcff", "a b", "a b", r"\udcff")


def test_names_that_are_no_text_or_hold_controls_become_printable(tmp_path):
    names = [os.fsdecode(b"caf\xe9"), "x\x1b]0;title\x07", "y\n::error::z", "\u202eab"]
    clean_set = load_clean_set(class_folders(tmp_path, names, each=1))
    assert set(clean_set.class_names) == {r"caf\udce9", r"x\x1b]0;title\x07", "y : :error::z", r"\u202eab"}
    (tmp_path / names[1] / "bad.png").write_bytes(b"junk")
    assert message_of(tmp_path).startswith(r"1 unreadable images: x\x1b]0;title\x07/bad.png (")


@pytest.mark.parametrize("number", ["100000", "9223372036854775807", "99999999999999999999", "9" * 200])
def test_numbers_too_large_for_a_class_are_one_line(number, tmp_path):
    class_folders(tmp_path, ["0", number], each=1)
    assert message_of(tmp_path) == f"folders {number} are numbers and so the labels; accepted: 0 to 99999; give names"


def test_only_plain_digits_are_numbers(tmp_path):
    class_folders(tmp_path, ["-1", "\u0663", "0099999"], each=1)
    assert load_clean_set(tmp_path).class_names == ("-1", "0099999", "\u0663")
    assert load_clean_set(class_folders(tmp_path / "x", ["0", "0099999"], each=1)).num_classes == 100_000


@pytest.mark.parametrize("target", ["loop", "nowhere"])
def test_a_class_folder_that_is_a_dead_link_is_one_line(target, tmp_path):
    class_folders(tmp_path, ["a", "b"])
    (tmp_path / "loop").symlink_to(target)
    assert message_of(tmp_path).startswith("1 unreadable entries: loop (")


def test_links_inside_a_class_folder_are_never_followed_for_ever(tmp_path):
    class_folders(tmp_path, ["a", "b"], each=2)
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to("self")
    assert len(load_clean_set(tmp_path)) == 4
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "b" / "gone.png").symlink_to("nowhere.png")
    text = message_of(tmp_path)
    assert text.startswith("2 unreadable images: a/self.png (")
    assert "b/gone.png (No such file or directory)" in text


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    class_folders(tmp_path, ["a"])
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "kernel.png").symlink_to("/proc/self/status")
    text = message_of(tmp_path)
    assert text.startswith(
        "3 unreadable images: a/kernel.png (an empty file), a/pipe.png (a pipe, device or socket, not a"
    )


def test_folders_are_read_down_to_a_stated_depth(tmp_path):
    class_folders(tmp_path, ["a"], each=1)
    deep = tmp_path / "a"
    for _ in range(32):
        deep /= "n"
    image_file(deep / "1.png")
    assert len(load_clean_set(tmp_path)) == 2
    for _ in range(300):
        deep /= "n"
        deep.mkdir()
    assert message_of(tmp_path).startswith("1 unreadable entries: a (more than 32 folders inside each other)")


def test_a_folder_that_may_not_be_read_is_no_smaller_class(tmp_path, monkeypatch):
    class_folders(tmp_path, ["a", "b"])
    (tmp_path / "a" / "locked").mkdir()
    scandir = os.scandir

    def locked(path):  # the rights of a folder do not bind root, whom tests may run as
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert message_of(tmp_path).startswith("1 unreadable entries: a (Permission denied); repair or remove them")


def test_a_folder_that_may_be_listed_and_not_entered_is_one_line(tmp_path, monkeypatch):
    folder = forbid(monkeypatch, class_folders(tmp_path / "images", ["cat", "dog"], each=1))
    assert message_of(folder).startswith("cannot be read (")
    assert "Permission denied); make it and all that is in it readable" in message_of(folder)
