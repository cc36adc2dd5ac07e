import json
import time

import pytest

from backdoor_audit.data import load_clean_set
from backdoor_audit.errors import DataFormatError
from tests.subjects.clean_images import image_file, message_of

LABELS = {"a/0.png": "cat", "1.png": "ant", "b c.png": "cat"}


@pytest.fixture
def pictures(tmp_path):
    """Three pictures whose red is their number."""
    for number, name in enumerate(LABELS):
        image_file(tmp_path / name, (number, 0, 9))
    return tmp_path


def labels_by_red(clean_set):
    reds = (clean_set.images[:, 0, 0, 0] * 255).round().int().tolist()
    return dict(zip(reds, clean_set.labels.tolist(), strict=True))


@pytest.mark.parametrize("header", ["file_name,label", "path,class", "Image , Target", ""])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_paths_and_labels_is_read(header, separator, pictures):
    rows = [*([header] if header else []), *(f'"{name}",{label}' for name, label in LABELS.items())]
    table = pictures / "labels.csv"
    table.write_text("\ufeff" + "\r\n".join(rows).replace(",", separator) + "\r\n\r\n")
    clean_set = load_clean_set(table)
    assert labels_by_red(clean_set) == {0: 1, 1: 0, 2: 1}
    assert clean_set.class_names == ("ant", "cat")
    assert clean_set.source == str(table)


@pytest.mark.parametrize("between", [" ", "\t", ",", "  "])
def test_a_list_of_paths_and_labels_is_read(between, pictures):
    table = pictures / "labels.txt"
    table.write_text(
        "\n" * (between == "  ") + "\n".join(f"{name}{between}{label}" for name, label in LABELS.items()) + "\n"
    )
    clean_set = load_clean_set(table)
    assert labels_by_red(clean_set) == {0: 1, 1: 0, 2: 1}
    assert clean_set.class_names == ("ant", "cat")


@pytest.mark.parametrize("name", ["c,d/0.png", "c;d.png", "c, d.png"])
def test_paths_of_a_list_may_hold_what_separates_a_csv_file(name, pictures):
    image_file(pictures / name, (5, 0, 0))
    table = pictures / "labels.txt"
    table.write_text(f"{name} 1\n\na/0.png 0\n")
    assert labels_by_red(load_clean_set(table)) == {5: 1, 0: 0}
    table.write_text(f"gone,0.png 1\n{name} 1\na/0.png 0\n")
    assert message_of(table).startswith("1 unreadable images: gone,0.png (No such file")


def test_a_text_is_a_csv_file_where_one_line_is_no_path_and_label(pictures):
    image_file(pictures / "c,d.png", (5, 0, 0))
    (pictures / "labels.txt").write_text("c,d.png 1\n1.png,0\n")
    assert message_of(pictures / "labels.txt").startswith("columns c, d.png 1; accepted: a header")


@pytest.mark.parametrize("line", ["cat a/0.png", "1.png", "1.png hot dog", "names label"])
def test_a_text_that_is_no_list_of_pictures_is_one_line(line, pictures):
    (pictures / "labels.txt").write_text(f"1.png 0\n{line}\n")
    assert message_of(pictures / "labels.txt") == (
        f"line 2: {line}; accepted: the path of a picture and its label in every line, between them a space or a comma"
    )


