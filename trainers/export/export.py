"""Exports a run's best network; each file is loaded back and compared with the original.

OUT/model.safetensors   tensors; OUT/config.json has the network's name, classes and pixels
OUT/model.onnx          for onnxruntime and other readers of ONNX
OUT/model.pt2           for torch.export.load
OUT/model_int8.onnx, model_fp16.onnx    smaller, with their accuracy in the model card
OUT/hf                  a folder that timm loads, as Hugging Face's Hub has them
OUT/README.md           the model card, written last

All are made and compared in a temporary folder first: an earlier export stays until then.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from cluster.entry import ROOT
from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.lease import hold_lease
from cluster.io.terminal import report
from cluster.provenance import find_commit
from trainers.export.config import QUANTIZED, ExportConfig
from trainers.export.folder import CARD, HF_CARD, HF_FILES, find_earlier, list_files, publish
from trainers.export.formats import (
    EXPORTERS,
    Exporter,
    Run,
    Subject,
    load_onnx,
    require_onnx,
)
from trainers.export.model_card import CardFacts, FileFacts, write_card
from trainers.run.calibration import describe_missing, read_calibration
from trainers.run.combination import list_backbones, read_combination
from trainers.run.ensemble import Ensemble
from trainers.run.evaluations import read_evaluation
from trainers.run.folder import load_best_model
from trainers.step.settings import step_settings
from trainers.step.step import predict

if TYPE_CHECKING:
    from trainers.export.quantize import MeasuredImages

MAX_DIFFERENCE = 1e-3
"""How far a logit may be from the original's."""
_NUM_COMPARED = 4
ONE_NETWORK = {"safetensors", "hf"}
"""Formats that others load by the name of a network."""


def export(config: ExportConfig) -> dict[str, FileFacts]:
    """Write a run's best network to `config.out`; return the facts of each file by format.

    Raises:
        UserError: where there is no such run, a package is missing, `out` has files of others, or a
            file computes other logits than the original; nothing is written or deleted then. Last,
            where the upload fails.
    """
    _require_packages(config)
    run = storage.absolute(config.run, "run")
    out = storage.absolute(config.out, "out")
    training, progress, model = load_best_model(run, ensembles=True)
    is_ensemble = isinstance(model, Ensemble)
    require(
        not is_ensemble or not set(config.formats) & ONE_NETWORK,
        "formats",
        config.formats,
        "an ensemble is several networks: use --formats onnx torch_export",
    )
    settings = step_settings(training, torch.device("cpu"))
    calibration = read_calibration(run, progress.global_step)
    if calibration is None and progress.validated:
        gain = "first adds a temperature and `unknown` to the files"
        report(describe_missing(config.run, gain), warning=True)
    subject = Subject(
        model=model,
        config=training,
        classes=progress.classes,
        settings=replace(settings, autocast_dtype=None),
        dynamic_batch=config.dynamic_batch,
        calibration=calibration and calibration.summarize(config.refused),
        backbones=list_backbones(run, training) if is_ensemble else (),
        combined=read_combination(run),
    )
    facts = CardFacts(
        config=training,
        progress=progress,
        files={},
        preprocessing=subject.describe(),
        dynamic_batch=config.dynamic_batch,
        calibration=calibration,
        evaluation=read_evaluation(
            run, "test", epoch=progress.epoch, fingerprint=progress.fingerprint
        ),
        commit=find_commit(ROOT),
        backbones=subject.backbones,
        combined=subject.combined,
    )
    files = list_files(config)
    earlier = find_earlier(out, files)
    with tempfile.TemporaryDirectory() as staged:
        facts = _write(config, subject, facts, staged)
        publish(staged, out, subject.describe(), files, earlier)
        if config.push is not None:
            from trainers.export.hugging_face import push_folder

            print(f"Uploaded      {push_folder(config.push, storage.join(staged, 'hf'))}")
    return {**facts.files}


def _write(config: ExportConfig, subject: Subject, facts: CardFacts, out: str) -> CardFacts:
    """Write all files of an export to a folder, the card last; return the facts with theirs."""
    images: MeasuredImages | None = None
    if "hf" in config.formats:
        from trainers.export.hugging_face import require_in_timm

        require_in_timm(subject)
    if set(config.formats) & QUANTIZED.keys():
        from trainers.export.quantize import open_images

        images = open_images(subject.config, facts.progress, config.data)
    files = {
        name: _export_to(EXPORTERS[name], subject, out)
        for name in config.formats
        if name in EXPORTERS
    }
    if images is not None:
        files |= _export_quantized(config, subject, images, out)
    facts = replace(facts, files=files)
    if "hf" in config.formats:
        facts = replace(facts, files={**files, "hf": _export_folder(facts, subject, out)})
    storage.write_bytes(storage.join(out, CARD), write_card(facts).encode())
    return facts


