"""Images that tables name: formats, columns, files; every row and every file is accounted for."""

import gzip
import json
import re
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.io.errors import UserError
from datasets.__main__ import main as run_datasets
from datasets.images import encode_jpeg
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing
from datasets.prepare.prepare import prepare
from datasets.prepare.sources import SOURCES
from datasets.prepare.splits import NO_SPLIT
from datasets.prepare.tables.columns import find_columns, find_other_values
from datasets.prepare.tables.listing import NO_FILE, NO_NAME, NO_ROW, TWICE
from datasets.prepare.tables.matching import Files
from datasets.prepare.tables.rows import Rows, read_rows
from tests.support.archives import pack
from tests.support.listings import placed


def list_source(source, root, **options) -> Listing:
    config = PrepareConfig(source=source, root=str(root), out="/unused", **options)
    return SOURCES[source](config)


def write_images(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def write_text(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def unused(listing: Listing, root) -> dict[str, str]:
    return {path.removeprefix(f"{root}/"): reason for path, reason in listing.unused}


def to_objects(table):
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


ROWS = {"file": ["a 1.jpg", "b.jpg"], "label": ["Audi", "smart, fortwo"], "year": [2011, None]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", 'file,label,year\na 1.jpg,Audi,2011\nb.jpg,"smart, fortwo",\n'),
        ("x.csv", '\ufefffile;label;year\r\na 1.jpg;Audi;2011\r\nb.jpg;smart, fortwo;NaN\r\n\r\n'),
        ("x.TSV", "file\tlabel\tyear\na 1.jpg\tAudi\t2011\nb.jpg\tsmart, fortwo\t\n"),
        (
            "x.jsonl",
            '{"file": "a 1.jpg", "label": "Audi", "year": 2011, "box": [1, 2]}\n'
            '{"file": "b.jpg", "label": "smart, fortwo", "box": null}\n',
        ),
        (
            "x.json",
            json.dumps(to_objects(ROWS)),
        ),
        ("x.json", json.dumps({k: dict(enumerate(v)) for k, v in ROWS.items()})),
        ("x.csv", 'sep=;\r\nfile;label;year\r\na 1.jpg;Audi;2011\r\nb.jpg;"smart, fortwo";\r\n'),
        ("x.csv", 'file,label,year\na 1.jpg,Audi,2011.0\nb.jpg,"smart, fortwo",\n'),  # pandas
    ],
)  # fmt: skip
def test_formats_of_tables_hold_the_same(name, text):
    assert read_rows(name, text.encode()).columns == ROWS


def test_parquet_is_read_without_its_nested_and_binary_columns():
    sink = pa.BufferOutputStream()
    extra = {"jpeg": [b"", b""], "box": [[1], [2]], "image": [{"bytes": b""}] * 2}
    tags = {"tags": [["a"], ["b"]]}
    pq.write_table(pa.table({**ROWS, **extra, **tags}), sink)
    found = read_rows("x.parquet", sink.getvalue().to_pybytes())
    assert found.columns == {**ROWS, "tags": ["a", "b"]}
    assert found.nested == ("box", "image")


def test_gzip_and_utf_16_are_read():
    text = "file\tlabel\n1.jpg\tCitro\u00ebn\n"
    columns = {"file": ["1.jpg"], "label": ["Citro\u00ebn"]}
    assert read_rows("x.tsv.gz", gzip.compress(text.encode())).columns == columns
    assert read_rows("x.txt", text.encode("utf-16")).columns == columns


@pytest.mark.parametrize("labels", [["a", "b"], [{"label": "a"}, {"label": "b", "box": [1]}]])
def test_json_with_a_key_for_each_image(labels):
    content = json.dumps(dict(zip(("1.jpg", "x/2.PNG"), labels, strict=True)))
    columns = read_rows("x.json", content.encode()).columns
    assert columns == {"file_name": ["1.jpg", "x/2.PNG"], "label": ["a", "b"]}


def test_numbers_with_leading_zeros_are_names():
    assert read_rows("x.csv", b"id,n\n007,7\n042,42\n").columns == {
        "id": ["007", "042"],
        "n": [7, 42],
    }


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("anno.csv", "00001.jpg,3,cars\n00002.jpg,7,cars\n", 3),
        ("val.txt", "images/a b.jpg 3\nimages/c.jpg 4\n", 2),
    ],
)
def test_a_table_without_names_of_columns_has_them_numbered(name, text, columns):
    rows = read_rows(name, text.encode())
    assert list(rows.columns) == [str(number) for number in range(1, columns + 1)]
    assert rows.columns["2"] == ([3, 7] if columns == 3 else [3, 4])
    assert "no names of columns" in rows.notes[0]


def test_coco_is_joined_and_several_categories_are_none():
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3)],
        "annotations": [
            {"image_id": 1, "category_id": 7},
            {"image_id": 1, "category_id": 7},
            {"image_id": 2, "category_id": 7},
            {"image_id": 2, "category_id": 8},
        ],
        "categories": [{"id": 7, "name": "audi"}, {"id": 8, "name": "bmw"}],
    }
    rows = read_rows("x.json", json.dumps(content).encode())
    assert rows.columns == {
        "file_name": ["1.jpg", "2.jpg", "3.jpg"],
        "label": ["audi", None, None],
    }
    assert "1 image has several categories and is left out" in rows.notes[1]
    content["annotations"] = [
        {"image_id": 1, "category_id": 7},
        {"image_id": 2, "category_id": 99},
        {"image_id": 3},
    ]
    rows = read_rows("x.json", json.dumps(content).encode())
    assert rows.columns["label"] == ["audi", None, None]
    assert rows.notes[-1] == "its annotations have categories that it does not list (99)"
    content["annotations"] += [{"image_id": n, "category_id": c} for n, c in ((1, 99), (3, 8))]
    rows = read_rows("x.json", json.dumps(content).encode())
    assert rows.columns["label"] == [None, None, "bmw"], "a listed and an unlisted category"
    assert rows.notes[1] == "1 image has several categories and is left out"


