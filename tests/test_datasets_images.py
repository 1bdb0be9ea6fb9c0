import base64
import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from datasets.decode import jpeg_shape
from datasets.images import (
    BadImage,
    convert,
    encode_jpeg,
    identify_pixels,
    load_image,
)


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"These are the cars of the second hall.\n", "not an image"),
        (b"\xff\xd8\xff\xe0", "not an image"),
        (encode(noise())[:-900], "truncated"),
        (encode(noise(), "PNG")[:-900], "truncated"),
        (encode(noise(), "EPS"), "not an image"),  # opening one would start Ghostscript
        (encode(noise(), "ICO"), "icon"),
        (encode(noise(), "TGA"), "not an image"),  # begins as a cursor does
        (b"\0\0\1\0" + bytes(60), "not an image"),  # an icon without pictures
        (encode(Image.new("F", (8, 8)), "TIFF"), "floating-point pixels"),
        (encode(Image.new("RGB", (60_000, 1)), "PNG"), "too thin"),
        (encode(Image.new("RGB", (3, 301))), "too thin"),
    ],
)
def test_bad_image_says_why(content, reason):
    with pytest.raises(BadImage) as caught:
        convert(content, short_side_px=256)
    assert caught.value.reason.split(":")[0] == reason


def test_what_is_too_thin_or_too_long_is_refused():
    assert load_image(encode(Image.new("RGB", (300, 3)))).shape == (3, 300, 3)
    assert jpeg_shape(encode(Image.new("RGB", (300, 3)))) == (3, 300)
    assert jpeg_shape(encode(Image.new("RGB", (301, 3)))) is None  # what `load_image` refuses
    with pytest.raises(BadImage, match="too thin: its box"):
        convert(encode(noise(width=200)), short_side_px=64, box=(0, 9, 200, 10))
    with pytest.raises(BadImage, match="a side is longer than JPEG allows"):
        encode_jpeg(np.zeros((1, 65_501, 3), np.uint8))


@pytest.mark.parametrize("side", [10_000, 14_000])
def test_bomb_is_found_before_it_is_decoded(side, monkeypatch):
    content = encode(Image.new("L", (side, side)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="decompression bomb"):
        load_image(content)


@pytest.mark.parametrize(
    ("mode", "kind", "colour", "expected"),
    [
        ("CMYK", "JPEG", (0, 255, 255, 0), (255, 0, 0)),
        ("L", "PNG", 90, (90, 90, 90)),
        ("RGBA", "PNG", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", "PNG", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", "PNG", (0, 0), (255, 255, 255)),
        ("I;16", "PNG", 32896, (128, 128, 128)),  # clipping would make it white
        ("I;16", "PNG", 2048, (128, 128, 128)),  # 12 bits in 16
        ("I;16", "PNG", 128, (128, 128, 128)),  # 8 bits in 16
        ("RGB", "GIF", (255, 0, 0), (255, 0, 0)),
        ("RGB", "WEBP", (0, 0, 255), (0, 0, 255)),
        ("RGB", "TIFF", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_every_mode_becomes_rgb(mode, kind, colour, expected):
    image_HWC = load_image(encode(Image.new(mode, (20, 10), colour), kind))
    assert image_HWC.shape == (10, 20, 3) and image_HWC.dtype == np.uint8
    assert np.abs(image_HWC.astype(int) - expected).max() <= 3


def test_palette_with_transparency_becomes_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30])
    assert (load_image(encode(image, "PNG", transparency=0)) == 255).all()


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))  # left half; turned clockwise it is the upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(image, exif=exif)
    jpeg = convert(content, short_side_px=256).jpeg
    assert jpeg != content
    image_HWC = load_image(jpeg)
    assert image_HWC.shape == (40, 20, 3)
    assert image_HWC[:15].mean() > 240 and image_HWC[25:].mean() < 15
    assert Image.open(io.BytesIO(jpeg)).getexif().get(0x0112, 1) == 1


RATIONAL, FLOAT, TEXT = (5, struct.pack("<II", 1, 2)), (11, struct.pack("<f", 1.5)), (2, b"ab\0")


