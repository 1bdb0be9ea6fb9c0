"""A compiled network computes what torch does; one that can't be compiled is computed by torch."""

import copy
import logging
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import Tensor, nn

from tests.conftest import ROOT
from trainers.config import ComputeConfig, FinetuneConfig, ModelConfig
from trainers.inference import forward as forward_module
from trainers.inference import prefix as prefix_module
from trainers.inference.compiled import is_compiled
from trainers.inference.forward import ForwardPass
from trainers.inference.prefix import PrefixActor, open_frozen
from trainers.networks.backbones import build

SIZE_PX = 64


def training_of(backbone: str, size_px: int = SIZE_PX, precision: str = "fp32") -> FinetuneConfig:
    config = FinetuneConfig(
        data="",
        model=ModelConfig(backbone=backbone, init="he", normalization="half"),
        compute=ComputeConfig(precision=precision),  # pyright: ignore[reportArgumentType]
    )
    return replace(config, ingest=replace(config.ingest, size_px=size_px))


def open_pass(model: nn.Module, config: FinetuneConfig, *, compiled: bool) -> ForwardPass:
    return ForwardPass(model, config, threads=1, use_gpu=False, compiled=compiled, batch_size=3)


def random_images(num_images: int, size_px: int = SIZE_PX) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (num_images, size_px, size_px, 3), dtype=torch.uint8, generator=generator
    )


def build_trained(backbone: str, size_px: int) -> nn.Module:
    """Build a network in eval mode whose statistics are not 0 and 1."""
    torch.manual_seed(0)
    model = build(backbone, 5, size_px)
    model(torch.rand(4, 3, size_px, size_px))
    return model.eval()


@pytest.mark.parametrize(
    "backbone",
    [
        "mobilenet_v2",
        "densenet121",
        "tf_efficientnet_lite0",
        "swin_tiny_patch4_window7_224",
        "convnextv2_atto",
    ],
)
def test_a_compiled_network_computes_the_same(backbone: str, one_thread: None) -> None:
    """Also in batches that are not full."""
    model, config = build_trained(backbone, SIZE_PX), training_of(backbone)
    images_NSSC = random_images(7)
    compiled = open_pass(model, config, compiled=True)
    (found_NK,) = compiled(images_NSSC)
    (known_NK,) = open_pass(model, config, compiled=False)(images_NSSC)

    assert compiled.compiled, "OpenVINO compiled it"
    assert found_NK.dtype == torch.float32 and found_NK.shape == (7, 5)
    torch.testing.assert_close(found_NK, known_NK, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled(images_NSSC[:1])[0], found_NK[:1], rtol=1e-4, atol=1e-5)


def test_a_network_that_looks_at_its_images_is_computed_by_torch(
    caplog: pytest.LogCaptureFixture, one_thread: None
) -> None:
    class Choosing(nn.Module):
        def forward(self, images_BCSS: Tensor) -> Tensor:
            means_BC = images_BCSS.mean((2, 3))
            return means_BC if means_BC.sum() > 1e9 else -means_BC

    config, images_NSSC = training_of("lenet5", 32), random_images(2, 32)
    with caplog.at_level(logging.INFO):
        (found_NC,) = open_pass(Choosing().eval(), config, compiled=True)(images_NSSC)
    expected_NC = -(images_NSSC.float() / 127.5 - 1).mean((1, 2))

    assert "torch computes it" in caplog.text
    torch.testing.assert_close(found_NC, expected_NC, rtol=1e-4, atol=1e-5)


def test_a_trace_leaves_nothing_in_the_network(one_thread: None) -> None:
    """LeViT keeps its attention biases in eval mode."""
    model, config = build_trained("levit_128s", 224), training_of("levit_128s", 224)
    images_NSSC = random_images(2, 224)
    (known_NK,) = open_pass(copy.deepcopy(model), config, compiled=False)(images_NSSC)
    for _ in range(2):
        compiled = open_pass(model, config, compiled=True)
        assert compiled.compiled
        torch.testing.assert_close(compiled(images_NSSC)[0], known_NK, rtol=1e-4, atol=1e-4)
    pickle.dumps(model)  # as to an actor


def test_features_kept_under_another_computation_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, one_thread: None
) -> None:
    frozen = open_frozen(training_of("lenet5", 32), 5)
    monkeypatch.setattr(prefix_module.ray, "get", lambda network: network)
    monkeypatch.setattr(forward_module, "CompiledNetwork", refuse_to_compile)
    for compiled in (False, True):
        assert not caplog.records
        PrefixActor([(frozen, [1], compiled)], threads=1, use_gpu=False)  # pyright: ignore
    assert "lenet5: torch computes features that are kept as OpenVINO's" in caplog.text


def refuse_to_compile(*arguments: object) -> None:
    raise RuntimeError("no rule for this operation")


@pytest.mark.ray
def test_features_of_some_stages_are_computed_compiled(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = open_frozen(training_of("mobilenet_v2"), 5, pooled=True)
    images_NSSC = random_images(5).numpy()
    computed: list[list[np.ndarray]] = []
    for compiled in (False, True):
        monkeypatch.setattr(prefix_module, "is_compiled", lambda *_, answer=compiled, **__: answer)
        actor = PrefixActor([(ray.put(frozen), [2, 7], compiled)], threads=1, use_gpu=False)
        computed.append(actor(images_NSSC))
        assert bool(actor._passes[0].compiled) is compiled
        assert ("OpenVINO" in frozen.describe(7, use_gpu=False)["computed_in"]) is compiled

    assert [output.shape for output in computed[1]] == [(5, 24), (5, 1280)]
    for known, found in zip(*computed, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-3, atol=1e-4)


def test_few_small_images_and_gpus_are_left_to_torch() -> None:
    at_224_px, at_32_px = (training_of("mobilenet_v2", size_px) for size_px in (224, 32))

    assert is_compiled(at_224_px, 2000, use_gpu=False) and is_compiled(at_224_px, use_gpu=False)
    assert not is_compiled(at_224_px, 1000, use_gpu=False)
    assert not is_compiled(at_32_px, use_gpu=False)
    assert not is_compiled(at_224_px, 2000, use_gpu=True)


def test_a_process_that_has_compiled_can_be_interrupted() -> None:
    """In a process of its own, which a fault would end."""
    lines = [
        "import signal",
        "from tests.test_trainers_compiled import *",
        "model, config = build('lenet5', 5, 32).eval(), training_of('lenet5', 32)",
        "first, second = (open_pass(model, config, compiled=True) for _ in range(2))",
        "assert first.compiled and second.compiled",
        "del first",
        "del second",
        "signal.raise_signal(signal.SIGINT)",
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.stderr.endswith("KeyboardInterrupt\n"), (run.returncode, run.stderr)


def test_nobody_is_told_that_openvino_is_used(tmp_path: Path) -> None:
    """`openvino_telemetry`, which it depends on, sends a message when openvino is imported."""
    lines = [
        "import sys",
        "from tests.test_trainers_compiled import *",
        "model, config = build('lenet5', 5, 32).eval(), training_of('lenet5', 32)",
        "compiled = open_pass(model, config, compiled=True)",
        "compiled(random_images(2, 32))",
        "assert compiled.compiled and 'openvino' in sys.modules",
        "assert sys.modules['openvino_telemetry'] is None",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path)},
        check=True,
    )
    assert not (tmp_path / "intel").exists(), "the telemetry's folder"
