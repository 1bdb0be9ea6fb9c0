"""Kinds of files found among photographs, and the outcome of each.

    python -m tests.support.bad_images      rewrites docs/bad_images.md

A kind is made by code from a photograph, so that each file is another image. `kept` kinds must come
out with the pixels of that photograph, `left out` ones with their reason in quarantine.parquet.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "bad_images.md"
ORIENTATION, SUBFILE = 0x0112, 254

Make = Callable[[Image.Image], bytes]
Put = Callable[[Path, Image.Image], None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file."""

    about: str
    """A remark for the page."""
    make: Make | None = None
    """A photograph -> the file's content."""
    put: Put | None = None
    """Instead of `make`: creates the file, if it is more than content."""
    name: str = "photo.jpg"
    reason: str | None = None
    """Why it is left out; None where it is kept."""
    grey: bool = False
    """Whether it is kept without its colours."""
    is_exact: bool = True
    """Whether it has the pixels of its photograph, but for what JPEG loses."""


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, **options: object) -> bytes:
    return encode(image, quality=95, **options)


def turned(image: Image.Image) -> bytes:
    """Stored rotated by 90 degrees, with the EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


def wide_grey(image: Image.Image) -> bytes:
    """16 bits a pixel."""
    return encode(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


def transparent(image: Image.Image, mode: str = "RGBA") -> bytes:
    """Opaque everywhere; test_datasets_images tests transparency."""
    return encode(image.convert(mode), "PNG")


def palette(image: Image.Image) -> bytes:
    return encode(image.quantize(256, dither=Image.Dither.NONE), "PNG")


def frames(image: Image.Image) -> bytes:
    black = Image.new("RGB", image.size)
    return encode(image.quantize(256), "GIF", save_all=True, append_images=[black.quantize(2)])


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width: int, height: int, scan: bytes) -> bytes:
    """A grey PNG of any claimed size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", scan) + chunk(b"IEND", b"")


def with_byte(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def flip_in_scan(image: Image.Image) -> bytes:
    content = jpeg(image)
    return with_byte(content, content.rindex(b"\xff\xda") + 200)


def wrong_crc(image: Image.Image, kind: bytes) -> bytes:
    """A PNG with a wrong checksum of one chunk."""
    content = encode(image, "PNG")
    start = content.index(kind)
    (length,) = struct.unpack(">I", content[start - 4 : start])
    return with_byte(content, start + 4 + length)


def corrupt_zlib(image: Image.Image) -> bytes:
    """Right CRCs, and a stream that unpacks to random bytes."""
    return png(*image.size, b"\x78\x9c" + bytes(range(1, 200)))


def bomb(image: Image.Image) -> bytes:
    """10,000 x 10,000 pixels of one colour: 100 MB from 100 kB."""
    row = zlib.compressobj(9)
    scan = b"".join(row.compress(bytes(10_001)) for _ in range(10_000)) + row.flush()
    return png(10_000, 10_000, scan)


def many_scans(image: Image.Image) -> bytes:
    """Its last scan repeated; decoding each takes as long as the first."""
    content = jpeg(image, progressive=True)
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * 1000 + content[-2:]


def cut(share: float) -> Make:
    def make(image: Image.Image) -> bytes:
        content = jpeg(image)
        return content[: int(len(content) * share)]

    return make


def size_in_header(width: int, height: int) -> Make:
    """A JPEG whose header claims another size."""

    def make(image: Image.Image) -> bytes:
        content = jpeg(image)
        at = content.index(b"\xff\xc0") + 5
        return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]

    return make


def link_to(target: str) -> Put:
    return lambda path, image: path.symlink_to(target)


def loop(path: Path, image: Image.Image) -> None:
    path.symlink_to(path.name)


def folder(path: Path, image: Image.Image) -> None:
    path.mkdir()
    (path / "inside.jpg").write_bytes(jpeg(image))


def pipe(path: Path, image: Image.Image) -> None:
    os.mkfifo(path)


def sparse(path: Path, image: Image.Image) -> None:
    with open(path, "wb") as file:
        file.write(jpeg(image))
        file.truncate(2**40)


def thin(width: int, height: int) -> Make:
    return lambda image: encode(image.resize((width, height)), "PNG")


def text(content: str) -> Make:
    return lambda image: content.format(*image.getpixel((0, 0))).encode()


def without_opacity(image: Image.Image) -> bytes:
    image = image.convert("RGBA")
    image.putalpha(0)
    return encode(image, "BMP")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400)

