import io
import json
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from cluster.io.errors import StorageError, UserError
from datasets.images import BadImage, encode_jpeg
from datasets.prepare import remote
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import walk
from datasets.prepare.sources import SOURCES
from datasets.synthetic import synthetic
from datasets.synthetic.config import SyntheticConfig
from tests.support.archives import pack
from tests.support.flaky_storage import failing, put


def list_source(source, root, **options):
    config = PrepareConfig(source=source, root=str(root), out="/unused", **options)
    return SOURCES[source](config)


def write_files(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())  # a listing opens no image


def placed(listing):
    """What was listed: (split, class, file) of each reference."""
    return {
        (row["split"], listing.classes[row["label"]], row["path"].rsplit("/", 1)[-1])
        for row in listing.references.to_pylist()
    }


def test_class_folders_are_training_images(tmp_path):
    write_files(tmp_path, "audi/1.jpg", "bmw/2.png", "bmw/notes.txt", "bmw/.DS_Store", "labels.csv")
    listing = list_source("folder", tmp_path)
    assert listing.classes == ("audi", "bmw")
    assert placed(listing) == {
        ("train", "audi", "1.jpg"),
        ("train", "bmw", "2.png"),
        ("train", "bmw", "notes.txt"),  # left out later and by name: nothing vanishes
    }
    assert list(listing.read(listing.references)) == [b"audi/1.jpg", b"bmw/2.png", b"bmw/notes.txt"]


