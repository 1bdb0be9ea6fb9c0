import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.io import storage
from cluster.io.errors import StorageError
from datasets.blocks import FEW_IMAGES, connect_for
from datasets.commands import run_info
from datasets.config import InfoConfig
from datasets.images import Converted, convert, load_image
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest, write_manifest
from datasets.prepare import staging
from datasets.prepare.config import PrepareConfig
from datasets.prepare.partition import identify
from datasets.prepare.prepare import prepare
from datasets.prepare.staging import stage_images
from datasets.preview import preview
from datasets.shards import SHARD_SCHEMA
from datasets.synthetic.config import SyntheticConfig
from tests.test_datasets_near import photograph

ROOT = Path(__file__).resolve().parent.parent


def encode(seed: int, kind: str = "JPEG", mode: str = "RGB", side: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 20, 10 and 4 training images and 5 test images each, all different."""
    root = tmp_path / "photos"
    seeds = iter(range(1000))
    for split, sizes in (("train", (20, 10, 4)), ("test", (5, 5, 5))):
        for name, size in zip(("audi", "bmw", "ram"), sizes, strict=True):
            for number in range(size):
                write(root / split / name / f"{number:03d}.jpg", encode(next(seeds)))
    return root


def options(root: Path, **changes) -> PrepareConfig:
    config = PrepareConfig(
        source="folder", root=str(root), out=str(root.parent / "data"), row_group_size=8
    )
    return replace(config, **changes)


def read_rows(config: PrepareConfig, manifest: Manifest, split: str) -> list[dict]:
    """All rows of a split; checks that the manifest says what the shards hold."""
    rows: list[dict] = []
    for shard in manifest.split(split).shards:
        file = pq.ParquetFile(storage.join(config.out, shard.path))
        assert file.schema_arrow.equals(SHARD_SCHEMA)
        sizes = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        assert sizes == shard.row_groups
        assert os.path.getsize(storage.join(config.out, shard.path)) == shard.num_bytes
        rows += file.read().to_pylist()
    counts = [sum(row["label"] == label for row in rows) for label in range(len(manifest.classes))]
    assert tuple(counts) == manifest.split(split).class_counts
    return rows


def test_folds_part_train_and_val(photos, capsys):
    """The source's own validation images are folded as well; a class of one image only trains."""
    write(photos / "val" / "audi" / "v.jpg", encode(900))
    write(photos / "train" / "lone" / "1.jpg", encode(901))
    config = options(photos, folds=4)
    manifest = prepare(config)

    assert "folds: 4 of 8 to 9 images; 1 of 4 classes in no fold (lone)" in capsys.readouterr().out
    lone, names = manifest.classes.index("lone"), []
    for fold in range(4):
        view = read_manifest(config.out, fold)
        rows = {split: read_rows(config, view, split) for split in ("train", "val", "test")}
        assert [len(rows["train"]) + len(rows["val"]), len(rows["test"])] == [36, 15]
        assert {row["label"] for row in rows["val"]} == set(range(4)) - {lone}
        assert {row["label"] for row in rows["train"]} == set(range(4))
        names += [row["path"] for row in rows["val"]]
    assert len(names) == len(set(names)) == 35

    run_info(InfoConfig(data=config.out, fold=3))
    assert "val          fold 3\nfolds        4 of 8 to 9" in capsys.readouterr().out
    assert prepare(config) == manifest
    assert "reused" in capsys.readouterr().out
    again = prepare(replace(config, folds=None))  # nothing of the folds stays
    assert not again.folds and not [*Path(config.out).glob("fold-*/*")]


def read_quarantine(config: PrepareConfig) -> dict[str, str]:
    """File name -> reason, without its detail."""
    rows = pq.read_table(storage.join(config.out, "quarantine.parquet")).to_pylist()
    return {os.path.basename(row["path"]): row["reason"].split(":")[0] for row in rows}


def ids_by_split(config: PrepareConfig, manifest: Manifest) -> dict[str, set[int]]:
    return {
        split: {row["image_id"] for row in read_rows(config, manifest, split)}
        for split in manifest.splits
    }


def list_files(out: str) -> set[str]:
    return {str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file()}


@pytest.mark.ray
def test_folder_becomes_a_data_set(ray_cluster, photos, capsys):
    config = options(photos)
    manifest = prepare(config)
    assert manifest == read_manifest(config.out)
    assert manifest.classes == ("audi", "bmw", "ram")
    counts = {name: split.class_counts for name, split in manifest.splits.items()}
    assert counts == {"train": (17, 8, 3), "val": (3, 2, 1), "test": (5, 5, 5)}
    assert manifest.num_quarantined == 0
    shards = {shard.path for split in manifest.splits.values() for shard in split.shards}
    assert list_files(config.out) == shards | {"manifest.json", "quarantine.parquet"}
    for split in manifest.splits:
        rows = read_rows(config, manifest, split)
        assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)
        for row in rows:
            content = Path(row["path"]).read_bytes()
            assert row["image"] == content  # a small plain JPEG is not compressed twice
            assert row["image_id"] == identify(content)
            assert Path(row["path"]).parent.name == manifest.classes[row["label"]]
    assert "28 train, 6 val, 15 test images" in capsys.readouterr().out


