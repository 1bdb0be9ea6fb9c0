"""Logs an evaluation to W&B as a run in the group of its training."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from cluster.io import storage
from cluster.io.uris import name_of
from trainers.run import checkpoint
from trainers.run.evaluations import open_data, predictions_uri
from trainers.run.folder import read_config
from trainers.run.predictions import read_table
from trainers.run.rows import find_mode
from trainers.tracking.artifacts import checkpoint_artifact, data_artifact, evaluation_artifact
from trainers.tracking.content import find_tags
from trainers.tracking.media import confusion_table, mistakes_table
from trainers.tracking.run import WandbRun
from trainers.tracking.thread import WandbThread

LISTED = ("most_confused", "per_class", "reliability")
"""Lists of evaluation_SPLIT.json that are logged as tables."""


def track_evaluation(run: str, folder: str, result: dict[str, Any]) -> str | None:
    """Log what `write_evaluation` returned and wrote, unless the training is tracked `off`.

    Returns:
        The command that uploads what W&B does not have yet; None where it has everything.
    """
    run = storage.absolute(run, "run")
    if find_mode(read_config(run).track) == "off":
        return None
    return WandbThread(folder, partial(_track, run, folder, result)).close()


def _track(run: str, folder: str, result: dict[str, Any]) -> str | None:
    data, split = result["data"], result["split"]
    config = replace(read_config(run), out=run)  # the folder may have been moved
    measured, manifest = open_data(config, result["fingerprint"], data)
    progress, _ = checkpoint.load_best(run)
    predictions = read_table(predictions_uri(folder))
    name = name_of(run)
    tracked = WandbRun(
        folder,
        track=config.track,
        name=f"evaluate {name} on {split}",
        group=config.track.group,
        job_type="evaluate",
        config={"run": run, "split": split, "tta": result["tta"], "training": config.to_dict()},
        tags=find_tags(config, manifest),
    )
    tracked.log(
        {name: value for name, value in result.items() if name.startswith(f"{split}/")}
        | {"epoch": result["epoch"]}
    )
    media: dict[str, Callable[[], object]] = {
        "the data set": lambda: tracked.use_artifact(data_artifact(data, manifest)),
        "the checkpoint": lambda: tracked.use_artifact(checkpoint_artifact(config, progress)),
        "confusion": lambda: tracked.log({f"{split}/confusion": confusion_table(predictions)}),
        "mistakes": lambda: tracked.log(
            {f"{split}/mistakes": mistakes_table(measured, manifest, predictions, split=split)}
        ),
    }
    for name in LISTED:
        if rows := result[name]:
            columns, values = list(rows[0]), [list(row.values()) for row in rows]
            media[name] = partial(tracked.log_table, f"{split}/{name}", columns, values)
    media["the evaluation"] = lambda: tracked.log_artifact(evaluation_artifact(folder, result))
    for what, log in media.items():
        tracked.try_to(log, what)
    tracked.finish("finished")
    return tracked.sync_command
