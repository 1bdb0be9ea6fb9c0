"""Weights on a mirror of Hugging Face, private ones, and what a node can't download."""

import json
import pickle
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from tests.support.networks import mobilenet_config
from trainers.config import ModelConfig
from trainers.networks.backbones import build, find
from trainers.networks.downloads import HubFiles, list_files
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.pretrained import pretrained_available

pytestmark = pytest.mark.usefixtures("one_thread")
VIT = "test_vit.r160_in1k"
CONFIG = {
    "architecture": "test_vit",
    "num_classes": 1000,
    "pretrained_cfg": {"input_size": [3, 160, 160], "classifier": "head", "license": "mit"},
}


class Mirror:
    """A server of the files of private repositories, as huggingface_hub asks for them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.token = "secret"
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                content = mirror.files.get(self.path)
                if self.headers["Authorization"] != f"Bearer {mirror.token}":
                    self._answer(401, {})
                elif content is None:
                    self._answer(404, {"X-Error-Code": "EntryNotFound"})
                else:
                    facts = {"ETag": f'"{len(content)}"', "X-Repo-Commit": "a" * 40}
                    self._answer(200, {**facts, "Content-Length": str(len(content))})

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(mirror.files.get(self.path, b""))

            def _answer(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, repository: str, name: str, content: bytes) -> None:
        self.files[f"/{repository}/resolve/main/{name}"] = content


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """HF_ENDPOINT, which huggingface_hub reads as it is imported, and an empty cache."""
    mirror = Mirror()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, mirror.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = Thread(target=mirror.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield mirror
    mirror.server.shutdown()
    thread.join()
    mirror.server.server_close()


def save(tensors: dict[str, Tensor], file: Path) -> bytes:
    torch.save(tensors, file)
    return file.read_bytes()


def test_a_private_repository_of_a_mirror_that_has_a_pickle_is_read_with_the_token(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = build(VIT, 1000).state_dict()
    mirror.add("org/private", "config.json", json.dumps(CONFIG).encode())
    mirror.add("org/private", "pytorch_model.bin", save(weights, tmp_path / "w.bin"))
    config = ModelConfig(backbone="hf-hub:org/private")
    with pytest.raises(
        ValueError,
        match=r"nor downloaded from the mirror in HF_ENDPOINT \(.*401 .*; set HF_TOKEN to",
    ):
        find(config.backbone)

    monkeypatch.setenv("HF_TOKEN", mirror.token)
    assert find(config.backbone).published["imagenet"].license == "mit"
    monkeypatch.setenv("HF_TOKEN", "expired")
    reason = pretrained_available(config)
    assert reason is not None and reason.startswith(
        "model.init is 'imagenet': weights test_vit of hf-hub:org/private, "
        "https://huggingface.co/org/private/resolve/main/model.safetensors, can't be downloaded "
        "from the mirror in HF_ENDPOINT ("
    )
    assert (
        "401 Unauthorized" in reason
        and "set HF_TOKEN to a token that may read it" in reason
        and "\n" not in reason
    )

    monkeypatch.setenv("HF_TOKEN", mirror.token)
    assert pretrained_available(config) is None
    initialize(model := build(config.backbone, 5), config, seed=0)
    assert torch.equal(model.get_parameter("norm.weight"), weights["norm.weight"])

    monkeypatch.delenv("HF_TOKEN")
    assert pretrained_available(config) is None  # as it is in the cache


def test_a_pickle_of_a_repository_runs_no_code(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RunsCode:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    monkeypatch.setenv("HF_TOKEN", mirror.token)
    mirror.add("org/evil", "config.json", json.dumps(CONFIG).encode())
    mirror.add("org/evil", "pytorch_model.bin", pickle.dumps(RunsCode()))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: damaged, or a pickle that would"):
        initialize(build(VIT, 5), ModelConfig(backbone="hf-hub:org/evil"), seed=0)
    assert not (tmp_path / "ran").exists()


def test_a_revision_is_part_of_a_repositorys_name() -> None:
    assert HubFiles("org/cars@v2", ("a.bin",)).url.endswith("/org/cars/resolve/v2/a.bin")
    with pytest.raises(ValueError, match=r"model\.backbone is 'hf-hub:o/a@b@c': .*give hf-hub:ORG"):
        find("hf-hub:o/a@b@c")


@pytest.mark.parametrize("file", [None, "open_clip_pytorch_model.bin", "a.bin", "a.safetensors"])
def test_files_are_looked_for_in_the_order_of_timm(file: str | None) -> None:
    from timm.models import _hub

    default = file or _hub.HF_WEIGHTS_NAME
    timms = (*_hub._get_safe_alternatives(default), default)  # pyright: ignore[reportPrivateUsage]
    assert list_files(file) == timms


@pytest.mark.parametrize("cached", [None, b"", b"cut off, but longer than a header is"])
def test_weights_that_a_node_cannot_read_are_the_users_error(
    cached: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if cached is not None:
        (folder := tmp_path / "hub/checkpoints").mkdir(parents=True)
        (folder / "mobilenet_v2-7ebf99e0.pth").write_bytes(cached)
    delete = "" if cached is None else "delete it from the cache of that node, or "
    message = (
        r"model\.init is 'imagenet': weights IMAGENET1K_V2 of mobilenet_v2, https://.*, can't be "
        rf"read on node .* \(.+\): {delete}put that file "
        "on storage that all nodes share, and give it with --weights"
    )
    with pytest.raises(ValueError, match=message):
        initialize(build("mobilenet_v2", 5), mobilenet_config("imagenet"), seed=0)