def test_columns_of_lists_and_objects_are_named_and_lists_of_one_are_read():
    rows = [{"file_name": f"{n}.jpg", "labels": ["ab"[n]], "box": [1, 2]} for n in (0, 1)]
    found = read_rows("x.json", json.dumps(rows).encode())
    assert found.columns == {"file_name": ["0.jpg", "1.jpg"], "labels": ["a", "b"]}
    assert found.nested == ("box",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "a,b\n1\n", "row 1 has 1 fields, and there are 2 columns"),
        ("x.csv", "a,a\n1,2\n", "two columns are called 'a'"),
        ("x.csv", "a,b\nCitro\xebn,1\n", "its text is not UTF-8; save it as CSV in UTF-8"),
        ("x.csv", "a\0,\0b\0", "its text is not UTF-8"),
        ("x.csv.gz", "a,b\n1,2\n", "can't be read as a table"),
        ("x.json", '{"images": [{"id": 1}], "annotations": []}', "can't be read as a table"),
        ("x.jsonl", "[1]\n", "each row must be an object"),
        ("x.jsonl", '{"a": 1}\n\n{"a": "cut', "line 3: Unterminated string"),
        (
            "x.json",
            '{"images": [], "annotations": [{"image_id": 1, "caption": "a car"}]}',
            "none of its annotations has a category",
        ),
        ("x.json", '{"a": 1}', "no list of objects"),
        ("x.json", '{"images": [], "annotations": {"1": {}}}', "can't be read as a table"),
        ("x.json", '{"images": [], "annotations": [["1.jpg", "a"]]}', "can't be read as a table"),
        ("x.json", '{"images": [1], "annotations": []}', "can't be read as a table"),
        pytest.param("x.json", "[" * 100_000, "can't be read .*recursion", id="deep JSON"),
        pytest.param("x.jsonl", "[" * 100_000, "can't be read .*recursion", id="deep line"),
        ("x.parquet", "no", "can't be read as a table"),
    ],
)
def test_a_table_that_is_none_is_refused_by_name(name, text, said):
    with pytest.raises(UserError, match=f"^{name}: .*{said}"):
        read_rows(name, text.encode("latin-1"))


def columns_of(columns, **options):
    config = PrepareConfig(source="table", root="/x", out="/y", **options)
    return find_columns(Rows(columns=columns), config)


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"image": ["1"], "label": ["a"]}, "images from 'image', classes from 'label'"),
        ({"File Name": ["1"], "Class": ["a"]}, "images from 'File Name', classes from 'Class'"),
        ({"id": ["1"], "breed": ["a"]}, "images from 'id', classes from 'breed'"),
        ({"": [0], "id": ["1"], "breed": ["a"]}, "images from 'id', classes from 'breed'"),
        ({"photo": ["1.jpg"], "make": ["a"]}, "images from 'photo', classes from 'make'"),
        (
            {"ImageId": ["1"], "Class Name": ["a"]},
            "images from 'ImageId', classes from 'Class Name'",
        ),
        (
            {"image-file": ["1"], "LabelName": ["a"]},
            "images from 'image-file', classes from 'LabelName'",
        ),
        (
            {"filename": ["1"], "audi": [1], "bmw": [0]},
            "images from 'filename', classes from the 2 columns of 0 and 1",
        ),
        (
            {"path": ["1"], "label": ["a"], "subset": ["Train"], "size": [3]},
            "images from 'path', classes from 'label', splits from 'subset'",
        ),
        (
            {"filepaths": ["1.jpg"], "labels": ["a"], "class id": [0], "data set": ["train"]},
            "images from 'filepaths', classes from 'labels', splits from 'data set'",
        ),
        (
            {"1": ["TRAIN", "TEST"], "2": ["1.jpg", "2.jpg"], "3": ["a", "b"]},
            "images from '2', classes from '3', splits from '1'",
        ),
        (
            {"file": ["1", "2"], "label": ["a", "b"], "split": [0, 1]},
            "images from 'file', classes from 'label'; 'split' does not name train, val or test, "
            "and is not used",
        ),
    ],
)
def test_columns_of_usual_names_are_found_and_said(columns, rule):
    found = columns_of(columns)
    assert found is not None
    assert found.rule == rule


@pytest.mark.parametrize("other", ["image_path", "img_path", "image_url", "fname", "Photo"])
@pytest.mark.parametrize("key", ["id", "image_id", "image"])
def test_a_column_of_file_names_is_before_one_of_keys(tmp_path, key, other):
    write_images(tmp_path, "photos/1.jpg", "photos/2.jpg", "photos/3.jpg")
    write_text(tmp_path, "cars.csv", f"{key},{other},label\n1,photos/3.jpg,a\n2,photos/1.jpg,b\n")
    listing = list_source("table", tmp_path)
    assert placed(listing) == {("train", "a", "photos/3.jpg"), ("train", "b", "photos/1.jpg")}
    listing = list_source("table", tmp_path, image_column=key) if key != "image" else None
    assert listing is None or placed(listing) == {
        ("train", "a", "photos/1.jpg"),
        ("train", "b", "photos/2.jpg"),
    }


