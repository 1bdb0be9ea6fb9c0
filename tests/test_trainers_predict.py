"""Predictions equal evaluation's, every image is told of, and a pretrained head names classes."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import torchvision
from PIL import Image

import datasets.inference
from datasets.augment import view
from datasets.collection import list_images
from datasets.images import BadImage
from datasets.inference import load_views, open_view
from tests.conftest import draw_image, flip_byte
from trainers import launch
from trainers.backbones import build
from trainers.config import ClusterConfig, FinetuneConfig, IngestConfig, ModelConfig, OptimConfig
from trainers.evaluate import evaluate
from trainers.inference import IMAGENET_CLASSES, Computer, Network, open_network, run_inference
from trainers.predict import PredictConfig, run_predict, to_predictions
from trainers.runs import load_best_model

PROBABILITY_TOLERANCE = 1e-5
"""Batches of another size add up in another order."""

Predict = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(ray_cluster: str, easy_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of a MobileNetV2 on easy images of 32 pixels."""
    out = str(tmp_path_factory.mktemp("run") / "run")
    launch.fit_in_process(
        FinetuneConfig(
            data=easy_data,
            out=out,
            epochs=2,
            global_batch_size=16,
            ingest=IngestConfig(size_px=32, policy="light"),
            model=ModelConfig(backbone="mobilenet_v2", init="he", freeze_batchnorm=True),
            optim=OptimConfig(learning_rate=1e-3),
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
        bad = pq.read_table(out / "bad_images.parquet").to_pylist()
        return {
            "rows": {row["path"]: row for row in rows},
            "bad": {row["path"]: row["reason"] for row in bad},
            "summary": json.loads((out / "summary.json").read_bytes()),
        }

    return call


def write_photograph(path: Path, label: int, number: int, suffix: str = ".jpg") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = cv2.imencode(suffix, draw_image(label, number)[..., ::-1])[1].tobytes()
    path.write_bytes(content)
    return content


@torch.no_grad()
def probabilities(model: torch.nn.Module, image_HWC: np.ndarray) -> torch.Tensor:
    """What a network makes of one image by plain torch, its pixels normalized by hand."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return model(((torch.tensor(image_HWC) / 255 - mean) / std).permute(2, 0, 1)[None]).softmax(1)[
        0
    ]


@pytest.mark.ray
def test_predictions_on_the_test_split_equal_evaluation(
    run: str, easy_data: str, predict: Predict
) -> None:
    """Through the stream and through Ray Data's actors: the same numbers."""
    expected = evaluate(run)
    told = predict(easy_data, run=run, top_k=3, batch_size=5, num_workers=2)
    rows = {path: row for path, row in told["rows"].items() if path.startswith("test/")}
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
    assert -np.log(of_label).mean() == pytest.approx(expected["test/loss"], rel=1e-4)
    assert sum(own[0].values()) == pytest.approx(1, abs=1e-6)
    assert (
        len(told["rows"]) == told["summary"]["num_good"] == 78 and told["summary"]["num_bad"] == 0
    )
    assert told["bad"] == {}


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
    upright = Image.fromarray(draw_image(1, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    upright.rotate(90, expand=True).save(images / "turned.jpg", quality=95, exif=exif)
    upright.save(images / "upright.jpg", quality=95)
    told = predict(images, run=run)
    _, _, model = load_best_model(run)
    expected_K = probabilities(model, open_view((images / "a.jpg").read_bytes(), 32))
    row = told["rows"][str(images / "a.jpg")]

    assert {Path(path).name for path in told["rows"]} == {
        "a.jpg",
        "b.png",
        "turned.jpg",
        "upright.jpg",
    }
    assert {Path(path).name: reason for path, reason in told["bad"].items()} == {
        "cut.jpg": told["bad"][str(images / "deep/cut.jpg")],
        "empty.jpg": "empty file",
        "notes.txt": "not an image",
    }
    assert told["bad"][str(images / "deep/cut.jpg")].startswith("truncated")
    assert row["class"] == f"class {int(expected_K.argmax())}"
    assert row["probability"] == pytest.approx(float(expected_K.max()), abs=PROBABILITY_TOLERANCE)
    turned, straight = (told["rows"][str(images / f"{name}.jpg")] for name in ("turned", "upright"))
    assert turned["top_classes"] == straight["top_classes"]
    assert told["summary"] | {"num_images": 7, "num_good": 4, "num_bad": 3} == told["summary"]


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


@pytest.mark.ray
def test_results_are_whole_or_not_there(
    run: str, easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that breaks off leaves nothing of what stood there, but for the files of others."""
    folder = tmp_path / "predicted" / "predictions"
    folder.mkdir(parents=True)
    for name in ("part-000000999.parquet", "mine.parquet"):
        (folder / name).write_bytes(b"old")
    (folder.parent / "summary.json").write_text("{}")
    monkeypatch.setattr(datasets.inference, "_execute", lambda *arguments: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        run_predict(PredictConfig(images=easy_data, out=str(folder.parent), run=run))
    assert [file.name for file in folder.iterdir()] == ["mine.parquet"]
    assert not (folder.parent / "summary.json").exists()


@pytest.mark.ray
def test_the_pretrained_head_is_kept(ray_cluster: str, tmp_path: Path) -> None:
    """The lecture's page: classify ImageNet classes with ResNet50, its weights from a file."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    torch.nn.init.normal_(model.fc.weight)
    torch.save(model.state_dict(), tmp_path / "resnet50.pth")
    config = PredictConfig(
        images="", out="", backbone="resnet50", weights=str(tmp_path / "resnet50.pth"), size_px=64
    )
    network = open_network(config, keep_head=True)
    image_HWC = draw_image(0, 0, 64)[:, :64]
    computer = Computer(
        ray.put(network),
        partial(to_predictions, classes=network.classes, top_k=1000),
        worker_batch_size=1,
        threads=1,
        use_gpu=False,
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
    told = predict(
        shared_dir / "cars" / "test" / "Audi S6 Sedan 2011",
        backbone="mobilenet_v2",
        weights=str(shared_dir / "weights" / "mobilenet_v2_imagenet.pth"),
        normalization="half",
    )
    vehicles = {
        *("sports car", "convertible", "minivan", "beach wagon", "cab", "limousine", "jeep"),
        *("racer", "pickup", "passenger car", "grille", "car wheel", "police van", "Model T"),
    }
    seen = [row["class"] for row in told["rows"].values()]

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


def test_a_shard_whose_bytes_changed_is_told_by_image(
    write_data: Callable[..., str],
) -> None:
    data = write_data(train=8, val=8, test=20)
    flip_byte(Path(data) / "test" / "part-00000.parquet", 9, at=-30)
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


def test_images_that_are_not_there(tmp_path: Path) -> None:
    write_photograph(tmp_path / "both" / "a.jpg", 0, 0)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")

    with pytest.raises(ValueError, match="no file lies there"):
        list_images(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="has the columns x"):
        list_images(str(tmp_path / "x.parquet"))
    with pytest.raises(ValueError, match="it holds int64"):
        list_images(str(tmp_path / "x.parquet"), image_column="x")
    with pytest.raises(ValueError, match="it holds Parquet files and"):
        list_images(str(tmp_path))
    with pytest.raises(ValueError, match="only a prepared data set has splits"):
        list_images(str(tmp_path / "both"), split="test")


def test_results_do_not_go_among_the_images() -> None:
    network = Network(
        model=torch.nn.Identity(), config=FinetuneConfig(data=""), classes=("a",), origin="none"
    )
    config = PredictConfig(images="/photographs", out="/photographs/out", run="none")

    with pytest.raises(ValueError, match="where results would pass for images"):
        run_inference(config, network, lambda outputs: {}, name="predictions", facts={})
