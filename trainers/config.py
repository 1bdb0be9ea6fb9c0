"""What can be said about one training: facts only, standard library alone.

Each config is frozen, checks itself and travels as `asdict`; workers rebuild it by `from_dict`.
"""

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

from cluster.config import ClusterConfig
from datasets.config import IngestConfig, require

PRETRAINED = ("imagenet", "imagenet_v1", "imagenet_v2", "file")
RANDOM = ("xavier", "he", "normal", "orthogonal", "zeros")
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

FreezeDepth = int | Literal["all"]
Init = Literal[
    "imagenet",
    "imagenet_v1",
    "imagenet_v2",
    "file",
    "xavier",
    "he",
    "normal",
    "orthogonal",
    "zeros",
]


def require_positive(field_name: str, value: float | None) -> None:
    """Refuse a number that is not finite and above zero; None means 'not set' and passes."""
    require(
        value is None or (isfinite(value) and value > 0),
        field_name,
        value,
        "use a finite number above zero",
    )


def require_not_negative(field_name: str, value: float) -> None:
    """Refuse a number that is not finite and at least zero."""
    require(isfinite(value) and value >= 0, field_name, value, "use a finite number, zero or more")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, where its weights start, and how much of it stays frozen."""

    backbone: str = "resnet50"
    """A name in trainers.backbones.BACKBONES."""
    init: Init = "imagenet"
    """Initialization: imagenet (newest), imagenet_v1, imagenet_v2, file, or xavier, he, normal,
    orthogonal, zeros."""
    weights: str | None = None
    """URI of a .pth or .safetensors state dict, for `init file`; also stands in for a download
    when given with `init imagenet`."""
    freeze_depth: FreezeDepth = 0
    """How many stages, counted from the input, stay frozen: 0 (nothing) to `all` (head only)."""
    freeze_batchnorm: bool = False
    """Keep the statistics of every BatchNorm, those of thawed stages as well: steadier where
    batches are small, and the same on any number of workers."""
    normalization: Literal["imagenet", "half"] = "imagenet"
    """Pixel mean and standard deviation the weights were trained with; half: 0.5 and 0.5."""

    def __post_init__(self) -> None:
        require(
            self.init in PRETRAINED + RANDOM,
            "model.init",
            self.init,
            f"choose from {', '.join(PRETRAINED + RANDOM)}",
        )
        require(
            self.init != "file" or self.weights is not None,
            "model.weights",
            self.weights,
            "init `file` reads weights from somewhere: give --weights URI",
        )
        require(
            self.freeze_depth == "all" or self.freeze_depth >= 0,
            "model.freeze_depth",
            self.freeze_depth,
            "use 0 (nothing frozen) or more, or `all` (head only)",
        )
        require(
            self.normalization in NORMALIZATIONS,
            "model.normalization",
            self.normalization,
            f"choose from {', '.join(NORMALIZATIONS)}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and gradient clipping."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """adam: Keras' Adam (epsilon 1e-7 outside the bias correction). adamw, sgd: torch's."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    decay: float = 0.0
    """Keras' decay: the rate of step t is learning_rate / (1 + decay * t)."""
    clipnorm: float | None = None
    """Keras' clipnorm: EACH tensor's gradient is clipped to this norm."""
    global_clipnorm: float | None = None
    """Clips the norm of all gradients taken together."""
    weight_decay: float = 0.0
    """Decoupled (adamw) or L2 (sgd) weight decay of weights; never of biases and normalization."""
    momentum: float = 0.9
    """Momentum of sgd."""

    def __post_init__(self) -> None:
        require_positive("optim.learning_rate", self.learning_rate)
        require_not_negative("optim.decay", self.decay)
        require_positive("optim.clipnorm", self.clipnorm)
        require_positive("optim.global_clipnorm", self.global_clipnorm)
        require_not_negative("optim.weight_decay", self.weight_decay)
        require_not_negative("optim.momentum", self.momentum)
        require(
            self.clipnorm is None or self.global_clipnorm is None,
            "optim.global_clipnorm",
            self.global_clipnorm,
            "clip per tensor or globally: unset one of the two",
        )
        require(
            self.optimizer != "adam" or self.weight_decay == 0,
            "optim.weight_decay",
            self.weight_decay,
            "adam takes none: use --optimizer adamw",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps of a run."""

    schedule: Literal["constant", "cosine"] = "constant"
    """cosine falls from the peak to zero over the run's steps."""
    warmup_epochs: float = 0.0
    """Epochs of linear rise from zero to the peak."""

    def __post_init__(self) -> None:
        require_not_negative("schedule.warmup_epochs", self.warmup_epochs)


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """How a run is recorded; metrics.jsonl is always written."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online with WANDB_API_KEY set, else offline."""
    project: str = "thaw"
    """W&B project."""
    group: str | None = None
    """W&B group; a sweep sets its own name."""
    log_every_steps: int = 20
    """Training metrics are written every so many steps."""

    def __post_init__(self) -> None:
        require(
            self.log_every_steps >= 1,
            "track.log_every_steps",
            self.log_every_steps,
            "use 1 or more",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One training, whole."""

    data: str
    """URI of a prepared data set (`python -m datasets prepare`)."""
    out: str = "runs/latest"
    """URI of the run folder: config, metrics, checkpoints, result. The same folder resumes."""
    epochs: int = 10
    """Passes over the training images."""
    global_batch_size: int = 32
    """Images per optimizer step, over all workers."""
    seed: int = 0
    """Seed of initialization, order and augmentation."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""
    ingest: IngestConfig = field(default_factory=IngestConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "use 1 or more")
        require(
            self.global_batch_size >= 1,
            "global_batch_size",
            self.global_batch_size,
            "use 1 or more",
        )
        require(
            0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "use 0 up to 1"
        )
        workers = self.cluster.num_workers or 1
        require(
            self.global_batch_size % workers == 0,
            "global_batch_size",
            self.global_batch_size,
            f"make it a multiple of the {workers} workers",
        )
        require(
            self.schedule.warmup_epochs < self.epochs,
            "schedule.warmup_epochs",
            self.schedule.warmup_epochs,
            f"stay below the {self.epochs} epochs of the run",
        )

    def to_dict(self) -> dict[str, Any]:
        """The config as nested JSON-safe dicts."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FinetuneConfig":
        """Rebuild from `to_dict`; an unknown key raises ValueError."""
        parts: dict[str, type[Any]] = {
            "ingest": IngestConfig,
            "model": ModelConfig,
            "optim": OptimConfig,
            "schedule": ScheduleConfig,
            "track": TrackConfig,
            "cluster": ClusterConfig,
        }
        try:
            return cls(**{k: parts[k](**v) if k in parts else v for k, v in values.items()})
        except TypeError as error:
            raise ValueError(f"config does not fit this version of Thaw: {error}") from error
