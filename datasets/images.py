"""One image: bytes of any common format, validated by decoding them, as JPEG bytes.

H height, W width, C the channels red, green, blue.
"""

import io
import re
import struct
import warnings
import zlib
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
import xxhash
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

MAX_PIXELS = 50_000_000
JPEG_QUALITY = 95
JPEG_SCAN = b"\xff\xda"
MAX_SCANS = 100
"""Of a progressive JPEG; ten are usual. A scan may have 14 bytes but takes a pass over all pixels:
a megabyte of scans would take hours."""
MAX_JPEG_SIDE_PX = 65_500
MAX_ASPECT = 100
"""Long side by short side. Enlarging the short side of a thinner image to the size of a view would
take gigabytes."""

# Formats that Pillow may open. EPS and the like start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_HEIC = re.compile(rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)
# Exceptions that Pillow's decoders raised on damaged files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION_TAG, _SUBFILE_TAG, _DNG_TAG = 0x0112, 254, 50706
_UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of an Exif orientation upright."""
_WHITES = (2**8 - 1, 2**10 - 1, 2**12 - 1, 2**16 - 1)
"""White in files of 16 bits: cameras write 10 or 12 bits into them as they are. A picture whose
brightest pixel has a sixteenth of 16 bits would be as good as black."""
_RAW = "raw photograph: convert it to JPEG"
_FOREIGN = (
    ("HEIC that can't be decoded: convert it to JPEG", _HEIC.pattern),
    (_RAW, rb".{4}ftypcrx |II(U\0|RO|RS)|MMOR|FUJIFILMCCD-RAW|FOVb"),
    ("video, not an image", rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3"),
    ("JPEG XL: convert it to JPEG", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG 2000: convert it to JPEG", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "),
    ("file of Photoshop: convert it to JPEG", rb"8BPS"),
    ("PDF: convert its pages to JPEG", rb"%PDF-"),
    ("HDR image: convert it to JPEG", rb"v/1\x01|#\?RADIANCE|#\?RGBE"),
    ("icon", rb"\0\0\x01\0(?!\0\0)"),
    ("archive or Office document, not an image", rb"PK\x03\x04|Rar!|7z\xbc\xaf"),
    ("pointer of Git LFS: get its file by `git lfs pull`", rb"version https://git-lfs"),
)
"""Reasons to leave out files that are often among photographs, by how they begin."""


class BadImage(Exception):
    """An image to leave out; the reason is a few words, detail after a colon."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def is_too_thin(height: int, width: int) -> bool:
    return max(height, width) > MAX_ASPECT * min(height, width)


def load_image(content: bytes) -> np.ndarray:
    """Decode a whole image, upright, to `[H, W, 3]` uint8 RGB; transparency becomes white.

    Raises:
        BadImage: for an empty, foreign, truncated or damaged file, and, before it is decoded, for
            one above 50 megapixels, MAX_ASPECT or MAX_SCANS.
    """
    return _load(content)[0]


class Converted(NamedTuple):
    jpeg: bytes
    num_pixels: int
    """Of the JPEG."""
    source_HWC: np.ndarray
    """The whole image, as `load_image` returns it."""


def convert(
    content: bytes,
    *,
    short_side_px: int,
    box: tuple[int, int, int, int] | None = None,
    box_margin: float = 0.0,
) -> Converted:
    """Validate an image and return it as a JPEG whose short side is at most `short_side_px`.

    A baseline RGB JPEG that needs no change keeps its bytes. A JPEG that Pillow decodes and the
    stricter decoder of the stream refuses is encoded again.

    Args:
        box: x1, y1, x2, y2 in pixels, to which the image is cropped.
        box_margin: widens the box on each side by this share of its size.

    Raises:
        BadImage: as `load_image`, and for a box outside the image.
    """
    image_HWC, is_plain_jpeg = _load(content)
    keeps_size = box is None and min(image_HWC.shape[:2]) <= short_side_px
    if is_plain_jpeg and keeps_size:
        return Converted(content, image_HWC.shape[0] * image_HWC.shape[1], image_HWC)
    kept_HWC = image_HWC
    if box is not None:
        kept_HWC = _crop(image_HWC, box, box_margin)
        if is_too_thin(*kept_HWC.shape[:2]):
            raise BadImage(f"too thin: its box's sides differ more than {MAX_ASPECT} times")
    kept_HWC = _bound_short_side(kept_HWC, short_side_px)
    return Converted(encode_jpeg(kept_HWC), kept_HWC.shape[0] * kept_HWC.shape[1], image_HWC)


def identify_pixels(image_HWC: np.ndarray) -> int:
    """Return a non-negative int64 that is the same for the same pixels, whatever file has them."""
    hashed = xxhash.xxh3_64(np.ascontiguousarray(image_HWC).data)
    hashed.update(struct.pack("<ii", *image_HWC.shape[:2]))
    return hashed.intdigest() & (2**63 - 1)


