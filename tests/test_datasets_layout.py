"""Splits and classes by the names of files and folders; nothing vanishes."""

import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.prepare.classes import clean, describe_spellings, find_similar, unify
from datasets.prepare.folders.layout import BESIDE_SPLITS, NO_CLASS, arrange
from datasets.prepare.names import HIDDEN, SYSTEM
from datasets.prepare.splits import split_of_file, split_of_name


def count(
    *files: str, folders: tuple[str, ...] = (), class_depth: int = 1
) -> dict[tuple[str, str], int]:
    """Images by split and class."""
    layout = arrange(files, folders, class_depth=class_depth)
    return dict(Counter((place.split, place.class_name) for place in layout.images))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("testing", "test"),
        ("Val", "val"),
        ("validation", "val"),
        ("DEV", "val"),
        ("eval", "test"),
        ("evaluation_2024", "test"),
        ("my train set", "train"),
        ("split=test", "test"),
        ("cars.test.v2", "test"),
        ("train2", "train"),
        ("trainer", None),
        ("contest", None),
        ("developer", None),
        ("Audi", None),
        ("train_test", None),
    ],
)
def test_a_split_is_a_keyword_between_separators(name, split):
    assert split_of_name(name) == split


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00005.parquet", "train"),
        ("data/partial-train-00000-of-00005.parquet", "train"),
        ("data/evaluation-00001-of-00002.parquet", "test"),
        ("data/unsupervised-00000-of-00001.parquet", None),
        ("test/0000.parquet", "test"),
        ("test/train-00000-of-00001.parquet", "train"),
        ("train/eval/0.parquet", "test"),
        ("split=validation/part-0.parquet", "val"),
        ("cars_dev.parquet", "val"),
        ("cars.parquet", "train"),
    ],
)
def test_a_data_file_has_the_split_of_its_shard_folder_or_name(path, split):
    assert split_of_file(path.split("/")) == split


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            ["bus/1.jpg", "car/1.jpg", "train/1.jpg", "train/2.jpg"],
            {("train", "bus"): 1, ("train", "car"): 1, ("train", "train"): 2},
            id="a class called train",
        ),
        pytest.param(
            ["bus/1.jpg", "train/1.jpg", "train/2011 wedding/2.jpg"],
            {("train", "bus"): 1, ("train", "train"): 2},
            id="a class called train, with albums",
        ),
        pytest.param(
            ["Audi/a/1.jpg", "BMW/1.jpg", "Test Car/b/1.jpg"],
            {("train", "Audi"): 1, ("train", "BMW"): 1, ("train", "Test Car"): 1},
            id="a class with a keyword in it",
        ),
        pytest.param(
            ["train/train/1.jpg", "train/bus/1.jpg", "test/train/1.jpg"],
            {("train", "train"): 1, ("train", "bus"): 1, ("test", "train"): 1},
            id="a class called train in splits",
        ),
        pytest.param(
            ["train/a/1", "testing/a/1", "Val/a/1"],
            {("train", "a"): 1, ("test", "a"): 1, ("val", "a"): 1},
            id="other words",
        ),
        pytest.param(
            ["train/a/1", "val/a/1", "validation/a/1", "VALID-2/b/1"],
            {("train", "a"): 1, ("val", "a"): 2, ("val", "b"): 1},
            id="a split in several folders",
        ),
        pytest.param(
            ["a/1.jpg", "a/2011 wedding/2.jpg", "a/x/y/3.jpg", "b/1.jpg"],
            {("train", "a"): 3, ("train", "b"): 1},
            id="albums belong to their class",
        ),
        pytest.param(
            ["train/a/2011/1.jpg", "test/a/test drive/1.jpg"],
            {("train", "a"): 1, ("test", "a"): 1},
            id="albums in splits",
        ),
        pytest.param(
            ["train/train/a/1", "train/train/b/1", "test/test/a/1"],
            {("train", "a"): 1, ("train", "b"): 1, ("test", "a"): 1},
            id="doubled folders of an archive",
        ),
        pytest.param(
            ["cars/cars/train/a/1", "cars/cars/test/a/1", "README.md"],
            {("train", "a"): 1, ("test", "a"): 1},
            id="splits below the folders of an archive",
        ),
        pytest.param(
            ["a/train/1", "a/test/2", "b/Train/1", "b/TEST/2"],
            {("train", "a"): 1, ("test", "a"): 1, ("train", "b"): 1, ("test", "b"): 1},
            id="splits in classes",
        ),
        pytest.param(
            ["a/1.jpg", "a/test/2.jpg", "b/1.jpg"],
            {("train", "a"): 2, ("train", "b"): 1},
            id="an album called test is no split",
        ),
        pytest.param(
            ["test/a/1", "test/b/1"], {("test", "a"): 1, ("test", "b"): 1}, id="test only"
        ),
    ],
)
def test_layouts(files, expected):
    assert count(*files) == expected