def test_bad_images_are_left_out_by_name(photos, capsys):
    audi = photos / "train/audi"
    write(audi / "cmyk.jpg", encode(2000, mode="CMYK"))
    write(audi / "x.gif", encode(2001, "GIF"))
    write(audi / "x.webp", encode(2002, "WEBP"))
    Image.new("I;16", (30, 20), 40_000).save(audi / "grey16.png")
    write(audi / "truncated.jpg", encode(2011)[:-300])
    write(audi / "notes.txt", b"Two cars, one red.")
    write(audi / "empty.jpg", b"")
    Image.new("L", (10_000, 10_000)).save(audi / "bomb.png")
    write(audi / "folder.jpg/inside.jpg", encode(2012))
    write(audi / ".hidden.jpg", b"")
    write(audi / "leak.jpg", (photos / "test/audi/000.jpg").read_bytes())
    write(audi / "twice.jpg", (photos / "train/audi/001.jpg").read_bytes())
    config = options(photos)
    manifest = prepare(config)
    expected = {
        "truncated.jpg": "truncated",
        "notes.txt": "not an image",
        "empty.jpg": "empty file",
        "bomb.png": "decompression bomb",
        "folder.jpg": "a folder, not an image",
        "leak.jpg": "duplicate of a test image",
    }
    quarantined = read_quarantine(config)
    assert len(quarantined.keys() & {"twice.jpg", "001.jpg"}) == 1
    assert {name: quarantined[name] for name in expected} == expected
    assert manifest.num_quarantined == len(quarantined) == 7
    assert manifest.split("train").class_counts[0] + manifest.split("val").class_counts[0] == 24
    assert "7 images left out" in capsys.readouterr().out
    for row in read_rows(config, manifest, "train"):
        load_image(row["image"])


