"""Pretrained weights: files are loaded whole or refused, and the report says which tensors."""

import pickle
import re
import urllib.error
import urllib.request
from dataclasses import asdict
from math import sqrt
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from tests.support.networks import SEED, mobilenet_config, random_state, state
from trainers.config import RANDOM, Init, ModelConfig
from trainers.networks import downloads
from trainers.networks.backbones import build
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.loading import LoadReport
from trainers.networks.weights.pretrained import pretrained_available

pytestmark = pytest.mark.usefixtures("one_thread")
MOBILENET_V2_FILES = {
    "imagenet": "mobilenet_v2-7ebf99e0.pth",
    "imagenet_v1": "mobilenet_v2-b0353104.pth",
    "imagenet_v2": "mobilenet_v2-7ebf99e0.pth",
}


@pytest.fixture(scope="module")
def source() -> dict[str, Tensor]:
    return random_state("mobilenet_v2", 1000)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch hub, with no network behind it."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(downloads.huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache


def test_a_file_loads_with_its_head_replaced(source: dict[str, Tensor], tmp_path: Path):
    torch.save(source, tmp_path / "weights.pth")
    config = mobilenet_config("file", tmp_path / "weights.pth")
    model = build("mobilenet_v2", 7)
    report = initialize(model, config, seed=SEED)
    assert report.replaced == ("classifier.1.weight", "classifier.1.bias")
    assert not report.missing and not report.unexpected
    assert str(report) == (
        "312 tensors loaded; 2 of a head replaced (classifier.1.weight, classifier.1.bias); "
        "0 missing; 0 unexpected"
    )
    found = model.state_dict()
    assert all(torch.equal(found[name], source[name]) for name in report.loaded)
    bound = 1 / sqrt(1280)  # torch's default of a linear layer
    drawn = found["classifier.1.weight"]
    assert drawn.shape == (7, 1280)
    assert drawn.abs().max().item() == pytest.approx(bound, rel=1e-2)

    again = build("mobilenet_v2", 7)
    initialize(again, config, seed=SEED)
    assert torch.equal(again.get_parameter("classifier.1.weight"), drawn)


def test_a_file_of_another_depth_loads_what_fits_and_lists_the_rest(tmp_path: Path):
    torch.save(given := random_state("efficientnet_b0", 5), tmp_path / "weights.pth")
    config = ModelConfig(
        backbone="efficientnet_b1", init="file", weights=str(tmp_path / "weights.pth")
    )
    report = initialize(model := build("efficientnet_b1", 5), config, seed=SEED)
    assert set(report.loaded) == set(given)
    assert set(asdict(report)["missing"]) == set(model.state_dict()) - set(given)
    assert len(report.missing) > 100 and not report.unexpected
    last = "features.1.1.block.0.0.weight"  # EfficientNetB0 has one block there
    assert last in report.missing
    assert torch.equal(model.state_dict()["classifier.1.weight"], given["classifier.1.weight"])


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("mobilenet_v1", ["classifier.weight", "classifier.bias"]),
        (
            "inception_v3",
            ["AuxLogits.fc.weight", "AuxLogits.fc.bias", "fc.weight", "fc.bias"],
        ),
    ],
)
def test_every_head_of_another_class_count_is_replaced(
    name: str, replaced: list[str], tmp_path: Path
):
    torch.save(given := random_state(name, 12), tmp_path / "weights.pth")
    config = ModelConfig(backbone=name, init="file", weights=str(tmp_path / "weights.pth"))
    report = initialize(model := build(name, 7), config, seed=SEED)
    assert list(report.replaced) == replaced
    assert set(report.loaded) == set(given) - set(replaced)
    assert all(
        torch.equal(t, given[key]) for key, t in state(model).items() if key in report.loaded
    )


def test_old_names_of_densenet_are_understood(tmp_path: Path):
    """torchvision's published files have them, and it renames them where its models are built."""
    given = random_state("densenet121", 5)
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): t for key, t in given.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "weights.pth")
    config = ModelConfig(backbone="densenet121", init="file", weights=str(tmp_path / "weights.pth"))
    report = initialize(build("densenet121", 5), config, seed=SEED)
    assert set(report.loaded) == set(given)
    assert not report.missing and not report.unexpected


