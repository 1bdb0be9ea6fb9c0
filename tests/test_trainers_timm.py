"""Any network of timm by its name: stages hold each tensor once and freeze bit for bit, its own
config says what it expects, its cut is itself, and its weights come from files and caches.
"""

import json
from math import prod
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from timm.layers.drop import DropPath
from torch import Tensor

from cluster.io.errors import UserError
from datasets.config import IngestConfig
from tests.support.training import train_two_steps
from trainers.config import FinetuneConfig, ModelConfig, OptimConfig
from trainers.inference.features import StageFeatures, pool
from trainers.inference.prefix import FrozenNetwork
from trainers.networks.backbones import BACKBONES, build, find, on_meta, require_size, set_size
from trainers.networks.cut import Suffix, behind, build_prefix
from trainers.networks.freezing import freeze, train_mode
from trainers.networks.timm_models import adapt
from trainers.networks.weights.files import Weights
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.loading import load_pretrained
from trainers.networks.weights.pretrained import (
    describe_weights,
    license_note,
    pretrained_available,
)
from trainers.step.optim import build_optimizer
from tuning.sharing.flops import count_flops

pytestmark = pytest.mark.usefixtures("one_thread")
VIT = "test_vit.r160_in1k"
SMALL = {
    **{VIT: 32, "test_vit3": 32, "test_vit4": 32, "test_vit_relpos": 32},
    **{"test_convnext": 64, "test_efficientnet": 64, "test_resnet": 64, "test_nfnet": 96},
    **{"test_mambaout": 64, "test_byobnet": 64},
}
"""With the size to try it at."""
EXTENDED = (
    *("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"),
    *("vit_base_patch16_siglip_224", "vit_base_patch32_clip_224", "deit_tiny_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "beitv2_base_patch16_224"),
    *("eva02_tiny_patch14_224", "convit_tiny", "aimv2_large_patch14_224"),
    *("vit_relpos_small_patch16_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_224"),
    *("swin_s3_tiny_224", "convnextv2_atto", "maxvit_tiny_rw_224", "coatnet_nano_rw_224"),
    *("maxxvit_rmlp_nano_rw_256", "mobilevit_xxs", "mobilevitv2_050", "fastvit_t8"),
    *("eca_nfnet_l0", "nf_resnet50", "regnetx_002", "regnety_002", "regnetz_b16"),
    *("efficientnet_lite0", "mixnet_s", "mnasnet_small", "mobilenetv3_small_050"),
    *("mobilenetv4_conv_small", "resnet18", "resnet34", "resnet10t", "resnext50_32x4d"),
    *("seresnet50", "resnetv2_18", "hrnet_w18_small", "dla34", "vgg11", "ghostnet_050"),
    *("hardcorenas_a", "lcnet_050", "tinynet_e", "repvgg_a0", "repvit_m0_9", "edgenext_xx_small"),
    *("efficientformerv2_s0", "inception_next_atto", "hiera_tiny_224", "levit_128s"),
    *("mvitv2_tiny", "pvt_v2_b0", "davit_tiny", "focalnet_tiny_srf", "gcvit_xxtiny", "nest_tiny"),
    *("twins_svt_small", "visformer_tiny", "tiny_vit_5m_224", "mixer_s32_224", "resmlp_12_224"),
    *("rexnet_100", "selecsls42", "skresnet18", "resnest14d", "res2net50_14w_8s"),
)
LIGHT = (
    *("mobilevit_xxs", "regnetx_002", "regnety_002", "efficientnet_lite0", "mnasnet_small"),
    *("mobilenetv3_small_050", "mobilenetv4_conv_small", "resnet18", "resnet10t", "ghostnet_050"),
    *("lcnet_050", "tinynet_e", "repvgg_a0", "repvit_m0_9", "inception_next_atto"),
    *("convnextv2_atto", "pvt_v2_b0", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
    *("vit_tiny_patch16_224", "hrnet_w18_small", "edgenext_xx_small"),
)
REFUSED = {
    "poolformer_s12": "timm does not group its parameters",
    "pit_ti_224": "timm does not group its parameters",
    "rdnet_tiny": "timm does not group its blocks",
    "cait_xxs24_224": r"blocks_token_only\.0 of stage 23 is computed after a part of stage 24",
    "coat_lite_mini": "cpe1 of stage 0 is computed after a part of stage 1",
    "efficientvim_m1": r"stages\.1 of stage 2 is computed after a part of stage 3",
}


def train(name: str, depth: int, size_px: int) -> set[str]:
    """Train two steps; return the names of the tensors that changed."""
    generator = torch.Generator().manual_seed(0)
    images_BHWC = torch.randint(
        0, 256, (4, size_px, size_px, 3), dtype=torch.uint8, generator=generator
    )
    return train_two_steps(build(name, 4, size_px), name, depth, images_BHWC)


def assert_divided(name: str) -> None:
    """Every tensor is in one stage or the head, and the head is in no stage."""
    backbone, network = find(name), on_meta(name, 5)
    owners = [*(modules for _, modules in backbone.stages), backbone.heads]
    held = [
        (f"{module}.{tensor}", index)
        for index, modules in enumerate(owners)
        for module in modules
        for tensor in network.get_submodule(module).state_dict()
    ]
    held += backbone.tensors.items()
    assert sorted(tensor for tensor, _ in held) == sorted(network.state_dict())
    assert all(backbone.stage_of(tensor) == index for tensor, index in held)
    assert {index for _, index in held} == set(range(len(backbone.stages) + 1))
    names = [stage for stage, _ in backbone.stages]
    assert names[0] == "stem" and len(set(names)) == len(names) > 2
    classifier = network.get_submodule(backbone.head)
    assert next(iter(classifier.parameters())).shape[0] == 5
    for depth in (0, 1, len(names) // 2, len(names)):
        freeze(network, name, depth)
        for tensor, parameter in network.named_parameters():
            assert parameter.requires_grad == (backbone.stage_of(tensor) >= depth), tensor
        assert all(p.requires_grad for p in classifier.parameters())


def assert_frozen(name: str, size_px: int) -> None:
    """Freezing k stages keeps exactly the first k bit for bit; each other stage learns."""
    last = len(find(name).stages)
    for depth in (1, last // 2, last):
        stages = {find(name).stage_of(tensor) for tensor in train(name, depth, size_px)}
        assert stages == set(range(depth, last + 1)), depth


@pytest.mark.parametrize("name", SMALL)
def test_stages_and_head_hold_every_tensor_once(name: str) -> None:
    assert_divided(name)


@pytest.mark.parametrize("name", SMALL)
def test_freezing_k_stages_freezes_exactly_the_first_k(name: str) -> None:
    assert_frozen(name, SMALL[name])


@pytest.mark.extended
@pytest.mark.parametrize("name", EXTENDED)
def test_many_architectures_divide(name: str) -> None:
    assert_divided(name)


@pytest.mark.extended
@pytest.mark.parametrize("name", LIGHT)
def test_many_architectures_freeze(name: str) -> None:
    assert_frozen(name, SMALL.get(name, 64))


@pytest.mark.extended
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_freeze_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.backbone is '{name}': .*as {REFUSED[name]}"):
        find(name)


def test_a_vit_divides_by_the_rule() -> None:
    backbone = find(VIT)
    blocks = [f"block{number}" for number in range(1, 7)]
    assert [name for name, _ in backbone.stages] == ["stem", *blocks]
    assert backbone.stage_of("cls_token") == backbone.stage_of("pos_embed") == 0
    assert backbone.stage_of("blocks.5.ls2.gamma") == backbone.stage_of("norm.weight") == 6
    assert backbone.stage_of("head.weight") == 7
    assert find("test_vit3").stage_of("attn_pool.latent") == 9
    assert find("test_vit_relpos").heads == ("head", "fc_norm")  # LayerNorm of the average
    assert find("test_convnext").heads == ("head.fc", "head.norm")


def test_networks_of_the_table_keep_their_stages() -> None:
    assert find("resnet50") is BACKBONES["resnet50"]
    assert find("timm/test_resnet").stages == find("test_resnet").stages


def test_the_config_of_a_network_says_what_it_expects() -> None:
    backbone = find("vit_small_patch14_dinov2.lvd142m")
    assert (backbone.size_px, backbone.normalization) == (518, "imagenet")
    assert find(VIT).normalization == "half"
    published = backbone.published["imagenet"]
    assert published.license == "apache-2.0" and published.classes is None
    assert published.url == (
        "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors"
    )
    in1k = find(VIT).published["imagenet"]
    assert in1k.classes is not None and len(in1k.classes) == 1000


def test_a_license_that_forbids_commerce_is_said() -> None:
    note = license_note(ModelConfig(backbone="vit_base_patch16_224.mae"))
    assert note is not None and note.endswith("forbids commercial use") and "cc-by-nc-4.0" in note
    assert license_note(ModelConfig(backbone=VIT)) is None
    assert license_note(ModelConfig(backbone="vit_base_patch16_224.mae", init="he")) is None
    origin, license = describe_weights(ModelConfig(backbone=VIT))
    assert origin.startswith("r160_in1k, https://huggingface.co/timm/") and license == "apache-2.0"


def test_an_unknown_name_or_tag_names_similar_ones() -> None:
    with pytest.raises(ValueError, match=r"'test_vit\.nothing': .* \(such as test_vit\.r160_in1k"):
        find("test_vit.nothing")
    with pytest.raises(ValueError, match=r"'vit_smal_patch16_224': .*vit_small_patch16_224"):
        find("vit_smal_patch16_224")


# Image size


def test_positions_follow_the_image_size(tmp_path: Path) -> None:
    """They are interpolated as timm does; all other tensors are those of the file."""
    source = build(VIT, 5)
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), file)
    model = build(VIT, 5, 64)
    report = initialize(model, ModelConfig(backbone=VIT, init="file", weights=str(file)), seed=0)
    assert not report.missing and not report.unexpected
    assert source.get_parameter("pos_embed").shape == (1, 1 + 10 * 10, 64)
    assert model.get_parameter("pos_embed").shape == (1, 1 + 4 * 4, 64)
    set_size(source, VIT, 64)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, source.state_dict()[name], rtol=0, atol=1e-6)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "size_px", "other", "its_size_px"),
    [
        ("swin_tiny_patch4_window7_224", 224, "swin_base_patch4_window7_224", 224),
        ("beit_base_patch16_224", 256, "beit_large_patch16_224", 224),
    ],
)
def test_weights_of_a_deeper_network_are_refused_in_one_sentence(
    name: str, size_px: int, other: str, its_size_px: int
) -> None:
    """timm's rules look up the blocks of the file in the network."""
    network = on_meta(name, 5, size_px)
    given = on_meta(other, 5, its_size_px).state_dict()
    weights = Weights(tensors=adapt(given, network))
    config = ModelConfig(backbone=name, init="file", weights="w.pth")
    message = rf"model\.weights is 'w\.pth': its \S+ has shape .*, {name} needs .*same network"
    with pytest.raises(ValueError, match=message):
        load_pretrained(network, weights, config, None)