def test_lines_of_json_are_read_whatever_the_file_is_called(pictures):
    rows = [{"image": name, "label": label, "told": "one line\u2028or two"} for name, label in LABELS.items()]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (pictures / "test.jsonl").write_text("\r\n".join(lines), encoding="utf-8")
    assert labels_by_red(load_clean_set(pictures / "test.jsonl")) == {0: 1, 1: 0, 2: 1}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("parts", "reds", "note"),
    [
        (("train", "test", "test"), [1, 2], "read: the rows of the part test of test, train"),
        (("train", "Val", "train"), [1], "read: the rows of the part Val of Val, train"),
        (("train", "test", "TEST"), [1, 2], "read: the rows of the parts TEST, test of TEST, test, train"),
        (("testing", "train", "test"), [0, 2], "read: the rows of the parts test, testing of test, testing, train"),
        (("valid", "test", "Val"), [1], "read: the rows of the part test of Val, test, valid"),
        (("test", "TEST", "Test"), [0, 1, 2], ""),
        (("a", "train", "a"), [0, 1, 2], "read: the rows of all parts a, train, none of them test or validation"),
        (("train", "train", "train"), [0, 1, 2], ""),
    ],
)
def test_of_the_parts_in_a_table_the_held_out_one_is_read(suffix, parts, reds, note, pictures):
    table = pictures / f"labels.{suffix}"
    rows = [(name, label, part) for (name, label), part in zip(LABELS.items(), parts, strict=True)]
    keys = ("file_name", "label", "split")
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
    table.write_text("\n".join(lines if suffix == "jsonl" else map(",".join, [keys, *rows])))
    clean_set = load_clean_set(table)
    assert list(labels_by_red(clean_set)) == reds
    assert clean_set.notes == ((note,) if note else ())


def in_parts(table, *rows):
    """A table of the three pictures with these labels and parts."""
    lines = [f"{name},{label},{part}" for name, (label, part) in zip(LABELS, rows, strict=True)]
    table.write_text("\n".join(["file_name,label,split", *lines]))
    return table


def test_a_class_that_the_held_out_part_lacks_keeps_its_place(pictures):
    table = in_parts(pictures / "labels.csv", ("dog", "train"), ("cat", "test"), ("emu", "test"))
    clean_set = load_clean_set(table)
    assert labels_by_red(clean_set) == {1: 0, 2: 2}
    assert clean_set.class_names == ("cat", "dog", "emu")
    table.rename(pictures / "metadata.csv")
    assert load_clean_set(pictures).class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize(("order", "labels"), [("text", {1: 1, 2: 2}), ("number", {1: 2, 2: 1})])
def test_an_order_ranks_the_labels_of_all_parts(order, labels, pictures):
    table = in_parts(pictures / "labels.csv", ("1", "train"), ("10", "test"), ("2", "test"))
    clean_set = load_clean_set(table, class_order=order)
    assert labels_by_red(clean_set) == labels
    assert len(clean_set.class_names) == 3


@pytest.mark.parametrize("other", ["-1", "", "unlabelled"])
def test_labels_of_other_parts_refuse_nothing(other, pictures):
    table = in_parts(pictures / "labels.csv", (other, "train"), ("3", "test"), ("0", "test"))
    assert labels_by_red(load_clean_set(table)) == {1: 3, 2: 0}
    table = in_parts(pictures / "labels.csv", (other, "train"), ("cat", "test"), ("ant", "test"))
    assert labels_by_red(load_clean_set(table, class_names=["cat", "ant"])) == {1: 0, 2: 1}


def test_columns_are_found_by_their_names(pictures):
    table = pictures / "labels.csv"
    table.write_text("id,label,size,file_name\n" + "".join(f"7,{k}.0,6,{name}\n" for k, name in enumerate(LABELS)))
    clean_set = load_clean_set(table)
    assert labels_by_red(clean_set) == {0: 0, 1: 1, 2: 2}
    assert clean_set.class_names == ()
    assert labels_by_red(load_clean_set(table, class_order="text")) == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    "header",
    [
        *("image_id,class_name,class_id", "Filename,label,ClassId", "id,category,category_id"),
        *("filepaths,labels,class id", "Image Path,Class Label,Label-Idx", "IMAGES,Classname,target.id"),
    ],
)
def test_numbers_of_classes_win_over_their_names_in_a_table(header, pictures):
    table = pictures / "labels.csv"
    table.write_text(f"{header}\na/0.png,zebra,0\n1.png,ant,1\n")
    assert labels_by_red(load_clean_set(table)) == {0: 0, 1: 1}


def with_numbers(table, label, number, *rows):
    """A table of the pictures with a name and a number of the class."""
    entries = [{"path": path, label: name, number: count} for path, (name, count) in zip(LABELS, rows, strict=True)]
    lines = [json.dumps(entry) for entry in entries]
    if table.suffix == ".csv":
        lines = [",".join(entries[0]), *(",".join(map(str, entry.values())) for entry in entries)]
    table.write_text("\n".join(lines))
    return table


