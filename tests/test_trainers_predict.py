"""Predictions equal evaluation's, no image is missing, and a pretrained head names classes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import torchvision
from PIL import Image

import datasets.passes.inference
from cluster.io.errors import UserError
from datasets.passes.inference import open_view
from tests.support.data import draw_image
from tests.support.training import train_here
from tests.test_datasets_collection import write_photograph
from trainers.config import (
    ClusterConfig,
    ComputeConfig,
    FinetuneConfig,
    IngestConfig,
    ModelConfig,
    OptimConfig,
)
from trainers.evaluation.evaluate import write_evaluation
from trainers.inference.config import PredictConfig
from trainers.inference.inference import (
    IMAGENET_CLASSES,
    Network,
    NetworkActor,
    open_network,
    run_inference,
)
from trainers.inference.predict import check_calibration, run_predict, to_predictions
from trainers.networks.backbones import build
from trainers.run.folder import load_best_model

PROBABILITY_TOLERANCE = 1e-5
"""Batches of another size add up in another order."""

Predict = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(ray_cluster: str, easy_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of a MobileNetV2 on easy images of 32 pixels."""
    out = str(tmp_path_factory.mktemp("run") / "run")
    train_here(
        FinetuneConfig(
            data=easy_data,
            out=out,
            epochs=1,
            global_batch_size=16,
            ingest=IngestConfig(size_px=32, policy="light"),
            model=ModelConfig(backbone="mobilenet_v2", init="he", freeze_batchnorm=True),
            optim=OptimConfig(learning_rate=1e-3),
            compute=ComputeConfig(precision="fp32"),
            cluster=ClusterConfig(num_workers=0),
        )
    )
    return out


@pytest.fixture
def predict(ray_cluster: str, tmp_path: Path) -> Predict:
    """Return a function that predicts, and reads back what it wrote, rows by path."""

    def call(images: Path | str, **options: Any) -> dict[str, Any]:
        out = tmp_path / "predicted"
        run_predict(PredictConfig(images=str(images), out=str(out), **options))
        rows = pq.read_table(out / "predictions").to_pylist()
        bad = pq.read_table(out / "predictions_bad_images.parquet").to_pylist()
        return {
            "rows": {row["path"]: row for row in rows},
            "bad": {row["path"]: row["reason"] for row in bad},
            "summary": json.loads((out / "predictions_summary.json").read_bytes()),
        }

    return call


@torch.no_grad()
def probabilities(model: torch.nn.Module, image_HWC: np.ndarray) -> torch.Tensor:
    """What a network makes of one image by plain torch, its pixels normalized by hand."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return model(((torch.tensor(image_HWC) / 255 - mean) / std).permute(2, 0, 1)[None]).softmax(1)[
        0
    ]


@pytest.mark.ray
def test_predictions_on_the_test_split_equal_evaluation(
    run: str, easy_data: str, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the stream and through Ray Data's actors: the same calibrated numbers."""
    monkeypatch.setattr("trainers.evaluation.calibrate.LEAST_IMAGES", 10)
    run = shutil.copytree(run, str(tmp_path / "calibrated"))
    expected = write_evaluation(run, hierarchy="names", least_probability=0.4, coverage=0.8)
    written = predict(
        easy_data, run=run, top_k=3, batch_size=5, num_workers=2, hierarchy="names",
        least_probability=0.4, coverage=0.8,
    )  # fmt: skip
    rows = {path: row for path, row in written["rows"].items() if path.startswith("test/")}
    table = pq.read_table(f"{easy_data}/test")
    labels = dict(zip(table["path"].to_pylist(), table["label"].to_pylist(), strict=True))
    classes = [f"class {label}" for label in range(3)]
    own = [
        dict(zip(rows[path]["top_classes"], rows[path]["top_probabilities"], strict=True))
        for path in labels
    ]
    of_label = np.array([p[classes[label]] for p, label in zip(own, labels.values(), strict=True)])
    right = [rows[path]["class"] == classes[label] for path, label in labels.items()]

    assert rows.keys() == labels.keys() and len(rows) == expected["num_images"] == 13
    assert np.mean(right) == pytest.approx(expected["test/top1"])
    assert -np.log(of_label).mean() == pytest.approx(expected["test/calibrated_loss"], rel=1e-4)
    found, of_test = expected["calibration"], [rows[path] for path in labels]
    assert np.mean([row["unknown"] for row in of_test]) == pytest.approx(found["measured_refused"])
    assert np.mean([len(row["class_set"]) for row in of_test]) == pytest.approx(found["set_size"])
    answers = [row["answer_level"] for row in of_test]
    assert [level["answers"] for level in expected["hierarchy"]] == pytest.approx(
        [answers.count(level) / len(answers) for level in ("make", "model")]
    )
    assert written["summary"]["calibration"]["temperature"] == found["temperature"]
    assert sum(own[0].values()) == pytest.approx(1, abs=1e-6)
    assert (
        len(written["rows"]) == written["summary"]["num_good"] == 78
        and written["summary"]["num_bad"] == 0
    )
    assert written["bad"] == {}
    starts = [int(part[-17:-8]) for part in written["summary"]["parts"]]
    assert starts == [0, 20, 40, 60]  # blocks of whole batches