def _require_packages(config: ExportConfig) -> None:
    if any(name.startswith("onnx") for name in config.formats):
        require_onnx()
    if config.push is not None:
        from trainers.export.hugging_face import require_token

        require_token()


def _export_folder(facts: CardFacts, subject: Subject, out: str) -> FileFacts:
    """Write the folder that timm loads, load it back and compare it."""
    from trainers.export import hugging_face

    contents = hugging_face.write_folder(subject)
    found = _keep(
        subject, out, dict(zip(HF_FILES, contents, strict=True)), hugging_face.load_folder
    )
    card = write_card(replace(facts, files={"hf": found}), folder=".").encode()
    storage.write_bytes(storage.join(out, HF_CARD), card)
    return found


def _export_quantized(
    config: ExportConfig, subject: Subject, images: "MeasuredImages", out: str
) -> dict[str, FileFacts]:
    """Write the smaller files, and measure them and the original on the same images.

    Raises:
        UserError: where one has lost more than `max_drop` of top-1.
    """
    from trainers.export.quantize import measure_onnx, quantize

    original = EXPORTERS["onnx"].write(subject)
    before = measure_onnx(original, images)
    report(f"onnx: top-1 {before.top1:.4f} on {before.images}")
    files: dict[str, FileFacts] = {}
    if "onnx" in config.formats:
        files["onnx"] = replace(_export_to(EXPORTERS["onnx"], subject, out), measured=before)
    for name in (name for name in QUANTIZED if name in config.formats):
        content = quantize(name, original, images, num_images=config.quantization_images)
        after = measure_onnx(content, images)
        if before.top1 - after.top1 > config.max_drop:
            raise UserError(
                f"max_drop is {config.max_drop}: top-1 of {name} is {after.top1:.4f}, of onnx "
                f"{before.top1:.4f} on {before.images}; leave {name} out of --formats, give more "
                "--quantization-images, or allow a larger drop"
            )
        found = _keep(
            subject, out, {QUANTIZED[name]: content}, lambda read: load_onnx(read[0]), bound=None
        )
        files[name] = replace(found, measured=after)
    return files


def _export_to(exporter: Exporter, subject: Subject, out: str) -> FileFacts:
    contents = {exporter.file: exporter.write(subject)}
    return _keep(subject, out, contents, lambda read: exporter.load(read[0]))


def _keep(
    subject: Subject,
    out: str,
    contents: Mapping[str, bytes],
    load: Callable[[list[bytes]], Run],
    *,
    bound: float | None = MAX_DIFFERENCE,
) -> FileFacts:
    """Write files, load them back from where they were written and compare them; the first one is
    the network."""
    for file, content in contents.items():
        storage.write_bytes(storage.join(out, file), content)
    read = [storage.read_bytes(storage.join(out, file)) for file in contents]
    difference = compare(subject, load(read))
    if bound is not None and not difference <= bound:  # nor is NaN
        raise UserError(
            f"formats has {next(iter(contents))}: it computed logits that differ by "
            f"{difference:.1e} from the original's, more than {bound}; nothing was exported; leave "
            "this format out of --formats"
        )
    return FileFacts(file=next(iter(contents)), num_bytes=len(read[0]), max_difference=difference)


@torch.inference_mode()
def compare(subject: Subject, run: Run) -> float:
    """Return the largest absolute difference of logits, over random images."""
    size_px = subject.config.ingest.size_px
    shape = (_NUM_COMPARED, size_px, size_px, 3)
    noise = torch.Generator().manual_seed(0)
    images_BHWC = torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)
    expected_BK = predict(subject.model, images_BHWC, subject.settings)
    batches = images_BHWC.split(_NUM_COMPARED if subject.dynamic_batch else 1)
    logits_BK = torch.cat([run(images) for images in batches])
    return float((logits_BK - expected_BK).abs().max())


def run_export(config: ExportConfig) -> None:
    """Export, and print each file and its largest difference."""
    with hold_lease(config.out):
        files = export(config)
    for name, facts in files.items():
        line = (
            f"{name:<13} {storage.join(config.out, facts.file)}, {facts.num_bytes / 2**20:.1f} "
            f"MiB, largest difference of a logit {facts.max_difference:.1e}"
        )
        if (found := facts.measured) is not None:
            line += f"; top-1 {found.top1:.4f} on {found.images}, {found.ms:.1f} ms each"
        print(line)
    print(f"Model card    {storage.join(config.out, CARD)}")