NUMBERED = (("zebra", 0), ("ant", 1), ("zebra", 0))
TOLD = "labels: the numbers of the classes that stand beside their names"


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
@pytest.mark.parametrize(
    ("label", "number"), [("label", "target"), ("class", "y"), ("label", "category"), ("label", "class_id")]
)
def test_numbers_beside_names_are_the_labels_unless_an_order_of_the_names_is_known(label, number, name, pictures):
    table = with_numbers(pictures / name, label, number, *NUMBERED)
    clean_set = load_clean_set(table)
    assert labels_by_red(clean_set) == {0: 0, 1: 1, 2: 0}
    assert clean_set.notes == (TOLD,)
    assert clean_set.class_names == ("zebra", "ant")
    assert labels_by_red(load_clean_set(table, model_names=["ant", "zebra"])) == {0: 1, 1: 0, 2: 1}
    assert labels_by_red(load_clean_set(table, class_names=["bee", "ant", "zebra"])) == {0: 2, 1: 1, 2: 2}
    with pytest.raises(DataFormatError, match="labels zebra are not in class_names"):
        load_clean_set(table, class_names=["bee", "ant"])


@pytest.mark.parametrize("rows", [(("zebra", 0), ("ant", 1), ("zebra", 7)), (("zebra", 0), ("ant", 0), ("zebra", 0))])
def test_numbers_that_do_not_go_with_the_names_are_something_else(rows, pictures):
    clean_set = load_clean_set(with_numbers(pictures / "labels.csv", "label", "y", *rows))
    assert labels_by_red(clean_set) == {0: 1, 1: 0, 2: 1}
    assert clean_set.notes == ()


def test_names_beside_numbers_are_shown_only_where_every_class_has_one(pictures):
    table = with_numbers(pictures / "labels.csv", "label", "target", ("zebra", 3), ("ant", 1), ("zebra", 3))
    assert load_clean_set(table).class_names == ()


@pytest.mark.parametrize(("order", "labels"), [("number", {0: 0, 1: 1, 2: 0}), ("text", {0: 1, 1: 0, 2: 1})])
def test_an_order_ranks_the_numbers_beside_the_names(order, labels, pictures):
    table = with_numbers(pictures / "labels.csv", "label", "target", ("zebra", 9), ("ant", 10), ("zebra", 9))
    assert labels_by_red(load_clean_set(table, class_order=order)) == labels


@pytest.mark.parametrize("column", ["set", "phase", "Usage", "data set", "train_or_test", "Mode"])
def test_the_column_that_tells_the_parts_goes_by_several_names(column, pictures):
    table = in_parts(pictures / "labels.csv", ("a", "train"), ("a", "test"), ("b", "test"))
    table.write_text(table.read_text().replace("split", column))
    assert list(labels_by_red(load_clean_set(table))) == [1, 2]


@pytest.mark.parametrize(
    ("column", "flags"),
    [
        ("is_test", [False, True, True]),
        ("is_valid", [0, 1, 1]),
        ("isTrain", ["true", "FALSE", "no"]),
        ("is train", [1, 0, 0]),
    ],
)
@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
def test_a_column_may_say_of_every_row_whether_it_is_of_a_part(column, flags, name, pictures):
    rows = [{"file_name": path, "label": "ab"[k > 1], column: flags[k]} for k, path in enumerate(LABELS)]
    lines = [json.dumps(row) for row in rows]
    if name.endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (pictures / name).write_text("\n".join(lines))
    clean_set = load_clean_set(pictures / name)
    assert list(labels_by_red(clean_set)) == [1, 2]
    assert any(note.startswith("read: the rows of the part ") for note in clean_set.notes)


