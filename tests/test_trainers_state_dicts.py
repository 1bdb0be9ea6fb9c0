"""Weights as others save them, and heads by the names of their classes."""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from datasets.config import IngestConfig
from trainers.checks import check_network
from trainers.config import FinetuneConfig, ModelConfig
from trainers.inference.prefix import open_frozen
from trainers.networks.backbones import build
from trainers.networks.published import IMAGENET_CLASSES
from trainers.networks.weights.head_files import head_tensors
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.state_dicts import find_classes

pytestmark = pytest.mark.usefixtures("one_thread")
VEHICLES = ("bus", "car", "truck")
SMALL = IngestConfig(size_px=32)


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return build("lenet5", 3).state_dict()


def load(file: Path, classes=None, num_classes: int = 3):
    config = ModelConfig(backbone="lenet5", init="file", weights=str(file))
    report = initialize(model := build("lenet5", num_classes), config, seed=1, classes=classes)
    return report, model.state_dict()


def prefixed(plain: dict[str, Tensor], prefix: str, add: float = 0.0) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor + add for name, tensor in plain.items()}


FAKES: set[str] = set()
"""Modules that are there while a file is written, and not where it is read."""


def new(name: str, **values: object) -> object:
    """Return an object of a package that is not installed."""
    module, _, class_name = name.rpartition(".")
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        FAKES.add(part := ".".join(parts[:end]))
        sys.modules[part] = ModuleType(part)
    made = type(class_name, (dict,), {"__module__": module, "__qualname__": class_name})
    setattr(sys.modules[module], class_name, made)
    vars(instance := made(values)).update(values)
    return instance


def save_without_fakes(values: object, file: Path) -> None:
    torch.save(values, file)
    while FAKES:
        del sys.modules[FAKES.pop()]


