"""A trial on cached features is the trial on images: the same losses, the same network kept."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.config import ClusterConfig
from cluster.runtime import find_resources
from datasets.config import IngestConfig
from datasets.manifest_file import read_manifest
from datasets.passes.features import DTYPE
from tests.support.training import train_here
from trainers import metrics
from trainers.config import ComputeConfig, FinetuneConfig, ModelConfig, OptimConfig, TrackConfig
from trainers.evaluation import split as split_module
from trainers.evaluation.split import predict_split
from trainers.inference.inference import Network
from trainers.inference.prefix import hash_tensors
from trainers.networks import backbones
from trainers.networks.cut import Suffix, build_prefix
from trainers.run import checkpoint
from trainers.run.folder import load_best_model
from trainers.run.rows import epoch_rows
from tuning.axes.axis import FREEZE_DEPTH, INIT
from tuning.config import SpaceConfig, TuningConfig
from tuning.point import training_of
from tuning.sharing.cache import evict, list_entries, run_cache
from tuning.sharing.config import CacheConfig
from tuning.sharing.keys import prefix_key
from tuning.sharing.plan import plan_sharing
from tuning.sharing.prefixes import PrefixStore

LOSS_RTOL = 5e-3
"""Of a trial's losses on half-precision features, against those on images, over two epochs."""


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_logits_of_features_in_half_precision(name: str, one_thread: None) -> None:
    """At every stage within 1e-3 of the largest logit."""
    torch.manual_seed(3)
    network = backbones.build(name, 20)
    images_BCHW = torch.randn(16, 3, 64, 64)
    for name_of, parameter in network.named_parameters():
        if name_of.endswith("bn3.weight"):  # as training leaves them: at 1, noise would grow
            nn.init.constant_(parameter, 0.2)
    with torch.no_grad():
        network.train()
        for _ in range(20):  # statistics that keep activations at a natural scale
            network(images_BCHW)
        network.eval()
        logits_BK = network(images_BCHW)
        depths = range(1, len(backbones.find(name).stages) + 1)
        for depth, features in zip(
            depths, build_prefix(network, name, depths)(images_BCHW), strict=True
        ):
            half = torch.from_numpy(features.numpy().astype(DTYPE)).float()
            error = (Suffix(network, name, depth)(half) - logits_BK).abs().max()
            assert error <= 1e-3 * logits_BK.abs().max(), depth


def sweep_of(backbone: str, data: str, folder: Path, **changes: Any) -> TuningConfig:
    weights = folder / f"{backbone}.pth"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save(backbones.build(backbone, 3).state_dict(), weights)
    base = FinetuneConfig(
        data=data,
        epochs=2,
        global_batch_size=12,
        ingest=IngestConfig(size_px=32, policy="light"),
        # On an untrained network batch statistics of twelve images of 32 px are chaos.
        model=ModelConfig(
            backbone=backbone, init="file", weights=str(weights), freeze_batchnorm=True
        ),
        optim=OptimConfig(learning_rate=1e-3, ema_decay=0.9),
        track=TrackConfig(wandb="off"),
        compute=ComputeConfig(precision="fp32"),
        cluster=ClusterConfig(num_workers=0),
    )
    depths = tuple(range(1, len(backbones.find(backbone).stages) + 1))
    return TuningConfig(
        base=replace(base, **changes),
        space=SpaceConfig(freeze_depths=depths, learning_rates=(1e-3,), inits=("file",)),
        search="grid",
        out=str(folder / "sweep"),
    )


def open_store(config: TuningConfig) -> PrefixStore:
    return PrefixStore(config, read_manifest(config.base.data), find_resources())


def build_all(config: TuningConfig, store: PrefixStore):
    plan = plan_sharing(
        config,
        read_manifest(config.base.data),
        free_bytes=lambda: 1e9,
        missing_bytes=lambda prefix: prefix.num_bytes,
    )
    return store.build(
        replace(plan, prefixes=tuple(replace(prefix, problem="") for prefix in plan.prefixes))
    )