@pytest.mark.parametrize(
    "wrapping", ["bare", "state_dict", "model", "ddp", "safetensors", "run", "other name"]
)
def test_every_wrapping_of_a_state_dict_is_read(
    wrapping: str, source: dict[str, Tensor], tmp_path: Path
):
    file = tmp_path / "weights.pt"
    if wrapping in ("state_dict", "model"):
        torch.save({wrapping: source, "epoch": 3}, file)
    elif wrapping == "ddp":
        torch.save({f"module.{name}": tensor for name, tensor in source.items()}, file)
    elif wrapping == "safetensors":
        file = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(source, file)
    elif wrapping == "run":
        safetensors.torch.save_file(source, tmp_path / "model.safetensors")
        file = tmp_path  # a checkpoint folder
    elif wrapping == "other name":
        torch.save(source, file := tmp_path / "weights.pth.tar")
    else:
        torch.save(source, file)
    config = mobilenet_config("file", file)
    assert pretrained_available(config) is None
    model = build("mobilenet_v2", 1000)
    report = initialize(model, config, seed=SEED)
    assert set(report.loaded) == set(source)
    assert all(torch.equal(t, source[name]) for name, t in model.state_dict().items())


def test_what_a_file_lacks_or_has_too_much_is_reported(source: dict[str, Tensor], tmp_path: Path):
    lacking = "features.18.0.weight"
    given = {name: tensor for name, tensor in source.items() if name != lacking}
    torch.save({**given, "teacher.weight": torch.ones(2)}, tmp_path / "weights.pth")
    config = mobilenet_config("file", tmp_path / "weights.pth")
    models = [build("mobilenet_v2", 1000) for _ in range(2)]
    reports = [initialize(model, config, seed=SEED) for model in models]
    assert reports[0].missing == (lacking,)
    assert reports[0].unexpected == ("teacher.weight",)
    assert "1 missing (features.18.0.weight); 1 unexpected (teacher.weight)" in str(reports[0])
    first, second = (model.get_parameter(lacking) for model in models)
    assert torch.equal(first, second)  # drawn from the seed, not left to chance


def test_a_report_names_the_first_and_counts_the_rest():
    report = LoadReport(loaded=("a",), missing=tuple("bcdefg"))
    assert str(report) == (
        "1 tensors loaded; 0 of a head replaced; 6 missing (b, c, d, e and 2 more); 0 unexpected"
    )


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused(save: str, tmp_path: Path):
    marker, file = tmp_path / "ran", tmp_path / "weights.pth"
    if save == "torch":
        torch.save({"features.0.0.weight": RunsCode(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(RunsCode(marker)))
    with pytest.raises(ValueError, match=r"model\.weights is '.*weights\.pth': .*refused"):
        initialize(build("mobilenet_v2", 5), mobilenet_config("file", file), seed=SEED)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all, but longer than a header", "torn"])
def test_a_damaged_file_is_refused(
    name: str, content: bytes | str, source: dict[str, Tensor], tmp_path: Path
):
    file = tmp_path / name
    if content == "torn":
        save = torch.save if name.endswith(".pth") else safetensors.torch.save_file
        save(source, file)
        content = file.read_bytes()[:1_000_000]
    assert isinstance(content, bytes)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.weights is '.*': damaged"):
        initialize(build("mobilenet_v2", 5), mobilenet_config("file", file), seed=SEED)


def test_a_missing_file_is_named(tmp_path: Path):
    config = mobilenet_config("file", tmp_path / "weights.pth")
    reason = pretrained_available(config)
    assert reason is not None and reason.startswith(f"model.weights is '{tmp_path}/weights.pth'")
    with pytest.raises(ValueError, match=r"model\.weights is '.*weights\.pth': no file there"):
        initialize(build("mobilenet_v2", 5), config, seed=SEED)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conv1.weight": torch.ones(64, 3, 7, 7)}, "none of its 1 tensors belongs to"),
        ({"classifier.1.bias": torch.ones(5)}, "none of its 1 tensors belongs to"),
        ({"features.0.0.weight": torch.ones(16, 3, 3, 3)}, r"features\.0\.0\.weight has shape"),
        ([torch.ones(3)], "not a state dict"),
    ],
)
def test_weights_of_another_network_are_refused(values: object, message: str, tmp_path: Path):
    torch.save(values, tmp_path / "weights.pth")
    model = build("mobilenet_v2", 5)
    before = state(model)
    with pytest.raises(ValueError, match=rf"model\.weights is '.*': .*{message}"):
        initialize(model, mobilenet_config("file", tmp_path / "weights.pth"), seed=SEED)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("init", ["imagenet", "imagenet_v1", "imagenet_v2"])
