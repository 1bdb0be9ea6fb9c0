"""A network in training and everything that a step changes: the content of a checkpoint."""

import copy
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import (
    Tensor,
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage] as in torch's own optimizers:
    _foreach_lerp_,  # pyright: ignore[reportPrivateImportUsage] a kernel for all tensors
    distributed,
    nn,
)
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cluster.io.errors import UserError
from trainers.config import AUTO, ComputeConfig, FinetuneConfig, Phase
from trainers.networks.activations import avoid_in_place
from trainers.networks.backbones import build, find
from trainers.networks.cut import Suffix, behind
from trainers.networks.freezing import (
    adapter_rank,
    freeze,
    has_live_batchnorm,
    resolve_depth,
    train_mode,
)
from trainers.networks.torch_internals import keep_methods_as_they_are, without_compiler
from trainers.networks.transformers.lora import add_adapters, load_base
from trainers.networks.transformers.stochastic_depth import drop_branches
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.loading import LoadReport
from trainers.networks.weights.tensors import (
    load_weights,
    parse_pickle,
    parse_safetensors,
    to_safetensors,
)
from trainers.step.optim import build_optimizer, carry_state
from trainers.worker import WorkerContext

AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class WeightAverage:
    """The exponential moving average of a model's weights; its buffers are the model's.

    The decay of update n is min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ExponentialMovingAverage, so that a short run forgets its initial weights. Not torch's
    AveragedModel, which copies its counter to the device in every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.num_updates, self._decay = 0, decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        _foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        if buffers := list(model.buffers()):
            _foreach_copy_(list(self.model.buffers()), buffers)


class TrainState:
    """One rank's network, optimizer, loss scaler and average of the weights.

    `enter` a phase before the first step: freezing, optimizer and DDP belong to it.
    """

    phase: Phase | None = None
    optimizer: Optimizer | None = None
    network: nn.Module
    """Called by a step: the model or its DDP wrapper, compiled where configured."""

    def __init__(
        self,
        config: FinetuneConfig,
        num_classes: int,
        worker: WorkerContext,
        *,
        cut_depth: int | None = None,
    ) -> None:
        """`cut_depth`: stages whose features come in place of images."""
        self._config, self._worker, self._cut_depth = config, worker, cut_depth
        self._suffixes: dict[nn.Module, Suffix] = {}
        self._num_classes = num_classes
        self.model = build(config.model.backbone, num_classes, config.ingest.size_px)
        self._rank = adapter_rank(config.phases[0].freeze_depth)
        if self._rank is not None:
            add_adapters(self.model, config.model.backbone, self._rank, seed=config.seed)
        assert config.model.drop_path != AUTO, "`suit` has chosen it"
        if config.model.drop_path:
            drop_branches(self.model, config.model.drop_path)
        place_model(self.model, config.compute, worker.device)
        self.scaler = GradScaler(
            worker.device.type,
            enabled=autocast_dtype(config.compute, worker.device) is torch.float16,
        )
        decay = config.optim.ema_decay
        self.average = WeightAverage(self.model, decay) if decay is not None else None

    @property
    def kept(self) -> nn.Module:
        """The model to keep: the average of the weights where there is one."""
        return self.average.model if self.average else self.model

    @property
    def evaluated(self) -> nn.Module:
        """Called by evaluation: the model to keep, or its stages behind the cut."""
        return self._behind_cut(self.kept)

    @property
    def stages(self) -> list[str]:
        """Names of the stages that train, first to last; the head is called `head`."""
        assert self.optimizer is not None
        names = [*(name for name, _ in find(self._config.model.backbone).stages), "head"]
        return [names[stage] for stage in sorted({g["stage"] for g in self.optimizer.param_groups})]

    def initialize(self, classes: Sequence[str] | None = None) -> LoadReport:
        """Initialize every tensor, the same on all ranks; a pretrained head by class names."""
        # Drawn on the CPU, so that a seed gives the same tensors on any device and memory format.
        place_model(self.model, ComputeConfig(channels_last=False), torch.device("cpu"))
        config = self._config
        model = self.model
        if self._rank is not None:
            model = build(config.model.backbone, self._num_classes, config.ingest.size_px)
        report = initialize(model, config.model, seed=config.seed, classes=classes)
        if self._rank is not None:
            load_base(self.model, model.state_dict())
        place_model(self.model, self._config.compute, self._worker.device)
        if self.average:
            self.average.model.load_state_dict(self.model.state_dict())
        return report

    def enter(self, phase: Phase) -> None:
        """Freeze the phase's stages, and build its optimizer and DDP.

        Parameters that trained in the phase before keep their optimizer state.
        """
        config = self._config
        depth = resolve_depth(config.model.backbone, phase.freeze_depth)
        freeze(self.model, config.model.backbone, depth)
        if not config.compute.compile:
            keep_methods_as_they_are()
        optimizer = build_optimizer(self.model, config.model.backbone, config.optim)
        if self.optimizer is not None:
            carry_state(self.optimizer, optimizer)
        self.phase, self.optimizer, self._depth = phase, optimizer, depth
        self.train_mode()
        self.network = self._behind_cut(self.model)
        if self._worker.world_size > 1:
            with without_compiler():
                self.network = DistributedDataParallel(
                    self.network,
                    # Saves a copy from bucket to gradient; on CPUs, clipping is slower on views.
                    gradient_as_bucket_view=self._worker.device.type != "cpu",
                    forward_sync_buffers=has_live_batchnorm(self.model),
                )
        if config.compute.compile:
            self.network.compile()

    def _behind_cut(self, model: nn.Module) -> nn.Module:
        """Return what takes the batches: the model, or its stages behind the cut."""
        if self._cut_depth is None:
            return model
        if model not in self._suffixes:
            backbone = self._config.model.backbone
            self._suffixes[model] = Suffix(model, backbone, self._cut_depth)
        return self._suffixes[model]

    def update_average(self) -> None:
        if self.average:
            self.average.update(self.model)

    def share_buffers(self) -> None:
        """Copy rank 0's BatchNorm statistics, which the checkpoint has, to all ranks."""
        if self._worker.world_size > 1:
            for buffer in self.kept.buffers():
                distributed.broadcast(buffer, src=0)

    def train_mode(self) -> None:
        """Put the network in the training mode of its phase."""
        config = self._config.model
        train_mode(
            self.model, config.backbone, self._depth, freeze_batchnorm=config.freeze_batchnorm
        )

    def serialize(self) -> dict[str, bytes]:
        """Return the files of a checkpoint: the model to use, and what else a resume needs."""
        assert self.optimizer is not None
        training: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.average:
            training |= {
                "model": self._tensors(self.model),
                "num_averaged": self.average.num_updates,
            }
        content = io.BytesIO()
        torch.save(training, content)
        return {
            "model.safetensors": to_safetensors(self._tensors(self.kept)),
            "training.pt": content.getvalue(),
        }

    def _tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a model's tensors, except those before the cut."""
        if self._cut_depth is None:
            return model.state_dict()
        return behind(model.state_dict(), self._config.model.backbone, self._cut_depth)

    def load(self, contents: dict[str, bytes], prefix: dict[str, Tensor] | None = None) -> None:
        """Load the files of a checkpoint, written in the phase that was entered.

        Args:
            prefix: the frozen tensors that are not in them.
        """
        assert self.optimizer is not None
        weights = parse_safetensors(contents["model.safetensors"], "model.safetensors")
        training: dict[str, Any] = parse_pickle(contents["training.pt"], "training.pt")
        needed = ("optimizer", "scaler", *(("model", "num_averaged") if self.average else ()))
        if not isinstance(training, dict) or not set(needed) <= training.keys():
            raise UserError(f"training.pt lacks one of {', '.join(needed)}: use another --out")
        load_weights(self.kept, weights | (prefix or {}), "model.safetensors")
        if self.average:
            load_weights(self.model, training["model"] | (prefix or {}), "training.pt")
            self.average.num_updates = training["num_averaged"]
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])


def autocast_dtype(config: ComputeConfig, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast; None for float32."""
    if config.precision == "auto":  # not chosen by `choose_precision`: what every node computes
        return torch.bfloat16 if device.type == "cuda" else None
    return AUTOCAST_DTYPES[config.precision]


def place_model(model: nn.Module, config: ComputeConfig, device: torch.device) -> None:
    """Move a model to its device and memory format; on CPUs, see `avoid_in_place`."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:  # `Module.to` refuses a model with a tensor of rank 5, as Swin's mask
            # `contiguous` would leave the strides of depthwise and 1x1 weights, which fit both.
            tensor.data = tensor.data.to(memory_format=layout)
    if device.type == "cpu" and autocast_dtype(config, device) is torch.bfloat16:
        avoid_in_place(model)
