"""Two runs on the same images: what changed, whether by chance, and the exit code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.config import IngestConfig
from datasets.manifest_file import read_manifest, write_manifest
from tests.support.data import WriteData
from trainers.__main__ import main
from trainers.config import FinetuneConfig, ModelConfig
from trainers.evaluation.compare import match_images
from trainers.evaluation.config import CompareConfig
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import has_trained_on, open_data
from trainers.run.folder import write_config
from trainers.run.predictions import from_table

NUM_TEST = 13


def write_run(out: Path, data: str, predicted_N: list[int], *, fold: int = 0) -> str:
    """Write the folder of a run that is evaluated: `predicted_N` are its answers."""
    manifest = read_manifest(data, fold)
    write_config(
        FinetuneConfig(
            data=data,
            out=str(out),
            fold=fold,
            model=ModelConfig(init="he"),
            ingest=IngestConfig(size_px=32),
        )
    )
    progress = TrainingProgress(
        epoch=1,
        val_top1=0.5,
        best_epoch=1,
        classes=manifest.classes,
        fingerprint=manifest.fingerprint,
    )
    checkpoint.save(str(out), {checkpoint.MODEL: b"x"}, progress)
    names = np.array(manifest.classes)
    table = {
        "row": pa.array(range(NUM_TEST), pa.int32()),
        "image_id": pa.array(range(NUM_TEST), pa.int64()),
        "path": [f"test/{number}.jpg" for number in range(NUM_TEST)],
        "label": pa.array(names[np.arange(NUM_TEST) % 3]).dictionary_encode(),
        "predicted": pa.array(names[predicted_N]).dictionary_encode(),
        "confidence": np.linspace(0.5, 0.9, NUM_TEST),
        "loss": np.ones(NUM_TEST),
    }
    (out / "evaluation_test").mkdir()
    pq.write_table(pa.table(table), out / "evaluation_test" / "predictions.parquet")
    measured = {"test/top1": 0.5, "test/top5": 1.0, "num_images": NUM_TEST, "epoch": 1}
    text = json.dumps(measured | {"fingerprint": manifest.fingerprint})
    (out / "evaluation_test.json").write_text(text)
    return str(out)


def test_gains_losses_and_the_exit_code(
    write_data: WriteData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_data(), tmp_path / "compared"
    right = [number % 3 for number in range(NUM_TEST)]
    before = write_run(tmp_path / "a", data, [1, *right[1:]])  # wrong once, of class 0
    after = write_run(tmp_path / "b", data, [*right[:7], 0, 0, 2, 0, *right[11:]])  # three times
    command = ["compare", "--runs", before, after, "--out", str(out)]

    main([*command, "--fail-if-worse", "0.25"])
    result = json.loads((out / "compare.json").read_text())
    assert result["top1"] == [pytest.approx(12 / 13), pytest.approx(9 / 13)]
    assert (result["gains"], result["losses"]) == (1, 4) and result["p_value"] == 0.375
    assert result["per_class"][0]["class"] == "class 0"
    assert result["per_class"][-1]["change"] == pytest.approx(-2 / 4)
    changes = (out / "changes.csv").read_text().splitlines()[1:]
    assert len(changes) == 5 and "test/0.jpg,class 0,class 1,class 0" in changes
    assert (out / "changes.png").read_bytes().startswith(b"\x89PNG")
    assert "1 images gained, 4 lost; McNemar's exact test p = 0.375" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([*command, "--fail-if-worse", "0.01"])
    assert caught.value.code == 1
    assert "Not compared" not in capsys.readouterr().out
    of_after = Path(after, "evaluation_test", "predictions.parquet")
    pq.write_table(pq.read_table(of_after).slice(4), of_after)  # as of a class that it lacks
    main(command)
    assert "Not compared: 4, unreadable or of classes that" in capsys.readouterr().out


def test_runs_of_other_images_are_refused(write_data: WriteData, tmp_path: Path) -> None:
    right = [number % 3 for number in range(NUM_TEST)]
    one = write_run(tmp_path / "a", write_data(), right)
    other = write_run(tmp_path / "b", write_data(train=24), right)

    with pytest.raises(ValueError, match=r"^runs are of the data sets .* give --data URI"):
        main(["compare", "--runs", one, other, "--out", str(tmp_path / "compared")])
    with pytest.raises(ValueError, match=r"^runs is .* give the folders of two trainings"):
        CompareConfig(runs=(one, one))


def with_folds(data: str) -> str:
    """Let the training images be the other fold of a data set."""
    manifest = read_manifest(data)
    folds = manifest.splits["val"], manifest.splits["train"]
    write_manifest(data, replace(manifest, folds=folds))
    return data


def test_runs_of_two_folds_have_only_the_test_images_in_common(
    write_data: WriteData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, right = with_folds(write_data()), [number % 3 for number in range(NUM_TEST)]
    runs = [write_run(tmp_path / f"fold-{fold}", data, right, fold=fold) for fold in (0, 1)]
    command = ["compare", "--runs", *runs, "--out", str(tmp_path / "compared")]

    for options in ([], ["--data", data]):
        main([*command, *options])
        assert "13 test images of" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"^fold is 0 and 1: the val images of the runs diff"):
            main([*command, *options, "--split", "val"])


def test_a_run_keeps_its_fold_where_its_data_set_was_moved(
    write_data: WriteData, tmp_path: Path
) -> None:
    data = with_folds(write_data())
    config = FinetuneConfig(data=data, fold=1)
    fingerprint = read_manifest(data, 1).fingerprint
    moved = shutil.copytree(data, str(tmp_path / "moved"))

    own, manifest = open_data(config, fingerprint, moved)
    assert (own.data, own.fold, manifest.fingerprint) == (moved, 1, fingerprint)
    of_others, manifest = open_data(config, "of others", moved)
    assert of_others.fold == 0 and manifest == read_manifest(moved)


def test_rows_of_other_images_are_not_compared() -> None:
    labels = pa.array(["a", "b"]).dictionary_encode()
    table = pa.table({"row": [0, 1], "image_id": [7, 8], "label": labels, "predicted": labels})
    other = table.set_column(1, "image_id", [[7, 9]])

    first, second = match_images(from_table(table), from_table(table), runs=("a", "b"))
    assert first.table == second.table == table
    with pytest.raises(ValueError, match=r"^runs is \['a', 'b'\]: .* other images; evaluate both"):
        match_images(from_table(table), from_table(other), runs=("a", "b"))


@pytest.mark.parametrize(
    ("split", "fingerprint", "train_on", "expected"),
    [
        ("test", "f", "train+val", False),
        ("val", "f", "train", False),
        ("val", "f", "train+val", True),
        ("val", "of others", "train+val", False),
        ("train", "f", "train", True),
        ("train+val", "f", "train", True),
    ],
)
def test_images_that_trained_are_known(split, fingerprint, train_on, expected) -> None:
    config = FinetuneConfig(data="d", train_on=train_on)
    progress = TrainingProgress(fingerprint="f")
    assert has_trained_on(split, fingerprint, config, progress) == expected
