"""Work that the trials of a sweep share."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ray.actor import ActorHandle

from cluster.io import storage
from datasets.manifest import Manifest
from datasets.memory import open_memory
from trainers.config import FinetuneConfig
from trainers.heads.grouping import can_stack
from trainers.networks.freezing import is_head_only
from trainers.prepare import PrefixFeatures, SharedImages
from tuning.config import TuningConfig
from tuning.point import Point, training_of
from tuning.search import run_folder
from tuning.sharing.keys import Key, network_of, prefix_key
from tuning.sharing.reuse import result_key


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Work that the trials of a sweep share; empty but for the manifest where nothing is shared."""

    manifest: Manifest
    prefixes: dict[Key, PrefixFeatures] = field(default_factory=dict)
    """Features by network and frozen stages."""
    heads: dict[FinetuneConfig, str] = field(default_factory=dict)
    """URI of the head that deeper trials start from, by network."""
    results: str | None = None
    """URI of the folder of recorded results."""
    starts: dict[FinetuneConfig, str] = field(default_factory=dict)
    """Hash of the tensors a training starts from, by network."""
    images: SharedImages | None = None
    """Images of the trials that have no features."""
    rounds: ActorHandle | None = None
    """Actor of HeadRounds; None where every head trains alone."""
    save_from_s: float | None = None
    """As `Run.save_from_s`: shortly before the budget ends."""
    runner: ActorHandle | None = None
    """Actor of a TrainingRunner; None where every trial trains in its own process."""

    def prefix_of(self, config: FinetuneConfig) -> PrefixFeatures | None:
        """Return the features that a training can use instead of images."""
        return self.prefixes.get(prefix_key(config))

    def with_images(
        self, trainings: Iterable[FinetuneConfig], ingest: tuple[bool, str]
    ) -> "Shared":
        """Return it with images for those trainings that have no features, where there are any.

        Args:
            ingest: of `plan_ingest`.
        """
        if all(self.prefix_of(training) is not None for training in trainings):
            return self
        remember, why = ingest
        memory = open_memory(self.manifest, shared=True) if remember else {}
        return replace(self, images=SharedImages(memory=memory, ingest=why))

    def results_of(self, config: FinetuneConfig) -> str | None:
        """Return the URI of the recorded results of a training, whatever their clipnorm."""
        start_hash = self.starts.get(network_of(config))
        if self.results is None or start_hash is None:
            return None
        key = result_key(config, fingerprint=self.manifest.fingerprint, start_hash=start_hash)
        return storage.join(self.results, key)


def config_of(
    config: TuningConfig, point: Point, trial_id: str, shared: Shared | None = None
) -> FinetuneConfig:
    """Return the training of a trial."""
    training = training_of(config.base, point)
    training = replace(
        training,
        out=run_folder(config, trial_id),
        track=replace(training.track, group=config.group),
    )
    head = shared.heads.get(network_of(training)) if shared else None
    if head is None or is_head_only(training.model):
        return training
    return replace(training, model=replace(training.model, head=head))


def trains_together(config: FinetuneConfig, shared: Shared) -> bool:
    """Whether a trial's head trains in one batch with those of other trials."""
    return is_head_only(config.model) and shared.prefix_of(config) is not None and can_stack(config)
