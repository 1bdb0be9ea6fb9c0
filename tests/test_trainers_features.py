"""Features are what the same layers give by hand, of any stage, and end in Parquet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision

from datasets.inference import open_view
from trainers.backbones import BACKBONES, build
from trainers.features import (
    FeaturesConfig,
    Pooling,
    StageFeatures,
    find_stage,
    run_features,
    to_features,
)

TOLERANCE = 1e-5
SIZE_PX = 48


@pytest.fixture(scope="module")
def images_BCHW() -> torch.Tensor:
    return torch.randn(2, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def extract(
    model: torch.nn.Module, backbone: str, stage: str, pooling: Pooling, images_BCHW: torch.Tensor
) -> torch.Tensor:
    return StageFeatures(model, find_stage(backbone, stage)[1], pooling)(images_BCHW)


def resnet50_by_hand(model: Any, images_BCHW: torch.Tensor, last: str) -> torch.Tensor:
    maps = model.maxpool(model.relu(model.bn1(model.conv1(images_BCHW))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        maps = model.get_submodule(name)(maps)
        if name == last:
            break
    return maps


@pytest.mark.parametrize("stage", ["layer2", "layer4"])
def test_resnet50_equals_the_layers_by_hand(stage: str, images_BCHW: torch.Tensor) -> None:
    model = build("resnet50", 10).eval()
    with torch.no_grad():
        maps = resnet50_by_hand(model, images_BCHW, stage)
    expected = {"avg": maps.mean((2, 3)), "max": maps.amax((2, 3)), "none": maps.reshape(2, -1)}

    for pooling, features_BD in expected.items():
        actual_BD = extract(model, "resnet50", stage, pooling, images_BCHW)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(actual_BD, features_BD, rtol=TOLERANCE, atol=TOLERANCE)


def test_vgg16_features_and_any_stage_of_vgg19(images_BCHW: torch.Tensor) -> None:
    """The lecture's page: block5 of VGG16 before its dense layers, block4_pool of VGG19."""
    vgg16: Any
    vgg19: Any
    vgg16, vgg19 = (torchvision.models.get_model(name).eval() for name in ("vgg16", "vgg19"))
    with torch.no_grad():
        block5 = vgg16.features(images_BCHW).reshape(2, -1)
        block4_pool = vgg19.features[:28](images_BCHW)
        fc2 = vgg19.classifier[:6](vgg19.avgpool(vgg19.features(images_BCHW)).flatten(1))

    actual_BD = extract(vgg16, "vgg16", "block5", "none", images_BCHW)
    torch.testing.assert_close(actual_BD, block5)
    actual_BD = extract(vgg19, "vgg19", "block4", "avg", images_BCHW)
    torch.testing.assert_close(actual_BD, block4_pool.mean((2, 3)))
    for pooling in ("avg", "max", "none"):  # vectors already
        torch.testing.assert_close(extract(vgg19, "vgg19", "dense", pooling, images_BCHW), fc2)


def test_nothing_after_the_stage_is_computed_and_the_network_stays_as_it_was(
    images_BCHW: torch.Tensor,
) -> None:
    model = build("resnet50", 10).eval()
    called: list[str] = []
    for name, module in model.named_children():
        module.register_forward_hook(lambda *arguments, name=name: called.append(name))
    extract(model, "resnet50", "layer1", "avg", images_BCHW)

    assert called == ["conv1", "bn1", "relu", "maxpool"] or called[-1] == "layer1"
    assert "layer2" not in called
    assert model(images_BCHW).shape == (2, 10)


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "inception_v3", "lenet5"])
def test_every_stage_of_other_families_can_be_reached(name: str) -> None:
    model = build(name, 10).eval()
    size_px = (
        80 if name == "inception_v3" else BACKBONES[name].size_px // 2 if name != "lenet5" else 32
    )
    image_1CHW = torch.zeros(1, 3, size_px, size_px)

    for stage, _ in BACKBONES[name].stages:
        features = extract(model, name, stage, "avg", image_1CHW)
        assert features.ndim == 2 and features.shape[1] >= 6


def test_a_stage_by_name_number_and_default() -> None:
    assert find_stage("resnet50", None) == ("layer4", "layer4")
    assert find_stage("resnet50", "1") == ("stem", "bn1")
    assert find_stage("resnet50", "layer2") == find_stage("resnet50", "3")
    for wrong in ("0", "6", "block4"):
        with pytest.raises(ValueError, match=f"stage is '{wrong}': resnet50 has stem, layer1"):
            find_stage("resnet50", wrong)


def test_half_precision_halves_the_column() -> None:
    features_BD = torch.tensor([[1.0, 0.1, -2.0], [0.0, 3.0, 4.0]])
    column = to_features(features_BD, half=True)["features"]

    assert column.type == pa.list_(pa.float16(), 3)
    np.testing.assert_array_equal(column.to_pylist(), features_BD.half().numpy())
    assert to_features(features_BD, half=False)["features"].type == pa.list_(pa.float32(), 3)


@pytest.mark.ray
def test_features_of_a_data_set_to_parquet(
    ray_cluster: str, easy_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights = build("mobilenet_v2", 7).state_dict()  # of another head: features don't need it
    torch.save(weights, tmp_path / "weights.pth")
    run_features(
        FeaturesConfig(
            images=easy_data,
            split="test",
            out=str(tmp_path / "out"),
            backbone="mobilenet_v2",
            weights=str(tmp_path / "weights.pth"),
            normalization="half",
            size_px=32,
            stage="2",
        )
    )
    rows = pq.read_table(tmp_path / "out" / "features").to_pylist()
    summary = json.loads((tmp_path / "out" / "summary.json").read_bytes())
    model: Any = build("mobilenet_v2", 7).eval()
    model.load_state_dict(weights)
    stored = pq.read_table(f"{easy_data}/test").to_pylist()
    jpeg = next(row["image"] for row in stored if row["path"] == rows[3]["path"])
    image_HWC = open_view(jpeg, 32)
    with torch.no_grad():
        image_1CHW = ((torch.tensor(image_HWC) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        expected_D = model.features[:4](image_1CHW).mean((2, 3))[0]

    assert {row["path"] for row in rows} == {row["path"] for row in stored}
    assert rows[3]["features"] == pytest.approx(expected_D.tolist(), abs=TOLERANCE)
    assert summary["stage"] == "stage1" and summary["num_features"] == len(expected_D) == 24
    assert "24 of stage1 for each of 13 images" in capsys.readouterr().out