def list_by_split(above, splits):
    return [f"{make}/{above}{s}/{s}.jpg" for make in ("audi", "bmw") for s in splits]


@pytest.mark.parametrize("above", ["", "a4/", "2011/side/"])
@pytest.mark.parametrize("test", ["test", "test_images", "Testing 2"])
def test_splits_in_classes_at_any_depth(above, test):
    files = list_by_split(above, ("train", "val", test))
    expected = {(s, make): 1 for s in ("train", "val", "test") for make in ("audi", "bmw")}
    assert count(*files) == expected
    assert arrange(files).rule == f"in classes, {test}/ is test, train/ is train, val/ is val"
    assert arrange(files).splits == {
        f"audi/{above}{name}": split for name, split in zip((test, "train", "val"),
                                                            ("test", "train", "val"), strict=True)
    }  # fmt: skip


def test_splits_in_classes_of_another_depth():
    files = list_by_split("a4/", ("train", "test"))
    of_make = {(s, make): 1 for s in ("train", "test") for make in ("audi", "bmw")}
    of_model = {(s, f"{make} a4"): 1 for s in ("train", "test") for make in ("audi", "bmw")}
    assert count(*files, class_depth=1) == count(*files, class_depth=-3) == of_make
    assert count(*files, class_depth=2) == of_model
    years = [f"{year}/{split}/{make}/1.jpg" for year in "12" for split, make in of_make]
    expected = dict.fromkeys(of_make, 2)
    assert count(*years, class_depth=-1) == count(*(f"x/{y}" for y in years), class_depth=-1)
    assert count(*years, class_depth=-1) == expected
    for paths, depth in ((files, -1), (files, 3), (years, 2)):
        with pytest.raises(
            ValueError, match=r"is the folder of a split, and class_depth -?\d make"
        ):
            arrange(paths, class_depth=depth)


def test_what_is_beside_splits_in_a_class_is_named():
    files = list_by_split("", ("train", "test"))
    others = ["audi/holdout/1.jpg", "audi/cover.jpg", "audi/labels.csv"]
    layout = arrange([*files, *others, "vw/1.jpg", "vw/album/2.jpg"])
    assert sorted(layout.unused) == sorted((path, BESIDE_SPLITS) for path in others)
    assert len(layout.images) == 6 and layout.classes == ["audi", "bmw", "vw"]
    assert all(place.split == "train" for place in layout.images if place.class_name == "vw")
    layout = arrange([*list_by_split("a4/", ("train", "test")), "audi/a6/1.jpg", "audi/a4/x/1.jpg"])
    assert layout.unused == [("audi/a4/x/1.jpg", BESIDE_SPLITS)], "a6 has no splits"
    assert count(*files, "vw/test/1.jpg")["test", "vw"] == 1
    assert count("audi/train/1.jpg", "bmw/test/1.jpg") == {("train", "audi"): 1, ("test", "bmw"): 1}
    assert ("train/1.xml", "audi") in {
        (place.path[5:], place.class_name) for place in arrange([*files, "audi/train/1.xml"]).images
    }


def test_an_album_called_test_is_said_to_be_no_split():
    layout = arrange(["audi/1.jpg", "audi/test drive/2.jpg", "bmw/1.jpg"])
    assert {place.split for place in layout.images} == {"train"} and not layout.unused
    assert layout.rule == "audi/test drive/ is no split, as no folder for train is beside it"
    in_a_split = [
        f"{path.rpartition('/')[0]}/test drive/1.jpg"
        for path in list_by_split("", ("train", "val"))
    ]
    assert {place.split for place in arrange(in_a_split).images} == {"train", "val"}