def test_classes_from_the_names_of_files(tmp_path):
    files = ["train/great_dane_1.jpg", "train/pug_2.JPG", "test/pug_3.jpg", "train/.x/pug_4.jpg"]
    write_files(tmp_path, *files, "train/notes_5.txt", "train/IMG.jpg", "metadata.csv")
    listing = list_source("folder", tmp_path, class_by=r"([^/]+)_\d+\.(?i:jpg)$")
    assert placed(listing) == {
        ("train", "great_dane", "great_dane_1.jpg"),
        ("train", "pug", "pug_2.JPG"),
        ("test", "pug", "pug_3.jpg"),
    }
    assert {path.rpartition("/")[2]: why for path, why in listing.unused} == {
        "pug_4.jpg": "hidden",
        "notes_5.txt": "not an image",
        "metadata.csv": "not an image",
        "IMG.jpg": "has no class by class_by",
    }
    two = list_source("folder", tmp_path, class_by=r"(great|pug)_([a-z]+|\d)")
    assert two.classes == ("great dane", "pug 2", "pug 3"), "of several groups"
    assert listing.notes[0].endswith(" in paths; test/ is test; train/ is train")
    for pattern, said in (
        ("cat", r"class_by is 'cat', and no path of an image has it; .* use --source table"),
        ("train|test", r"class_by is .*, and all that it finds is 'test', 'train'; .*metadata.csv"),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            list_source("folder", tmp_path, class_by=pattern)
        assert "class folder" not in str(refused.value)
        assert "--class-by" not in str(refused.value)
    of_folder = PrepareConfig(source="folder", root="r", out="o", class_by="(a)")
    changes: list[dict[str, Any]] = [{"source": "table"}, {"class_depth": 2}, {"class_by": "("}]
    for change in changes:
        with pytest.raises(ValueError, match="class_by is "):
            replace(of_folder, **change)


def test_test_images_in_class_folders_are_of_one_place(tmp_path):
    folders = [f"{name}/{split}" for name in "ab" for split in ("train", "test_2")]
    write_files(tmp_path / "root", *(f"{folder}/1.jpg" for folder in folders))
    write_files(tmp_path / "more", "a/2.jpg", "b/2.jpg")
    root, more = str(tmp_path / "root"), str(tmp_path / "more")
    with pytest.raises(ValueError, match=r"test_root is .*root/a/test_2' holds test images as"):
        list_source("folder", root, test_root=more)
    with pytest.raises(ValueError, match=r"test_root is .*splits of its own \(a/test_2, a/train\)"):
        list_source("folder", more, test_root=root)


def test_test_images_of_class_by_are_of_one_place(tmp_path):
    for split in ("train", "test"):
        write_files(tmp_path / "root" / split, "x/a_1.jpg", "x/b_1.jpg", "y/a_1.jpg", "y/b_1.jpg")
    write_files(tmp_path / "more", "a_2.jpg", "b_2.jpg")
    root, more = tmp_path / "root", str(tmp_path / "more")
    with pytest.raises(ValueError, match=r"test_root is .*root/test' holds test images as well"):
        list_source("folder", root, class_by="[ab]_", test_root=more)
    with pytest.raises(ValueError, match=r"test_root is .*splits of its own \(test, train\)"):
        list_source("folder", more, class_by="[ab]_", test_root=str(root))
    listing = list_source("folder", root / "train", class_by="[ab]_", test_root=str(root / "test"))
    assert len(listing.references) == 8
    write_files(tmp_path / "albums", *(f"{name}/train/{name}_1.jpg" for name in "abc"))
    write_files(tmp_path / "albums", "a/val/a_2.jpg", "b/val/b_2.jpg")
    listing = list_source("folder", tmp_path / "albums", class_by="[abc]_")
    assert listing.notes[0].endswith(
        "a/train/ is train, and 2 other folders are; a/val/ is val, and 1 other folder is"
    )


def test_split_folders_and_their_siblings(tmp_path):
    write_files(
        tmp_path, "train/a/1", "train/b/2", "valid/a/3", "test/b/4", "devkit/x.mat", "l.csv"
    )
    listing = list_source("folder", tmp_path)
    assert placed(listing) == {
        ("train", "a", "1"),
        ("train", "b", "2"),
        ("val", "a", "3"),
        ("test", "b", "4"),
    }


def test_test_root_lies_apart(tmp_path):
    write_files(tmp_path, "cars/a/1", "cars/b/2", "held_out/b/3")
    listing = list_source("folder", tmp_path / "cars", test_root=str(tmp_path / "held_out"))
    assert ("test", "b", "3") in placed(listing)
    assert list(listing.read(listing.references))[-1] == b"held_out/b/3"


def test_test_images_alone(tmp_path):
    write_files(tmp_path, "test/a/1", "field/b/2", "field/.x")
    listings = [
        list_source("folder", tmp_path / "test"),
        SOURCES["folder"](
            PrepareConfig(source="folder", test_root=str(tmp_path / "field"), out="/unused")
        ),
    ]
    assert [placed(listing) for listing in listings] == [
        {("train", "a", "1")},
        {("test", "b", "2")},
    ]
    assert listings[1].unused == ((f"{tmp_path}/field/.x", "hidden"),)


def test_links_between_albums_are_followed_once(tmp_path):
    write_files(tmp_path, "photos/a/1", "photos/b/x/2", "elsewhere/3", "elsewhere/deep/4")
    photos = tmp_path / "photos"
    (photos / "a/up").symlink_to("..")
    (photos / "a/of b").symlink_to("../b/x")
    (photos / "b/more").symlink_to(tmp_path / "elsewhere")
    (photos / "b/again").symlink_to(tmp_path / "elsewhere")
    (photos / "b/copy").symlink_to("../a/1")
    listing = list_source("folder", photos)
    found = placed(listing)
    assert found == {("train", c, f) for c, f in ("a1", "b2", "b3", "b4", ("b", "copy"))}
    assert len(listing.references) == 5
    assert {(path.rsplit("/", 1)[1], reason) for path, reason in listing.unused} >= {
        ("up", "a link to a folder of the source"),
        ("of b", "a link to a folder of the source"),
    }
    assert len(listing.unused) == 3


def test_folder_version_follows_the_files(tmp_path):
    write_files(tmp_path, "a/1", "b/2")
    before = list_source("folder", tmp_path).version
    assert list_source("folder", tmp_path).version == before
    (tmp_path / "a/1").write_bytes(b"another size")
    assert list_source("folder", tmp_path).version != before


def test_what_cannot_be_read_says_why(tmp_path):
    write_files(tmp_path, "a/1.jpg", "b/2.jpg", "b/3.jpg/inside.jpg")
    listing = list_source("folder", tmp_path)
    (tmp_path / "a/1.jpg").unlink()
    missing, good, folder = listing.read(listing.references)
    assert isinstance(missing, BadImage) and missing.reason == "missing file"
    assert good == b"b/2.jpg"
    assert isinstance(folder, BadImage) and folder.reason == "a folder, not an image"


def test_folder_errors(tmp_path):
    with pytest.raises(ValueError, match=r"root is '.*gone': there is no such folder"):
        list_source("folder", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"root is .* there are no images"):
        list_source("folder", tmp_path)
    write_files(tmp_path, "loose/1")
    with pytest.raises(ValueError, match=r"for images without classes, use `python -m trainers p"):
        list_source("folder", tmp_path / "loose")
    write_files(tmp_path, "one/images/1.jpg", "one/labels.csv")
    with pytest.raises(ValueError, match=r"'images' hold no class folders; where labels.csv tells"):
        list_source("folder", tmp_path / "one")
    of_test = PrepareConfig(source="folder", test_root=str(tmp_path / "one"), out="/unused")
    assert SOURCES["folder"](of_test).classes == ("images",)
    write_files(tmp_path, "train/a/1", "test/a/2")
    with pytest.raises(ValueError, match=r"test_root is .* leave one of the two out"):
        list_source("folder", tmp_path, test_root=str(tmp_path / "test"))
    with pytest.raises(ValueError, match=r"test_root is .*/': it is --root as well"):
        list_source("folder", tmp_path, test_root=f"{tmp_path}/")
    assert PrepareConfig(source="folder", root="/", out="/unused").test_root is None
    with pytest.raises(ValueError, match=r"no file is in 5 folders, as class_depth asks for"):
        list_source("folder", tmp_path, class_depth=5)
    write_files(tmp_path, "parts/a/cars.zip", "parts/a/.hidden/1.jpg")
    with pytest.raises(
        ValueError, match=r"1 hidden \(.hidden/1.jpg\).*unpack archives that are in others"
    ):
        list_source("folder", tmp_path / "parts" / "a")
    with pytest.raises(ValueError, match=r"https://x.org/cars': .* the web has no folders"):
        walk("root", "https://x.org/cars")
    with pytest.raises(ValueError, match=r"test_root is '.*gone'"):
        list_source("folder", tmp_path / "train", test_root=str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ["images/train/1.jpg", "images/val/2.jpg", "labels/train/1.txt"],
            "'train', 'val' hold no",
        ),
        (["train/1.jpg", "valid/2.jpg", "train/labels.csv"], "where train/labels.csv tells"),
        (["images/Beagle_1.jpg", "annotations/trimaps/1.png"], "'annotations', 'images' hold no"),
        (["images/1.jpg", "masks/1.png"], "write a table of their paths and classes"),
        (
            ["VOC/2012/JPEGImages/1.jpg", "VOC/2012/Annotations/1.xml"],
            "'VOC' hold no class folders",
        ),
        (["train/images/1.jpg", "valid/images/2.jpg", "train/labels/1.txt"], "'images' hold no"),
        (["train/1.jpg", "test1/2.jpg", "sampleSubmission.csv"], "write a table of their paths"),
    ],
)
def test_folders_of_splits_and_annotations_are_no_classes(tmp_path, files, words):
    write_files(tmp_path, *files)
    with pytest.raises(ValueError, match=r"root is .* hold no class folders; .*--source table"):
        list_source("folder", tmp_path)
    with pytest.raises(ValueError, match=words):
        list_source("folder", tmp_path)


