"""A pass of all images through a frozen network, which leaves features in the cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import ray

from cluster.config import ClusterConfig
from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.terminal import report
from cluster.io.uris import parent_of
from cluster.runtime import Resources
from cluster.scaling import WorkerPlan
from datasets.config import NUM_VIEWS, IngestConfig
from datasets.manifest import Manifest
from datasets.passes.actors import Workers
from datasets.passes.feature_builder import Built, build_features
from datasets.passes.feature_tasks import Entry
from datasets.passes.features import (
    FeatureArrays,
    View,
    hash_facts,
    load_view,
    read_view,
)
from trainers.config import FinetuneConfig, ModelConfig
from trainers.inference.actors import plan_actors
from trainers.inference.compiled import is_compiled
from trainers.inference.config import FrozenConfig
from trainers.inference.prefix import FrozenNetwork, PrefixActor, open_frozen
from trainers.networks.backbones import find
from trainers.networks.families import Backbone
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
            fold=config.fold,
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


@dataclass(frozen=True)
class Features:
    """The features of one network in the cache."""

    entries: list[dict[str, Entry]]
    """Of each depth, by split."""

    def load(self) -> list[dict[str, FeatureArrays]]:
        """Read them, by depth and split, in the order of the shards."""
        return [
            {split: load_view(_read(entry)) for split, entry in of_depth.items()}
            for of_depth in self.entries
        ]

    def find_unreadable(self) -> dict[str, dict[int, str]]:
        """Return the names of images that are unreadable at any depth, by split and row."""
        found: dict[str, dict[int, str]] = {}
        for of_depth in self.entries:
            for split, entry in of_depth.items():
                view = _read(entry)
                found.setdefault(split, {}).update(
                    load_view(view).unreadable if view.unreadable else {}
                )
        return found


def compute_features(
    trainings: Sequence[FinetuneConfig],
    manifest: Manifest,
    resources: Resources,
    cache: str,
    *,
    depths: Callable[[Backbone], Sequence[int]],
    splits: Sequence[str],
) -> list[Features]:
    """Compute the features of the networks of some trainings that the cache lacks, in one pass over
    the images; feature maps are averaged over positions.

    Args:
        trainings: with the same data, image size and cluster.
        depths: of a network.

    Raises:
        UserError: if features overflow half precision.
    """
    backbones = [training.model.backbone for training in trainings]
    plan = plan_actors(resources, trainings[0].cluster, backbones)
    networks: list[tuple[FrozenNetwork, Sequence[int]]] = []
    missing: list[Entry] = []
    features: list[Features] = []
    for training in trainings:
        compute = choose_precision(training.compute, use_gpu=plan.use_gpu)
        network = open_frozen(
            replace(training, compute=compute),
            len(manifest.classes),
            classes=manifest.classes,
            pooled=True,
        )
        of_network = depths(find(training.model.backbone))
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
            for output, (depth, shape) in enumerate(
                zip(of_network, network.shapes(of_network), strict=True),
                start=sum(len(others) for _, others in networks),
            )
        ]
        features.append(Features([{entry.split: entry for entry in each} for each in entries]))
        lacking = [entry for each in entries for entry in each if not _is_whole(entry)]
        if lacking:  # else no actor loads this network
            networks.append((network, of_network))
            missing += lacking
    built = run_pass(networks, missing, manifest=manifest, plan=plan) if networks else Built()
    if built.problems:
        weights = ", ".join(str(network.config.model.weights) for network, _ in networks)
        raise UserError(f"model.weights is {weights!r}: {built.problems[0]}; use other weights")
    if built.num_images:
        rate = built.num_images / built.seconds
        through = "the network" if len(networks) == 1 else f"{len(networks)} networks"
        report(f"{built.num_images} images through {through}: {rate:.0f} images/s -> {cache}")
    else:
        report(f"Features are in the cache: {cache}")
    return features


def _is_whole(entry: Entry) -> bool:
    """Whether the cache has the features of every image; an unreadable one may be readable now."""
    view = read_view(entry.uri, 0)
    return view is not None and not view.unreadable


def _read(entry: Entry) -> View:
    view = read_view(entry.uri, 0)
    assert view is not None, "a pass without problems leaves whole views"
    return view


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
        augmentation = {"policy": policy, "seed": seed if policy not in NUM_VIEWS else 0}
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
    networks: Sequence[tuple[FrozenNetwork, Sequence[int]]],
    entries: Sequence[Entry],
    *,
    manifest: Manifest,
    plan: WorkerPlan,
) -> Built:
    """Compute the entries that the cache lacks, all networks and their depths in one pass.

    Args:
        networks: each with its depths; the outputs of entries are counted over all of them.
    """
    config = networks[0][0].config
    return build_features(
        entries,
        data=config.data,
        manifest=manifest,
        ingest=config.ingest,
        seed=config.seed,
        load=partial(
            PrefixActor,
            [
                (ray.put(network), depths, is_compiled(network.config, use_gpu=plan.use_gpu))
                for network, depths in networks
            ],
            threads=plan.threads_per_worker,
            use_gpu=plan.use_gpu,
        ),
        workers=Workers.of(plan),
    )
