"""The corpus of tests/support/bad_images.py through `prepare`, and a training on what is left."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

from datasets.images import BadImage, convert, load_image
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from datasets.passes.collection import list_images
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.support.bad_images import KINDS, PAGE, Kind, put, write_page
from tests.support.data import draw_image

LEFT_OUT = {name: kind for name, kind in KINDS.items() if kind.reason is not None}
KEPT = {name: kind for name, kind in KINDS.items() if kind.reason is None}
CLASSES = ("audi", "bmw", "ram")
SHARE = 0.1
"""Of the data set that is left out."""
MEAN_DIFFERENCE = 2.0
"""Of 255, between a photograph and what is kept of it as a JPEG."""


def photograph(label: int, number: int) -> Image.Image:
    """A soft one: JPEG and palettes lose little of it."""
    image = Image.fromarray(draw_image(label, number, size_px=40))
    return image.filter(ImageFilter.GaussianBlur(2))


def put_kinds(root: Path, kinds: dict[str, Kind]) -> None:
    """Put a file of each kind among the training images, each into the class it is of."""
    for number, (name, kind) in enumerate(kinds.items()):
        label = number % len(CLASSES)
        file = f"{name.replace(' ', '_').replace('.', '')}-{kind.name}"
        put(kind, root / "train" / CLASSES[label] / file, photograph(label, 10_000 + number))


def write_photographs(root: Path) -> Path:
    """Write good images such that those left out are a tenth, one of each kind that is kept."""
    num_good = round(len(LEFT_OUT) / SHARE) - len(LEFT_OUT) - len(KEPT)
    for split, num_images in (("train", num_good - 30), ("test", 30)):
        for number in range(num_images):
            label = number % len(CLASSES)
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            seed = number if split == "train" else 5000 + number
            photograph(label, seed).save(folder / f"{number:04d}.jpg", quality=95)
    put_kinds(root, KEPT)
    return root


def prepare_folder(root: Path) -> tuple[str, Manifest]:
    out = f"{root}-data"
    config = PrepareConfig(source="folder", root=str(root), out=out, row_group_size=8)
    return out, prepare(config)


@pytest.fixture(scope="module")
def prepared(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The good ones alone, and with a tenth of the others among them."""
    folder = tmp_path_factory.mktemp("corpus")
    clean, dirty = write_photographs(folder / "clean"), write_photographs(folder / "dirty")
    put_kinds(dirty, LEFT_OUT)
    started = time.monotonic()
    prepare_folder(clean)
    prepare_folder(dirty)
    assert time.monotonic() - started < 300  # no pipe, device or bomb holds it up
    return clean, dirty


def test_the_corpus_has_many_kinds() -> None:
    assert len(LEFT_OUT) >= 24 and len(KEPT) >= 18


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_has_the_pixels_of_its_photograph(name: str) -> None:
    kind, image = KEPT[name], photograph(1, 77)
    assert kind.make is not None
    pixels_HWC = load_image(convert(kind.make(image), short_side_px=256).jpeg)
    if kind.is_exact:
        expected = np.asarray(image.convert("L").convert("RGB") if kind.grey else image)
        assert pixels_HWC.shape == expected.shape
        difference = np.abs(pixels_HWC.astype(int) - expected.astype(int))
        assert difference.mean() < MEAN_DIFFERENCE