@pytest.mark.parametrize(
    ("columns", "image"),
    [
        ({"id": ["1", "2"], "OriginalURL": ["https://x.org/a.jpg", "https://x.org/b.jpg"]}, "id"),
        ({"id": ["1", "2"], "mask": ["1_mask.png", "2_mask.png"]}, "id"),
        ({"mask": ["1_mask.png"], "photo": ["1.jpg"]}, "photo"),
        ({"front": ["1.jpg"], "file": ["2.jpg"]}, "file"),
        ({"id": ["1", "2"], "photo": ["1.jpg", None]}, "photo"),
        ({"id": ["1", "2"], "photo": ["1.jpg", "none"]}, "id"),
        ({"photo": ["https://x.org/1.jpg"]}, "photo"),
    ],
)
def test_which_of_several_columns_holds_the_images(columns, image):
    found = columns_of({**columns, "label": ["a"] * len(next(iter(columns.values())))})
    assert found is not None and found.images == columns[image]


def test_two_columns_of_file_names_are_refused():
    columns = {"id": ["1"], "front": ["1.jpg"], "side": ["2.jpg"], "label": ["a"]}
    with pytest.raises(UserError, match="the columns front and side hold names of images; choose"):
        columns_of(columns)
    found = columns_of(columns, image_column="side")
    assert found is not None and found.images == ["2.jpg"]


def test_row_numbers_are_no_classes():
    assert columns_of({"": [0, 1], "file": ["1", "2"], "width": [3, 4], "height": [2, 2]}) is None


@pytest.mark.parametrize(
    ("name", "values", "splits"),
    [
        ("split", ["train", "dev", "holdout", None], ["train", "val", None, None]),
        ("any name", ["training", "validation", "TEST"], ["train", "val", "test"]),
        ("any name", ["train", "bus", "car"], None),
        ("any name", ["test", "test"], None),
        ("Usage", ["Training", "PublicTest"], ["train", None]),
        ("is_valid", ["True", "False"], ["val", "train"]),
        ("is_valid", [1, 0], ["val", "train"]),
        ("is_test", [0, 1, None], ["train", "test", None]),
        ("is_train", ["1.0", "0.0"], ["train", "test"]),
        ("is_car", [1, 0], None),
        ("is_valid", ["yes", "no"], None),
    ],
)
def test_a_column_of_splits_is_found_by_its_values(name, values, splits):
    columns = {"file": [f"{n}.jpg" for n in range(len(values))], "label": ["a"] * len(values)}
    found = columns_of({**columns, name: values, "score": [0] * len(values)})
    assert found is not None and found.splits == splits


def test_two_columns_of_splits_are_refused():
    columns = {"file": ["1"], "label": ["a"], "is_valid": [1], "split": ["train"]}
    with pytest.raises(UserError, match="the columns is_valid and split name splits; choose one"):
        columns_of(columns)
    found = columns_of(columns, split_column="is_valid")
    assert found is not None and found.splits == ["val"]


def test_columns_by_name_and_what_is_missing():
    columns = {"a": ["1"], "b": ["x"], "c": ["train"], "d": ["car 7"]}
    found = columns_of(
        columns, image_column="a", label_column="b", split_column="c", group_column="d"
    )
    assert found is not None
    assert (found.images, found.labels, found.splits, found.groups) == tuple(columns.values())
    for option in ("image_column", "label_column", "split_column", "group_column"):
        with pytest.raises(
            UserError, match=f"{option} is 'nope': the table has the columns file, label"
        ):
            columns_of({"file": ["1"], "label": ["x"]}, **{option: "nope"})
    with pytest.raises(UserError, match="has the columns a, b, and none of images"):
        columns_of({"a": ["x"], "b": ["y"]})
    assert columns_of({"file": ["1"], "width": [3], "height": [2]}) is None, "no classes"


@pytest.mark.parametrize(
    "values", [["a red car", "two cars", "a bus"], ["1.37", "13.70", "2.74"], [4, 5, 6, None]]
)
def test_captions_prices_and_keys_are_no_classes(values):
    columns = {"file": [f"{n}.jpg" for n in range(len(values))], "text": values}
    found = columns_of(columns)
    assert found is not None and found.guessed == "text"
    reason = find_other_values("text", found.labels)
    assert reason is not None
    assert re.match(r"it has another 'text' in each row, .* --label-column text", reason)
    found = columns_of(columns, label_column="text")
    assert found is not None and found.labels == values and found.guessed is None