def test_a_network_without_an_image_size_takes_the_names_of_its_authors(tmp_path: Path) -> None:
    """Those of Facebook's ConvNeXt."""
    renamed = {
        "stem.": "downsample_layers.0.",
        "stages.1.downsample.": "downsample_layers.1.",
        "stages.2.downsample.": "downsample_layers.2.",
        "stages.3.downsample.": "downsample_layers.3.",
        ".blocks.": ".",
        "conv_dw": "dwconv",
        "mlp.fc": "pwconv",
        "head.norm.": "norm.",
        "head.fc.": "head.",
    }
    given, source = {}, build("test_convnext", 5).state_dict()
    for name, tensor in source.items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        given[name] = tensor
    torch.save({"model": given}, file := tmp_path / "convnext_ema.pt")

    config = ModelConfig(backbone="test_convnext", init="file", weights=str(file))
    report = initialize(model := build("test_convnext", 3), config, seed=0)
    assert report.replaced == ("head.fc.weight", "head.fc.bias")
    assert not report.missing and not report.unexpected
    assert all(torch.equal(model.state_dict()[name], source[name]) for name in report.loaded)


def test_a_size_that_does_not_fit_is_refused() -> None:
    message = r"size_px is 95: test_maxvit does not take it; the next size that it takes is 96"
    with pytest.raises(ValueError, match=message):
        require_size("test_maxvit", 95)
    require_size("test_maxvit", 96, training=True)


