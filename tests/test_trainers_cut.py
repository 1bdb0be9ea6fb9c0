"""A network cut in two is the network: the same outputs and gradients, or a refusal."""

import pickle

import pytest
import torch
from ray import cloudpickle

from trainers.config import ModelConfig
from trainers.networks.backbones import BACKBONES, build, find, on_meta
from trainers.networks.cut import Suffix, before, behind, build_prefix
from trainers.networks.freezing import freeze, train_mode
from trainers.networks.weights.initialization import initialize

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = [
    *("resnet50", "mobilenet_v2", "alexnet", "vgg16", "inception_v3", "densenet121", "lenet5"),
    *("efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "resnet50_v2", "xception"),
    *("inception_resnet_v2", "mobilenet_v1", "mobilenet_v3_small", "efficientnet_v2_b0"),
]


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "resnet50", "densenet121", "convnext_tiny", "alexnet", "lenet5"]
)
def test_prefix_and_suffix_are_the_network_at_every_stage(name: str) -> None:
    network = build(name, 3).eval()
    images_BCHW = torch.randn(2, 3, 32 if name == "lenet5" else 96, 32 if name == "lenet5" else 96)
    depths = range(1, len(find(name).stages) + 1)
    with torch.no_grad():
        logits_BK = network(images_BCHW)
        outputs = build_prefix(network, name, depths)(images_BCHW)
        for depth, features in zip(depths, outputs, strict=True):
            suffix = Suffix(network, name, depth)
            assert torch.equal(suffix(features), logits_BK), depth
            sent = pickle.loads(cloudpickle.dumps(suffix))  # as to an actor of a pass
            assert torch.equal(sent(features), logits_BK), depth


@pytest.mark.parametrize("name", FAMILIES)
def test_every_network_is_cut_at_every_stage_that_its_training_allows(name: str) -> None:
    network, size_px = on_meta(name, 3), max(32, BACKBONES[name].size_px // 2)
    images_BCHW = torch.zeros(1, 3, size_px, size_px, device="meta")
    last = len(find(name).stages)
    for depth in range(1, last + 1):
        if name == "inception_v3" and depth == last:  # its auxiliary head trains as well
            with pytest.raises(ValueError, match="can't be cut behind mixed7"):
                Suffix(network, name, depth)
            continue
        (features,) = build_prefix(network, name, [depth])(images_BCHW)
        assert Suffix(network, name, depth)(features).shape == (1, 3)


@pytest.mark.parametrize("name", ["nasnet_large", "nasnet_mobile"])
def test_nasnet_needs_two_outputs_at_once_and_is_refused_but_at_its_end(name: str) -> None:
    network, images_BCHW = on_meta(name, 3), torch.zeros(1, 3, 64, 64, device="meta")
    for depth, stage in enumerate(("stem", "cells1", "cells2"), start=1):
        with pytest.raises(ValueError, match=f"{name} can't be cut behind {stage}: what follows"):
            Suffix(network, name, depth)
    (features,) = build_prefix(network, name, [4])(images_BCHW)
    assert Suffix(network, name, 4)(features).shape == (1, 3)


def test_features_of_the_last_stage_are_pooled() -> None:
    """33 MB for 8,144 images of ResNet50, not 1.6 GB: the cut is behind the pooling."""
    network = on_meta("resnet50", 3)
    images_BCHW = torch.zeros(1, 3, 224, 224, device="meta")
    shapes = [o.shape[1:] for o in build_prefix(network, "resnet50", [3, 4, 5])(images_BCHW)]
    assert [tuple(shape) for shape in shapes] == [(512, 28, 28), (1024, 14, 14), (2048,)]


@pytest.mark.parametrize("depth", [3, 7])
def test_gradients_and_statistics_behind_the_cut_are_those_of_the_network(depth: int) -> None:
    """With dropout and live BatchNorm, in train mode; frozen stages neither train nor count."""
    results = []
    for cut in (False, True):
        network = build("mobilenet_v2", 3)
        initialize(network, ModelConfig(init="he"), seed=1)
        freeze(network, "mobilenet_v2", depth)
        suffix = Suffix(network, "mobilenet_v2", depth)
        train_mode(network, "mobilenet_v2", depth)
        images_BCHW = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        inputs, call = images_BCHW, network
        if cut:
            (inputs,) = build_prefix(network, "mobilenet_v2", [depth])(images_BCHW)
            train_mode(network, "mobilenet_v2", depth)
            inputs, call = inputs.detach(), suffix
        torch.manual_seed(5)
        logits_BK = call(inputs)
        logits_BK.logsumexp(1).sum().backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        results.append((logits_BK.detach(), gradients, dict(network.named_buffers())))

    (logits, gradients, buffers), (cut_logits, cut_gradients, cut_buffers) = results
    assert torch.equal(logits, cut_logits)
    assert gradients.keys() == cut_gradients.keys()
    assert gradients.keys() == behind(gradients, "mobilenet_v2", depth).keys()
    torch.testing.assert_close(gradients, cut_gradients, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(buffers, cut_buffers)


def test_tensors_lie_before_or_behind_a_cut() -> None:
    tensors = build("resnet50", 3).state_dict()
    front, rear = before(tensors, "resnet50", 4), behind(tensors, "resnet50", 4)
    assert front.keys().isdisjoint(rear) and front.keys() | rear.keys() == tensors.keys()
    assert {name.split(".")[0] for name in rear} == {"layer4", "fc"}
