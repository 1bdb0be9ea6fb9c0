"""The zoo's table: depth against the literature, sizes against torchvision's, files and errors."""

import csv
import io
import json

import pytest
import torch
from torch import nn
from torchvision import models

from cluster.io import storage
from tests.test_trainers_backbones import KERAS_TABLE
from trainers.__main__ import parse
from trainers.networks import measure, zoo
from trainers.networks.backbones import BACKBONES
from trainers.networks.config import ZooConfig
from trainers.networks.keras_table import KERAS_TOP1, LECTURE, OTHERS
from trainers.networks.measure import (
    count_bytes,
    count_parameters,
    measure_depth,
    on_meta,
    time_step,
)
from trainers.networks.zoo import ZooRow, describe, run_zoo

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = ("lenet5", "mobilenet_v2")


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("lenet5", 5),
        ("alexnet", 8),
        ("vgg16", 16),
        ("mobilenet_v1", 28),
        ("resnet50", 50),
        ("resnet101_v2", 101),
        ("densenet121", 121),
        ("inception_v3", 48),
    ],
)
def test_depth_is_the_number_in_the_name(name: str, depth: int):
    assert measure_depth(on_meta(name, 5), BACKBONES[name].size_px) == depth


def test_depth_follows_the_longest_way():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            long = self.convs[2](self.convs[1](self.convs[0](x)).relu_())
            return torch.cat([self.convs[3](x), long.clone()], 1).mean((2, 3))

    with torch.device("meta"):
        assert measure_depth(Fork().eval(), 8) == 3


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "efficientnet_b0", "convnext_tiny"])
def test_size_and_parameters_are_those_torchvision_states(name: str):
    meta = models.get_model_weights(name)["DEFAULT"].meta
    model = on_meta(name, 1000)
    assert count_parameters(model) == meta["num_params"]
    assert count_bytes(model) / 2**20 == pytest.approx(meta["_file_size"], rel=0.01)


def test_the_table_of_keras_is_whole():
    assert set(KERAS_TOP1) == KERAS_TABLE
    assert all(56 < top1 < 90 for top1 in KERAS_TOP1.values())


def test_a_row_counts_the_head_of_the_given_classes():
    row = describe("resnet50", ZooConfig(classes=196, time=False))
    assert row.parameters == 23_909_636
    assert (row.depth, row.stages, row.size_px, row.source) == (50, 5, 224, "torchvision")
    assert (row.weights, row.top1, row.top5) == ("IMAGENET1K_V2", 80.858, 95.434)
    assert row.keras_top1 == 74.9 and row.cpu_ms is None and row.gpu_ms is None


def test_what_nobody_published_stays_empty():
    row = describe("lenet5", ZooConfig(time=False))
    assert (row.weights, row.top1, row.top5) == (None, None, None)


def test_a_step_is_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "MIN_S", 0.0)
    small_ms = time_step("lenet5", 10, (1, 3, 32, 32))["cpu"]
    assert 0 < small_ms < time_step("lenet5", 10, (8, 3, 256, 256))["cpu"]


def test_the_command_prints_a_table_and_writes_csv(tmp_path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "zoo")
    config = parse(["zoo", "--backbones", *FEW, "--classes", "20", "--no-time", "--out", out])
    assert config == ZooConfig(backbones=FEW, classes=20, time=False, out=out)
    run_zoo(config)
    printed = capsys.readouterr().out
    assert "mobilenet_v2  torchvision" in printed and "2,249,492" in printed
    assert "CPU ms" not in printed
    rows = list(csv.DictReader(io.StringIO(storage.read_bytes(f"{out}/zoo.csv").decode())))
    assert [row["name"] for row in rows] == list(FEW)
    assert rows[1]["parameters"] == "2249492" and rows[0]["top1"] == ""


def test_the_table_of_the_lecture_has_its_figures_beside_ours(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert len(LECTURE) == 19 and set(LECTURE) | set(OTHERS) == KERAS_TABLE
    few = {name: LECTURE[name] for name in ("vgg16", "resnet50", "nasnet_mobile")}
    monkeypatch.setattr(zoo, "LECTURE", few)  # all of them take a while
    run_zoo(parse(["zoo", "--lecture", "--no-time", "--out", str(tmp_path)]))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1].startswith("vgg16 528 528 71.3 71.6 90.1 90.4 138.4 138.4 16 16 69.5 - ")
    assert lines[2].startswith("resnet50 98 98 74.9 80.9 92.1 95.4 25.6 25.6 107 50 58.2 - ")
    assert lines[3] == "nasnet_mobile 23 20 74.4 - 91.9 - 5.3 5.3 389 98 27.0 - 6.7 -"
    content = storage.read_bytes(f"{tmp_path}/lecture.csv").decode()
    first = next(csv.DictReader(io.StringIO(content)))
    assert (first["lecture_cpu_ms"], first["cpu_ms"], first["lecture_size_mib"]) == (
        "69.5",
        "",
        "528",
    )


def test_json_is_all_that_is_printed(tmp_path, capsys: pytest.CaptureFixture[str]):
    run_zoo(ZooConfig(backbones=FEW, time=False, json=True, out=str(tmp_path)))
    rows = [ZooRow(**row) for row in json.loads(capsys.readouterr().out)]
    assert [row.name for row in rows] == list(FEW)


def test_a_pattern_lists_networks_of_timm_with_license_and_url(
    tmp_path, capsys: pytest.CaptureFixture[str]
):
    run_zoo(ZooConfig(backbones=("test_vit*.r160_in1k",), time=False, json=True, out=str(tmp_path)))
    rows = [ZooRow(**row) for row in json.loads(capsys.readouterr().out)]
    names = {row.name for row in rows}
    assert {"test_vit.r160_in1k", "test_vit3.r160_in1k"} <= names
    row = next(row for row in rows if row.name == "test_vit.r160_in1k")
    assert (row.license, row.size_px, row.stages) == ("apache-2.0", 160, 7)
    assert (
        row.url == "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    )
    assert 0 < row.gflops < 0.2
    with pytest.raises(ValueError, match=r"backbones is 'vit_\*nothing': no network of timm"):
        run_zoo(ZooConfig(backbones=("vit_*nothing",), out=str(tmp_path)))


def test_what_a_pattern_matches_but_cannot_freeze_is_left_out_and_said(
    tmp_path, capsys: pytest.CaptureFixture[str]
):
    run_zoo(ZooConfig(backbones=("poolformer_s12.*", "lenet5"), time=False, out=str(tmp_path)))
    printed = capsys.readouterr()
    assert "lenet5" in printed.out and "poolformer_s12.sail_in1k" in printed.err
    assert "timm does not group its parameters" in " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, r"classes is 0: use 1 or more"),
        ({"batch_size": 0}, r"batch_size is 0: use 1 or more"),
        (
            {"lecture": True, "backbones": ("lenet5",)},
            r"backbones is \('lenet5',\): --lecture prints",
        ),
        ({"backbones": ("resnet51",)}, r"model\.backbone is 'resnet51': choose from resnet50"),
    ],
)
def test_bad_values_are_named(options: dict[str, object], message: str, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_zoo(ZooConfig(**options, out=str(tmp_path)))  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