def test_a_flag_that_says_neither_tells_no_parts(pictures):
    table = in_parts(pictures / "labels.csv", ("a", "1"), ("a", "2"), ("b", "?"))
    table.write_text(table.read_text().replace("split", "is_train"))
    assert len(load_clean_set(table)) == 3


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
def test_a_label_that_is_a_number_comes_before_other_numbers_of_classes(pictures, name):
    rows = [
        {"file_name": path, "y": 7, "category_id": 3 - k, "label": k} for k, path in enumerate(("a/0.png", "1.png"))
    ]
    lines = [json.dumps(row) for row in rows]
    if name.endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (pictures / name).write_text("\n".join(lines))
    assert labels_by_red(load_clean_set(pictures / name)) == {0: 0, 1: 1}


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl"])
def test_a_name_as_it_is_listed_comes_before_its_plural(pictures, name):
    rows = [{"images": 9, "labels": 7, "image": path, "label": k} for k, path in enumerate(("a/0.png", "1.png"))]
    lines = [json.dumps(row) for row in rows]
    if name.endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (pictures / name).write_text("\n".join(lines))
    assert labels_by_red(load_clean_set(pictures / name)) == {0: 0, 1: 1}


def test_a_table_of_pixels_says_how_they_become_a_data_set(pictures):
    table = pictures / "labels.csv"
    table.write_text(",".join(("label", *(f"pixel{k}" for k in range(16)))) + "\n" + ",".join("1" * 17) + "\n")
    with pytest.raises(
        DataFormatError, match=r"and 9 more; accepted: .*; where it holds the pixels, write .*numpy\.savez"
    ):
        load_clean_set(table)


def test_a_table_of_something_else_beside_class_folders_says_to_move_it(pictures):
    (pictures / "metadata.csv").write_text("id,source\n1,web\n")
    with pytest.raises(DataFormatError, match=r"columns id, source; .*the classes, move it elsewhere"):
        load_clean_set(pictures)


def test_paths_of_a_table_may_be_absolute(pictures, tmp_path_factory):
    table = tmp_path_factory.mktemp("elsewhere") / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{pictures / name},{label}\n" for name, label in LABELS.items()))
    assert len(load_clean_set(table, most=2)) == 2


@pytest.mark.parametrize("folder", ["", "images"])
@pytest.mark.parametrize("ending", ["", ".png"])
def test_names_without_their_folder_or_ending_are_found_beside_the_table(folder, ending, tmp_path):
    for number in range(2):
        image_file(tmp_path / folder / f"p{number}.png", (number, 0, 9))
    (tmp_path / "other").mkdir()
    stem = "" if ending else ".png"
    (tmp_path / "labels.csv").write_text(f"id,breed,label\np0{stem},x,cat\np1{stem},x,ant\n")
    clean_set = load_clean_set(tmp_path / "labels.csv")
    assert labels_by_red(clean_set) == {0: 1, 1: 0}
    told = f"pictures: {f'in {folder}/ ' if folder else ''}beside the table{', with .png' if ending else ''}"
    assert [note for note in clean_set.notes if note.startswith("pictures")] == [told] * bool(folder or ending)


def test_a_name_that_several_pictures_have_is_refused(pictures):
    image_file(pictures / "b" / "0.png", (7, 0, 0))
    (pictures / "labels.csv").write_text("id,label\n0,cat\n1,ant\n")
    assert message_of(pictures / "labels.csv").startswith("0 may be a/0.png, b/0.png; write each path as it is")