WRAPPERS = {
    "tutorial": lambda p: {
        "epoch": 1,
        "model_state_dict": p,
        "optimizer_state_dict": {"state": {}},
    },
    "torch.compile": lambda p: prefixed(p, "_orig_mod."),
    "compiled DDP": lambda p: prefixed(p, "module._orig_mod."),
    "DDP compiled": lambda p: prefixed(p, "_orig_mod.module."),
    "FSDP": lambda p: prefixed(p, "_fsdp_wrapped_module."),
    "Lightning": lambda p: {"state_dict": prefixed(p, "model."), "hyper_parameters": {"lr": 1e-3}},
    "Lightning, compiled": lambda p: {"state_dict": prefixed(p, "net._orig_mod.")},
    "timm": lambda p: {
        "arch": "lenet5",
        "state_dict": p,
        "args": argparse.Namespace(lr=0.1, out=Path("/x")),
        "metric": np.float64(0.9),
    },
    "MMPretrain": lambda p: {
        "meta": {"dataset_meta": {"classes": VEHICLES}},
        "message_hub": {"log_scalars": {"loss": new("mmengine.logging.history_buffer.History")}},
        "state_dict": {
            f"{'head.' if name.startswith('head.') else 'backbone.'}{name}": tensor
            for name, tensor in p.items()
        },
    },
    "Lightning, Hydra": lambda p: {
        "state_dict": prefixed(p, "model."),
        "hyper_parameters": new("omegaconf.dictconfig.DictConfig", lr=1e-3, out=Path("/x")),
        "callbacks": {"EarlyStopping": defaultdict(list, a=[1])},
    },
    "MoCo": lambda p: {
        "state_dict": {
            **prefixed(p, "module.encoder_q."),
            **prefixed(p, "module.encoder_k.", -1),
            "module.queue": torch.ones(2),
        }
    },
    "DeepSpeed": lambda p: {"module": p, "ds_version": "0.16", "optimizer": None},
    "OpenCLIP": lambda p: {
        "epoch": 3,
        "state_dict": prefixed(p, "module.visual.trunk.") | {"module.logit_scale": torch.ones(1)},
    },
    "DINO": lambda p: {
        "student": prefixed(p, "module.backbone.", -1),
        "teacher": prefixed(p, "backbone."),
    },
    "a part of CLIP": lambda p: {**prefixed(p, "visual."), "text.weight": torch.ones(2)},
    "Hugging Face": lambda p: prefixed(p, "encoder.model."),
    "nested": lambda p: {"checkpoint": {"network": {"params": p}}},
    "EMA beside raw": lambda p: {"state_dict": prefixed(p, "", -1), "state_dict_ema": p},
    "EMA first": lambda p: {"model_ema": p, "model": prefixed(p, "", -1)},
    "EMA by prefix": lambda p: prefixed(p, "model.", -1) | prefixed(p, "ema_model.module."),
    "SWA": lambda p: {"net": prefixed(p, "", -1), "swa": prefixed(p, "module.")},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_all_tensors_are_loaded_from_a_wrapper(wrapper, plain, tmp_path):
    file = tmp_path / "w.pth"
    save_without_fakes(WRAPPERS[wrapper](plain), file)
    report, loaded = load(file)
    assert set(report.loaded) == set(plain)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.items())
    averaged = any(word in wrapper for word in ("EMA", "SWA"))
    assert averaged == any("the average, is used; also there" in note for note in report.notes) or (
        wrapper == "DINO"
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("k.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "Keras' HDF5.*--init imagenet"),
        ("k.keras", b"PK\x03\x04" + bytes(30) + b"model.weights.h5" + bytes(99), "Keras' archive"),
        ("saved_model.pb", b"\x08\x01", "TensorFlow's .*SavedModel"),
        ("ckpt-1.data-00000-of-00001", bytes(40), "TensorFlow's checkpoint"),
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(9), "TensorFlow Lite"),
        ("m.onnx", b"\x08\x07", "this is ONNX"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("w.pth", b"<!DOCTYPE html><html>", "a web page"),
        ("model.safetensors.index.json", b"{}", "shards of a large model"),
        ("model-00001-of-00002.safetensors", bytes(9), "one of 2 shards of a model"),
        ("__0_0.distcp", bytes(9), "torch.distributed.checkpoint.format_utils dcp_to_torch"),
    ],
)
def test_other_formats_are_named_with_the_way_out(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^model\.weights is .*{words}"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("saved_model.pb", "TensorFlow's .*SavedModel"),
        ("model.safetensors.index.json", "shards of a large model"),
        (".metadata", "join it with `python -m torch.distributed.checkpoint.format_utils"),
        ("flax_model.msgpack", "NumPy or Flax"),
        ("weights.pt", "give weights.pt in it"),
    ],
)
def test_a_folder_of_another_format_is_named(name, words, tmp_path):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=rf"^model\.weights is .*{words}"):
        load(tmp_path)


def test_a_folder_without_weights_of_a_usual_name_names_those_it_has(tmp_path):
    for name in ("last.ckpt", "best.pth", "log.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"folder has no .*safetensors; give best.pth or last.ck"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no file there; give a state dict"):
        load(tmp_path / "gone")