# The cut


def cut_at_every_stage(name: str, size_px: int) -> dict[int, tuple[int, ...]]:
    torch.manual_seed(0)
    network = build(name, 3, size_px).eval()
    images_BCHW = torch.randn(2, 3, size_px, size_px)
    depths = range(1, len(find(name).stages) + 1)
    with torch.no_grad():
        logits_BK = network(images_BCHW)
        outputs = build_prefix(network, name, depths)(images_BCHW)
        for depth, features in zip(depths, outputs, strict=True):
            half = features.half().float()  # as the cache keeps them
            torch.testing.assert_close(
                Suffix(network, name, depth)(half), logits_BK, rtol=0, atol=1e-3
            )
    return {depth: tuple(o.shape[1:]) for depth, o in zip(depths, outputs, strict=True)}


def test_a_vit_is_cut_at_every_stage_and_its_head_sees_the_pooled_vector() -> None:
    shapes = cut_at_every_stage(VIT, 64)
    assert shapes[2] == (17, 64) and shapes[7] == (64,)


@pytest.mark.parametrize("name", ["test_vit3", "test_convnext", "test_resnet", "test_efficientnet"])
def test_other_networks_are_cut_at_every_stage(name: str) -> None:
    shapes = cut_at_every_stage(name, 64)
    assert prod(shapes[max(shapes)]) == max(shapes[max(shapes)])  # pooled


