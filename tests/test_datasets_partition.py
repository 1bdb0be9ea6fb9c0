import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.prepare.groups import find_split_names, group_by_folder, group_by_pattern, join_groups
from datasets.prepare.partition import (
    assign_splits,
    cut_row_groups,
    fingerprint,
    identify,
    num_validation,
    tally_reasons,
)

# (split, label, image id)
Image = tuple[str, int, int]


def assign(images: list[Image], val_fraction: float = 0.25) -> tuple[list[str], list[str | None]]:
    splits, labels, image_ids = zip(*images, strict=True)
    return assign_splits(splits, labels, image_ids, val_fraction)


def ids_in(images: list[Image], split: str) -> set[int]:
    assigned, reasons = assign(images)
    rows = zip(images, assigned, reasons, strict=True)
    return {image[2] for image, place, reason in rows if place == split and reason is None}


@pytest.fixture
def images() -> list[Image]:
    """Two classes of 40 and 10 training images, 8 test images, all different."""
    contents = [(("train", 0), 40), (("train", 1), 10), (("test", 0), 4), (("test", 1), 4)]
    return [
        (split, label, identify(f"{split} {label} {number}".encode()))
        for (split, label), count in contents
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("num_images", "val_fraction", "expected"),
    [(0, 0.15, 0), (1, 0.9, 0), (2, 0.01, 1), (2, 0.99, 1), (41, 0.15, 6), (10, 0.99, 9)],
)
def test_num_validation(num_images, val_fraction, expected):
    assert num_validation(num_images, val_fraction) == expected


def test_validation_is_stratified_and_exact(images):
    assigned, reasons = assign(images)
    assert reasons == [None] * len(images)
    counts = Counter(zip(assigned, (label for _, label, _ in images), strict=True))
    assert counts["val", 0] == 10 and counts["val", 1] == 2
    assert counts["train", 0] == 30 and counts["train", 1] == 8
    assert counts["test", 0] == counts["test", 1] == 4


def test_split_does_not_depend_on_the_order(images):
    shuffled = random.Random(1).sample(images, len(images))
    for split in ("train", "val", "test"):
        assert ids_in(shuffled, split) == ids_in(images, split)


def test_no_image_stands_in_two_splits(images):
    train, test = images[:50], images[50:]
    # A training image that is also a test image, one that is there twice, one under two classes.
    copies = [("train", 0, test[0][2]), train[3], ("train", 1, train[5][2])]
    everything = images + copies
    _, reasons = assign(everything)
    assert Counter(reason for reason in reasons if reason) == {
        "duplicate of a test image": 1,
        "duplicate of another train image": 1,
        "the same image under two classes": 2,
    }
    train_ids, val_ids, test_ids = (ids_in(everything, s) for s in ("train", "val", "test"))
    assert not train_ids & val_ids and not test_ids & (train_ids | val_ids)
    assert train[5][2] not in train_ids | val_ids
    assert len(train_ids | val_ids) == 49 and len(test_ids) == 8


def test_test_split_stays_whole():
    assigned, reasons = assign([("train", 0, 1), ("train", 1, 2), ("test", 0, 3), ("test", 1, 3)])
    assert reasons == [None] * 4 and assigned[2:] == ["test", "test"]


def test_own_validation_split_is_kept():
    own = [("train", 0, 1), ("train", 0, 2), ("train", 0, 3), ("val", 0, 4), ("train", 0, 4)]
    assigned, reasons = assign(own)
    assert assigned == ["train", "train", "train", "val", "train"]
    assert reasons == [None] * 4 + ["duplicate of a validation image"]


def test_shards_are_balanced_and_complete():
    assert cut_row_groups(10, 100, row_group_size=4, shard_bytes=1000) == [(4, 4, 2)]
    shards = cut_row_groups(1000, 5_000, row_group_size=64, shard_bytes=1000)
    assert len(shards) == 5
    assert sum(map(sum, shards)) == 1000
    assert {len(groups) for groups in shards} <= {3, 4}
    assert cut_row_groups(3, 10**9, row_group_size=64, shard_bytes=1) == [(3,)]


def test_fingerprint_follows_content_not_order():
    images = [("train", 1, 0), ("val", 2, 1)]
    before = fingerprint(["a", "b"], images, {"short_side_px": 256})
    assert fingerprint(["a", "b"], images[::-1], {"short_side_px": 256}) == before
    assert fingerprint(["a", "c"], images, {"short_side_px": 256}) != before
    assert fingerprint(["a", "b"], images, {"short_side_px": 128}) != before
    moved = [("train", 1, 0), ("train", 2, 1)]
    assert fingerprint(["a", "b"], moved, {"short_side_px": 256}) != before


def test_reasons_are_tallied_without_their_detail():
    reasons = ["truncated: 3 bytes", "not an image", "truncated: 9 bytes"]
    assert tally_reasons(reasons) == "2 truncated, 1 not an image"


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        pytest.param(["train 0 1 9", "test 0 2 9"], {2}, id="in test"),
        pytest.param(["train 0 1 9", "val 0 2 9"], {2}, id="in val"),
        pytest.param(["train 0 2 9", "train 0 1 9"], {1}, id="twice in train"),
        pytest.param(["train 0 1 9", "train 1 2 9"], set(), id="under two classes"),
        pytest.param(["val 0 1 9", "test 1 2 9", "train 0 3 9"], {2}, id="in all three"),
        pytest.param(["test 0 1 9", "test 0 2 9"], {1, 2}, id="test stays whole"),
    ],
)
def test_the_same_pixels_in_other_bytes_are_in_one_split(rows, kept):
    """Each row: split, class, image id, pixel id."""
    for order in (rows, rows[::-1]):
        splits, *numbers = zip(*(row.split() for row in order), strict=True)
        labels, image_ids, pixel_ids = ([int(n) for n in column] for column in numbers)
        _, reasons = assign_splits(splits, labels, image_ids, 0.15, pixel_ids=pixel_ids)
        assert {i for i, reason in zip(image_ids, reasons, strict=True) if reason is None} == kept


