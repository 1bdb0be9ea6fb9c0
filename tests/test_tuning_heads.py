"""The head first: trained once, and what deeper trials start from."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from datasets.manifest_file import read_manifest
from tests.test_tuning_prefixes import build_all, open_store, sweep_of
from trainers import metrics
from trainers.config import FinetuneConfig, ModelConfig
from trainers.networks import backbones
from trainers.networks.weights.head_files import head_tensors
from trainers.networks.weights.initialization import initialize
from trainers.run.folder import read_result
from tuning.axes.axis import FREEZE_DEPTH, INIT, LEARNING_RATE
from tuning.config import SpaceConfig
from tuning.heads import _name_files, train_heads
from tuning.shared import Shared, config_of


@pytest.mark.ray
def test_deeper_trials_start_from_the_best_head(
    ray_cluster: str, easy_data: str, tmp_path: Path
) -> None:
    config = sweep_of("lenet5", easy_data, tmp_path)
    space = SpaceConfig(freeze_depths=("all", 1), learning_rates=(1e-2, 1e-6), inits=("file", "he"))
    config = replace(config, space=space, head_first=True)
    store = open_store(config)
    prefixes = build_all(config, store).prefixes
    shared = Shared(
        manifest=read_manifest(easy_data),
        prefixes=prefixes,
        results=str(tmp_path / "results"),
        starts=store.start_hashes(),
    )
    heads = train_heads(config, shared)

    (file,) = heads
    assert file.model.init == "file", "a random network has no head worth keeping"
    runs = sorted((tmp_path / "sweep/heads").glob("file-*/"))
    assert len(runs) == 2
    best = max(read_result(str(run))[metrics.VAL_BEST_TOP1] for run in runs)
    assert best == read_result(str(tmp_path / "sweep/heads/file-0.01"))[metrics.VAL_BEST_TOP1]
    before = Path(heads[file]).stat().st_mtime_ns
    assert train_heads(config, shared) == heads
    assert Path(heads[file]).stat().st_mtime_ns == before, "a head is trained once"

    shared = replace(shared, heads=heads)
    point = {INIT: "file", FREEZE_DEPTH: 1, LEARNING_RATE: 1e-3}
    deeper = config_of(config, point, "deeper", shared).model
    network = backbones.build("lenet5", 3)
    initialize(network, deeper, seed=0)
    given = safetensors.torch.load_file(heads[file])
    for name, tensor in head_tensors(network, "lenet5").items():
        assert torch.equal(tensor, given[name])
    # The head-only trial of the same point is known, and starts from no head.
    alone = config_of(config, point | {FREEZE_DEPTH: "all", LEARNING_RATE: 1e-2}, "alone", shared)
    assert alone.model.head is None
    folder = shared.results_of(alone)
    assert folder is not None and len(list(Path(folder).iterdir())) == 1
    assert config_of(config, {INIT: "he", FREEZE_DEPTH: 0}, "he", shared).model.head is None


def test_each_network_has_files_of_its_own() -> None:
    """Weights of one base name, and names that differ in characters that files don't have."""

    def of(weights: str) -> FinetuneConfig:
        return FinetuneConfig(data="d", model=ModelConfig(init="file", weights=weights))

    a, b, c = map(of, ("a/model.safetensors", "b/model.safetensors", "c.pth"))
    found = _name_files({a: "file my model", b: "file my-model", c: "file c.pth"})
    assert len(set(found.values())) == 3 and found[c] == "file-c.pth"
    assert all(name.startswith("file-my-model-") for name in (found[a], found[b]))
    assert _name_files({b: "file my-model", a: "file my model"}) == {
        key: found[key] for key in (a, b)
    }


def test_a_head_of_another_network_is_refused(tmp_path: Path) -> None:
    weights, head = str(tmp_path / "weights.pth"), str(tmp_path / "head.safetensors")
    network = backbones.build("lenet5", 3)
    torch.save(network.state_dict(), weights)
    config = ModelConfig(backbone="lenet5", init="file", weights=weights, head=head)
    with pytest.raises(ValueError, match=r"model\.head is .*: it can't be read"):
        initialize(network, config, seed=0)
    other = head_tensors(backbones.build("lenet5", 4), "lenet5")
    safetensors.torch.save_file(other, head)
    with pytest.raises(ValueError, match=r"not a head of this network, whose tensors are head"):
        initialize(network, config, seed=0)