@pytest.mark.ray
def test_the_quarantine_is_exact(
    prepared: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    clean, dirty = prepared
    manifest = read_manifest(f"{dirty}-data")
    left_out = pq.read_table(f"{dirty}-data/quarantine.parquet").to_pylist()

    reason_of = {Path(row["path"]).name: row["reason"].split(":")[0] for row in left_out}
    expected = {
        f"{name.replace(' ', '_').replace('.', '')}-{kind.name}": kind.reason
        for name, kind in LEFT_OUT.items()
    }
    assert reason_of == expected
    assert manifest.num_quarantined == len(left_out) == len(LEFT_OUT)
    num_images = sum(split.num_images for split in manifest.splits.values())
    assert len(LEFT_OUT) / (num_images + len(LEFT_OUT)) == pytest.approx(SHARE, abs=0.005)
    assert pq.read_table(f"{clean}-data/quarantine.parquet").num_rows == 0

    from datasets.__main__ import main

    main(["info", "--data", f"{dirty}-data"])
    told = " ".join(capsys.readouterr().out.split())
    for reason, number in Counter(expected.values()).items():
        assert f"{number} {reason}" in told


@pytest.mark.ray
def test_the_good_ones_are_the_same_to_the_byte(prepared: tuple[Path, Path]) -> None:
    """So a training can't tell the two data sets apart."""
    clean, dirty = (Path(f"{root}-data") for root in prepared)
    manifests = read_manifest(str(clean)), read_manifest(str(dirty))
    assert manifests[0].splits == manifests[1].splits
    assert manifests[0].fingerprint == manifests[1].fingerprint
    num_rows = 0
    for split in manifests[0].splits.values():
        for shard in split.shards:
            tables = [pq.read_table(root / shard.path) for root in (clean, dirty)]
            assert tables[0].drop_columns("path") == tables[1].drop_columns("path")
            num_rows += len(tables[0])
    assert num_rows == sum(1 for path in prepared[0].rglob("*") if path.is_file())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.extended
def test_two_ranks_train_the_same_on_both(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    from cluster.config import ClusterConfig
    from tests.support.small import small_training
    from tests.support.training import train_in_workers
    from trainers import metrics
    from trainers.config import ModelConfig, OptimConfig
    from trainers.evaluation.evaluate import write_evaluation
    from trainers.run.rows import read_rows

    rows, scores, steps = [], [], []
    for root in prepared:
        config = small_training(
            f"{root}-data",
            str(tmp_path / root.name),
            epochs=2,
            model=ModelConfig(backbone="lenet5", init="he"),
            optim=OptimConfig(learning_rate=3e-3),
            cluster=ClusterConfig(num_workers=2, device="cpu"),
        )
        result = train_in_workers(config)
        rows.append(read_rows(config.out))
        scores.append(write_evaluation(config.out)[metrics.TEST_TOP1])
        steps.append(result["global_step"])
        images = read_manifest(config.data).split("train").num_images
        assert result["global_step"] == 2 * (images // config.global_batch_size)

    losses = [[row[metrics.TRAIN_LOSS] for row in of] for of in rows]
    assert losses[0] == losses[1] and len(losses[0]) >= 10
    assert scores[0] == scores[1] > 0.5
    assert steps[0] == steps[1]
    assert all(row.get(metrics.UNREADABLE_IMAGES, 0) == 0 for of in rows for row in of)


def test_predict_lists_what_prepare_lists(tmp_path: Path) -> None:
    """Whatever lies there is told of: a pipe, a device and broken links as well."""
    for name, kind in KINDS.items():
        if kind.put is not None and not (tmp_path / name).exists():
            put(kind, tmp_path / name, photograph(0, 1))
    collection = list_images(str(tmp_path))
    read = dict(
        zip(
            collection.references["path"].to_pylist(),
            collection.read(collection.references),
            strict=True,
        )
    )
    for name, kind in KINDS.items():
        if kind.put is not None and name != "folder named .jpg":  # walked into
            content = read[str(tmp_path / name)]
            assert isinstance(content, BadImage), name
            assert content.reason.split(":")[0] == kind.reason
    assert str(tmp_path / "folder named .jpg/inside.jpg") in read


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    from datasets.prepare.sources import SOURCES

    folder = tmp_path / "audi"
    folder.mkdir()
    (folder / "1.jpg").touch()
    with open(f"{folder}/".encode() + b"\xff.jpg", "wb"):
        pass
    config = PrepareConfig(source="folder", root=str(tmp_path), out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"\\xff\.jpg' there is no name in UTF-8; rename it"):
        SOURCES["folder"](config)
    with pytest.raises(ValueError, match="no name in UTF-8"):
        list_images(str(tmp_path))


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == write_page(), "run `python -m tests.support.bad_images`"
