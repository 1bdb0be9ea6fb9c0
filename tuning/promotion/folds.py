"""The summary of a cross-validation."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cluster.io.statistics import CONFIDENCE, estimate
from datasets.manifest import Manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.folder import read_result
from trainers.run.rows import epoch_rows
from tuning.promotion.printing import FOLD_MEASURES
from tuning.record.results import TrialResult


def summarize_folds(
    trainings: Sequence[FinetuneConfig], winner: TrialResult, sweep: str, manifest: Manifest
) -> dict[str, Any]:
    """Return what folds.json holds: the validation after the last epoch, whichever was best."""
    rows = []
    for training, fold in zip(trainings, manifest.folds, strict=True):
        last = epoch_rows(training.out)[-1]
        rows.append(
            {
                "fold": training.fold,
                "run": training.out,
                "num_images": fold.num_images,
                **{name: last[name] for name in FOLD_MEASURES},
                metrics.TOTAL_S: read_result(training.out)[metrics.TOTAL_S],
            }
        )
    first = trainings[0]
    num_images = sum(row["num_images"] for row in rows)
    estimates = {
        name: asdict(estimate([row[name] for row in rows], num_images)) for name in FOLD_MEASURES
    }
    return {
        "sweep": sweep,
        "winner": winner.to_dict(),
        "data": first.data,
        "fingerprint": manifest.fingerprint,
        "epochs": first.epochs,
        "num_images": num_images,
        "confidence": CONFIDENCE,
        "interval": f"t over {len(rows)} folds",
        **estimates,
        "folds": rows,
    }
