"""Every backbone divides into stages that hold each tensor exactly once."""

import pytest
import torch

from trainers.backbones import BACKBONES, build, find


def test_resnet50_has_the_parameters_of_the_lecture():
    model = build("resnet50", 196)
    assert sum(p.numel() for p in model.parameters()) == 23_909_636
    assert sum(p.numel() for p in model.get_submodule("fc").parameters()) == 401_604


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_and_head_hold_every_tensor_once_and_in_order(name: str):
    backbone, model = find(name), build(name, 5)
    owners = [*(modules for _, modules in backbone.stages), (backbone.head,)]
    held = [
        f"{module}.{tensor}"
        for modules in owners
        for module in modules
        for tensor in model.get_submodule(module).state_dict()
    ]
    assert held == list(model.state_dict())

    indices = [backbone.stage_of(tensor) for tensor in model.state_dict()]
    assert indices == sorted(indices)
    assert set(indices) == set(range(len(backbone.stages) + 1))


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_follow_the_order_of_computation(name: str):
    backbone, model, seen = find(name), build(name, 5).eval(), []
    for index, (_, modules) in enumerate(backbone.stages):
        for module in modules:
            model.get_submodule(module).register_forward_hook(lambda *_, i=index: seen.append(i))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == sorted(seen)
    assert set(seen) == set(range(len(backbone.stages)))


def test_a_stage_does_not_swallow_longer_names():
    backbone = find("mobilenet_v2")
    assert backbone.stage_of("features.1.conv.0.0.weight") == 0
    assert backbone.stage_of("features.10.conv.0.0.weight") == 3
    assert backbone.stage_of("classifier.1.bias") == 7


def test_a_tensor_of_no_stage_is_an_error():
    with pytest.raises(KeyError, match="features"):
        find("resnet50").stage_of("features.0.weight")


def test_an_unknown_backbone_names_the_choices():
    with pytest.raises(ValueError, match=r"model\.backbone is 'vgg': choose from resnet50, mobile"):
        build("vgg", 5)


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    build("mobilenet_v2", 5)
    assert torch.equal(torch.get_rng_state(), before)
