"""Features are what the same layers give by hand, of any stage, and end in Parquet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch

from datasets.passes.inference import open_view
from trainers.inference.features import (
    FeaturesConfig,
    Pooling,
    StageFeatures,
    find_stage,
    open_stage,
    pool,
    run_features,
    to_features,
)
from trainers.networks.backbones import BACKBONES, build
from trainers.step.settings import step_settings

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5
SIZE_PX = 32
OF_EACH_FAMILY = {
    **{"lenet5": 32, "alexnet": 64, "resnet50": 32, "mobilenet_v2": 32, "efficientnet_b0": 32},
    **{"convnext_tiny": 32, "densenet121": 32, "inception_v3": 80, "resnet50_v2": 32},
    **{"mobilenet_v1": 32, "efficientnet_v2_b0": 32, "xception": 48, "nasnet_large": 32},
    **{"mobilenet_v3_small": 32, "nasnet_mobile": 32},
}
"""With the size to try it at; VGG has a test of its own."""


@pytest.fixture(scope="module")
def images_BCHW() -> torch.Tensor:
    return torch.randn(2, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0))


def draw(model: Any) -> Any:
    """Give a network of the meta device tensors, quicker than torch draws them."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.to_empty(device="cpu").state_dict().values():
        if tensor.ndim > 1:
            bound = (6 / tensor[0].numel()) ** 0.5  # signals keep their size
            tensor.uniform_(-bound, bound, generator=generator)
        elif tensor.is_floating_point():
            tensor.uniform_(0.2, 1, generator=generator)
    return model.eval()


def network(name: str) -> Any:
    with torch.device("meta"):
        if name == "nasnet_large":  # a narrow one: 89 million weights take their time
            narrow: dict[str, Any] = {"stem_size": 8, "num_features": 192}
            return draw(timm.create_model("nasnetalarge", num_classes=3, **narrow))
        return draw(build(name, 3))


@torch.no_grad()
def extract(
    model: torch.nn.Module, backbone: str, stage: str, pooling: Pooling, images_BCHW: torch.Tensor
) -> torch.Tensor:
    return StageFeatures(model, backbone, stage, pooling)(images_BCHW)


@torch.no_grad()
def test_resnet50_equals_the_layers_by_hand(images_BCHW: torch.Tensor) -> None:
    model = network("resnet50")
    stem = model.maxpool(model.relu(model.bn1(model.conv1(images_BCHW))))
    layer2 = model.layer2(model.layer1(stem))
    for stage, maps in (("stem", stem), ("layer2", layer2)):
        expected = {"avg": maps.mean((2, 3)), "max": maps.amax((2, 3)), "none": maps.flatten(1)}
        for pooling, features_BD in expected.items():
            actual_BD = extract(model, "resnet50", stage, pooling, images_BCHW)  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(actual_BD, features_BD, rtol=TOLERANCE, atol=TOLERANCE)


@torch.no_grad()
def test_vgg19_before_its_dense_layers_and_after(images_BCHW: torch.Tensor) -> None:
    """The lecture's page: block5 as Keras has it without its top, and block4_pool of VGG19."""
    model: Any
    with torch.device("meta"):  # dense layers as in the paper would have 120 million weights
        model = build("vgg19", 3)
        model.classifier[0] = torch.nn.Linear(512 * 7 * 7, 8)
        model.classifier[3], model.classifier[6] = torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)
    maps = draw(model).features(images_BCHW)
    block4_pool = model.features[:28](images_BCHW)
    fc2 = model.classifier[:6](model.avgpool(maps).flatten(1))

    actual_BD = extract(model, "vgg19", "block5", "none", images_BCHW)
    torch.testing.assert_close(actual_BD, maps.flatten(1))
    actual_BD = extract(model, "vgg19", "block4", "avg", images_BCHW)
    torch.testing.assert_close(actual_BD, block4_pool.mean((2, 3)))
    for pooling in ("avg", "max", "none"):  # vectors already
        torch.testing.assert_close(extract(model, "vgg19", "dense", pooling, images_BCHW), fc2)


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_the_last_stage_is_what_the_head_sees(name: str) -> None:
    """Activations between the last module and the average count, wherever the network has them."""
    model, size_px, seen = network(name), OF_EACH_FAMILY[name], []
    image_1CHW = torch.randn(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    stages = [stage for stage, _ in BACKBONES[name].stages]
    of_stages = [extract(model, name, stage, "avg", image_1CHW) for stage in stages]
    head = model.get_submodule(BACKBONES[name].head)
    head.register_forward_pre_hook(lambda module, inputs: seen.append(pool(inputs[0], "avg")))
    with torch.no_grad():
        model(image_1CHW)

    assert all(features.ndim == 2 and features.shape[1] >= 6 for features in of_stages)
    assert of_stages[-1].std() > 1e-3
    torch.testing.assert_close(of_stages[-1], seen[0], rtol=1e-4, atol=TOLERANCE)
    if name.startswith("nasnet"):
        assert min(float(features.min()) for features in of_stages) >= 0


@torch.no_grad()
def test_lenet5_has_its_tanh(images_BCHW: torch.Tensor) -> None:
    model = network("lenet5")
    actual_BD = extract(model, "lenet5", "conv1", "none", images_BCHW)
    torch.testing.assert_close(actual_BD, model.conv1(images_BCHW).tanh().flatten(1))


def test_nothing_after_the_stage_is_computed_and_the_network_stays_as_it_was(
    images_BCHW: torch.Tensor,
) -> None:
    model = network("resnet50")
    called: list[str] = []
    for name, module in model.named_children():
        module.register_forward_hook(lambda *arguments, name=name: called.append(name))
    extract(model, "resnet50", "layer1", "avg", images_BCHW)

    # The last one's own hook comes after the one that stops.
    assert called == ["conv1", "bn1", "relu", "maxpool", "layer1"]
    assert model(images_BCHW).shape == (2, 3)


def test_a_stage_by_name_number_and_default() -> None:
    assert find_stage("resnet50", None) == "layer4"
    assert find_stage("resnet50", "1") == "stem"
    assert find_stage("resnet50", "layer2") == find_stage("resnet50", "3") == "layer2"
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
    config = FeaturesConfig(
        images=easy_data,
        split="test",
        out=str(tmp_path / "out"),
        backbone="mobilenet_v2",
        weights=str(tmp_path / "weights.pth"),
        normalization="half",
        size_px=32,
        stage="2",
    )
    run_features(config)
    of_gpus = step_settings(open_stage(config)[0].config, torch.device("cuda"))
    rows = pq.read_table(tmp_path / "out" / "features").to_pylist()
    summary = json.loads((tmp_path / "out" / "features_summary.json").read_bytes())
    model: Any = build("mobilenet_v2", 7).eval()
    model.load_state_dict(weights)
    stored = pq.read_table(f"{easy_data}/test").to_pylist()
    jpeg = next(row["image"] for row in stored if row["path"] == rows[3]["path"])
    image_HWC = open_view(jpeg, 32)
    with torch.no_grad():
        image_1CHW = ((torch.tensor(image_HWC) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        expected_D = model.features[:4](image_1CHW).mean((2, 3))[0]

    assert of_gpus.autocast_dtype is None  # all digits
    assert {row["path"] for row in rows} == {row["path"] for row in stored}
    assert rows[3]["features"] == pytest.approx(expected_D.tolist(), abs=TOLERANCE)
    assert summary["stage"] == "stage1" and summary["num_features"] == len(expected_D) == 24
    assert "24 of stage1 for each of 13 images" in capsys.readouterr().out
