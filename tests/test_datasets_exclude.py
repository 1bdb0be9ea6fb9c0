"""`prepare --exclude`: listed images are left out, counted and named; nothing else changes."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.io.errors import UserError
from cluster.io.tables import to_csv
from datasets.__main__ import main
from datasets.manifest_file import read_manifest
from datasets.prepare.config import PrepareConfig
from datasets.prepare.exclude import COLUMNS, exclude, parse_list
from datasets.prepare.groups import add_groups
from datasets.prepare.listing import Listing
from datasets.prepare.prepare import describe
from datasets.prepare.sources import SOURCES
from tests.test_datasets_near import photograph

FILES = ("train/audi/1.jpg", "train/audi/2.jpg", "train/bmw/1.jpg", "train/bmw/3.jpg",
         "test/audi/1.jpg", "test/bmw/5.jpg")  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"not opened")
    return tmp_path / "photos"


def list_without(photos: Path, content: bytes, name: str = "exclude.csv") -> Listing:
    file = photos.parent / name
    file.write_bytes(content)
    config = PrepareConfig(
        source="folder", root=str(photos), out=str(photos.parent / "out"), exclude=str(file)
    )
    return exclude(config, SOURCES["folder"](config))


def names(listing: Listing, photos: Path) -> set[str]:
    return {path.removeprefix(f"{photos}/") for path in listing.references["path"].to_pylist()}


@pytest.mark.parametrize(
    ("content", "file"),
    [
        (b"path,reason\nROOT/train/audi/1.jpg,too dark\n", "exclude.csv"),
        (b"train/audi/1.jpg\n", "exclude.csv"),
        (b"train/audi/1.jpg\n\n", "exclude.txt"),
        (b'{"path": "train/audi/1.jpg"}\n', "exclude.jsonl"),
        (b"split\tpath\ntrain\ttrain/audi/1.jpg\n", "exclude.tsv"),
        (b"path,split\ntrain/audi/1.jpg,val\n", "exclude.csv"),  # val was cut from train
        (b",path\n0,train/audi/1.jpg\n", "exclude.csv"),  # pandas' index
    ],
)
def test_a_listed_image_is_left_out(photos: Path, content: bytes, file: str) -> None:
    listing = list_without(photos, content.replace(b"ROOT", str(photos).encode()), file)
    assert names(listing, photos) == set(FILES) - {"train/audi/1.jpg"}
    ((path, reason),) = listing.unused
    assert path == str(photos / "train/audi/1.jpg") and reason.startswith("excluded: ")


@pytest.mark.parametrize("root", ["photos/cars.csv", "photos", "photos/./cars.csv"])
def test_paths_are_below_the_folder_of_a_table(photos: Path, root: str) -> None:
    rows = "".join(f"{name},{name.split('/')[1]}\n" for name in FILES)
    (photos / "cars.csv").write_text(f"file,label\n{rows}")
    file = photos.parent / "exclude.txt"
    file.write_text("train/audi/1.jpg")
    config = PrepareConfig(
        source="table", root=str(photos.parent / root), out="out", exclude=str(file),
        group_by=r"^(\w+)/",
    )  # fmt: skip
    listing = add_groups(config, SOURCES["table"](config))
    assert listing.references["group"].to_pylist() == [name.split("/")[0] for name in FILES]
    assert names(exclude(config, listing), photos) == set(FILES) - {"train/audi/1.jpg"}


def test_an_image_of_another_split_is_another_image(photos: Path) -> None:
    with pytest.raises(UserError, match="none of its 1 images is in the source"):
        list_without(photos, b"path,split\ntrain/audi/1.jpg,test\n")


def test_what_is_not_in_the_source_is_reported(photos: Path, capsys) -> None:
    listing = list_without(photos, b"path\ntrain/audi/1.jpg\nelsewhere/9.jpg\n")
    assert len(listing.references) == len(FILES) - 1
    assert "1 of its 2 images are not in the source, such as elsewhere/9.jpg" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"file,label\na.jpg,1\n",
            r"exclude is .*it has no column `path`, but \['file', 'label'\]",
        ),
        (b"path\nnowhere.jpg\n", "exclude is .*none of its 1 images is in the source"),
        (b"path,split\na.jpg\n", "^exclude is .*can't be read as a table"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(photos: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list_without(photos, content)


def test_a_list_without_images_leaves_out_none(photos: Path) -> None:
    assert names(list_without(photos, b"path,split\n"), photos) == set(FILES)


def test_another_list_is_another_source(photos: Path) -> None:
    versions = {list_without(photos, content).version for content in (b"path\n", b"path \n\n")}
    assert len(versions) == 2


def test_paths_survive_csv() -> None:
    paths = ["=1+1.jpg", "-cmd.jpg", 'a "b", c.jpg', "Citroën/ä.jpg", "[van].jpg", "7"]
    rows = [(path, "train", "a, b", "too dark", None) for path in paths]
    entries, num_rows = parse_list("exclude.csv", to_csv(COLUMNS, rows))
    assert list(entries) == paths and num_rows == len(paths)
    assert {entry.reason for own in entries.values() for entry in own} == {"too dark"}


@pytest.mark.ray
def test_prepare_leaves_out_what_audit_lists(ray_cluster: str, tmp_path: Path, capsys) -> None:
    """By the command that audit prints: images are in a split, in quarantine or named as unused."""
    root, first, out = tmp_path / "my photos", tmp_path / "cars", tmp_path / "audit"
    pictures = {
        f"{split}/{name}/{number}.jpg": photograph(1000 * len(name) + 10 * len(split) + number)
        for split, size in (("train", 8), ("test", 2))
        for name in ("audi", "bmw x")
        for number in range(size)
    }
    pictures["train/audi/dark.jpg"] = np.full((90, 90, 3), 4, np.uint8)
    of_test = pictures["test/bmw x/0.jpg"]
    pictures["train/bmw x/near.jpg"] = cv2.resize(of_test, None, fx=0.7, fy=0.7)
    for name, image in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), image)
    main(["prepare", "--source", "folder", "--root", str(root), "--out", str(first)])
    main(["audit", "--data", str(first), "--out", str(out)])
    printed = capsys.readouterr().out
    (command,) = re.findall(r"Next:     python -m datasets (.*)", printed)
    main(shlex.split(command))

    manifest = read_manifest(f"{first}-clean")
    assert sum(split.num_images for split in manifest.splits.values()) == len(pictures) - 2
    assert (manifest.num_unused, manifest.num_quarantined) == (2, 0)
    unused = pq.read_table(f"{first}-clean/unused.parquet").to_pylist()
    assert {row["path"].removeprefix(f"{root}/"): row["reason"] for row in unused} == {
        "train/audi/dark.jpg": "excluded: dark or blank",
        "train/bmw x/near.jpg": "excluded: near duplicate",
    }
    main(["audit", "--data", f"{first}-clean", "--out", str(out)])
    assert "0 images of train and val" in capsys.readouterr().out


def test_a_dry_run_names_what_is_excluded(photos: Path, capsys) -> None:
    file = photos.parent / "exclude.csv"
    file.write_text("path,reason\ntrain/audi/2.jpg,label error\n")
    describe(
        PrepareConfig(source="folder", root=str(photos), out=str(photos.parent / "o"),
                      exclude=str(file))
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "1 excluded: label error" in printed and str(photos / "train/audi/2.jpg") in printed
