"""Bytes become the pixels that Pillow and OpenCV give, or a ValueError."""

import io

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datasets.decode import REDUCTIONS, decode, decode_jpeg, jpeg_shape


def _encode(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """67 x 91 pixels of smooth colour: no side is a multiple of a JPEG's blocks."""
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(cv2.resize(coarse, (91, 67), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_jpeg_has_the_pixels_of_pillow_and_opencv(photo, options):
    content = _encode(photo, quality=90, **options)
    opencv = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert jpeg_shape(content) == (67, 91)
    np.testing.assert_array_equal(decode(content), opencv)
    np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content))))


def test_arrow_buffer_is_decoded_like_bytes(photo):
    content = _encode(photo)
    np.testing.assert_array_equal(decode(pa.py_buffer(content)), decode(content))
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(pa.py_buffer(b"no image"))


def test_png_and_grey_become_rgb(photo):
    np.testing.assert_array_equal(decode(_encode(photo, "PNG")), np.asarray(photo))
    grey_HWC = decode(_encode(photo.convert("L")))
    assert grey_HWC.shape == (67, 91, 3)
    assert (grey_HWC == grey_HWC[..., :1]).all()


def test_cmyk_jpeg_has_the_pixels_of_pillow(photo):
    content = _encode(photo.convert("CMYK"))
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(decode(content), expected)


def test_exif_turns_a_jpeg_upright(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    upright = decode(_encode(photo))
    np.testing.assert_array_equal(decode(_encode(photo, exif=exif)), np.rot90(upright, -1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reduced_jpeg_averages_squares_of_pixels(photo, reduction):
    content = _encode(photo, quality=95)
    reduced = decode_jpeg(content, (67, 91), reduction=reduction)
    assert reduced.shape == (-(-67 // reduction), -(-91 // reduction), 3)
    height, width = 67 // reduction, 91 // reduction
    whole = decode(content)[: height * reduction, : width * reduction].astype(float)
    averaged = whole.reshape(height, reduction, width, reduction, 3).mean((1, 3))
    assert np.abs(reduced[:height, :width] - averaged).mean() < 3


def test_truncated_jpeg_is_refused_wherever_it_ends(photo):
    content = _encode(photo, quality=95)
    for length in (0, 1, 2, 20, 200, len(content) // 2, len(content) - 100, len(content) - 1):
        with pytest.raises(ValueError, match=f"image of {length} bytes cannot be decoded"):
            decode(content[:length])
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_jpeg(content[: len(content) // 2], (67, 91), reduction=2)


def test_header_that_claims_too_many_pixels_is_refused_undecoded(photo):
    content = bytearray(_encode(photo))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(ValueError, match="bomb"):
        decode(bytes(content))
