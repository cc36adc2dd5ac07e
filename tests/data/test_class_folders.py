"""Which folders are classes: parts of a data set, what lies around the classes, and masks are none."""

import shutil

import pytest

from backdoor_audit.data import load_clean_set
from tests.subjects.clean_images import class_folders, image_file, message_of

AS_TABLE = "lay the images out in one folder per class, or write path and class of each into FILE.csv and give that"


def test_the_parts_of_a_data_set_are_not_taken_for_classes(tmp_path):
    for part in ("train", "test"):
        class_folders(tmp_path / part, ["a", "b"], each=1)
    assert message_of(tmp_path) == (
        f"test, train are parts of a data set, not classes; give one of them, as in --audit-data={tmp_path}/test"
    )
    assert load_clean_set(tmp_path / "test").class_names == ("a", "b")


@pytest.mark.parametrize(
    ("parts", "one"),
    [
        (("seg_train", "seg_test", "seg_pred"), "seg_test"),
        (("train_data", "valid_data"), "valid_data"),
        (("trainImages", "Test-Set"), "Test-Set"),
        (("train2017", "val2017"), "val2017"),
    ],
)
@pytest.mark.parametrize("doubled", [False, True])
def test_parts_are_told_by_a_word_of_their_names_also_where_an_archive_doubled_them(parts, one, doubled, tmp_path):
    for part in parts:
        class_folders(tmp_path / part / (part if doubled else ""), ["a", "b"], each=1)
    home = tmp_path / one / (one if doubled else "")
    assert message_of(tmp_path) == (
        f"{', '.join(sorted(parts))} are parts of a data set, not classes; give one of them, as in --audit-data={home}"
    )
    assert load_clean_set(home).class_names == ("a", "b")


def test_parts_are_told_where_one_of_them_has_no_class_folders(tmp_path):
    for part in ("seg_train", "seg_test"):
        class_folders(tmp_path / part, ["a", "b"], each=1)
    image_file(tmp_path / "seg_pred" / "0.png")
    assert message_of(tmp_path).endswith(f"not classes; give one of them, as in --audit-data={tmp_path}/seg_test")


def test_parts_are_told_beside_other_folders(tmp_path):
    for part in ("Train", "Test", "extra"):
        class_folders(tmp_path / part, ["a", "b"], each=1)
    image_file(tmp_path / "Meta" / "0.png")  # as in the German traffic signs of Kaggle
    advice = f"as in --audit-data={tmp_path}/Test"
    assert message_of(tmp_path) == f"Test, Train are parts of a data set, not classes; give one of them, {advice}"
    for part in ("Test", "Train"):
        shutil.rmtree(tmp_path / part)
        image_file(tmp_path / part / "0.png")
    shutil.rmtree(tmp_path / "extra")
    message = message_of(tmp_path)
    assert message.startswith("Test, Train are parts of a data set, not classes, and nothing tells the classes")
    assert message.endswith(", or pass --audit-class-names=Meta,Test,Train where these are the classes")
    assert len(load_clean_set(tmp_path, class_names=["Train", "Test", "Meta"])) == 3


def test_folders_inside_of_every_class_are_told_as_they_may_be_the_classes(tmp_path):
    for kind in ("color", "grayscale"):
        class_folders(tmp_path / kind, ["apple", "cherry"], each=1)
    assert load_clean_set(tmp_path).notes == (
        "classes are color, grayscale, whose images lie in folders of their own (apple, cherry); where these are the classes, "
        f"give the folder that they lie in, as in --audit-data={tmp_path}/color",
    )
    image_file(tmp_path / "grayscale" / "0.png")
    assert load_clean_set(tmp_path).notes == ()


def test_parts_inside_of_every_class_are_none(tmp_path):
    for kind in ("cat", "dog"):
        class_folders(tmp_path / kind, ["train", "test"], each=1)
    assert load_clean_set(tmp_path).notes == ()


def test_a_part_whose_pictures_lie_in_one_folder_is_not_the_one_to_give(tmp_path):
    class_folders(tmp_path / "train", ["n01/images", "n02/images"], each=1)
    class_folders(tmp_path / "val", ["images"])  # as in Tiny ImageNet, where a text tells their classes
    assert message_of(tmp_path).endswith(f"give one of them, as in --audit-data={tmp_path}/train")


