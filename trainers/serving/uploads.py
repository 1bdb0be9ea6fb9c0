"""What a request holds: read within limits, decoded as for evaluation.

H x W pixels, C channels.
"""

import asyncio
import base64
import binascii
import json
import time
from collections import OrderedDict
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from datasets.images import BadImage
from datasets.passes.inference import open_view
from trainers.serving.config import ServiceConfig

MAX_CLIENTS = 10_000
"""Clients whose requests are counted; the one that asked least recently is forgotten."""
FIELD = "images"
DATA_URL = "data:"
"""Begins the text that a browser makes of a file: `data:image/jpeg;base64,...`."""


class Refused(Exception):
    """A request that is answered by a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Upload:
    """One image of a request."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content = name, content


class Pace:
    """How many requests each client may send: a bucket that fills with time."""

    def __init__(self, requests_per_minute: int) -> None:
        self._size, self._per_s = float(requests_per_minute), requests_per_minute / 60
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now_s: float | None = None) -> None:
        """Count a request.

        Raises:
            Refused: where the client has sent too many.
        """
        now_s = time.monotonic() if now_s is None else now_s
        left, at_s = self._buckets.pop(client, (self._size, now_s))
        left = min(self._size, left + (now_s - at_s) * self._per_s)
        allowed = left >= 1
        self._buckets[client] = (left - allowed, now_s)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise Refused(429, "You send too many requests: wait a moment and send it again.")


async def read_uploads(request: Request, config: ServiceConfig) -> list[Upload]:
    """Read the images of a request: a picture as the body, multipart with fields `images`, or JSON
    with `images`, a list in base64.

    Raises:
        Refused: with the status and the sentence for the client.
    """
    body = await read_body(request, config)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads = await _read_form(request, body, config)
    elif kind == "application/json":
        uploads = _read_json(body)
    else:  # whatever the client calls it: the content decides
        uploads = [Upload("the image", body)] if body else []
    if not uploads:
        raise Refused(400, f"The request has no image: send some in the field `{FIELD}`.")
    if len(uploads) > config.max_images:
        raise Refused(
            413, f"The request has {len(uploads)} images: send {config.max_images} or fewer."
        )
    return uploads


async def read_body(request: Request, config: ServiceConfig) -> bytes:
    """Read the body; more than `max_upload_mib` is refused before it is read."""
    limit = config.max_upload_mib * 2**20
    too_large = Refused(413, f"The request is larger than {config.max_upload_mib} MiB.")
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdecimal():
        raise Refused(400, "The request's Content-Length is not a number.")
    if len(declared) > 18 or int(declared) > limit:
        raise too_large
    try:
        async with asyncio.timeout(config.upload_timeout_s):
            body = await _receive(request, limit)
    except TimeoutError:
        sentence = f"The request took longer than {config.upload_timeout_s:g} s to arrive."
        raise Refused(408, sentence) from None
    except ClientDisconnect:
        raise Refused(400, "The client left before it had sent the request.") from None
    if body is None:
        raise too_large
    return body


async def _receive(request: Request, limit: int) -> bytes | None:
    """Return the body; None where it is larger, as soon as that is known."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


async def _read_form(request: Request, body: bytes, config: ServiceConfig) -> list[Upload]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(request.scope, receive).form(
            max_files=config.max_images + 1, max_fields=16, max_part_size=2**16
        ) as form:
            parts = [part for part in form.getlist(FIELD) if isinstance(part, UploadFile)]
            return [
                Upload(_name(part.filename, number), await part.read())
                for number, part in enumerate(parts, 1)
            ]
    except (MultiPartException, HTTPException, ValueError, KeyError) as error:
        if "Too many files" in str(getattr(error, "message", getattr(error, "detail", ""))):
            sentence = f"The request has too many images: send {config.max_images} or fewer."
            raise Refused(413, sentence) from None
        raise Refused(400, "The request is not valid multipart/form-data.") from None


def _read_json(body: bytes) -> list[Upload]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The request is not valid JSON.") from None
    images = values.get(FIELD) if isinstance(values, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise Refused(400, 'Send {"images": [...]}, each image as text in base64.')
    try:
        return [
            Upload(f"image {number}", _decode_base64(image))
            for number, image in enumerate(images, 1)
        ]
    except (binascii.Error, ValueError):
        raise Refused(400, "An image of the request is not valid base64.") from None


def _decode_base64(text: str) -> bytes:
    content = text.partition(",")[2] if text.startswith(DATA_URL) else text
    return base64.b64decode(content, validate=True)


def _name(name: str | None, number: int) -> str:
    """Return the client's name of a file as a short text in one line."""
    text = "".join(char for char in name or "" if char.isprintable())[-80:]
    return text or f"image {number}"


def decode(upload: Upload, size_px: int) -> np.ndarray:
    """Return uint8 `[size_px, size_px, 3]` as evaluation sees the image.

    Raises:
        Refused: for what is no image, is damaged, or has too many pixels.
    """
    try:
        return open_view(upload.content, size_px)
    except BadImage as bad:
        kind = bad.reason.partition(":")[0]
        status = {"not an image": 415, "decompression bomb": 413}.get(kind, 422)
        # After the others comes what to do, after these what a decoder says.
        reason = kind if kind in ("unreadable", "truncated") else bad.reason
        raise Refused(status, f"{upload.name} can't be used: {reason}.") from None