KINDS: dict[str, Kind] = {
    "plain JPEG": Kind(about="kept byte by byte, if no larger than asked", make=jpeg),
    "EXIF orientation": Kind(about="turned upright", make=turned),
    "progressive JPEG": Kind(about="", make=lambda i: jpeg(i, progressive=True)),
    "CMYK JPEG": Kind(about="", make=lambda i: jpeg(i.convert("CMYK"))),
    "grey JPEG": Kind(about="", make=lambda i: jpeg(i.convert("L")), grey=True),
    "JPEG with junk behind it": Kind(about="", make=lambda i: jpeg(i) + b"\0junk" * 99),
    "JPEG with a flipped byte": Kind(
        about="decodes to other pixels; only a hash could detect it",
        make=flip_in_scan,
        is_exact=False,
    ),
    "one pixel": Kind(about="", make=thin(1, 1), name="photo.png", is_exact=False),
    "JPEG named .png": Kind(about="names are ignored", make=jpeg, name="photo.png"),
    "PNG": Kind(about="", make=lambda i: encode(i, "PNG"), name="photo.png"),
    "PNG whose pixels' CRC is wrong": Kind(
        about="the zlib stream has its own checksum, which is right",
        make=lambda i: wrong_crc(i, b"IDAT"),
        name="photo.png",
    ),
    "PNG with a palette": Kind(about="", make=palette, name="photo.png"),
    "PNG with transparency": Kind(about="on white", make=transparent, name="photo.png"),
    "grey PNG with transparency": Kind(
        about="on white", make=lambda i: transparent(i, "LA"), name="photo.png", grey=True
    ),
    "PNG of 16 bits": Kind(about="scaled, not clipped", make=wide_grey, grey=True),
    "GIF": Kind(about="", make=lambda i: encode(i.quantize(256), "GIF"), name="photo.gif"),
    "animated GIF": Kind(about="the first frame", make=frames, name="photo.gif"),
    "WebP": Kind(about="", make=lambda i: encode(i, "WEBP", lossless=True), name="photo.webp"),
    "AVIF": Kind(about="", make=lambda i: encode(i, "AVIF", quality=95), name="photo.avif"),
    "BMP": Kind(about="", make=lambda i: encode(i, "BMP"), name="photo.bmp"),
    "BMP of 32 bits whose opacity is 0": Kind(
        about="as some programs write it", make=without_opacity, name="photo.bmp"
    ),
    "TIFF": Kind(about="", make=lambda i: encode(i, "TIFF"), name="photo.tif"),
    "JPEG cut after its header": Kind(about="", make=lambda i: jpeg(i)[:20], reason="not an image"),
    "JPEG cut in half": Kind(about="", make=cut(0.5), reason="truncated"),
    "JPEG cut near its end": Kind(about="", make=cut(0.97), reason="truncated"),
    "PNG cut in half": Kind(
        about="", make=lambda i: encode(i, "PNG")[:1500], name="photo.png", reason="truncated"
    ),
    "GIF cut in half": Kind(
        about="",
        make=lambda i: encode(i.quantize(256), "GIF")[:1500],
        name="photo.gif",
        reason="truncated",
    ),
    "empty file": Kind(about="", make=lambda i: b"", reason="empty file"),
    "text": Kind(about="", make=text("A car, {} {} {}.\n"), reason="not an image"),
    "HTML": Kind(
        about="a failed download",
        make=text("<!doctype html><title>404 {} {} {}</title>"),
        reason="not an image",
    ),
    "SVG": Kind(
        about="",
        make=text('<svg xmlns="http://www.w3.org/2000/svg"><!-- {} {} {} --></svg>'),
        name="photo.svg",
        reason="not an image",
    ),
    "damaged HEIC": Kind(
        about="of iPhones; a whole one is kept",
        make=lambda i: HEIC,
        name="photo.heic",
        reason="HEIC that can't be decoded",
    ),
    "JPEG XL": Kind(
        about="", make=lambda i: b"\xff\x0a" + i.tobytes(), name="photo.jxl", reason="JPEG XL"
    ),
    "raw photograph of a camera": Kind(
        about="a TIFF whose first image is a thumbnail",
        make=lambda i: encode(i, "TIFF", tiffinfo={SUBFILE: 1}),
        name="photo.nef",
        reason="raw photograph",
    ),
    "video": Kind(
        about="",
        make=lambda i: b"\0\0\0\x20ftypisom" + i.tobytes(),
        name="live.mov",
        reason="video, not an image",
    ),
    "PDF": Kind(about="", make=text("%PDF-1.7 {} {} {}"), name="scan.pdf", reason="PDF"),
    "Office document": Kind(
        about="a zip, as .docx and .xlsx are",
        make=lambda i: b"PK\3\4" + i.tobytes(),
        name="cars.docx",
        reason="archive or Office document, not an image",
    ),
    "icon": Kind(about="", make=lambda i: encode(i, "ICO"), name="favicon.ico", reason="icon"),
    "HDR image": Kind(
        about="", make=text("#?RADIANCE {} {} {}"), name="sky.hdr", reason="HDR image"
    ),
    "pointer of Git LFS": Kind(
        about="a clone without its files; `git lfs pull` gets them",
        make=text("version https://git-lfs.github.com/spec/v1\noid sha256:{}{}{}\nsize 9\n"),
        reason="pointer of Git LFS",
    ),
    "program named .jpg": Kind(
        about="", make=lambda i: b"\x7fELF\2\1\1" + i.tobytes()[:999], reason="not an image"
    ),
    "EPS": Kind(
        about="opening one would start Ghostscript",
        make=lambda i: encode(i, "EPS"),
        name="photo.eps",
        reason="not an image",
    ),
    "zeros": Kind(about="a damaged disk", make=lambda i: bytes(5000), reason="not an image"),
    "PNG bomb": Kind(
        about="100 megapixels in 100 kB", make=bomb, name="photo.png", reason="decompression bomb"
    ),
    "PNG of 2,147,483,647 x 2,147,483,647": Kind(
        about="according to its header",
        make=lambda i: png(2**31 - 1, 2**31 - 1, zlib.compress(i.tobytes())),
        name="photo.png",
        reason="decompression bomb",
    ),
    "JPEG of 65,535 x 65,535": Kind(
        about="according to its header",
        make=size_in_header(65_535, 65_535),
        reason="decompression bomb",
    ),
    "JPEG of a thousand scans": Kind(
        about="seconds of decoding per kilobyte", make=many_scans, reason="decompression bomb"
    ),
    "PNG of no height": Kind(
        about="", make=lambda i: png(9, 0, zlib.compress(i.tobytes())), reason="not an image"
    ),
    "thinner than 1 to 100": Kind(about="", make=thin(303, 3), reason="too thin"),
    "PNG whose zlib stream is corrupt": Kind(
        about="", make=corrupt_zlib, name="photo.png", reason="unreadable"
    ),
    "PNG whose header's CRC is wrong": Kind(
        about="", make=lambda i: wrong_crc(i, b"IHDR"), name="photo.png", reason="not an image"
    ),
    "floating-point TIFF": Kind(
        about="black and white are not defined",
        make=lambda i: encode(i.convert("F"), "TIFF"),
        name="photo.tif",
        reason="floating-point pixels",
    ),
    "folder named .jpg": Kind(about="", put=folder, reason="a folder, not an image"),
    "pipe named .jpg": Kind(
        about="never opened", put=pipe, reason="a pipe or device, not an image"
    ),
    "device named .jpg": Kind(
        about="never opened", put=link_to("/dev/zero"), reason="a pipe or device, not an image"
    ),
    "link to nothing": Kind(about="", put=link_to("gone.jpg"), reason="missing file"),
    "link to itself": Kind(about="", put=loop, reason="unreadable"),
    "file that can't be read": Kind(
        about="permissions, or a broken disk",
        put=link_to("/proc/self/mem"),
        reason="unreadable",
    ),
    "file of a terabyte": Kind(about="never read", put=sparse, reason="too large"),
}


def put(kind: Kind, path: Path, image: Image.Image) -> None:
    """Put a file of a kind at `path`."""
    if kind.put is not None:
        kind.put(path, image)
    else:
        assert kind.make is not None
        path.write_bytes(kind.make(image))


def write_page() -> str:
    """Return docs/bad_images.md."""
    rows = [
        f"| {name}{f' ({kind.about})' if kind.about else ''} | "
        + (f"left out: {kind.reason}" if kind.reason else f"kept{', grey' * kind.grey}")
        + " |"
        for name, kind in KINDS.items()
    ]
    return "\n".join(
        [
            "# Which image files are kept",
            "",
            "For whoever misses images after `python -m datasets prepare`. Look in two files:",
            "",
            "- `OUT/quarantine.parquet`: files that could not be decoded, with path and reason.",
            "  `python -m datasets info` counts them.",
            "- `OUT/unused.parquet`: files that were not used, with path and reason.",
            "",
            "The table lists kinds of files and what `prepare` does with them.",
            "`python -m tests.support.bad_images` writes this page, and",
            "`tests/test_datasets_bad_images.py` checks it.",
            "",
            "| file | outcome |",
            "|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(write_page())