def test_nothing_alike_is_in_two_splits(tmp_path, capsys):
    """The same pixels in other bytes, near duplicates and the photographs of one vehicle."""
    root = tmp_path / "photos"

    def save(path: str, seed: int, quality: int, *, mirrored: bool = False) -> None:
        pixels = photograph(seed)
        image = Image.fromarray(pixels[:, ::-1] if mirrored else pixels)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / path, quality=quality)

    for label, name in enumerate(("audi", "bmw")):
        for number in range(8):
            save(f"train/{name}/v{number // 2}_{number}.jpg", 20 * label + number, 90)
        save(f"train/{name}/again.jpg", 20 * label, 30)
        save(f"test/{name}/v9_1.jpg", 20 * label + 1, 40, mirrored=True)
        save(f"test/{name}/v3_9.jpg", 20 * label + 12, 90)
        content = (root / f"train/{name}/v2_5.jpg").read_bytes()
        write(root / f"test/{name}/copy.jpg", content[:2] + b"\xff\xfe\0\4ab" + content[2:])
    config = options(root, group_by=r"(\w+)/(v\d+)_", near_duplicates="drop", val_fraction=0.3)
    manifest = prepare(config)
    assert read_quarantine(config) == {
        "v2_5.jpg": "duplicate of a test image",
        "v0_1.jpg": "near duplicate of a test image",
        "v3_6.jpg": "of a group with test images",
        "v3_7.jpg": "of a group with test images",
    }
    for split in manifest.splits:
        names = {os.path.basename(row["path"]) for row in read_rows(config, manifest, split)}
        assert ("v0_0.jpg" in names) == ("again.jpg" in names)
        assert ("v1_2.jpg" in names) == ("v1_3.jpg" in names)
    assert {"train", "val", "test"} == set(manifest.splits)
    pairs = pq.read_table(f"{config.out}/near_duplicates.parquet").to_pylist()
    assert len(pairs) == 4 and [row["split"] == row["other_split"] for row in pairs] == [
        *(False, False, True, True)
    ]
    sheet = load_image(Path(f"{config.out}/near_duplicates.png").read_bytes())
    assert sheet.shape[1] > 900
    assert "4 pairs of near duplicates, 2 of them across splits" in capsys.readouterr().out
    kept = replace(config, near_duplicates="keep", group_by=None, out=config.out + "2")
    assert sum(split.num_images for split in prepare(kept).splits.values()) == 22
    assert not Path(f"{kept.out}/near_duplicates.parquet").exists()


def test_split_is_stable_over_order_and_names(photos):
    config = options(photos)
    before = prepare(config)
    ids = ids_by_split(config, before)
    assert not ids["train"] & ids["val"] and not ids["test"] & (ids["train"] | ids["val"])
    names = random.Random(3)
    for path in sorted(photos.rglob("*.jpg")):
        path.rename(path.with_name(f"{names.random()}.jpg"))
    renamed = options(photos, out=config.out + "2")
    after = prepare(renamed)
    assert ids_by_split(renamed, after) == ids
    assert after.fingerprint == before.fingerprint


def test_shards_are_balanced(tmp_path):
    for number in range(150):
        write(tmp_path / f"photos/{'ab'[number % 2]}/{number}.png", encode(number, "PNG", side=96))
    config = options(tmp_path / "photos", shard_mib=1, val_fraction=0.1)
    manifest = prepare(config)
    train = manifest.split("train")
    assert set(manifest.splits) == {"train", "val"}
    assert len(train.shards) > 1 and sum(sum(s.row_groups) for s in train.shards) == 134
    groups = [len(shard.row_groups) for shard in train.shards]
    assert max(groups) - min(groups) <= 1
    assert all(shard.num_bytes < 1.5 * 2**20 for shard in train.shards)
    rows = read_rows(config, manifest, "train")
    assert len({row["image_id"] for row in rows}) == 134
    for row in rows:  # each kept its image on the way through the staged files
        assert row["image"] == convert(Path(row["path"]).read_bytes(), short_side_px=256).jpeg


def test_data_set_is_reused_or_prepared_anew(photos, capsys):
    config = options(photos)
    first = prepare(config)
    capsys.readouterr()
    assert prepare(replace(config, address="10.0.0.1:6379")) == first  # not connected to
    assert capsys.readouterr().out.endswith(
        "reused, it was made from the same source with the same options\n"
    )
    smaller = prepare(replace(config, row_group_size=4))
    assert "row_group_size was 8 and is 4" in capsys.readouterr().out
    assert smaller.fingerprint != first.fingerprint  # epochs have another order
    write(photos / "train/ram/new.jpg", encode(5000))
    grown = prepare(replace(config, row_group_size=4))
    assert "the files of the source changed" in capsys.readouterr().out
    assert grown.fingerprint != first.fingerprint
    shards = {shard.path for split in grown.splits.values() for shard in split.shards}
    assert list_files(config.out) == shards | {"manifest.json", "quarantine.parquet"}
    (Path(config.out) / grown.split("test").shards[0].path).unlink()
    assert prepare(replace(config, row_group_size=4)) == grown
    assert "shards are missing" in capsys.readouterr().out