def test_rows_with_the_box_of_each_picture_are_read(pictures):
    """As in the validation part of Tiny ImageNet."""
    rows = [f"{name}\t{label}\t0\t32\t44\t62" for name, label in LABELS.items()]
    (pictures / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    assert labels_by_red(load_clean_set(pictures / "val_annotations.txt")) == {0: 1, 1: 0, 2: 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "columns absent; accepted: a header with file_name"),
        ("file_name,label\n", "no rows; accepted: a header"),
        ("one,two\nthree,four\n", "columns one, two; accepted: a header"),
        (
            "image,a,b\n0,1.0,0.0\n",
            "no column of labels; of one column of 0 and 1 for each class (a, b) make a column label",
        ),
        ("file_name,label\n1.png\n", "row 1 has 1 columns, the first one 2;"),
        ("file_name,label\n,cat\n", "1 rows without a path that a file can have;"),
        ("file_name,label\n1.png,0\ngone.png,1\n", "1 unreadable images: gone.png (No such file"),
        (
            "id,label\n7,0\na/0,1\n",
            "none of its 2 pictures is there (7, ...); write each path as it is from the table's own folder",
        ),
        ("path,label\na\\0.png,0\na\\1.png,1\n", "none of its 2 pictures is there (a\\0.png, ...); write each path"),
        ('file_name,label\n"1.png,0\n', "not CSV ("),
        (b"file_name,label\n\xff.png,0\n", "cannot be read (not UTF-8 at byte 16: save it as UTF-8);"),
        ("file_name,label\n1.png,99999999999\n", "labels 99999999999 are numbers and so the labels;"),
        (
            "file_name,label\n1.png,0\na/0.png,-1\n",
            "label -1; labels count from 0, in whole numbers; correct these rows",
        ),
        ("file_name,label\n1.png,0\na/0.png,0.5\n", "label 0.5; labels count from 0"),
        ("file_name,label\n1.png,0\na/0.png,nan\n", "label nan; labels count from 0"),
        ("file_name,label\n1.png,cat\na/0.png,\n", "1 rows without a label: a/0.png; label them or leave them out"),
        ("file_name,label\n1.png,cat\n./1.png,ant\n", "./1.png has the labels cat, ant; give every picture one label"),
        ("file_name,label\n/dev/zero,1\n", "1 unreadable images: /dev/zero (a pipe, device or socket"),
    ],
)
def test_tables_that_cannot_be_used_are_one_line(content, message, pictures):
    table = pictures / "labels.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message_of(table).startswith(message)


def test_numbers_that_do_not_count_are_names_where_somebody_says_so(pictures):
    table = pictures / "labels.csv"
    table.write_text("file_name,label\na/0.png,-1\n1.png,1\n")
    for asked in ({"class_order": "text"}, {"class_names": ["-1", "1"]}, {"model_names": ["-1", "1"]}):
        clean_set = load_clean_set(table, **asked)
        assert labels_by_red(clean_set) == {0: 0, 1: 1}
        assert clean_set.class_names == ("-1", "1")


def test_a_picture_that_is_named_again_is_read_once_and_told(pictures):
    table = pictures / "labels.csv"
    rows = ["a/0.png,cat", "a/0.png,cat", "./a/../1.png,ant", f"{pictures / '1.png'},ant", "b c.png,cat"]
    table.write_text("\n".join(["file_name,label", *rows]))
    clean_set = load_clean_set(table)
    assert labels_by_red(clean_set) == {0: 1, 1: 0, 2: 1}
    assert len(clean_set) == 3
    assert clean_set.notes == ("2 rows left out: the same picture again",)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_metadata_is_read_by_it(name, pictures):
    rows = [{"file_name": file, "label": label} for file, label in list(LABELS.items())[:2]]
    lines = ["file_name,label", *(f"{row['file_name']},{row['label']}" for row in rows)]
    (pictures / name).write_text("\n".join(map(json.dumps, rows) if name.endswith("jsonl") else lines))
    clean_set = load_clean_set(pictures)
    assert labels_by_red(clean_set) == {0: 1, 1: 0}
    assert clean_set.class_names == ("ant", "cat")
    assert clean_set.notes == ("1 not read: b c.png",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON (Expecting property name enclosed in double quotes"),
        ("[" * 100_000, 'line 1: objects or lists more than 100 deep; accepted: {"file_name": '),
        ('{"file_name": "1.png", "label": 1e999}', "line 1: the number 1e999, too large for a float; accepted: {"),
        ('{"file_name": "1.png", "label": ' + "9" * 5000 + "}", "line 1: a number of 5000 digits; accepted: {"),
        ("[]", "line 1: []; accepted: {"),
        ('{"file_name": "1.png"}', 'line 1: {"file_name": "1.png"}; accepted: {'),
        ('{"file_name": 3, "label": 1}', 'line 1: {"file_name": 3, "label": 1}; accepted: {'),
        (r'{"file_name": "a\u0000b", "label": 1}', "1 rows without a path that a file can have"),
        (r'{"file_name": "\ud800.png", "label": 1}', "1 rows without a path that a file can have"),
        (r'{"file_name": "\udce9.png", "label": 1}', r"1 unreadable images: \udce9.png (No such file or directory)"),
    ],
)
def test_lines_of_metadata_that_cannot_be_used_are_one_line(line, message, pictures):
    (pictures / "metadata.jsonl").write_text(line)
    with pytest.raises(DataFormatError) as caught:
        load_clean_set(pictures)
    assert message in str(caught.value)


