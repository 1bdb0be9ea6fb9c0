"""Tries soups, ensembles and interpolations on the validation images, in one process.

N validation images, B images of a batch, H x W pixels, C channels, K classes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from cluster.io.errors import UserError
from cluster.io.statistics import bootstrap_difference
from cluster.io.terminal import count
from datasets.manifest import Manifest
from datasets.plan import IGNORE_INDEX, EpochOrder, RowGroups
from datasets.sources import ShardSource
from trainers.config import FinetuneConfig
from trainers.evaluation.split import read_labelled
from trainers.inference.actors import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from trainers.inference.prefix import open_frozen
from trainers.networks.backbones import build
from trainers.networks.cut import build_prefix, build_suffix
from trainers.networks.folding import fold_batchnorm
from trainers.networks.freezing import count_frozen
from trainers.networks.weights.head_files import head_tensors
from trainers.networks.weights.tensors import load_weights
from trainers.run import checkpoint
from trainers.step.settings import prepare_inference
from trainers.step.step import StepSettings, predict
from tuning.combine.choose import Score, choose_ensemble, choose_soup, mix, score
from tuning.combine.combinations import ENSEMBLE, INTERPOLATION, SOUP, Combination
from tuning.combine.members import Member
from tuning.combine.weights import average, interpolate, list_live, recompute_statistics
from tuning.config import NUM_STATISTICS, SHARES

BLOCK_IMAGES, KEPT_BYTES = 256, 2 * 2**30
"""Decoded images, or the features behind stages that no member trained, stay in memory where the
images have at most so many bytes; else they are read again for each network."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A combination, and the tensors of its networks where it is kept: one, or those of an
    ensemble."""

    combination: Combination
    networks: tuple[Tensors, ...]


def search(
    members: Sequence[Member],
    manifest: Manifest,
    left_s: float,
    threads: int,
    use_gpu: bool,
) -> tuple[list[Attempt], bool]:
    """Try all combinations of members, the winner first.

    Args:
        left_s: seconds that it may take.

    Returns:
        The attempts, and whether time ended before all were made.
    """
    winner = members[0]
    soup = [member for member in members if member.start == winner.start]
    shares = SHARES if winner.can_interpolate else ()
    tensors = [checkpoint.load_best(member.run)[1] for member in members]
    num_networks = len(members) + len(soup) - 1 + len(shares)
    with count("Combining the best trials", num_networks, "networks") as advance:
        images = Validation(manifest, winner.config, threads, use_gpu, left_s, advance)
        if len(soup) == len(members):
            depth = min(count_frozen(member.config.model) for member in members)
            images.cut(_build(winner.config, manifest, tensors[0]), depth)
        log_MNK: list[np.ndarray] = []
        for member, of_member in zip(members, tensors, strict=True):
            if (log_NK := images.predict(_build(member.config, manifest, of_member))) is None:
                return [], True
            log_MNK.append(log_NK)
        attempts = [
            _try_ensemble(images, members, tensors, log_MNK),
            _try_soup(images, soup, [tensors[members.index(each)] for each in soup], log_MNK[0]),
            _try_interpolation(images, winner, tensors[0], log_MNK[0], shares),
        ]
    return [attempt for attempt in attempts if attempt is not None], images.is_late


class Validation:
    """The validation images, and what networks predict for them."""

    def __init__(
        self,
        manifest: Manifest,
        config: FinetuneConfig,
        threads: int,
        use_gpu: bool,
        left_s: float,
        advance: Callable[[int], None],
    ) -> None:
        self.manifest, self.config = manifest, config
        self._threads, self._use_gpu = threads, use_gpu
        self._deadline_s, self._advance = time.monotonic() + left_s, advance
        self._kept: list[tuple[Tensor, np.ndarray]] = []
        num_bytes = manifest.split("val").num_images * 3 * config.ingest.size_px**2
        self._keeps = num_bytes <= KEPT_BYTES
        self._depth = 0
        self._to_features: Callable[[Tensor], Tensor] = lambda images_BHWC: images_BHWC
        self.labels_N = np.zeros(0, np.int64)
        self.is_late = False

    def cut(self, model: nn.Module, depth: int) -> None:
        """Compute the first `depth` stages, which all networks have in common, once."""
        if depth == 0 or not self._keeps:
            return
        try:
            prefix = build_prefix(model, self.config.model.backbone, [depth])
            build_suffix(model, self.config.model.backbone, depth)
        except UserError:  # a network that can't be cut is computed as a whole
            return
        self._depth, self._to_features = depth, self._open(prefix)

    def predict(self, model: nn.Module) -> np.ndarray | None:
        """Return the log probabilities of the readable images, log_NK; None once time is over."""
        if time.monotonic() >= self._deadline_s:
            self.is_late = True
            return None
        compute = self._open(self._behind_cut(model))
        blocks = [(compute(inputs), labels_B) for inputs, labels_B in self._read()]
        labels_N = np.concatenate([labels_B for _, labels_B in blocks])
        readable_N = labels_N != IGNORE_INDEX
        self.labels_N = labels_N[readable_N]
        self._advance(1)
        logits_NK = torch.cat([logits_BK for logits_BK, _ in blocks])
        return logits_NK.log_softmax(1).double().numpy()[readable_N]

    def settle(self, model: nn.Module, members: Sequence[Member]) -> nn.Module:
        """Recompute the BatchNorm statistics that the trainings of members have changed."""
        live = list_live(
            model,
            self.config.model.backbone,
            min(count_frozen(member.config.model) for member in members),
            freeze_batchnorm=all(member.config.model.freeze_batchnorm for member in members),
        )
        if live:
            device, settings = self._place(model)
            batches = (inputs.to(device) for inputs in self._train_batches)
            recompute_statistics(self._behind_cut(model), live, batches, settings)
        return model

    def _behind_cut(self, model: nn.Module) -> nn.Module:
        return (
            build_suffix(model, self.config.model.backbone, self._depth) if self._depth else model
        )

    def _place(self, model: nn.Module) -> tuple[torch.device, StepSettings]:
        return prepare_inference(model, self.config, threads=self._threads, use_gpu=self._use_gpu)

    def _open(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return what a network computes, on the CPU, of images_BHWC or features."""
        folded = fold_batchnorm(model)
        device, settings = self._place(folded)
        batch_size = GPU_BATCH_SIZE if self._use_gpu else CPU_BATCH_SIZE

        @torch.no_grad()
        def compute(inputs: Tensor) -> Tensor:
            parts = inputs.split(batch_size)
            return torch.cat([predict(folded, part.to(device), settings).cpu() for part in parts])

        return compute

    def _read(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield blocks of inputs and labels_B."""
        if self._kept:
            yield from self._kept
            return
        num_images = self.manifest.split("val").num_images
        for start in range(0, num_images, BLOCK_IMAGES):
            rows = range(start, min(start + BLOCK_IMAGES, num_images))
            images_BHWC, labels_B = read_labelled(self.config, self.manifest, "val", rows)
            block = self._to_features(torch.tensor(images_BHWC)), labels_B
            if self._keeps:
                self._kept.append(block)
            yield block

    @cached_property
    def _train_batches(self) -> list[Tensor]:
        """Inputs of images as they trained, augmented."""
        config, row_groups = self.config, RowGroups(self.config.data, self.manifest.split("train"))
        source = ShardSource(ingest=config.ingest, seed=config.seed, train=True)
        order = EpochOrder(row_groups, seed=config.seed, epoch=0, shuffle=True)
        chunk = order.chunk(np.arange(min(NUM_STATISTICS, row_groups.num_images)))
        (block,) = source.read(chunk)
        images_NHWC = torch.tensor(block["image"].chunk(0).to_numpy(zero_copy_only=False))
        return [*self._to_features(images_NHWC).split(config.global_batch_size)]


def _build(config: FinetuneConfig, manifest: Manifest, tensors: Tensors) -> nn.Module:
    model = build(config.model.backbone, len(manifest.classes), config.ingest.size_px)
    load_weights(model, tensors, "a combination")
    return model.eval()


def _compare(
    images: Validation,
    kind: str,
    members: Sequence[Member],
    networks: Sequence[Tensors],
    log_NK: np.ndarray,
    winner_NK: np.ndarray,
    *,
    share: float | None = None,
) -> Attempt:
    before_N, after_N = (each.argmax(1) == images.labels_N for each in (winner_NK, log_NK))
    combination = Combination(
        kind=kind,
        trials=tuple(member.trial_id for member in members),
        share=share,
        top1=float(after_N.mean()),
        gain=bootstrap_difference(before_N, after_N),
    )
    return Attempt(combination=combination, networks=tuple(networks) if combination.is_kept else ())


def _try_ensemble(
    images: Validation,
    members: Sequence[Member],
    tensors: Sequence[Tensors],
    log_MNK: Sequence[np.ndarray],
) -> Attempt | None:
    number = choose_ensemble(log_MNK, images.labels_N)
    if number == 1:
        return None
    log_NK = mix(np.stack(log_MNK[:number]))
    chosen = members[:number], tensors[:number]
    return _compare(images, ENSEMBLE, *chosen, log_NK, log_MNK[0])


def _try_soup(
    images: Validation,
    members: Sequence[Member],
    tensors: Sequence[Tensors],
    winner_NK: np.ndarray,
) -> Attempt | None:
    made: dict[tuple[int, ...], tuple[Tensors, np.ndarray]] = {}

    def evaluate(chosen: Sequence[int]) -> Score | None:
        model = _build(images.config, images.manifest, average([tensors[i] for i in chosen]))
        model = images.settle(model, [members[i] for i in chosen])
        if (log_NK := images.predict(model)) is None:
            return None
        made[tuple(chosen)] = _tensors_of(model), log_NK
        return score(log_NK, images.labels_N)

    chosen = choose_soup(len(members), score(winner_NK, images.labels_N), evaluate)
    if len(chosen) == 1:
        return None
    soup, log_NK = made[tuple(chosen)]
    return _compare(images, SOUP, [members[i] for i in chosen], [soup], log_NK, winner_NK)


def _try_interpolation(
    images: Validation,
    winner: Member,
    tensors: Tensors,
    winner_NK: np.ndarray,
    shares: Sequence[float],
) -> Attempt | None:
    """The head is the winner's: that of the start was drawn at random."""
    if not shares:
        return None
    config = winner.config
    classes = images.manifest.classes
    start = open_frozen(config, len(classes), classes=classes).model
    heads = head_tensors(start, config.model.backbone)
    attempts: list[tuple[Score, Attempt]] = []
    for share in shares:
        mixed = interpolate(start.state_dict(), tensors, share, keep=heads)
        model = images.settle(_build(config, images.manifest, mixed), [winner])
        if (log_NK := images.predict(model)) is None:
            break
        attempt = _compare(
            images, INTERPOLATION, [winner], [_tensors_of(model)], log_NK, winner_NK, share=share
        )
        attempts.append((score(log_NK, images.labels_N), attempt))
    return max(attempts, key=lambda pair: pair[0], default=(None, None))[1]


def _tensors_of(model: nn.Module) -> Tensors:
    return {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