def test_a_data_set_stays_until_the_next_one_is_complete(photos, monkeypatch):
    """Wherever the next one fails; what it leaves is deleted by the one after it."""
    write(photos / "elsewhere.txt", b"not used")
    config = options(photos)
    first = prepare(config)
    of_first = {shard.path for split in first.splits.values() for shard in split.shards}
    changed = replace(config, row_group_size=4)

    def fail(*_, **__):
        raise OSError("No space left on device")

    for name in ("prepare.stage", "prepare.write_shards", "prepare.write_manifest"):
        with monkeypatch.context() as patched:
            patched.setattr(f"datasets.prepare.{name}", fail)
            with pytest.raises(OSError, match="No space left"):
                prepare(changed)
        assert read_manifest(config.out) == first
        assert sum(len(read_rows(config, first, split)) for split in first.splits) == 49
        run_info(InfoConfig(data=config.out))
    assert len({name for name in list_files(config.out) if name.count("part-")}) > len(of_first)
    contents = {path: path.read_bytes() for path in photos.rglob("*.jpg")}
    for path in contents:
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image is left"):
        prepare(changed)
    for path, content in contents.items():
        path.write_bytes(content)
    assert list_files(config.out) == of_first | {
        "manifest.json",
        "quarantine.parquet",
        "unused.parquet",
    }
    (photos / "elsewhere.txt").unlink()
    second = prepare(changed)
    shards = {shard.path for split in second.splits.values() for shard in split.shards}
    assert not shards & of_first
    assert list_files(config.out) == shards | {"manifest.json", "quarantine.parquet"}


def test_the_data_set_of_an_older_thaw_is_replaced_once_the_next_one_is_complete(
    photos, monkeypatch, capsys
):
    config = options(photos)
    prepare(config)
    file = Path(config.out) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 1, "splits": 0}))
    write(Path(config.out) / "train/part-00000-000000000000.parquet", b"of the older one")
    older = list_files(config.out)
    with monkeypatch.context() as patched:
        patched.delattr("datasets.prepare.prepare.stage")
        with pytest.raises(NameError):
            prepare(config)
    assert list_files(config.out) == older
    manifest = prepare(config)
    assert "its shards are those of an older Thaw" in capsys.readouterr().out
    shards = {shard.path for split in manifest.splits.values() for shard in split.shards}
    assert list_files(config.out) == shards | {"manifest.json", "quarantine.parquet"}