@st.composite
def many_images(draw):
    """Images with few pixel ids and groups, so that many are the same or belong together."""
    row = st.tuples(
        st.sampled_from(("train", "train", "val", "test")),
        st.integers(0, 2),
        st.integers(0, 15),
        st.sampled_from((None, "a", "b", "c", "d")),
    )
    rows = draw(st.lists(row, min_size=1, max_size=40))
    if draw(st.booleans()):
        rows = [("train" if split == "val" else split, *rest) for split, *rest in rows]
    return [(*row, number) for number, row in enumerate(rows)]


@given(many_images(), st.randoms())
def test_no_pixels_and_no_group_are_in_two_splits(rows, shuffle):
    results = []
    for _ in range(2):
        splits, labels, pixel_ids, groups, image_ids = zip(*rows, strict=True)
        assigned, reasons = assign_splits(
            splits, labels, image_ids, 0.3, pixel_ids=pixel_ids, groups=groups
        )
        kept = [i for i, reason in enumerate(reasons) if reason is None]
        for key in (pixel_ids, groups):
            splits_of = {}
            for i in kept:
                if key[i] is not None:
                    splits_of.setdefault(key[i], set()).add(assigned[i])
            assert all(len(found) == 1 for found in splits_of.values())
        for i, split in enumerate(splits):
            assert split != "test" or (assigned[i], reasons[i]) == ("test", None)
        if "val" not in splits:
            for label in {labels[i] for i in kept if assigned[i] == "val"}:
                assert any(labels[i] == label and assigned[i] == "train" for i in kept)
        results.append({image_ids[i]: assigned[i] for i in kept})
        shuffle.shuffle(rows)
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("path", "depth", "group"),
    [
        ("audi/v1/1.jpg", 1, "audi/v1"),
        ("train/audi/v1/1.jpg", 1, "audi/v1"),
        ("test/audi/v1/side/2.jpg", 1, "audi/v1"),
        ("audi/v1/side/2.jpg", 2, "audi/v1/side"),
        ("audi/test/v1/2.jpg", 1, "audi/v1"),
        ("audi/1.jpg", 1, None),
        ("train/audi/1.jpg", 3, None),
    ],
)
def test_folders_below_a_class_are_groups(path, depth, group):
    assert group_by_folder(path, "audi", 1, depth, {"test"}) == group


@pytest.mark.parametrize("above", ["", "a4/"])
def test_folders_of_splits_in_classes_are_no_groups(above):
    paths = [f"{c}/{above}{s}/v{n}/1.jpg" for c in "ab" for s in ("train_2", "val") for n in "12"]
    splits = find_split_names(paths, 1)
    assert set(splits) == {"train_2", "val"}
    depth = 1 + above.count("/")
    groups = [group_by_folder(path, path[0], 1, depth, splits) for path in paths]
    assert groups == [f"{c}/{above}v{n}" for c in "ab" for _ in range(2) for n in "12"]
    albums = ["a/test drive/1.jpg", "b/test drive/2.jpg"]
    assert not find_split_names(albums, 1)
    assert group_by_folder(albums[0], "a", 1, 1) == "a/test drive"


@pytest.mark.parametrize(
    ("pattern", "path", "group"),
    [
        (r"vehicle_(\d+)", "train/audi/vehicle_07_3.jpg", "07"),
        (r"vehicle_(\d+)", "test/bmw/vehicle_07_9.jpg", "07"),
        (r"(\d{4})-(\d\d)", "a/2011-05_1.jpg", "2011/05"),
        (r"IMG_\d", "a/IMG_47.jpg", "IMG_4"),
        (r"vehicle_(\d+)", "train/audi/1.jpg", None),
    ],
)
def test_a_pattern_names_groups(pattern, path, group):
    assert group_by_pattern(re.compile(pattern), path) == group


def test_pairs_join_groups():
    joined = join_groups(["a", "a", None, None, None, "b"], [(1, 2), (3, 4)])
    assert joined[0] == joined[1] == joined[2] is not None
    assert joined[3] == joined[4] != joined[0] and joined[5] not in (None, joined[0], joined[3])
    assert join_groups([None, None], []) == [None, None]


@given(many_images(), st.data())
def test_no_near_pair_is_in_two_splits(rows, data):
    numbers = st.integers(0, len(rows) - 1)
    pairs = data.draw(st.lists(st.tuples(numbers, numbers), max_size=12))
    results = []
    for order in (range(len(rows)), data.draw(st.permutations(range(len(rows))))):
        place = {row: at for at, row in enumerate(order)}
        splits, labels, pixel_ids, groups, image_ids = zip(*(rows[i] for i in order), strict=True)
        assigned, reasons = assign_splits(
            splits,
            labels,
            image_ids,
            0.3,
            pixel_ids=pixel_ids,
            groups=groups,
            pairs=[(place[one], place[other]) for one, other in pairs],
            drop_near=True,
        )
        for one, other in pairs:
            kept = [place[i] for i in (one, other) if reasons[place[i]] is None]
            assert len({assigned[at] for at in kept}) <= 1
        results.append(
            {i: a for i, a, reason in zip(image_ids, assigned, reasons, strict=True) if not reason}
        )
    assert results[0] == results[1]
