"""Freezing k stages keeps exactly the first k, weights and statistics, bit for bit."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.training import train_two_steps
from trainers.config import NORMALIZATIONS, FreezeDepth, ModelConfig
from trainers.networks.backbones import build, find
from trainers.networks.freezing import (
    describe_frozen,
    freeze,
    is_head_only,
    resolve_depth,
    show_frozen,
    train_mode,
)
from trainers.networks.weights.initialization import initialize
from trainers.step.step import normalize

MEAN, STD = NORMALIZATIONS["half"]


def pretrained_like(backbone: str, images_BHWC: Tensor) -> nn.Module:
    """A network whose BatchNorm statistics fit its activations, so that frozen stages pass them."""
    model = build(backbone, 4)
    initialize(model, ModelConfig(backbone=backbone, init="he"), seed=0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(normalize(images_BHWC, MEAN, STD))
    for norm in norms:
        norm.momentum = 0.1
    return model


@pytest.mark.parametrize(
    ("backbone", "depth"),
    [
        ("mobilenet_v2", 0),
        ("mobilenet_v2", 4),
        ("mobilenet_v2", 7),
        ("resnet50", 3),
        ("mobilenet_v3_small", 7),
        ("nasnet_mobile", 2),
    ],
)
def test_training_changes_exactly_the_stages_that_are_not_frozen(backbone: str, depth: int):
    generator = torch.Generator().manual_seed(0)
    images_BHWC = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    model = pretrained_like(backbone, images_BHWC)
    changed = train_two_steps(model, backbone, depth, images_BHWC)
    stage_of = find(backbone).stage_of
    assert changed == {name for name in model.state_dict() if stage_of(name) >= depth}


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2", "inception_v3"])
def test_depth_k_freezes_the_first_k_stages_and_never_the_head(backbone: str):
    model, stages = build(backbone, 4), find(backbone).stages
    for depth in (*range(len(stages) + 1), 0):  # and thaws again
        freeze(model, backbone, depth)
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        stage_of = find(backbone).stage_of
        assert trainable == {n for n, _ in model.named_parameters() if stage_of(n) >= depth}
        assert any(name.startswith(find(backbone).head) for name in trainable)


def test_train_mode_is_whole_after_a_thaw_and_dropout_of_the_head_is_on():
    model = build("mobilenet_v2", 4)
    train_mode(model, "mobilenet_v2", 7)
    evals = [module for module in model.modules() if not module.training]
    assert len([m for m in evals if isinstance(m, nn.BatchNorm2d)]) == 52
    assert model.get_submodule("classifier.0").training
    train_mode(model, "mobilenet_v2", 0)
    assert all(module.training for module in model.modules())
    train_mode(model, "mobilenet_v2", 0, freeze_batchnorm=True)
    evals = [module for module in model.modules() if not module.training]
    assert len(evals) == 52 and all(isinstance(module, nn.BatchNorm2d) for module in evals)


@pytest.mark.parametrize(
    ("given", "depth"),
    [
        *((0, 0), (3, 3), (5, 5), ("all", 5), (-2, 3), (-5, 0)),
        *((0.75, 4), (0.5, 3), (0.1, 1), (0.0, 0), (1.0, 5), ("stem", 1), ("layer4", 5)),
    ],
)
def test_a_depth_resolves_to_a_number_of_stages(given: FreezeDepth, depth: int):
    assert resolve_depth("resnet50", given) == depth
    assert is_head_only(ModelConfig(freeze_depth=given)) == (depth == 5)


def test_a_depth_is_shown_by_its_last_stage_and_share():
    depths: tuple[FreezeDepth, ...] = (0, 0.5, "layer3", "all")
    shown = [show_frozen("resnet50", depth) for depth in depths]
    assert shown == ["none 0%", "layer2 60%", "layer3 80%", "all 100%"]
    assert describe_frozen("mobilenet_v3_small", -1) == ("stage6", 0.875)


def test_a_depth_out_of_range_names_value_and_range():
    message = (
        r"model\.freeze_depth is 6: resnet50 has 5 stages "
        r"\(stem, layer1, layer2, layer3, layer4\): use -5 to 5, or `all`, or a share from 0\.0 "
        r"to 1\.0, or a stage's name"
    )
    with pytest.raises(ValueError, match=message):
        resolve_depth("resnet50", 6)
    assert resolve_depth("mobilenet_v2", 6) == 6
    for depth in (1.5, -0.5, "layer5"):
        with pytest.raises(ValueError, match=r"model\.freeze_depth is .*: resnet50 has 5 stages"):
            resolve_depth("resnet50", depth)
