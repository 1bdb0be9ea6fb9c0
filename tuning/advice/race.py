"""Short trainings at several freeze depths.

A linear classifier says what a frozen stage is worth, not what training the rest would add. So a
few depths train the first epochs of a sweep's trials, on cached features of what they freeze, and
their curves are extrapolated. What trains next to nothing trains all epochs. The learning rate is
the one that is better where least of the network trains; the whole network, which takes longest,
joins where the depth that freezes least of the others leads. More epochs would cost more and
advise no better: two runs of one training differ by more (docs/performance.md, Advice).

OUT/race/KEY/trials/DEPTH-RATE   their run folders, for a race that is cut
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.terminal import count, report
from cluster.runtime import Resources
from datasets.config import IngestConfig
from datasets.manifest import Manifest
from datasets.passes.features import hash_facts
from trainers import launch, metrics
from trainers.config import FinetuneConfig, FreezeDepth, TrackConfig
from trainers.inference.passes import cache_uri
from trainers.networks.freezing import is_head_only, resolve_depth
from trainers.prepare import plan_ingest, plan_training, prepare_run
from trainers.recipes import pretrained
from trainers.run.folder import find_result
from trainers.run.rows import epoch_rows
from tuning.advice.config import AdviseConfig
from tuning.advice.extrapolation import Expected, Race, Raced, extrapolate, find_regrets
from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE, show
from tuning.config import SpaceConfig, TuningConfig
from tuning.shared import Shared, config_of
from tuning.sharing.flops import count_flops
from tuning.sharing.prefixes import PrefixStore

DEPTHS: tuple[FreezeDepth, ...] = ("all", -1, 0.75, 0.5, 0.25, 0)
"""That race; the last one joins."""
CHEAP = 0.1
"""A training that computes at most this share of the network is cheap."""
CHEAP_RATES, RATES = (1e-2, 3e-3), (1e-3, 3e-4)
"""Learning rates of Adam. Large ones forget what the network knows, small ones take many steps."""
SHARE, MIN_EPOCHS, MIN_STEPS = 0.4, 2, 20
"""Share of the epochs that a training has unless it is cheap; at least so many epochs and steps."""


@dataclass(frozen=True, kw_only=True)
class Training:
    depth: int
    config: FinetuneConfig
    is_cheap: bool

    @property
    def rate(self) -> float:
        return self.config.optim.learning_rate


def run_race(
    config: AdviseConfig, training: FinetuneConfig, manifest: Manifest, resources: Resources
) -> Race:
    """Race the freeze depths of a network.

    Args:
        training: of `build_training`, with the network and its weights.

    Raises:
        UserError: where every training diverged.
    """
    sweep = _plan_sweep(config, training, manifest)
    trainings, shared = _share(sweep, manifest, resources)
    num_val, num_epochs = manifest.split("val").num_images, sweep.base.epochs
    steps_per_epoch = manifest.split("train").num_images / sweep.base.global_batch_size
    enough = max(SHARE * num_epochs, MIN_EPOCHS, MIN_STEPS / steps_per_epoch)
    limit = min(num_epochs, ceil(enough))
    curves: dict[Training, tuple[float, ...]] = {}

    def train(racing: Sequence[Training]) -> None:
        with count(f"Racing freeze depths to epoch {limit}", len(racing), "trainings") as advance:
            for each in racing:
                epochs = num_epochs if each.is_cheap else limit
                if top1s := _train(each.config, epochs, shared, resources):
                    curves[each] = top1s
                advance(1)

    def expect(each: Training) -> Expected:
        return extrapolate(curves[each], num_epochs, num_val)

    cheap = [each for each in trainings if each.is_cheap]
    others = [each for each in trainings if not each.is_cheap]
    least = [each for each in others if each.depth == max(other.depth for other in others)]
    train([*cheap, *least])
    finite = [each for each in least if each in curves]
    rate = max(finite, key=lambda each: expect(each).top1).rate if finite else None
    racing = [each for each in others if each.rate == rate]
    train([each for each in racing if each not in curves and each.depth > 0])
    require(bool(curves), "race", config.race, "every training diverged; use --no-race")
    raced = _compare(curves, expect)
    whole = [each for each in racing if each not in curves and each.depth == 0]
    if whole and raced[0].depth == min(each.depth for each in raced):
        train(whole)
        raced = _compare(curves, expect)
    return Race(num_epochs=num_epochs, depths=raced)


def _plan_sweep(config: AdviseConfig, training: FinetuneConfig, manifest: Manifest) -> TuningConfig:
    """Return the sweep whose trials race."""
    depths = {resolve_depth(training.model.backbone, depth) for depth in DEPTHS}
    recipe = pretrained()
    epochs = config.epochs or recipe.epochs
    base = replace(
        recipe,
        data=training.data,
        fold=training.fold,
        epochs=epochs,
        global_batch_size=min(
            config.global_batch_size or recipe.global_batch_size,
            manifest.split("train").num_images,
        ),
        ingest=IngestConfig(
            size_px=training.ingest.size_px,
            policy=config.policy or recipe.ingest.policy,
            views=ceil(SHARE * epochs),  # a sweep's first ones, which it finds in the cache
        ),
        model=training.model,
        cluster=replace(training.cluster, num_workers=config.num_workers),
        track=TrackConfig(wandb="off"),
    )
    key = hash_facts({"base": base.to_dict(), "data": manifest.fingerprint})
    return TuningConfig(
        base=base,
        space=SpaceConfig(
            freeze_depths=tuple(sorted(depths, reverse=True)),
            learning_rates=RATES,
            clipnorms=(None,),
            inits=(base.model.init,),
        ),
        out=storage.join(training.out, "race", key),
        search="grid",
        cache=cache_uri(training.out, config.cache),
        evaluate_winner=False,
    )


def _share(
    sweep: TuningConfig, manifest: Manifest, resources: Resources
) -> tuple[list[Training], Shared]:
    """List the trainings, and compute the features that they share."""
    store = PrefixStore(sweep, manifest, resources)
    base, depths = sweep.base, [int(depth) for depth in sweep.space.freeze_depths]
    total, by_depth = count_flops(base, [depth for depth in depths if depth])

    def is_cheap(depth: int) -> bool:
        return depth > 0 and 1 - by_depth[depth][0] / total <= CHEAP

    plan = store.plan(
        sweep, epochs_at=lambda depth: base.epochs * (1.0 if is_cheap(depth) else SHARE)
    )
    built = store.build(plan)
    for problem in built.problems:
        print(f"  {problem}: its trainings train on images")
    shared = Shared(manifest=manifest, prefixes=dict(built.prefixes))
    trainings = []
    for depth in depths:
        for rate in CHEAP_RATES if is_cheap(depth) else RATES:
            point = {
                INIT: base.model.init,
                FREEZE_DEPTH: depth,
                LEARNING_RATE: rate,
                CLIPNORM: None,
            }
            training = config_of(sweep, point, f"{depth}-{show(rate)}")
            trainings.append(Training(depth=depth, config=training, is_cheap=is_cheap(depth)))
    workers = plan_training(base, resources)
    ingest = plan_ingest(base, manifest, resources, workers, num_trainings=len(trainings))
    return trainings, shared.with_images([each.config for each in trainings], ingest)


def _train(
    config: FinetuneConfig, epochs: int, shared: Shared, resources: Resources
) -> tuple[float, ...]:
    """Train, or go on, to an epoch; return val/top1 after each, none where it diverged."""
    try:
        run = prepare_run(
            replace(config, epochs=epochs),
            resources,
            manifest=shared.manifest,
            prefix=shared.prefix_of(config),
            images=shared.images,
            here=is_head_only(config.model),
        )
        launch.fit(run)
    except UserError as error:
        result = find_result(config.out)
        if result is None or not result["diverged"]:
            raise
        report(f"Left out of the race: {config.out}: {error}", warning=True)
        return ()
    return tuple(row[metrics.VAL_TOP1] for row in epoch_rows(config.out)[:epochs])


def _compare(
    curves: Mapping[Training, tuple[float, ...]], expect: Callable[[Training], Expected]
) -> tuple[Raced, ...]:
    """Return the depths by expected regret, each with the learning rate that promises most."""
    best: dict[int, tuple[Expected, Training]] = {}
    for each, of_training in zip(curves, map(expect, curves), strict=True):
        if each.depth not in best or of_training.top1 > best[each.depth][0].top1:
            best[each.depth] = of_training, each
    regrets = find_regrets([of_depth for of_depth, _ in best.values()])
    raced = [
        Raced(
            depth=each.depth,
            learning_rate=each.rate,
            top1s=curves[each],
            expected=of_depth,
            regret=regret,
        )
        for (of_depth, each), regret in zip(best.values(), regrets, strict=True)
    ]
    return tuple(sorted(raced, key=lambda each: each.regret.expected))
