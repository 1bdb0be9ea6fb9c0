"""The lecture's four quadrants, measured on your data: how deep to thaw, before any sweep.

OUT/advice.png    the probes, and the quadrant
OUT/advice.json   written last; `python -m tuning --from-advice OUT` sweeps what it recommends
"""

import json
import shlex
from statistics import median
from typing import Any

from cluster.config import ClusterConfig
from cluster.io import storage
from cluster.runtime import connect
from datasets.config import IngestConfig
from datasets.shards import Manifest, read_manifest
from trainers import prepare
from trainers.config import FinetuneConfig, ModelConfig
from tuning.advice.advice import Advice, advice_uri
from tuning.advice.config import AdviseConfig
from tuning.advice.picture import draw_advice
from tuning.advice.quadrants import judge
from tuning.advice.stages import collect, probe_stages
from tuning.sharing.cache import cache_uri


def run_advise(config: AdviseConfig) -> dict[str, Any]:
    """Probe every stage; print and write the advice, and return what advice.json holds.

    Raises:
        UserError: for what a training would refuse, or features that overflow half precision.
    """
    training = build_training(config)
    manifest = read_manifest(training.data)
    prepare.check(training, manifest)
    resources = connect(config.address)
    samples = collect(training, manifest, resources, cache_uri(training.out, config.cache))
    stages = probe_stages(config.backbone, samples, len(manifest.classes))
    val_counts = manifest.split("val").class_counts
    verdict = judge(
        stages,
        chance=max(val_counts) / sum(val_counts),
        images_per_class=median(manifest.split("train").class_counts),
        little_per_class=config.little_per_class,
    )
    advice = Advice(
        data=training.data,
        fingerprint=manifest.fingerprint,
        backbone=config.backbone,
        init=config.init,
        weights=training.model.weights,
        normalization=config.normalization,
        size_px=config.size_px,
        verdict=verdict,
        stages=stages,
    )
    storage.write_bytes(storage.join(training.out, "advice.png"), draw_advice(advice))
    values = advice.to_dict()
    storage.write_bytes(advice_uri(training.out), json.dumps(values, indent=1).encode())
    print_advice(advice, manifest, training.out)
    return values


def build_training(config: AdviseConfig) -> FinetuneConfig:
    """Return the training whose network is probed."""
    return prepare.with_absolute_paths(
        FinetuneConfig(
            data=config.data,
            out=config.out,
            global_batch_size=1,
            ingest=IngestConfig(size_px=config.size_px, policy="none"),
            model=ModelConfig(
                backbone=config.backbone,
                init=config.init,
                weights=config.weights,
                normalization=config.normalization,
            ),
            cluster=ClusterConfig(address=config.address, device=config.device),
        )
    )


def print_advice(advice: Advice, manifest: Manifest, out: str) -> None:
    """Print a row for each stage, the quadrant, and what follows from it.

    Args:
        out: where it lies.
    """
    num_train, num_val = (manifest.split(split).num_images for split in ("train", "val"))
    print(
        f"\nLinear classifiers on the frozen stages of {advice.backbone} ({advice.init}), trained "
        f"on {num_train} and validated on {num_val} images of {len(manifest.classes)} classes\n"
    )
    verdict = advice.verdict
    _print_row("stage", "depth", "features", "val/top1", "95 percent", "LogME")
    for stage in advice.stages:
        _print_row(
            stage.name,
            str(stage.depth),
            str(stage.num_features),
            f"{stage.top1:.3f}",
            f"{stage.low:.3f}-{stage.high:.3f}",
            f"{stage.logme:.3f}",
        )
    _print_row("chance", "", "", f"{verdict.chance:.3f}")
    data, task = verdict.describe()
    first, *others = verdict.freeze_depths
    name = advice.stages[first - 1].name if first else "nothing"
    print(f"\nData:     {data}")
    print(f"Task:     {task}")
    print(
        f"Advice:   {verdict.advice}: freeze depth {first} of {len(advice.stages)} (up to {name})"
    )
    print(f"Compare:  freeze depths {' and '.join(map(str, others))}, which may prove it wrong")
    print(f"Written:  {out}/advice.json, advice.png")
    print(f"Sweep it: {shlex.join(['python', '-m', 'tuning', '--from-advice', out])}")


def _print_row(stage: str, *cells: str) -> None:
    widths = (7, 10, 10, 13, 7)
    line = "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
    print(f"{stage:<10}{line}".rstrip())
