"""Images to label next: the least sure ones, and different ones of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datasets.passes.collection import list_images
from tests.test_datasets_collection import write_photograph
from trainers.inference.picks import WithFeatures, rank, write_picks
from trainers.inference.predict import to_predictions
from trainers.networks.backbones import build, find

CLASSES = ("a", "b", "c")
pytestmark = pytest.mark.usefixtures("one_thread")


def table_of(margins: list[float], features_ND: np.ndarray) -> pa.Table:
    logits_NK = torch.tensor([[(1 + m) / 2, (1 - m) / 2, 1e-9] for m in margins]).log()
    outputs = torch.cat([logits_NK, torch.tensor(features_ND, dtype=torch.float32)], 1)
    return pa.table(to_predictions(outputs, classes=CLASSES, top_k=2))


def test_uncertainty_takes_the_smallest_margins_and_diversity_no_two_alike() -> None:
    rng = np.random.default_rng(0)
    margins = [0.01 * number for number in range(40)]
    groups = np.arange(40) % 4  # ten images of each of four directions
    features_ND = 5 * np.eye(8)[groups] + 0.01 * rng.normal(size=(40, 8))
    table = table_of(margins, features_ND)

    assert rank(table, "uncertainty", 3).tolist() == [0, 1, 2]
    for seed in range(5):
        assert sorted(groups[rank(table, "diversity", 4, seed)]) == [0, 1, 2, 3]
    assert rank(table, "diversity", 99).tolist() == list(range(40))


def test_images_that_are_the_same_are_picked_once() -> None:
    table = table_of([0.1] * 8, np.ones((8, 3)))

    assert 1 <= len(set(rank(table, "diversity", 2).tolist())) == len(rank(table, "diversity", 2))


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
