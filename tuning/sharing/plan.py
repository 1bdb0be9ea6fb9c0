"""Which frozen prefixes a sweep computes once, and how many FLOPs that saves.

Computation is counted in multiply-adds x 2 (FLOPs) of the network's forward pass; a backward pass
costs two forward passes of what trains. Without sharing, a trial of E epochs over N images costs
E N (prefix + 3 rest); on features it costs E N 3 rest, and each of K views of each image passes
the prefix once, for all trials together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from datasets.manifest import Manifest
from datasets.passes.features import count_bytes
from trainers.config import FinetuneConfig
from trainers.networks.backbones import find
from tuning.config import TuningConfig
from tuning.point import training_of
from tuning.sharing.asha import simulate_epochs
from tuning.sharing.flops import count_flops
from tuning.sharing.keys import Key, blends, count_networks, name_networks, prefix_key
from tuning.space import models

MIN_SAVING = 0.02
"""Share of the sweep's computation; a prefix that saves less is not worth its disk space."""
NEXT_TO_NOTHING = "as computing it once saves next to nothing"


@dataclass(frozen=True, kw_only=True)
class PrefixPlan:
    """A frozen prefix that some trials share."""

    network: FinetuneConfig
    """As `network_of` returns it."""
    name: str
    """Of the network among those of the sweep, such as its initialization."""
    depth: int
    stage: str
    num_trials: float
    """Expected, where the search draws them."""
    num_views: int
    """Of each training image; one of validation or test has one."""
    shape: tuple[int, ...]
    """Of an image's features."""
    num_bytes: int
    flops: float
    """Of the prefix, for an image."""
    problem: str = ""
    """Why its trials train on images; empty where they train on its features."""
    missing_share: float = 1.0
    """Of its features, those that are not in the cache."""


@dataclass(frozen=True, kw_only=True)
class SharingPlan:
    """The prefixes of a sweep, and the FLOPs with and without sharing."""

    prefixes: tuple[PrefixPlan, ...] = ()
    without: float = 0.0
    """FLOPs of the sweep where every trial trains on images."""
    with_sharing: float = 0.0
    problem: str = ""
    """Why nothing is shared at all."""

    @property
    def shared(self) -> tuple[PrefixPlan, ...]:
        return tuple(prefix for prefix in self.prefixes if not prefix.problem)

    def find(self, training: FinetuneConfig) -> PrefixPlan | None:
        """Return the prefix whose features a training can use."""
        key = prefix_key(training)
        return next((p for p in self.shared if (p.network, p.depth) == key), None)

    def describe(self) -> list[str]:
        """Write the plan in lines."""
        if self.problem:
            return [f"nothing is shared: {self.problem}"]
        lines = []
        for prefix in self.prefixes:
            name = f"{prefix.name} up to {prefix.stage} (freeze depth {prefix.depth})"
            if prefix.problem:
                lines.append(f"{name}: from images, {prefix.problem}")
                continue
            views = "1 view" if prefix.num_views == 1 else f"{prefix.num_views} views"
            source = "computed once" if prefix.missing_share else "read from the cache"
            lines.append(
                f"{name}: {source} for {prefix.num_trials:.3g} trials, {views}, "
                f"{prefix.num_bytes / 2**30:.3f} GiB"
            )
        if self.shared:
            share = 1 - self.with_sharing / self.without
            lines.append(
                f"expected: {self.with_sharing / 1e15:.3g} instead of {self.without / 1e15:.3g} "
                f"PFLOPs in networks, {share:.1%} less"
            )
        return lines


