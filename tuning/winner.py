"""After a sweep: the winner's evaluation on the test split, and the next commands."""

import shlex
from dataclasses import replace
from typing import Any

from cluster.config import Device
from cluster.io import storage
from cluster.io.fields import option
from cluster.io.markers import flatten
from trainers.config import RANDOM, FinetuneConfig
from trainers.recipes import RECIPES
from trainers.run import checkpoint
from trainers.run.evaluations import folder_of, read_evaluation
from trainers.run.folder import read_config
from tuning.record.record import SweepRecord
from tuning.record.results import TrialResult

LONGER = 3
"""Times the epochs of a trial that the winner is trained for."""


def read_test(run: str) -> dict[str, Any] | None:
    """Return the measures of a run's best weights on the test split; None where not evaluated."""
    progress = checkpoint.latest_progress(run)
    return progress and read_evaluation(
        run, "test", epoch=progress.best_epoch, fingerprint=progress.fingerprint
    )


def evaluate_once(run: str, *, device: Device, **options: Any) -> dict[str, Any]:
    """Return the same; evaluate where that is missing, on all workers of the cluster, and log to
    W&B.

    Args:
        device: to evaluate on.
        options: prefix and on_measured of `write_evaluation`.

    Raises:
        UserError: as `trainers.evaluation.evaluate.evaluate` does.
    """
    if (known := read_test(run)) is not None:
        return known
    from trainers.evaluation.evaluate import write_evaluation  # imports scikit-learn and W&B
    from trainers.tracking.evaluation import track_evaluation

    result = write_evaluation(run, split="test", device=device, **options)
    track_evaluation(run, folder_of(run, "test"), result)
    return result


def train_longer(winner: TrialResult, out: str) -> str:
    """Write the command that trains the winner's config from its start, but longer."""
    config = read_config(winner.run)
    return command_of(
        replace(
            config,
            out=storage.join(out, "longer"),
            epochs=LONGER * config.epochs,
            cluster=replace(config.cluster, num_workers=None),
        )
    )


def command_of(config: FinetuneConfig) -> str:
    """Write the shortest `python -m trainers RECIPE ...` that trains `config`."""
    wanted = _by_name(config)
    changes = {
        name: {field: value for field, value in wanted.items() if base[field] != value}
        for name, base in ((name, _by_name(recipe)) for name, recipe in RECIPES.items())
        if (RECIPES[name].model.init in RANDOM) == (config.model.init in RANDOM)
    }
    recipe = min(changes, key=lambda name: len(changes[name]))
    words = ["python", "-m", "trainers", recipe]
    for field, value in changes[recipe].items():
        words += option(field, value)
    return shlex.join(words)


def _by_name(config: FinetuneConfig) -> dict[str, Any]:
    """Fields by their own name, as the command line has them: no two sections share one."""
    return {path.rpartition(".")[2]: value for path, value in flatten(config.to_dict()).items()}


def reproduce(record: SweepRecord) -> list[str]:
    """Return the commands that run the same sweep again."""
    if record.started is None:
        return ["# not recorded: this sweep is of an older Thaw"]
    commit = record.started["commit"]
    checkout = []
    if commit is not None:
        hash_, _, dirty = commit.partition("-")
        changed = "  # and changes that were not committed" if dirty else ""
        checkout = [f"git checkout {hash_}{changed}"]
    return [*checkout, record.started["command"]]


def promote_command(record: SweepRecord) -> str | None:
    """Write the command that promotes the winner; without a test split, the one that
    cross-validates it; None where the data set has no folds either."""
    words = ["python", "-m", "tuning", "promote", "--sweep", record.out]
    if record.has_test_split:
        return shlex.join(words)
    has_folds = record.manifest is not None and record.manifest.folds
    return shlex.join([*words, "--folds"]) if has_folds else None


def list_next(record: SweepRecord) -> list[tuple[str, str]]:
    """Return the next steps after a sweep: titles and commands."""
    winner, promoted = record.winner, record.promoted
    if winner is None or record.status != "ended":
        return []
    steps = [("Train the winner longer", train_longer(winner, record.out))]
    if (promote := promote_command(record)) is not None:
        title = "Promote the winner" if record.has_test_split else "Cross-validate the winner"
        steps.append((title, promote))
    if promoted is not None:
        out = storage.join(record.out, "exported")
        export = ["python", "-m", "trainers", "export", "--run", promoted["run"], "--out", out]
        steps.append(("Export the promoted model", shlex.join(export)))
    return steps