def test_files_without_tensors_are_named(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty; fetch or save it again"):
        load(tmp_path / "empty.pth")
    parameters = [torch.nn.Parameter(torch.ones(2))]
    arrays = {"conv1.weight": torch.ones(2).numpy()}
    for values in ({}, {"optimizer": torch.optim.Adam(parameters).state_dict()}, arrays):
        torch.save(values, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"it holds no tensors of a network.*save model"):
            load(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "values",
    [torch.nn.Linear(2, 2), {"state_dict": {}, "run": eval}, {"w": torch.nn.Linear(2, 2)}],
    ids=["a whole model", "a function", "a model inside"],
)
def test_what_would_run_code_is_named(values, tmp_path):
    torch.save(values, tmp_path / "w.pth")
    held = "builtins.eval" if isinstance(values, dict) and "run" in values else "torch.nn.modules"
    with pytest.raises(ValueError, match=rf"would run code, which is refused \(it holds {held}"):
        load(tmp_path / "w.pth")


def test_names_of_another_network_are_shown_beside_ours(tmp_path):
    torch.save({"resnet.embedder.weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"resnet\.embedder\.weight, the network's conv1\.weight"):
        load(tmp_path / "w.pth")


def save_checkpoint(folder: Path, plain: dict[str, Tensor], classes) -> Path:
    """Write the files of a checkpoint folder that hold weights and class names."""
    folder.mkdir()
    safetensors.torch.save_file(plain, folder / "model.safetensors")
    (folder / "progress.json").write_text(json.dumps({"classes": classes}))
    return folder


def save_export(folder: Path, plain: dict[str, Tensor], classes) -> Path:
    metadata = {"classes": json.dumps(classes)}
    safetensors.torch.save_file(plain, file := folder.with_suffix(".safetensors"), metadata)
    return file


def save_hugging_face(folder: Path, plain: dict[str, Tensor], classes) -> Path:
    folder.mkdir()
    torch.save(plain, folder / "pytorch_model.bin")
    labels = {str(number): name for number, name in enumerate(classes)}
    (folder / "config.json").write_text(json.dumps({"id2label": labels}))
    return folder


def save_timm(folder: Path, plain: dict[str, Tensor], classes) -> Path:
    folder.mkdir()
    safetensors.torch.save_file(plain, folder / "model.safetensors")
    config = {"architecture": "resnet18", "num_classes": 3, "label_names": list(classes)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_mmpretrain(folder: Path, plain: dict[str, Tensor], classes) -> Path:
    meta = {"dataset_meta": {"classes": list(classes)}, "epoch": 3}
    torch.save({"meta": meta, "state_dict": plain}, file := folder.with_suffix(".pth"))
    return file


def save_script(folder: Path, plain: dict[str, Tensor], classes) -> Path:
    numbers = {name: number for number, name in enumerate(classes)}
    torch.save({"model": plain, "class_to_idx": numbers}, file := folder.with_suffix(".pth"))
    return file


def test_names_of_classes_may_be_numbers():
    """ImageFolder sorts folders 0 to 11 as texts."""
    names = tuple(sorted(map(str, range(12))))
    numbers = {name: number for number, name in enumerate(names)}
    assert find_classes({"class_to_idx": numbers}) == names
    by_number = {number: name for name, number in numbers.items()}
    assert find_classes({"idx_to_class": by_number}) == names
    assert find_classes({"id2label": {str(n): name for n, name in by_number.items()}}) == names


@pytest.mark.parametrize(
    "save",
    [save_checkpoint, save_export, save_hugging_face, save_timm, save_script, save_mmpretrain],
)
@pytest.mark.parametrize(
    "classes",
    [
        ("ambulance", "bus", "car"),
        ("truck", "car", "bus"),
        ("a", "b", "c"),
        ("van", "truck"),
        ("bus", "car", "truck", "van"),
    ],
)
def test_rows_of_a_head_follow_the_names_of_classes(save, classes, plain, tmp_path):
    report, loaded = load(save(tmp_path / "saved", plain, VEHICLES), classes, len(classes))
    assert torch.equal(loaded["dense2.weight"], plain["dense2.weight"])
    for row, name in enumerate(classes):
        same = [
            torch.equal(
                loaded[tensor][row],
                plain[tensor][VEHICLES.index(name) if name in VEHICLES else row],
            )
            if name in VEHICLES or row < 3
            else False
            for tensor in ("head.weight", "head.bias")
        ]
        assert same == [name in VEHICLES] * 2
    kept = [name for name in classes if name in VEHICLES]
    if kept:
        assert f"head: rows follow class names: {', '.join(kept)} kept" in report.notes[0]
    else:
        assert "none of the classes" in report.notes[0]


def test_the_same_classes_keep_their_head_unsaid(plain, tmp_path):
    folder = save_checkpoint(tmp_path / "saved", plain, VEHICLES)
    report, loaded = load(folder, VEHICLES)
    assert report.notes == () and report.replaced == ()
    assert torch.equal(loaded["head.weight"], plain["head.weight"])


def test_a_head_without_names_is_kept_by_position_and_said(plain, tmp_path):
    torch.save(plain, tmp_path / "w.pth")
    report, loaded = load(tmp_path / "w.pth", VEHICLES)
    assert torch.equal(loaded["head.weight"], plain["head.weight"])
    assert "kept by position" in report.notes[0]


def test_a_thousand_classes_of_ones_own_are_not_those_of_imagenet(tmp_path):
    torch.save(given := build("lenet5", 1000).state_dict(), tmp_path / "w.pth")
    ours = tuple(f"car {number}" for number in range(1000))
    report, loaded = load(tmp_path / "w.pth", ours, 1000)
    assert report.replaced == ("head.weight", "head.bias")
    assert not torch.equal(loaded["head.weight"], given["head.weight"])
    report, loaded = load(tmp_path / "w.pth", IMAGENET_CLASSES, 1000)
    assert torch.equal(loaded["head.weight"], given["head.weight"])


def head_file(tmp_path: Path, plain: dict[str, Tensor], **metadata: object) -> dict[str, Tensor]:
    """Write head.safetensors and return its tensors."""
    head = {name: tensor + 1 for name, tensor in plain.items() if name.startswith("head")}
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    safetensors.torch.save_file(head, tmp_path / "head.safetensors", texts)
    return head


def random_with_head(tmp_path: Path) -> ModelConfig:
    return ModelConfig(backbone="lenet5", init="he", head=str(tmp_path / "head.safetensors"))


def test_a_random_network_starts_from_a_head_file_too(plain, tmp_path):
    config = random_with_head(tmp_path)
    with pytest.raises(ValueError, match=r"model\.head is '.*head\.safetensors': it can't be read"):
        check_network(FinetuneConfig(data="d", model=config, ingest=SMALL), VEHICLES)
    head = head_file(tmp_path, plain, classes=VEHICLES)
    initialize(model := build("lenet5", 3), config, seed=1, classes=VEHICLES)
    assert torch.equal(head_tensors(model, "lenet5")["head.weight"], head["head.weight"])


@pytest.mark.parametrize("ours", [("fork", "knife", "spoon"), ("fork", "knife")])
def test_a_head_of_other_classes_is_refused(plain, tmp_path, ours):
    head_file(tmp_path, plain, classes=VEHICLES)
    message = (
        r"model\.head is '.*': its classes are bus, car, truck, and none of them is in this data "
        rf"set \({', '.join(ours)}\); give a head of the same classes, or none"
    )
    with pytest.raises(ValueError, match=message):
        model = build("lenet5", len(ours))
        initialize(model, random_with_head(tmp_path), seed=1, classes=ours)


def test_a_head_file_without_names_is_kept_by_position_and_said(plain, tmp_path):
    head = head_file(tmp_path, plain)
    model = build("lenet5", 3)
    report = initialize(model, random_with_head(tmp_path), seed=1, classes=VEHICLES)
    assert torch.equal(head_tensors(model, "lenet5")["head.weight"], head["head.weight"])
    assert len(report.notes) == 1 and "kept by position" in report.notes[0]


def test_the_frozen_network_of_a_sweep_has_the_head_by_names_too(plain, tmp_path):
    """A head of other classes has other shapes; its rows are part of what trials start from."""
    head = head_file(tmp_path, plain, classes=VEHICLES)
    config = FinetuneConfig(data="d", model=random_with_head(tmp_path), ingest=SMALL)
    frozen = open_frozen(config, 2, classes=("truck", "van"))
    row = head_tensors(frozen.model, "lenet5")["head.weight"][0]
    assert torch.equal(row, head["head.weight"][2])


def test_a_head_file_follows_the_names_of_classes(plain, tmp_path):
    torch.save(plain, tmp_path / "w.pth")
    head = head_file(tmp_path, plain, classes=VEHICLES)
    config = ModelConfig(
        backbone="lenet5",
        init="file",
        weights=str(tmp_path / "w.pth"),
        head=str(tmp_path / "head.safetensors"),
    )
    initialize(model := build("lenet5", 3), config, seed=1, classes=("car", "van", "bus"))
    rows = head_tensors(model, "lenet5")["head.weight"]
    assert torch.equal(rows[0], head["head.weight"][1])
    assert torch.equal(rows[2], head["head.weight"][0])
    assert not torch.equal(rows[1], head["head.weight"][1])