def plan_sharing(
    config: TuningConfig,
    manifest: Manifest,
    *,
    free_bytes: Callable[[], float],
    missing_bytes: Callable[[PrefixPlan], float],
    epochs_at: Callable[[int], float] | None = None,
) -> SharingPlan:
    """Choose the prefixes that are worth building.

    Args:
        free_bytes: free space of the cache.
        missing_bytes: bytes of a prefix's features that are not in the cache.
        epochs_at: mean epochs of the trials at a freeze depth. Default: of all under ASHA.
    """
    base = config.base
    if not config.share:
        return SharingPlan(problem="--no-share")
    if all(blends(training_of(base, model)) for model in models(config.space)):
        return SharingPlan(problem="mixup and CutMix blend pixels, which no cached feature can")
    counts = count_networks(config)
    mean_epochs = simulate_epochs(config)
    num_train, num_val = (manifest.split(split).num_images for split in ("train", "val"))

    def num_passes(num_views: int) -> int:
        views = views_of_splits(config, manifest, num_views)
        return sum(number * manifest.split(split).num_images for split, number in views.items())

    def cost(total: float, prefix_flops: float, epochs: float, *, on_features: bool) -> float:
        """FLOPs of one trial."""
        rest = total - prefix_flops
        prefix = 0.0 if on_features else prefix_flops
        return epochs * (num_train * (prefix + 3 * rest) + num_val * (prefix + rest))

    names = name_networks(config)
    without, gains, prefixes = 0.0, {}, []
    for (network, depth), number in counts.items():
        depths = tuple(at for of, at in counts if of == network and at > 0)
        total, by_depth = count_flops(network, depths)
        flops, shape, problem = by_depth.get(depth, (0.0, (), ""))
        epochs = mean_epochs if epochs_at is None else epochs_at(depth)
        without += number * cost(total, flops, epochs, on_features=False)
        if depth == 0:
            continue
        num_views = network.ingest.num_views(base.epochs)
        on_images, on_features = (
            cost(total, flops, epochs, on_features=on_features) for on_features in (False, True)
        )
        prefix = PrefixPlan(
            network=network,
            name=names[network],
            depth=depth,
            stage=find(network.model.backbone).stages[depth - 1][0],
            num_trials=number,
            num_views=num_views,
            shape=shape,
            num_bytes=num_passes(num_views) * count_bytes(shape),
            flops=flops,
            problem=problem,
        )
        if not problem:
            prefix = replace(prefix, missing_share=missing_bytes(prefix) / prefix.num_bytes)
        prefixes.append(prefix)
        gains[network, depth] = number * (on_images - on_features)
    problems, saving = _choose(
        [prefix for prefix in prefixes if not prefix.problem],
        gains,
        num_passes=lambda prefix: num_passes(prefix.num_views),
        free_bytes=free_bytes(),
        min_saving=MIN_SAVING * without,
    )
    chosen = tuple(
        replace(prefix, problem=problems.get((prefix.network, prefix.depth), prefix.problem))
        for prefix in prefixes
    )
    return SharingPlan(prefixes=chosen, without=without, with_sharing=without - saving)


def views_of_splits(config: TuningConfig, manifest: Manifest, num_views: int) -> dict[str, int]:
    """Return how many views of an image pass a frozen prefix, by split; images of the test split
    pass it once, for the winner's test.

    Args:
        num_views: of a training image.
    """
    tests = config.evaluate_winner and "test" in manifest.splits
    return {"train": num_views, "val": 1} | ({"test": 1} if tests else {})


def _choose(
    prefixes: Sequence[PrefixPlan],
    gains: dict[Key, float],
    *,
    num_passes: Callable[[PrefixPlan], int],
    free_bytes: float,
    min_saving: float,
) -> tuple[dict[Key, str], float]:
    """Choose the prefixes of each network that pay together, in the order of their savings while
    they fit: one pass through the deepest serves the shallower ones as well.

    Returns:
        Why the others are not chosen, and the FLOPs saved.
    """
    saving = 0.0
    problems: dict[Key, str] = {}
    fitting: dict[FinetuneConfig, list[PrefixPlan]] = {}
    for prefix in sorted(prefixes, key=lambda p: -gains[p.network, p.depth]):
        key = prefix.network, prefix.depth
        missing = prefix.missing_share * prefix.num_bytes
        if gains[key] < min_saving:
            problems[key] = NEXT_TO_NOTHING
        elif missing > free_bytes:
            problems[key] = (
                f"as its features take {prefix.num_bytes / 2**30:.3g} GiB and the cache has room "
                f"for {max(0.0, free_bytes) / 2**30:.3g} (--feature-cache-gib, `tuning cache`)"
            )
        else:
            free_bytes -= missing
            fitting.setdefault(prefix.network, []).append(prefix)

    def gain_of(chosen: Sequence[PrefixPlan]) -> float:
        missing = (p for p in chosen if p.missing_share)
        passes = (p.flops * num_passes(p) for p in missing)
        return sum(gains[p.network, p.depth] for p in chosen) - max(passes, default=0.0)

    for network, found in fitting.items():
        up_to = ([p for p in found if p.depth <= deepest.depth] for deepest in found)
        chosen = max(up_to, key=gain_of)
        if gain_of(chosen) < min_saving:
            chosen = []
        saving += gain_of(chosen)
        problems |= {(network, p.depth): NEXT_TO_NOTHING for p in found if p not in chosen}
    return problems, saving