def write_annotations(path, rows):
    """Write a struct array like the devkit's; rows are (x1, y1, x2, y2[, class], name)."""
    corners = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"]
    fields = [*corners, "class", "fname"] if len(rows[0]) == 6 else [*corners, "fname"]
    annotations = np.array([rows], dtype=[(field, object) for field in fields])
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": annotations})


@pytest.fixture
def stanford(tmp_path):
    write_files(tmp_path, "cars_train/1.jpg", "cars_train/2.jpg", "cars_test/1.jpg")
    devkit = tmp_path / "devkit"
    write_annotations(
        devkit / "cars_train_annos.mat", [(5, 6, 50, 60, 2, "1.jpg"), (1, 2, 3, 4, 1, "2.jpg")]
    )
    write_annotations(devkit / "cars_test_annos.mat", [(7, 8, 9, 10, "1.jpg")])
    names = np.array([["Audi S6 Sedan 2011", "Ram C/V 2012"]], dtype=object)
    savemat(devkit / "cars_meta.mat", {"class_names": names})
    return tmp_path


def test_stanford_keeps_the_official_split_and_boxes(stanford):
    write_annotations(
        stanford / "devkit/cars_test_annos_withlabels.mat", [(7, 8, 9, 10, 1, "1.jpg")]
    )
    listing = list_source("stanford", stanford)
    assert listing.classes == ("Audi S6 Sedan 2011", "Ram C/V 2012")
    columns = ("split", "label", "box")
    assert [tuple(row[c] for c in columns) for row in listing.references.to_pylist()] == [
        ("train", 1, [5, 6, 50, 60]),
        ("train", 0, [1, 2, 3, 4]),
        ("test", 0, [7, 8, 9, 10]),
    ]
    assert list(listing.read(listing.references))[-1] == b"cars_test/1.jpg"