def exif_of(orientation: int, tag: int, kind: int, value: bytes) -> bytes:
    """Exif as TIFF 6.0 has it, with an orientation and one more tag of any type."""
    beside = value if len(value) > 4 else b""
    field = struct.pack("<I", 38) if beside else value.ljust(4, b"\0")
    count = len(value) if kind == TEXT[0] else 1
    entries = sorted(
        [
            struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0),
            struct.pack("<HHI", tag, kind, count) + field,
        ],
        key=lambda entry: struct.unpack("<H", entry[:2]),
    )
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    return head + b"".join(entries) + bytes(4) + beside


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("tag", "value"),
    [
        *((tag, value) for tag in (271, 305, 306, 315, 33432) for value in (RATIONAL, FLOAT)),
        *((tag, TEXT) for tag in (282, 531, 256)),
        (256, (9, struct.pack("<i", -5))),
    ],
)
def test_an_odd_tag_beside_the_orientation_makes_no_image_bad(kind, tag, value):
    """As texts that are numbers, and the other way round."""
    exif = exif_of(6, tag, *value)
    pixels_HWC = np.asarray(Image.open(io.BytesIO(encode(noise(), kind))).convert("RGB"))
    image_HWC = load_image(encode(noise(), kind, exif=exif))
    np.testing.assert_array_equal(image_HWC, np.rot90(pixels_HWC, -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_as_pillow_does(kind):
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(noise(), kind, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        np.testing.assert_array_equal(load_image(content), np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"no TIFF header", b"II*\0\xff\xff\xff\xff", b"II"])
def test_damaged_exif_counts_as_none(kind, exif):
    content = encode(noise(), kind, exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(load_image(content), load_image(encode(noise(), kind)))


def test_plain_jpeg_keeps_its_bytes():
    content = encode(noise(), quality=60)
    assert convert(content, short_side_px=40).jpeg == content


@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": name, "quality": 30} for name in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")),
        {"restart_marker_rows": 1},
        {"optimize": True, "quality": 100},
        {"keep_rgb": True},
        {"progressive": True},
    ],
)
def test_pixels_are_those_of_pillow(options):
    """The same pixels in a JPEG and a PNG have one hash, whichever decoder reads them."""
    for width, height in ((60, 40), (61, 43), (1, 1)):
        content = encode(noise(width, height), **options)
        expected_HWC = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        image_HWC = load_image(content)
        np.testing.assert_array_equal(image_HWC, expected_HWC)
        png = encode(Image.fromarray(expected_HWC), "PNG")
        assert identify_pixels(load_image(png)) == identify_pixels(image_HWC)


def test_a_plain_jpeg_is_decoded_once(monkeypatch):
    content, calls = encode(noise()), []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda jpeg: calls.append(1) or decode(jpeg))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded by Pillow"))
    assert convert(content, short_side_px=256).jpeg == content
    assert calls == [1]


@pytest.mark.parametrize(
    "content",
    [
        encode(noise(), progressive=True),
        encode(noise().convert("L")),
        encode(noise().convert("CMYK")),
        encode(noise(), "PNG"),
    ],
)
def test_other_content_becomes_a_plain_jpeg_of_its_size(content):
    jpeg = convert(content, short_side_px=256).jpeg
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (60, 40))
    assert convert(jpeg, short_side_px=256).jpeg == jpeg


def test_short_side_is_bounded_by_area():
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, ::2] = 200  # every area of four columns averages to 100; a sample is 0 or 200
    jpeg = convert(encode(Image.fromarray(stripes), "PNG"), short_side_px=16).jpeg
    image_HWC = load_image(jpeg)
    assert image_HWC.shape == (16, 32, 3)
    assert np.abs(image_HWC.astype(int) - 100).max() <= 2


def test_box_is_cropped_with_its_margin():
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[20:30, 40:60] = 255
    content = encode(Image.fromarray(pixels))
    exact = load_image(convert(content, short_side_px=256, box=(40, 20, 60, 30)).jpeg)
    assert exact.shape == (10, 20, 3) and exact.mean() > 240
    wider = convert(content, short_side_px=256, box=(40, 20, 60, 30), box_margin=0.5).jpeg
    assert load_image(wider).shape == (20, 40, 3)
    at_edge = convert(content, short_side_px=256, box=(90, 40, 110, 60), box_margin=0.1).jpeg
    assert load_image(at_edge).shape == (12, 12, 3)
    with pytest.raises(BadImage, match="outside"):
        convert(content, short_side_px=256, box=(200, 20, 220, 30))


def test_a_jpeg_that_only_pillow_forgives_is_encoded_anew():
    plain = encode(noise())
    stray = plain[:20] + b"\0\0" + plain[20:]  # between two segments
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(stray)

    again = convert(stray, short_side_px=256).jpeg

    assert simplejpeg.decode_jpeg(again).shape == (40, 60, 3)


TURNED_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAA"
    "AAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAI0AAgAAAAACeQABAAAAAAAAACQAAAA4aWluZgAA"
    "AAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcn"
    "AAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroC"
    "QGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm"
    "5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AA"
    "AAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAA"
    "AOY2RzYwACAAEAAQAAALltZGF0AAAAiSgBrwngOSMkv//5BH//+MRuQ/gUZcF//jBeff43IP/+6witcNaUEUqiGXyM"
    "6T1lCZfV45ditsH6c+2pMp9S6+xr5pggTori3GbeBwRZzFnBufe/fIQtwRg7lVPHisWG1ijUyz83uz/+uqxZShnKGt"
    "hKbN4ARNbOYrFQsePznOyuH0o9ALmN+Q4eAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)
"""64 x 48 pixels, the left half red and the right one blue, with the EXIF orientation 6; written by
pillow-heif 1.8.1."""


def test_a_heic_of_a_phone_is_upright():
    image_HWC = load_image(TURNED_HEIC)
    assert image_HWC.shape == (64, 48, 3)
    for row, colour in ((5, (220, 30, 30)), (58, (30, 30, 220))):
        assert np.abs(image_HWC[row].astype(int) - colour).max() < 8


@pytest.mark.parametrize("content", [TURNED_HEIC[:100], TURNED_HEIC[:-60]])
def test_a_damaged_heic_says_so(content):
    with pytest.raises(BadImage, match=r"HEIC that can't be decoded|unreadable|truncated"):
        load_image(content)
