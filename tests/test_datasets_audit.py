"""Planted faults are found by name, and a data set without faults has none."""

import csv
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.io.errors import UserError
from datasets.audit import images as audited
from datasets.audit.audit import list_findings, write_audit, write_command
from datasets.audit.checks import check_balance, run_checks
from datasets.audit.findings import Check, Suspect
from datasets.audit.images import AuditedImages, measure_images
from datasets.manifest_file import read_manifest, write_manifest
from datasets.prepare.exclude import parse_list
from tests.support.data import find_shard, flip_byte, write_images_of
from tests.test_datasets_near import photograph

PER_CLASS = 12
Plant = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(blocks, task, **arguments):
        return (task(block, **arguments) for block in blocks)

    monkeypatch.setattr(audited, "run_blocks", run_here)


def draw_good() -> dict[str, list[tuple[int, np.ndarray]]]:
    """Two classes of distinct photographs."""
    sizes = {"train": 2 * PER_CLASS, "val": 4, "test": 8}
    seeds = iter(range(1000))
    return {
        split: [(number % 2, photograph(next(seeds))) for number in range(size)]
        for split, size in sizes.items()
    }


def measure(tmp_path: Path, images: dict[str, list[tuple[int, np.ndarray]]]) -> AuditedImages:
    write_images_of(str(tmp_path / "data"), images, classes=2)
    return measure_images(str(tmp_path / "data"))


def found_by(checks: list[Check], name: str) -> list[Suspect]:
    (check,) = [check for check in checks if check.name == name]
    assert check.is_fine == (not check.suspects)
    return list(check.suspects)


def test_a_good_data_set_has_no_finding(tmp_path: Path) -> None:
    images = measure(tmp_path, draw_good())
    checks = run_checks(images)
    assert [check.name for check in checks if check.suspects or not check.is_fine] == []
    assert list_findings(images, checks, only_excluded=False) == []


PLANTS: dict[str, tuple[str, Plant, str]] = {
    "dark": ("dark or blank", lambda image: (image * 0.2).astype(np.uint8), "below"),
    "bright": ("dark or blank", lambda image: (250 + image // 60).astype(np.uint8), "above|colour"),
    "blank": ("dark or blank", lambda image: np.full_like(image, 120), "nearly one colour"),
    "tiny": ("tiny", lambda image: cv2.resize(image, (40, 30)), "40 x 30 pixels"),
    "wide": ("extreme shapes", lambda image: cv2.resize(image, (700, 120)), "700 x 120.*5.8 to 1"),
    "high": ("extreme shapes", lambda image: cv2.resize(image, (70, 500)), "70 x 500.*7.1 to 1"),
}


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_planted_image_is_found(tmp_path: Path, kind: str, split: str) -> None:
    name, change, detail = PLANTS[kind]
    good = draw_good()
    good[split][3] = (1, change(photograph(5000)))
    images = measure(tmp_path, good)
    checks = run_checks(images)
    (suspect,) = found_by(checks, name)
    assert images.table["path"][suspect.image].as_py() == f"{split}/3.jpg"
    assert re.search(detail, suspect.detail)
    assert [check.name for check in checks if check.suspects] == [name]
    rows = list_findings(images, checks, only_excluded=True)
    listed = [] if split == "test" else [(f"{split}/3.jpg", split, "class 1", checks_reason(name))]
    assert [row[:4] for row in rows] == listed  # no test image is left out


def checks_reason(name: str) -> str:
    return {"extreme shapes": "extreme shape"}.get(name, name)


def test_small_images_and_panoramas_are_fine_where_all_are(tmp_path: Path) -> None:
    small = {
        split: [(label, cv2.resize(image, (120, 30))) for label, image in of_split]
        for split, of_split in draw_good().items()
    }
    checks = run_checks(measure(tmp_path, small))
    assert not found_by(checks, "tiny") and not found_by(checks, "extreme shapes")


def test_near_duplicates_across_splits_leave_out_the_image_that_trains(tmp_path: Path) -> None:
    good = draw_good()
    good["train"][0] = (0, cv2.resize(good["test"][2][1], None, fx=0.6, fy=0.6))  # of class 0
    good["train"][5] = (1, np.ascontiguousarray(good["val"][1][1][:, ::-1]))
    good["train"][8] = (0, cv2.resize(good["train"][6][1], None, fx=0.7, fy=0.7))
    good["train"][9] = (1, cv2.resize(good["train"][4][1], None, fx=0.7, fy=0.7))  # class differs
    images = measure(tmp_path, good)
    checks = run_checks(images)
    paths = images.table["path"].to_pylist()
    found = {
        paths[s.image]: (paths[s.others[0][0]], s.is_excluded)
        for s in found_by(checks, "near duplicates")
    }
    assert found == {
        "train/0.jpg": ("test/2.jpg", True),
        "train/5.jpg": ("val/1.jpg", True),
        "train/6.jpg": ("train/8.jpg", False),
        "train/4.jpg": ("train/9.jpg", True),
    }
    (check,) = [check for check in checks if check.name == "near duplicates"]
    assert check.result == "4 pairs, 2 of them across splits"


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_images_of(str(tmp_path / "data"), draw_good(), classes=2)
    flip_byte(find_shard(tmp_path / "data", "train"), 7, at=-300)
    images = measure_images(str(tmp_path / "data"))
    checks = run_checks(images)
    (suspect,) = found_by(checks, "unreadable")
    assert images.table["path"][suspect.image].as_py() == "train/7.jpg"
    assert [check.name for check in checks if check.suspects] == ["unreadable"]


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        ((12, 12), (4, 4), None),
        ((12, 3), (4, 1), "1 class has under 10"),
        ((120, 11), (40, 4), "11 to 120 images of a class"),
        ((20, 20), (8, 2), "train and test differ by 30%"),
        ((20, 20), (8, 0), "train and test differ by 50%"),
    ],
)
def test_class_balance(tmp_path: Path, train, test, says: str | None) -> None:
    write_images_of(str(tmp_path / "data"), draw_good(), classes=2)
    manifest = read_manifest(str(tmp_path / "data"))
    splits = {
        name: replace(manifest.splits[name], class_counts=counts)
        for name, counts in (("train", train), ("test", test))
    }
    images = AuditedImages(
        data="d", manifest=replace(manifest, splits=splits), table=None, read=None  # type: ignore
    )  # fmt: skip
    check = check_balance(images)
    assert check.is_fine == (says is None)
    assert says is None or says in check.result
    assert check.table is not None and check.table.header == ("class", "train", "test")


