"""Options of `serve`."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.errors import (
    require,
    require_at_least,
    require_between,
    require_positive,
    require_share,
)
from cluster.io.markers import URI


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What a replica answers, and its limits."""

    run: Annotated[str, URI]
    """Run folder of a training, whose best network is served."""
    top_k: int = 5
    """How many of the likeliest classes an answer has."""
    refused: float = 0.05
    """Share of images of known classes that may be called unknown, where the run is calibrated."""
    coverage: float = 0.95
    """Share of images whose set of classes is to have the true one, where the run is calibrated."""
    max_upload_mib: int = 20
    """Largest body of a request, MiB."""
    max_images: int = 32
    """Most images of a request."""
    requests_per_minute: int = 6000
    """Of one client, at each replica."""
    upload_timeout_s: float = 30.0
    """Longest time a client may take to send its request."""
    max_batch_size: int = 16
    """Most images that are computed at once, of any requests."""
    batch_wait_ms: float = 2.0
    """Longest time an image waits for others to be computed with."""

    def __post_init__(self) -> None:
        for name in ("top_k", "max_upload_mib", "max_images", "requests_per_minute"):
            require_at_least(name, getattr(self, name), 1)
        require_between("max_batch_size", self.max_batch_size, 1, 1024)
        require_share("refused", self.refused)
        require_share("coverage", self.coverage)
        require_positive("upload_timeout_s", self.upload_timeout_s)
        require_positive("batch_wait_ms", self.batch_wait_ms)


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServiceConfig):
    """Serve a run's best network over HTTP, and a page to drop photographs on.

      python -m trainers serve --run runs/cars
      curl --data-binary @car.jpg http://127.0.0.1:8000/predict
      curl -F images=@a.jpg -F images=@b.jpg http://127.0.0.1:8000/predict

    Answers are those of ONNX, with the preprocessing of evaluation. /healthz says whether it is up,
    /metrics has Prometheus' numbers, /openapi.json the interface. Needs the extra packages of
    `pip install '.[serve]'`. Ctrl-C ends it. On Kubernetes: k8s/serve.
    """

    host: str = "127.0.0.1"
    """Address to listen on: 0.0.0.0 for other machines as well."""
    port: int = 8000
    """Port to listen on."""
    num_replicas: int = 1
    """Processes that compute."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("port", self.port, 1, 65535)
        require_at_least("num_replicas", self.num_replicas, 1)
        require(bool(self.host), "host", self.host, "use an address such as 127.0.0.1")
