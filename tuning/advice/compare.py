"""Rank networks by their best linear classifier, beside what an image costs.

N validation images.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.io import storage
from cluster.io.statistics import SIGNIFICANCE, count_discordant, mcnemar
from cluster.io.terminal import count
from datasets.shards import Manifest
from trainers.inference.actors import CPU_BATCH_SIZE
from trainers.networks.initializers import describe_weights, license_note
from trainers.networks.measure import count_bytes, describe_devices, on_meta, time_step
from tuning.advice.advice import Advice
from tuning.advice.candidates import Candidate
from tuning.advice.ranking import Ranked, mark_front
from tuning.advice.ranking_picture import draw_ranking

COLUMNS = (40, 10, 9, 13, 8, 7, 15)


def compare(
    candidates: Sequence[Candidate],
    probed: Sequence[tuple[Advice, np.ndarray]],
    manifest: Manifest,
    out: str,
) -> dict[str, Any]:
    """Print and write the ranking; return the content of backbones.json.

    Args:
        probed: the advice of each network; and for each validation image, whether its best linear
            classifier is right.
        out: URI of the folder.
    """
    best_N = max((correct_N for _, correct_N in probed), key=lambda correct_N: correct_N.sum())
    rows: list[Ranked] = []
    with count("Timing networks", len(candidates), "networks") as advance:
        for candidate, (advice, correct_N) in zip(candidates, probed, strict=True):
            rows.append(_measure(candidate, advice, correct_N, best_N, len(manifest.classes)))
            advance(1)
    rows = mark_front(rows)
    values = {
        "data": candidates[0].training.data,
        "fingerprint": manifest.fingerprint,
        "size_px": candidates[0].training.ingest.size_px,
        "device": describe_devices(),
        "networks": [asdict(row) for row in rows],
    }
    storage.write_bytes(storage.join(out, "backbones.png"), draw_ranking(rows))
    content = json.dumps(values, indent=1).encode()
    storage.write_bytes(storage.join(out, "backbones.json"), content)
    _print(rows, manifest, out)
    return json.loads(content)


def _measure(
    candidate: Candidate,
    advice: Advice,
    correct_N: np.ndarray,
    best_N: np.ndarray,
    num_classes: int,
) -> Ranked:
    model = candidate.training.model
    weights, license_ = describe_weights(model)
    best = max(advice.stages, key=lambda stage: (stage.top1, stage.depth))
    shape_BCHW = (CPU_BATCH_SIZE, 3, advice.size_px, advice.size_px)
    times_ms = time_step(model.backbone, num_classes, shape_BCHW)
    return Ranked(
        name=candidate.name,
        backbone=model.backbone,
        init=model.init,
        weights=weights,
        license=license_,
        note=license_note(model),
        stage=best.name,
        top1=best.top1,
        low=best.low,
        high=best.high,
        p_best=mcnemar(*count_discordant(best_N, correct_N), "greater"),
        image_ms=times_ms.get("cuda", times_ms["cpu"]) / CPU_BATCH_SIZE,
        size_mib=count_bytes(on_meta(model.backbone, num_classes)) / 2**20,
        on_front=False,
    )


def _print(rows: Sequence[Ranked], manifest: Manifest, out: str) -> None:
    num_train, num_val = (manifest.split(split).num_images for split in ("train", "val"))
    print(
        "\nThe best linear classifier on frozen stages of each network, trained on "
        f"{num_train} and validated on {num_val} images of {len(manifest.classes)} classes\n"
    )
    _print_row("network", "stage", "val/top1", "95 percent", "ms", "MiB", "license")
    for row in rows:
        _print_row(
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
    print(
        f"Written:  {out}/backbones.json, backbones.png; the advice of each network in its folder"
    )
    for row in rows:
        if row.on_front:
            advice = storage.join(out, row.name)
            print(f"Sweep it: {shlex.join(['python', '-m', 'tuning', '--from-advice', advice])}")


def _print_row(*cells: str) -> None:
    print("".join(cell.ljust(width) for cell, width in zip(cells, COLUMNS, strict=True)).rstrip())
