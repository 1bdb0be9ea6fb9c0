"""What a run folder of several trainings was combined from: RUN/combination.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cluster.io import storage
from cluster.io.records import read_record
from trainers.config import FinetuneConfig
from trainers.run.checkpoint import TrainingProgress
from trainers.run.ensemble import read_ensemble


@dataclass(frozen=True, kw_only=True)
class CombinedTrial:
    """A training whose network was combined."""

    trial: str
    """Its id in the sweep."""
    backbone: str
    weights: str
    """Origin of its initial weights."""
    license: str | None
    """Of these weights; None where none is stated."""
    best_epoch: int
    total_s: float
    """Seconds of training until then."""
    val_top1: float


@dataclass(frozen=True, kw_only=True)
class CombinedRun:
    """The content of combination.json."""

    kind: str
    """soup, interpolation or ensemble."""
    name: str
    """`soup of 3 trials`."""
    trials: tuple[CombinedTrial, ...]
    """The winner first; config.json of the run folder is the winner's."""
    share: float | None = None
    """Of the winner's weights in an interpolation; the rest is those that it started from."""


def write_combination(run: str, combined: CombinedRun) -> None:
    text = json.dumps(asdict(combined), indent=1).encode()
    storage.write_bytes(storage.join(run, "combination.json"), text)


def read_combination(run: str) -> CombinedRun | None:
    """Read combination.json; None for the run folder of one training."""
    try:
        return read_record(storage.join(run, "combination.json"), CombinedRun)
    except FileNotFoundError:
        return None


def describe_combination(combined: CombinedRun | None, backbones: Sequence[str]) -> str:
    """Name a network: `mobilenet_v2`, or `ensemble of 2 trials (mobilenet_v2, resnet50)`.

    Args:
        backbones: of one network, or of each of an ensemble's.
    """
    names = ", ".join(dict.fromkeys(backbones))
    if combined is not None:
        return f"{combined.name} ({names})"
    return names if len(backbones) == 1 else f"ensemble of {len(backbones)} networks ({names})"


def list_backbones(run: str, config: FinetuneConfig) -> tuple[str, ...]:
    """Return the network of a run, or those of an ensemble.

    Args:
        config: of the run folder.
    """
    return tuple(read_ensemble(run) or [config.model.backbone])


def describe_network(run: str, config: FinetuneConfig, progress: TrainingProgress) -> str:
    """Name a run's best network, for messages: `mobilenet_v2, epoch 3`."""
    combined, backbones = read_combination(run), list_backbones(run, config)
    name = describe_combination(combined, backbones)
    is_one = combined is None and len(backbones) == 1
    return f"{name}, epoch {progress.epoch}" if is_one else name
