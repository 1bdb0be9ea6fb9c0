"""The frozen prefixes of a sweep, built once: features in the cache, tensors beside the trials.

SWEEP/prefixes/NAME.safetensors   the frozen tensors, which trials leave out of checkpoints
CACHE/features/KEY/               as datasets/passes/features.py lays them out
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import ray

from cluster.config import ClusterConfig
from cluster.io import storage
from cluster.runtime import Resources
from datasets.manifest import Manifest
from datasets.passes.feature_tasks import Entry
from datasets.passes.features import (
    ArraySource,
    FeatureSource,
    count_bytes,
    load_view,
    read_view,
)
from datasets.sources import BatchSource
from trainers.config import FinetuneConfig, ModelConfig
from trainers.inference.actors import plan_actors
from trainers.inference.passes import cache_uri, plan_entries, run_pass
from trainers.inference.prefix import FrozenNetwork, hash_tensors, open_frozen
from trainers.networks.measure import count_backbone_bytes
from trainers.networks.weights.tensors import to_safetensors
from trainers.prepare import PrefixFeatures
from tuning.config import TuningConfig
from tuning.point import training_of
from tuning.sharing.cache import list_entries
from tuning.sharing.keys import Key, network_of
from tuning.sharing.plan import PrefixPlan, SharingPlan, plan_sharing, views_of_splits
from tuning.space import models


@dataclass(frozen=True, kw_only=True)
class BuiltPrefixes:
    """Features that trials train on instead of images, and the cost of building them."""

    prefixes: dict[Key, PrefixFeatures] = field(default_factory=dict)
    num_images: int = 0
    """Images that went through a network; the others were in the cache."""
    seconds: float = 0.0
    problems: tuple[str, ...] = ()


class PrefixStore:
    """The networks of a sweep with their initial weights, and the URIs of their features."""

    def __init__(self, config: TuningConfig, manifest: Manifest, resources: Resources) -> None:
        self._config, self._manifest, self._resources = config, manifest, resources
        trainings = (training_of(config.base, model) for model in models(config.space))
        backbones = {training.model.backbone for training in trainings}
        largest = max(backbones, key=count_backbone_bytes)  # a pass has one network
        cluster = ClusterConfig(device=config.base.cluster.device)
        self._plan = plan_actors(resources, cluster, [largest])
        self._cache = cache_uri(config.out, config.cache)
        self._networks: dict[tuple[ModelConfig, int, int], FrozenNetwork] = {}
        self._known_entries: dict[Key, list[Entry]] = {}

    def plan(
        self, config: TuningConfig, *, epochs_at: Callable[[int], float] | None = None
    ) -> SharingPlan:
        """Choose the prefixes that are worth building for the trials of a sweep.

        Args:
            epochs_at: as of `plan_sharing`.
        """
        return plan_sharing(
            config,
            self._manifest,
            free_bytes=self.free_bytes,
            missing_bytes=self.missing_bytes,
            epochs_at=epochs_at,
        )

    def missing_bytes(self, prefix: PrefixPlan) -> float:
        """Return the bytes of a prefix's features that are not in the cache."""
        missing = 0.0
        for entry in self._entries(prefix, output=0):
            num_images = self._manifest.split(entry.split).num_images
            absent = sum(read_view(entry.uri, view) is None for view in entry.views)
            missing += absent * num_images * entry.image_bytes
        return missing

    def build(self, plan: SharingPlan) -> BuiltPrefixes:
        """Build the plan's prefixes, those of one network in one pass."""
        built = [
            self._build(network, [prefix for prefix in plan.shared if prefix.network == network])
            for network in dict.fromkeys(prefix.network for prefix in plan.shared)
        ]
        return BuiltPrefixes(
            prefixes={key: prefix for each in built for key, prefix in each.prefixes.items()},
            num_images=sum(each.num_images for each in built),
            seconds=sum(each.seconds for each in built),
            problems=tuple(problem for each in built for problem in each.problems),
        )

    def _build(self, key: FinetuneConfig, prefixes: list[PrefixPlan]) -> BuiltPrefixes:
        network = self._network(key)
        entries = {
            prefix.depth: self._entries(prefix, output=number)
            for number, prefix in enumerate(prefixes)
        }
        outcome = run_pass(
            [(network, [prefix.depth for prefix in prefixes])],
            [entry for of_depth in entries.values() for entry in of_depth],
            manifest=self._manifest,
            plan=self._plan,
        )
        ready: dict[Key, PrefixFeatures] = {}
        for depth, of_depth in entries.items():
            if (sources := self._open(of_depth)) is not None:
                name = self._keep_tensors(network, depth, of_depth[0].facts["weights_sha256"])
                ready[key, depth] = PrefixFeatures(depth=depth, sources=sources, tensors=name)
        return BuiltPrefixes(
            prefixes=ready,
            num_images=outcome.num_images,
            seconds=outcome.seconds,
            problems=outcome.problems,
        )

    def _open(self, entries: list[Entry]) -> dict[str, BatchSource] | None:
        """Return the features of each split, in the object store where they fit; None where some
        could not be built."""
        views = {e.split: [read_view(e.uri, view) for view in e.views] for e in entries}
        whole = {split: tuple(v for v in of_split if v) for split, of_split in views.items()}
        if any(len(whole[split]) < len(views[split]) for split in views):
            return None
        num_bytes = sum(view.num_bytes for of_split in whole.values() for view in of_split)
        store_bytes = self._resources.object_store_gib * 2**30 / self._resources.num_nodes
        fits = num_bytes <= self._config.base.ingest.memory_share * store_bytes
        if not fits:
            return {split: FeatureSource(views=of_split) for split, of_split in whole.items()}
        return {
            split: ArraySource(
                arrays=tuple(ray.put(load_view(view)) for view in of_split),
                bytes_per_image=count_bytes(of_split[0].shape),
            )
            for split, of_split in whole.items()
        }

    def _keep_tensors(self, network: FrozenNetwork, depth: int, sha256: str) -> str:
        """Write the frozen tensors that trials leave out of their checkpoints; return the name."""
        name = f"{sha256[:24]}.safetensors"
        uri = storage.join(self._config.out, "prefixes", name)
        if not storage.exists(uri):
            storage.write_bytes(uri, to_safetensors(network.tensors(depth)))
        return name

    def _network(self, key: FinetuneConfig) -> FrozenNetwork:
        """Return a network; those that only see other pixels have the same tensors."""
        model = replace(key.model, normalization="auto")
        tensors = model, key.seed, key.ingest.size_px
        if tensors not in self._networks:
            classes = self._manifest.classes
            self._networks[tensors] = open_frozen(key, len(classes), classes=classes)
        return replace(self._networks[tensors], config=key)

    def start_hashes(self) -> dict[FinetuneConfig, str]:
        """Return the SHA-256 of all tensors that trainings start from, by network."""
        base, hashes = self._config.base, dict[int, str]()
        keys = [network_of(training_of(base, model)) for model in models(self._config.space)]
        networks = {key: self._network(key).model for key in keys}
        for model in networks.values():
            hashes[id(model)] = hashes.get(id(model)) or hash_tensors(model.state_dict())
        return {key: hashes[id(model)] for key, model in networks.items()}

    def free_bytes(self) -> float:
        """Return the free space of the cache."""
        known = list_entries(self._cache)
        used = sum(entry.num_bytes for entry in known)
        return self._config.feature_cache_gib * 2**30 - used

    def _entries(self, prefix: PrefixPlan, *, output: int) -> list[Entry]:
        """Return the entries of a prefix's features; kept, as its weights have to be hashed."""
        key = prefix.network, prefix.depth
        if key not in self._known_entries:
            self._known_entries[key] = plan_entries(
                self._network(prefix.network),
                prefix.depth,
                output=output,
                shape=prefix.shape,
                num_views=views_of_splits(self._config, self._manifest, prefix.num_views),
                manifest=self._manifest,
                cache=self._cache,
                use_gpu=self._plan.use_gpu,
            )
        return [replace(entry, output=output) for entry in self._known_entries[key]]