@pytest.mark.ray
@pytest.mark.extended
def test_killed_before_the_manifest_there_is_the_data_set_before(ray_cluster, photos):
    config = options(photos)
    before = prepare(config)
    write(photos / "train/ram/new.jpg", encode(5000))
    script = (
        "import os, ray, signal, sys\n"
        "from datasets.prepare import prepare\n"
        "from tests.test_datasets_prepare import Path, options\n"
        "prepare.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ray.init(sys.argv[1])\n"
        "prepare.prepare(options(Path(sys.argv[2])))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, ray_cluster, photos], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    left = list_files(config.out)
    of_before = {shard.path for split in before.splits.values() for shard in split.shards}
    assert any(name.startswith("train/part-") for name in left - of_before)
    assert any(name.startswith(".staging/") for name in left)
    assert read_manifest(config.out) == before
    assert sum(len(read_rows(config, before, split)) for split in before.splits) == 49
    # The next run has other options, so none of the leftovers is overwritten: they are cleared.
    manifest = prepare(replace(config, val_fraction=0.4))
    shards = {shard.path for split in manifest.splits.values() for shard in split.shards}
    assert list_files(config.out) == shards | {"manifest.json", "quarantine.parquet"}


@pytest.mark.ray
def test_few_images_need_no_ray_and_give_the_same(ray_cluster, photos, monkeypatch):
    of_ray = prepare(options(photos, out=str(photos.parent / "of_ray")))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with monkeypatch.context() as patched:
        for needless in ("cluster.runtime.connect", "cluster.runtime.start_early"):
            patched.setattr(needless, None)
        here = prepare(options(photos))
    assert replace(here, options=of_ray.options) == of_ray
    asked: list[str | None] = []
    monkeypatch.setattr("cluster.runtime.connect", asked.append)
    connect_for(FEW_IMAGES, "10.0.0.1:6379")
    connect_for(FEW_IMAGES, None)
    monkeypatch.setattr("cluster.runtime.start_early", lambda address, imports: None)
    connect_for(FEW_IMAGES + 1, None)
    assert asked == ["10.0.0.1:6379", None]


@pytest.mark.ray
def test_error_on_the_way_leaves_no_data_set_where_none_was(ray_cluster, photos, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    config = options(photos)
    with monkeypatch.context() as patched:
        patched.setattr("datasets.prepare.prepare.write_manifest", fail)
        with pytest.raises(OSError, match="No space left"):
            prepare(config)
    assert not any(name.startswith((".staging", "manifest")) for name in list_files(config.out))
    assert sum(split.num_images for split in prepare(config).splits.values()) == 49


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), StorageError("s3://b: out of reach")])
def test_interrupted_run_leaves_what_it_staged_to_the_next(photos, monkeypatch, stop):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    whole = prepare(options(photos, out=str(photos.parent / "whole")))
    config, converted = options(photos), list[str]()

    def convert(reference: dict, *options: Any) -> Converted:
        converted.append(reference["path"])
        return real_convert(reference, *options)

    def fail(*_: Any) -> None:
        raise stop

    real_convert = staging._convert
    monkeypatch.setattr(staging, "_convert", convert)
    with monkeypatch.context() as patched:
        patched.setattr("datasets.prepare.prepare.write_shards", fail)
        with pytest.raises(type(stop)):
            prepare(config)
    assert len(converted) == 49
    (facts, *others) = sorted(Path(config.out).glob(".staging/*/facts-*.parquet"))
    unfinished = pq.read_table(facts).num_rows
    facts.unlink()
    converted.clear()
    assert others and replace(prepare(config), options=whole.options) == whole
    assert len(converted) == unfinished
    assert not list(Path(config.out).glob(".staging*"))


