"""Rank networks by their best linear classifier, beside what an image costs.

N validation images.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.io import storage
from cluster.io.statistics import count_discordant, mcnemar
from cluster.io.terminal import count
from datasets.manifest import Manifest
from trainers.inference.actors import CPU_BATCH_SIZE
from trainers.networks.measure import count_bytes, describe_devices, on_meta, time_step
from trainers.networks.weights.pretrained import describe_weights, license_note
from tuning.advice.advice import Advice, ranking_uri
from tuning.advice.candidates import Candidate
from tuning.advice.printing import print_ranking
from tuning.advice.quadrants import find_best
from tuning.advice.ranking import Ranked, mark_front
from tuning.advice.ranking_picture import draw_ranking


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
    training = candidates[0].training  # of all, but for the network
    values = {
        "data": training.data,
        "fingerprint": manifest.fingerprint,
        "size_px": training.ingest.size_px,
        "device": describe_devices(),
        "networks": [asdict(row) for row in rows],
    }
    storage.write_bytes(storage.join(out, "backbones.png"), draw_ranking(rows))
    content = json.dumps(values, indent=1).encode()
    storage.write_bytes(ranking_uri(out), content)
    print_ranking(rows, manifest, training.fold, out)
    return values


def _measure(
    candidate: Candidate,
    advice: Advice,
    correct_N: np.ndarray,
    best_N: np.ndarray,
    num_classes: int,
) -> Ranked:
    model = candidate.training.model
    weights, license_ = describe_weights(model)
    best = find_best(advice.stages)
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