def test_stanford_in_the_doubled_folders_of_an_archive(stanford):
    write_annotations(
        stanford / "devkit/cars_test_annos_withlabels.mat", [(7, 8, 9, 10, 1, "1.jpg")]
    )
    write_files(stanford, "cars_train/3.jpg")
    for name in ("cars_train", "devkit"):
        (stanford / name).rename(stanford / "moved")
        (stanford / name).mkdir()
        (stanford / "moved").rename(stanford / name / name)
    listing = list_source("stanford", stanford)
    assert len(list(listing.read(listing.references))) == 3
    assert not any(isinstance(found, BadImage) for found in listing.read(listing.references))
    assert [(path[-5:], reason) for path, reason in listing.unused] == [
        ("3.jpg", "no annotation in devkit/")
    ]


@pytest.mark.parametrize(
    ("devkit", "labels"),
    [
        ("car_devkit/devkit", "car_devkit/devkit/cars_test_annos_withlabels.mat"),
        ("car_devkit/devkit", "cars_test_annos_withlabels (1).mat"),
        ("car_devkit", "cars_test_annos_withlabels.mat"),
        (".", "cars_test_annos_withlabels.mat"),
    ],
)
def test_stanford_as_kaggle_has_it(stanford, devkit, labels):
    (stanford / "devkit").rename(stanford / "moved")
    (stanford / devkit).mkdir(parents=True, exist_ok=True)
    for file in (stanford / "moved").iterdir():
        file.rename(stanford / devkit / file.name)
    for name in ("cars_train", "cars_test"):
        (stanford / name).rename(stanford / "again")
        (stanford / name).mkdir()
        (stanford / "again").rename(stanford / name / name)
    write_annotations(stanford / labels, [(7, 8, 9, 10, 1, "1.jpg")])
    listing = list_source("stanford", stanford)
    assert listing.references["split"].to_pylist() == ["train", "train", "test"]
    assert list(listing.read(listing.references))[-1] == b"cars_test/1.jpg"
    assert not listing.unused


CORNERS = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"]


def write_all_annotations(root, *, file="cars_annos.mat", fields=None, rows=None):
    """Write what is beside car_ims/: the order of its fields, as of the official file."""
    fields = fields or ["relative_im_path", *CORNERS, "class", "test"]
    rows = rows or [("car_ims/1.jpg", 5, 6, 7, 8, 2, 0), ("car_ims/2.jpg", 1, 2, 3, 4, 1, 1)]
    names = np.array([["Audi S6 Sedan 2011", "Ram C/V 2012"]], dtype=object)
    annotations = np.array([rows], dtype=[(field, object) for field in fields])
    savemat(root / file, {"annotations": annotations, "class_names": names})


@pytest.mark.parametrize("folder", ["car_ims", "car_ims/car_ims"])
def test_stanford_in_one_folder(tmp_path, folder):
    write_files(tmp_path, f"{folder}/1.jpg", f"{folder}/2.jpg", f"{folder}/3.jpg")
    with pytest.raises(UserError, match=r"cars_annos\.mat is missing; download cars_annos\.mat"):
        list_source("stanford", tmp_path)
    write_all_annotations(tmp_path)
    listing = list_source("stanford", tmp_path)
    columns = ("split", "label", "box")
    assert [tuple(row[c] for c in columns) for row in listing.references.to_pylist()] == [
        ("train", 1, [5, 6, 7, 8]),
        ("test", 0, [1, 2, 3, 4]),
    ]
    assert listing.classes == ("Audi S6 Sedan 2011", "Ram C/V 2012")
    read = list(listing.read(listing.references))
    assert read == [f"{folder}/{n}.jpg".encode() for n in (1, 2)]
    assert listing.unused == ((f"{tmp_path}/{folder}/3.jpg", "no annotation in cars_annos.mat"),)


def test_stanford_of_both_releases_reads_one_and_names_the_other(stanford):
    write_annotations(stanford / "cars_test_annos_withlabels.mat", [(7, 8, 9, 10, 1, "1.jpg")])
    write_files(stanford, "car_ims/1.jpg")
    write_all_annotations(stanford)
    listing = list_source("stanford", stanford)
    assert len(listing.references) == 3
    assert [path for path, _ in listing.unused] == [f"{stanford}/car_ims/1.jpg"]