def encode_jpeg(image_HWC: np.ndarray) -> bytes:
    if max(image_HWC.shape) > MAX_JPEG_SIDE_PX:
        raise BadImage("a side is longer than JPEG allows")
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _load(content: bytes) -> tuple[np.ndarray, bool]:
    """Return the pixels, and whether it is a JPEG that every decoder decodes alike.

    Of such a JPEG Pillow reads the header only: simplejpeg gives the same pixels in half the time.
    """
    if not content:
        raise BadImage("empty file")
    formats = _FORMATS
    if _HEIC.match(content):
        formats = (*_FORMATS, _let_pillow_open_heic())
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and of large images; neither makes an image bad.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content), formats=formats)
        except Image.UnidentifiedImageError:
            raise BadImage(_name_foreign(content)) from None
        except Image.DecompressionBombError:
            raise BadImage("decompression bomb: more than 50 megapixels") from None
        except _DECODE_ERRORS as error:
            raise BadImage(_explain(error)) from error
        _check_header(image, content)
        try:
            return _decode(image, content)
        except _DECODE_ERRORS as error:
            raise BadImage(_explain(error)) from error


def _check_header(image: Image.Image, content: bytes) -> None:
    """Refuse an image before its pixels are decoded."""
    num_pixels = image.width * image.height
    if num_pixels == 0:
        raise BadImage("zero-sized")
    if isinstance(image, TiffImageFile) and _is_raw(image, content):
        raise BadImage(_RAW)
    if num_pixels > MAX_PIXELS:
        raise BadImage("decompression bomb: more than 50 megapixels")
    if is_too_thin(image.height, image.width):
        raise BadImage(f"too thin: its sides differ more than {MAX_ASPECT} times")
    if "progressive" in image.info and content.count(JPEG_SCAN) > MAX_SCANS:
        raise BadImage(f"decompression bomb: more than {MAX_SCANS} scans")


def _decode(image: Image.Image, content: bytes) -> tuple[np.ndarray, bool]:
    """Return what `_load` does."""
    is_plain_jpeg = (
        image.format == "JPEG"
        and image.mode == "RGB"
        and "progressive" not in image.info
        and _find_orientation(image) == _UPRIGHT
    )
    if is_plain_jpeg and (image_HWC := _decode_strictly(content)) is not None:
        return image_HWC, True
    if (
        image.format == "BMP"
        and image.mode == "RGBA"
        and not np.asarray(image.getchannel("A")).any()
    ):
        image = image.convert("RGB")  # some programs leave the bytes of opacity at 0
    return np.asarray(_to_rgb(_turn_upright(image))), False


def _turn_upright(image: Image.Image) -> Image.Image:
    """Unlike `ImageOps.exif_transpose`, it writes no Exif: that fails where any tag is odd."""
    image.load()  # a PNG may have its Exif after its pixels
    turn = _TURNS.get(_find_orientation(image))
    return image if turn is None else image.transpose(turn)


def _find_orientation(image: Image.Image) -> int:
    """Return the Exif orientation; upright where there is none, or the Exif is damaged."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, _UPRIGHT)
    except _DECODE_ERRORS:
        return _UPRIGHT


@cache
def _let_pillow_open_heic() -> str:
    """Add the format of iPhones' photographs, where one is met: other processes need no decoder."""
    from pi_heif import register_heif_opener

    register_heif_opener(decode_threads=1)
    return "HEIF"


def _name_foreign(content: bytes) -> str:
    names = (name for name, start in _FOREIGN if re.match(start, content[:64], re.DOTALL))
    return next(names, "not an image")


def _is_raw(image: TiffImageFile, content: bytes) -> bool:
    """Whether a TIFF is a camera's raw file: its first image is a thumbnail."""
    tags = image.tag_v2
    is_thumbnail = bool(tags.get(_SUBFILE_TAG, 0) & 1)
    return is_thumbnail or _DNG_TAG in tags or content[8:10] == b"CR"


def _decode_strictly(jpeg: bytes) -> np.ndarray | None:
    """Decode as the stream does; None where its decoder refuses the JPEG."""
    try:
        return simplejpeg.decode_jpeg(jpeg)
    except ValueError:
        return None


def _explain(error: Exception) -> str:
    return f"{'truncated' if 'truncated' in str(error).lower() else 'unreadable'}: {error}"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImage("floating-point pixels")
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow's own conversion clips instead of scaling.
        values_HW = np.asarray(image).astype(np.float32)
        white = next((each for each in _WHITES if values_HW.max() <= each), _WHITES[-1])
        grey_HW = np.clip(values_HW * (255 / white), 0, 255)
        return Image.fromarray(np.rint(grey_HW).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _crop(image_HWC: np.ndarray, box: tuple[int, int, int, int], margin: float) -> np.ndarray:
    height, width, _ = image_HWC.shape
    x1, y1, x2, y2 = box
    wider, higher = margin * (x2 - x1), margin * (y2 - y1)
    left, right = max(0, round(x1 - wider)), min(width, round(x2 + wider))
    top, bottom = max(0, round(y1 - higher)), min(height, round(y2 + higher))
    if left >= right or top >= bottom:
        raise BadImage("bounding box outside the image")
    return image_HWC[top:bottom, left:right]


def _bound_short_side(image_HWC: np.ndarray, short_side_px: int) -> np.ndarray:
    height, width, _ = image_HWC.shape
    scale = short_side_px / min(height, width)
    if scale >= 1:
        return image_HWC
    size = (round(width * scale), round(height * scale))
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
