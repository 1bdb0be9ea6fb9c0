"""ONNX in 8-bit integers or 16-bit floats, with its accuracy beside the original's.

B images, H x W pixels, C channels, K classes; N images of a split.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.terminal import report
from datasets.manifest import Manifest
from datasets.plan import IGNORE_INDEX
from trainers.config import FinetuneConfig
from trainers.evaluation.split import read_labelled, read_paths
from trainers.export.formats import open_session
from trainers.export.model_card import Measured
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import has_trained_on, open_data
from trainers.stops import require_readable

BLOCK = 64
"""Images in memory at once."""


@dataclass(frozen=True, kw_only=True)
class MeasuredImages:
    """The data set of a training, and the split to measure on."""

    config: FinetuneConfig
    manifest: Manifest
    split: str
    trained: bool
    """Whether these images trained the network."""


def open_images(
    config: FinetuneConfig, progress: TrainingProgress, data: str | None
) -> MeasuredImages:
    """Open the data set of a training, at `data` if it was moved; measure on the test split, or on
    validation where there is none.

    Raises:
        UserError: where it is another one: labels, and thus accuracy, would be of other classes.
    """
    at = config.data if data is None else storage.absolute(data, "data")
    config, manifest = open_data(config, progress.fingerprint, at)
    if manifest.fingerprint != progress.fingerprint:
        raise UserError(
            f"data is {at!r}: it is not the data set that the run was trained on, or was prepared "
            "again since; give that one by --data, or leave onnx_int8 and onnx_fp16 out of "
            "--formats"
        )
    split = next(name for name in ("test", "val", "train") if name in manifest.splits)
    trained = has_trained_on(split, manifest.fingerprint, config, progress)
    return MeasuredImages(config=config, manifest=manifest, split=split, trained=trained)


def to_int8(content: bytes, images: Iterator[np.ndarray]) -> bytes:
    """Quantize convolutions and linear layers to 8 bits: weights by channel, activations by their
    range over `images`, each uint8 `[1, H, W, C]`."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            image_BHWC = next(images, None)
            return None if image_BHWC is None else {"images": image_BHWC}

    with tempfile.TemporaryDirectory() as folder:
        given, folded, out = (Path(folder, f"{name}.onnx") for name in ("a", "b", "c"))
        given.write_bytes(content)
        quant_pre_process(str(given), str(folded))  # folds BatchNorm
        quantization.quantize_static(
            str(folded),
            str(out),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return out.read_bytes()


def to_fp16(content: bytes) -> bytes:
    """Convert weights and computation to 16-bit floats; pixels and logits keep their types."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load_from_string(content)
    return convert_float_to_float16(model, keep_io_types=True).SerializeToString()


def quantize(name: str, content: bytes, images: MeasuredImages, *, num_images: int) -> bytes:
    """Return a smaller file of an ONNX file; `num_images` training images calibrate 8 bits."""
    if name == "onnx_fp16":
        return to_fp16(content)
    total = images.manifest.split("train").num_images
    rows = np.linspace(0, total - 1, min(num_images, total)).astype(int).tolist()
    read = read_images(images, "train", rows)
    return to_int8(content, (image_HWC[None] for image_HWC, _ in read))


def read_images(
    images: MeasuredImages, split: str, rows_N: Sequence[int]
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield image_HWC and label of the readable images of rows, as evaluation sees them.

    Raises:
        UserError: at the end, where more are unreadable than the training allows, or all are.
    """
    config, manifest = images.config, images.manifest
    unreadable: list[int] = []
    for start in range(0, len(rows_N), BLOCK):
        rows_B = rows_N[start : start + BLOCK]
        images_BHWC, labels_B = read_labelled(config, manifest, split, rows_B)
        for row, image_HWC, label in zip(rows_B, images_BHWC, labels_B, strict=True):
            if label == IGNORE_INDEX:
                unreadable.append(row)
            else:
                yield image_HWC, int(label)
    if unreadable:
        first = read_paths(config.data, manifest.split(split))[unreadable[0]].as_py()
        found = require_readable(config, len(unreadable), len(rows_N), split, first)
        report(found, warning=True)
        if len(unreadable) == len(rows_N):
            raise UserError(f"data is {config.data!r}: {found}; repair or prepare the data again")


def measure_onnx(content: bytes, images: MeasuredImages) -> Measured:
    """Run an ONNX file on the readable images of the split, one by one."""
    session = open_session(content)
    rows = list(range(images.manifest.split(images.split).num_images))
    correct, times = 0, list[float]()
    for image_HWC, label in read_images(images, images.split, rows):
        started = time.perf_counter()
        logits_BK = np.asarray(session.run(None, {"images": image_HWC[None]})[0])
        times.append(time.perf_counter() - started)
        correct += int(logits_BK[0].argmax() == label)
    return Measured(
        top1=correct / len(times),
        ms=float(np.median(times) * 1000),
        split=images.split,
        num_images=len(times),
        num_unreadable=len(rows) - len(times),
        trained=images.trained,
    )