@pytest.mark.parametrize(
    ("unused", "reason"),
    [
        ("train/loose.jpg", NO_CLASS),
        ("test/1.jpg", NO_CLASS),
        ("labels.csv", NO_CLASS),
        ("extra/a/1.jpg", "in extra/, which has no split's name"),
        ("@eaDir/a/SYNOPHOTO_THUMB_M.jpg", SYSTEM),
        ("train/a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", SYSTEM),
        ("__MACOSX/train/a/._1.jpg", SYSTEM),
        ("train/a/Thumbs.db", SYSTEM),
        ("#recycle/a/1.jpg", SYSTEM),
        ("train/a/.thumbnails/1.jpg", HIDDEN),
        (".Trash-1000/files/1.jpg", HIDDEN),
        ("train/a/._1.jpg", HIDDEN),
    ],
)
def test_what_is_not_used_has_a_reason(unused, reason):
    layout = arrange(["train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", unused])
    assert layout.unused == [(unused, reason)]
    assert sorted(layout.classes) == ["a", "b"] and len(layout.images) == 3


def test_folders_of_systems_are_no_classes():
    files = ["a/1.jpg", "b/1.jpg", "@eaDir/a/1.jpg", ".cache/1.jpg", "devkit/x.mat", "__MACOSX/a/2"]
    layout = arrange(files, ["empty", ".git", "@eaDir", "a", "b"])
    assert layout.classes == ["a", "b", "empty"]
    assert dict(layout.unused)["devkit/x.mat"] == NO_CLASS


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["bus/1.jpg", "car/1.jpg", "train/holiday/1.jpg"], "'train' may be a class"),
        (["val/a/1", "test/a/1", "images/a/1"], "none for train, and 'images'"),
        (["dev/a/1", "eval/a/1", "set/a/1"], "none for train, and 'set'"),
        (["a/1", "b/1", "test/a/1"], r"'test' has folders of the classes beside it \(a\), so"),
    ],
)
def test_what_may_be_a_split_or_a_class_is_asked_for(files, words):
    with pytest.raises(ValueError, match=words):
        arrange(files)


NAMES = st.sampled_from(
    [
        "train",
        "Val",
        "testing",
        "audi",
        "bmw",
        "2011 wedding",
        "@eaDir",
        ".x",
        "x.jpg",
        "1",
        "a.csv",
    ]
)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)


@given(st.lists(PATHS, max_size=12, unique=True), st.sampled_from((1, 1, 2, -1, -2)))
def test_every_file_is_an_image_or_named_as_unused(paths, class_depth):
    """A folder that has the name of an image stands for one more: it is quarantined later."""
    files = [path for path in paths if not any(other.startswith(f"{path}/") for other in paths)]
    try:
        layout = arrange(files, class_depth=class_depth)
    except ValueError:
        return
    placed, unused = [place.path for place in layout.images], [path for path, _ in layout.unused]
    assert len(placed + unused) == len({*placed, *unused})
    assert set(files) <= {*placed, *unused}
    for extra in {*placed, *unused} - set(files):
        assert extra.endswith("x.jpg") and any(f.startswith(f"{extra}/") for f in files)
    assert arrange(reversed(files), class_depth=class_depth) == layout


@pytest.mark.parametrize(
    ("spellings", "classes"),
    [
        (["Citroën", "Citroe\u0308n"], {"Citroën"}),
        (["Škoda", "S\u030ckoda", "Škoda "], {"Škoda"}),
        (["Audi", " Audi", "Audi\t"], {"Audi"}),
        (["Audi", "audi"], {"Audi", "audi"}),
        (["현대", "\u1112\u1167\u11ab\u1103\u1162"], {"현대"}),
    ],
)
def test_spellings_of_a_name_are_one_class(spellings, classes):
    class_of = unify(spellings)
    assert set(class_of.values()) == classes
    (line,) = describe_spellings(class_of)
    assert all(ascii(name) in line or repr(name) in line for name in spellings)


def test_a_name_is_one_line():
    names = ["Audi\nS6", " Audi  S6\t", "\x1b[31mAudi S6", "Citroe\u0308n"]
    assert list(map(clean, names)) == ["Audi S6", "Audi S6", "[31mAudi S6", "Citro\u00ebn"]
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # joined by characters of no width
    assert clean(family) == family


def test_names_that_differ_in_case_are_told_apart():
    assert find_similar("audi", ["Audi", "BMW"]) == "Audi"
    assert find_similar("\uff36\uff37", ["VW"]) == "VW"
    assert find_similar("Audi", ["Audi", "BMW"]) is None
    with pytest.raises(ValueError, match="blank name"):
        unify([*string.ascii_letters, " "])


@pytest.mark.parametrize("top", ["", "cars/", "a/b/"])
def test_folders_around_all_classes_are_no_class(top):
    files = [f"{top}audi/1.jpg", f"{top}bmw/album/2.jpg"]
    layout = arrange(files)
    assert sorted(layout.classes) == ["audi", "bmw"]
    assert layout.rule == (f"classes are the folders in {top}" if top else "")
    alone = arrange(["audi/a/1.jpg", "audi/b/2.jpg"], several_classes=False)
    assert alone.classes == ["audi"], "test images of one class"


