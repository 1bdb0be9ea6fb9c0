"""Functions that run on a node and return plain facts.

They import what they check inside, as a failing import is one of the facts.
"""

import base64
import importlib
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import provenance
from cluster.foreign_datasets import find_foreign_datasets
from cluster.ray_internals import find_session_folder

PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "openvino",
    "albumentations",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "numpy",
    "pyarrow",
    "safetensors",
    "wandb",
)
"""What a result depends on; pyproject.toml pins them."""
SHM = Path("/dev/shm")

# A JPEG of 16x16 pixels, all of them (200, 60, 30) within what quality 90 keeps.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4R"
    "DgsLEBYQERMUFRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/wAARCAAQABADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAA"
    "AAf/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAAAAAABwj/xAAUEQEAAAAAAAAAAAAAAAAA"
    "AAAA/9oADAMBAAIRAxEAPwCXgBdYD//Z"
)
JPEG_COLOUR = (200, 60, 30)
COLOUR_TOLERANCE = 4


def find_versions() -> dict[str, str]:
    """Return the version of Python and of every package; `missing` where there is none."""
    missing = dict.fromkeys(PACKAGES, "missing")
    return {"python": platform.python_version()} | missing | provenance.find_versions(PACKAGES)


def find_space() -> dict[str, int | None]:
    """Return bytes of shared memory, and of the disk that objects are spilled to."""
    session = find_session_folder()
    shm = shutil.disk_usage(SHM) if SHM.is_dir() else None
    disk = shutil.disk_usage(session)
    return {
        "shm_total": shm.total if shm else None,
        "disk_total": disk.total,
        "disk_free": disk.free,
    }


def find_broken_decoders() -> dict[str, str]:
    """Decode a JPEG with each decoder of Thaw's; return what went wrong, by decoder."""
    broken = {}
    for name, decode in DECODERS.items():
        try:
            image = decode(JPEG)
        except (ImportError, AttributeError, OSError, ValueError, RuntimeError) as error:
            broken[name] = f"{type(error).__name__}: {error}"
            continue
        middle = [int(value) for value in image[8, 8]]
        off = max(abs(a - b) for a, b in zip(middle, JPEG_COLOUR, strict=True))
        if image.shape != (16, 16, 3) or off > COLOUR_TOLERANCE:
            broken[name] = f"decodes {middle} in place of {list(JPEG_COLOUR)}"
    return broken


def _decode_simplejpeg(jpeg: bytes) -> Any:
    return importlib.import_module("simplejpeg").decode_jpeg(jpeg)


def _decode_opencv(jpeg: bytes) -> Any:
    import cv2
    import numpy as np

    image_BGR = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image_BGR is None:
        raise ValueError("cv2.imdecode returned nothing")
    return image_BGR[..., ::-1]


def _decode_pillow(jpeg: bytes) -> Any:
    import io

    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "simplejpeg": _decode_simplejpeg,
    "cv2": _decode_opencv,
    "PIL": _decode_pillow,
}


def read_clock() -> float:
    """Return Unix time as this node sees it."""
    return time.time()


def find_auth_mode() -> str:
    """Return Ray's authentication mode, as the raylet of this node hands it on."""
    return os.environ.get("RAY_AUTH_MODE", "disabled").lower()


def find_datasets() -> str | None:
    """Return where `datasets` would come from, if not from Thaw."""
    return find_foreign_datasets()