def test_stanford_without_test_labels_says_what_to_do(stanford):
    with pytest.raises(ValueError, match=r"put cars_test_annos_withlabels\.mat into devkit/"):
        list_source("stanford", stanford)
    shutil.rmtree(stanford / "cars_test")
    assert set(list_source("stanford", stanford).references["split"].to_pylist()) == {"train"}


def test_stanford_without_devkit(tmp_path):
    with pytest.raises(ValueError, match=r"root is '.*': .*cars_meta\.mat is missing"):
        list_source("stanford", tmp_path)


def test_stanford_of_files_of_another_kind(stanford):
    """Each is read by MATLAB, but holds something else."""
    shutil.rmtree(stanford / "cars_test")
    meta, train = (stanford / f"devkit/cars_{name}.mat" for name in ("meta", "train_annos"))
    contents = {file: file.read_bytes() for file in (meta, train)}
    row = (5, 6, 50, 60, 2, "1.jpg")
    changes = [
        (meta, {"x": 1}, "has no variable class_names"),
        (train, {"x": 1}, "has no variable annotations"),
        (train, {"annotations": np.arange(3)}, "annotations have no field fname"),
        (train, [row[:4] + row[5:]], "annotations have no field class"),
        (train, [(*row[:4], 0, "1.jpg")], r"the class of 1.jpg is 0 of 2"),
        (train, [(*row[:4], 3, "1.jpg")], r"the class of 1.jpg is 3 of 2"),
        (train, [(*row[:5], 7)], "its fname is 7"),
        (train, [("a", *row[1:])], "an annotation can't be read"),
        (train, [(np.arange(2), *row[1:])], "an annotation can't be read"),
    ]
    for file, content, said in changes:
        if isinstance(content, dict):
            savemat(file, content)
        else:
            write_annotations(file, content)
        with pytest.raises(UserError, match=said) as refused:
            list_source("stanford", stanford)
        assert str(refused.value).startswith(f"root is {str(stanford)!r}: {file}")
        file.write_bytes(contents[file])
    for end in (4, 130, 300, -20):
        train.write_bytes(contents[train][:end])
        with pytest.raises(UserError, match="is damaged, or no MATLAB file"):
            list_source("stanford", stanford)


def test_stanford_changes_with_its_annotations(stanford):
    shutil.rmtree(stanford / "cars_test")
    versions = [list_source("stanford", stanford).version for _ in range(2)]
    assert versions[0] == versions[1]
    rows = [(5, 6, 50, 60, 1, "1.jpg"), (1, 2, 3, 4, 2, "2.jpg")]  # the other way round
    write_annotations(stanford / "devkit/cars_train_annos.mat", rows)
    versions.append(list_source("stanford", stanford).version)
    names = np.array([["Ram C/V 2012", "Audi S6 Sedan 2011"]], dtype=object)
    savemat(stanford / "devkit/cars_meta.mat", {"class_names": names})
    versions.append(list_source("stanford", stanford).version)
    assert len(set(versions)) == 3


@pytest.mark.shared
def test_stanford_reads_the_real_devkit(shared_dir, tmp_path):
    shutil.copytree(shared_dir / "cars/devkit", tmp_path / "devkit")
    (tmp_path / "cars_train").mkdir()
    listing = list_source("stanford", tmp_path)
    assert len(listing.classes) == 196 and listing.references.num_rows == 8144
    first = listing.references.slice(0, 1).to_pylist()[0]
    assert listing.classes[first["label"]] == "Audi TTS Coupe 2012"
    assert first["box"] == [39, 116, 569, 375]
    (tmp_path / "cars_test").mkdir()
    with pytest.raises(ValueError, match="has no labels"):
        list_source("stanford", tmp_path)


def write_parquet(path, labels, *, names=None, contents=None, **options):
    """Write images as Hugging Face does: a struct of bytes and path, class names in metadata."""
    contents = contents or [f"{path.name} {i}".encode() for i in range(len(labels))]
    table = pa.table(
        {
            "image": [{"bytes": content, "path": f"{i}.jpg"} for i, content in enumerate(contents)],
            "label": labels,
        }
    )
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


