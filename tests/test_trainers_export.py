"""Each format computes what the run's network does, and the card's own lines load it."""

import importlib.util
import io
import json
import re
import shutil
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
import timm
import torch
from huggingface_hub import ModelCard

from cluster.io import storage
from datasets.manifest_file import read_manifest
from tests.support.calibration import CALIBRATION
from tests.support.data import WriteData, find_shard, flip_byte
from trainers.config import FinetuneConfig, IngestConfig, ModelConfig, ScheduleConfig
from trainers.export import formats
from trainers.export.config import ExportConfig, Format
from trainers.export.export import export, run_export
from trainers.export.hugging_face import SAME_IN_TIMM
from trainers.export.model_card import CardFacts, Measured, write_card
from trainers.networks.backbones import build, find, on_meta
from trainers.networks.weights.initialization import initialize
from trainers.run import checkpoint
from trainers.run.calibration import write_calibration
from trainers.run.checkpoint import TrainingProgress
from trainers.run.evaluations import read_evaluation
from trainers.run.folder import load_best_model

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("Audi S6 Sedan 2011", 'smart "fortwo" 2012', "BMW M3 Coupé")
SIZE_PX = 48
MEASURED = {"test/top1": 1.0, "test/top5": 1.0, "num_images": 13}
FILES = {"model.safetensors", "model.onnx", "model.pt2", "config.json", "README.md"}


def write_run(
    config: FinetuneConfig, evaluation: dict[str, Any], fingerprint: str = "0123abcd"
) -> str:
    """Write a run folder whose network has statistics of images, and logits that matter."""
    size_px, backbone = config.ingest.size_px, config.model.backbone
    initialize(model := build(backbone, len(CLASSES)), config.model, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3):
            model(torch.randn(8, 3, size_px, size_px))
    progress = TrainingProgress(
        epoch=2, val_top1=0.75, best_epoch=2, classes=CLASSES, fingerprint=fingerprint, total_s=12.3
    )
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    checkpoint.save(config.out, {checkpoint.MODEL: safetensors.torch.save(tensors)}, progress)
    for name, values in (("config", config.to_dict()), ("evaluation_test", evaluation)):
        storage.write_bytes(storage.join(config.out, f"{name}.json"), json.dumps(values).encode())
    return config.out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of a MobileNetV2, evaluated."""
    config = FinetuneConfig(
        data="/home/alice/photographs/cars",
        out=str(tmp_path_factory.mktemp("runs") / "cars"),
        ingest=IngestConfig(size_px=SIZE_PX),
        model=ModelConfig(backbone="mobilenet_v2", init="he", normalization="half"),
    )
    of_checkpoint = {"epoch": 2, "fingerprint": "0123abcd"}
    measured = {"test/top1": 0.875, "test/top5": 1.0, "test/loss": 0.5, "num_images": 16}
    write_calibration(config.out, 0, CALIBRATION)
    return write_run(config, {**of_checkpoint, **measured})


@pytest.fixture(scope="module")
def staged_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run folder of a LeNet-5 trained in two phases, evaluated on other data."""
    config = FinetuneConfig(
        data="cars",
        out=str(tmp_path_factory.mktemp("runs") / "staged"),
        ingest=IngestConfig(size_px=32),
        model=ModelConfig(backbone="lenet5", init="xavier", normalization="half"),
        schedule=ScheduleConfig(phases=(("all", 1, 1e-3), (0, 2, 1e-4))),
    )
    return write_run(config, {"epoch": 2, "fingerprint": "of others", **MEASURED})


@pytest.fixture(scope="module")
def exported(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    run_export(ExportConfig(run=run, out=str(folder), dynamic_batch=True))
    return folder


def draw_images(size_px: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, size_px, size_px, 3), np.uint8)


@torch.no_grad()
def logits_of(run: str, images_BHWC: np.ndarray) -> np.ndarray:
    """By plain torch, pixels normalized by hand."""
    _, _, model = load_best_model(run)
    return model((torch.tensor(images_BHWC) / 127.5 - 1).permute(0, 3, 1, 2)).numpy()


