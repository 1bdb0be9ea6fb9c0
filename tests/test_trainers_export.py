"""Each format computes what the run's network does, and the card's own lines load it."""

import importlib.util
import io
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelCard

from datasets import storage
from trainers import checkpoint, export, formats
from trainers.backbones import build
from trainers.checkpoint import Progress
from trainers.config import FinetuneConfig, IngestConfig, ModelConfig
from trainers.export import MAX_DIFFERENCE, ExportConfig, Format, run_export
from trainers.initializers import initialize
from trainers.runs import load_best_model

CLASSES = ("Audi S6 Sedan 2011", 'smart "fortwo" 2012', "BMW M3 Coupé")
SIZE_PX = 48
FILES = {"model.safetensors", "model.onnx", "model.pt2", "config.json", "README.md"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of a MobileNetV2 whose statistics are those of images, and whose logits matter."""
    out = str(tmp_path_factory.mktemp("runs") / "cars")
    config = FinetuneConfig(
        data="/home/alice/photographs/cars",
        out=out,
        ingest=IngestConfig(size_px=SIZE_PX),
        model=ModelConfig(backbone="mobilenet_v2", init="he", normalization="half"),
    )
    model = build("mobilenet_v2", len(CLASSES))
    initialize(model, config.model, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3):
            model(torch.randn(8, 3, SIZE_PX, SIZE_PX))
    progress = Progress(
        epoch=2, val_top1=0.75, best_epoch=2, classes=CLASSES, fingerprint="0123abcd", total_s=12.3
    )
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    checkpoint.save(out, {checkpoint.MODEL: safetensors.torch.save(tensors)}, progress)
    storage.write_bytes(storage.join(out, "config.json"), json.dumps(config.to_dict()).encode())
    evaluation = {"test/top1": 0.875, "test/top5": 1.0, "test/loss": 0.5, "num_images": 16}
    storage.write_bytes(storage.join(out, "evaluation_test.json"), json.dumps(evaluation).encode())
    return out


@pytest.fixture(scope="module")
def exported(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    run_export(ExportConfig(run=run, out=str(folder), dynamic_batch=True))
    return folder


@pytest.fixture(scope="module")
def images_BHWC() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), np.uint8)


@torch.no_grad()
def logits_of(run: str, images_BHWC: np.ndarray) -> np.ndarray:
    """By plain torch, pixels normalized by hand."""
    _, _, model = load_best_model(run)
    return model((torch.tensor(images_BHWC) / 127.5 - 1).permute(0, 3, 1, 2)).numpy()


def read_text(path: str) -> io.StringIO:
    return io.StringIO(Path(path).read_text())


def test_each_snippet_of_the_card_computes_what_the_run_does(
    run: str, exported: Path, images_BHWC: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (exported / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    expected_BK = logits_of(run, images_BHWC)
    monkeypatch.chdir(exported)

    assert {file.name for file in exported.iterdir()} == FILES
    assert np.abs(expected_BK).max() > 0.1 and len(snippets) == 3
    for snippet in snippets:
        # What the garbage collector closes, pytest warns of.
        names: dict[str, Any] = {"images": images_BHWC, "open": read_text}
        with torch.no_grad():
            exec(snippet, names)
        np.testing.assert_allclose(np.asarray(names["logits"]), expected_BK, atol=1e-5)
        assert names.get("classes", list(CLASSES)) == list(CLASSES)


def test_classes_are_inside_each_format(exported: Path) -> None:
    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
        of_safetensors = file.metadata()
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    of_onnx = session.get_modelmeta().custom_metadata_map
    of_torch: dict[str, Any] = dict.fromkeys(("classes", "size_px"), "")
    torch.export.load(exported / "model.pt2", extra_files=of_torch)

    for metadata in (of_safetensors, of_onnx, of_torch):
        assert json.loads(metadata["classes"]) == list(CLASSES)
        assert json.loads(metadata["size_px"]) == SIZE_PX
    assert session.get_inputs()[0].shape[1:] == [SIZE_PX, SIZE_PX, 3]
    assert isinstance(session.get_inputs()[0].shape[0], str)
    config = json.loads((exported / "config.json").read_bytes())
    assert config["classes"] == list(CLASSES) and config["mean"] == [0.5, 0.5, 0.5]


def test_the_card_as_hugging_face_reads_it(exported: Path) -> None:
    content = (exported / "README.md").read_text()
    card = ModelCard(content)
    values = card.data.to_dict()
    results = getattr(card.data, "eval_results", None) or []
    accuracies = {result.metric_name: result.metric_value for result in results}

    assert values["library_name"] == "pytorch"
    assert values["pipeline_tag"] == "image-classification"
    assert values["datasets"] == ["cars"] and "license" not in values
    assert accuracies == {"top-1 accuracy": 0.875, "top-5 accuracy": 1.0}
    assert "| test (16) | top-1 | 0.8750 |" in content
    assert "| validation | top-1 | 0.7500 |" in content
    assert "fingerprint `0123abcd`" in content and "| optim.learning_rate | 0.001 |" in content
    assert "alice" not in content  # nobody's folders are published
    for line in content.splitlines():
        assert not line.startswith("|") or line.count("|") in (3, 4)


def test_a_single_image_at_a_time_by_default_and_what_stood_there_goes(
    run: str, exported: Path, tmp_path: Path, images_BHWC: np.ndarray
) -> None:
    wanted: tuple[tuple[Format, str], ...] = (("onnx", "model.onnx"), ("torch_export", "model.pt2"))
    for format_name, file in wanted:
        files = export.export(
            ExportConfig(run=run, out=str(tmp_path / "out"), formats=(format_name,))
        )
        assert files[format_name].max_difference < 1e-5
        assert {f.name for f in (tmp_path / "out").iterdir()} == {file, "config.json", "README.md"}
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert program(torch.tensor(images_BHWC[:1])).shape == (1, 3)
    with pytest.raises(AssertionError):
        program(torch.tensor(images_BHWC))


def test_a_file_that_computes_something_else_is_removed(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = formats.EXPORTERS["safetensors"].write

    def write_wrong(subject: formats.Subject) -> bytes:
        _, _, model = load_best_model(run)
        torch.nn.init.ones_(model.get_parameter("classifier.1.bias"))
        return write(replace(subject, model=model))

    wrong = replace(formats.EXPORTERS["safetensors"], write=write_wrong)
    monkeypatch.setitem(formats.EXPORTERS, "safetensors", wrong)

    with pytest.raises(ValueError, match=r"differ by 1.*, more than 0\.001: it was removed"):
        export.export(ExportConfig(run=run, out=str(tmp_path), formats=("safetensors",)))
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert MAX_DIFFERENCE == 1e-3


def test_what_others_wrote_stays(run: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")

    for out in (str(tmp_path), run):
        with pytest.raises(ValueError, match=r"stands there that no export wrote"):
            export.export(ExportConfig(run=run, out=out, formats=("safetensors",)))
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "model" in json.loads((Path(run) / "config.json").read_text())


def test_missing_packages_are_named_with_the_command(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Callable[[str], Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )

    with pytest.raises(ValueError, match=r"needs onnxscript; pip install 'onnxscript>=0.7,<0.8'"):
        export.export(ExportConfig(run=run, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_extra_lists_what_onnx_needs() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]

    assert extras["export"] == list(formats.ONNX_PACKAGES.values())