@pytest.mark.parametrize(
    "metadata",
    [
        "{",
        '{"info": 1}',
        '{"info": {"features": {"label": [1]}}}',
        '{"info": {"features": {"label": {"names": {"0": "suv"}}}}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_metadata_of_another_form_is_refused_by_name(tmp_path, metadata):
    write_parquet(tmp_path / "1.parquet", [1, 0])
    table = pq.read_table(tmp_path / "1.parquet")
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"/1.parquet: its metadata of the library datasets can't"):
        list_source("parquet", tmp_path)


def test_parquet_of_hugging_face(tmp_path):
    names = ["suv", "sedan"]
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", [1, 0], names=names)
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", [0, -1], names=names)
    listing = list_source("parquet", tmp_path)
    assert listing.classes == ("suv", "sedan")  # their order, not the alphabet's
    rows = listing.references.to_pylist()
    assert sorted((row["split"], row["label"]) for row in rows) == [
        ("test", -1),
        ("test", 0),
        ("train", 0),
        ("train", 1),
    ]


def labelled(listing):
    """Class name of each row, by file."""
    found = {}
    for row in listing.references.to_pylist():
        name = listing.classes[row["label"]] if row["label"] >= 0 else None
        found.setdefault(row["file"].rsplit("/", 1)[-1].split("-")[0], []).append(name)
    return found


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        pytest.param(
            {"train": ([0, 1, 2], ["a", "b", "c"]), "test": ([0, 1, 2], ["b", "c", "a"])},
            ("a", "b", "c"),
            id="another order",
        ),
        pytest.param(
            {"train": ([0, 1], ["b", "a"]), "test": ([0, -1], ["a"])}, ("b", "a"), id="fewer"
        ),
        pytest.param(
            {"train": ([1, 0], ["a", "b"]), "test": ([2, 0], ["c", "a", "b"])},
            ("a", "b", "c"),
            id="more",
        ),
        pytest.param(
            {"train": (["b", "a"], None), "test": ([0, 1], ["b", "a"])},
            ("b", "a"),
            id="names beside numbers that are named",
        ),
        pytest.param(
            {"train": ([0, 1], ["Zoe\u0308", "Škoda"]), "test": ([0, 1], ["Škoda", "Zoë"])},
            ("Zoë", "Škoda"),
            id="another spelling, in another language's order",
        ),
        pytest.param(
            {"train": ([3, 7], None), "test": ([7, 3], None)}, ("3", "7"), id="numbers alone"
        ),
    ],
)
def test_parquet_labels_are_matched_by_name(tmp_path, files, classes):
    for split, (labels, names) in files.items():
        write_parquet(tmp_path / f"{split}-0.parquet", labels, names=names)
    listing = list_source("parquet", tmp_path)
    assert listing.classes == classes
    spelled = {"Zoe\u0308": "Zoë"}
    assert labelled(listing) == {
        split: [
            None if v == -1 else spelled.get(names[v], names[v]) if names else str(v)
            for v in labels
        ]
        for split, (labels, names) in files.items()
    }


def test_parquet_names_in_one_file_and_numbers_in_another(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [0, 1], names=["a", "b"])
    write_parquet(tmp_path / "test-0.parquet", [0, 1])
    with pytest.raises(ValueError, match=r"train-0\.parquet and .*test-0\.parquet"):
        list_source("parquet", tmp_path)


def test_parquet_files_that_are_not_used_are_named(tmp_path):
    for name in ("train", "test", "unsupervised"):
        write_parquet(tmp_path / f"data/{name}-00000-of-00001.parquet", [0, 1])
    write_files(tmp_path, "README.md", "data/._train-00000-of-00001.parquet", ".cache/x.parquet")
    listing = list_source("parquet", tmp_path)
    assert {(path.rsplit("/", 1)[1], reason) for path, reason in listing.unused} == {
        ("unsupervised-00000-of-00001.parquet", "of a split that is not train, val or test"),
        ("README.md", "not a Parquet file"),
        ("._train-00000-of-00001.parquet", "hidden"),
        ("x.parquet", "hidden"),
    }
    assert len(listing.references) == 4