@pytest.mark.parametrize(
    ("class_depth", "expected"),
    [
        (1, {("train", "audi"): 2, ("train", "bmw"): 1, ("test", "audi"): 1}),
        (2, {("train", "audi a4"): 1, ("train", "bmw x5"): 1, ("test", "audi a4"): 1}),
        (-1, {("train", "a4"): 1, ("train", "audi"): 1, ("train", "x5"): 1, ("test", "2011"): 1}),
    ],
)
def test_classes_of_another_depth(class_depth, expected):
    files = ["train/audi/a4/1.jpg", "train/audi/2.jpg", "train/bmw/x5/3.jpg",
             "test/audi/a4/2011/4.jpg"]  # fmt: skip
    assert count(*files, class_depth=class_depth) == expected


def test_folders_of_the_same_names_in_classes_are_said():
    files = ["2023/audi/1.jpg", "2023/bmw/2.jpg", "2024/audi/3.jpg", "2024/bmw/4.jpg", "x.csv"]
    assert "(audi, bmw); where these are the classes, use --class-depth -1" in arrange(files).rule
    assert count(*files, class_depth=-1) == {("train", "audi"): 2, ("train", "bmw"): 2}
    assert count(*files, class_depth=2) == {
        ("train", f"{year} {make}"): 1 for year in (2023, 2024) for make in ("audi", "bmw")
    }
    assert not arrange(["audi/trip/1.jpg", "bmw/trip/2.jpg"]).rule, "one album of each"
    of_splits = [f"{split}/{file}" for split in ("train", "test/test") for file in files[:4]]
    assert arrange(of_splits).rule.endswith("use --class-depth -1")
    assert count(*of_splits, class_depth=-1)["test", "bmw"] == 2
    assert "same names" not in arrange(["train/audi/trip/1.jpg", "train/bmw/trip/2.jpg"]).rule


@pytest.mark.parametrize(
    ("files", "base"),
    [
        (["PetImages/Cat/1.jpg", "PetImages/Dog/1.jpg", "MSR-LA - 3467.docx"], "PetImages/"),
        (["cars/a/1.jpg", "cars/b/1.jpg", "cars.url"], "cars/"),
        (["cars/a/1.jpg", "cars/b/1.jpg", "cover.jpg"], ""),
        (["cars/a/1.jpg", "cars/b/1.jpg", "0001"], ""),
    ],
)
def test_a_stray_file_beside_the_folder_around_all_classes(files, base):
    layout = arrange(files)
    assert layout.rule == (f"classes are the folders in {base}" if base else "")
    assert (files[2], NO_CLASS) in layout.unused


def test_test_images_without_classes_in_doubled_folders():
    """As Kaggle's ASL alphabet unpacks."""
    layout = arrange(["x_train/x_train/A/1.jpg", "x_train/x_train/B/1.jpg", "x_test/x_test/A.jpg"])
    assert sorted(layout.classes) == ["A", "B"]
    assert layout.unused == [("x_test/x_test/A.jpg", NO_CLASS)]


def test_splits_in_one_of_the_top_folders_are_no_class():
    """As Kaggle's plant diseases unpack."""
    files = [f"Plants/Plants/{s}/{c}/1.jpg" for s in ("train", "valid") for c in ("rot", "scab")]
    with pytest.raises(ValueError, match=r"'Plants' has splits of its own \(train, valid\) beside "
                       r"'test'; give --root the folder 'Plants/Plants'"):  # fmt: skip
        arrange([*files, "test/test/1.jpg"])
    with pytest.raises(ValueError, match=r"give --root the folder 'Plants'"):
        arrange([*(path.removeprefix("Plants/") for path in files), "test/1.jpg"])
    assert count("bus/train/1.jpg", "car/trip/2.jpg") == {("train", "bus"): 1, ("train", "car"): 1}


@pytest.mark.parametrize("labels", ["labels/1.txt", "Annotations/a/1.xml", "meta/x.json"])
def test_folders_of_annotations_are_no_class(labels):
    for above in ("", "train/", "train/train/"):
        layout = arrange([f"{above}{path}" for path in ("a/1.jpg", "b/1.jpg", labels)])
        assert sorted(layout.classes) == ["a", "b"]
        assert layout.unused == [(f"{above}{labels}", NO_CLASS)]