@pytest.mark.parametrize("name, whole", [("mvitv2_tiny", {5}), ("selecsls42", {1, 7, 8})])
def test_a_stage_that_returns_several_tensors_is_not_cut(name: str, whole: set[int]) -> None:
    """The plan of a sweep says so, and its trials train on images."""
    depths, network = range(1, len(find(name).stages) + 1), on_meta(name, 2)
    base = FinetuneConfig(data="", model=ModelConfig(backbone=name))
    _, by_depth = count_flops(base, depths)
    assert {depth for depth, (_, _, problem) in by_depth.items() if not problem} == whole
    message = f"{name} can't be cut behind stage1: its output is not one tensor"
    assert by_depth[2][2] == message
    with pytest.raises(UserError, match=message):
        build_prefix(network, name, [2])
    with pytest.raises(UserError, match=f"stage is 'stage1': its output in {name} is not one"):
        StageFeatures(network, name, "stage1", "avg")


def test_maps_of_each_stage_are_pooled_over_their_positions() -> None:
    """Networks that pool within the last stage, or mix layouts, are averaged by stage."""
    name, size_px, network = "test_mambaout", 64, build("test_mambaout", 3).eval()
    assert find(name).channels_last == {"stem", "stage1", "stage2", "stage3"}
    assert find("nest_tiny").channels_last == {"stage3"}
    images_BCHW = torch.randn(2, 3, size_px, size_px)
    base = FinetuneConfig(
        data="", model=ModelConfig(backbone=name), ingest=IngestConfig(size_px=size_px)
    )
    frozen = FrozenNetwork(config=base, model=network, pooled=True)
    assert frozen.shapes([1, 3, 4, 5]) == [(16,), (32,), (48,), (256,)]
    with torch.no_grad():
        features_BD = StageFeatures(network, name, "stem", "avg")(images_BCHW)
        maps_BHWC = network.get_submodule("stem")(images_BCHW)
    torch.testing.assert_close(features_BD, maps_BHWC.mean((1, 2)))
    square_BHWC = torch.rand(2, 8, 8, 8)  # its shape does not tell
    torch.testing.assert_close(pool(square_BHWC, "avg", True), square_BHWC.mean((1, 2)))