def test_what_was_staged_of_other_images_or_options_is_not_used(photos, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    config = options(photos)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("datasets.prepare.prepare.write_shards", fail)
        for changed in (config, replace(config, short_side_px=32)):
            with pytest.raises(KeyboardInterrupt):
                prepare(changed)
            (folder,) = Path(config.out, ".staging").iterdir()
    write(photos / "train/ram/new.jpg", encode(5000))
    manifest = prepare(config)
    assert sum(split.num_images for split in manifest.splits.values()) == 50
    assert not folder.exists()


def test_files_of_others_stay(photos):
    config = options(photos)
    write(Path(config.out) / "train/mine.txt", b"mine")
    write(Path(config.out) / "train/part-00000-000000000000.parquet", b"a leftover")
    prepare(config)
    files = list_files(config.out)
    assert "train/mine.txt" in files and "train/part-00000-000000000000.parquet" not in files


def test_nothing_good_left(photos):
    for path in (photos / "train/ram").iterdir():
        path.write_bytes(b"no image")
    config = options(photos)
    with pytest.raises(
        ValueError,
        match=r"class 'ram' has only test images after 4 were left out \(4 not an image\)",
    ):
        prepare(config)
    assert set(read_quarantine(config)) == {f"{number:03d}.jpg" for number in range(4)}
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no image is left after 49 were left out"):
        prepare(config)


def test_classes_must_be_there(photos):
    with pytest.raises(ValueError, match=r"out is .*: it is inside the source"):
        prepare(options(photos, out=str(photos / "data")))
    write(photos / "test/volvo/1.jpg", b"")
    with pytest.raises(ValueError, match="class 'volvo' has only test images"):
        prepare(options(photos))
    shutil.rmtree(photos / "test")
    (photos / "train/volvo").mkdir()
    with pytest.raises(ValueError, match="class 'volvo' has no image"):
        prepare(options(photos))
    for name in ("volvo", "audi", "bmw"):
        shutil.rmtree(photos / "train" / name)
    with pytest.raises(
        ValueError, match=r"it has 1 class, .ram.; give a folder, or a table, of images"
    ):
        prepare(options(photos))


def test_parquet_of_hugging_face_becomes_a_data_set(tmp_path):
    features = {"label": {"names": ["suv", "sedan"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    seeds = iter(range(100))
    for split, size in (("train", 20), ("test", 6)):
        images = [{"bytes": encode(next(seeds)), "path": None} for _ in range(size)]
        labels = [i % 2 for i in range(size)]
        labels[-1] = -1
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    config = PrepareConfig(source="parquet", root=str(tmp_path), out=f"{tmp_path}-data")
    manifest = prepare(config)
    assert manifest.classes == ("suv", "sedan")
    counts = {name: split.class_counts for name, split in manifest.splits.items()}
    assert counts == {"train": (8, 8), "val": (2, 1), "test": (3, 2)}
    assert read_quarantine(config) == {
        "train-00000-of-00001.parquet#19": "no label",
        "test-00000-of-00001.parquet#5": "no label",
    }
    read_rows(config, manifest, "test")


def test_test_images_alone_are_previewed(write_data, tmp_path):
    data, png = write_data(train=8, val=4, test=4), str(tmp_path / "test.png")
    manifest = read_manifest(data)
    preview(data, str(tmp_path / "all.png"))
    write_manifest(data, replace(manifest, splits={"test": manifest.splits["test"]}))
    preview(data, png)
    of_test, of_train = (
        load_image((tmp_path / name).read_bytes()) for name in ("test.png", "all.png")
    )
    assert of_test.shape == of_train.shape and (of_test != of_train).any()


def test_synthetic_cars_are_reused_and_previewed(tmp_path, capsys):
    synthetic = SyntheticConfig(num_classes=3, train_per_class=5, test_per_class=2, render_px=48)
    config = PrepareConfig(source="synthetic", out=str(tmp_path / "data"), synthetic=synthetic)
    manifest = prepare(config)
    assert manifest.split("test").class_counts == (2, 2, 2)
    rows = read_rows(config, manifest, "train")
    assert all(row["image_id"] == identify(row["image"]) for row in rows)
    assert prepare(config) == manifest
    prepare(replace(config, synthetic=replace(synthetic, seed=1)))
    assert "synthetic.seed was 0 and is 1" in capsys.readouterr().out
    png = str(tmp_path / "sheet/preview.png")
    preview(config.out, png)
    sheet = load_image(Path(png).read_bytes())
    assert sheet.shape[0] > 1000 and sheet.std() > 20


def test_stage_images_crops_to_the_box(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:40] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    references = pa.table(
        {
            "position": [7],
            "split": ["train"],
            "label": [0],
            "path": ["x"],
            "box": [[20, 10, 40, 30]],
        }
    )
    config = PrepareConfig(
        source="stanford", root="/unused", out="/unused", crop_to_box=True, box_margin=0.0
    )
    content = buffer.getvalue()
    facts = stage_images(
        references, read=lambda _: iter([content]), config=config, staging=str(tmp_path)
    )
    assert facts["position"].to_pylist() == [7] and facts["reason"].to_pylist() == [None]
    staged = pq.read_table(tmp_path / facts["staged"][0].as_py())["image"][0].as_py()
    assert load_image(staged).shape == (20, 20, 3) and load_image(staged).mean() > 245


@pytest.mark.ray
@pytest.mark.shared
def test_real_cars(ray_cluster, shared_dir, tmp_path):
    cars = shared_dir / "cars"
    config = options(cars, out=str(tmp_path / "cars"), row_group_size=64)
    manifest = prepare(config)
    assert len(manifest.classes) == 20 and manifest.num_quarantined == 0
    assert manifest.split("train").num_images + manifest.split("val").num_images == 825
    assert manifest.split("test").num_images == 817
    ids = ids_by_split(config, manifest)
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 1642


def test_roots_apart_are_the_same_data_set(photos):
    out, test_root = str(photos.parent / "apart"), str(photos / "test")
    apart = prepare(options(photos / "train", test_root=test_root, out=out))
    assert apart.fingerprint == prepare(options(photos)).fingerprint


def test_command_line_ends_errors_in_one_sentence(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "datasets", "info", "--data", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("error: data is ") and ran.stderr.count("\n") == 1