def test_imagenet_weights_come_from_the_cache_of_torch_hub(
    init: Init, hub: Path, source: dict[str, Tensor]
):
    config = mobilenet_config(init)
    reason = pretrained_available(config)
    assert reason is not None and MOBILENET_V2_FILES[init] in reason and "no route" in reason
    torch.save(source, hub / MOBILENET_V2_FILES[init])
    assert pretrained_available(config) is None
    model = build("mobilenet_v2", 20)
    report = initialize(model, config, seed=SEED)
    assert report.replaced == ("classifier.1.weight", "classifier.1.bias")
    assert torch.equal(model.get_parameter("features.0.0.weight"), source["features.0.0.weight"])


@pytest.mark.parametrize(
    ("name", "init", "remedy"),
    [
        ("lenet5", "imagenet", "use a random one such as he"),
        ("resnet152_v2", "imagenet", "use a random one such as he"),
        ("vgg16", "imagenet_v2", "use imagenet or imagenet_v1"),
        ("xception", "imagenet_v1", "use imagenet"),
    ],
)
def test_weights_nobody_publishes_are_named(name: str, init: Init, remedy: str):
    config = ModelConfig(backbone=name, init=init)
    message = (
        rf"model\.init is '{init}': no such weights of {name} are published; {remedy}, or give"
    )
    with pytest.raises(ValueError, match=message):
        pretrained_available(config)


def test_timm_reads_its_own_weights(hub: Path, monkeypatch: pytest.MonkeyPatch):
    config = ModelConfig(backbone="efficientnet_v2_b0", init="imagenet")
    reason = pretrained_available(config)
    assert reason is not None and "timm/tf_efficientnetv2_b0.in1k/resolve/main/model.saf" in reason
    cached = {"timm/tf_efficientnetv2_b0.in1k": str(hub / "model.safetensors")}
    monkeypatch.setattr(
        downloads.huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, file, revision: cached.get(repo),
    )
    monkeypatch.setattr(downloads.HubFiles, "download", lambda self: cached[self.repository])
    assert pretrained_available(config) is None

    full, model = build("efficientnet_v2_b0", 1000), build("efficientnet_v2_b0", 5)
    asked = []
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, *, pretrained: asked.append((name, pretrained)) or full,
    )
    report = initialize(model, config, seed=SEED)
    assert asked == [("tf_efficientnetv2_b0.in1k", True)]
    assert report.replaced == ("classifier.weight", "classifier.bias")
    assert not report.missing and not report.unexpected
    assert torch.equal(
        model.get_parameter("conv_stem.weight"), full.get_parameter("conv_stem.weight")
    )


def test_a_file_stands_in_for_a_download(hub: Path, source: dict[str, Tensor]):
    torch.save(source, hub.parent / "given.pth")
    config = mobilenet_config("imagenet", hub.parent / "given.pth")
    assert pretrained_available(config) is None
    initialize(model := build("mobilenet_v2", 20), config, seed=SEED)
    assert torch.equal(
        model.get_buffer("features.0.1.running_mean"), source["features.0.1.running_mean"]
    )


@pytest.mark.parametrize("init", RANDOM)
def test_random_weights_need_no_network(init: Init, hub: Path):
    assert pretrained_available(mobilenet_config(init)) is None


@pytest.mark.shared
@pytest.mark.parametrize("num_classes", [1000, 20])
def test_the_real_mobilenet_v2_file_loads_wholly(num_classes: int, shared_dir: Path):
    config = mobilenet_config("imagenet", shared_dir / "weights" / "mobilenet_v2_imagenet.pth")
    model = build("mobilenet_v2", num_classes)
    report = initialize(model, config, seed=SEED)
    head = ("classifier.1.weight", "classifier.1.bias")
    assert report.replaced == (() if num_classes == 1000 else head)
    assert set(report.loaded) == set(model.state_dict()) - set(report.replaced)
    assert not report.missing and not report.unexpected
