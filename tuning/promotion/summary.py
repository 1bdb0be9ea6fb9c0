"""The summary of a promotion: measures of the seeds on the test images, with intervals."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cluster.io import storage
from cluster.io.statistics import CONFIDENCE, estimate
from datasets.manifest import Manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.evaluations import read_evaluation
from trainers.run.folder import read_result
from tuning.promotion.config import PromoteConfig
from tuning.record.files import MEASURES
from tuning.record.results import TrialResult
from tuning.winner import evaluate_once


def summarize_seeds(
    trainings: Sequence[FinetuneConfig],
    finals: Sequence[FinetuneConfig],
    winner: TrialResult,
    sweep: str,
    manifest: Manifest,
) -> dict[str, Any]:
    """Test each seed, unless that is done; return what promoted.json holds.

    Args:
        finals: the last part of each training, or the training itself.
    """
    assert winner.best_epoch is not None, "a trial that learned has finished an epoch"
    before = read_evaluation(
        winner.run, "test", epoch=winner.best_epoch, fingerprint=manifest.fingerprint
    )
    tests = [evaluate_once(final.out, device=final.cluster.device) for final in finals]
    first, final = trainings[0], finals[0]
    return {
        "sweep": sweep,
        "winner": winner.to_dict() | {name: before and before[name] for name in MEASURES},
        "data": first.data,
        "fingerprint": manifest.fingerprint,
        "train_on": first.train_on,
        "epochs": first.epochs,
        "run": final.out,
        "weights": f"{read_result(final.out)['checkpoint']}/model.safetensors",
        **summarize(tests),
        "seeds": [
            {
                "seed": training.seed,
                "run": final.out,
                **{name: test[name] for name in MEASURES},
                metrics.TOTAL_S: sum(
                    read_result(run)[metrics.TOTAL_S] for run in {training.out, final.out}
                ),
            }
            for training, final, test in zip(trainings, finals, tests, strict=True)
        ],
    }


def summarize(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return an estimate of each measure, and the kind of its interval.

    Args:
        tests: what `evaluate_once` returned for each seed, on the same images.
    """
    num_images = tests[0]["num_images"]
    estimates = {name: estimate([test[name] for test in tests], num_images) for name in MEASURES}
    return {
        "num_images": num_images,
        "confidence": CONFIDENCE,
        "interval": f"t over {len(tests)} seeds" if len(tests) > 1 else "Wilson over the images",
        **{name: asdict(value) for name, value in estimates.items()},
    }


def write_summary(out: str, config: PromoteConfig, summary: dict[str, Any]) -> None:
    """Write promoted.json or folds.json."""
    text = json.dumps(summary, indent=1).encode()
    storage.write_bytes(storage.join(out, f"{config.kind}.json"), text)