def test_parquet_rows_of_a_damaged_row_group(tmp_path):
    """Of the images, of the labels, and of the images' own names."""
    file = tmp_path / "cars.parquet"
    labels = ["a", "b"] * 6
    write_parquet(file, labels, row_group_size=4, compression="none", use_dictionary=False)
    metadata, content = pq.read_metadata(file), bytearray(file.read_bytes())
    for group, name in enumerate(("image.bytes", "image.path", "label")):
        columns = (metadata.row_group(group).column(i) for i in range(3))
        start = next(c.data_page_offset for c in columns if c.path_in_schema == name)
        content[start : start + 16] = b"\xff" * 16
    file.write_bytes(content)
    listing = list_source("parquet", file)
    read = list(listing.read(listing.references))
    assert [isinstance(found, BadImage) for found in read] == [True] * 4 + [False] * 8
    assert listing.references["label"].to_pylist() == [0, 1] * 4 + [-1] * 4
    names = [path.rsplit("#", 1)[1] for path in listing.references["path"].to_pylist()]
    assert names[3:9] == ["3/3.jpg", "4", "5", "6", "7", "8/8.jpg"]


def test_parquet_rows_come_back_in_the_order_of_the_references(tmp_path):
    labels = ["b", "a"] * 50
    write_parquet(tmp_path / "cars.parquet", labels, row_group_size=37)
    listing = list_source("parquet", tmp_path / "cars.parquet")
    assert listing.classes == ("a", "b")
    assert listing.references["label"].to_pylist() == [1, 0] * 50
    some = listing.references.take([0, 3, 36, 37, 73, 74, 99])
    assert list(listing.read(some)) == [
        f"cars.parquet {i}".encode() for i in (0, 3, 36, 37, 73, 74, 99)
    ]


def test_parquet_column_of_bytes_with_test_root_and_numbers(tmp_path):
    for name, labels in (("ours.parquet", [7, 3, None]), ("theirs.parquet", [3])):
        table = pa.table({"jpg": [name.encode()] * len(labels), "cls": labels})
        pq.write_table(table, tmp_path / name)
    listing = list_source(
        "parquet",
        tmp_path / "ours.parquet",
        test_root=str(tmp_path / "theirs.parquet"),
        image_column="jpg",
        label_column="cls",
    )
    assert listing.classes == ("3", "7")
    assert listing.references["label"].to_pylist() == [1, 0, -1, 0]
    assert listing.references["split"].to_pylist() == ["train"] * 3 + ["test"]
    assert list(listing.read(listing.references))[-1] == b"theirs.parquet"


def test_parquet_row_without_bytes(tmp_path):
    write_parquet(tmp_path / "x.parquet", [0, 1], contents=[b"x", None])
    listing = list_source("parquet", tmp_path)
    good, bad = listing.read(listing.references)
    assert good == b"x" and isinstance(bad, BadImage)


def test_parquet_split_comes_from_the_nearest_name(tmp_path):
    root = tmp_path / "train"  # the folders above the root say nothing
    for name in ("test/0.parquet", "validation-0.parquet", "extra.parquet", "training.parquet"):
        write_parquet(root / name, [0, 1])
    references = list_source("parquet", root).references.to_pylist()
    assert {(row["file"].rsplit("/", 1)[-1], row["split"]) for row in references} == {
        ("0.parquet", "test"),
        ("validation-0.parquet", "val"),
        ("extra.parquet", "train"),
        ("training.parquet", "train"),
    }


def test_parquet_errors(tmp_path):
    with pytest.raises(ValueError, match=r"root is '.*gone': it does not exist"):
        list_source("parquet", tmp_path / "gone")
    with pytest.raises(ValueError, match=r"it has no \.parquet file"):
        list_source("parquet", tmp_path)
    file = tmp_path / "train.parquet"
    write_parquet(file, [0, 5], names=["a", "b"])
    with pytest.raises(ValueError, match="holds 5, and the file names 2 classes"):
        list_source("parquet", file)
    with pytest.raises(ValueError, match=r"image_column is 'img': .* the columns image, label"):
        list_source("parquet", file, image_column="img")
    with pytest.raises(ValueError, match=r"label_column is 'make': .* the columns image, label"):
        list_source("parquet", file, label_column="make")
    with pytest.raises(ValueError, match=r"image_column is 'label': it holds int64"):
        list_source("parquet", file, image_column="label")
    with pytest.raises(ValueError, match=r"label_column is 'image': it holds struct"):
        list_source("parquet", file, label_column="image")
    write_parquet(tmp_path / "test.parquet", [0, 1])
    with pytest.raises(ValueError, match="leave one of the two out"):
        list_source("parquet", tmp_path, test_root=str(file))
    file.write_bytes(b"no Parquet at all")
    with pytest.raises(ValueError, match="can't be read as Parquet"):
        list_source("parquet", file)


