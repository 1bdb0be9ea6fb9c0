"""JPEG bytes -> RGB pixels."""

import cv2
import numpy as np

# One process per core reads already: OpenCV's own threads would only get in each other's way.
cv2.setNumThreads(0)


def decode(content: bytes) -> np.ndarray:
    """Decode an encoded image to uint8 `[height, width, 3]` RGB, upright by its EXIF orientation.

    Raises:
        ValueError: where the bytes hold no readable image.
    """
    image_HWC = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image_HWC is None:
        raise ValueError(f"image of {len(content)} bytes cannot be decoded")
    return image_HWC
