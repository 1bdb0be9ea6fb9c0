"""Lists of fields come from the markers at the fields, and are those that runs on disk rely on."""

from dataclasses import replace

import pytest

from cluster.config import ClusterConfig
from cluster.io import storage
from cluster.io.fields import build
from cluster.io.markers import (
    IN_FINGERPRINT,
    NOT_IN_KEY,
    NOT_ON_CARD,
    ON_CARD,
    RESUMABLE,
    RUN_RESUMABLE,
    SET_BY_PHASES,
    URI,
    Marker,
    change_marked,
    flatten,
    leave_out,
    marked,
    replace_at,
)
from datasets.config import IngestConfig
from datasets.prepare.config import PrepareConfig
from trainers.config import FinetuneConfig, TrackConfig
from trainers.networks.family import suit
from trainers.recipes import RECIPES
from tuning.config import BudgetConfig, TuningConfig
from tuning.sharing.reuse import result_key

CLUSTER = {f"cluster.{name}" for name in flatten(vars(ClusterConfig()))}
TRACK = {f"track.{name}" for name in flatten(vars(TrackConfig()))}
INGEST = {"ingest.memory_share", "ingest.task_images", "ingest.max_bad_fraction"}
KEYS = ["b62aec0151e31ad5932e5cee", "f950b406545da9c36f86b03c", "ab22e416f86bc62589b1c7b3"]
SWEEP = {
    *("out", "advice", "evaluate_winner", "combine", "max_failures", "share", "cache"),
    *("feature_cache_gib", "fractional_gpus", "full_epochs", "promote"),
}


@pytest.mark.parametrize(
    ("config", "marker", "paths"),
    [
        (FinetuneConfig, URI, {"data", "out", "model.weights", "model.head"}),
        (FinetuneConfig, RESUMABLE, {"out"} | INGEST | TRACK | CLUSTER),
        (
            FinetuneConfig,
            RUN_RESUMABLE,
            {"epochs", "checkpoint_every_steps", "schedule.early_stopping_epochs"},
        ),
        (
            FinetuneConfig,
            NOT_IN_KEY,
            {"fold", "out", "checkpoint_every_steps", "optim.clipnorm", "model.weights"}
            | (INGEST | TRACK | CLUSTER - {"cluster.device", "cluster.num_workers"}),
        ),
        (
            FinetuneConfig,
            ON_CARD,
            {"epochs", "global_batch_size", "seed", "ingest.policy", "model.init"}
            | {"model.freeze_depth", "optim.optimizer", "optim.learning_rate", "schedule.schedule"},
        ),
        (
            FinetuneConfig,
            NOT_ON_CARD,
            {"data", "out", "checkpoint_every_steps", "model.backbone", "model.normalization"}
            | {f"ingest.{name}" for name in vars(IngestConfig())}
            | (TRACK | CLUSTER),
        ),
        (
            FinetuneConfig,
            SET_BY_PHASES,
            {"epochs", "model.freeze_depth", "optim.learning_rate"},
        ),
        (
            TuningConfig,
            RESUMABLE,
            SWEEP
            | {f"budget.{name}" for name in vars(BudgetConfig())}
            | {f"base.{path}" for path in {"out"} | INGEST | TRACK | CLUSTER},
        ),
        (PrepareConfig, URI, {"out", "root", "test_root", "exclude"}),
        (PrepareConfig, NOT_IN_KEY, {"out", "address", "dry_run"}),
        (
            PrepareConfig,
            IN_FINGERPRINT,
            {"short_side_px", "crop_to_box", "box_margin", "row_group_size", "shard_mib"},
        ),
    ],
)
def test_the_markers_say_what_the_lists_said(config: type, marker: Marker, paths: set[str]) -> None:
    assert marked(config, marker) == paths


def test_keys_of_results_are_those_of_earlier_versions() -> None:
    """Another key would find no result that a cache holds."""
    of_then = {"ingest.policy": "cars", "optim.layer_decay": 0.7, "loss.mixup_alpha": 0.1}
    finetune = suit(replace_at(RECIPES["finetune"], {"data": "d", "out": "runs/x", **of_then}))
    model = replace(finetune.model, freeze_depth=3, weights="w.pth", head="h.safetensors")
    deep = replace(finetune, model=model, cluster=ClusterConfig(num_workers=2, device="gpu"))
    head = replace(deep, model=replace(model, freeze_depth="all"))

    keys = [
        result_key(c, fingerprint="f" * 64, start_hash="s" * 64) for c in (finetune, deep, head)
    ]

    assert keys == KEYS


def test_a_marked_field_is_built_and_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(FinetuneConfig, {"data": "runs/cars", "model": {"weights": "s3://b/w.pth"}})

    moved = change_marked(config, URI, lambda value, path: f"{path}={value}")

    assert (moved.data, moved.out) == ("data=runs/cars", "out=runs/latest")
    assert moved.model.weights == "model.weights=s3://b/w.pth" and moved.model.head is None
    monkeypatch.chdir("/")
    assert change_marked(config, URI, storage.absolute).data == "/runs/cars"


def test_sections_left_empty_are_left_out() -> None:
    values = {"a": 1, "b": {"c": 2, "d": 3}, "e": {"f": 4}, "g": {}}

    assert leave_out(values, {"b.c", "e.f"}) == {"a": 1, "b": {"d": 3}, "g": {}}
    assert flatten(values) == {"a": 1, "b.c": 2, "b.d": 3, "e.f": 4}