@pytest.mark.ray
def test_a_folder_of_any_depth_and_its_bad_images(
    run: str, predict: Predict, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    write_photograph(images / "a.jpg", 0, 0)
    write_photograph(images / "deep/er/b.png", 1, 1, ".png")
    content = write_photograph(images / "deep/cut.jpg", 2, 2)
    (images / "deep/cut.jpg").write_bytes(content[:-200])
    (images / "empty.jpg").write_bytes(b"")
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.jpg").write_bytes(b"")
    (images / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    Image.new("RGB", (60_000, 1)).save(images / "thin.png")
    (images / "manifest.json").write_text("[]")  # another program's
    upright = Image.fromarray(draw_image(1, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright.rotate(90, expand=True).save(images / "turned.jpg", quality=95, exif=exif)
    upright.save(images / "upright.jpg", quality=95)
    written = predict(images, run=run)
    _, _, model = load_best_model(run)
    expected_K = probabilities(model, open_view((images / "a.jpg").read_bytes(), 32))
    row = written["rows"][str(images / "a.jpg")]

    assert {Path(path).name for path in written["rows"]} == {
        "a.jpg",
        "b.png",
        "turned.jpg",
        "upright.jpg",
    }
    assert {Path(path).name: reason for path, reason in written["bad"].items()} == {
        "cut.jpg": written["bad"][str(images / "deep/cut.jpg")],
        "empty.jpg": "empty file",
        "notes.txt": "not an image",
        "manifest.json": "not an image",
        "gone.jpg": "missing file",
        "thin.png": "too thin: its sides differ more than 100 times",
    }
    assert written["bad"][str(images / "deep/cut.jpg")].startswith("truncated")
    assert row["class"] == f"class {int(expected_K.argmax())}"
    assert row["probability"] == pytest.approx(float(expected_K.max()), abs=PROBABILITY_TOLERANCE)
    turned, straight = (
        written["rows"][str(images / f"{name}.jpg")] for name in ("turned", "upright")
    )
    assert turned["top_classes"] == straight["top_classes"]
    assert (
        written["summary"] | {"num_images": 10, "num_good": 4, "num_bad": 6} == written["summary"]
    )


@pytest.mark.ray
def test_results_are_whole_or_not_there(
    run: str, easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that breaks off deletes earlier results, and no other files."""
    out = tmp_path / "out"
    theirs = {"features/part-000000000.parquet", "features_summary.json", "summary.json"}
    theirs |= {"features_bad_images.parquet", "predictions/mine.parquet"}
    ours = {"predictions/part-000000999.parquet", "predictions_summary.json"}
    for name in theirs | ours:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"old")
    monkeypatch.setattr(datasets.passes.inference, "_execute", lambda *arguments: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        run_predict(PredictConfig(images=easy_data, out=str(out), run=run))
    left = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert left == theirs | {"predictions_bad_images.parquet"}
    assert all((out / name).read_bytes() == b"old" for name in theirs)


@pytest.mark.ray
def test_where_every_image_is_bad_no_predictions_are_promised(
    run: str, predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"no image")
    out = tmp_path / "predicted"
    run_predict(PredictConfig(images=str(images), out=str(out), run=run))

    printed = capsys.readouterr().out
    assert "1 images: 0 done, 1 bad" in printed and "Predictions:" not in printed
    assert sorted(file.name for file in out.iterdir()) == [
        "predictions_bad_images.parquet",
        "predictions_summary.json",
    ]


@pytest.mark.ray
def test_the_pretrained_head_is_kept(ray_cluster: str, tmp_path: Path) -> None:
    """The lecture's page: classify ImageNet classes with a network whose weights are a file."""
    torch.manual_seed(0)
    norm = partial(torch.nn.BatchNorm2d, momentum=None)  # takes the statistics of one batch over
    model: Any = torchvision.models.mobilenet_v2(norm_layer=norm)
    torch.nn.init.normal_(model.classifier[1].weight)
    model(torch.randn(8, 3, 64, 64))
    model.eval()
    weights = tmp_path / "mobilenet_v2.pth"
    torch.save(model.state_dict(), weights)
    config = PredictConfig(
        images="",
        out="",
        backbone="mobilenet_v2",
        normalization="imagenet",
        weights=str(weights),
        size_px=64,
    )
    network = open_network(config, keep_head=True)
    image_HWC = draw_image(0, 0, 64)[:, :64]
    computer = NetworkActor(
        ray.put(network),
        partial(to_predictions, classes=network.classes, top_k=1000),
        worker_batch_size=1,
        threads=1,
        use_gpu=False,
        compiled=False,
    )
    row = pa.table(computer(np.stack([image_HWC, image_HWC]))).to_pylist()[1]
    expected_K = probabilities(model, image_HWC)

    assert IMAGENET_CLASSES[817] == "sports car" and len(IMAGENET_CLASSES) == 1000
    assert row["class"] == IMAGENET_CLASSES[int(expected_K.argmax())]
    assert len(set(row["top_classes"])) >= 998  # crane and maillot are two classes each
    assert row["top_probabilities"] == pytest.approx(
        expected_K.sort(descending=True).values.tolist(), abs=PROBABILITY_TOLERANCE
    )


@pytest.mark.shared
@pytest.mark.ray
def test_imagenet_knows_cars(ray_cluster: str, shared_dir: Path, predict: Predict) -> None:
    written = predict(
        shared_dir / "cars" / "test" / "Audi S6 Sedan 2011",
        backbone="mobilenet_v2",
        weights=str(shared_dir / "weights" / "mobilenet_v2_imagenet.pth"),
        normalization="half",
    )
    vehicles = {
        *("sports car", "convertible", "minivan", "beach wagon", "cab", "limousine", "jeep"),
        *("racer", "pickup", "passenger car", "grille", "car wheel", "police van", "Model T"),
    }
    seen = [row["class"] for row in written["rows"].values()]

    assert len(seen) >= 30
    assert np.mean([name in vehicles for name in seen]) > 0.9


def test_columns_of_predictions() -> None:
    logits_BK = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    table = pa.table(to_predictions(logits_BK, classes=("a", "b", "c"), top_k=2))
    first, second = table.to_pylist()

    assert first["top_classes"] == ["b", "c"] and second["class"] == "a"
    total = 1 + np.exp(1) + np.exp(2)
    assert first["top_probabilities"] == pytest.approx([np.exp(2) / total, np.exp(1) / total])
    assert first["probability"] == first["top_probabilities"][0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "run is None: give either --run RUN or --backbone NAME"),
        ({"run": "r", "backbone": "resnet50"}, "run is 'r': give either"),
        ({"run": "r", "weights": "w.pth"}, "weights is 'w.pth': the run has its own"),
        ({"run": "r", "top_k": 0}, "top_k is 0: use 1 or more"),
        ({"run": "r", "batch_size": 0}, "batch_size is 0"),
        ({"run": "r", "num_workers": 0}, "num_workers is 0"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PredictConfig(images="images", out="out", **options)


def test_weights_without_imagenets_head_are_refused(tmp_path: Path) -> None:
    torch.save(build("mobilenet_v2", 20).state_dict(), tmp_path / "cars.pth")
    config = PredictConfig(
        images="images", out="out", backbone="mobilenet_v2", weights=str(tmp_path / "cars.pth")
    )

    with pytest.raises(ValueError, match=r"has no \['classifier.1.weight'\] that fits"):
        open_network(config, keep_head=True)
    assert open_network(config, keep_head=False).config.ingest.size_px == 224
    assert open_network(replace(config, size_px=96), keep_head=False).config.ingest.size_px == 96


def test_images_too_small_for_the_network_are_refused(tmp_path: Path) -> None:
    torch.save(build("lenet5", 1000).state_dict(), tmp_path / "lenet5.pth")
    config = PredictConfig(
        images="images",
        out="out",
        backbone="lenet5",
        weights=str(tmp_path / "lenet5.pth"),
        size_px=8,
    )

    with pytest.raises(ValueError, match="size_px is 8: too small for lenet5; its own size is 32"):
        open_network(config, keep_head=True)


@pytest.mark.parametrize(
    ("chosen", "validated", "remedy"),
    [
        ({"run": "runs/a b"}, True, "evaluate --run 'runs/a b' --split val`"),
        ({"run": "runs/all"}, False, "its validation images trained it"),
        ({"backbone": "lenet5"}, True, None),
    ],
)
def test_a_run_without_calibration_is_said_with_a_command_that_calibrates_it(
    chosen: dict[str, Any], validated: bool, remedy: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PredictConfig(images="photographs", out="out", **chosen)
    network = Network(
        model=torch.nn.Identity(),
        config=FinetuneConfig(data=""),
        classes=("a",),
        origin="none",
        validated=validated,
    )
    check_calibration(config, network)
    with pytest.raises(UserError, match=r"coverage is 0\.9: a set") as refused:
        check_calibration(replace(config, coverage=0.9), network)
    printed, sentence = capsys.readouterr().out, str(refused.value)

    if remedy is None:
        assert not printed and "give --run instead of --backbone" in sentence
    else:
        assert remedy in printed and remedy in sentence


@pytest.mark.parametrize(
    ("images", "out"),
    [
        ("/photographs", "/photographs/out"),
        ("/photographs/", "/photographs"),
        ("/photographs/../photographs/", "file:///photographs/out"),
    ],
)
def test_results_do_not_go_among_the_images(images: str, out: str) -> None:
    network = Network(
        model=torch.nn.Identity(), config=FinetuneConfig(data=""), classes=("a",), origin="none"
    )
    config = PredictConfig(images=images, out=out, run="none")

    with pytest.raises(ValueError, match="where results would be read as images"):
        run_inference(
            config, network, lambda outputs: {}, name="predictions", row_bytes=0, facts={}
        )
