import io
import sys

import pytest
from PIL import Image

from backdoor_audit.data import load_clean_set
from tests.subjects.clean_images import image_file, message_of

datasets = pytest.importorskip("datasets")
pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def rows(labels, **extra):
    pictures = [Image.new("RGB", (6, 4), (number + 2, 0, 0)) for number in range(len(labels))]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels, **extra}).cast_column(
        "image", datasets.Image()
    )


def test_a_data_set_saved_to_disk_is_read(tmp_path):
    rows(["cat", "ant", "cat"], id=[7, 8, 9]).save_to_disk(tmp_path)
    clean_set = load_clean_set(tmp_path)
    assert clean_set.labels.tolist() == [1, 0, 1]
    assert clean_set.class_names == ("ant", "cat")
    assert (clean_set.images[:, 0, 0, 0] * 255).tolist() == pytest.approx([2, 3, 4])
    assert len(load_clean_set(tmp_path, most=2)) == 2


def test_labels_with_names_of_their_own_keep_their_numbers_unless_the_model_has_the_names(tmp_path):
    named = datasets.ClassLabel(names=["dog", "cat"])
    rows([1, 0]).cast_column("label", named).save_to_disk(tmp_path)
    assert load_clean_set(tmp_path).labels.tolist() == [1, 0]
    assert load_clean_set(tmp_path).class_names == ("dog", "cat")
    assert load_clean_set(tmp_path, model_names=("cat", "dog")).labels.tolist() == [0, 1]


def test_of_several_parts_the_test_part_is_read(tmp_path):
    datasets.DatasetDict(train=rows([0, 1, 1]), test=rows([1, 0])).save_to_disk(tmp_path)
    clean_set = load_clean_set(tmp_path)
    assert clean_set.labels.tolist() == [1, 0]
    assert clean_set.notes == ("read: the part test of train, test",)
    assert len(load_clean_set(tmp_path / "train")) == 3
    datasets.DatasetDict(one=rows([0]), two=rows([1])).save_to_disk(tmp_path / "odd")
    assert message_of(tmp_path / "odd").startswith("parts one, two, none of them test or validation; give one")


def test_a_part_whose_labels_nobody_gave_away_is_passed_over(tmp_path):
    datasets.DatasetDict(train=rows([0]), validation=rows([0, 1, 1]), test=rows([-1, -1])).save_to_disk(tmp_path)
    clean_set = load_clean_set(tmp_path)
    assert clean_set.labels.tolist() == [0, 1, 1]
    assert clean_set.notes[0] == "read: the part validation of train, validation, test"


def test_pictures_that_lay_in_files_are_in_the_saved_data_set(tmp_path):
    image_file(tmp_path / "0.png", (9, 0, 0))
    table = datasets.Dataset.from_dict({"image": [str(tmp_path / "0.png"), None], "label": [0, 1]})
    table.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    (tmp_path / "0.png").unlink()
    assert message_of(tmp_path / "saved").startswith("1 unreadable images: image 1 (no picture in this row;")


def test_pictures_of_a_parquet_file_that_does_not_call_them_so_are_read_as_the_package_turns_them(tmp_path):
    turned, content = Image.Exif(), io.BytesIO()
    turned[0x112] = 6
    Image.new("RGB", (6, 4), (9, 9, 9)).save(content, "JPEG", exif=turned)
    pictures = [{"bytes": content.getvalue(), "path": None}]
    parquet.write_table(pyarrow.table({"image": pictures, "label": [0]}), tmp_path / "a.parquet")
    read = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    read.save_to_disk(tmp_path / "saved")
    clean_set = load_clean_set(tmp_path / "saved")
    assert clean_set.image_shape == (3, 6, 4)
    assert clean_set.notes == ()


def test_saved_data_sets_that_cannot_be_used_are_one_line(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "text")
    assert message_of(tmp_path / "text").startswith("columns text, label; accepted: what datasets.Dataset.save_to_disk")
    rows([0, 1]).save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])
    assert message_of(tmp_path / "saved").startswith("cannot be read (")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message_of(tmp_path / "saved").endswith("pip install 'backdoor-audit[datasets]'")
