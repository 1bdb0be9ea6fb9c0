"""Transformers: recipe by family, stochastic depth, LoRA, and all that must hold for a tiny ViT."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.layers.drop import DropPath
from torch import nn

from cluster.config import ClusterConfig
from cluster.io import storage
from datasets.config import IngestConfig
from datasets.manifest_file import read_manifest
from tests.support.small import small_training
from tests.support.training import train_here, train_in_workers
from trainers.checks import check
from trainers.config import (
    AUTO,
    ComputeConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
)
from trainers.export.config import ExportConfig
from trainers.export.export import export
from trainers.loop import training
from trainers.networks.backbones import build, find
from trainers.networks.family import is_transformer, suit
from trainers.networks.freezing import count_frozen, describe_frozen, freeze, is_head_only
from trainers.networks.transformers.lora import (
    PACKAGE,
    add_adapters,
    attention_layers,
    is_adapter,
    load_base,
    merge,
)
from trainers.networks.transformers.stochastic_depth import drop_branches
from trainers.networks.weights.initialization import initialize
from trainers.recipes import RECIPES
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import load_best_model
from trainers.run.rows import read_rows
from trainers.step.optim import build_optimizer

VIT, SIZE_PX = "test_vit", 32


# ---- By the family ----


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (VIT, (0.75, 0.1, 2.0)),
        ("deit_tiny_patch16_224", (0.75, 0.1, 2.0)),
        ("swin_tiny_patch4_window7_224", (0.75, 0.1, 2.0)),
        ("mobilenet_v2", (1.0, 0.0, 1.0)),
        ("efficientnet_lite0", (1.0, 0.0, 1.0)),
        ("test_convnext", (0.7, 0.0, 1.0)),
        ("vgg16", (0.7, 0.0, 1.0)),
    ],
)
def test_finetune_suits_the_family(backbone: str, expected: tuple[float, ...]) -> None:
    recipe = RECIPES["finetune"]
    config = suit(replace(recipe, model=replace(recipe.model, backbone=backbone)))
    optim, schedule = config.optim, config.schedule
    assert (optim.layer_decay, config.model.drop_path, schedule.warmup_epochs) == expected
    assert is_transformer(backbone) == (expected[0] == 0.75)
    assert suit(config) == config, "numbers stay"


def test_a_number_of_the_user_stays() -> None:
    config = FinetuneConfig(
        data="d",
        epochs=3,
        model=ModelConfig(backbone=VIT, drop_path=0.3),
        schedule=ScheduleConfig(warmup_epochs=AUTO),
    )
    assert suit(config).model.drop_path == 0.3
    assert suit(config).schedule.warmup_epochs == pytest.approx(0.6), "a fifth of three epochs"
    for field, value in (("model.drop_path", 1.0), ("optim.layer_decay", 0.0)):
        with pytest.raises(ValueError, match=f"{field} is {value}: use .* auto"):
            ModelConfig(drop_path=value) if "drop" in field else OptimConfig(layer_decay=value)


def test_a_block_has_its_rate_and_tokens_have_no_decay() -> None:
    model = build(VIT, 3, SIZE_PX)
    config = replace(suit(RECIPES["finetune"]).optim, layer_decay=0.75)
    optimizer = build_optimizer(model, VIT, config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    num_stages = len(find(VIT).stages)
    for group in optimizer.param_groups:
        assert group["rate_scale"] == pytest.approx(0.75 ** (num_stages - group["stage"]))
        for parameter in group["params"]:
            name = names[parameter]
            spared = parameter.ndim == 1 or name in ("cls_token", "pos_embed")
            assert group["weight_decay"] == (0.0 if spared else 0.05), name


def test_the_rate_of_stochastic_depth_rises_from_block_to_block() -> None:
    model = build(VIT, 3, SIZE_PX)
    images_BCHW = torch.randn(2, 3, SIZE_PX, SIZE_PX)
    before_BK = model.eval()(images_BCHW)
    drop_branches(model, 0.5)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * (number // 2) for number in range(12)])
    assert torch.equal(model.eval()(images_BCHW), before_BK)
    assert not torch.equal(model.train()(images_BCHW), before_BK)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(init="he", drop_path=0.1), r"model\.drop_path is 0\.1: resnet50 has no"),
        (ModelConfig(init="he", freeze_depth="lora:8"), "resnet50 has no attention"),
        (ModelConfig(backbone=VIT, init="he", freeze_depth="lora:0"), "lora:RANK"),
    ],
)
def test_what_a_network_can_not_have_is_refused(
    model: ModelConfig, message: str, easy_data: str
) -> None:
    config = small_training(easy_data, "out", model=model)
    with pytest.raises(ValueError, match=message):
        check(config, read_manifest(easy_data))


# ---- LoRA ----


def test_missing_peft_is_named_with_the_command(
    easy_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find_spec(name)
    )
    model = ModelConfig(backbone=VIT, init="he", freeze_depth="lora:8")
    with pytest.raises(ValueError, match=f"'lora:8': it needs peft; pip install '{PACKAGE}'"):
        check(small_training(easy_data, "out", model=model), read_manifest(easy_data))


def test_adapters_beside_random_weights_are_warned_of(
    easy_data: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelConfig(backbone=VIT, init="he", freeze_depth="lora:8")
    check(small_training(easy_data, "out", model=model), read_manifest(easy_data))

    assert "freeze depth lora:8 keeps stages at random weights" in caplog.text


def test_lora_is_a_freeze_depth_of_its_own() -> None:
    model = ModelConfig(backbone=VIT, freeze_depth="lora:8")
    assert describe_frozen(VIT, "lora:8") == ("lora:8", 1.0)
    assert count_frozen(model) == 0 and not is_head_only(model), (
        "every block computes something new"
    )
    assert len(attention_layers(VIT)) == 12 and attention_layers("resnet50") == ()


def test_adapters_train_beside_frozen_layers_and_are_merged() -> None:
    torch.manual_seed(0)
    plain = build(VIT, 3, SIZE_PX)
    initialize(plain, ModelConfig(backbone=VIT, init="xavier"), seed=0)
    model, again = build(VIT, 3, SIZE_PX), build(VIT, 3, SIZE_PX)
    for each in (model, again):
        add_adapters(each, VIT, 2, seed=5)
        load_base(each, plain.state_dict())
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    images_BCHW = torch.randn(4, 3, SIZE_PX, SIZE_PX)
    torch.testing.assert_close(model(images_BCHW), plain(images_BCHW))
    freeze(model, VIT, 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n in model.state_dict() if is_adapter(n) or n.startswith("head.")}
    optimizer = build_optimizer(model, VIT, OptimConfig(optimizer="sgd", learning_rate=0.5))
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images_BCHW), torch.tensor([0, 1, 2, 0])).backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if n in trained)
        optimizer.step()
    tensors = merge(model.state_dict())
    assert tensors.keys() == plain.state_dict().keys()
    changed = {n for n, t in plain.state_dict().items() if not torch.equal(t, tensors[n])}
    assert changed == {
        *(f"{layer}.weight" for layer in attention_layers(VIT)),
        *("head.weight", "head.bias"),
    }
    plain.load_state_dict(tensors)
    torch.testing.assert_close(plain(images_BCHW), model(images_BCHW), rtol=1e-5, atol=1e-5)


def vit_training(data: str, out: str, **changes: Any) -> FinetuneConfig:
    """Two epochs of 3 steps of a tiny ViT with all that is random in it."""
    values: dict[str, Any] = {
        "epochs": 2,
        "model": ModelConfig(backbone=VIT, init="he", freeze_depth="lora:2", drop_path=0.3),
        "optim": OptimConfig(optimizer="adamw", learning_rate=1e-3, ema_decay=0.9),
        "compute": ComputeConfig(precision="fp32"),
        "cluster": ClusterConfig(num_workers=0),
    }
    return small_training(data, out, **{**values, **changes})


@pytest.mark.ray
@pytest.mark.extended
def test_a_vit_with_adapters_resumes_bit_exactly_and_is_merged_where_it_is_used(
    ray_cluster: str, easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = vit_training(easy_data, str(tmp_path / "straight"))
    train_here(straight)
    config = replace(straight, out=str(tmp_path / "cut"))
    with monkeypatch.context() as patch:
        taken, step = [0], training.train_step

        def cut(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            taken[0] += 1
            if taken[0] == 6:
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        patch.setattr(training, "train_step", cut)
        with pytest.raises(KeyboardInterrupt):
            train_here(config)
    result = train_here(config)
    losses = [[row["train/loss"] for row in read_rows(run.out)] for run in (straight, config)]
    assert losses[0] == losses[1] and len(losses[0]) > 2

    kept = safetensors.torch.load_file(f"{result['checkpoint']}/model.safetensors")
    _, _, merged = load_best_model(config.out)
    assert any(map(is_adapter, kept)) and not any(map(is_adapter, merged.state_dict()))
    unmerged = build(VIT, 3, config.ingest.size_px)
    add_adapters(unmerged, VIT, 2, seed=0)
    unmerged.load_state_dict(kept)
    images_BCHW = torch.randn(4, 3, config.ingest.size_px, config.ingest.size_px)
    torch.testing.assert_close(
        merged(images_BCHW), unmerged.eval()(images_BCHW), rtol=1e-4, atol=1e-5
    )
    exported = export(
        ExportConfig(run=config.out, out=str(tmp_path / "out"), formats=("safetensors",))
    )
    assert exported["safetensors"].max_difference < 1e-4


# ---- Must hold ----


@pytest.mark.usefixtures("one_thread")
def test_a_vit_is_exported_to_every_format(tmp_path: Path) -> None:
    config = FinetuneConfig(
        data="cars",
        out=str(tmp_path / "run"),
        ingest=IngestConfig(size_px=SIZE_PX),
        model=ModelConfig(backbone=VIT, init="xavier", drop_path=0.1),
    )
    initialize(model := build(VIT, 3, SIZE_PX), config.model, seed=0)
    progress = TrainingProgress(epoch=1, val_top1=0.5, best_epoch=1, classes=("a", "b", "c"))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    checkpoint.save(config.out, {checkpoint.MODEL: safetensors.torch.save(tensors)}, progress)
    text = json.dumps(config.to_dict()).encode()
    storage.write_bytes(storage.join(config.out, "config.json"), text)
    files = export(ExportConfig(run=config.out, out=str(tmp_path / "out"), dynamic_batch=True))
    assert set(files) == {"safetensors", "onnx", "torch_export"}
    assert all(facts.max_difference < 1e-3 for facts in files.values())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.extended
def test_two_workers_equal_one_with_a_vit(ray_cluster: str, easy_data: str, tmp_path: Path) -> None:
    model = ModelConfig(backbone=VIT, init="he", freeze_depth=2)
    one = vit_training(easy_data, str(tmp_path / "one"), model=model)
    two = replace(one, out=str(tmp_path / "two"), cluster=ClusterConfig(num_workers=2))
    train_here(one)
    train_in_workers(two)
    losses = [[row["train/loss"] for row in read_rows(run.out)] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
