"""Linear heads of one network, computed together: features come once for all of them.

T heads, B images, D features, K classes, P tensors of a head (weight and bias).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.plan import IGNORE_INDEX
from trainers.config import FinetuneConfig
from trainers.heads.updates import HeadUpdates
from trainers.metrics import CLIPPED_SHARE, GRAD_NORM, GRAD_NORM_AFTER, PEAK_NORM, STAGE_CLIPPING
from trainers.networks.backbones import find
from trainers.networks.cut import Suffix, before, behind
from trainers.step.optim import build_optimizer
from trainers.step.state import TrainState
from trainers.step.step import StepSettings, score_logits, to_inputs


class Head(NamedTuple):
    """A head with its optimizer."""

    module: nn.Linear
    average: nn.Linear | None
    """Moving average of its weights."""
    optimizer: Optimizer


def find_linear_head(network: nn.Module, backbone_name: str, depth: int) -> str | None:
    """Return the path of the linear layer that is all that trains behind the first `depth` stages;
    None where there is more, or the network's output is not that layer's.

    What has no tensors (pooling, dropout) may come before it.
    """
    trained = behind(network.state_dict(), backbone_name, depth)
    paths = {name.rpartition(".")[0] for name in trained}
    head = find(backbone_name).head
    path, module = min(paths), network.get_submodule(head)
    if isinstance(module, nn.Sequential):
        head_end = f"{head}.{[name for name, _ in module.named_children()][-1]}"
    else:
        head_end = head
    if paths != {head_end} or not isinstance(network.get_submodule(path), nn.Linear):
        return None
    return path if Suffix(network, backbone_name, depth).ends_with(head) else None


class HeadStack:
    """T heads of the network of a TrainState, whose weights are one tensor.

    A head has an optimizer of its own, so that learning rate, weight decay, clipping and even the
    algorithm may differ, and its state has the format of a run that trains alone.
    """

    def __init__(self, state: TrainState, configs: Sequence[FinetuneConfig], depth: int) -> None:
        """`state` has entered its phase; every head starts from its head."""
        self._state, self._optims = state, [config.optim for config in configs]
        backbone = configs[0].model.backbone
        path = find_linear_head(state.model, backbone, depth)
        assert path is not None, "can_stack was asked before"
        self._name, self._backbone, self._depth = path, backbone, depth
        source = state.model.get_submodule(self._name)
        assert isinstance(source, nn.Linear)
        average = state.average.model.get_submodule(self._name) if state.average else None
        self.heads: list[Head] = []
        for config in configs:
            module, its_average = copy.deepcopy(source), copy.deepcopy(average)
            state.model.set_submodule(self._name, module)
            optimizer = build_optimizer(state.model, backbone, config.optim)
            assert its_average is None or isinstance(its_average, nn.Linear)
            self.heads.append(Head(module, its_average, optimizer))
        state.model.set_submodule(self._name, nn.Identity())
        self._inputs = Suffix(state.model, backbone, depth)
        self.join()

    def join(self) -> None:
        """Let the heads share one tensor each for weights and biases; call it where they change."""
        self._weights_P = _stack([head.module for head in self.heads])
        self._leaves_P = [weights.detach().requires_grad_() for weights in self._weights_P]
        averages = [head.average for head in self.heads if head.average is not None]
        self._averages_P = _stack(averages) if averages else None
        self._updates = [
            HeadUpdates(head.optimizer, list(head.module.parameters())) for head in self.heads
        ]
        device = self._weights_P[0].device
        decays = [optim.ema_decay or 0.0 for optim in self._optims]
        self._decays_T = torch.tensor(decays, device=device)
        self._clipnorm_T1 = _limits([optim.clipnorm for optim in self._optims], device)
        self._global_T1 = _limits([optim.global_clipnorm for optim in self._optims], device)
        self._clips = any(o.clipnorm or o.global_clipnorm for o in self._optims)

    def train_mode(self) -> None:
        """Put what comes before the heads in train mode."""
        self._state.train_mode()

    def eval_mode(self) -> None:
        """Put what comes before the heads in eval mode."""
        self._state.model.eval()

    def keep(self, numbers: Sequence[int]) -> None:
        """Drop all heads but these."""
        self.heads = [self.heads[number] for number in numbers]
        self._optims = [self._optims[number] for number in numbers]
        self.join()

    def serialize(self, number: int, num_updates: int) -> dict[str, bytes]:
        """Return the files of a head's checkpoint."""
        with self._in_place(number) as state:
            if state.average:
                state.average.num_updates = num_updates
            return state.serialize()

    def load(self, number: int, contents: dict[str, bytes]) -> None:
        """Load the files of a head's checkpoint; call `join` after the last one."""
        with self._in_place(number) as state:  # frozen tensors are not used: they stay as they are
            state.load(contents, before(state.model.state_dict(), self._backbone, self._depth))

    @contextmanager
    def _in_place(self, number: int) -> Iterator[TrainState]:
        """Give the network a head, as of a run alone, in a `with` block."""
        head, state = self.heads[number], self._state
        models = [state.model, *([state.average.model] if state.average else [])]
        before = [model.get_submodule(self._name) for model in models]
        for model, module in zip(models, (head.module, head.average), strict=False):
            assert module is not None
            model.set_submodule(self._name, module)
        state.optimizer = head.optimizer
        try:
            yield state
        finally:
            for model, module in zip(models, before, strict=True):
                model.set_submodule(self._name, module)

    def train_step(
        self,
        features: Tensor,
        labels_B: Tensor,
        *,
        settings: StepSettings,
        learning_rates: Sequence[float],
        num_updates: int,
    ) -> dict[str, Tensor]:
        """Update every head with one batch, as `step.train_step` updates one.

        Returns:
            What that does, one value per head: [T], and STAGE_CLIPPING [T, 3].
        """
        labels_B = labels_B.long()
        num_heads, divisor = len(self.heads), settings.images_per_rank or len(labels_B)
        logits_BTK = self._forward(features, self._leaves_P, settings)
        losses = F.cross_entropy(
            logits_BTK.flatten(0, 1),
            labels_B.repeat_interleave(num_heads),
            label_smoothing=settings.label_smoothing,
            ignore_index=IGNORE_INDEX,
            reduction="none",
        )
        losses_BT = losses.view(-1, num_heads)
        if settings.class_weights_K is not None:
            losses_BT = losses_BT * settings.class_weights_K[labels_B.clamp(min=0), None]
        loss_T = losses_BT.sum(dim=0)
        gradients_P = torch.autograd.grad(loss_T.sum() / divisor, self._leaves_P)
        clipping = self._clip(gradients_P)
        for updates, gradients, rate in zip(
            self._updates, zip(*gradients_P, strict=True), learning_rates, strict=True
        ):
            updates.step(gradients, rate)
        if self._averages_P is not None:
            self._update_averages(num_updates)
        count = (labels_B != IGNORE_INDEX).sum()
        top1_BT = logits_BTK.topk(1).indices[..., 0] == labels_B[:, None]
        return {
            "count": count.expand(num_heads),
            "lost": (len(labels_B) - count).expand(num_heads),
            "loss_sum": loss_T.detach(),
            "top1_sum": top1_BT.sum(dim=0),
            "finite": clipping[GRAD_NORM].isfinite(),
            **clipping,
        }

    @torch.no_grad()
    def eval_step(self, features: Tensor, labels_B: Tensor, settings: StepSettings) -> Tensor:
        """Return what `step.eval_step` does, of each head: [5, T, B]."""
        weights_P = self._weights_P if self._averages_P is None else self._averages_P
        logits_TBK = self._forward(features, weights_P, settings).transpose(0, 1)
        num_heads = len(logits_TBK)
        columns = score_logits(logits_TBK.flatten(0, 1), labels_B.long().repeat(num_heads))
        return columns.view(len(columns), num_heads, -1)

    def _forward(
        self, features: Tensor, weights_P: Sequence[Tensor], settings: StepSettings
    ) -> Tensor:
        """Return float32 logits_BTK."""
        inputs, dtype = to_inputs(features, settings), settings.autocast_dtype
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not None):
            inputs_BD = self._inputs(inputs)
            assert isinstance(inputs_BD, Tensor)
            logits = F.linear(inputs_BD, *(weights.flatten(0, 1) for weights in weights_P))
        return logits.float().view(len(inputs_BD), len(weights_P[0]), -1)

    def _clip(self, gradients_P: Sequence[Tensor]) -> dict[str, Tensor]:
        """Clip in place and measure, as `optim.clip_gradients` does for the one stage of a head."""
        norms_TP = torch.stack(
            [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients_P], dim=1
        )
        global_T1 = torch.linalg.vector_norm(norms_TP, dim=1, keepdim=True)
        scales_TP = torch.ones_like(norms_TP)
        if self._clips:
            by_tensor_TP = _scale(norms_TP, self._clipnorm_T1)
            scales_TP = by_tensor_TP * _scale(global_T1, self._global_T1)
            for gradient, scale_T in zip(gradients_P, scales_TP.unbind(1), strict=True):
                gradient.mul_(scale_T.view(-1, *[1] * (gradient.ndim - 1)))
        norm_T, clipped_T = global_T1[:, 0], (scales_TP < 1).float().mean(dim=1)
        after_T = torch.linalg.vector_norm(norms_TP * scales_TP, dim=1)
        return {
            GRAD_NORM: norm_T,
            GRAD_NORM_AFTER: after_T,
            CLIPPED_SHARE: clipped_T,
            PEAK_NORM: norms_TP.amax(dim=1),
            STAGE_CLIPPING: torch.stack([norm_T, after_T, clipped_T], dim=1),
        }

    @torch.no_grad()
    def _update_averages(self, num_updates: int) -> None:
        """As `state.WeightAverage.update`, which has made `num_updates` before."""
        assert self._averages_P is not None
        decays_T = self._decays_T.clamp(max=(1 + num_updates) / (10 + num_updates))
        for average, weights in zip(self._averages_P, self._weights_P, strict=True):
            average.lerp_(weights, (1 - decays_T).view(-1, *[1] * (average.ndim - 1)))


def _stack(modules: Sequence[nn.Linear]) -> list[Tensor]:
    """Return the weights of all modules as one tensor, and the biases, of which theirs become
    parts."""
    stacked: list[Tensor] = []
    for parts in zip(*(module.parameters() for module in modules), strict=True):
        whole = torch.stack([part.detach() for part in parts])
        for part, its_view in zip(parts, whole, strict=True):
            part.data = its_view
        stacked.append(whole)
    return stacked


def _limits(norms: Sequence[float | None], device: torch.device) -> Tensor:
    """Return norms [T, 1]; infinite for none."""
    values = [float("inf") if norm is None else norm for norm in norms]
    return torch.tensor(values, device=device)[:, None]


def _scale(norms: Tensor, limit_T1: Tensor) -> Tensor:
    """Return what clips to a limit: 1 up to it."""
    return torch.where(norms > limit_T1, limit_T1 / norms, torch.ones_like(norms))
