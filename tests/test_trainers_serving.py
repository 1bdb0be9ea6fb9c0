"""The service: answers equal evaluation, and whatever is sent gets one sentence."""

import asyncio
import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from starlette.requests import Request

from tests.support.bad_images import KINDS
from tests.support.calibration import CALIBRATION
from tests.support.data import draw_image
from tests.support.nodes import free_ports
from tests.support.training import train_here
from tests.test_tuning_review_browser import CHROMIUM, QUIET
from trainers.config import (
    ClusterConfig,
    ComputeConfig,
    FinetuneConfig,
    IngestConfig,
    ModelConfig,
    OptimConfig,
    TrackConfig,
)
from trainers.evaluation.evaluate import write_evaluation
from trainers.run import checkpoint
from trainers.run.calibration import write_calibration
from trainers.serving import uploads
from trainers.serving.config import ServeConfig, ServiceConfig
from trainers.serving.serve import require_packages, serving
from trainers.serving.uploads import Pace, Refused, Upload, decode

SERVICE = ServiceConfig(run="r", max_upload_mib=1, max_images=3, upload_timeout_s=60)
IMPATIENT = replace(SERVICE, upload_timeout_s=0.2)
SENTENCE_CHARS = 200
TOLERANCE = 1e-4
DELAYED_ACKNOWLEDGEMENT_S = 0.04  # of Linux


