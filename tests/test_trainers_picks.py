"""Images to label next: the least sure ones, and those that tell most."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datasets.passes.collection import list_images
from tests.support.calibration import CALIBRATION
from tests.test_datasets_collection import write_photograph
from trainers.inference import design, picks
from trainers.inference.config import PredictConfig
from trainers.inference.design import pick_by_design, to_units
from trainers.inference.picks import WithFeatures, rank, write_picks
from trainers.inference.predict import run_predict, to_predictions
from trainers.networks.backbones import build, find

CLASSES = ("a", "b", "c")
pytestmark = pytest.mark.usefixtures("one_thread")


def table_of(margins: list[float], features_ND: np.ndarray) -> pa.Table:
    logits_NK = torch.tensor([[(1 + m) / 2, (1 - m) / 2, 1e-9] for m in margins]).log()
    outputs = torch.cat([logits_NK, torch.tensor(features_ND, dtype=torch.float32)], 1)
    return pa.table(to_predictions(outputs, classes=CLASSES, top_k=2))


def pick_densely(features_ND: np.ndarray, weights_N: np.ndarray, num_picks: int) -> list[int]:
    """The design as it is written down, with K of N x N."""
    units_ND = to_units(features_ND).astype(float)
    kernel_NN = units_ND @ units_ND.T * np.sqrt(np.outer(weights_N, weights_N))
    found: list[int] = []
    for _ in range(num_picks):
        gains_N = (kernel_NN**2).sum(0) / (kernel_NN.diagonal() + 1)
        gains_N[found] = -1
        pick = int(gains_N.argmax())
        found.append(pick)
        kernel_NN -= np.outer(kernel_NN[pick], kernel_NN[pick]) / (kernel_NN[pick, pick] + 1)
    return found


@pytest.mark.parametrize(("num_images", "num_features"), [(300, 40), (40, 200), (1, 3)])
def test_the_design_is_that_of_the_whole_kernel(
    num_images: int, num_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(design, "BLOCK", 16)
    rng = np.random.default_rng(num_images)
    features_ND = rng.normal(3.0, rng.gamma(1.0, 9.0, num_features), (num_images, num_features))
    features_ND[:, -1] = 7.1  # a feature that tells nothing
    weights_N, num_picks = rng.random(num_images), min(num_images, 30)
    given_ND = features_ND.copy()

    found = pick_by_design(features_ND, weights_N, num_picks)
    assert found == pick_densely(features_ND, weights_N, num_picks)
    assert (features_ND == given_ND).all()


def test_units() -> None:
    features_ND = np.array([[1.0, 0.0, 3.0], [3.0, 0.0, 3.0], [2.0, 0.0, 3.0]], np.float16)

    assert to_units(features_ND).tolist() == [[-1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_uncertainty_takes_the_smallest_margins_and_diversity_no_two_alike() -> None:
    rng = np.random.default_rng(0)
    margins = [0.01 * number for number in range(40)]
    groups_N = np.arange(40) % 4  # ten images of each of four directions
    features_ND = 5 * np.eye(8)[groups_N] + 0.01 * rng.normal(size=(40, 8))
    table = table_of(margins, features_ND)

    assert rank(table, "uncertainty", 3).tolist() == [0, 1, 2]
    assert rank(table, "uncertainty", 99).tolist() == list(range(40))
    assert sorted(groups_N[rank(table, "diversity", 4)]) == [0, 1, 2, 3]


def test_images_that_are_the_same_are_picked_once() -> None:
    features_ND = np.repeat(np.random.default_rng(0).normal(size=(4, 8)), 3, axis=0)
    picks_P = rank(table_of([0.1] * 12, features_ND), "diversity", 9)

    assert sorted(picks_P // 3) == [0, 1, 2, 3]


def test_images_the_network_is_sure_of_come_last() -> None:
    features_ND = np.random.default_rng(0).normal(size=(6, 8))
    table = table_of([1.0, 0.2, 1.0, 0.2, 0.2, 1.0], features_ND)
    picks_P = rank(table, "diversity", 6).tolist()

    assert sorted(picks_P[:3]) == [1, 3, 4] and sorted(picks_P[3:]) == [0, 2, 5]


def test_of_a_large_pool_the_least_sure_images_are_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picks, "MOST_CANDIDATES", 5)
    rng = np.random.default_rng(0)
    margins_N, features_ND = rng.permutation(np.linspace(0, 1, 40)), rng.normal(size=(40, 8))
    table = table_of(margins_N.tolist(), features_ND)
    least_sure_N = np.argsort(margins_N)
    parts = [str(tmp_path / f"{start}.parquet") for start in range(0, 40, 8)]
    for number, part in enumerate(parts):
        pq.write_table(table.slice(8 * number, 8), part)

    assert sorted(rank(table, "diversity", 5)) == sorted(least_sure_N[:5])
    kept, num_images = picks.read_candidates(parts, 5)
    assert num_images == 40 and 5 <= len(kept) <= 10
    chosen = kept.take(rank(kept, "diversity", 5))
    expected = table.take(rank(table, "diversity", 5))
    assert chosen["impurity"].to_pylist() == expected["impurity"].to_pylist()
    assert len(rank(table, "diversity", 9)) == 9


def test_impurity_is_of_all_classes_after_calibration() -> None:
    outputs = torch.tensor([[0.0, 2.0, 4.0, 1.5, -2.5]])  # three logits, two features
    table = pa.table(to_predictions(outputs, classes=CLASSES, top_k=2, calibration=CALIBRATION))
    parts = np.exp([0.0, 1.0, 2.0])

    assert table["impurity"].to_pylist() == pytest.approx([1 - ((parts / parts.sum()) ** 2).sum()])
    assert table["features"].to_pylist() == [[1.5, -2.5]]


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "lenet5", "convnext_tiny", "densenet121"])
def test_features_come_after_the_logits(backbone: str) -> None:
    model = build(backbone, 3).eval()
    images_BCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits_BK = model(images_BCHW)
        outputs = WithFeatures(model, backbone)(images_BCHW)
    features_BD = outputs[:, 3:]
    head = [m for m in model.get_submodule(find(backbone).head).modules()
            if isinstance(m, torch.nn.Linear)][-1]  # fmt: skip

    torch.testing.assert_close(outputs[:, :3], logits_BK)
    torch.testing.assert_close(head(features_BD), logits_BK)


def test_the_list_and_its_page(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for number in range(3):
        write_photograph(images / f"{number}.jpg", number, number)
    (images / "<b>.jpg").write_text("no image")
    collection = list_images(str(images))
    paths = collection.references["path"].to_pylist()
    table = table_of([0.3, 0.1, 0.2, 0.4], np.eye(4)).append_column("path", pa.array(paths))
    part = str(tmp_path / "part.parquet")
    pq.write_table(table, part)

    assert write_picks(collection, [part], str(out), by="uncertainty", num_picks=4) == 4
    rows = (out / "picks.csv").read_text().splitlines()
    assert rows[0] == "rank,path,class,margin"
    assert rows[1].split(",")[0::3] == ["1", "0.1000"]
    page = (out / "picks.html").read_text()
    assert page.count("data:image/webp") == 3 and "<b>.jpg" not in page


@pytest.mark.ray
def test_predict_writes_the_list_by_diversity(ray_cluster: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build("mobilenet_v2", 1000).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # takes the statistics of one batch over
    network(torch.randn(8, 3, 32, 32))
    weights, images, out = tmp_path / "weights.pth", tmp_path / "images", tmp_path / "out"
    torch.save(network.state_dict(), weights)
    for number in range(12):
        write_photograph(images / f"{number}.jpg", number % 3, number % 6)  # each twice
    options = {"images": str(images), "out": str(out), "num_workers": 2, "top_k": 2}
    run_predict(
        PredictConfig(
            backbone="mobilenet_v2",
            weights=str(weights),
            normalization="imagenet",
            size_px=32,
            rank_by="diversity",
            num_picks=9,
            **options,
        )
    )
    table = pq.read_table(out / "predictions")
    with (out / "picks.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]

    assert table["features"].type.list_size == 1280
    top_N2 = np.array(table["top_probabilities"].to_pylist())
    impurities_N = table["impurity"].to_numpy()
    assert (impurities_N < 1 - (top_N2**2).sum(1)).all() and (impurities_N > 0).all()
    assert paths == table["path"].take(rank(table, "diversity", 9)).to_pylist()
    assert len({int(Path(path).stem) % 6 for path in paths}) == len(paths) == 6