@pytest.mark.ray
@pytest.mark.parametrize(
    "backbone", ["lenet5", pytest.param("mobilenet_v2", marks=pytest.mark.extended)]
)
def test_a_trial_on_features_has_the_losses_of_one_on_images(
    backbone: str,
    ray_cluster: str,
    easy_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind first and last stages; and it keeps the frozen tensors of the other."""
    config = sweep_of(backbone, easy_data, tmp_path)
    store = open_store(config)
    assert {prefix.missing_share for prefix in store.plan(config).prefixes} == {1.0}
    built = build_all(config, store)
    assert {prefix.missing_share for prefix in store.plan(config).prefixes} == {0.0}
    assert built.num_images == 2 * 48 + 17 + 13, "those of the test split too, for the winner"
    for depth in config.space.freeze_depths[:: 6 if backbone == "mobilenet_v2" else 2]:
        training = training_of(config.base, {INIT: "file", FREEZE_DEPTH: depth})
        images = replace(training, out=str(tmp_path / f"images-{depth}"))
        features = replace(training, out=f"{config.out}/trials/{depth}")
        train_here(images)
        train_here(features, prefix=built.prefixes[prefix_key(training)])

        for row, other in zip(epoch_rows(images.out), epoch_rows(features.out), strict=True):
            for name in (metrics.TRAIN_LOSS, metrics.VAL_LOSS, metrics.GRAD_NORM):
                assert other[name] == pytest.approx(row[name], rel=LOSS_RTOL), (depth, name)
            assert other[metrics.VAL_TOP1] == pytest.approx(row[metrics.VAL_TOP1], abs=0.06)
        kept, known = (load_best_model(run)[2].state_dict() for run in (features.out, images.out))
        progress = checkpoint.latest_progress(features.out)
        assert progress is not None and progress.prefix is not None
        frozen = backbones.find(backbone).stage_of
        for name, tensor in known.items():
            if frozen(name) < int(depth):
                assert torch.equal(kept[name], tensor), name
        config_of_run, _, model = load_best_model(features.out)
        network = Network(model=model, config=config_of_run, classes=("a", "b", "c"), origin="")
        losses = [
            predict_split(
                network, read_manifest(easy_data), "test", index_K=np.arange(3), prefix=prefix
            ).numbers("loss")
            for prefix in (built.prefixes[prefix_key(training)], None)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=0.05, abs=0.01)
        with monkeypatch.context() as patch:
            for limit in ("FEW_IMAGES", "FEW_IMAGES_HERE"):
                patch.setattr(split_module, limit, 0)
            by_actors = predict_split(
                network, read_manifest(easy_data), "test", index_K=np.arange(3),
                prefix=built.prefixes[prefix_key(training)],
            )  # fmt: skip
        assert by_actors.numbers("loss") == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.ray
def test_another_weight_size_policy_or_seed_is_another_entry(
    ray_cluster: str, easy_data: str, tmp_path: Path
) -> None:
    config = sweep_of("lenet5", easy_data, tmp_path)

    def uris(changed: TuningConfig) -> set[str]:
        (prefix, *_) = plan_sharing(
            changed,
            read_manifest(easy_data),
            free_bytes=lambda: 1e9,
            missing_bytes=lambda prefix: prefix.num_bytes,
        ).prefixes
        return {entry.uri for entry in open_store(changed)._entries(prefix, output=0)}

    base, known = config.base, uris(config)
    ingest = base.ingest
    assert uris(config) == known
    assert uris(replace(config, base=replace(base, epochs=7, global_batch_size=6))) == known
    assert not known & uris(replace(config, base=replace(base, ingest=replace(ingest, size_px=34))))
    # Validation and test images are neither augmented nor drawn.
    for changed in (
        replace(base, seed=1),
        replace(base, ingest=replace(ingest, policy="cars")),
    ):
        assert len(known & uris(replace(config, base=changed))) == 2
    torch.manual_seed(1)
    torch.save(backbones.build("lenet5", 3).state_dict(), str(base.model.weights))
    assert not known & uris(config)


def test_the_cache_forgets_what_was_used_longest_ago(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("old", "young", "middle"):
        folder = tmp_path / "features" / key / "view-0000"
        folder.mkdir(parents=True)
        (folder / "part.parquet").write_bytes(b"x" * 2**20)
        facts = folder.parent / "facts.json"
        facts.write_text('{"backbone": "lenet5"}')
        age = {"old": 300, "middle": 200, "young": 100}[key]
        for path in (folder / "part.parquet", facts):
            os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))

    assert [entry.key for entry in list_entries(str(tmp_path))] == ["old", "middle", "young"]
    assert [entry.key for entry in evict(str(tmp_path), 2.5 * 2**20)] == ["old"]
    run_cache(CacheConfig(cache=str(tmp_path), keep_gib=1.5 / 1024))
    printed = capsys.readouterr().out
    assert "deleted middle, 0.001 GiB" in printed and "1 sets of features, 0.001 GiB" in printed
    (tmp_path / "features" / "cars").mkdir()
    (tmp_path / "features" / "cars" / "part-0.parquet").write_bytes(b"of another command")
    run_cache(CacheConfig(cache=str(tmp_path), keep_gib=0))
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["cars"], "not its own"
    with pytest.raises(ValueError, match="no folder there"):
        run_cache(CacheConfig(cache=str(tmp_path / "nowhere")))


def test_a_hash_sees_names_types_and_values() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.ones(1)}
    hashes = {
        hash_tensors(tensors),
        hash_tensors({**tensors, "a": torch.tensor([0.0, 1e-30])}),
        hash_tensors({"c": tensors["a"], "b": tensors["b"]}),
        hash_tensors({**tensors, "a": torch.zeros(2, dtype=torch.int32)}),
    }
    assert len(hashes) == 4
    assert hash_tensors(dict(reversed(tensors.items()))) in hashes