def test_synthetic_is_rendered_by_the_reader():
    options = SyntheticConfig(num_classes=2, train_per_class=2, test_per_class=1, render_px=32)
    config = PrepareConfig(source="synthetic", out="/unused", synthetic=options)
    listing = SOURCES["synthetic"](config)
    assert listing.references["split"].to_pylist() == ["train"] * 4 + ["test"] * 2
    assert listing.references["label"].to_pylist() == [0, 0, 1, 1, 0, 1]
    contents = list(listing.read(listing.references))
    assert len(set(contents)) == 6
    assert isinstance(contents[0], bytes)
    image = Image.open(io.BytesIO(contents[0]))
    assert image.format == "JPEG" and image.height == 32
    assert contents[0] == encode_jpeg(synthetic.render(options, 0, 0, "train"))


PLACES = ("folder", "cars.zip", "cars.tar", "cars.tar.gz", "cars.tar.xz", "cars.parquet", "table")


def put_source(tmp_path, place):
    """Put 4 images onto `flaky://`, in a form of a source; return how to list them."""
    files = {f"{'ab'[n % 2]}/{n}.jpg": bytes([n]) * 300_000 for n in range(4)}
    if place == "cars.parquet":
        table = pa.table({"image": list(files.values()), "label": ["a", "b"] * 2})
        pq.write_table(table, tmp_path / place, row_group_size=2)
        put(f"/{tmp_path.name}/{place}", (tmp_path / place).read_bytes())
        return PrepareConfig(source="parquet", root=f"flaky://{tmp_path.name}", out="/unused")
    if "." in place:
        pack(tmp_path / place, files)
        files = {place: (tmp_path / place).read_bytes()}
    rows = "".join(f"{name},{name[0]}\n" for name in files)
    files |= {"cars.csv": f"image,label\n{rows}".encode()} if place == "table" else {}
    for name, content in files.items():
        put(f"/{tmp_path.name}/{name}", content)
    root = f"flaky://{tmp_path.name}{f'/{place}' if '.' in place else ''}"
    source = "table" if place == "table" else "folder"
    return PrepareConfig(source=source, root=root, out="/unused")


@pytest.mark.parametrize("error", [OSError("AWS Error NETWORK"), httpx.ReadTimeout("slow")])
@pytest.mark.parametrize("place", PLACES)
def test_an_outage_is_waited_for_and_then_ends_in_a_sentence(tmp_path, monkeypatch, place, error):
    """It makes no image bad and leaves no table or label out, wherever it begins."""
    monkeypatch.setattr(remote, "FIRST_RETRY_S", 0.001)
    config = put_source(tmp_path, place)

    def read():
        listing = SOURCES[config.source](config)
        return listing.references, list(listing.read(listing.references))

    expected = read()
    assert not any(isinstance(found, BadImage) for found in expected[1])
    for after in range(3):
        with failing(error, 3, after=after):
            assert read() == expected
    num_ended = 0
    for after in range(6):
        try:
            with failing(error, after=after):
                assert read() == expected  # it began after the last read
        except StorageError as ended:
            num_ended += 1
            assert str(ended).startswith(f"URI {config.root!r} is out of reach ({error}); ")
    assert num_ended >= 1


@pytest.mark.parametrize("place", PLACES)
def test_what_storage_is_sure_of_is_bad_at_once(tmp_path, monkeypatch, place):
    clock = SimpleNamespace(sleep=lambda _: pytest.fail("waited"), monotonic=time.monotonic)
    monkeypatch.setattr("cluster.io.retry.time", clock)
    config = put_source(tmp_path, place)
    listing = SOURCES[config.source](config)
    for error in (PermissionError("no"), OSError("AWS Error ACCESS_DENIED"), FileNotFoundError()):
        with failing(error):
            found = list(listing.read(listing.references))
        assert len(found) == 4 and all(isinstance(content, BadImage) for content in found)


def test_a_damaged_row_group_on_an_object_store_is_no_outage(tmp_path):
    config = put_source(tmp_path, "cars.parquet")
    content = bytearray((tmp_path / "cars.parquet").read_bytes())
    start = pq.read_metadata(tmp_path / "cars.parquet").row_group(1).column(0).data_page_offset
    content[start : start + 16] = b"\xff" * 16
    put(f"/{tmp_path.name}/cars.parquet", bytes(content))
    listing = SOURCES["parquet"](config)
    found = list(listing.read(listing.references))
    assert [isinstance(image, BadImage) for image in found] == [False, False, True, True]
