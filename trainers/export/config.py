"""Options of `export`."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cluster.io.errors import (
    require,
    require_at_least,
    require_not_negative,
    require_share,
)
from cluster.io.markers import URI

Format = Literal["safetensors", "onnx", "torch_export", "hf", "onnx_int8", "onnx_fp16"]

QUANTIZED = {"onnx_int8": "model_int8.onnx", "onnx_fp16": "model_fp16.onnx"}
"""Files whose accuracy is measured, by format."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a run's best network for use elsewhere, with a model card.

      python -m trainers export --run runs/staged --out runs/exported
      python -m trainers export --run runs/staged --out s3://bucket/cars --formats onnx
          --dynamic-batch
      python -m trainers export --run runs/staged --out runs/small
          --formats onnx onnx_int8 onnx_fp16
      python -m trainers export --run runs/staged --out runs/hub --formats hf
          --push ORGANIZATION/NAME

    Each file is loaded again and its logits are compared with the original network's. onnx_int8 and
    onnx_fp16 are measured on the test split, beside onnx.
    """

    run: Annotated[str, URI]
    """Run folder of a training."""
    out: Annotated[str, URI]
    """URI of the folder to write."""
    formats: tuple[Format, ...] = ("safetensors", "onnx", "torch_export")
    """Files to write. onnx needs the extra packages of `pip install '.[export]'`. hf: a folder for
    timm and Hugging Face's Hub."""
    dynamic_batch: bool = False
    """Let ONNX and torch.export take any number of images at once; else one."""
    refused: float = 0.05
    """Share of images of known classes that may be called unknown. If the run is calibrated, this
    sets the threshold in config.json and in the metadata of each file."""
    data: Annotated[str | None, URI] = None
    """URI of the data set that the run was trained on, if it was moved. onnx_int8 and onnx_fp16 are
    measured on it."""
    max_drop: float = 0.01
    """Refuse onnx_int8 and onnx_fp16 if their top-1 is lower than onnx' by more than this."""
    quantization_images: int = 256
    """Training images that calibrate the value ranges of onnx_int8."""
    push: str | None = None
    """Upload the folder hf to this repository, as ORGANIZATION/NAME. A new repository is private.
    Needs a token (HF_TOKEN)."""

    def __post_init__(self) -> None:
        require_not_negative("max_drop", self.max_drop)
        require_at_least("quantization_images", self.quantization_images, 1)
        require(
            self.push is None or "hf" in self.formats,
            "push",
            self.push,
            "only the format hf is uploaded: add hf to --formats",
        )
        require(
            self.data is None or bool(set(self.formats) & QUANTIZED.keys()),
            "data",
            self.data,
            f"no image is read: leave it out, or add {' or '.join(QUANTIZED)} to --formats",
        )
        require_share("refused", self.refused)
        require(
            bool(self.formats),
            "formats",
            self.formats,
            f"choose from {', '.join(get_args(Format))}",
        )
