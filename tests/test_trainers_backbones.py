"""Every backbone divides into stages that hold each tensor exactly once, in the order of the pass.

Networks are built on the meta device: shapes without memory, so that all of them take seconds.
"""

from functools import cache

import pytest
import torch
from torch import nn

from trainers.config import NORMALIZATIONS
from trainers.networks.backbones import BACKBONES, build, find, require_size
from trainers.networks.freezing import freeze
from trainers.networks.measure import count_flops, count_parameters, count_statistics

pytestmark = pytest.mark.usefixtures("one_thread")
KERAS_TABLE = {
    *("vgg16", "vgg19", "densenet121", "densenet169", "densenet201"),
    *(f"resnet{depth}{version}" for depth in (50, 101, 152) for version in ("", "_v2")),
    *("xception", "inception_v3", "inception_resnet_v2", "nasnet_large", "nasnet_mobile"),
    *("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *(f"efficientnet_b{size}" for size in range(8)),
    *(f"efficientnet_v2_{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")),
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")),
}
"""Every network of https://keras.io/api/applications."""


@cache
def meta(name: str, num_classes: int = 5) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes).eval()


def images(name: str) -> torch.Tensor:
    size_px = find(name).size_px
    return torch.zeros(2, 3, size_px, size_px, device="meta")


@cache
def trace(name: str) -> tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]:
    """Pass two images through; return the shape of the logits, and for each module of a stage, in
    order of computation, the stage (the head's is one more) and the shape of its output."""
    backbone, model, seen = find(name), meta(name), []

    def note(stage: int, made: torch.Tensor | list[torch.Tensor]) -> None:
        # A cell of NASNet hands its input on beside its output.
        seen.append((stage, tuple((made if isinstance(made, torch.Tensor) else made[0]).shape)))

    owners = [*(modules for _, modules in backbone.stages), (backbone.head,)]
    hooks = [
        model.get_submodule(module).register_forward_hook(lambda *io, s=stage: note(s, io[2]))
        for stage, modules in enumerate(owners)
        for module in modules
    ]
    with torch.inference_mode():
        logits_BK = model(images(name))
    for hook in hooks:
        hook.remove()
    return tuple(logits_BK.shape), seen


def heads(name: str) -> tuple[str, ...]:
    return tuple(head for head in (find(name).head, find(name).aux) if head)


def test_the_networks_of_the_lecture_are_all_there():
    assert set(BACKBONES) == {*KERAS_TABLE, "lenet5", "alexnet"}


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("resnet50", 196, 23_909_636),  # as the lecture has it, without Keras' extra biases
        ("lenet5", 10, 62_006),
        ("alexnet", 1000, 61_100_840),
        ("vgg16", 1000, 138_357_544),  # as in Keras' table, and so are VGG19 and NASNet's head
        ("vgg19", 1000, 143_667_240),
        ("mobilenet_v1", 1000, 4_231_976),  # Keras: 4,253,864 with 21,888 moving statistics
        ("mobilenet_v3_small", 1000, 2_542_856),  # Keras: 2,554,968 with 12,112
        ("mobilenet_v3_large", 1000, 5_483_032),  # Keras: 5,507,432 with 24,400
    ],
)
def test_networks_have_the_parameters_of_the_literature(
    name: str, num_classes: int, parameters: int
):
    assert sum(p.numel() for p in meta(name, num_classes).parameters()) == parameters


def test_nasnet_mobile_is_that_of_keras_and_of_the_paper():
    model = meta("nasnet_mobile", 1000)
    assert count_parameters(model) + count_statistics(model) == 5_326_716
    assert (
        round(count_flops(model.requires_grad_(False), 224) / 2e6) == 564
    )  # million multiply-adds


def test_the_head_of_the_lecture():
    head = meta("resnet50", 196).get_submodule(find("resnet50").head)
    assert sum(p.numel() for p in head.parameters()) == 401_604


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_and_heads_hold_every_tensor_once(name: str):
    backbone, model = find(name), meta(name)
    owners = [*(modules for _, modules in backbone.stages), heads(name)]
    held = [
        (f"{module}.{tensor}", index)
        for index, modules in enumerate(owners)
        for module in modules
        for tensor in model.get_submodule(module).state_dict()
    ]
    assert sorted(tensor for tensor, _ in held) == sorted(model.state_dict())
    assert all(backbone.stage_of(tensor) == index for tensor, index in held)
    assert {index for _, index in held} == set(range(len(backbone.stages) + 1))
    assert len({stage for stage, _ in backbone.stages}) == len(backbone.stages)


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_follow_the_order_of_computation(name: str):
    shape_of_logits, seen = trace(name)
    assert shape_of_logits == (2, 5)
    stages = [stage for stage, _ in seen]
    assert stages == sorted(stages)
    assert set(stages) == set(range(len(find(name).stages) + 1))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_stage_after_the_stem_halves_the_resolution_once_at_most(name: str):
    _, seen = trace(name)
    heights = {stage: shape[2] for stage, shape in seen if len(shape) == 4}  # each stage's last
    for stage in range(1, len(find(name).stages)):
        if stage in heights:  # a stage of hidden dense layers has none
            assert heights[stage] > heights[stage - 1] / 3, heights  # a quarter were twice
    assert heights[0] > heights[max(heights)]