def read_text(path: str) -> io.StringIO:
    return io.StringIO(Path(path).read_text())


def check_snippets(folder: Path, run: str, images_BHWC: np.ndarray) -> int:
    """Run each snippet of the card, compare its logits with the run's, and count them."""
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    expected_BK = logits_of(run, images_BHWC)
    assert np.abs(expected_BK).max() > 0.1
    for snippet in snippets:
        # What the garbage collector closes, pytest warns of.
        names: dict[str, Any] = {"images": images_BHWC, "open": read_text, "logits": expected_BK}
        with torch.no_grad():
            exec(snippet, names)
        np.testing.assert_allclose(np.asarray(names["logits"]), expected_BK, atol=1e-5)
        if "probabilities" in names:
            probabilities_BK = CALIBRATION.probabilities(expected_BK)
            np.testing.assert_allclose(names["probabilities"], probabilities_BK, rtol=1e-5)
            assert names["is_unknown"].tolist() == [False] * len(images_BHWC)
        assert names.get("classes", list(CLASSES)) == list(CLASSES)
    return len(snippets)


def test_each_snippet_of_the_card_computes_what_the_run_does(
    run: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported)

    assert {file.name for file in exported.iterdir()} == FILES
    assert check_snippets(exported, run, draw_images(SIZE_PX)) == 4
    assert "clone" not in (exported / "README.md").read_text()


