"""A sweep's command line: its fields, its advice, and the sweep that it describes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from cluster.config import ClusterConfig, Device
from cluster.dispatch import parse_options
from cluster.io.errors import require
from cluster.io.markers import URI
from trainers.config import FreezeDepth, Init
from trainers.recipes import RECIPES
from tuning.config import SpaceConfig, TuningConfig


@dataclass(frozen=True, kw_only=True)
class Command:
    """The fields of a sweep that the command line offers; the recipe has the others."""

    data: Annotated[str | None, URI] = None
    """URI of a prepared data set (`python -m datasets prepare`)."""
    from_advice: Annotated[str | None, URI] = None
    """URI of the folder of a `python -m tuning advise`: data, network, weights, size and freeze
    depths are taken from there where they are not given here."""
    out: Annotated[str, URI] = "runs/sweep"
    """URI of the sweep's folder; the same folder resumes."""
    trials: int | None = None
    """Trials to run. Default: 12, or every point of a grid."""
    search: Literal["random", "grid", "optuna"] = "random"
    """random: distinct points. grid: all of them. optuna: learns from results."""
    freeze_depths: tuple[FreezeDepth, ...] = SpaceConfig.freeze_depths
    """Stages that stay frozen, 0 (nothing) to `all` (head only)."""
    learning_rates: tuple[float, ...] = SpaceConfig.learning_rates
    """Learning rates to choose from."""
    learning_rate_range: tuple[float, float] | None = None
    """Draw learning rates log-uniformly between these two instead."""
    clipnorms: tuple[float | Literal["none"], ...] = ("none", 1.0)
    """Norms that each tensor's gradient is clipped to; `none` does not clip. Where one is set, it
    takes the place of the recipe's global_clipnorm."""
    inits: tuple[Init, ...] = SpaceConfig.inits
    """Initializations; random ones always train the whole network."""
    weights: Annotated[str | None, URI] = None
    """URI of a state dict, for `file`; also stands in for the download of `imagenet`."""
    backbone: str | None = None
    """Network. Default: the recipe's, as for all below."""
    normalization: Literal["imagenet", "half"] | None = None
    """Pixel mean and standard deviation the weights were trained with."""
    epochs: int | None = None
    """Epochs of a trial that is not pruned."""
    global_batch_size: int | None = None
    """Images per optimizer step, over all workers."""
    size_px: int | None = None
    """Height and width of the images the network sees."""
    policy: Literal["none", "light", "cars"] | None = None
    """Augmentation of training images."""
    views: int | None = None
    """Augmented views of each image, which epochs take in turn. Default: a new one in every epoch.
    With fewer, what is frozen computes less."""
    mix: bool = False
    """Blend images as the recipe does (mixup, CutMix): trials can't share frozen stages then."""
    share: bool = TuningConfig.share
    """Compute frozen stages once for all trials and sweeps, and copy results that are known."""
    explain: bool = False
    """Only say what would run, and what sharing would save."""
    head_first: bool = TuningConfig.head_first
    """Let deeper trials start from the best head on the frozen network (LP-FT)."""
    cache: Annotated[str | None, URI] = None
    """URI of the folder that sweeps share features and results in. Default: `cache` beside OUT."""
    feature_cache_gib: float = TuningConfig.feature_cache_gib
    """GiB of features the cache may hold; trials train on images where their own don't fit."""
    grace_epochs: int = TuningConfig.grace_epochs
    """No trial is stopped before this many epochs."""
    reduction_factor: int = TuningConfig.reduction_factor
    """ASHA: of this many trials at a rung, one goes on."""
    seed: int = 0
    """Seed of the search and of every training."""
    num_workers: int | None = None
    """DDP workers of a trial that trains more than the head; 0 trains in the trial's process."""
    device: Device = "auto"
    """`auto` uses GPUs where the cluster has them."""
    max_failures: int = TuningConfig.max_failures
    """Times a failed trial is tried again, from its latest checkpoint, in all sittings together.
    The same command starts one that failed for good once more."""
    hang_timeout_s: float = ClusterConfig.hang_timeout_s
    """A trial whose workers don't answer, or that gets no batch, for so long has failed."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online with WANDB_API_KEY set, else offline."""
    project: str = "thaw"
    """W&B project."""
    group: str | None = None
    """W&B group of the trials. Default: the name of the sweep's folder."""

    def to_config(self, recipe: str) -> TuningConfig:
        """Return the sweep this command describes."""
        require(self.data is not None, "data", self.data, "give --data URI, or --from-advice OUT")
        assert self.data is not None
        base = RECIPES[recipe]
        clipnorms = tuple(None if value == "none" else value for value in self.clipnorms)
        clips = any(clipnorm is not None for clipnorm in clipnorms)
        base = replace(
            base,
            data=self.data,
            seed=self.seed,
            **self._given("epochs", "global_batch_size"),
            ingest=replace(base.ingest, **self._given("size_px", "policy", "views")),
            schedule=replace(
                base.schedule,
                warmup_epochs=min(base.schedule.warmup_epochs, (self.epochs or base.epochs) / 2),
            ),
            model=replace(base.model, **self._given("backbone", "weights", "normalization")),
            loss=base.loss if self.mix else replace(base.loss, mixup_alpha=0.0, cutmix_alpha=0.0),
            optim=replace(base.optim, global_clipnorm=None) if clips else base.optim,
            track=replace(base.track, wandb=self.wandb, project=self.project, group=self.group),
            cluster=replace(
                base.cluster,
                address=self.address,
                num_workers=self.num_workers,
                device=self.device,
                hang_timeout_s=self.hang_timeout_s,
            ),
        )
        return TuningConfig(
            base=base,
            space=SpaceConfig(
                freeze_depths=self.freeze_depths,
                learning_rates=self.learning_rates,
                learning_rate_range=self.learning_rate_range,
                clipnorms=clipnorms,
                inits=self.inits,
            ),
            out=self.out,
            trials=self.trials,
            search=self.search,
            seed=self.seed,
            grace_epochs=self.grace_epochs,
            reduction_factor=self.reduction_factor,
            max_failures=self.max_failures,
            share=self.share,
            head_first=self.head_first,
            cache=self.cache,
            feature_cache_gib=self.feature_cache_gib,
            advice=self.from_advice,
        )

    def _given(self, *names: str) -> dict[str, Any]:
        """Fields that were set; the others stay the recipe's."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Explanation:
    """A sweep that is only explained."""

    config: TuningConfig


def parse_sweep(recipe: str, options: Sequence[str], help: str) -> TuningConfig | Explanation:
    """Parse the options of a sweep; those that are not given are taken from the advice.

    Raises:
        UserError: where there is no advice, or it is about other data.
    """
    parse = partial(parse_options, Command, options, prog="python -m tuning", help=help)
    command: Command = parse()
    if command.from_advice is not None:
        from cluster.io import storage
        from tuning.advice.advice import read_advice

        uri = storage.absolute(command.from_advice, "from_advice")
        advice = read_advice(uri)
        command = replace(parse(default=Command(**advice.options())), from_advice=uri)
        assert command.data is not None
        advice.require_same_data(command.data)
    config = command.to_config(recipe)
    return Explanation(config) if command.explain else config


def parse_without_advice(
    recipe: str, options: Sequence[str], help: str
) -> TuningConfig | Explanation | Command:
    """Parse as `parse_sweep` does; a command with advice is returned as it is."""
    command: Command = parse_options(Command, options, prog="python -m tuning", help=help)
    return command if command.from_advice is not None else parse_sweep(recipe, options, help)


def run_sweep(config: TuningConfig | Explanation) -> None:
    from tuning.run import tune_sweep

    if isinstance(config, Explanation):
        tune_sweep(config.config, explain=True)
    else:
        tune_sweep(config)
