"""Configuration of a sweep and of the commands around it (standard library only)."""

import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from cluster.io.errors import (
    require,
    require_at_least,
    require_between,
    require_not_negative,
    require_positive,
)
from cluster.io.fields import build, check_fields
from cluster.io.markers import RESUMABLE, URI
from cluster.io.uris import name_of
from trainers.config import AUTO, Auto, FinetuneConfig, FreezeDepth, Init
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, LEARNING_RATE, Axis
from tuning.axes.backbones import read_backbones
from tuning.axes.combine import axes_of_backbones, combine
from tuning.budget.config import BudgetConfig, Spent

DEFAULT_TRIALS = 12
MAX_MEMBERS = 5
"""Best trials that are combined."""
PROMOTION_SHARE = 0.5
"""Of a sweep's budget, where its winner is promoted."""
SHARES = (0.5, 0.75)
"""Of the winner's weights in an interpolation."""
NUM_STATISTICS = 512
"""Training images that give the BatchNorm statistics of averaged weights."""


def fit_warmup(warmup: float | Auto, epochs: int) -> float | Auto:
    """Return the epochs of a recipe's warmup in a training that may be shorter."""
    return warmup if warmup == AUTO else min(warmup, epochs / 2)


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """The axes of a sweep: four with short options (how deep to freeze, learning rate, clipping,
    initialization), networks, and any other field of a training."""

    freeze_depths: tuple[FreezeDepth, ...] = ("all", 0.75, 0.5, 0)
    """Freeze depths with pretrained weights: a number of stages from 0 (freezes nothing) to `all`
    (trains the head only), a share such as 0.5, or a stage's name, which freezes up to that
    stage."""
    learning_rates: tuple[float, ...] = (3e-3, 1e-3, 3e-4)
    """Learning rates to choose from."""
    learning_rate_range: tuple[float, float] | None = None
    """Draw learning rates log-uniformly between these two instead; not with a grid."""
    clipnorms: tuple[float | None, ...] = (None, 1.0)
    """Keras' clipnorm per tensor; none does not clip."""
    inits: tuple[Init, ...] = ("imagenet", "he")
    """Initial weights; with random ones the whole network always trains."""
    backbones: tuple[str, ...] = ()
    """Networks to choose from, instead of --backbone: names of `python -m trainers zoo` or of timm,
    or the sets `fast`, `accurate` and `all`. NAME=INIT or NAME=URI sets the initial weights of a
    network, NAME=URI@half also its normalization. A name alone is tried with each of --inits."""
    axes: tuple[Axis, ...] = ()
    """Other fields to search; an axis of a field above replaces it."""

    def __post_init__(self) -> None:
        check_fields(self, "space.")
        for name in ("freeze_depths", "learning_rates", "clipnorms", "inits"):
            values: tuple[object, ...] = getattr(self, name)
            require(
                len(values) >= 1 and len(set(values)) == len(values),
                f"space.{name}",
                values,
                "give one value or more, each once",
            )
        for rate in self.learning_rates:
            require_positive("space.learning_rates", rate)
        for clipnorm in self.clipnorms:
            require_positive("space.clipnorms", clipnorm)
        if self.learning_rate_range is not None:
            low, high = self.learning_rate_range
            require_positive("space.learning_rate_range", low)
            require(
                low < high < float("inf"),
                "space.learning_rate_range",
                self.learning_rate_range,
                "give the smaller rate first, such as 1e-4 1e-2",
            )
        assert self.all_axes, "made here, so that its errors are found now"

    @cached_property
    def all_axes(self) -> tuple[Axis, ...]:
        """All axes alike, in the order in which a point is made."""
        rates, networks = self.learning_rate_range, read_backbones(self.backbones)
        short = [
            *axes_of_backbones(networks, self.inits),
            Axis(field=FREEZE_DEPTH, values=self.freeze_depths),
            Axis(
                field=LEARNING_RATE,
                values=() if rates else self.learning_rates,
                range=rates,
                log=rates is not None,
            ),
            Axis(field=CLIPNORM, values=self.clipnorms),
        ]
        return combine(short, self.axes)

    def values_of(self, field: str) -> tuple[object, ...]:
        """Return the values of a field that is an axis; those of a range are its bounds."""
        axes = [axis for axis in self.all_axes if axis.field == field]
        return tuple(dict.fromkeys(v for axis in axes for v in axis.values or axis.range or ()))


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """A whole sweep."""

    base: FinetuneConfig
    """The training every trial starts from; a point of the space changes some of its fields."""
    space: SpaceConfig = field(default_factory=SpaceConfig)
    out: Annotated[str, URI, RESUMABLE] = "runs/sweep"
    """URI of the sweep's folder; an unfinished sweep in it resumes. You must trust this folder, as
    Tune keeps its state there as pickles."""
    trials: int | None = None
    """Trials to run. Default: 12, every point of a grid, or as many as a budget allows."""
    search: Literal["random", "grid", "optuna"] = "random"
    """random: distinct random points. grid: all points. optuna: TPE, which learns from results."""
    full_epochs: Annotated[int | None, RESUMABLE] = None
    """Epochs of a trial where the budget has time for one of each network and freeze depth; else
    `base.epochs` are fewer, as planned. None: those of `base` in any case. The command has the
    recipe's, where --epochs is not given."""
    seed: int = 0
    """Seed of the search."""
    grace_epochs: int = 1
    """ASHA: no trial is stopped before this many epochs."""
    reduction_factor: int = 3
    """ASHA: of this many trials at a rung, one continues."""
    share: Annotated[bool, RESUMABLE] = True
    """Compute frozen stages once for all trials and sweeps, and copy known results."""
    head_first: bool = False
    """Let trials that train stages start from the best head on the frozen network of their
    initialization (LP-FT: Kumar et al. 2022, https://arxiv.org/abs/2202.10054)."""
    fractional_gpus: Annotated[bool, RESUMABLE] = True
    """Let as many trials share a GPU as its memory holds (Ray's fractional GPUs). Before the sweep,
    some real steps of each network measure the memory. Trials of DDP workers have whole GPUs."""
    cache: Annotated[str | None, URI, RESUMABLE] = None
    """URI of the folder where sweeps share features and results. Default: `cache` beside OUT."""
    feature_cache_gib: Annotated[float, RESUMABLE] = 20.0
    """GiB of features that the cache may hold. Trials whose features don't fit train on images."""
    advice: Annotated[str | None, URI, RESUMABLE] = None
    """URI of the folder of the advice that the space comes from; the sweep ends with its score."""
    max_failures: Annotated[int, RESUMABLE] = 1
    """Times that a failed trial is tried again, from its latest checkpoint, across restarts. To
    retry a trial after that, run the same command again."""
    budget: Annotated[BudgetConfig, RESUMABLE] = field(default_factory=BudgetConfig)
    evaluate_winner: Annotated[bool, RESUMABLE] = True
    """Evaluate the winner on the test split, once."""
    combine: Annotated[bool, RESUMABLE] = True
    """At the end, try a soup and an ensemble of the best trials, and weights between the winner's
    and those it started from. Keep each that is significantly better on the validation images."""
    promote: Annotated[bool, RESUMABLE] = False
    """Then promote the winner: train it longer, on validation images too, test and export it. Half
    of the budget is kept for this, plus what the trials leave."""

    def __post_init__(self) -> None:
        require_between("trials", self.trials, 1, 100_000)
        require_at_least("seed", self.seed, 0)
        require(
            self.search != "grid" or self.trials is None,
            "trials",
            self.trials,
            "a grid runs every point: leave it out, or use --search random",
        )
        require(
            self.search != "grid" or self.space.learning_rate_range is None,
            "space.learning_rate_range",
            self.space.learning_rate_range,
            "a grid needs --learning-rates, or use --search random",
        )
        for axis in self.space.all_axes:
            require(
                self.search != "grid" or axis.range is None,
                axis.field,
                axis.describe_values(),
                "a grid needs values; list them, or use --search random",
            )
        require(
            not self.space.backbones or self.base.model.weights is None,
            "model.weights",
            self.base.model.weights,
            "each of --backbones has its own: give NAME=URI there",
        )
        require(
            not self.base.schedule.phases,
            "schedule.phases",
            self.base.schedule.phases,
            "a sweep searches one freeze depth and learning rate: use a recipe without phases",
        )
        require(
            self.base.validates,
            "train_on",
            self.base.train_on,
            "a sweep ranks by validation: use train here, and `python -m tuning promote` after it",
        )
        require_at_least("full_epochs", self.full_epochs, self.base.epochs)
        require_at_least("grace_epochs", self.grace_epochs, 1)
        require_at_least("reduction_factor", self.reduction_factor, 2)
        require_at_least("max_failures", self.max_failures, 0)
        require_not_negative("feature_cache_gib", self.feature_cache_gib)
        require(
            self.base.optim.global_clipnorm is None
            or all(clipnorm is None for clipnorm in self.space.values_of(CLIPNORM)),
            "space.clipnorms",
            self.space.values_of(CLIPNORM),
            "the base clips globally (optim.global_clipnorm): unset one of the two",
        )

    def sweep_s(self, num_gpus: int, spent: Spent) -> float | None:
        """Return the seconds that the sweep may take without its promotion, what it has taken
        included; None without a budget.

        Args:
            num_gpus, spent: as of `BudgetConfig.left_s`.

        Raises:
            UserError: as `BudgetConfig.left_s`.
        """
        share = 1 - PROMOTION_SHARE if self.promote else 1.0
        left_s = self.budget.left_s(num_gpus, spent, share=share)
        return None if left_s is None else max(0.0, spent.seconds + left_s)

    @property
    def group(self) -> str:
        """W&B group of the sweep and its trials."""
        known = self.base.track.group or os.environ.get("WANDB_RUN_GROUP")
        return known or name_of(self.out)

    @property
    def rungs(self) -> list[int]:
        """Epochs after which ASHA prunes trials; none where trials are too short for it."""
        rungs: list[int] = []
        rung = self.grace_epochs
        while rung < self.base.epochs:
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs

    def to_dict(self) -> dict[str, Any]:
        """Return the config as JSON: nested dicts, lists for tuples."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TuningConfig":
        """Rebuild from `to_dict`.

        Raises:
            UserError: for an unknown key, and values that don't fit their fields.
        """
        config = build(cls, values)
        check_fields(config)
        return config


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Render synthetic cars, run a sweep of ResNet50 on them and evaluate the winner, in minutes.

    The same command again prints what it reuses.
    """

    out: Annotated[str, URI] = "runs/demo"
    """Folder of the data sets, the sweep and its runs."""
    weights: Annotated[str | None, URI] = None
    """URI of a state dict of a ResNet50 trained on ImageNet, if it can't be downloaded."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: by WANDB_MODE, else online where W&B finds a key, else offline."""
