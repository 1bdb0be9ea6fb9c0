"""A label file for each image: YOLO, Pascal VOC, WebDataset."""

import json
import tarfile

import pytest

from cluster.io.errors import UserError
from datasets.images import BadImage
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing
from datasets.prepare.sources import SOURCES
from datasets.prepare.tables.sidecars import find_names, find_sidecars, read_names, read_sidecars
from tests.support.archives import pack
from tests.support.listings import placed

CLASSES = ("audi", "bmw")


def list_source(source: str, root: object, **options: str) -> Listing:
    return SOURCES[source](PrepareConfig(source=source, root=str(root), out="/unused", **options))  # pyright: ignore[reportArgumentType]


def write(root, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.mark.parametrize("layout", ["images/{}/{}", "{}/images/{}"])
@pytest.mark.parametrize("names", ["names: [audi, bmw]\n", "names:\n  0: audi\n  1: bmw\n"])
def test_yolo(tmp_path, layout, names):
    files = {"data.yaml": f"train: x\nnc: 2\n{names}", "README.md": ""}
    for split in ("train", "valid"):
        for n in range(2):
            image = layout.format(split, f"{n}.jpg")
            files[image] = f"{split} {n}"
            label = image.replace("images", "labels").replace(".jpg", ".txt")
            files[label] = f"{n} 0.5 0.5 0.2 1e-3\n{n} 0.1 0.1 0.2 0.2\n"
    image = layout.format("train", "2.jpg")
    files |= {image: "train 2", layout.format("train", "3.jpg").replace("images", "labels"): "x"}
    label = image.replace("images", "labels").replace(".jpg", ".txt")
    files[label] = "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2"
    write(tmp_path, files)
    listing = list_source("table", tmp_path)
    assert placed(listing) == {
        ("train", "audi", "train 0"),
        ("train", "bmw", "train 1"),
        ("val", "audi", "valid 0"),
        ("val", "bmw", "valid 1"),
        ("train", None, "train 2"),
    }
    assert listing.notes == (
        "classes from the .txt file of each image",
        "1 image has several classes and is left out",
        "names of classes from data.yaml",
    )
    unused = {path.rpartition("/")[2] for path, _ in listing.unused}
    assert unused == {"README.md", "3.jpg"}
    with pytest.raises(UserError, match=r"where files such as .*/0.txt tell the classes, use --so"):
        list_source("folder", tmp_path)
    version = listing.version
    (tmp_path / label).write_text("0 0.5 0.5 0.2 0.2")
    changed = list_source("table", tmp_path)
    assert changed.version != version
    (tmp_path / "data.yaml").write_text(files["data.yaml"].replace("audi", "ram"))
    renamed = list_source("table", tmp_path)
    assert renamed.classes == ("bmw", "ram") and renamed.version != changed.version


def test_pascal_voc(tmp_path):
    write(
        tmp_path,
        {
            f"VOCdevkit/VOC2012/{folder}/{n}.{suffix}": text
            for n, name in enumerate(("audi", "R&amp;D"))
            for folder, suffix, text in (
                ("JPEGImages", "jpg", str(n)),
                (
                    "Annotations",
                    "xml",
                    f"<annotation><filename>{n}.jpg</filename><owner><name>me</name></owner>"
                    f"<object>\n <name>{name}</name><part><name>door</name></part></object>"
                    "</annotation>",
                ),
            )
        },
    )
    assert placed(list_source("table", tmp_path)) == {
        ("train", "audi", "0"),
        ("train", "R&D", "1"),
    }
    with pytest.raises(UserError, match=r"'VOCdevkit' hold no .*such as .*xml tell the classes"):
        list_source("folder", tmp_path)


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_webdataset(tmp_path, suffix):
    for split, first in (("train", 0), ("val", 10)):
        files = {}
        for n in (first, first + 1):
            text = str(n % 2) if suffix == "cls" else json.dumps({"label": n % 2, "box": [1, 2]})
            files |= {f"{n:06}.jpg": str(n).encode(), f"{n:06}.{suffix}": text.encode()}
        pack(tmp_path / f"cars-{split}-000000.tar", files)
    assert tarfile.is_tarfile(tmp_path / "cars-val-000000.tar")
    assert placed(list_source("table", tmp_path)) == {
        ("train", "0", "0"),
        ("train", "1", "1"),
        ("val", "0", "10"),
        ("val", "1", "11"),
    }
    with pytest.raises(UserError, match=r"tells? the classes, use --source table"):
        list_source("folder", tmp_path)


def test_columns_of_json_files_are_chosen_as_of_a_table(tmp_path):
    for n, name in enumerate(CLASSES):
        write(tmp_path, {f"{n}.jpg": str(n), f"{n}.json": json.dumps({"make": name, "n": n})})
    with pytest.raises(UserError, match=r"^root is .*columns image, make, n, and none of classes"):
        list_source("table", tmp_path)
    found = list_source("table", tmp_path, label_column="make")
    assert placed(found) == {("train", "audi", "0"), ("train", "bmw", "1")}


def test_json_files_of_test_images_are_judged_with_those_of_training_images(tmp_path):
    files = {f"train/{n}": "abc"[n % 3] for n in range(6)}
    files |= {f"test/{n}": "abc"[n] for n in range(3)}
    for path, name in files.items():
        write(tmp_path, {f"{path}.jpg": path, f"{path}.json": json.dumps({"breed": name})})
    listing = list_source("table", tmp_path / "train", test_root=str(tmp_path / "test"))
    assert placed(listing) == {(path.partition("/")[0], name, path) for path, name in files.items()}
    with pytest.raises(UserError, match=r"^root is '[^']*/test': it has another 'breed' in each"):
        list_source("table", tmp_path / "test")


def test_texts_that_are_no_labels_are_refused(tmp_path):
    write(tmp_path, {f"{n}.{s}": "a red car" for n in range(2) for s in ("jpg", "txt")})
    with pytest.raises(UserError, match=r"^root is .*none of the 2 files beside images names a cl"):
        list_source("table", tmp_path)
    write(tmp_path, {"classes.yaml": "", "data.yaml": "names: {a: b}", "0.txt": "0 0 0 0 0"})
    with pytest.raises(UserError, match=r"data.yaml can't be read as names of classes"):
        list_source("table", tmp_path)


def test_which_file_is_of_which_image():
    files = [
        "a/1.jpg", "a/1.txt", "a/1.cls", "b/Images/2.PNG", "b/Labels/2.txt", "3.jpg", "x/3.txt",
        ".h/4.jpg", ".h/4.txt", "5.txt", "JPEGImages/6.v2.jpg", "Annotations/6.v2.xml",
    ]  # fmt: skip
    assert find_sidecars(files) == {
        "a/1.jpg": "a/1.cls",
        "b/Images/2.PNG": "b/Labels/2.txt",
        "JPEGImages/6.v2.jpg": "Annotations/6.v2.xml",
    }
    assert find_names(["x/classes.txt", "data.yaml", "a.yaml"]) == "data.yaml"
    assert find_names(["a.yaml"]) is None
    assert read_names("classes.txt", b"audi\nbmw\n") == {0: "audi", 1: "bmw"}
    assert read_names("data.yaml", b"train: x") == {}
    assert read_names("classes.txt", "\ufeffaudi\nbmw".encode()) == {0: "audi", 1: "bmw"}


def test_keys_of_a_json_file_replace_neither_path_nor_count():
    contents: dict[str, tuple[str, bytes | BadImage]] = {}
    for n, name in enumerate(CLASSES):
        values = {"label": name, "image": "x.jpg", "Image": "y.jpg", "several": "yes"}
        contents[f"{n}.jpg"] = (f"{n}.json", json.dumps(values).encode())
    rows = read_sidecars(contents, {})
    assert rows.columns["image"] == ["0.jpg", "1.jpg"]
    assert next(iter(rows.columns)) == "image", "before other spellings of it"
    assert rows.columns["several"] == ["yes", "yes"]
    assert rows.notes == ("classes from the .json file of each image",)
