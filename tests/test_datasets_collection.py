"""Every image is found, or there is one sentence; and what can't be read is told of by image."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.io.errors import UserError
from datasets.augment import view
from datasets.images import BadImage
from datasets.manifest import Manifest, Split
from datasets.manifest_file import read_manifest, read_schema_version, write_manifest
from datasets.passes.actors import choose_block_images
from datasets.passes.collection import lies_in, list_images
from datasets.passes.inference import load_views
from datasets.preview import preview
from tests.support.data import WriteData, draw_image, find_shard, flip_byte


def write_photograph(path: Path, label: int, number: int, suffix: str = ".jpg") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = cv2.imencode(suffix, draw_image(label, number)[..., ::-1])[1].tobytes()
    path.write_bytes(content)
    return content


def test_parquet_of_bytes_and_of_hugging_faces_struct(tmp_path: Path) -> None:
    contents = [write_photograph(tmp_path / f"{i}.jpg", i % 3, i) for i in range(6)]
    contents[4] = b"no image"
    plain, struct = tmp_path / "plain.parquet", tmp_path / "struct" / "test-00000.parquet"
    struct.parent.mkdir()
    pq.write_table(pa.table({"photo": contents}), plain, row_group_size=4)
    rows = [{"bytes": content, "path": None} for content in contents[:5]]
    pq.write_table(pa.table({"image": [*rows, None]}), struct)
    views = []
    for images in (list_images(str(plain), image_column="photo"), list_images(str(struct.parent))):
        references = images.references.append_column("position", pa.array(range(6)))
        views.append(load_views(references, read=images.read, size_px=32))
    of_plain, of_struct = views

    assert of_plain["path"].to_pylist() == [f"{plain}#{row}" for row in range(6)]
    assert of_plain["reason"].to_pylist() == [None] * 4 + ["not an image", None]
    assert of_struct["reason"].to_pylist() == [None] * 4 + [
        "not an image",
        "no image bytes in the row",
    ]
    expected = view(contents[3], "none", 32, seed=0, epoch=0, image_id=0)
    for table in views:
        np.testing.assert_array_equal(table["image"].chunk(0).to_numpy()[3], expected)


def test_labels_come_with_their_names(tmp_path: Path, write_data: WriteData) -> None:
    """Numbers of classes mean nothing beside the names of a network's."""
    content = write_photograph(tmp_path / "0.jpg", 0, 0)
    names = {"info": {"features": {"label": {"names": ["sedan", "suv"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [content] * 4, "label": [1, -1, 0, 7], "id": [5, 6, 7, 8]})
    file = tmp_path / "rows.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), file)
    references = list_images(str(file)).references
    assert references["key:label"].to_pylist() == ["suv", None, "sedan", "7"]
    assert references["key:id"].to_pylist() == [5, 6, 7, 8]
    pq.write_table(table, file)
    assert list_images(str(file)).references["key:label"].to_pylist() == [1, -1, 0, 7]

    prepared = list_images(write_data(train=8, val=8, test=4), split="test").references
    assert prepared["key:label"].to_pylist() == ["class 0", "class 1", "class 2", "class 0"]


def test_rows_have_the_names_that_their_file_gives_them(tmp_path: Path) -> None:
    """Those that a submission asks for; where there is none, the file and the row."""
    content = write_photograph(tmp_path / "0.jpg", 0, 0)
    names = ["IMG_4711.jpg", None, "a/b [x].png", "", "IMG_4711.jpg"]
    rows = [{"bytes": content, "path": name} for name in names]
    file = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": rows, "id": range(5), "weight": [0.5] * 5}), file)
    references = list_images(str(file)).references
    expected = [name or f"{file}#{row}" for row, name in enumerate(names)]
    assert references["path"].to_pylist() == expected
    assert references["key:id"].to_pylist() == list(range(5))
    assert references["key:weight"].to_pylist() == [0.5] * 5


def test_blocks_are_bounded_by_pixels_and_by_results() -> None:
    of_pixels = 3 * 224**2
    assert choose_block_images(10, of_pixels, num_cpus=2) == 16
    assert choose_block_images(1000, of_pixels, num_cpus=2) == 63
    assert choose_block_images(100_000, of_pixels, num_cpus=2) == 256
    assert choose_block_images(100_000, 4 * 64 * 112**2, num_cpus=2) == 20  # a map of VGG19
    assert choose_block_images(10, 2**30, num_cpus=2) == 1


def test_a_shard_whose_bytes_changed_is_told_by_image(
    write_data: Callable[..., str],
) -> None:
    data = write_data(train=8, val=8, test=20)
    flip_byte(find_shard(data, "test"), 9, at=-30)
    images = list_images(data, split="test")
    contents = list(images.read(images.references.slice(3, 10)))
    bad = [isinstance(content, BadImage) for content in contents]

    assert bad == [place == 6 for place in range(10)]
    assert "checksum" in str(contents[6])
    assert images.references["path"].to_pylist()[:2] == ["test/0.jpg", "test/1.jpg"]
    assert len(list_images(data).references) == 36


def test_what_is_left_of_a_broken_row_group_is_bad(tmp_path: Path) -> None:
    contents = [write_photograph(tmp_path / "images" / "0.jpg", 0, 0)] * 8
    file = tmp_path / "broken.parquet"
    pq.write_table(
        pa.table({"image": contents}),
        file,
        row_group_size=4,
        compression="none",
        use_dictionary=False,
    )
    column = pq.read_metadata(file).row_group(0).column(0)
    whole = file.read_bytes()
    start = column.data_page_offset
    file.write_bytes(whole[:start] + b"\xff" * 64 + whole[start + 64 :])
    images = list_images(str(file))
    read = list(images.read(images.references))

    assert [isinstance(content, BadImage) for content in read] == [True] * 4 + [False] * 4
    assert "row group can't be read" in str(read[0])


def test_images_that_are_not_there(tmp_path: Path) -> None:
    write_photograph(tmp_path / "both" / "a.jfif", 0, 0, ".jpg")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")

    with pytest.raises(ValueError, match="there is no such folder; check the path"):
        list_images(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="has the columns x"):
        list_images(str(tmp_path / "x.parquet"))
    with pytest.raises(ValueError, match="it holds int64"):
        list_images(str(tmp_path / "x.parquet"), image_column="x")
    with pytest.raises(ValueError, match="it holds Parquet files and"):
        list_images(str(tmp_path))
    with pytest.raises(ValueError, match=r"images is '.*none.parquet': it holds no image"):
        list_images(str(tmp_path / "none.parquet"))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"images is '.*damaged.parquet': .* as Parquet"):
        list_images(str(tmp_path / "damaged.parquet"))
    with pytest.raises(ValueError, match="only a prepared data set has splits"):
        list_images(str(tmp_path / "both"), split="test")


def test_links_to_nothing_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    images = list_images(str(tmp_path))
    (read,) = images.read(images.references)

    assert images.references["path"].to_pylist() == [f"{tmp_path}/deep/gone.jpg"]
    assert isinstance(read, BadImage) and read.reason == "missing file"


@pytest.mark.parametrize("content", ["[]", '{"name": "web app"}', "no JSON", "1"])
def test_a_manifest_of_others_makes_no_data_set(content: str, tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.jpg", 0, 0)
    (tmp_path / "manifest.json").write_text(content)

    assert len(list_images(str(tmp_path)).references) == 2
    with pytest.raises(ValueError, match=r"its manifest\.json is another program's"):
        read_manifest(str(tmp_path))
    with pytest.raises(ValueError, match=r"out is '.*': it has a manifest.json of another program"):
        read_schema_version(str(tmp_path))


def test_a_prepared_data_set_without_images(tmp_path: Path) -> None:
    splits = {"test": Split(shards=(), class_counts=(0, 0), num_pixels=0)}
    empty = Manifest(
        classes=("a", "b"), splits=splits, num_quarantined=0, fingerprint="", options={}
    )
    write_manifest(str(tmp_path), empty)

    for split in (None, "test"):
        with pytest.raises(ValueError, match=r"images is '.*': it holds no image"):
            list_images(str(tmp_path), split=split)
    with pytest.raises(ValueError, match=r"data is '.*': it holds no image; prepare it again"):
        preview(str(tmp_path), str(tmp_path / "preview.png"))


def test_parquet_in_capitals_and_what_stands_beside_it(tmp_path: Path) -> None:
    content = write_photograph(tmp_path / "photographs" / "a.jpg", 0, 0)
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"image": [content]}), data / "TEST.PARQUET")
    for name in ("README.md", "dataset_info.json", "_SUCCESS"):
        (data / name).write_text("")
    images = list_images(str(data))

    assert images.references["path"].to_pylist() == [f"{data}/TEST.PARQUET#0"]
    assert list(images.read(images.references)) == [content]


def test_a_key_of_two_types_is_refused_where_no_type_holds_both(tmp_path: Path) -> None:
    content = write_photograph(tmp_path / "photographs" / "a.jpg", 0, 0)
    data = tmp_path / "data"
    data.mkdir()
    for name, id_ in (("a", pa.array([1], pa.int32())), ("b", [2**40]), ("c", [None])):
        pq.write_table(pa.table({"image": [content], "id": id_}), data / f"{name}.parquet")
    assert list_images(str(data)).references["key:id"].to_pylist() == [1, 2**40, None]
    pq.write_table(pa.table({"image": [content], "id": ["d"]}), data / "d.parquet")
    message = r"its column 'id' is int64 in .*a\.parquet and string in .*d\.parquet; write it with"
    with pytest.raises(UserError, match=message):
        list_images(str(data))


def test_results_may_lie_beside_the_images() -> None:
    assert not lies_in("/photographs-out", "/photographs")
    assert not lies_in("/", "/photographs")
