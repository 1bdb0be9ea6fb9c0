"""Features on storage: whole or not there, the same from memory and from files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import RayError

from datasets.config import IngestConfig
from datasets.epochs import stream
from datasets.manifest_file import read_manifest
from datasets.passes import feature_builder, feature_tasks
from datasets.passes.actors import Workers
from datasets.passes.feature_builder import Built, build_features
from datasets.passes.feature_tasks import Entry
from datasets.passes.features import (
    DTYPE,
    ArraySource,
    FeatureSource,
    hash_facts,
    load_view,
    read_part,
    read_view,
    write_part,
)
from datasets.plan import IGNORE_INDEX, plan_epochs
from datasets.sources import ReadLimits, ShardSource
from tests.support.data import find_shard, flip_byte

INGEST = IngestConfig(size_px=32, policy="light", views=2, interleave=2)
LIMITS = ReadLimits(task_cpus=0.5)
WORKERS = Workers(num_workers=2, cpus_per_worker=0.5, gpus_per_worker=0, reader_cpus=0.5)


def test_a_part_tells_all_about_itself(tmp_path: Path) -> None:
    uri = str(tmp_path / "part-000000016-000005.parquet")
    features = np.arange(5 * 6, dtype=DTYPE).reshape(5, 2, 3)
    block = pa.table(
        {
            "label": [0, 1, IGNORE_INDEX, 2, 0],
            "image_id": range(5),
            "read_error": [None, None, "gone", None, None],
        }
    )
    part = write_part(uri, features, block, (2, 3), first_row=16)

    assert read_part(uri) == part
    assert (part.first_row, part.row_groups, part.unreadable) == (16, (2, 3), ("gone",))
    assert part.num_bytes == Path(uri).stat().st_size


def test_features_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """`unreadable` was called `losses`."""
    part = {"name": "part-0.parquet", "first_row": 0, "row_groups": [2], "num_bytes": 9}
    view = tmp_path / "view-0000"
    view.mkdir()
    index = {"shape": [2, 3], "parts": [part | {"losses": ["a.jpg: gone"]}]}
    (view / "index.json").write_text(json.dumps(index))
    metadata = {b"thaw": json.dumps({"first_row": 4, "losses": ["b.jpg: gone"]})}
    table = pa.table({"label": [1]}).replace_schema_metadata(metadata)
    pq.write_table(table, view / "part-1.parquet")

    read = read_view(str(tmp_path), 0)

    assert read is not None and read.parts[0].unreadable == ("a.jpg: gone",)
    assert read_part(str(view / "part-1.parquet")).unreadable == ("b.jpg: gone",)


def test_every_fact_is_another_key() -> None:
    facts = {"weights_sha256": "a", "size_px": 224, "policy": "cars", "seed": 0}
    keys = {hash_facts(facts)}
    for name, value in (("weights_sha256", "b"), ("size_px", 225), ("policy", "none"), ("seed", 1)):
        keys.add(hash_facts(facts | {name: value}))
    assert len(keys) == 5
    assert hash_facts(dict(reversed(facts.items()))) in keys


Make = Callable[[], Callable[[np.ndarray], list[np.ndarray]]]


def means(images_NSSC: np.ndarray) -> list[np.ndarray]:
    """Two depths: the mean colour of each row of pixels, and of the image."""
    images = images_NSSC.astype(np.float32) / 255
    return [images.mean(2), images.mean((1, 2))]


class Failing:
    """Breaks down at its third block."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, images_NSSC: np.ndarray) -> list[np.ndarray]:
        self._calls += 1
        if self._calls == 3:
            raise RuntimeError("power failure")
        return means(images_NSSC)


def entries(out: str) -> list[Entry]:
    return [
        Entry(
            uri=f"{out}/{split}-{output}",
            facts={"split": split, "output": output},
            shape=((32, 3), (3,))[output],
            split=split,
            views=(0, 1) if split == "train" else (0,),
            output=output,
        )
        for output in (0, 1)
        for split in ("train", "val")
    ]


def build(data: str, out: str, load: Make = lambda: means, **options: Any) -> Built:
    return build_features(
        options.pop("entries", entries(out)),
        data=data,
        manifest=read_manifest(data),
        ingest=INGEST,
        seed=3,
        load=load,
        workers=WORKERS,
    )


