"""A pass of all images through a frozen network, which leaves features in the cache."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import ray

from cluster.io import storage
from cluster.scaling import WorkerPlan
from datasets.passes.feature_builder import Built, Entry, build_features
from datasets.passes.features import hash_facts
from datasets.passes.inference import Workers
from datasets.shards import Manifest
from trainers.inference.prefix import FrozenNetwork, PrefixActor


def plan_entries(
    network: FrozenNetwork,
    depth: int,
    *,
    output: int,
    shape: tuple[int, ...],
    num_views: int,
    manifest: Manifest,
    cache: str,
    use_gpu: bool,
) -> list[Entry]:
    """Return the cache entries of a depth's features: of training and of validation images.

    Args:
        output: index of the depth in the pass.
        shape: of an image's features.
        num_views: of a training image; a validation image has one.
    """
    ingest, seed = network.config.ingest, network.config.seed
    facts = network.describe(depth, use_gpu=use_gpu)
    facts |= {"data_fingerprint": manifest.fingerprint}
    drawn = ingest.policy != "none"
    of_split: dict[str, tuple[dict[str, Any], int]] = {
        "train": ({"policy": ingest.policy, "seed": seed if drawn else 0}, num_views),
        "val": ({"policy": "none", "seed": 0}, 1),
    }
    entries: list[Entry] = []
    for split, (augmentation, views_of_split) in of_split.items():
        all_facts = facts | augmentation | {"split": split}
        entries.append(
            Entry(
                uri=storage.join(cache, "features", hash_facts(all_facts)),
                facts=all_facts,
                shape=shape,
                split=split,
                views=tuple(range(views_of_split)),
                output=output,
            )
        )
    return entries


def run_pass(
    network: FrozenNetwork,
    depths: Sequence[int],
    entries: Sequence[Entry],
    *,
    manifest: Manifest,
    plan: WorkerPlan,
) -> Built:
    """Compute the entries that the cache lacks, all depths in one pass."""
    config = network.config
    return build_features(
        entries,
        data=config.data,
        manifest=manifest,
        ingest=config.ingest,
        seed=config.seed,
        load=partial(
            PrefixActor,
            ray.put(network),
            depths,
            threads=plan.threads_per_worker,
            use_gpu=plan.use_gpu,
        ),
        workers=Workers.of(plan),
    )