@pytest.mark.parametrize("name", BACKBONES)
def test_freezing_k_stages_freezes_exactly_the_first_k(name: str):
    model, stages = meta(name), find(name).stages
    for depth in (*range(len(stages) + 1), 0):  # and thaws again
        freeze(model, name, depth)
        frozen = tuple(f"{module}." for _, modules in stages[:depth] for module in modules)
        for tensor, parameter in model.named_parameters():
            assert parameter.requires_grad != tensor.startswith(frozen or "never"), tensor
        for head in heads(name):
            assert all(p.requires_grad for p in model.get_submodule(head).parameters())


def test_inception_returns_its_auxiliary_head_in_train_mode_alone():
    model = meta("inception_v3")
    logits_BK, aux_BK = model.train()(images("inception_v3"))
    assert logits_BK.shape == aux_BK.shape == (2, 5)
    assert model.eval()(images("inception_v3")).shape == (2, 5)
    assert not model.transform_input  # the pixels come normalized as `normalization` says
    assert find("inception_v3").normalization == "half"
    assert find("inception_v3").stage_of("AuxLogits.fc.bias") == 4


def test_images_too_small_for_a_network_are_refused():
    for name in ("inception_v3", "lenet5", "mobilenet_v2"):
        require_size(name, find(name).size_px, training=True)
    message = r"ingest\.size_px is 64: too small for inception_v3; its own size is 299"
    with pytest.raises(ValueError, match=message):
        require_size("inception_v3", 64, field="ingest.size_px")
    require_size("inception_v3", 128)
    with pytest.raises(ValueError, match=r"^size_px is 128: too small"):
        require_size("inception_v3", 128, training=True)  # for the auxiliary head


@pytest.mark.parametrize("size_px", [32, 33, 64, 224])
def test_lenet5_takes_any_size_from_32(size_px: int):
    assert build("lenet5", 3)(torch.rand(2, 3, size_px, size_px)).shape == (2, 3)


def test_a_stage_does_not_swallow_longer_names():
    backbone = find("mobilenet_v2")
    assert backbone.stage_of("features.1.conv.0.0.weight") == 0
    assert backbone.stage_of("features.10.conv.0.0.weight") == 3
    assert backbone.stage_of("classifier.1.bias") == 7


def test_a_tensor_of_no_stage_is_an_error():
    with pytest.raises(KeyError, match="features"):
        find("resnet50").stage_of("features.0.weight")


def test_an_unknown_backbone_names_the_choices():
    with pytest.raises(ValueError, match=r"model\.backbone is 'vgg': choose from resnet50, res"):
        build("vgg", 5)


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    build("mobilenet_v2", 5)
    assert torch.equal(torch.get_rng_state(), before)


# What was published


@pytest.mark.parametrize("name", [n for n, b in BACKBONES.items() if b.source == "timm"])
def test_facts_of_timm_are_those_of_timm(name: str):
    import timm

    backbone, model = find(name), meta(name)
    architecture = model.pretrained_cfg["architecture"]  # pyright: ignore[reportArgumentType, reportIndexIssue]
    assert set(backbone.published) <= {"imagenet"}
    for published in backbone.published.values():
        facts = timm.get_pretrained_cfg(f"{architecture}.{published.name}")
        assert facts is not None
        hub_url = f"https://huggingface.co/{facts.hf_hub_id}/resolve/main/model.safetensors"
        assert published.url == (hub_url if facts.hf_hub_id else facts.url)
        assert published.license == facts.license
        assert isinstance(backbone.normalization, str)
        assert (facts.mean, facts.std) == NORMALIZATIONS[backbone.normalization]
        assert (facts.test_input_size or facts.input_size)[1] == backbone.size_px


@pytest.mark.parametrize("name", [n for n, b in BACKBONES.items() if b.source == "torchvision"])
def test_torchvision_publishes_under_every_name(name: str):
    backbone = find(name)
    assert set(backbone.published) in (
        {"imagenet", "imagenet_v1"},
        {"imagenet", "imagenet_v1", "imagenet_v2"},
    )
    newest = backbone.published.get("imagenet_v2", backbone.published["imagenet_v1"])
    assert backbone.published["imagenet"].url == newest.url
    assert newest.url.startswith("https://download.pytorch.org/models/")
    assert newest.top1 is not None and newest.top5 is not None and newest.top1 < newest.top5


def test_what_torchvision_trained_with_half_is_known():
    half = {
        n for n, b in BACKBONES.items() if b.source == "torchvision" and b.normalization == "half"
    }
    assert half == {"inception_v3", "efficientnet_v2_l"}
