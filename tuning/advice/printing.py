"""What `advise` prints: the stages of a network, or the ranking of several."""

import shlex
from collections.abc import Sequence

from cluster.io import storage
from cluster.io.statistics import SIGNIFICANCE
from datasets.manifest import Manifest
from trainers.networks.measure import describe_devices
from tuning.advice.advice import Advice
from tuning.advice.extrapolation import TIE, Race
from tuning.advice.ranking import Ranked

STAGE_WIDTHS, NETWORK_WIDTHS = (10, 7, 10, 10, 13), (40, 10, 9, 13, 8, 7, 15)
RACE_WIDTHS = (10, 7, 8, 8, 10, 15, 6)


def print_advice(advice: Advice, manifest: Manifest, out: str) -> None:
    """Print a row per stage, the quadrant and the recommendation.

    Args:
        out: URI of the folder with the advice.
    """
    print(
        f"\nLinear classifiers on the frozen stages of {advice.backbone} ({advice.init}), "
        f"{_describe_images(manifest, advice.fold)}\n"
    )
    quadrant = advice.verdict
    _print_row(STAGE_WIDTHS, "stage", "depth", "features", "val/top1", "95 percent")
    for stage in advice.stages:
        _print_row(
            STAGE_WIDTHS,
            stage.name,
            str(stage.depth),
            str(stage.num_features),
            f"{stage.top1:.3f}",
            f"{stage.low:.3f}-{stage.high:.3f}",
        )
    _print_row(STAGE_WIDTHS, "chance", "", "", f"{quadrant.chance:.3f}")
    data, task = quadrant.describe()
    print(f"\nData:     {data}")
    print(f"Task:     {task}")
    print(f"Lecture:  {quadrant.advice} ({_describe(advice, quadrant.freeze_depths[0])})")
    if advice.race is not None:
        _print_race(advice, advice.race)
    print(f"Written:  {out}/advice.json, advice.png")
    _print_sweep(out)


def _print_race(advice: Advice, race: Race) -> None:
    """Print a row per freeze depth, the advice, how sure it is and what would change it."""
    print(f"\nFreeze depths trained for a few of {race.num_epochs} epochs\n")
    _print_row(RACE_WIDTHS, "frozen", "depth", "lr", "epochs", "val/top1", "expected", "regret")
    for raced in race.depths:
        _print_row(
            RACE_WIDTHS,
            advice.stages[raced.depth - 1].name if raced.depth else "nothing",
            str(raced.depth),
            f"{raced.learning_rate:g}",
            str(len(raced.top1s)),
            f"{max(raced.top1s):.3f}",
            f"{raced.expected.top1:.3f} ± {2 * raced.expected.deviation:.3f}",
            f"{raced.regret.expected:.3f}",
        )
    first, *others = race.depths
    print(f"\nAdvice:   {_describe(advice, first.depth)}")
    print(
        f"Sure:     as good as the best of them, within {TIE:g}, with a chance of "
        f"{first.regret.p_tie:.2f}; expected regret {first.regret.expected:.3f}"
    )
    if others:
        gap = first.expected.top1 - others[0].expected.top1
        print(
            f"Change:   {_describe(advice, others[0].depth)} would be the advice if it gained "
            f"{max(gap, 0):.3f} more; the sweep trains both to the end"
        )


def _describe(advice: Advice, depth: int) -> str:
    """Write a freeze depth with the last frozen stage."""
    last = f"up to {advice.stages[depth - 1].name}" if depth else "train everything"
    return f"freeze depth {depth} of {len(advice.stages)}, {last}"


def print_ranking(rows: Sequence[Ranked], manifest: Manifest, fold: int, out: str) -> None:
    """Print a row per network, the best one, and the command that sweeps each of the front.

    Args:
        out: URI of the folder with the ranking.
    """
    print(
        "\nThe best linear classifier on frozen stages of each network, "
        f"{_describe_images(manifest, fold)}\n"
    )
    header = ("network", "stage", "val/top1", "95 percent", "ms", "MiB", "license")
    _print_row(NETWORK_WIDTHS, *header)
    for row in rows:
        _print_row(
            NETWORK_WIDTHS,
            f"{'* ' if row.on_front else '  '}{row.name}",
            row.stage,
            f"{row.top1:.3f}",
            f"{row.low:.3f}-{row.high:.3f}",
            f"{row.image_ms:.2f}",
            f"{row.size_mib:.0f}",
            row.license or "-",
        )
    first, *others = rows
    equal = [row.name for row in others if row.p_best >= SIGNIFICANCE]
    print(f"\n*         no other network is both faster and as accurate; ms: {describe_devices()}")
    print(f"Best:     {first.name}" + (f"; not clearly worse: {', '.join(equal)}" if equal else ""))
    for row in rows:
        if row.note:
            print(f"License:  {row.note}")
    print(f"Written:  {out}/backbones.json, backbones.png; each network's advice in its folder")
    for row in rows:
        if row.on_front:
            _print_sweep(storage.join(out, row.name))
    if sum(row.on_front for row in rows) > 1:
        _print_sweep(out, "All of *: ")


def _describe_images(manifest: Manifest, fold: int) -> str:
    num_train, num_val = (manifest.split(split).num_images for split in ("train", "val"))
    of_fold = f" (fold {fold} of {len(manifest.folds)})" if manifest.folds else ""
    return (
        f"trained on {num_train} and validated on {num_val} images{of_fold} of "
        f"{len(manifest.classes)} classes"
    )


def _print_sweep(out: str, title: str = "Sweep it: ") -> None:
    print(f"{title}{shlex.join(['python', '-m', 'tuning', '--from-advice', out])}")


def _print_row(widths: Sequence[int], *cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip())