def test_the_page_escapes_names_and_needs_no_network(tmp_path: Path, capsys) -> None:
    good = draw_good()
    good["train"][3] = (1, np.full((60, 80, 3), 9, np.uint8))
    write_images_of(str(tmp_path / "data"), good, classes=2)
    manifest = read_manifest(str(tmp_path / "data"))
    names = ("a", "<script>alert(1)</script> [van]")
    options = {"source": "folder", "root": "/photos/my cars", "val_fraction": 0.2, "address": "x"}
    write_manifest(str(tmp_path / "data"), replace(manifest, classes=names, options=options))
    images = measure_images(str(tmp_path / "data"))
    write_audit(str(tmp_path / "out"), images, run_checks(images), max_shown=8)
    page = (tmp_path / "out/audit.html").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert "default-src &#39;none&#39;" in page and not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/webp;base64,") == 1
    assert "1 of 36 images needs a look" in page
    printed = capsys.readouterr().out
    assert "1 image, 2.8%" in printed and "1 image of train and val" in printed


def test_a_fold_validates_and_the_others_train(tmp_path: Path, capsys) -> None:
    good, data = draw_good(), str(tmp_path / "data")
    good["train"][3] = (1, np.full((60, 80, 3), 9, np.uint8))
    write_images_of(data, good, classes=2)
    manifest = read_manifest(data)
    folds = manifest.splits["val"], manifest.splits["train"]
    write_manifest(data, replace(manifest, folds=folds))
    for fold, split in enumerate(("train", "val")):
        images = measure_images(data, fold)
        number = {"train": 24, "val": 4, "test": 8} if fold == 0 else {"train": 4, "val": 24}
        assert Counter(images.splits_N) == {"test": 8, **number}
        write_audit(str(tmp_path / "out"), images, run_checks(images), max_shown=8)
        with (tmp_path / "out/exclude.csv").open() as stream:
            (row,) = csv.DictReader(stream)
        assert (row["path"], row["split"]) == ("train/3.jpg", split)
        assert f"val is fold {fold} of 2" in (tmp_path / "out/audit.html").read_text()
        assert f"Folds:    val is fold {fold} of 2, train has the others" in capsys.readouterr().out
    with pytest.raises(UserError, match="fold is 2: this data set has 2 folds, counted from 0"):
        measure_images(data, 2)


def test_the_exclude_list_is_read_by_prepare_and_keeps_an_earlier_one(tmp_path: Path) -> None:
    good = draw_good()
    good["train"][3] = (1, np.full((60, 80, 3), 9, np.uint8))
    write_images_of(str(tmp_path / "data"), good, classes=2)
    earlier = tmp_path / "exclude.csv"
    earlier.write_text("path,split,reason\ntrain/gone.jpg,train,label error\n")
    manifest = read_manifest(str(tmp_path / "data"))
    options = {"source": "folder", "root": "/photos/my cars", "out": "o", "val_fraction": 0.2,
               "exclude": str(earlier), "synthetic": {"seed": 0}}  # fmt: skip
    write_manifest(str(tmp_path / "data"), replace(manifest, options=options))
    images = measure_images(str(tmp_path / "data"))
    write_audit(str(tmp_path), images, run_checks(images), max_shown=0)
    entries, num_rows = parse_list("exclude.csv", earlier.read_bytes())
    assert num_rows == 2
    assert {path: of[0].reason for path, of in entries.items()} == {
        "train/gone.jpg": "label error",
        "train/3.jpg": "dark or blank",
    }
    with (tmp_path / "findings.csv").open() as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == ["train/3.jpg"]
    assert write_command(images, "e.csv") == (
        "python -m datasets prepare --source folder --root '/photos/my cars' "
        f"--out {tmp_path}/data-clean --val-fraction 0.2 --exclude e.csv"
    )
