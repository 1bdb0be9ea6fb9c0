"""A pass of all images through a frozen network, which leaves features in the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import ray

from cluster.config import ClusterConfig
from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.terminal import report
from cluster.io.uris import parent_of
from cluster.runtime import Resources
from cluster.scaling import WorkerPlan
from datasets.config import IngestConfig
from datasets.passes.feature_builder import Built, Entry, build_features
from datasets.passes.features import FeatureArrays, hash_facts, load_view, read_view
from datasets.passes.inference import Workers
from datasets.shards import Manifest
from trainers.config import FinetuneConfig, ModelConfig
from trainers.inference.actors import plan_actors
from trainers.inference.config import FrozenConfig
from trainers.inference.prefix import FrozenNetwork, PrefixActor, open_frozen
from trainers.networks.precision import choose_precision
from trainers.prepare import with_absolute_paths


def cache_uri(out: str, cache: str | None) -> str:
    """Return the URI of a feature cache: `cache` beside the folder `out`, unless one is named."""
    if cache is not None:
        return storage.absolute(cache, "cache")
    return storage.join(parent_of(out), "cache")


def build_training(config: FrozenConfig, out: str) -> FinetuneConfig:
    """Return the training whose network is looked at before any training."""
    return with_absolute_paths(
        FinetuneConfig(
            data=config.data,
            out=out,
            global_batch_size=1,
            ingest=IngestConfig(size_px=config.size_px, policy="none"),
            model=ModelConfig(
                backbone=config.backbone,
                init=config.init,
                weights=config.weights,
                normalization=config.normalization,
            ),
            cluster=ClusterConfig(address=config.address, device=config.device),
        )
    )


def compute_features(
    training: FinetuneConfig,
    manifest: Manifest,
    resources: Resources,
    cache: str,
    *,
    depths: Sequence[int],
    splits: Sequence[str],
) -> list[dict[str, FeatureArrays]]:
    """Return the features behind each depth, by split, in the order of the shards.

    One pass computes those that the cache lacks; feature maps are averaged over positions.

    Raises:
        UserError: if features overflow half precision.
    """
    plan = plan_actors(resources, training.cluster)
    compute = choose_precision(training.compute, use_gpu=plan.use_gpu)
    training = replace(training, compute=compute)
    network = open_frozen(training, len(manifest.classes), pooled=True)
    entries = [
        plan_entries(
            network,
            depth,
            output=output,
            shape=shape,
            num_views=dict.fromkeys(splits, 1),
            manifest=manifest,
            cache=cache,
            use_gpu=plan.use_gpu,
        )
        for output, (depth, shape) in enumerate(zip(depths, network.shapes(depths), strict=True))
    ]
    flat = [entry for of_depth in entries for entry in of_depth]
    built = run_pass(network, depths, flat, manifest=manifest, plan=plan)
    if built.problems:
        raise UserError(
            f"model.weights is {training.model.weights!r}: {built.problems[0]}; use other weights"
        )
    if built.num_images:
        rate = built.num_images / built.seconds
        report(f"{built.num_images} images through the network: {rate:.0f} images/s -> {cache}")
    else:
        report(f"Features are in the cache: {cache}")
    return [{entry.split: _load(entry) for entry in of_depth} for of_depth in entries]


def _load(entry: Entry) -> FeatureArrays:
    view = read_view(entry.uri, 0)
    assert view is not None, "a pass without problems leaves whole views"
    return load_view(view)


def plan_entries(
    network: FrozenNetwork,
    depth: int,
    *,
    output: int,
    shape: tuple[int, ...],
    num_views: Mapping[str, int],
    manifest: Manifest,
    cache: str,
    use_gpu: bool,
) -> list[Entry]:
    """Return the cache entries of a depth's features, one for each split.

    Args:
        output: index of the depth in the pass.
        shape: of an image's features.
        num_views: of an image, by split; images of train alone are augmented.
    """
    ingest, seed = network.config.ingest, network.config.seed
    facts = network.describe(depth, use_gpu=use_gpu)
    facts |= {"data_fingerprint": manifest.fingerprint}
    entries: list[Entry] = []
    for split, views_of_split in num_views.items():
        policy = ingest.policy if split == "train" else "none"
        augmentation = {"policy": policy, "seed": seed if policy != "none" else 0}
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
