"""Encoded images -> RGB pixels.

simplejpeg is faster than OpenCV, gives bit-identical pixels and refuses a truncated JPEG, which
OpenCV silently fills with grey. Its fast DCT and upsampling stay off: they would save at most 5
percent of a view, and no other decoder would give the same pixels.

H height, W width, C the channels red, green, blue.
"""

import math

import numpy as np
import pyarrow as pa
import simplejpeg

from cluster.io.errors import UserError
from datasets.images import MAX_PIXELS, BadImage, is_too_thin, load_image

Content = bytes | pa.Buffer

REDUCTIONS = (8, 4, 2)
"""Scales 1/n at which a JPEG can be decoded, for less than at full size."""

_HEAD_BYTES = 4096  # Exif is at the start of a file, before its tables and pixels


def jpeg_shape(content: Content) -> tuple[int, int] | None:
    """Return height and width of a JPEG whose pixels are upright, without decoding them.

    Returns None for anything `decode_jpeg` must not decode: other formats, CMYK, JPEGs with Exif
    (their pixels may be rotated), images too large or too thin, damaged headers.
    """
    encoded = np.frombuffer(content, np.uint8)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    shape_HW = int(height), int(width)
    if math.prod(shape_HW) > MAX_PIXELS or is_too_thin(*shape_HW):
        return None
    if colorspace in ("CMYK", "YCCK"):
        return None
    return None if b"Exif\0" in encoded[:_HEAD_BYTES].tobytes() else shape_HW


def decode_jpeg(content: Content, shape_HW: tuple[int, int], *, reduction: int = 1) -> np.ndarray:
    """Decode a JPEG of `jpeg_shape` to uint8 `[ceil(H / reduction), ceil(W / reduction), 3]` RGB.

    A reduction of REDUCTIONS averages squares of pixels before they are computed (scaled DCT).

    Raises:
        UserError: where the JPEG is truncated or visibly damaged.
    """
    height, width = (-(-side // reduction) for side in shape_HW)
    encoded = np.frombuffer(content, np.uint8)
    try:
        return simplejpeg.decode_jpeg(encoded, min_height=height, min_width=width)
    except ValueError as error:
        raise UserError(f"image of {len(encoded)} bytes cannot be decoded: {error}") from error


def decode(content: Content) -> np.ndarray:
    """Decode an image of any common format to uint8 `[H, W, 3]` RGB, upright by its Exif.

    Raises:
        UserError: where the bytes hold no readable image.
    """
    shape_HW = jpeg_shape(content)
    if shape_HW is not None:
        return decode_jpeg(content, shape_HW)
    try:
        return load_image(memoryview(content).tobytes())
    except BadImage as error:
        raise UserError(f"image of {len(content)} bytes cannot be decoded: {error}") from error