TEST = "".join(f"{n}.jpg,{name}\n" for n, name in enumerate("abc"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_table_of_one_image_per_class_is_judged_with_the_others(tmp_path, order):
    more = "".join(f"{n}.jpg,{name}\n" for n, name in enumerate("abc", start=3))
    for split, text in zip(("train", "test")[::order], (TEST, f"{TEST}{more}"), strict=True):
        write_text(tmp_path, f"folders/{split}/metadata.csv", f"file,breed\n{text}")
        names = [row.partition(",")[0] for row in text.split()]
        write_images(tmp_path, *(f"folders/{split}/{name}" for name in names))
        text = text.replace(".jpg", f"{split}.jpg")
        write_text(tmp_path, f"beside/{split}.csv", f"file,breed\n{text}")
        write_images(tmp_path, *(f"beside/{name[0]}{split}.jpg" for name in names))
    folders = tmp_path / "folders"
    apart = {"root": folders / "train", "test_root": str(folders / "test")}
    for source, options in (
        ("table", {"root": folders}),
        ("folder", {"root": folders}),
        ("table", apart),
        ("folder", apart),
        ("table", {"root": tmp_path / "beside"}),
    ):
        listing = list_source(source, **options)
        assert listing.classes == ("a", "b", "c")
        assert sorted(listing.references["split"].to_pylist()) in (
            ["test"] * 3 + ["train"] * 6,
            ["test"] * 6 + ["train"] * 3,
        )


def test_captions_are_refused_in_a_copy_of_their_table_too(tmp_path):
    write_images(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    for name in ("a.csv", "b.csv", "raw/c.csv"):
        write_text(tmp_path, name, f"file,text\n{TEST}")
    with pytest.raises(UserError, match=r"another 'text' in each row, .* --label-column text"):
        list_source("table", tmp_path)


def test_a_row_of_several_ones_or_none_has_no_class():
    for one, zero in ((1, 0), ("1.0", "0.0"), ("True", "False")):
        ones = {"audi": [one, one, zero], "bmw": [zero, one, zero]}
        found = columns_of({"file": ["1", "2", "3"], **ones})
        assert found is not None
        assert found.labels == ["audi", None, None]


def test_a_value_finds_its_file():
    files = Files(
        ["t/a.jpg", "train/1.jpg", "test/1.jpg", "x/2.jpeg", "y/2.PNG", "deep/er/3.v2.jpg"]
    )
    assert files.find("a.jpg", below="t") == "t/a.jpg"
    assert files.find("./t\\a.jpg") == "t/a.jpg"
    assert files.find("../t/a.jpg", below="x") == "t/a.jpg"
    assert files.find("er/3.v2.jpg") == "deep/er/3.v2.jpg"
    assert files.find("3.v2") == "deep/er/3.v2.jpg"
    assert files.find("1", split="test") == "test/1.jpg"
    assert files.find("1.jpg") is None, "two files"
    assert files.find("1.jpg", below="train") == "train/1.jpg"
    assert files.find("2") is None, "two files"
    assert files.find("/home/me/x/cars/train/1.jpg") == "train/1.jpg", "of another machine"
    assert files.find("C:\\cars\\t\\a.jpg") == "t/a.jpg"
    assert files.find("/home/me/1.jpg") is None
    assert files.find("jpg") is None
    composed, apart = "Citro\u00ebn/1.jpg", "Citroe\u0308n/1.jpg"
    assert Files([apart]).find(composed) == Files([apart]).find(apart, below="") == apart
    assert Files([composed]).find(apart) == composed
    assert files.find("missing.jpg") is None


def test_a_value_in_another_case_or_quoted_as_in_a_url_finds_its_file():
    files = Files(["My Cars/IMG_1.jpg", "a/x.jpg", "a/X.JPG", "a/100%.jpg", "B/y.jpg"])
    assert files.find("my cars/img_1.JPG") == "My Cars/IMG_1.jpg"
    assert files.find("My%20Cars/IMG_1.jpg") == "My Cars/IMG_1.jpg"
    assert files.find("C:\\photos\\My Cars\\img_1.jpg") == "My Cars/IMG_1.jpg"
    assert files.find("100%.jpg") == "a/100%.jpg"
    assert files.find("a/x.jpg") == "a/x.jpg" and files.find("a/X.JPG") == "a/X.JPG"
    assert files.find("A/X.jpg") is None, "two files, and neither is called so"
    assert files.find("y.JPG", below="b") == "B/y.jpg"


def test_kaggle(tmp_path):
    write_images(tmp_path, "train/001.jpg", "train/002.jpg", "train/003.jpg", "test/001.jpg")
    write_text(tmp_path, "train.csv", "image_id,label\n001,4\n002,10\n009,4\n")
    write_text(tmp_path, "test.csv", "image_id\n001\n")
    write_text(tmp_path, "sample_submission.csv", "image_id,label\n001,0\n")
    write_text(tmp_path, "label_names.json", '{"4": "audi"}')
    listing = list_source("table", tmp_path)
    assert listing.classes == ("4", "10")
    assert placed(listing) == {("train", "4", "train/001.jpg"), ("train", "10", "train/002.jpg")}
    found = unused(listing, tmp_path)
    assert found["train.csv#2/009"] == NO_FILE
    assert found["train/003.jpg"] == found["test/001.jpg"] == NO_ROW
    assert "submission" in found["sample_submission.csv"]
    assert (
        found["test.csv"]
        == "a table that is not used: it has the columns image_id, and none of classes"
    )
    assert "not used" in found["label_names.json"]
    with pytest.raises(UserError, match=r"'test', 'train' hold no class folders.*--source table"):
        list_source("folder", tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_imagefolder_of_hugging_face(tmp_path, suffix):
    for split in ("train", "test"):
        write_images(tmp_path, f"{split}/im/1.jpg", f"{split}/2.jpg", f"{split}/3.jpg")
        table = {"file_name": ["im/1.jpg", "2.jpg"], "label": ["a", "b"], "text": ["x", "y"]}
        path = tmp_path / split / f"metadata.{suffix}"
        if suffix == "csv":
            path.write_text("file_name,label,text\nim/1.jpg,a,x\n2.jpg,b,y\n")
        elif suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in to_objects(table)))
        else:
            pq.write_table(pa.table(table), path)
    listing = list_source("folder", tmp_path)
    assert placed(listing) == {
        (split, name, f"{split}/{file}")
        for split in ("train", "test")
        for name, file in (("a", "im/1.jpg"), ("b", "2.jpg"))
    }
    assert unused(listing, tmp_path) == {"train/3.jpg": NO_ROW, "test/3.jpg": NO_ROW}


def test_imagefolder_whose_metadata_has_no_classes(tmp_path):
    write_images(tmp_path, "audi/1.jpg", "bmw/2.jpg")
    write_text(tmp_path, "metadata.csv", "file_name,text,w\naudi/1.jpg,a car,3\nbmw/2.jpg,b,4\n")
    listing = list_source("folder", tmp_path)
    assert placed(listing) == {("train", "audi", "audi/1.jpg"), ("train", "bmw", "bmw/2.jpg")}
    assert any("folders are the classes" in note for note in listing.notes)
    listing = list_source("folder", tmp_path, label_column="text")
    assert listing.classes == ("a car", "b")


def test_metadata_that_names_no_image(tmp_path):
    write_images(tmp_path, "audi/1.jpg", "bmw/2.jpg")
    write_text(tmp_path, "metadata.csv", "file_name,label\nx.jpg,a\n")
    listing = list_source("folder", tmp_path)
    assert listing.classes == ("audi", "bmw")
    assert "no row of a metadata file names an image that is there" in listing.notes[0]


def test_captions_beside_class_folders(tmp_path):
    paths = [f"train/{'audi' if n % 2 else 'bmw'}/{n}.jpg" for n in range(4)]
    write_images(tmp_path, *paths)
    rows = "".join(f"{path.removeprefix('train/')},photo {path[-5]}\n" for path in paths)
    write_text(tmp_path, "train/metadata.csv", f"file_name,text\n{rows}")
    listing = list_source("folder", tmp_path)
    assert listing.classes == ("audi", "bmw")
    assert "folders are the classes, as train/metadata.csv is a table" in listing.notes[0]


def test_a_row_that_is_there_twice_is_one_image(tmp_path):
    write_images(tmp_path, "1.jpg", "2.jpg")
    write_text(tmp_path, "train.csv", "file,label\n1.jpg,a\n1.jpg,a\n2.jpg,b\n")
    write_text(tmp_path, "train_again.csv", "file,label\n1.jpg,a\n2.jpg,c\n")
    listing = list_source("table", tmp_path)
    assert [listing.classes[label] for label in listing.references["label"].to_pylist()] == [
        "a", "b", "c",
    ], "under two classes, as prepare will report"  # fmt: skip
    assert unused(listing, tmp_path) == {
        "train.csv#1/1.jpg": TWICE,
        "train_again.csv#0/1.jpg": TWICE,
    }


def test_json_of_another_form_beside_a_table_is_named(tmp_path):
    write_images(tmp_path, "1.jpg", "2.jpg")
    write_text(tmp_path, "cars.csv", "file,label\n1.jpg,a\n2.jpg,b\n")
    write_text(tmp_path, "more.json", '{"images": [], "annotations": [["1.jpg", "a"]]}')
    write_text(tmp_path, "deep.json", "[" * 100_000)
    listing = list_source("table", tmp_path)
    assert len(listing.references) == 2
    found = unused(listing, tmp_path)
    assert set(found) == {"more.json", "deep.json"}
    assert all("it can't be read as a table" in reason for reason in found.values())


def test_roboflow(tmp_path):
    for split in ("train", "valid", "test"):
        write_images(tmp_path, f"{split}/1.rf.jpg", f"{split}/2.rf.jpg")
        write_text(
            tmp_path,
            f"{split}/_classes.csv",
            "filename, audi, bmw\n1.rf.jpg, 1, 0\n2.rf.jpg, 0, 1\n",
        )
    write_text(tmp_path, "README.roboflow.txt", "Exported")
    listing = list_source("folder", tmp_path)
    assert placed(listing) == {
        (split, name, f"{folder}/{number}.rf.jpg")
        for split, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
        for name, number in (("audi", 1), ("bmw", 2))
    }
    assert unused(listing, tmp_path) == {"README.roboflow.txt": NO_ROW}


def test_roboflow_in_coco_format(tmp_path):
    for split, number in (("train", 1), ("valid", 2)):
        write_images(tmp_path, f"{split}/{number}.jpg")
        coco = {
            "images": [{"id": 0, "file_name": f"{number}.jpg"}],
            "annotations": [{"image_id": 0, "category_id": number}],
            "categories": [{"id": 1, "name": "audi"}, {"id": 2, "name": "bmw"}],
        }
        write_text(tmp_path, f"{split}/_annotations.coco.json", json.dumps(coco))
    listing = list_source("folder", tmp_path)
    assert placed(listing) == {("train", "audi", "train/1.jpg"), ("val", "bmw", "valid/2.jpg")}


def test_splits_and_groups_by_columns(tmp_path):
    write_images(tmp_path, *(f"{number}.jpg" for number in range(5)))
    rows = [
        "0.jpg,a,train,v1",
        "1.jpg,b,Validation,v1",
        "2.jpg,a,test,",
        "3.jpg,b,unsup,v2",
        ",b,test,",
    ]
    write_text(tmp_path, "cars.csv", "\n".join(["file,label,fold,vehicle", *rows]))
    listing = list_source(
        "table", tmp_path / "cars.csv", split_column="fold", group_column="vehicle"
    )
    assert placed(listing) == {
        ("train", "a", "0.jpg"),
        ("val", "b", "1.jpg"),
        ("test", "a", "2.jpg"),
    }
    assert listing.references["group"].to_pylist() == ["v1", "v1", None]
    assert unused(listing, tmp_path) == {
        "cars.csv#3/3.jpg": NO_SPLIT,
        "cars.csv#4": NO_NAME,
        "4.jpg": NO_ROW,
    }


@pytest.mark.parametrize(
    ("train", "test", "classes"),
    [
        (("911", "A4"), "911", ("911", "A4")),
        (("001", "100"), "100", ("001", "100")),
        (("3008", "208"), "3008", ("208", "3008")),
    ],
)
def test_names_that_are_numbers_are_names_in_all_tables(tmp_path, train, test, classes):
    write_images(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    write_text(tmp_path, "train.csv", f"file,label\n1.jpg,{train[0]}\n2.jpg,{train[1]}\n")
    write_text(tmp_path, "test.csv", f"file,label\n3.jpg,{test}\n4.jpg,-1\n")
    listing = list_source("table", tmp_path)
    assert listing.classes == classes
    assert {("test", test, "3.jpg"), ("test", None, "4.jpg")} < placed(listing)
    assert ("numbers are names" in listing.notes[-1]) == ("208" not in train)


def test_a_row_of_no_split_names_its_image(tmp_path):
    write_images(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    rows = ["1.jpg,a,train", f"{tmp_path}/2.jpg,b,x", "3,b,x", "1.jpg,a,x", ",b,x", "9.jpg,b,x"]
    write_text(tmp_path, "cars.csv", "\n".join(["file,label,split", *rows, "http://x/1.jpg,b,x"]))
    found = unused(list_source("table", tmp_path), tmp_path)
    assert set(found.values()) == {NO_SPLIT}, "no image is named twice, as in no row"
    names = [f"{tmp_path}/2.jpg", "3", "1.jpg", "", "9.jpg", "http://x/1.jpg"]
    assert list(found) == [f"cars.csv#{n}/{x}".rstrip("/") for n, x in enumerate(names, start=1)]


def test_parquet_has_splits_and_groups_by_columns(tmp_path):
    table = {
        "image": [b"0", b"1", b"2", b"3"],
        "label": ["a", "b", "a", "b"],
        "part": ["train", "dev", "test", "other"],
        "vehicle": [7, 7, None, 8],
    }
    pq.write_table(pa.table(table), tmp_path / "cars.parquet")
    listing = list_source("parquet", tmp_path, split_column="part", group_column="vehicle")
    assert placed(listing) == {("train", "a", "0"), ("val", "b", "1"), ("test", "a", "2")}
    assert listing.references["group"].to_pylist() == ["7", "7", None]
    assert list(unused(listing, tmp_path).items()) == [("cars.parquet#3", NO_SPLIT)]
    with pytest.raises(UserError, match=r"group_column is 'x': .* has the columns image, label"):
        list_source("parquet", tmp_path, group_column="x")


def test_parquet_without_a_named_column_of_splits(tmp_path):
    table = {"image": [b"0", b"1", b"2"], "label": ["a", "b", "a"], "split": ["train", "test", "x"]}
    pq.write_table(pa.table(table), tmp_path / "train-00000-of-00001.parquet")
    pq.write_table(pa.table(table), tmp_path / "test-00000-of-00001.parquet")
    listing = list_source("parquet", tmp_path)
    splits = listing.references["split"].to_pylist()
    assert splits == ["test"] * 3 + ["train", "test"], "a file called test has none for training"
    assert list(unused(listing, tmp_path).values()) == [NO_SPLIT]
    assert listing.notes[0] == "train-00000-of-00001.parquet: splits from 'split'"


def test_local_paths_relative_paths_and_uris_in_one_table(tmp_path):
    write_images(tmp_path, "here/1.jpg", "else/2.jpg", "else/3.jpg", "else/4.jpg", "else/5.jpg")
    names = ["1.jpg", f"{tmp_path}/else/2.jpg", f"file://{tmp_path}/else/3.jpg", "../else/4.jpg"]
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(names)]
    write_text(tmp_path, "here/cars.csv", "\n".join(["image,label", *rows]))
    listing = list_source("table", tmp_path / "here" / "cars.csv")
    assert placed(listing) == {
        ("train", "a", "here/1.jpg"),
        ("train", "b", "else/2.jpg"),
        ("train", "a", "else/3.jpg"),
        ("train", "b", "else/4.jpg"),
    }
    assert not listing.unused, "what is beside the table's folder is not of the source"
    write_text(tmp_path, "bad.csv", "image,label\nftps3://x/1.jpg,a\n")
    with pytest.raises(UserError, match=r"root is .*ftps3"):
        list_source("table", tmp_path / "bad.csv")
    write_text(tmp_path, "bad.csv", "image,label\nhttps://x.org/1.jpg,a\n")
    with pytest.raises(UserError, match=r"https://x.org/1.jpg is on the web; download"):
        list_source("table", tmp_path / "bad.csv")


@pytest.mark.parametrize("form", ["ROOT/{}", "file://ROOT/{}", "../{}"])
def test_an_image_elsewhere_that_is_replaced_changes_the_version(tmp_path, form):
    pack(tmp_path / "photos.zip", {"3.jpg": b"3"})
    write_images(tmp_path, "photos/1.jpg", "photos/2.jpg")
    names = [form.format(f"photos/{number}.jpg") for number in (1, 2)]
    names += ["file://ROOT/photos.zip/3.jpg", "file://ROOT/photos/missing.jpg"]
    rows = "".join(f"{name},{name[-5]}\n" for name in names).replace("ROOT", str(tmp_path))
    write_text(tmp_path, "tables/cars.csv", f"image,label\n{rows}")
    versions = list_versions(tmp_path / "tables")
    assert versions[0] == versions[1]
    (tmp_path / "photos/1.jpg").write_bytes(b"another photograph")
    versions += list_versions(tmp_path / "tables")
    pack(tmp_path / "photos.zip", {"3.jpg": b"another photograph"})
    versions += list_versions(tmp_path / "tables")
    assert len(set(versions)) == 3


def list_versions(root):
    return [list_source("table", root).version for _ in range(2)]


def write_splits(root, form, table="cars.csv"):
    """Write train/ and test/, and a table of what `form` makes of each path."""
    paths = [f"{split}/{number}.jpg" for split in ("train", "test") for number in (1, 2)]
    write_images(root, *paths)
    rows = [f"{form.format(path)},{'ab'[number % 2]}" for number, path in enumerate(paths)]
    write_text(root, table, "\n".join(["path,label", *rows]))


BY_FOLDER = {
    (split, name, f"{split}/{number}.jpg")
    for split in ("train", "test")
    for number, name in ((1, "a"), (2, "b"))
}


@pytest.mark.parametrize(
    ("form", "table"),
    [
        ("ROOT/{}", "cars.csv"),
        ("file://ROOT/{}", "cars.csv"),
        ("../dev/{}", "cars.csv"),
        ("../{}", "tables/cars.csv"),
        ("ROOT/{}", "tables/cars.csv"),
        ("ROOT/{}", "../cars.csv"),
        ("../dev/{}", "../tables/cars.csv"),
    ],
)
@pytest.mark.parametrize("is_folder", [True, False])
def test_an_image_has_the_split_of_its_folder_whatever_names_it(tmp_path, form, table, is_folder):
    root = tmp_path / "dev"  # a keyword in what all images are in is none of theirs
    write_splits(root, form.replace("ROOT", str(root)), table)
    place = (root / table).resolve()
    listing = list_source("table", place.parent if is_folder else place)
    found = {(s, c, "/".join(path.split("/")[-2:])) for s, c, path in placed(listing)}
    assert found == BY_FOLDER
    assert not listing.unused and len(listing.notes) == 1


def test_images_in_one_folder_elsewhere_are_not_of_its_split(tmp_path):
    write_images(tmp_path, "test/a/1.jpg", "test/b/2.jpg")
    rows = f"{tmp_path}/test/a/1.jpg,a\n{tmp_path}/test/b/2.jpg,b\n"
    write_text(tmp_path, "tables/cars.csv", f"file,label\n{rows}")
    listing = list_source("table", tmp_path / "tables")
    assert {split for split, *_ in placed(listing)} == {"train"}
    assert f"are in {tmp_path}/test/, which is not taken as a split; --s" in listing.notes[0]
    write_text(tmp_path, "tables/test.csv", f"file,label\n{rows}")
    write_text(tmp_path, "tables/cars.csv", "file,label\n../x/3.jpg,a\n")
    assert len(list_source("table", tmp_path / "tables").notes) == 2, "the table tells the split"


def test_a_root_that_is_a_link_is_found_by_what_it_is_a_link_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_splits(tmp_path / "real", f"{tmp_path}/real/{{}}")
    listing = list_source("table", tmp_path / "link")
    assert not listing.unused and len(placed(listing)) == 4
    assert sorted(listing.references["split"].to_pylist()) == ["test", "test", "train", "train"]


@pytest.mark.parametrize("form", ["/home/dev/{}/{}.jpg", "D:\\dev\\{}\\{}.jpg"])
def test_paths_of_another_machine_tell_splits_that_the_folder_has_not(tmp_path, form):
    write_images(tmp_path, "1.jpg", "2.jpg")
    rows = [f"{form.format(split, n)},{'ab'[n - 1]}" for n, split in ((1, "train"), (2, "test"))]
    write_text(tmp_path, "cars.csv", "\n".join(["file,label", *rows]))
    assert placed(list_source("table", tmp_path)) == {
        ("train", "a", "1.jpg"),
        ("test", "b", "2.jpg"),
    }


def test_an_image_of_two_names_is_one_image(tmp_path):
    write_images(tmp_path, "1.jpg", "2.jpg")
    rows = ["1.jpg,a", f"{tmp_path}/1.jpg,a", f"file://{tmp_path}/2.jpg,b"]
    write_text(tmp_path, "cars.csv", "\n".join(["file,label", *rows]))
    listing = list_source("table", tmp_path)
    assert len(listing.references) == 2
    assert [reason for _, reason in listing.unused] == [TWICE]


@pytest.mark.parametrize("form", ["{}", "ROOT/{}"])
def test_a_second_test_set_is_refused_however_the_first_one_is_named(tmp_path, form):
    write_splits(tmp_path, form.replace("ROOT", str(tmp_path)))
    write_text(tmp_path, "field/cars.csv", "file,label\n1.jpg,a\n")
    write_images(tmp_path, "field/1.jpg")
    for root in (tmp_path, tmp_path / "cars.csv"):
        with pytest.raises(UserError, match="holds test images as well"):
            list_source("table", root, test_root=str(tmp_path / "field"))


def test_a_table_beside_much_else_lists_the_folders_that_it_names(tmp_path):
    write_images(tmp_path, "cars/1.jpg", "cars/2.jpg", "cars/9.jpg", "holidays/3.jpg")
    write_text(tmp_path, "cars.csv", "file,label\ncars/1.jpg,a\ncars/2.jpg,b\n")
    listing = list_source("table", tmp_path / "cars.csv")
    assert unused(listing, tmp_path) == {"cars/9.jpg": NO_ROW}


def test_test_root_is_a_table_of_its_own(tmp_path):
    write_images(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    write_text(tmp_path, "a/cars.csv", "file,label\n1.jpg,x\n2.jpg,y\n")
    write_text(tmp_path, "b/field.csv", "file,label,split\n3.jpg,y,train\n")
    listing = list_source("table", tmp_path / "a", test_root=str(tmp_path / "b" / "field.csv"))
    assert ("test", "y", "b/3.jpg") in placed(listing)
    assert len(listing.references) == 3


def test_no_row_of_use_is_refused_with_the_reasons(tmp_path):
    write_text(tmp_path, "cars.csv", "file,label\n1.jpg,a\n")
    with pytest.raises(UserError, match=r"no row names an image that is there .*cars.csv#0/1.jpg"):
        list_source("table", tmp_path)
    with pytest.raises(UserError, match=r"give --root the folder that both the table and the"):
        list_source("table", tmp_path)
    write_text(tmp_path, "cars.jsonl", '{"file": "1.jpg", "label": {"name": "a"}}')
    with pytest.raises(UserError, match=r"none of classes \(label holds lists or objects\)"):
        list_source("table", tmp_path / "cars.jsonl")
    (tmp_path / "cars.jsonl").unlink()
    write_text(tmp_path, "cars.csv", "width,height\n1,2\n")
    with pytest.raises(UserError, match=r"cars.csv: it has the columns width, height, and no"):
        list_source("table", tmp_path)
    write_text(tmp_path, "cars.csv", "file,label\n")
    with pytest.raises(UserError, match=r"no row names an image that is there \(there is no row"):
        list_source("table", tmp_path)
    (tmp_path / "cars.csv").rename(tmp_path / "cars.xlsx")
    with pytest.raises(UserError, match="it has no table"):
        list_source("table", tmp_path)
    with pytest.raises(UserError, match=r"it is no table .*save it as CSV"):
        list_source("table", tmp_path / "cars.xlsx")
    with pytest.raises(UserError, match=r"it is a file; give a folder, a zip or a tar, or use"):
        list_source("folder", tmp_path / "cars.xlsx")
    write_images(tmp_path, "audi/1.jpg", "bmw/2.jpg")
    for option in ("image_column", "label_column", "split_column", "group_column"):
        with pytest.raises(UserError, match=rf"{option} is 'car': the folder has no metadata.csv"):
            list_source("folder", tmp_path, **{option: "car"})


NAMES = st.sampled_from("abcdef")


@settings(deadline=None, max_examples=60)
@given(
    files=st.lists(st.tuples(st.sampled_from(("", "train/", "test/", ".x/")), NAMES), max_size=8),
    rows=st.lists(
        st.tuples(NAMES, st.sampled_from("ab"), st.sampled_from(("train", "test", "?"))),
        min_size=1,
        max_size=8,
    ),
    by_column=st.booleans(),
)
def test_every_row_and_every_file_is_an_image_or_named(tmp_path_factory, files, rows, by_column):
    root = tmp_path_factory.mktemp("table")
    paths = {f"{folder}{name}.jpg" for folder, name in files}
    write_images(root, *paths)
    lines = [f"{name},{label},{part}" for name, label, part in rows]
    write_text(root, "cars.csv", "\n".join(["id,label,part", *lines]))
    try:
        listing = list_source("table", root, split_column="part" if by_column else None)
    except UserError as error:
        assert "no row names an image" in str(error)
        return
    images = listing.references["path"].to_pylist()
    named = [path for path, _ in listing.unused]
    assert len(images) + sum("#" in path for path in named) == len(rows)
    visible = Files(path for path in paths if not path.startswith(".x/"))
    of_no_split = {visible.find(name) for name, _, part in rows if by_column and part == "?"}
    in_rows = {*images, *(f"{root}/{path}" for path in of_no_split if path is not None)}
    assert sorted([*in_rows, *(p for p in named if "#" not in p)]) == sorted(
        f"{root}/{path}" for path in paths
    )


def draw_jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
    return encode_jpeg(pixels)


def test_dry_run_says_all_and_writes_nothing(tmp_path, capsys, monkeypatch):
    for needless in ("cluster.runtime.connect", "cluster.runtime.start_early"):
        monkeypatch.setattr(needless, None)
    monkeypatch.setattr("cluster.entry.starts_early", True)  # as the command line has it
    tmp_path, out = tmp_path / "cars", tmp_path / "out"
    write_images(tmp_path, *(f"train/{n}.jpg" for n in range(12)), "test/1.jpg", "train/[x].jpg")
    rows = "".join(f"{n}.jpg,{['Transit [van]', 'bus'][n % 2]}\n" for n in range(12))
    write_text(tmp_path, "train.csv", f"file,label\n{rows}12.jpg,bus\n")
    source = ["--source", "table", "--root", str(tmp_path)]
    run_datasets(["prepare", *source, "--out", f"{out}", "--dry-run"])
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        "rule train.csv: images from 'file', classes from 'label'",
        "rule val is cut from train, about 15% of each class",
        "Transit [van] 5 1",
        "bus 5 1",
        f"unused 2 in no row of a table {tmp_path}/test/1.jpg {tmp_path}/train/[x].jpg",
        f"unused 1 named in a table, but not found, or found several times {tmp_path}/train.csv#12",
        "2 classes; 10 train, 2 val images",
        "3 files and rows not used; nothing written",
    ):
        assert said in text
    assert not out.exists()
    write_text(tmp_path, "train.csv", "file,label\n1.jpg,bus\n2.jpg,van\n")
    run_datasets(["prepare", *source, "--out", f"{out}", "--dry-run"])
    assert "no validation split, as no class has a training image to" in capsys.readouterr().out
    write_text(tmp_path, "train.csv", "file,label\n1.jpg,bus\n2.jpg,bus\n")
    with pytest.raises(UserError, match="it has 1 class"):
        run_datasets(["prepare", *source, "--out", f"{out}", "--dry-run"])
    assert "bus" in capsys.readouterr().out, "what was found is shown before"


def test_a_zip_with_a_table_and_groups_becomes_a_data_set(tmp_path):
    rows = [(f"{n:02d}", "ab"[n % 2], n // 4) for n in range(40)]
    with zipfile.ZipFile(tmp_path / "cars.zip", "w") as archive:
        for name, _, _ in rows:
            archive.writestr(f"images/{name}.jpg", draw_jpeg(int(name)))
        archive.writestr("images/extra.jpg", b"")
        archive.writestr("images/40.jpg", b"no image")
        lines = [f"{name},{label},{group}\n" for name, label, group in [*rows, ("40", "a", 9)]]
        archive.writestr("cars.csv", "id,label,vehicle\n" + "".join(lines) + "99,a,1\n")
    out = str(tmp_path / "out")
    config = PrepareConfig(
        source="table", root=str(tmp_path / "cars.zip"), out=out, group_column="vehicle"
    )
    manifest = prepare(config)
    group_of = {name: group for name, _, group in rows}
    groups = {}
    for split in manifest.splits:
        paths = pq.read_table(f"{out}/{split}", columns=["path"])["path"].to_pylist()
        groups[split] = {group_of[path.rpartition("/")[2].removesuffix(".jpg")] for path in paths}
    assert set(groups) == {"train", "val"} and not groups["train"] & groups["val"]
    num_images = sum(split.num_images for split in manifest.splits.values())
    assert (num_images, manifest.num_quarantined, manifest.num_unused) == (40, 1, 2)
    assert prepare(config).fingerprint == manifest.fingerprint, "reused"
