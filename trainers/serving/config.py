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
    """Number of the likeliest classes in an answer."""
    refused: float = 0.05
    """Share of images of known classes that may be called unknown, if the run is calibrated."""
    coverage: float = 0.95
    """Target share of images whose set of classes has the true class, if the run is calibrated."""
    max_upload_mib: int = 20
    """Largest body of a request, in MiB."""
    max_images: int = 32
    """Most images per request."""
    requests_per_minute: int = 6000
    """Most requests per minute of one client, at each replica."""
    upload_timeout_s: float = 30.0
    """Longest time in seconds that a client may take to send its request."""
    max_batch_size: int = 16
    """Most images in a batch; a batch may have images of several requests."""
    batch_wait_ms: float = 2.0
    """Longest time in milliseconds that an image waits for others of its batch."""

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
    """Serve a run's best network over HTTP, with a web page to drop photographs on.

      python -m trainers serve --run runs/staged
      curl --data-binary @car.jpg http://127.0.0.1:8000/predict
      curl -F images=@a.jpg -F images=@b.jpg http://127.0.0.1:8000/predict

    The network runs as ONNX, with the preprocessing of evaluation. /healthz says whether the
    service is ready, /metrics has Prometheus metrics, /openapi.json describes the interface. Needs
    the extra packages of `pip install '.[serve]'`. Ctrl-C stops it. On Kubernetes: k8s/serve.
    """

    host: str = "127.0.0.1"
    """Address to listen on, at each node that has a replica and at the head node; 0.0.0.0 lets
    other machines connect."""
    port: int = 8000
    """Port to listen on."""
    num_replicas: int = 1
    """Number of Ray Serve replicas (processes that compute); each takes a CPU of the cluster."""
    address: str | None = None
    """Address of a Ray cluster where Ray Serve does not run yet; default: RAY_ADDRESS, else a
    cluster on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("port", self.port, 1, 65535)
        require_at_least("num_replicas", self.num_replicas, 1)
        require(bool(self.host), "host", self.host, "use an address such as 127.0.0.1")
