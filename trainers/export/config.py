"""Options of `export`."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cluster.io.errors import require, require_share
from cluster.io.markers import URI

Format = Literal["safetensors", "onnx", "torch_export"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a run's best network for use elsewhere, with a model card.

      python -m trainers export --run runs/cars --out runs/exported
      python -m trainers export --run runs/cars --out s3://bucket/cars --formats onnx
          --dynamic-batch

    Every file is loaded back and its logits are compared with the original's.
    """

    run: Annotated[str, URI]
    """Run folder of a training."""
    out: Annotated[str, URI]
    """URI of the folder to write."""
    formats: tuple[Format, ...] = ("safetensors", "onnx", "torch_export")
    """Which files to write; onnx needs the extra packages of `pip install '.[export]'`."""
    dynamic_batch: bool = False
    """Let ONNX and torch.export take any number of images at once; else one."""
    refused: float = 0.05
    """Share of images of known classes that may be called unknown; sets the threshold in
    config.json and in the metadata of each file, where the run is calibrated."""

    def __post_init__(self) -> None:
        require_share("refused", self.refused)
        require(
            bool(self.formats),
            "formats",
            self.formats,
            f"choose from {', '.join(get_args(Format))}",
        )