def test_the_card_of_a_staged_run_of_a_network_torchvision_lacks(
    staged_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(ExportConfig(run=staged_run, out=str(tmp_path), formats=("safetensors",)))
    content = (tmp_path / "README.md").read_text()
    monkeypatch.chdir(tmp_path)

    assert check_snippets(tmp_path, staged_run, draw_images(32)) == 1
    assert "run in a clone of Thaw. The other" in content
    assert "| schedule.phases |" in content
    for replaced in ("epochs", "model.freeze_depth", "optim.learning_rate"):
        assert f"| {replaced} |" not in content
    assert "| test | not measured |" in content and "1.0000" not in content
    assert getattr(ModelCard(content).data, "eval_results", None) is None


def test_an_evaluation_is_of_one_checkpoint_and_one_data_set(run: str) -> None:
    known = read_evaluation(run, "test", epoch=2, fingerprint="0123abcd")

    assert known is not None and known["test/top1"] == 0.875
    assert read_evaluation(run, "test", epoch=3, fingerprint="0123abcd") is None
    assert read_evaluation(run, "test", epoch=2, fingerprint="4567") is None
    assert read_evaluation(run, "val", epoch=2, fingerprint="0123abcd") is None


def test_an_evaluation_with_other_names_of_classes_is_not_that_of_the_run(tmp_path: Path) -> None:
    content = {"epoch": 2, "fingerprint": "f", "num_images": 8, "test/top1": 0.5, "test/top5": 1.0}
    for renamed, is_known in (([], True), (["bus=car"], False)):
        text = json.dumps({**content, "map": renamed})
        (tmp_path / "evaluation_test.json").write_text(text)
        known = read_evaluation(str(tmp_path), "test", epoch=2, fingerprint="f")
        assert (known is not None) == is_known


def test_classes_are_inside_each_format(exported: Path) -> None:
    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
        of_safetensors = file.metadata()
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    of_onnx = session.get_modelmeta().custom_metadata_map
    of_torch: dict[str, Any] = dict.fromkeys(("classes", "size_px", "calibration"), "")
    torch.export.load(exported / "model.pt2", extra_files=of_torch)

    for metadata in (of_safetensors, of_onnx, of_torch):
        assert json.loads(metadata["classes"]) == list(CLASSES)
        assert json.loads(metadata["size_px"]) == SIZE_PX
    assert session.get_inputs()[0].shape[1:] == [SIZE_PX, SIZE_PX, 3]
    assert isinstance(session.get_inputs()[0].shape[0], str)
    config = json.loads((exported / "config.json").read_bytes())
    assert config["classes"] == list(CLASSES) and config["mean"] == [0.5, 0.5, 0.5]
    assert config["calibration"] == CALIBRATION.summarize(0.05)
    assert json.loads(of_torch["calibration"]) == config["calibration"]


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
    assert "| validation (40, each by the others) | ECE after calibration | 0.0100 |" in content
    assert "fingerprint `0123abcd`" in content and "| optim.learning_rate | 0.001 |" in content
    assert "alice" not in content  # no local folders are published
    for line in content.splitlines():
        assert not line.startswith("|") or line.count("|") in (3, 4)


def card_facts(config: FinetuneConfig, progress: TrainingProgress, **values: Any) -> CardFacts:
    """Facts of an export without files, calibration and test."""
    return CardFacts(
        config=config,
        progress=progress,
        files={},
        preprocessing={"mean": 0.5, "std": 0.5, "calibration": None},
        calibration=None,
        dynamic_batch=True,
        evaluation=None,
        commit=None,
        **values,
    )


def test_the_card_of_a_run_without_validation_says_so() -> None:
    facts = card_facts(
        FinetuneConfig(data="cars", train_on="train+val"),
        TrainingProgress(epoch=3, classes=CLASSES),
    )

    assert "| validation | top-1 | not measured: they train too |" in write_card(facts)
    assert "| train_on | train+val |" in write_card(facts)


def test_hostile_class_names_are_text(run: str) -> None:
    training, progress, _ = load_best_model(run)
    classes = ("<script>", "{{ 7 * 7 }}", "a|b\n## c", "[x](http://y)", "---")
    card = write_card(
        CardFacts(
            config=training,
            progress=replace(progress, classes=classes),
            files={},
            preprocessing={"mean": 0.5, "std": 0.5, "calibration": None},
            calibration=None,
            dynamic_batch=True,
            evaluation=None,
            commit=None,
        )
    )

    names = r"\<script\>, {{ 7 \* 7 }}, a\|b ## c, \[x\](http://y), ---"
    assert f"An image classifier of 5 classes ({names}; all in" in card
    assert "\n## c" not in card and ModelCard(card).data.to_dict()["datasets"] == ["cars"]


def test_the_card_names_the_commit_of_an_image_without_a_repository(
    staged_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.export.export.ROOT", tmp_path)
    monkeypatch.setenv("THAW_COMMIT", "0123456789abcdef")
    export(ExportConfig(run=staged_run, out=str(tmp_path / "out"), formats=("safetensors",)))

    card = (tmp_path / "out" / "README.md").read_text()
    assert "| exported by Thaw at commit | `0123456789abcdef` |" in card


def test_a_single_image_at_a_time_by_default_and_what_stood_there_goes(
    staged_run: str, tmp_path: Path
) -> None:
    images_BHWC = draw_images(32)
    wanted: tuple[tuple[Format, str], ...] = (("onnx", "model.onnx"), ("torch_export", "model.pt2"))
    for format_name, file in wanted:
        files = export(
            ExportConfig(run=staged_run, out=str(tmp_path / "out"), formats=(format_name,))
        )
        assert files[format_name].max_difference < 1e-5
        assert {f.name for f in (tmp_path / "out").iterdir()} == {file, "config.json", "README.md"}
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert program(torch.tensor(images_BHWC[:1])).shape == (1, 3)
    with pytest.raises(AssertionError):
        program(torch.tensor(images_BHWC))


def test_a_file_that_computes_something_else_is_removed(
    staged_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = formats.EXPORTERS["safetensors"].write

    def write_wrong(subject: formats.Subject) -> bytes:
        _, _, model = load_best_model(staged_run)
        torch.nn.init.ones_(model.get_parameter("head.bias"))
        return write(replace(subject, model=model))

    wrong = replace(formats.EXPORTERS["safetensors"], write=write_wrong)
    monkeypatch.setitem(formats.EXPORTERS, "safetensors", wrong)

    with pytest.raises(ValueError, match=r"differ by 1.*, more than 0\.001; nothing was exported"):
        export(ExportConfig(run=staged_run, out=str(tmp_path), formats=("safetensors",)))
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_kept(run: str, tmp_path: Path) -> None:
    """A card, a run, a checkpoint, and weights beside an export that wrote others."""
    (tmp_path / "README.md").write_text("mine")
    mine, theirs = tmp_path / "mine", (tmp_path / "out", tmp_path / "mixed")
    mine.mkdir()
    (mine / "model.safetensors").write_bytes(b"mine")
    for folder in theirs:
        shutil.copytree(mine, folder)
    written = {"exported_by": "Thaw", "files": ["model.onnx"]}
    (theirs[1] / "config.json").write_text(json.dumps(written))
    step = checkpoint.folder(run, 0)

    for out, file in (
        (tmp_path, "README.md"),
        (run, "config.json"),
        (step, "model.safetensors"),
        (theirs[0], "model.safetensors"),
        (theirs[1], "model.safetensors"),
    ):
        with pytest.raises(ValueError, match=f"it has a {file} that no export wrote; use another"):
            export(ExportConfig(run=run, out=str(out), formats=("safetensors",)))
    assert (tmp_path / "README.md").read_text() == "mine"
    assert all((folder / "model.safetensors").read_bytes() == b"mine" for folder in theirs)
    assert "model" in json.loads((Path(run) / "config.json").read_text())


def test_an_earlier_export_stays_until_the_new_one_is_made(staged_run: str, tmp_path: Path) -> None:
    config = ExportConfig(run=staged_run, out=str(tmp_path), formats=("safetensors",))
    export(config)
    older = json.loads((tmp_path / "config.json").read_text())
    del older["files"]  # as of an older Thaw
    (tmp_path / "config.json").write_text(json.dumps(older))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert before.keys() == {"config.json", "README.md", "model.safetensors"}

    refused: tuple[tuple[Format, ...], ...] = (("safetensors", "hf"), ("onnx", "onnx_int8"))
    for formats_refused in refused:  # timm lacks the network; there is no data set
        with pytest.raises(ValueError, match=r"^(formats|data) is "):
            export(replace(config, formats=formats_refused))
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    export(config)
    assert json.loads((tmp_path / "config.json").read_text())["files"] == ["model.safetensors"]


def test_missing_packages_are_named_with_the_command(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Callable[[str], Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )

    with pytest.raises(ValueError, match=r"needs onnxscript; pip install 'onnxscript>=0.7,<0.8'"):
        export(ExportConfig(run=run, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_network_of_2_gib_has_no_onnx_file() -> None:
    model = torch.nn.Linear(2**15, 2**14, bias=False, device="meta")
    unused: Any = None
    subject = formats.Subject(
        model=model, config=unused, classes=CLASSES, settings=unused, dynamic_batch=True
    )
    with pytest.raises(ValueError, match=r"^the network has 2\.00 GiB of weights: .*safetensors"):
        formats.EXPORTERS["onnx"].write(subject)


def test_the_extra_lists_what_onnx_needs() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]

    assert extras["export"] == list(formats.ONNX_PACKAGES.values())


def test_timm_loads_the_folder_for_hugging_face(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[tuple[str, set[str]]] = []

    class Hub:
        def create_repo(self, repository: str, **_: Any) -> str:
            return f"https://hub/{repository}"

        def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> None:
            assert (tmp_path / "README.md").exists(), "the export is complete"
            uploads.append((repo_id, {file.name for file in Path(folder_path).iterdir()}))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    config = ExportConfig(run=run, out=str(tmp_path), formats=("hf",), push="cars/mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match=r"^push needs a token of Hugging Face"):
        export(config)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    export(config)
    folder = tmp_path / "hf"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
    images_BHWC = draw_images(SIZE_PX)

    with torch.no_grad():
        logits_BK = model((torch.tensor(images_BHWC) / 127.5 - 1).permute(0, 3, 1, 2))
    np.testing.assert_allclose(logits_BK.numpy(), logits_of(run, images_BHWC), atol=1e-4)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    assert model.pretrained_cfg["input_size"] == (3, SIZE_PX, SIZE_PX)
    assert ModelCard((folder / "README.md").read_text()).data.to_dict()["library_name"] == "timm"
    assert uploads == [("cars/mine", {"config.json", "model.safetensors", "README.md"})]
    for at in (tmp_path, folder):
        monkeypatch.chdir(at)
        assert check_snippets(at, run, images_BHWC) == 2


def test_a_network_that_timm_lacks_has_no_folder(staged_run: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^formats is 'hf': timm has no network .* lenet5"):
        export(ExportConfig(run=staged_run, out=str(tmp_path), formats=("hf",)))
    with pytest.raises(ValueError, match=r"^push is 'a/b': only the format hf"):
        ExportConfig(run="r", out="o", push="a/b")


def test_smaller_files_are_measured_and_refused_where_they_lose_accuracy(
    write_data: WriteData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(
        data=write_data(),
        out=str(tmp_path / "run"),
        ingest=IngestConfig(size_px=32, max_bad_fraction=0.1),
        model=ModelConfig(backbone="lenet5", init="he", normalization="half"),
    )
    flip_byte(find_shard(config.data, "test"), 11, at=300)
    fingerprint, out = read_manifest(config.data).fingerprint, tmp_path / "o"
    run = write_run(config, {"epoch": 2, "fingerprint": "of others", **MEASURED}, fingerprint)
    small = ExportConfig(
        run=run, out=str(out), formats=("onnx", "onnx_int8", "onnx_fp16"), max_drop=0.99
    )
    files = export(small)
    images_BHWC = draw_images(32)
    expected_BK = logits_of(run, images_BHWC)

    for name, tolerance in (("int8", 0.1), ("fp16", 0.01)):
        session = onnxruntime.InferenceSession(out / f"model_{name}.onnx")
        logits_BK = np.concatenate([session.run(None, {"images": i[None]})[0] for i in images_BHWC])
        assert np.abs(logits_BK - expected_BK).max() < tolerance * np.abs(expected_BK).max()
        assert files[f"onnx_{name}"].num_bytes < (0.35 if name == "int8" else 0.6) * (
            files["onnx"].num_bytes
        )
    card = (out / "README.md").read_text()
    for found in files.values():
        assert found.measured is not None and found.measured.num_images == 12
        assert f"| `{found.file}` | {found.measured.top1:.4f} | {found.measured.ms:.1f} |" in card
    assert "On 12 test images (1 more could not be read), one at a time" in card
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    measured = iter(
        [Measured(top1=top1, ms=1.0, split="test", num_images=13) for top1 in (0.9, 0.8)]
    )
    monkeypatch.setattr("trainers.export.quantize.measure_onnx", lambda *_: next(measured))
    with pytest.raises(ValueError, match=r"^max_drop is 0.05: top-1 of onnx_int8 is 0.8000"):
        export(replace(small, max_drop=0.05))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_networks_that_are_timms_too_have_its_layers_in_its_order() -> None:
    """On the meta device; that each computes the same is checked at every export."""
    for name, architecture in SAME_IN_TIMM.items():
        aux = find(name).aux
        given = [
            tensor.numel()
            for tensor_name, tensor in on_meta(name, 7).state_dict().items()
            if aux is None or not tensor_name.startswith(f"{aux}.")
        ]
        with torch.device("meta"):
            theirs = timm.create_model(architecture, num_classes=7)

        assert given == [tensor.numel() for tensor in theirs.state_dict().values()], name