def test_classes_that_share_a_word_with_parts_are_classes(tmp_path):
    for name in ("freight_train", "passenger_train"):
        class_folders(tmp_path / name, ["a", "b"], each=1)
    assert load_clean_set(tmp_path).class_names == ("freight_train", "passenger_train")


@pytest.mark.parametrize(
    ("above", "what"),
    [
        ("images", "images is no class: it is the only folder, and its images lie in folders of their own"),
        ("archive/images", "archive is no class: it is the only folder, and its images lie in folders of their own"),
        ("test", "test is a part of a data set, not a class"),
        (
            "data/seg_test/seg_test",
            "data is no class: it is the only folder, and its images lie in folders of their own",
        ),
    ],
)
def test_folders_around_the_class_folders_are_no_class(above, what, tmp_path):
    home = class_folders(tmp_path / above, ["a", "b"], each=1)
    advice = f"give the folder of the class folders, as in --audit-data={home}"
    (tmp_path / "README.txt").write_text("what this is")
    assert message_of(tmp_path) == f"{what}; {advice}"
    assert load_clean_set(home).class_names == ("a", "b")


def test_parts_whose_images_lie_in_no_class_folders_are_no_classes_unless_somebody_says_so(tmp_path):
    class_folders(tmp_path, ["test", "train"])
    assert message_of(tmp_path) == (
        f"test, train are parts of a data set, not classes, and nothing tells the classes of the images in them; {AS_TABLE}, or "
        "pass --audit-class-names=test,train where these are the classes"
    )
    assert set(load_clean_set(tmp_path, class_names=["train", "test"]).labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("folder", "table", "advice"),
    [
        ("train", "", AS_TABLE),
        ("images", "", AS_TABLE),
        ("jpg", "", AS_TABLE),
        ("pool", "labels.csv", "labels.csv may have them: give it, as in --audit-data={}/labels.csv, or " + AS_TABLE),
        (
            "images",
            "val_annotations.txt",
            "val_annotations.txt may have them: give it, as in --audit-data={}/val_annotations.txt, or " + AS_TABLE,
        ),
    ],
)
def test_a_folder_alone_that_is_a_part_or_has_a_table_beside_it_is_no_class(folder, table, advice, tmp_path):
    class_folders(tmp_path, [folder])
    if table:
        (tmp_path / table).write_text("id,label\n")
    assert message_of(tmp_path) == (
        f"{folder} is the only folder, and nothing tells the classes of the images in it; {advice.format(tmp_path)}"
    )


@pytest.mark.parametrize("folders", [("images", "masks"), ("img", "labels"), ("train_images", "train_masks", "images")])
def test_pictures_and_what_is_drawn_over_them_are_no_classes(folders, tmp_path):
    class_folders(tmp_path, folders)
    assert "are pictures and what is drawn over them, not classes, and nothing tells the classes" in message_of(
        tmp_path
    )
    assert set(load_clean_set(tmp_path, class_names=folders).labels.tolist()) == {*range(len(folders))}


@pytest.mark.parametrize(
    ("picture", "drawn"),
    [
        ("images/a-1.png", "masks/a-1.png"),
        ("a-1.png", "GT/a-1.png"),
        ("a (1).png", "a (1)_mask.png"),
        ("x/a.jpg", "x/a_mask_1.png"),
        ("a.png", "a-segmentation.png"),
    ],
)
def test_what_is_drawn_over_the_pictures_of_a_class_is_left_out(picture, drawn, tmp_path):
    for name in ("ill", "well"):
        image_file(tmp_path / name / picture)
        image_file(tmp_path / name / drawn)
    clean_set = load_clean_set(tmp_path)
    assert len(clean_set) == 2
    assert clean_set.notes == ("2 pictures left out: drawn over another picture of their class, as masks are",)


def test_pictures_called_as_masks_are_read_where_there_is_none_that_they_are_drawn_over(tmp_path):
    for name in ("mask", "no_mask"):
        for picture in ("1-with-mask.png", "2_mask.png", "masks/3.png"):
            image_file(tmp_path / name / picture)
    assert len(load_clean_set(tmp_path)) == 6


@pytest.mark.parametrize("folders", [("mask", "no_mask"), ("mask", "labels"), ("images", "drawings")])
def test_classes_that_are_called_so_are_classes(folders, tmp_path):
    class_folders(tmp_path, folders)
    assert load_clean_set(tmp_path).class_names == tuple(sorted(folders))
