"""The deployment of Ray Serve: an HTTP interface over a network, with dynamic batches.

`build` is also what a RayService names: `import_path: trainers.serving.app:build`.
"""

import asyncio
import time
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from ray import serve
from starlette.responses import HTMLResponse, JSONResponse, Response

from cluster.io import storage
from cluster.io.fields import build as build_config
from trainers.serving import uploads as forms
from trainers.serving.config import ServiceConfig
from trainers.serving.model import Answerer, Exported, export_for_service
from trainers.serving.page import render_page
from trainers.serving.uploads import Pace, Refused, Upload, decode

MAX_DECODING = 2
"""Images a replica decodes at once: a large one takes 150 MB."""
CONCURRENT_BATCHES = 2
"""Batches a replica computes at once: the cores have the next one while the first one's threads
wait for each other, or for Python."""
MAX_ONGOING = 64
"""Requests in a replica at once; Ray Serve holds as many again, and refuses more with 503."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "byte"},
                        }
                    },
                }
            },
        },
    }
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": description}
    for status, description in (
        (400, "Not a request that can be read"),
        (408, "The request took too long to arrive"),
        (413, "Too many bytes, images or pixels"),
        (415, "Not an image"),
        (422, "An image that is damaged"),
        (429, "Too many requests of one client"),
        (501, "Grad-CAM of an ensemble, or of a network without convolutions"),
        (503, "Too many requests at once, or Grad-CAM can't read the network"),
    )
}

interface = FastAPI(
    title="Thaw", description="Classifies images.", version="1", docs_url=None, redoc_url=None
)


@interface.exception_handler(Refused)
async def refuse(_: Request, refusal: Refused) -> JSONResponse:
    return JSONResponse({"error": refusal.sentence}, status_code=refusal.status)


@serve.deployment(max_ongoing_requests=MAX_ONGOING, max_queued_requests=MAX_ONGOING)
@serve.ingress(interface)
class Service:
    """Answers requests in one process."""

    def __init__(self, exported: Exported, config: ServiceConfig) -> None:
        self._exported, self._config = exported, config
        self._answerer, self._pace = Answerer(exported, config), Pace(config.requests_per_minute)
        self._decoding = asyncio.Semaphore(MAX_DECODING)
        self._explaining = asyncio.Semaphore(1)
        self._page = render_page(exported, config)
        batching: Any = self._compute
        batching.set_max_batch_size(config.max_batch_size)
        batching.set_batch_wait_timeout_s(config.batch_wait_ms / 1000)
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "thaw_requests", "Requests by status", ["status"], registry=self._registry
        )
        self._seconds = Histogram(
            "thaw_request_seconds", "Time of a request, s", registry=self._registry
        )
        self._batches = Histogram(
            "thaw_batch_images", "Images computed at once", buckets=BATCHES, registry=self._registry
        )

    @interface.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        return HTMLResponse(self._page)

    @interface.get("/healthz")
    async def health(self) -> dict[str, Any]:
        """Say that it is up, and what it answers with."""
        calibration = self._exported.calibration
        return {
            "status": "ok",
            "network": self._exported.name,
            "classes": len(self._exported.classes),
            "temperature": calibration and calibration.temperature,
        }

    @interface.get("/metrics")
    async def metrics(self) -> Response:
        """Return Prometheus' text of this replica."""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")

    @interface.post("/predict", openapi_extra=BODY, responses=REFUSALS)
    async def predict(self, request: Request) -> JSONResponse:
        """Return an answer for each image."""
        started_s, status = time.monotonic(), 500
        try:
            uploads, images = await self._read(request)
            logits = await asyncio.gather(*map(self._compute, images))
            answers = [
                {"name": upload.name, **self._answerer.answer(logits_K)}
                for upload, logits_K in zip(uploads, logits, strict=True)
            ]
            status = 200
            return JSONResponse({"answers": answers})
        except Refused as refusal:
            status = refusal.status
            raise
        finally:
            self._requests.labels(str(status)).inc()
            self._seconds.observe(time.monotonic() - started_s)

    @interface.post("/explain", openapi_extra=BODY, responses=REFUSALS)
    async def explain(self, request: Request) -> Response:
        """Return Grad-CAM of the likeliest class of one image: a PNG."""
        _, images = await self._read(request)
        if len(images) != 1:
            raise Refused(400, "Grad-CAM is drawn of one image at a time.")
        async with self._explaining:
            png = await asyncio.to_thread(self._answerer.explain, images[0])
        return Response(png, media_type="image/png")

    async def _read(self, request: Request) -> tuple[list[Upload], list[np.ndarray]]:
        self._pace.take(request.client.host if request.client else "")
        uploads = await forms.read_uploads(request, self._config)

        async def view(upload: Upload) -> np.ndarray:
            async with self._decoding:
                return await asyncio.to_thread(decode, upload, self._exported.size_px)

        return uploads, list(await asyncio.gather(*map(view, uploads)))

    @serve.batch(max_concurrent_batches=CONCURRENT_BATCHES)
    async def _compute(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return logits_K of each image; Ray Serve collects those of several requests."""
        self._batches.observe(len(images))
        return list(await asyncio.to_thread(self._answerer.compute, np.stack(images)))


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return the application; `arguments` are the fields of ServiceConfig, from a RayService.

    Raises:
        UserError: for a field that does not fit, and where there is no such run.
    """
    return bind(build_config(ServiceConfig, arguments))


def bind(config: ServiceConfig, **options: Any) -> serve.Application:
    """Return the application.

    Args:
        options: of the deployment, such as `num_replicas`; a RayService has them in its manifest.

    Raises:
        UserError: where there is no such run.
    """
    exported = export_for_service(storage.absolute(config.run, "run"))
    deployment: Any = Service
    return deployment.options(**options).bind(exported, config)
