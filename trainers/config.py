"""Training configuration (standard library only).

Each config is frozen, checks itself and is sent as `asdict`; `from_dict` rebuilds it.
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_args

from cluster.config import ClusterConfig
from cluster.io.errors import (
    require,
    require_at_least,
    require_between,
    require_choice,
    require_not_negative,
    require_positive,
)
from cluster.io.fields import build, check_fields
from cluster.io.markers import (
    NOT_IN_KEY,
    NOT_ON_CARD,
    ON_CARD,
    RESUMABLE,
    RUN_RESUMABLE,
    SET_BY_PHASES,
    URI,
)
from cluster.wandb_env import require_project
from datasets.config import MAX_FOLDS, IngestConfig

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

FreezeDepth = int | float | str
Auto = Literal["auto"]
AUTO: Auto = "auto"
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Pretrained = Literal["imagenet", "imagenet_v1", "imagenet_v2", "file"]
Random = Literal["xavier", "he", "normal", "orthogonal", "zeros"]
Init = Literal[Pretrained, Random]
PRETRAINED: tuple[str, ...] = get_args(Pretrained)
RANDOM: tuple[str, ...] = get_args(Random)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, its initial weights, and how much of it stays frozen."""

    backbone: Annotated[str, NOT_ON_CARD] = "resnet50"
    """Network: a name that `python -m trainers zoo` prints, any timm classifier, or
    hf-hub:ORGANIZATION/NAME."""
    init: Annotated[Init, ON_CARD] = "imagenet"
    """Initial weights: imagenet (the newest published weights; of a timm network, whatever they
    were trained on), imagenet_v1, imagenet_v2, file, or random: xavier, he, normal, orthogonal,
    zeros."""
    weights: Annotated[str | None, URI, NOT_IN_KEY] = None
    """URI of a .pth or .safetensors state dict, or of its folder, for `init file`. With `init
    imagenet`, it replaces the download."""
    head: Annotated[str | None, URI] = None
    """URI of a .safetensors file with the tensors of a head to start from (LP-FT: Kumar et al.
    2022), whatever `init` is. Default: a random head, or that of the weights. A sweep with
    --head-first writes such files."""
    freeze_depth: Annotated[FreezeDepth, ON_CARD, SET_BY_PHASES] = 0
    """Number of frozen stages, counted from the input. 0 freezes nothing, `all` everything but the
    head, -2 all stages but the last two, 0.5 half of the stages (rounded), a stage's name the
    stages up to it. `lora:8` freezes all stages and trains the head and matrices of rank 8 beside
    the layers of attention (LoRA: Hu et al. 2021); they are merged when the network is used."""
    drop_path: float | Auto = 0.0
    """Stochastic depth (Huang et al. 2016): probability to leave out a residual branch of the last
    block in training; earlier blocks have a lower one. Networks of timm only. auto: 0.1 in
    transformers, else 0."""
    freeze_batchnorm: bool = False
    """Freeze the statistics of every BatchNorm, also in thawed stages. Training is then steadier
    with small batches, and the same on any number of workers."""
    normalization: Annotated[Literal["auto", "imagenet", "half"], NOT_ON_CARD] = "auto"
    """Pixel mean and standard deviation that the weights were trained with. half: 0.5 and 0.5.
    auto: those of the weights published for the backbone."""

    def __post_init__(self) -> None:
        require_choice("model.init", self.init, PRETRAINED + RANDOM)
        require(
            self.init != "file" or self.weights is not None,
            "model.weights",
            self.weights,
            "init `file` needs a file: give --weights URI",
        )
        require(
            self.drop_path == AUTO or 0 <= self.drop_path < 1,
            "model.drop_path",
            self.drop_path,
            "use 0 up to 1, or auto",
        )
        require_choice("model.normalization", self.normalization, ("auto", *NORMALIZATIONS))


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and gradient clipping."""

    optimizer: Annotated[Literal["adam", "adamw", "sgd"], ON_CARD] = "adam"
    """adam: Keras' Adam (epsilon 1e-7 outside the bias correction). adamw, sgd: torch's."""
    learning_rate: Annotated[float, ON_CARD, SET_BY_PHASES] = 1e-3
    """Peak learning rate."""
    decay: float = 0.0
    """Keras' decay: the rate of step t is learning_rate / (1 + decay * t)."""
    clipnorm: Annotated[float | None, NOT_IN_KEY] = None
    """Keras' clipnorm: clip EACH tensor's gradient to this norm."""
    global_clipnorm: float | None = None
    """Clip the norm of all gradients together to this."""
    weight_decay: float = 0.0
    """Decoupled (adamw) or L2 (sgd) weight decay of weights; never of biases and normalization."""
    momentum: float = 0.9
    """Momentum of sgd."""
    layer_decay: float | Auto = 1.0
    """Discriminative learning rates: the head has the full rate; each stage has the rate of the
    next stage towards the head, times this. auto: 0.75 in transformers, whose stages are blocks; 1
    in networks with batch normalization; else 0.7."""
    ema_decay: float | None = None
    """Evaluate and keep an exponential moving average of the weights, with this decay per step.
    The decay starts lower, since the first steps have little to average. 0.999 is usual."""

    def __post_init__(self) -> None:
        require_positive("optim.learning_rate", self.learning_rate)
        require_not_negative("optim.decay", self.decay)
        require_positive("optim.clipnorm", self.clipnorm)
        require_positive("optim.global_clipnorm", self.global_clipnorm)
        require_not_negative("optim.weight_decay", self.weight_decay)
        require(
            0 <= self.momentum < 1, "optim.momentum", self.momentum, "use 0 or more, and below 1"
        )
        require(
            self.layer_decay == AUTO or 0 < self.layer_decay <= 1,
            "optim.layer_decay",
            self.layer_decay,
            "use 0 (without) to 1, or auto",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "optim.ema_decay",
            self.ema_decay,
            "use a number between 0 and 1, such as 0.999, or None",
        )
        require(
            self.clipnorm is None or self.global_clipnorm is None,
            "optim.global_clipnorm",
            self.global_clipnorm,
            "clip per tensor or globally: give --global-clipnorm None, or leave --clipnorm out",
        )
        require(
            self.optimizer != "adam" or self.weight_decay == 0,
            "optim.weight_decay",
            self.weight_decay,
            "adam takes none: use 0, or the optimizer adamw",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy loss and its targets."""

    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over the classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: an image weighs num_images / (num_classes * images of its class)."""
    mixup_alpha: float = 0.0
    """Blend each image with another, by a share drawn from Beta(alpha, alpha). 0: off."""
    cutmix_alpha: float = 0.0
    """Paste a box of another image, with an area drawn from Beta(alpha, alpha). 0: off. With
    mixup_alpha, each batch uses one of the two at random."""

    def __post_init__(self) -> None:
        require(
            0 <= self.label_smoothing < 1,
            "loss.label_smoothing",
            self.label_smoothing,
            "use 0 up to 1",
        )
        require_choice("loss.class_weights", self.class_weights, ("none", "balanced"))
        require_not_negative("loss.mixup_alpha", self.mixup_alpha)
        require_not_negative("loss.cutmix_alpha", self.cutmix_alpha)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed: speed and memory, the same mathematics."""

    precision: Precision = "auto"
    """Type of autocast: bf16, fp16 (with loss scaling, which waits for the device in each step),
    or fp32 for none. auto: bf16 on GPUs and CPUs with bfloat16 instructions (NVIDIA's since
    Ampere; avx512_bf16, AMX, Arm's); else fp32."""
    channels_last: bool = True
    """Use the channels-last memory format, which is faster for convolutions."""
    compile: bool = False
    """Compile the network with torch.compile. On an H200, compiling ResNet50 took 41 s; it then
    trained 1.4 times as fast, which pays beyond 600,000 images."""
    accumulation_steps: int = 1
    """Gradient accumulation: a worker computes its share of a batch in this many parts. It takes
    less memory for the same gradient, but BatchNorm, mixup and CutMix see smaller batches."""

    def __post_init__(self) -> None:
        require_choice("compute.precision", self.precision, get_args(Precision))
        require_at_least("compute.accumulation_steps", self.accumulation_steps, 1)


class Phase(NamedTuple):
    """A part of a run with its own frozen stages, optimizer groups and learning rate schedule."""

    freeze_depth: FreezeDepth
    learning_rate: float
    start_epoch: int
    num_epochs: int

    @property
    def end_epoch(self) -> int:
        return self.start_epoch + self.num_epochs


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps of a run, phases, and when to stop."""

    schedule: Annotated[Literal["constant", "cosine"], ON_CARD] = "constant"
    """cosine falls from the peak to zero over the steps of a run, or of each phase."""
    warmup_epochs: float | Auto = 0.0
    """Epochs of linear rise from zero to the peak, in a run or in each phase. auto: in transformers
    a fifth of the run, at most 5; else at most 1."""
    phases: tuple[tuple[FreezeDepth, int, float], ...] = ()
    """Staged fine-tuning: FREEZE_DEPTH EPOCHS LEARNING_RATE of each phase, one phase after the
    other, as in `--phases all 4 1e-3 -2 6 1e-4`. Replaces freeze_depth, epochs and
    learning_rate."""
    early_stopping_epochs: Annotated[int | None, RUN_RESUMABLE] = None
    """Stop after this many epochs without a higher val/top1 (Keras' patience). Of several phases,
    only the last stops early."""

    def __post_init__(self) -> None:
        if self.warmup_epochs != AUTO:
            require_not_negative("schedule.warmup_epochs", self.warmup_epochs)
        for phase in self.phases:
            require(
                len(phase) == 3,
                "schedule.phases",
                phase,
                "give each phase FREEZE_DEPTH EPOCHS LEARNING_RATE, such as all 4 1e-3",
            )
            _, num_epochs, learning_rate = phase
            require(num_epochs >= 1, "schedule.phases", num_epochs, "give a phase 1 epoch or more")
            require_positive("schedule.phases", learning_rate)
        require(
            self.early_stopping_epochs is None or self.early_stopping_epochs >= 1,
            "schedule.early_stopping_epochs",
            self.early_stopping_epochs,
            "use 1 or more, or None",
        )


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """How a run is recorded; metrics.jsonl is always written."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: by WANDB_MODE, else online where W&B finds a key (WANDB_API_KEY, `wandb login`), else
    offline."""
    project: str | None = None
    """W&B project. Default: WANDB_PROJECT, else thaw."""
    group: str | None = None
    """W&B group. Default: WANDB_RUN_GROUP; else none, or the name of the sweep."""
    tags: tuple[str, ...] = ()
    """More W&B tags. WANDB_TAGS, commit, data, network and initialization are always tags."""
    upload_weights: bool = False
    """Upload the best and the latest weights to W&B. Without it, W&B has their path and hash."""
    log_every_steps: int = 20
    """Steps between two rows of training metrics."""

    def __post_init__(self) -> None:
        if self.project is not None:
            require_project("track.project", self.project)
        require_at_least("track.log_every_steps", self.log_every_steps, 1)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One training."""

    data: Annotated[str, URI, NOT_ON_CARD]
    """URI of a prepared data set (`python -m datasets prepare`)."""
    fold: Annotated[int, NOT_IN_KEY] = 0
    """Validation fold of a data set with folds (`prepare --folds`); the other folds train."""
    out: Annotated[str, URI, RESUMABLE, NOT_IN_KEY, NOT_ON_CARD] = "runs/latest"
    """URI of the run folder: config, metrics, checkpoints, result. An unfinished run in this folder
    resumes."""
    train_on: Literal["train", "train+val"] = "train"
    """train+val: train on the validation images too. Then nothing is validated, and the weights of
    the last epoch are kept."""
    epochs: Annotated[int, RUN_RESUMABLE, ON_CARD, SET_BY_PHASES] = 10
    """Passes over the training images."""
    global_batch_size: Annotated[int, ON_CARD] = 32
    """Images per optimizer step, over all workers."""
    seed: Annotated[int, ON_CARD] = 0
    """Seed of initialization, order and augmentation."""
    checkpoint_every_steps: Annotated[int, RUN_RESUMABLE, NOT_IN_KEY, NOT_ON_CARD] = 500
    """Steps between checkpoints within an epoch; each epoch ends with another. A killed run repeats
    at most this many steps."""
    ingest: Annotated[IngestConfig, NOT_ON_CARD] = field(default_factory=IngestConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    track: Annotated[TrackConfig, RESUMABLE, NOT_IN_KEY, NOT_ON_CARD] = field(
        default_factory=TrackConfig
    )
    cluster: Annotated[ClusterConfig, RESUMABLE, NOT_ON_CARD] = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        require_between("fold", self.fold, 0, MAX_FOLDS)
        require_at_least("epochs", self.epochs, 1)
        require_at_least("global_batch_size", self.global_batch_size, 1)
        require_at_least("checkpoint_every_steps", self.checkpoint_every_steps, 1)
        require_at_least("seed", self.seed, 0)
        require_choice("train_on", self.train_on, ("train", "train+val"))
        require(
            self.validates or self.schedule.early_stopping_epochs is None,
            "schedule.early_stopping_epochs",
            self.schedule.early_stopping_epochs,
            "train_on train+val validates nothing: leave one of the two out",
        )
        workers = self.cluster.num_workers or 1
        require(
            workers <= self.global_batch_size,
            "global_batch_size",
            self.global_batch_size,
            f"give each of the {workers} workers an image",
        )
        shortest = min(phase.num_epochs for phase in self.phases)
        require(
            self.schedule.warmup_epochs == AUTO or self.schedule.warmup_epochs < shortest,
            "schedule.warmup_epochs",
            self.schedule.warmup_epochs,
            f"stay below the {shortest} epochs of the {'phase' if self.schedule.phases else 'run'}",
        )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run: one, unless `schedule.phases` says otherwise."""
        if not self.schedule.phases:
            return (Phase(self.model.freeze_depth, self.optim.learning_rate, 0, self.epochs),)
        phases: list[Phase] = []
        for freeze_depth, num_epochs, learning_rate in self.schedule.phases:
            start = phases[-1].end_epoch if phases else 0
            phases.append(Phase(freeze_depth, learning_rate, start, num_epochs))
        return tuple(phases)

    @property
    def validates(self) -> bool:
        """Whether validation images are kept apart, to measure each epoch and choose the best."""
        return self.train_on == "train"

    @property
    def num_epochs(self) -> int:
        """Epochs of the run, over all its phases."""
        return self.phases[-1].end_epoch

    def to_dict(self) -> dict[str, Any]:
        """The config as nested JSON-safe dicts."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FinetuneConfig":
        """Rebuild from `to_dict`, or from its JSON.

        Raises:
            UserError: for an unknown key, and values that don't fit their fields.
        """
        config = build(cls, values)
        check_fields(config)
        return config
