"""Writes each export format, and loads it back without the original.

ONNX and torch.export graphs take raw pixels: they include the normalization.

B images, S size in pixels, H height, W width, C the channels red, green, blue, K classes.
"""

import importlib.util
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.io.errors import UserError
from cluster.ray_internals import count_cpus
from trainers.config import FinetuneConfig
from trainers.networks.backbones import build
from trainers.networks.weights.tensors import to_safetensors
from trainers.run.combination import CombinedRun
from trainers.step.step import RGB, StepSettings

ONNX_PACKAGES = {
    "onnx": "onnx>=1.23,<2",
    "onnxscript": "onnxscript>=0.7,<0.8",
    "onnxruntime": "onnxruntime>=1.32,<2",
}
"""As the extra `export` in pyproject.toml."""

MAX_ONNX_BYTES = 2**31 - 2**24
"""Of weights: a file is one message of protobuf, which has less than 2 GiB with the graph."""

Run = Callable[[Tensor], Tensor]
"""uint8 images_BHWC -> logits_BK."""


class Classifier(nn.Module):
    """Normalization and network: uint8 images_BHWC -> logits_BK."""

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, network: nn.Module, mean: RGB, std: RGB) -> None:
        """`mean` and `std` of the pixels are on a scale of 0 to 1."""
        super().__init__()
        self.network = network
        # Buffers: tensors created while tracing can't be exported.
        self.register_buffer("mean_C", torch.tensor(mean))
        self.register_buffer("std_C", torch.tensor(std))

    def forward(self, images_BHWC: Tensor) -> Tensor:
        pixels_BHWC = (images_BHWC.float() / 255 - self.mean_C) / self.std_C
        return self.network(pixels_BHWC.permute(0, 3, 1, 2))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network to export."""

    model: nn.Module
    config: FinetuneConfig
    classes: tuple[str, ...]
    settings: StepSettings
    """Of evaluation, in float32."""
    dynamic_batch: bool
    calibration: Mapping[str, Any] | None = None
    """`Calibration.summarize`."""
    backbones: tuple[str, ...] = ()
    """Of an ensemble's networks."""
    combined: CombinedRun | None = None
    """Of a combination of trainings."""

    def describe(self) -> dict[str, Any]:
        """Return the content of config.json: network or networks, what they were combined from,
        classes, pixels, calibration."""
        names: dict[str, Any] = {"backbone": self.config.model.backbone}
        if self.backbones:
            names = {"backbones": list(self.backbones)}
        if self.combined is not None:
            trials = [each.trial for each in self.combined.trials]
            facts = {"kind": self.combined.kind, "trials": trials, "share": self.combined.share}
            names["combined_from"] = facts
        return {
            **names,
            "classes": list(self.classes),
            "size_px": self.config.ingest.size_px,
            "mean": list(self.settings.mean),
            "std": list(self.settings.std),
            "calibration": self.calibration,
        }

    def metadata(self) -> dict[str, str]:
        """Return the same as strings of JSON, for the metadata of each file."""
        return {name: json.dumps(value) for name, value in self.describe().items()}


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """One format."""

    file: str
    write: Callable[[Subject], bytes]
    load: Callable[[bytes], Run]


def _write_safetensors(subject: Subject) -> bytes:
    return to_safetensors(subject.model.state_dict(), {"format": "pt", **subject.metadata()})


def _load_safetensors(content: bytes) -> Run:
    header_bytes = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + header_bytes])["__metadata__"]
    backbone, classes, mean, std, size_px = (
        json.loads(metadata[name]) for name in ("backbone", "classes", "mean", "std", "size_px")
    )
    network = build(backbone, len(classes), size_px)
    network.load_state_dict(safetensors.torch.load(content))
    return Classifier(network, mean, std).eval()


def _trace(subject: Subject) -> torch.export.ExportedProgram:
    size_px = subject.config.ingest.size_px
    # Two images, as a batch size of one would become a constant.
    num_images = 2 if subject.dynamic_batch else 1
    images_BHWC = torch.zeros(num_images, size_px, size_px, 3, dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch", min=1)} if subject.dynamic_batch else None
    classifier = Classifier(subject.model, subject.settings.mean, subject.settings.std).eval()
    return torch.export.export(classifier, (images_BHWC,), dynamic_shapes=(batch,))


def _write_torch_export(subject: Subject) -> bytes:
    content = io.BytesIO()
    torch.export.save(_trace(subject), content, extra_files=subject.metadata())
    return content.getvalue()


def _load_torch_export(content: bytes) -> Run:
    return torch.export.load(io.BytesIO(content)).module()


def _write_onnx(subject: Subject) -> bytes:
    tensors = subject.model.state_dict().values()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if num_bytes > MAX_ONNX_BYTES:
        raise UserError(
            f"the network has {num_bytes / 2**30:.2f} GiB of weights: an ONNX file has less than "
            "2 GiB; export it with --formats safetensors or torch_export"
        )
    program = torch.onnx.export(
        _trace(subject), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(subject.metadata())
    return program.model_proto.SerializeToString()


def open_session(content: bytes, *, shares_cores: bool = False) -> Any:
    """Open an ONNX file on the CPUs.

    Args:
        shares_cores: with other work, of this process or others: threads of the session that have
            nothing to do sleep, where otherwise they keep their cores busy.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if shares_cores:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if (num_cpus := count_cpus()) < (os.cpu_count() or 1):  # onnxruntime counts the machine's
        options.intra_op_num_threads = num_cpus
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def load_onnx(content: bytes) -> Run:
    session = open_session(content)
    return lambda images_BHWC: torch.tensor(session.run(None, {"images": images_BHWC.numpy()})[0])


EXPORTERS: dict[str, Exporter] = {
    "safetensors": Exporter(
        file="model.safetensors", write=_write_safetensors, load=_load_safetensors
    ),
    "onnx": Exporter(file="model.onnx", write=_write_onnx, load=load_onnx),
    "torch_export": Exporter(file="model.pt2", write=_write_torch_export, load=_load_torch_export),
}


def require_onnx() -> None:
    """Check, before any work, that the optional packages are installed.

    Raises:
        UserError: with the command that installs the missing ones.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        needed = " ".join(f"'{ONNX_PACKAGES[name]}'" for name in missing)
        raise UserError(
            f"formats has ONNX: it needs {', '.join(missing)}; pip install {needed}, or leave it "
            "out of --formats"
        )
