"""What there is to say of the model a sweep leads to, in Markdown: the promoted one, else the
winner."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cluster.io.errors import UserError
from cluster.io.statistics import CONFIDENCE, Estimate, wilson
from cluster.io.uris import name_of
from datasets.shards import read_manifest
from trainers import metrics
from trainers.export.model_card import CardFacts, result_rows, table
from trainers.run import checkpoint
from trainers.run.evaluations import folder_of, read_evaluation
from trainers.run.folder import read_config
from trainers.settings import step_settings
from trainers.tracking.local_runs import read_id
from tuning.record import MEASURES, SweepRecord

NUM_SHOWN = 10
"""Classes, and pairs of them, that the card names."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model, and where it comes from."""

    run: str
    """URI of the run folder that holds its weights."""
    facts: CardFacts
    """Of that run; `files` are none, as nothing is exported yet."""
    promoted: Mapping[str, Any] | None
    """What promoted.json holds; None where the winner was not promoted."""
    run_id: str | None
    """W&B id of that training; None where W&B was off."""
    evaluation_id: str | None
    """W&B id of its evaluation on the test split."""


def read_card(record: SweepRecord) -> Card | None:
    """Read what is known of a sweep's model; None where no trial learned.

    Raises:
        UserError: where its run folder or its checkpoint is gone.
    """
    winner, promoted = record.winner, record.promoted
    if winner is None:
        return None
    run = promoted["run"] if promoted else winner.run
    config = read_config(run)
    progress = checkpoint.latest_progress(run)
    if progress is not None and progress.best_step not in (0, progress.global_step):
        progress = checkpoint.read_progress(run, progress.best_step)
    if progress is None:
        raise UserError(f"run is {run!r}: its checkpoint is gone, so nothing tells of its model")
    settings = step_settings(config, torch.device("cpu"))
    facts = CardFacts(
        config=config,
        progress=progress,
        files={},
        preprocessing={"mean": settings.mean, "std": settings.std},
        dynamic_batch=False,
        evaluation=read_evaluation(
            run, "test", epoch=progress.epoch, fingerprint=progress.fingerprint
        ),
        commit=None,
    )
    return Card(
        run=run,
        facts=facts,
        promoted=promoted,
        run_id=read_id(run),
        evaluation_id=read_id(folder_of(run, "test")),
    )


def describe_use(card: Card) -> str:
    """Say what the model is for."""
    return (
        "For photographs that show one of its classes and are like those of "
        f"{name_of(card.facts.config.data)}: to sort and search them, and as a start for "
        "training on others. Not for decisions that nobody checks."
    )


def describe_data(card: Card) -> list[str]:
    """Say what it was trained and measured on; of a data set that is gone, its name alone."""
    config, progress = card.facts.config, card.facts.progress
    lines = [
        f"- {name_of(config.data)}, fingerprint `{progress.fingerprint}`, "
        f"{len(progress.classes)} classes",
        "- Validation images train as well"
        if not config.validates
        else "- Validation images chose the epoch and the point of the space",
        "- Test images chose nothing",
    ]
    try:
        manifest = read_manifest(config.data)
    except ValueError:
        return lines
    rows = [
        (
            name,
            str(split.num_images),
            f"{min(split.class_counts)} to {max(split.class_counts)}",
        )
        for name, split in manifest.splits.items()
    ]
    quarantined = f"- {manifest.num_quarantined} images in quarantine, used nowhere"
    return [*lines, quarantined, "", *table(("split", "images", "of a class"), rows)]


def describe_scores(card: Card) -> list[str]:
    """Return tables of what was measured, with intervals."""
    if card.promoted is not None:
        return _describe_seeds(card.promoted)
    lines = table(("images", "measure", "value"), result_rows(card.facts))
    if (test := card.facts.evaluation) is None:
        return lines
    intervals = [
        f"{heading} {_interval(wilson(test[name], test['num_images']))}"
        for name, heading in MEASURES.items()
    ]
    note = f"{CONFIDENCE:.0%} intervals (Wilson over the images): {', '.join(intervals)}."
    return [*lines, "", note]


def _describe_seeds(promoted: Mapping[str, Any]) -> list[str]:
    names = list(MEASURES)
    estimates = [Estimate(**promoted[name]) for name in names]
    rows = [
        *([str(row["seed"]), *_shares(row, names)] for row in promoted["seeds"]),
        ["mean", *(f"{each.mean:.3f}" for each in estimates)],
        [f"{promoted['confidence']:.0%} interval", *map(_interval, estimates)],
    ]
    if promoted["winner"][metrics.TEST_TOP1] is not None:
        rows.append(["before, as the sweep left it", *_shares(promoted["winner"], names)])
    return [
        *table(("seed", *MEASURES.values()), rows),
        "",
        f"On {promoted['num_images']} test images; interval: {promoted['interval']}. The weights "
        f"are those of seed {promoted['seeds'][0]['seed']}, whichever is the best.",
    ]


def _shares(row: Mapping[str, Any], names: list[str]) -> list[str]:
    return [f"{row[name]:.3f}" for name in names]


def _interval(of: Estimate) -> str:
    return f"{of.low:.3f}-{of.high:.3f}"


def describe_failures(card: Card) -> list[str]:
    """Return tables of the worst classes and of the pairs most often confused."""
    test = card.facts.evaluation
    if test is None:
        return [f"Not measured: `python -m trainers evaluate --run {card.run}` does."]
    seen = sorted((row for row in test["per_class"] if row["images"]), key=lambda row: row["f1"])
    worst = [
        (
            row["class"],
            f"{row['f1']:.3f}",
            "-" if row["precision"] is None else f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
            str(row["images"]),
        )
        for row in seen[:NUM_SHOWN]
    ]
    pairs = [
        (pair["true"], pair["predicted"], str(pair["count"]), f"{pair['share']:.0%}")
        for pair in test["most_confused"][:NUM_SHOWN]
    ]
    lines = table(("worst classes", "F1", "precision", "recall", "images"), worst)
    if not pairs:
        return lines
    head = ("is a", "is taken for a", "images", "of its class")
    return [*lines, "", *table(head, pairs)]