def test_training_behind_the_cut_draws_the_same_random_numbers() -> None:
    """With stochastic depth and dropout in the thawed blocks."""
    results = []
    for cut in (False, True):
        network = build(VIT, 3, 64)
        for block in network.get_submodule("blocks").children():
            block.drop_path1 = DropPath(0.5)
        depth = 4
        freeze(network, VIT, depth)
        images_BCHW = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        inputs, call = images_BCHW, network
        if cut:
            call = Suffix(network, VIT, depth)
            (inputs,) = build_prefix(network, VIT, [depth])(images_BCHW)
            inputs = inputs.detach()
        train_mode(network, VIT, depth)
        torch.manual_seed(5)
        logits_BK = call(inputs)
        logits_BK.logsumexp(1).sum().backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        results.append((logits_BK.detach(), gradients))
    (logits, gradients), (cut_logits, cut_gradients) = results
    assert torch.equal(logits, cut_logits)
    assert gradients.keys() == cut_gradients.keys() == behind(gradients, VIT, 4).keys()
    torch.testing.assert_close(gradients, cut_gradients, rtol=1e-5, atol=1e-7)


# Weights without a network


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return build(VIT, 1000).state_dict()


def cache_repository(cache: Path, repository: str, files: dict[str, bytes]) -> Path:
    """Write files as Hugging Face's cache lays them out; return the folder of the repository."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face, and HF_HUB_OFFLINE=1."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_offline_weights_are_named_then_read_from_the_cache(
    offline: Path, weights: dict[str, Tensor]
) -> None:
    config = ModelConfig(backbone=VIT)
    reason = pretrained_available(config)
    assert reason is not None and "HF_HUB_OFFLINE is set" in reason
    assert "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors" in reason
    content = safetensors.torch.save(weights)
    folder = cache_repository(offline, "timm/test_vit.r160_in1k", {"model.safetensors": content})
    assert pretrained_available(config) is None
    for given in (config, ModelConfig(backbone=VIT, init="file", weights=str(folder))):
        model = build(VIT, 5)
        report = initialize(model, given, seed=0)
        assert report.replaced == ("head.weight", "head.bias") and not report.missing
        assert torch.equal(model.get_parameter("cls_token"), weights["cls_token"])


def test_a_repository_on_the_hub_is_a_network(offline: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"org/cars/resolve/main/config\.json is neither in"):
        find("hf-hub:org/cars")
    config = {
        "architecture": "test_vit",
        "num_classes": 1000,
        "label_names": {str(number): f"car {number}" for number in range(1000)},
        "pretrained_cfg": {
            "input_size": [3, 160, 160],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "classifier": "head",
            "license": "cc-by-nc-4.0",
        },
    }
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors.torch.save(weights),
    }
    cache_repository(offline, "org/cars", files)
    backbone = find("hf-hub:org/cars")
    assert (backbone.size_px, backbone.normalization) == (160, "half")
    assert backbone.published["imagenet"].license == "cc-by-nc-4.0"
    assert backbone.published["imagenet"].classes == tuple(f"car {n}" for n in range(1000))
    model = build("hf-hub:org/cars", 5)
    report = initialize(model, ModelConfig(backbone="hf-hub:org/cars"), seed=0)
    assert report.replaced == ("head.weight", "head.bias") and not report.missing
    assert torch.equal(model.get_parameter("norm.weight"), weights["norm.weight"])


def test_a_seed_gives_the_same_tokens_and_positions() -> None:
    networks = []
    for salt in (1, 2):
        torch.manual_seed(salt)  # the state of a process must not matter
        network = build(VIT, 3, 32)
        initialize(network, ModelConfig(backbone=VIT, init="he"), seed=0)
        networks.append(network.state_dict())
    assert all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())


def test_tokens_and_positions_have_no_weight_decay() -> None:
    network = build(VIT, 3, 32)
    optim = OptimConfig(optimizer="adamw", weight_decay=0.1)
    undecayed = {
        id(parameter)
        for group in build_optimizer(network, VIT, optim).param_groups
        for parameter in group["params"]
        if group["weight_decay"] == 0
    }
    named = dict(network.named_parameters())
    assert {id(named["cls_token"]), id(named["pos_embed"]), id(named["norm.weight"])} <= undecayed
    assert id(named["blocks.0.attn.qkv.weight"]) not in undecayed
