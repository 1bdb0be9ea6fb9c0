"""A run's lineage in W&B as artifacts: data set -> checkpoint -> evaluation.

Artifacts refer to files by URI, size and hash; `track.upload_weights` uploads weights too. Equal
contents are the same version in W&B.
"""

import json
import re
from hashlib import sha256
from typing import Any

import wandb

from cluster.io import storage
from cluster.io.uris import name_of
from datasets.manifest import Manifest
from trainers.config import FinetuneConfig
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.tracking.local_runs import read_id
from trainers.tracking.wandb_internals import add_reference

MAX_NAME = 120
"""Characters of an artifact's name; W&B allows 128."""


def data_artifact(data: str, manifest: Manifest) -> wandb.Artifact:
    """Return the artifact of a prepared data set."""
    artifact = wandb.Artifact(
        clean_name(name_of(data)),
        type="dataset",
        metadata={
            "uri": data,
            "fingerprint": manifest.fingerprint,
            "num_classes": len(manifest.classes),
            "num_images": {name: split.num_images for name, split in manifest.splits.items()},
            "num_quarantined": manifest.num_quarantined,
        },
    )
    _refer(artifact, storage.join(data, "manifest.json"))
    return artifact


def checkpoint_artifacts(config: FinetuneConfig) -> list[tuple[wandb.Artifact, list[str]]]:
    """Return a run's best and latest checkpoint with their aliases, or one that is both.

    The best comes first: W&B gives the alias `latest` to the last one.

    Args:
        config: as of `checkpoint_artifact`.
    """
    latest = checkpoint.latest_progress(config.out)
    if latest is None:
        return []
    if latest.best_step in (0, latest.global_step):
        return [(checkpoint_artifact(config, latest), ["best", "latest"])]
    best = checkpoint.read_progress(config.out, latest.best_step)
    named = [(checkpoint_artifact(config, best), ["best"])] if best else []
    return [*named, (checkpoint_artifact(config, latest), ["latest"])]


def checkpoint_artifact(config: FinetuneConfig, progress: TrainingProgress) -> wandb.Artifact:
    """Return the artifact of a checkpoint's weights.

    Args:
        config: of the training, `out` the folder in which it is now.
    """
    uri = storage.join(checkpoint.folder(config.out, progress.global_step), checkpoint.MODEL)
    metadata: dict[str, Any] = {
        "uri": uri,
        "backbone": config.model.backbone,
        "num_classes": len(progress.classes),
        "data": progress.fingerprint,
        "epoch": progress.epoch,
        "global_step": progress.global_step,
        "val/top1": progress.val_top1 if progress.validated else None,
        **progress.files[checkpoint.MODEL],
    }
    # A run that was never tracked has no id; its folder gets none here.
    run = read_id(config.out) or str(metadata.get("sha256", name_of(config.out)))[:16]
    artifact = wandb.Artifact(clean_name(f"checkpoint-{run}"), type="model", metadata=metadata)
    if config.track.upload_weights:
        with artifact.new_file(checkpoint.MODEL, mode="wb") as file:
            file.write(storage.read_bytes(uri))
    else:
        _refer(artifact, uri)
    return artifact


def evaluation_artifact(folder: str, result: dict[str, Any]) -> wandb.Artifact:
    """Return the artifact of an evaluation.

    Args:
        folder: URI of its pictures and tables.
        result: the content of evaluation_SPLIT.json.
    """
    metadata = {name: value for name, value in result.items() if not isinstance(value, list)}
    artifact = wandb.Artifact(
        clean_name(f"evaluation-{read_id(folder)}"), type="evaluation", metadata=metadata
    )
    _refer(artifact, f"{folder}.json")
    return artifact


def _refer(artifact: wandb.Artifact, uri: str) -> None:
    """Refer to a file; with other metadata it is another version."""
    add_reference(artifact, uri)
    with artifact.new_file("facts.json") as file:
        json.dump(artifact.metadata, file, indent=1)


def clean_name(name: str) -> str:
    """Turn a text into a valid name: ASCII letters, digits, dashes, dots and underscores.

    Where that changes it, part of its hash keeps apart what would be equal.
    """
    valid = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:MAX_NAME]
    if valid == name:
        return name
    digest = sha256(name.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{valid[: MAX_NAME - 9]}-{digest}"
