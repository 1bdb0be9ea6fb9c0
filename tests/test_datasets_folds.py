"""Folds: their union is all training images, and nothing that belongs together is parted."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.io.errors import UserError
from datasets.manifest import Manifest, Shard, Split, join_splits
from datasets.manifest_file import read_manifest, write_manifest
from datasets.prepare.config import PrepareConfig
from datasets.prepare.folds import assign_folds, describe_folds
from datasets.prepare.partition import assign_splits


def fold_alone(labels: list[int], num_folds: int) -> dict[int, int]:
    """Folds of images that each are a unit; their ids rise with their index."""
    return assign_folds([[i] for i in range(len(labels))], labels, range(len(labels)), num_folds)


ROW = st.tuples(
    st.sampled_from(("train", "train", "train", "test")),
    st.integers(0, 2),  # class
    st.integers(0, 60),  # pixels
    st.sampled_from((None, None, None, None, "a", "b", "c")),  # group
)


@given(st.lists(ROW, min_size=12, max_size=40), st.integers(2, 4), st.data())
def test_folds_part_nothing_that_belongs_together(rows, num_folds, data):
    rows = [(*row, number) for number, row in enumerate(rows)]
    numbers = st.integers(0, len(rows) - 1)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), max_size=3))
    results = []
    for order in (range(len(rows)), data.draw(st.permutations(range(len(rows))))):
        place = {row: at for at, row in enumerate(order)}
        splits, labels, pixel_ids, groups, image_ids = zip(*(rows[i] for i in order), strict=True)
        try:
            parts, reasons = assign_splits(
                splits,
                labels,
                image_ids,
                0.15,
                pixel_ids=pixel_ids,
                groups=groups,
                pairs=[(place[one], place[other]) for one, other in pairs],
                drop_near=True,
                num_folds=num_folds,
            )
        except UserError:
            results.append("too few images")
            continue
        kept = [i for i, reason in enumerate(reasons) if reason is None]
        folds = {f"fold-{number}" for number in range(num_folds)}
        assert {parts[i] for i in kept} - {"train", "test"} == folds
        for key in (pixel_ids, groups):
            parts_of = {}
            for i in kept:
                if key[i] is not None:
                    parts_of.setdefault(key[i], set()).add(parts[i])
            assert all(len(found) == 1 for found in parts_of.values())
        for one, other in pairs:
            near = [place[i] for i in (one, other) if reasons[place[i]] is None]
            assert len({parts[i] for i in near}) <= 1
        for label in {labels[i] for i in kept if splits[i] == "train"}:
            of_label = {parts[i] for i in kept if labels[i] == label and splits[i] == "train"}
            assert "train" in of_label or len(of_label) > 1  # a fold leaves some to train
        for i, split in enumerate(splits):
            assert (split == "test") == (parts[i] == "test")
        results.append({image_ids[i]: parts[i] for i in kept})
    assert results[0] == results[1]
    assume(results[0] != "too few images")  # hypothesis fails where that is so too often


def test_folds_are_stratified_and_balanced():
    labels = [0] * 23 + [1] * 11 + [2] * 4
    fold_of = fold_alone(labels, 5)
    assert sorted(fold_of) == list(range(len(labels)))
    for label in range(3):
        counts = Counter(fold_of[i] for i in fold_of if labels[i] == label)
        sizes = [counts[fold] for fold in range(5)]
        assert max(sizes) - min(sizes) <= 1
    sizes = Counter(fold_of.values()).values()
    assert (min(sizes), max(sizes)) == (7, 8)


def test_as_many_folds_as_images_leave_one_out():
    assert sorted(fold_alone([0, 0, 0, 1, 1], 5).values()) == list(range(5))
    by_class = fold_alone([0, 0, 0, 1, 1, 1], 3)
    assert sorted(Counter(by_class.values()).values()) == [2, 2, 2]


def test_the_only_image_of_a_class_always_trains():
    assert 4 not in fold_alone([0, 0, 0, 0, 1], 2)
    # All of class 1 is in two groups that share images with class 0.
    units, labels = [[0, 1], [2, 3], [4], [5]], [0, 1, 0, 1, 0, 0]
    fold_of = assign_folds(units, labels, range(6), 2)
    assert fold_of[0] == fold_of[1] != fold_of[2] == fold_of[3]


def test_folds_that_would_be_empty_are_refused():
    with pytest.raises(UserError, match=r"folds is 4: .* fill 3; use at most 3"):
        fold_alone([0, 0, 0], 4)
    with pytest.raises(UserError, match=r"folds is 2: .* fill 0; prepare them without --folds"):
        fold_alone([0, 1], 2)
    with pytest.raises(UserError, match="folds is 1: use 2 to 1000"):
        PrepareConfig(source="synthetic", out="x", folds=1)
    with pytest.raises(UserError, match=r"val_fraction is 0\.3: each of the 5 folds validates"):
        PrepareConfig(source="synthetic", out="x", folds=5, val_fraction=0.3)


def part(folder: str, *class_counts: int) -> Split:
    num_images = sum(class_counts)
    shard = Shard(path=f"{folder}/part-00000-x.parquet", row_groups=(num_images,), num_bytes=9)
    return Split(shards=(shard,), class_counts=class_counts, num_pixels=100 * num_images)


@pytest.fixture
def manifest() -> Manifest:
    """Three folds, a class `ram` with one image, and a test split."""
    folds = (part("fold-0", 3, 2, 0), part("fold-1", 3, 1, 0), part("fold-2", 2, 1, 0))
    train = join_splits([part("train", 0, 0, 1), *folds[1:]])
    splits = {"train": train, "val": folds[0], "test": part("test", 1, 1, 1)}
    return Manifest(
        classes=("audi", "bmw", "ram"),
        splits=splits,
        folds=folds,
        num_quarantined=0,
        fingerprint="f",
    )


def test_each_fold_validates_in_its_turn(manifest, tmp_path):
    write_manifest(str(tmp_path), manifest)
    views = [read_manifest(str(tmp_path), fold) for fold in range(3)]
    assert views[0] == manifest
    assert [view.split("val") for view in views] == list(manifest.folds)
    assert len({view.fingerprint for view in views}) == 3
    for view in views:
        train, val = view.split("train"), view.split("val")
        assert not set(train.shards) & set(val.shards)
        assert set(train.shards + val.shards) == set(manifest.split("train+val").shards)
        assert train.class_counts[2] == 1 and train.num_images == 13 - val.num_images
        assert train.num_images == sum(sum(shard.row_groups) for shard in train.shards)
        assert train.num_pixels == 100 * train.num_images
        assert view.split("test") == manifest.split("test")
        assert view.split("train+val").class_counts == (8, 4, 1)


def test_a_fold_that_is_not_there_is_refused(manifest):
    for fold in (3, -1):
        with pytest.raises(UserError, match=f"fold is {fold}: this data set has 3 folds, counted"):
            manifest.with_fold(fold)
    with pytest.raises(UserError, match="fold is 1: this data set has no folds; prepare it again"):
        replace(manifest, folds=()).with_fold(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folds: folds[1:], "folds.0 is not splits.val"),
        (lambda folds: (*folds, folds[1]), "each shard of splits.train and splits.val at most"),
        (
            lambda folds: (*folds, part("test", 1, 1, 1)),
            "each shard of splits.train and splits.val",
        ),
        (lambda folds: (*folds[:2], replace(folds[2], class_counts=(2, 2))), "has 2 numbers"),
        (lambda folds: (*folds[:2], replace(folds[2], class_counts=(2, 0, 1))), "without train"),
    ],
)
def test_folds_that_contradict_the_splits_are_refused(manifest, tmp_path, change, message):
    write_manifest(str(tmp_path), replace(manifest, folds=change(manifest.folds)))
    with pytest.raises(UserError, match=message):
        read_manifest(str(tmp_path))


def test_folds_are_described(manifest):
    assert describe_folds(manifest) == "3 of 3 to 5 images; 1 of 3 classes in no fold (ram)"
