"""Evaluation on the real cluster: what it writes agrees with itself and with the training."""

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from cluster.runtime import Resources
from datasets.config import IngestConfig
from datasets.manifest import Manifest, Split
from datasets.manifest_file import read_manifest, write_manifest
from tests.support.data import (
    WriteData,
    draw_image,
    find_shard,
    flip_byte,
    hash_seed,
    rename_classes,
)
from tests.support.training import train_here
from trainers.__main__ import main
from trainers.config import (
    ClusterConfig,
    ComputeConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    TrackConfig,
)
from trainers.evaluation import pictures
from trainers.evaluation import split as split_module
from trainers.evaluation.classes import MatchedClasses, match_classes
from trainers.evaluation.evaluate import evaluate, write_evaluation
from trainers.evaluation.files import draw_files
from trainers.evaluation.measures import confusion_matrix, find_confused_pairs, measure
from trainers.evaluation.printing import show
from trainers.evaluation.split import predict_mirrored, read_views
from trainers.inference.actors import plan_actors
from trainers.inference.inference import Network
from trainers.run import folder as run_folder
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import name_other
from trainers.run.predictions import COLUMNS, Predictions, build_predictions
from trainers.run.rows import read_rows
from trainers.step.step import StepSettings, eval_step, predict

FILES = {
    *("confusion.png", "confused_pairs.png", "reliability.png"),
    *("confusion.csv", "per_class.csv", "predictions.parquet"),
}


