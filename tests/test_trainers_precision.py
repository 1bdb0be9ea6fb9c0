"""`compute.precision auto`: chosen by what computes, once for a run, and kept when it resumes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from cluster.ray_internals import list_gpu_generations
from tests.support.small import small_training
from trainers.config import ComputeConfig, FinetuneConfig, ModelConfig, Precision
from trainers.networks import precision
from trainers.networks.precision import choose_precision, computes_bf16, inference_precision
from trainers.prepare import prepare_run
from trainers.run.folder import write_config

Capable = Callable[..., None]


def compute(value: Precision) -> ComputeConfig:
    return ComputeConfig(precision=value)


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> Capable:
    """Return a function that sets whether the CPUs, and GPUs, of all nodes compute bfloat16."""

    def set_capable(cpus: bool, gpus: bool = True) -> None:
        monkeypatch.setattr(
            precision, "_nodes_compute_bf16", lambda use_gpu: gpus if use_gpu else cpus
        )

    return set_capable


@pytest.mark.parametrize(
    ("capabilities", "before", "on_cpus", "on_gpus"),
    [
        ((True, True), None, "bf16", "bf16"),
        ((False, True), None, "fp32", "bf16"),
        ((True, False), None, "bf16", "fp32"),
        ((True, True), "fp32", "fp32", "fp32"),
        ((False, False), "bf16", "bf16", "bf16"),
        ((True, False), "auto", "fp32", "bf16"),  # what it meant in an older Thaw
    ],
)
def test_auto_is_what_the_machines_compute_or_what_the_run_has(
    capable: Capable,
    capabilities: tuple[bool, bool],
    before: Precision | None,
    on_cpus: Precision,
    on_gpus: Precision,
) -> None:
    capable(*capabilities)
    recorded = compute(before) if before else None
    assert choose_precision(compute("auto"), recorded, use_gpu=False) == compute(on_cpus)
    assert choose_precision(compute("auto"), recorded, use_gpu=True) == compute(on_gpus)
    assert choose_precision(compute("fp16"), recorded, use_gpu=False) == compute("fp16")


def test_a_network_trained_on_gpus_runs_on_machines_without_bfloat16(capable: Capable) -> None:
    capable(cpus=False, gpus=False)
    assert inference_precision(compute("bf16"), use_gpu=False) == compute("fp32")
    assert inference_precision(compute("bf16"), use_gpu=True) == compute("fp32")
    assert inference_precision(compute("fp16"), use_gpu=True) == compute("fp16")
    capable(cpus=True, gpus=True)
    assert inference_precision(compute("bf16"), use_gpu=True) == compute("bf16")
    assert inference_precision(compute("fp16"), use_gpu=False) == compute("bf16")
    assert inference_precision(compute("fp32"), use_gpu=False) == compute("fp32")


@pytest.mark.parametrize(
    ("capabilities", "by_torch", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True, True),
        ({"avx512_bf16": False, "avx512_f": True}, True, False),  # torch emulates it
        ({"bf16": True, "neon": True}, True, True),
        ({"bf16": True, "neon": True}, False, False),  # an Arm build of torch without its library
    ],
)
def test_torch_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    by_torch: bool,
    expected: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: by_torch)
    assert computes_bf16(use_gpu=False) == expected


@pytest.mark.parametrize(
    ("generations", "expected"), [([7], False), ([8], True), ([9, 7], False), ([], True)]
)
def test_the_driver_is_asked_for_gpus(
    monkeypatch: pytest.MonkeyPatch, generations: list[int], expected: bool
) -> None:
    monkeypatch.setattr(precision, "list_gpu_generations", lambda: generations)
    assert computes_bf16(use_gpu=True) == expected


def test_a_machine_without_gpus_has_no_generations() -> None:
    assert bool(list_gpu_generations()) == torch.cuda.is_available()


@pytest.mark.ray
def test_one_node_without_bfloat16_decides(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The raylets of this machine, as if each were a machine, with a GPU."""
    nodes = [
        node
        | {"NodeManagerHostname": node["NodeID"], "Resources": node["Resources"] | {"GPU": 1.0}}
        for node in ray.nodes()
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    last = [node["NodeID"] for node in nodes if node["Alive"]][-1]  # earlier tests leave dead ones
    assert precision._nodes_compute_bf16(False) == computes_bf16(False)
    monkeypatch.setattr(
        precision, "computes_bf16", lambda use_gpu: ray.get_runtime_context().get_node_id() != last
    )
    assert not precision._nodes_compute_bf16(use_gpu=False)
    assert not precision._nodes_compute_bf16(use_gpu=True)


@pytest.mark.ray
def test_a_run_keeps_its_precision(
    ray_cluster: str, easy_data: str, tmp_path: Path, capable: Capable
) -> None:
    config: FinetuneConfig = small_training(
        easy_data, str(tmp_path), model=ModelConfig(backbone="lenet5", init="he")
    )
    auto = replace(config, compute=ComputeConfig())
    capable(True)
    run = prepare_run(auto, here=True)
    assert run.config.compute.precision == "bf16"
    write_config(run.config)
    capable(False)
    assert prepare_run(auto, here=True).config == run.config
    with pytest.raises(ValueError, match=r"compute.precision is 'fp32'.*started with 'bf16'"):
        prepare_run(config, here=True)
    write_config(auto)  # as an older Thaw has
    assert prepare_run(auto, here=True).config.compute.precision == "fp32"