@pytest.fixture(scope="module")
def built(ray_cluster: str, easy_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("features"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feature_builder, "FEW_IMAGES", 0)  # by actors
        assert build(easy_data, out).num_images == 2 * 48 + 17  # one pass for both depths
    return out


def plan(data: str, split: str = "train"):
    return plan_epochs(
        data, read_manifest(data), INGEST, split=split, num_epochs=3, global_batch_size=8,
        seed=3, train=split == "train",
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_of_features_are_those_of_the_images(
    built: str, easy_data: str, split: str, output: int
) -> None:
    """From memory and from files, over epochs that take two views in turn."""
    entry = next(e for e in entries(built) if (e.split, e.output) == (split, output))
    views = tuple(view for n in entry.views if (view := read_view(entry.uri, n)) is not None)
    files = FeatureSource(views=views)
    arrays = tuple(ray.put(load_view(view)) for view in views)
    kept = ArraySource(arrays=arrays, bytes_per_image=files.bytes_per_image)
    shards = ShardSource(ingest=INGEST, seed=3, train=split == "train")
    images = list(stream(plan(easy_data, split), shards, LIMITS))
    for source in (files, kept):
        batches = stream(plan(easy_data, split), source, LIMITS)
        for batch, expected in zip(batches, images, strict=True):
            np.testing.assert_array_equal(batch["label"], expected["label"])
            np.testing.assert_array_equal(batch["image_id"], expected["image_id"])
            want = means(expected["image"])[output].astype(DTYPE)
            np.testing.assert_array_equal(batch["image"], want)


@pytest.mark.ray
def test_what_stands_is_not_computed_again(built: str, easy_data: str) -> None:
    assert build(easy_data, built) == Built()
    index = Path(entries(built)[0].uri, "view-0001", "index.json")
    index.unlink()
    assert read_view(entries(built)[0].uri, 1) is None
    assert build(easy_data, built).num_images == 0  # its parts were whole
    assert index.exists()


@pytest.mark.ray
def test_a_builder_that_dies_leaves_nothing_that_reads_as_whole(
    built: str, easy_data: str, tmp_path: Path
) -> None:
    out = str(tmp_path)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(RayError):
        patched.setattr(feature_builder, "FEW_IMAGES", 0)
        build(easy_data, out, Failing)
    left = [path.name for path in tmp_path.rglob("*.parquet")]
    assert left and not list(tmp_path.rglob("index.json"))

    again = build(easy_data, out)  # in this process
    assert 0 < again.num_images < 2 * 48 + 17
    for entry, other in zip(entries(out), entries(built), strict=True):
        for number in entry.views:
            view, known = read_view(entry.uri, number), read_view(other.uri, number)
            assert view is not None and known is not None
            np.testing.assert_array_equal(load_view(view).features, load_view(known).features)


@pytest.mark.ray
def test_features_that_overflow_are_not_kept(
    ray_cluster: str, easy_data: str, tmp_path: Path
) -> None:
    out = str(tmp_path)
    wide = lambda: lambda images: [1e6 * outputs for outputs in means(images)]  # noqa: E731
    outcome = build(easy_data, out, wide, entries=entries(out)[2:])
    assert [problem.partition(": ")[2] for problem in outcome.problems] == [
        "its features overflow half precision"
    ] * 2
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.ray
def test_lost_images_are_named_and_looked_for_again(
    ray_cluster: str, write_data: Callable[..., str], tmp_path: Path
) -> None:
    data = write_data(train=16, val=8, test=3)
    shard = find_shard(data, "val")
    whole = shard.read_bytes()
    flip_byte(shard, 5, at=-20)
    (entry,) = (e for e in entries(str(tmp_path)) if (e.split, e.output) == ("val", 1))
    build(data, str(tmp_path), entries=[entry])

    view = read_view(entry.uri, 0)
    assert view is not None
    arrays = load_view(view)
    assert arrays.labels_N[5] == IGNORE_INDEX and "checksum" in arrays.unreadable[5]
    (batch,) = stream(
        plan_epochs(
            data, read_manifest(data), INGEST, split="val", num_epochs=1, global_batch_size=8,
            seed=3, train=False,
        ),
        ArraySource(arrays=(ray.put(arrays),), bytes_per_image=6),
    )  # fmt: skip
    assert batch["unreadable"] == [arrays.unreadable[5]] and batch["label"][5] == IGNORE_INDEX

    files = {file: file.stat().st_mtime_ns for file in Path(view.uri).iterdir()}
    assert build(data, str(tmp_path), entries=[entry]).num_images == 0  # it is as before
    assert files == {file: file.stat().st_mtime_ns for file in Path(view.uri).iterdir()}
    shard.write_bytes(whole)
    assert build(data, str(tmp_path), entries=[entry]).num_images > 0
    restored = read_view(entry.uri, 0)
    assert restored is not None and not restored.unreadable
    assert build(data, str(tmp_path), entries=[entry]) == Built()


@pytest.mark.ray
def test_only_parts_with_unreadable_images_are_computed_again(
    built: str, write_data: Callable[..., str], tmp_path: Path
) -> None:
    """Also where the division of the rows is another one than that of a whole pass."""
    data = write_data(train=40, val=8, test=3)
    shard = find_shard(data, "train")
    whole = shard.read_bytes()
    of_train = [e for e in entries(str(tmp_path)) if e.split == "train"]
    good, bad = (str(tmp_path / name) for name in ("good", "bad"))
    for out, content in ((good, whole), (bad, None)):
        if content is None:
            flip_byte(shard, 30, at=-20)
        build(data, out, entries=[replace(e, uri=f"{out}/{e.output}") for e in of_train])
    shard.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feature_tasks, "choose_block_images", lambda *_: 40)
        mixed = [replace(of_train[0], uri=f"{good}/0"), replace(of_train[1], uri=f"{bad}/1")]
        assert 0 < build(data, bad, entries=mixed).num_images < 2 * 40
    for number in (0, 1):
        found, known = (read_view(f"{out}/1", number) for out in (bad, good))
        assert found is not None and known is not None and not found.unreadable
        assert [part.first_row for part in found.parts] == [p.first_row for p in known.parts]
        for array, other in zip(load_view(found)[:3], load_view(known)[:3], strict=True):
            np.testing.assert_array_equal(array, other)