@pytest.fixture(scope="module")
def run(ray_cluster: str, easy_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of a MobileNetV2 that trained for one epoch, and knows little."""
    config = FinetuneConfig(
        data=easy_data,
        out=str(tmp_path_factory.mktemp("evaluated") / "run"),
        epochs=1,
        global_batch_size=16,
        ingest=IngestConfig(size_px=64, policy="light"),
        model=ModelConfig(backbone="mobilenet_v2", init="he", freeze_batchnorm=True),
        optim=OptimConfig(optimizer="sgd", learning_rate=1e-3, clipnorm=1.0),
        track=TrackConfig(wandb="off"),
        compute=ComputeConfig(precision="fp32"),
        cluster=ClusterConfig(num_workers=0),
    )
    train_here(config)
    return config.out


def predictions_of(logits_NK: Tensor, labels_N: Tensor, classes: Sequence[str]) -> Predictions:
    settings = StepSettings(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), optim=OptimConfig())
    columns_5N = eval_step(nn.Identity(), logits_NK, labels_N, settings=settings).numpy()
    return build_predictions(dict(zip(COLUMNS, columns_5N, strict=True)), classes)


def rows_of(file: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(file.read_text())))


def is_drawn(png: bytes) -> bool:
    """Whether it is a picture, on white, with something on it."""
    image_HWC = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image_HWC is not None
    return bool(image_HWC[0, 0].min() == 255 and image_HWC.std() > 5)


@pytest.mark.ray
def test_what_an_evaluation_writes_agrees_with_itself(run: str) -> None:
    result = write_evaluation(run)
    folder = Path(run, "evaluation_test")
    confusion_KK = np.array([row[1:] for row in rows_of(folder / "confusion.csv")[1:]], int)
    predictions = pq.read_table(folder / "predictions.parquet").to_pylist()

    assert json.loads(Path(run, "evaluation_test.json").read_text()) == result
    assert {file.name for file in folder.iterdir()} == FILES
    assert confusion_KK.sum() == result["num_images"] == len(predictions) == 13
    hits = [row["label"] == row["predicted"] for row in predictions]
    assert sum(hits) / 13 == confusion_KK.trace() / 13 == result["test/top1"]
    assert [row["images"] for row in result["per_class"]] == confusion_KK.sum(1).tolist()
    assert len(rows_of(folder / "per_class.csv")) == 1 + 3
    assert sum(pair["count"] for pair in result["most_confused"]) == 13 - sum(hits)
    for row in predictions:
        number = int(row["image_id"]) & 0xFFFFF
        assert row["path"] == f"test/{number}.jpg" and row["label"] == f"class {number % 3}"
    for name in FILES:
        if name.endswith(".png"):
            assert is_drawn((folder / name).read_bytes())


@pytest.mark.ray
def test_the_validation_split_measures_as_it_did_in_training(run: str) -> None:
    row, result = read_rows(run)[-1], write_evaluation(run, split="val")

    assert (
        not result["trained"]
        and result["calibration"] is None
        and "17 validation images are too few" in (result["not_calibrated"])
    )
    assert result["val/loss"] == pytest.approx(row["val/loss"], rel=1e-5)
    assert result["val/top1"] == pytest.approx(row["val/top1"])


@pytest.mark.ray
def test_training_images_are_evaluated_once_each_and_not_augmented(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = write_evaluation(run, split="train"), write_evaluation(run, split="train")

    assert first["num_images"] == 48 and first == again and first["trained"]
    show(first, "train", "folder")
    assert "These images trained the network; on other images" in capsys.readouterr().out
    predictions = pq.read_table(f"{run}/evaluation_train/predictions.parquet")
    assert len(set(predictions["image_id"].to_pylist())) == 48


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["evaluate", "explain", "compare"])
def test_a_run_of_a_gpu_is_evaluated_without_one(verb: str, run: str, tmp_path: Path) -> None:
    """The device is that of the command, not of the training."""
    runs = [shutil.copytree(run, tmp_path / name) for name in "ab"]
    for each in runs:
        for done in each.glob("evaluation_*.json"):
            done.unlink()
        config = json.loads((each / "config.json").read_text())
        config["cluster"]["device"] = "gpu"
        (each / "config.json").write_text(json.dumps(config))
    options = {
        "evaluate": ["--run", str(runs[0])],
        "explain": ["--run", str(runs[0]), "--which", "random", "--out", str(tmp_path / "cam.png")],
        "compare": ["--runs", *map(str, runs), "--out", str(tmp_path / "compared")],
    }
    main([verb, *options[verb]])
    assert (runs[0] / "evaluation_test.json").exists()
    with pytest.raises(ValueError, match="device is 'gpu': the cluster has no GPU; use --device"):
        evaluate(str(runs[0]), device="gpu")


@pytest.mark.ray
def test_some_rows_of_a_split_are_predicted_as_among_all(run: str) -> None:
    config, progress, model = run_folder.load_best_model(run)
    network = Network(model=model, config=config, classes=progress.classes, origin=run)
    manifest = read_manifest(config.data)
    rows_N = np.array([1, 4, 11])
    whole, some = (
        split_module.predict_split(network, manifest, "test", index_K=np.arange(3), rows_N=rows)
        for rows in (None, rows_N)
    )
    expected = whole.table.take(rows_N)
    for name in ("row", "image_id", "path", "label", "predicted", "top5"):
        assert some.table[name].to_pylist() == expected[name].to_pylist(), name
    np.testing.assert_allclose(some.numbers("loss"), expected["loss"].to_numpy(), rtol=1e-4)


def named(data: str) -> str:
    return f"{Path(data).name}-{read_manifest(data).fingerprint[:6]}"


@pytest.mark.ray
def test_other_classes_are_matched_by_name(run: str, write_data: WriteData) -> None:
    whole = write_evaluation(run)
    two = write_data(classes=2, test=20)
    fewer = write_evaluation(run, data=two)
    assert fewer["num_images"] == 20 and fewer["not_scored"] == {}
    assert [row["images"] for row in fewer["per_class"]] == [10, 10, 0]
    of_two = Path(run, f"evaluation_test_of_{named(two)}.json")
    kept = Path(run, "evaluation_test.json")  # that of its own data
    assert [json.loads(file.read_text()) for file in (of_two, kept)] == [fewer, whole]
    more = write_evaluation(run, data=write_data(classes=4, test=20))
    assert more["num_images"] == 15 and more["not_scored"] == {"class 3": 5}
    assert len(more["per_class"]) == 3 and more["lost"] == []
    # The same images under other names: the same result, or one sentence.
    data = rename_classes(write_data(), "kind {}")
    pairs = [f"kind {number}=class {number}" for number in range(3)]
    renamed = write_evaluation(run, data=data, renamed=pairs)
    assert renamed["test/top1"] == whole["test/top1"]
    assert Path(run, "evaluation_test_of_mapped.json").exists()  # the same images
    one = write_evaluation(run, data=data, renamed=pairs[:1])
    assert sorted(one["not_scored"]) == ["kind 1", "kind 2"]
    with pytest.raises(ValueError, match="none of them the same; give the pairs with --map"):
        write_evaluation(run, data=data)
    with pytest.raises(ValueError, match="map is 'kind 9=class 0': use DATA=NETWORK"):
        write_evaluation(run, data=data, renamed=["kind 9=class 0"])
    manifest = read_manifest(data)
    splits = {name: split for name, split in manifest.splits.items() if name != "test"}
    write_manifest(data, replace(manifest, splits=splits))
    all_images = write_evaluation(run, data=data, renamed=pairs)
    assert (all_images["split"], all_images["num_images"]) == ("train+val", 65)


@pytest.mark.parametrize(
    ("data", "renamed", "expected", "not_scored"),
    [
        pytest.param("suv car van", (), [2, 0, 1], {}, id="another order"),
        pytest.param(" Cafe\u0301 car", ("Caf\u00e9=van",), [1, 0], {}, id="spelling"),
        pytest.param("car other", (), [0, -1], {"other": 1}, id="more"),
        pytest.param("gti golf", ("gti=car", "golf=car"), [0, 0], {}, id="two as one"),
        pytest.param("a=b car", ("a=b=suv",), [2, 0], {}, id="a name with ="),
        pytest.param("van car", ("van=car", "car=van"), [0, 1], {}, id="exchanged"),
    ],
)
def test_classes_match_by_name(data, renamed, expected, not_scored) -> None:
    matched = match_names(data, renamed)
    assert matched.index_K.tolist() == expected and matched.not_scored == not_scored


def test_a_class_is_mapped_once() -> None:
    with pytest.raises(ValueError, match="map is 'golf=van': 'golf' is mapped to 'car' as well"):
        match_names("golf", ("golf=car", "golf=van"))
    assert match_names("golf", ("golf=car", "golf=car")).index_K.tolist() == [0]


def match_names(data: str, renamed: Sequence[str]) -> MatchedClasses:
    split = Split(shards=(), class_counts=(1,) * len(data.split()), num_pixels=0)
    manifest = Manifest(
        classes=tuple(data.split()), splits={"test": split}, num_quarantined=0, fingerprint=""
    )
    network = Network(
        model=nn.Identity(),
        config=FinetuneConfig(data="d"),
        classes=("car", "van", "suv"),
        origin="r",
    )
    return match_classes(manifest, "test", network, renamed)


@pytest.mark.parametrize(
    ("data", "fingerprint", "renamed", "expected"),
    [
        pytest.param("/data/own", "abcdef12", (), None, id="its own"),
        pytest.param("/data/own", "0123456789", (), None, id="its own, prepared again"),
        pytest.param("/data/copy", "abcdef12", (), None, id="the same images elsewhere"),
        pytest.param("/data/field", "0123456789", (), "field-012345", id="other images"),
        pytest.param("/data/own", "abcdef12", ("a=b",), "mapped", id="other names"),
        pytest.param("/data/field", "0123456789", ("a=b",), "field-012345-mapped", id="both"),
    ],
)
def test_an_evaluation_of_other_images_has_their_name(
    data: str, fingerprint: str, renamed: Sequence[str], expected: str | None
) -> None:
    progress = TrainingProgress(fingerprint="abcdef12")
    own = FinetuneConfig(data="/data/own")
    assert name_other(data, fingerprint, own, progress, renamed) == expected


@pytest.mark.ray
def test_unreadable_images_have_no_prediction(run: str, write_data: WriteData) -> None:
    data = write_data(test=39)
    flip_byte(find_shard(data, "test"), 11, at=300)
    whole = write_data(test=39)
    with pytest.raises(
        ValueError, match=r"ingest\.max_bad_fraction is .* 1 of 39 test images could"
    ):
        write_evaluation(run, data=data)
    config = Path(run, "config.json")
    text = config.read_text()
    lenient = json.loads(text)
    lenient["ingest"]["max_bad_fraction"] = 0.1
    config.write_text(json.dumps(lenient))
    result = write_evaluation(run, data=data)
    folder = f"{run}/evaluation_test_of_{named(data)}"
    predictions = pq.read_table(f"{folder}/predictions.parquet").to_pylist()
    config.write_text(text)

    assert result["num_images"] == 38 and len(result["lost"]) == 1
    assert [row["row"] for row in predictions] == [n for n in range(39) if n != 11]
    assert write_evaluation(run, data=whole)["num_images"] == 39


@pytest.mark.ray
def test_the_command_lines_print_a_table_json_alone_and_draw_a_sheet(
    run: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["evaluate", "--run", run, "--tta"])
    table = capsys.readouterr().out
    main(["evaluate", "--run", run, "--tta", "--json"])
    result = json.loads(capsys.readouterr().out)
    sheet = tmp_path / "cam.png"
    main(["explain", "--run", run, "--which", "random", "--num-images", "4", "--out", str(sheet)])

    assert "13 test images" in table and "macro F1" in table and "confused_pairs.png" in table
    assert "images trained" not in table
    assert result["tta"] and result == json.loads(Path(run, "evaluation_test_tta.json").read_text())
    assert is_drawn(sheet.read_bytes())
    assert "4 of 13 (random, test split)" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.parametrize("tta", [False, True])
def test_actors_predict_the_same_as_one_process(
    run: str, tta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = evaluate(run, split="train", tta=tta)
    monkeypatch.setattr(split_module, "FEW_IMAGES", 0)
    on_actors = evaluate(run, split="train", tta=tta)

    assert here.table["row"].to_pylist() == list(range(48))
    for name in ("row", "image_id", "path", "label", "predicted", "top5"):
        assert on_actors.table[name].to_pylist() == here.table[name].to_pylist(), name
    for name in ("confidence", "loss"):
        assert on_actors.numbers(name) == pytest.approx(here.numbers(name), rel=1e-6), name


@pytest.mark.ray
def test_a_sheet_evaluates_once_and_again_for_another_checkpoint(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = ["explain", "--run", run, "--split", "val", "--which", "random"]
    evaluated: list[str] = []

    def count(run: str, *, split: str, **_: str) -> None:
        evaluated.append(split)
        write_evaluation(run, split=split)

    monkeypatch.setattr("trainers.evaluation.explain.write_evaluation", count)
    written = Path(run, "evaluation_val.json")
    write_evaluation(run, split="val")
    main([*sheet, "--out", str(tmp_path / "cam.png")])
    assert evaluated == []
    written.write_text(json.dumps(json.loads(written.read_text()) | {"epoch": 7}))
    main([*sheet, "--out", str(tmp_path / "cam.png")])
    assert evaluated == ["val"]


@pytest.mark.ray
def test_outputs_that_are_not_finite_are_refused(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, progress, model = run_folder.load_best_model(run)
    nn.init.constant_(next(model.parameters()), float("nan"))
    monkeypatch.setattr(run_folder, "load_best_model", lambda run, **_: (config, progress, model))
    monkeypatch.setattr(run_folder, "read_config", lambda run: config)

    with pytest.raises(ValueError, match="outputs of its network are not finite"):
        write_evaluation(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("num_nodes", "num_cpus", "num_gpus", "planned"),
    [
        (1, 1, 0, (1, 1)),
        (1, 2, 0, (2, 1)),
        (1, 9, 0, (5, 1)),  # as many as memory holds
        (3, 24, 0, (5, 4)),
        (2, 16, 3, (3, 5)),
    ],
)
def test_actors_fill_the_cpus_or_take_a_gpu_each(
    num_nodes: int, num_cpus: int, num_gpus: int, planned: tuple[int, int]
) -> None:
    resources = Resources(
        num_nodes=num_nodes,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        memory_gib=8.0,
        object_store_gib=2.0,
    )
    plan = plan_actors(resources, ClusterConfig(), ["lenet5"])

    assert (plan.num_workers, plan.threads_per_worker) == planned
    assert plan.num_workers * plan.cpus_per_worker <= num_cpus / 2  # the rest is for reading


def test_actors_with_large_networks_are_fewer() -> None:
    resources = Resources(
        num_nodes=1, num_cpus=16, num_gpus=0, memory_gib=16.0, object_store_gib=2.0
    )
    backbones = (["lenet5"], ["vgg16"], ["vgg16", "vgg16"])
    plans = [plan_actors(resources, ClusterConfig(), names) for names in backbones]
    assert [plan.num_workers for plan in plans] == [10, 6, 4]  # VGG16 has 0.5 GiB


def test_views_come_in_the_order_they_are_asked_for(easy_data: str) -> None:
    config = FinetuneConfig(data=easy_data, ingest=IngestConfig(size_px=48))
    asked = [12, 0, 7]  # of two row groups
    views = read_views(config, read_manifest(easy_data), "test", asked)

    for number, view_HWC in zip(asked, views, strict=True):
        drawn_HWC = draw_image(number % 3, hash_seed("test", number))[:, 8:-8]
        assert np.abs(view_HWC.astype(int) - drawn_HWC).mean() < 12  # JPEG


def test_a_mirrored_prediction_is_the_mean_probability_of_both_views() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval()
    settings = StepSettings(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), optim=OptimConfig())
    images_BHWC = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    mirrored_BHWC = images_BHWC.flip(2)

    def compute(views: Tensor) -> tuple[Tensor, ...]:
        return (predict(model, views, settings),)

    with torch.no_grad():
        one_BK, other_BK = (compute(views)[0].softmax(1) for views in (images_BHWC, mirrored_BHWC))
        both_BK = predict_mirrored(compute, images_BHWC)
        same_BK = predict_mirrored(compute, mirrored_BHWC)

    torch.testing.assert_close(both_BK.softmax(1), (one_BK + other_BK) / 2)
    torch.testing.assert_close(both_BK, same_BK)


@pytest.mark.parametrize("num_classes", [2, 3, 60, 300])
def test_pictures_can_be_drawn_of_any_number_of_classes(num_classes: int) -> None:
    """With a class without images, names full of signs, and no warning from matplotlib."""
    classes = [f"$class_{number}^ {'very ' * 9}long" for number in range(num_classes)]
    labels_N = torch.arange(4 * num_classes) % (num_classes - 1)
    predictions = predictions_of(torch.randn(len(labels_N), num_classes), labels_N, classes)
    measures, confusion_KK = measure(predictions), confusion_matrix(predictions)

    assert is_drawn(pictures.draw_confusion(confusion_KK, measures, classes))
    assert is_drawn(pictures.draw_reliability(measures))


def test_many_classes_have_a_picture_and_a_table_that_one_can_open() -> None:
    """10,000 classes have 100,000,000 cells; here are 2,500."""
    num_classes = 2500
    rng = np.random.default_rng(0)
    labels_N, predicted_N = rng.integers(0, num_classes, (2, 5000))
    predicted_N[:2000] = labels_N[:2000]
    ones_N = np.ones(5000, np.float32)
    columns = {"confidence": ones_N, "loss": ones_N, "top5": ones_N}
    names = [f"class {number}" for number in range(num_classes)]
    predictions = build_predictions({"label": labels_N, "predicted": predicted_N, **columns}, names)
    files = draw_files(predictions, measure(predictions), None, [], [], None)

    header, *rows = csv.reader(io.StringIO(files["confusion.csv"].decode()))
    assert header == ["true", "predicted", "images"] and len(rows) <= 5000
    found = Counter({(true, predicted): int(images) for true, predicted, images in rows})
    pairs = zip(labels_N, predicted_N, strict=True)
    assert found == Counter((names[true], names[predicted]) for true, predicted in pairs)
    assert is_drawn(files["confusion.png"]) and len(files["confusion.png"]) < 1_000_000


def test_a_split_without_a_mistake_has_a_picture_as_well() -> None:
    logits_NK = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    predictions = predictions_of(logits_NK, torch.tensor([0, 1]), "ab")
    confusion_KK = confusion_matrix(predictions)

    assert find_confused_pairs(predictions, 5) == []
    assert pictures.draw_confused_pairs([], []).startswith(b"\x89PNG")
    assert pictures.draw_confusion(confusion_KK, measure(predictions), "ab").startswith(b"\x89PNG")
