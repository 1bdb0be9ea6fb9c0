"""What an export measures on, what its card says of a combination, and an upload that fails."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from datasets.manifest_file import read_manifest, write_manifest
from tests.support.data import WriteData, rename_classes
from tests.test_trainers_export import card_facts
from trainers.config import FinetuneConfig, ModelConfig
from trainers.export.config import ExportConfig
from trainers.export.hugging_face import push_folder
from trainers.export.model_card import Measured, write_card
from trainers.export.quantize import open_images
from trainers.run.checkpoint import TrainingProgress
from trainers.run.combination import CombinedRun, CombinedTrial

CLASSES = ("Audi S6 Sedan 2011", "BMW M3 Coupé", "Kia Rio")


def test_the_card_of_a_combination_names_each_network_and_its_license() -> None:
    trials = [
        CombinedTrial(
            trial=trial,
            backbone=backbone,
            weights="IMAGENET",
            license=license,
            best_epoch=3,
            total_s=12.4,
            val_top1=0.9,
        )
        for trial, backbone, license in (("a", "resnet18", None), ("b", "vgg16", "cc-by-nc-4.0"))
    ]
    ensemble = CombinedRun(kind="ensemble", name="ensemble of 2 trials", trials=tuple(trials))
    facts = card_facts(
        FinetuneConfig(data="cars", model=ModelConfig(backbone="resnet18")),
        TrainingProgress(epoch=3, total_s=12.4, val_top1=0.9, classes=CLASSES),
        backbones=("resnet18", "vgg16"),
        combined=ensemble,
    )
    card = write_card(facts)

    assert "# ensemble of 2 trials (resnet18, vgg16) for 3 classes of cars" in card
    assert "| a | resnet18 | IMAGENET | none is stated | 3 | 12 | 0.9000 |" in card
    assert "| b | vgg16 | IMAGENET | cc-by-nc-4.0 | 3 | 12 | 0.9000 |" in card
    assert "the mean of the probabilities" in card and "\n| best epoch |" not in card
    assert {"resnet18", "vgg16"} <= set(ModelCard(card).data.to_dict()["tags"])
    older = write_card(replace(facts, combined=None))
    assert "| networks | resnet18, vgg16 |" in older and "| their license | not recorded" in older
    soup = replace(ensemble, kind="soup", name="soup of 2 trials")
    card = write_card(replace(facts, backbones=(), combined=soup))
    assert "# soup of 2 trials (resnet18) for" in card and "each weight the mean of those" in card


def test_accuracy_is_measured_on_the_data_set_that_trained(
    write_data: WriteData, tmp_path: Path
) -> None:
    data = write_data()
    manifest = read_manifest(data)
    config = FinetuneConfig(data=data, train_on="train+val")
    progress = TrainingProgress(fingerprint=manifest.fingerprint)
    moved = shutil.copytree(data, str(tmp_path / "moved"))
    found = open_images(config, progress, moved)
    assert (found.config.data, found.split, found.trained) == (moved, "test", False)

    splits = {name: split for name, split in manifest.splits.items() if name != "test"}
    write_manifest(data, replace(manifest, splits=splits))
    found = open_images(config, progress, None)
    assert (found.split, found.trained) == ("val", True)
    facts = Measured(top1=1.0, ms=1.0, split="val", num_images=17, trained=True)
    assert facts.images == "17 val images (they trained the network)"
    rename_classes(data, "kind {}")
    write_manifest(data, replace(read_manifest(data), fingerprint="prepared again"))
    with pytest.raises(ValueError, match=r"^data is .* prepared again since; give that one by --d"):
        open_images(config, progress, None)
    with pytest.raises(ValueError, match=r"^data is 'd': no image is read: leave it out"):
        ExportConfig(run="r", out="o", data="d")


def test_an_upload_without_a_network_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = huggingface_hub.HfApi

    class Silent(api):
        def create_repo(self, *_: Any, **__: Any) -> Any:
            raise ConnectionError

    for hub, reason in ((partial(api, endpoint="http://127.0.0.1:9"), ".+"), (Silent, "Conn.+")):
        monkeypatch.setattr("huggingface_hub.HfApi", hub)
        with pytest.raises(ValueError, match=rf"^push is 'a/b': .* uploaded \({reason}\); the exp"):
            push_folder("a/b", str(tmp_path))
