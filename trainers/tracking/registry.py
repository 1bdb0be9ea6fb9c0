"""Links an exported network to a collection of W&B's registry."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import wandb

from cluster.io import storage
from cluster.io.uris import name_of
from datasets.manifest_file import read_manifest
from trainers.run.folder import read_config
from trainers.tracking.artifacts import checkpoint_artifacts, clean_name, data_artifact
from trainers.tracking.config import sync_command
from trainers.tracking.content import find_tags
from trainers.tracking.run import UPLOAD_TIMEOUT_S, WandbRun
from trainers.tracking.thread import WandbThread

Alias = Literal["candidate", "production"]
REGISTRY = "wandb-registry-model"
"""W&B's registry of models, which every organization has."""


def collection_path(collection: str) -> str:
    """Return the path of a collection: NAME is one of REGISTRY; `[ORGANIZATION/]REGISTRY/NAME` is
    whole."""
    return collection if "/" in collection else f"{REGISTRY}/{collection}"


def link_model(
    folder: str,
    exported: str,
    run: str,
    *,
    collection: str,
    alias: Alias,
    metadata: Mapping[str, Any],
) -> bool:
    """Upload an exported network as a model of a run of its own, and link that to a collection.

    The same content again is the same version; of all versions, the last one that was linked has
    the alias.

    Args:
        folder: URI of the promotion, which keeps the run's id.
        exported: URI of the exported files.
        run: run folder of the network.

    Returns:
        Whether the collection has it; else the reason was reported.
    """

    def link() -> str | None:
        config = replace(read_config(run), out=run)  # the folder may have been moved
        manifest = read_manifest(config.data, config.fold)
        tracked = WandbRun(
            folder,
            track=config.track,
            name=f"register {name_of(folder)}",
            group=config.track.group,
            job_type="register",
            config={"run": run, "exported": exported, "training": config.to_dict()},
            tags=find_tags(config, manifest),
        )
        facts = {"uri": exported, "run": run, "data": manifest.fingerprint, **metadata}
        path = collection_path(collection)

        def link_exported() -> None:
            model = model_artifact(exported, f"model-{name_of(collection)}", facts)
            tracked.link_artifact(model, path, alias=alias)

        tracked.try_to(
            lambda: tracked.use_artifact(data_artifact(config.data, manifest)), "the data set"
        )
        tracked.try_to(
            lambda: tracked.use_artifact(checkpoint_artifacts(config)[0][0]), "the checkpoint"
        )
        is_linked = tracked.try_to(link_exported, f"a model in {path}")
        tracked.finish("finished" if is_linked else "failed")
        return tracked.sync_command if is_linked else sync_command(folder)

    return WandbThread(folder, link).close(timeout_s=UPLOAD_TIMEOUT_S) is None


def model_artifact(exported: str, name: str, metadata: dict[str, Any]) -> wandb.Artifact:
    """Return the artifact of exported files, with their content."""
    artifact = wandb.Artifact(clean_name(name), type="model", metadata=metadata)
    for file_name in storage.list_names(exported):
        with artifact.new_file(file_name, mode="wb") as file:
            file.write(storage.read_bytes(storage.join(exported, file_name)))
    return artifact