def test_labels_that_no_file_could_hold_are_shown_by_their_escapes(pictures):
    rows = [{"file_name": name, "label": label} for name, label in (("a/0.png", "\ud800"), ("1.png", "cat"))]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_clean_set(pictures).class_names == ("cat", r"\ud800")
    assert load_clean_set(pictures, class_names=["\ud800", "cat"]).class_names == (r"\ud800", "cat")
    assert message_of(pictures, class_names=["\udfff", "cat"]).startswith(
        r"labels \ud800 are not in class_names (\udfff, "
    )


@pytest.mark.parametrize("way", ["above", "absolute", "file link", "folder link"])
def test_metadata_of_a_folder_does_not_lead_out_of_it(way, pictures):
    folder = pictures / "set"
    image_file(folder / "own.png", (7, 0, 0))
    (folder / "file link").symlink_to(pictures / "1.png")
    (folder / "folder link").symlink_to(pictures / "a")
    inner = {"above": "../1.png", "absolute": str(pictures / "1.png"), "folder link": "folder link/0.png"}.get(way, way)
    (folder / "metadata.csv").write_text(f"file_name,label\nown.png,cat\n{inner},ant\n")
    message = message_of(folder)
    assert message.startswith(f"metadata.csv row 2 names {inner!r}, which is not below the folder; ")
    named = folder / "named.csv"
    named.write_text((folder / "metadata.csv").read_text())
    assert len(load_clean_set(named)) == 2


def test_metadata_may_name_a_file_by_a_path_that_stays_in_the_folder(pictures):
    names = ["a/../1.png", str(pictures / "a" / "0.png")]
    (pictures / "metadata.csv").write_text(
        "file_name,label\n" + "".join(f"{name},{k}\n" for k, name in enumerate(names))
    )
    assert len(load_clean_set(pictures)) == 2


def test_labels_that_are_not_among_very_many_names_are_told_in_no_time(pictures):
    table = pictures / "labels.csv"
    table.write_text("file_name,label\n" + "".join(f"{k}.png,x{k}\n" for k in range(30_000)))
    since = time.process_time()
    message = message_of(table, class_names=[f"y{k}" for k in range(30_000)])
    assert time.process_time() - since < 4
    assert message.startswith("labels x0, x1, x10, ")
    assert "and 29990 more are not in class_names (y0, y1, " in message


def test_more_labels_than_there_may_be_classes_are_told_before_anything_is_made_of_them(pictures, monkeypatch):
    monkeypatch.setattr("backdoor_audit.data.table._once", None)
    table = pictures / "labels.csv"
    table.write_text("file_name,label\n" + "".join(f"1.png,{k}\n" for k in range(100_001)))
    assert message_of(table) == "100001 different labels; accepted: at most 100000, one for each class"


@pytest.mark.parametrize("text", ["x" * 5000, "x " * 2500, "9" * 5000])
def test_paths_and_labels_of_any_length_leave_room_for_what_to_do(text, pictures):
    table = pictures / "labels.csv"
    for rows, cure in (
        (f"{text}.png,cat", "; replace or remove them"),
        (f"1.png,{text}\n1.png,0", "; give every picture one label"),
        (f"{text},", "; label them or leave them out"),
    ):
        table.write_text(f"file_name,label\n{rows}\n")
        message = message_of(table)
        assert len(message) < 400
        assert " characters) ... " in message
        assert message.endswith(cure)


def test_a_label_of_very_many_zeros_is_the_number_that_it_is(pictures):
    table = pictures / "labels.csv"
    table.write_text(f"file_name,label\n1.png,{'0' * 5000}\na/0.png,{'0' * 5000}2\n")
    assert labels_by_red(load_clean_set(table)) == {0: 2, 1: 0}
    assert labels_by_red(load_clean_set(table, class_order="number")) == {0: 1, 1: 0}
