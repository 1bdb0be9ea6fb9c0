"""ONNX in 8-bit integers or 16-bit floats, with its accuracy beside the original's.

B images, H x W pixels, C channels, K classes; N images of a split.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from trainers.evaluation.split import read_labelled
from trainers.export.formats import Subject, open_session
from trainers.export.model_card import Measured

BLOCK = 64
"""Images in memory at once."""


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


def quantize(name: str, content: bytes, subject: Subject, *, num_images: int) -> bytes:
    """Return a smaller file of an ONNX file; `num_images` training images calibrate 8 bits."""
    if name == "onnx_fp16":
        return to_fp16(content)
    config = subject.config
    manifest = read_manifest(config.data, config.fold)
    total = manifest.split("train").num_images
    rows = np.linspace(0, total - 1, min(num_images, total)).astype(int)
    blocks = read_blocks(subject, manifest, "train", rows)
    return to_int8(content, (image[None] for images, _ in blocks for image in images))


def read_blocks(
    subject: Subject, manifest: Manifest, split: str, rows_N: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images_BHWC and labels_B of rows of a split, as evaluation sees them."""
    for start in range(0, len(rows_N), BLOCK):
        yield read_labelled(subject.config, manifest, split, rows_N[start : start + BLOCK].tolist())


def measure_onnx(content: bytes, subject: Subject) -> Measured:
    """Run an ONNX file on the test split, or validation where there is none, image by image."""
    config = subject.config
    manifest = read_manifest(config.data, config.fold)
    split = "test" if "test" in manifest.splits else "val"
    session = open_session(content)
    num_images, correct = manifest.split(split).num_images, 0
    times: list[float] = []
    for images_BHWC, labels_B in read_blocks(subject, manifest, split, np.arange(num_images)):
        for image_HWC, label in zip(images_BHWC, labels_B, strict=True):
            started = time.perf_counter()
            logits_BK = np.asarray(session.run(None, {"images": image_HWC[None]})[0])
            times.append(time.perf_counter() - started)
            correct += int(logits_BK[0].argmax() == label)
    return Measured(
        top1=correct / num_images,
        ms=float(np.median(times) * 1000),
        split=split,
        num_images=num_images,
    )