def to_png(image_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def request_of(parts: list[bytes], headers: dict[str, str], pause_s: float = 0.0) -> Request:
    """A request whose body arrives in parts."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}
    return Request(scope, receive)


def send(
    parts: list[bytes],
    headers: dict[str, str] | None = None,
    pause_s: float = 0.0,
    config: ServiceConfig = SERVICE,
) -> Any:
    """Return names and contents of the images, or the refusal."""
    request = request_of(parts, headers or {}, pause_s)
    try:
        return [(u.name, u.content) for u in asyncio.run(uploads.read_uploads(request, config))]
    except Refused as refusal:
        assert len(refusal.sentence) < SENTENCE_CHARS and "\n" not in refusal.sentence
        return refusal.status


def form_of(files: dict[str, bytes], field: str = "images") -> httpx.Request:
    return httpx.Request("POST", "http://x", files=[(field, pair) for pair in files.items()])


def send_form(files: dict[str, bytes], field: str = "images") -> Any:
    request = form_of(files, field)
    return send([request.read()], {"Content-Type": request.headers["content-type"]})


JSON = {"Content-Type": "application/json; charset=utf-8"}


def test_images_come_as_body_form_or_json() -> None:
    encoded = json.dumps({"images": [base64.b64encode(b).decode() for b in (b"a", b"b")]}).encode()

    assert send([b"ab", b"c"], {"Content-Type": "image/jpeg"}) == [("the image", b"abc")]
    assert send_form({"a.jpg": b"a", "b\u202e.jpg": b"b"}) == [("a.jpg", b"a"), ("b.jpg", b"b")]
    assert send([encoded], JSON) == [("image 1", b"a"), ("image 2", b"b")]
    of_browser = {"images": [f"data:image/png;base64,{base64.b64encode(b'c').decode()}"]}
    assert send([json.dumps(of_browser).encode()], JSON) == [("image 1", b"c")]
    repeated = {"images": ["data:" * 200_000]}  # a search for its end at each would take minutes
    assert send([json.dumps(repeated).encode()], JSON) == [("image 1", b"")]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"x" * (2**20 + 1), {}, 413),
        (b"x", {"Content-Length": str(2**40)}, 413),
        (b"x", {"Content-Length": "9" * 400}, 413),
        (b"x", {"Content-Length": "-1"}, 400),
        (b"{", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"[]", JSON, 400),
        (b'{"images": "x"}', JSON, 400),
        (b'{"images": [1]}', JSON, 400),
        (b'{"images": ["%%%"]}', JSON, 400),
        (b'{"images": []}', JSON, 400),
        (b'{"images": ["", "", "", ""]}', JSON, 413),
        (b"x", {"Content-Type": "multipart/form-data"}, 400),
        (b"x", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
        (b"--x\r\n\r\n" * 9, {"Content-Type": "multipart/form-data; boundary=x"}, 400),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, headers: dict[str, str], status: int) -> None:
    assert send([body], headers) == status


def test_forms_that_are_too_much_or_have_no_image() -> None:
    assert send_form({f"{number}.jpg": b"x" for number in range(4)}) == 413
    assert send_form({f"{number}.jpg": b"x" for number in range(40)}) == 413
    assert send_form({"a.jpg": b"x"}, field="pictures") == 400


def test_a_slow_client_is_not_waited_for() -> None:
    assert send([b"x"] * 100, pause_s=0.03, config=IMPATIENT) == 408
    assert send([b"x"] * 3, pause_s=0.01) == [("the image", b"xxx")]


def test_a_client_has_a_pace() -> None:
    pace = Pace(60)
    for _ in range(60):
        pace.take("a", 0.0)
    with pytest.raises(Refused) as caught:
        pace.take("a", 0.5)
    pace.take("b", 0.5)
    pace.take("a", 1.5)

    assert caught.value.status == 429


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.make])
def test_each_kind_of_bad_image_is_decoded_or_refused(name: str) -> None:
    kind = KINDS[name]
    assert kind.make is not None
    upload = Upload("mine", kind.make(Image.fromarray(draw_image(1, 2, size_px=96))))
    if kind.reason is None:
        assert decode(upload, 32).shape == (32, 32, 3)
        return
    with pytest.raises(Refused) as caught:
        decode(upload, 32)
    assert caught.value.status in (413, 415, 422)
    assert kind.reason.partition(":")[0] in caught.value.sentence
    assert "\n" not in caught.value.sentence and len(caught.value.sentence) < SENTENCE_CHARS
    if name in ("damaged HEIC", "PDF"):  # what to do is said, what a decoder says is not
        assert "to JPEG." in caught.value.sentence


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "fast" in name else 1)
    with pytest.raises(ValueError, match=r"^serve needs fastapi: pip install -e"):
        require_packages()


@pytest.fixture(scope="module")
def run(ray_cluster: str, easy_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of a LeNet-5, which is calibrated."""
    out = str(tmp_path_factory.mktemp("served") / "run")
    train_here(
        FinetuneConfig(
            data=easy_data,
            out=out,
            epochs=1,
            global_batch_size=16,
            ingest=IngestConfig(size_px=32, policy="light"),
            model=ModelConfig(backbone="lenet5", init="he"),
            optim=OptimConfig(learning_rate=1e-3),
            compute=ComputeConfig(precision="fp32"),
            cluster=ClusterConfig(num_workers=0),
            track=TrackConfig(wandb="off"),
        )
    )
    progress, _ = checkpoint.load_best(out)
    write_calibration(out, progress.global_step, CALIBRATION)
    return out


@pytest.fixture(scope="module")
def service(run: str) -> Iterator[httpx.Client]:
    """A client of the running service."""
    (port,) = free_ports(1)
    config = ServeConfig(run=run, port=port, max_upload_mib=1, max_images=20, upload_timeout_s=2)
    with serving(config) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.mark.ray
@pytest.mark.extended
def test_answers_equal_evaluation(service: httpx.Client, run: str, easy_data: str) -> None:
    write_evaluation(run)
    table = pq.read_table(f"{easy_data}/test").to_pylist()
    expected = pq.read_table(Path(run, "evaluation_test", "predictions.parquet")).to_pylist()
    files = [("images", (row["path"], row["image"])) for row in table]
    answers = service.post("/predict", files=files).json()["answers"]
    by_path = {row["path"]: row for row in expected}

    assert [answer["name"] for answer in answers] == [row["path"] for row in table]
    for answer in answers:
        row = by_path[answer["name"]]
        assert answer["class"] == row["predicted"]
        assert answer["probability"] == pytest.approx(row["calibrated_confidence"], abs=TOLERANCE)
        assert answer["unknown_score"] == pytest.approx(row["unknown_score"], abs=TOLERANCE)
        assert len(answer["class_set"]) == row["set_size"]
        assert sum(top["probability"] for top in answer["top"]) == pytest.approx(1)
        assert answer["unknown"] is False


@pytest.mark.ray
@pytest.mark.extended
def test_the_service_lives_through_what_is_sent(service: httpx.Client) -> None:
    good = to_png(draw_image(1, 2))
    for kind in KINDS.values():
        if kind.make is None:
            continue
        content = kind.make(Image.fromarray(draw_image(0, 1)))
        response = service.post("/predict", content=content)
        if response.status_code == 200:
            assert kind.reason is None
            continue
        assert response.status_code in ((413, 415, 422) if content else (400,)), kind.about
        assert response.json()["error"].endswith(".")
    assert service.post("/predict", content=b"x" * (2**20 + 1)).status_code == 413
    assert service.post("/predict").status_code == 400
    assert service.get("/predict").status_code == 405
    assert service.post("/nowhere").status_code == 404
    port = service.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
        assert service.post("/predict", content=good).status_code == 200  # meanwhile
        slow.settimeout(20)
        assert b" 408 " in slow.recv(4096).partition(b"\r\n")[0]
    answer = service.post("/predict", content=good).json()["answers"][0]
    assert answer["name"] == "the image" and len(answer["top"]) == 3


@pytest.mark.ray
@pytest.mark.extended
def test_the_body_of_an_answer_does_not_wait_for_the_acknowledgement_of_its_head(
    service: httpx.Client,
) -> None:
    times = []
    for _ in range(30):
        started = time.perf_counter()
        assert service.get("/healthz").status_code == 200
        times.append(time.perf_counter() - started)

    assert min(times) < DELAYED_ACKNOWLEDGEMENT_S


@pytest.mark.ray
@pytest.mark.extended
def test_health_metrics_interface_page_and_grad_cam(service: httpx.Client) -> None:
    good = to_png(draw_image(1, 2))
    assert service.get("/healthz").json()["temperature"] == 2.0
    assert service.get("/-/healthz").text == "success"  # of Ray Serve; KubeRay's probe greps for it
    service.post("/predict", content=good)
    metrics = service.get("/metrics").text
    paths = service.get("/openapi.json").json()["paths"]
    page = service.get("/")
    heat = service.post("/explain", content=good)

    assert 'thaw_requests_total{status="200"}' in metrics and "thaw_batch_images_bucket" in metrics
    assert set(paths) == {"/healthz", "/metrics", "/predict", "/explain"}
    assert "429" in paths["/predict"]["post"]["responses"]
    assert "http://" not in page.text and "https://" not in page.text
    assert Image.open(io.BytesIO(heat.content)).size == (32, 32)
    assert service.post("/explain", files=[("images", ("a", good))] * 2).status_code == 400


@pytest.mark.ray
@pytest.mark.browser
@pytest.mark.extended
def test_the_page_in_chromium(service: httpx.Client, tmp_path: Path) -> None:
    good, bad = tmp_path / "a car.png", tmp_path / "<b>.jpg"
    good.write_bytes(to_png(draw_image(1, 2)))
    bad.write_text("no image")
    requests: list[str] = []
    with sync_playwright() as driver:
        expect.set_options(timeout=60_000)
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET])
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: requests.append(f"error: {error}"))
        page.goto(str(service.base_url))
        page.set_input_files("#files", [str(good)])
        answer = page.locator("#answers li")
        expect(answer).to_have_count(1)
        expect(answer.locator("tr")).to_have_count(3)
        expect(answer.locator("h3")).to_contain_text("class")
        before = answer.locator("img").get_attribute("src")
        answer.get_by_role("button").click()
        expect(answer.get_by_role("button")).to_have_text("Grad-CAM")
        assert answer.locator("img").get_attribute("src") != before
        page.set_input_files("#files", [str(bad)])
        expect(page.locator("#status")).to_have_text("<b>.jpg can't be used: not an image.")
        expect(answer).to_have_count(1)
        browser.close()
    origin = str(service.base_url)
    assert [url for url in requests if not url.startswith((origin, "blob:", "data:"))] == []
