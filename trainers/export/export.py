"""Exports a run's best network; each file is loaded back and compared with the original.

OUT/model.safetensors   tensors; OUT/config.json has the network's name, classes and pixels
OUT/model.onnx          for onnxruntime and other readers of ONNX
OUT/model.pt2           for torch.export.load
OUT/model_int8.onnx, model_fp16.onnx    smaller, with their accuracy in the model card
OUT/hf                  a folder that timm loads, as Hugging Face's Hub has them
OUT/README.md           the model card, written last
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from cluster.entry import ROOT
from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.lease import hold_lease
from cluster.io.records import read_json
from cluster.io.terminal import report
from cluster.provenance import find_commit
from trainers.export.config import ExportConfig
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
from trainers.run.ensemble import Ensemble
from trainers.run.evaluations import read_evaluation
from trainers.run.folder import load_best_model
from trainers.step.settings import step_settings
from trainers.step.step import predict

CARD, CONFIG, MARK = "README.md", "config.json", {"exported_by": "Thaw"}
MAX_DIFFERENCE = 1e-3
"""How far a logit may be from the original's."""
_NUM_COMPARED = 4
HF_FILES: tuple[str, ...] = ("hf/model.safetensors", "hf/config.json")
ONE_NETWORK = {"safetensors", "hf"}
"""Formats that others load by the name of a network."""
QUANTIZED = {"onnx_int8": "model_int8.onnx", "onnx_fp16": "model_fp16.onnx"}


def export(config: ExportConfig) -> dict[str, FileFacts]:
    """Write a run's best network to `config.out`; return the facts of each file by format.

    Raises:
        UserError: where there is no such run, a package is missing, or a file, then deleted,
            computes other logits than the original.
    """
    _require_packages(config)
    run = storage.absolute(config.run, "run")
    out = storage.absolute(config.out, "out")
    training, progress, model = load_best_model(run, ensembles=True)
    require(
        not isinstance(model, Ensemble) or not set(config.formats) & ONE_NETWORK,
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
    )
    _clear(out)
    text = json.dumps({**MARK, **subject.describe()}, indent=1)
    storage.write_bytes(storage.join(out, CONFIG), text.encode())
    files = {
        name: _export_to(EXPORTERS[name], subject, out)
        for name in config.formats
        if name in EXPORTERS
    }
    if set(config.formats) & QUANTIZED.keys():
        files |= _export_quantized(config, subject, out)
    facts = CardFacts(
        config=training,
        progress=progress,
        files=files,
        preprocessing=subject.describe(),
        dynamic_batch=config.dynamic_batch,
        calibration=calibration,
        evaluation=read_evaluation(
            run, "test", epoch=progress.epoch, fingerprint=progress.fingerprint
        ),
        commit=find_commit(ROOT),
    )
    if "hf" in config.formats:
        files["hf"] = _export_folder(facts, subject, out, config.push)
    facts = replace(facts, files=files)
    storage.write_bytes(storage.join(out, CARD), write_card(facts).encode())
    return files


def _require_packages(config: ExportConfig) -> None:
    if any(name.startswith("onnx") for name in config.formats):
        require_onnx()
    if config.push is not None:
        from trainers.export.hugging_face import require_token

        require_token()


def _export_folder(facts: CardFacts, subject: Subject, out: str, push: str | None) -> FileFacts:
    """Write the folder that timm loads, load it back and compare it; upload it to `push`."""
    from trainers.export import hugging_face

    contents = hugging_face.write_folder(subject)
    found = _keep(
        subject, out, dict(zip(HF_FILES, contents, strict=True)), hugging_face.load_folder
    )
    card = write_card(replace(facts, files={"hf": found}), folder=".").encode()
    storage.write_bytes(storage.join(out, f"hf/{CARD}"), card)
    if push is not None:
        files: dict[str, bytes] = dict(zip((*HF_FILES, CARD), (*contents, card), strict=True))
        print(f"Uploaded      {hugging_face.push_folder(push, files)}")
    return found


def _export_quantized(config: ExportConfig, subject: Subject, out: str) -> dict[str, FileFacts]:
    """Write the smaller files, and measure them and the original on the same images.

    Raises:
        UserError: where one, then deleted, has lost more than `max_drop` of top-1.
    """
    from trainers.export.quantize import measure_onnx, quantize

    original = EXPORTERS["onnx"].write(subject)
    before = measure_onnx(original, subject)
    report(f"onnx: top-1 {before.top1:.4f} on {before.num_images} {before.split} images")
    files: dict[str, FileFacts] = {}
    if "onnx" in config.formats:
        files["onnx"] = replace(_export_to(EXPORTERS["onnx"], subject, out), measured=before)
    for name in (name for name in QUANTIZED if name in config.formats):
        content = quantize(name, original, subject, num_images=config.quantization_images)
        after = measure_onnx(content, subject)
        if before.top1 - after.top1 > config.max_drop:
            raise UserError(
                f"max_drop is {config.max_drop}: top-1 of {name} is {after.top1:.4f}, of onnx "
                f"{before.top1:.4f} on the {before.num_images} {before.split} images; leave {name} "
                "out of --formats, give more --quantization-images, or allow a larger drop"
            )
        found = _keep(
            subject, out, {QUANTIZED[name]: content}, lambda read: load_onnx(read[0]), bound=None
        )
        files[name] = replace(found, measured=after)
    return files


def _clear(out: str) -> None:
    """Delete an earlier export; other files stay.

    Raises:
        UserError: where a README.md or config.json is not of an export.
    """
    try:
        config = read_json(storage.join(out, CONFIG))
        ours = isinstance(config, dict) and config.items() >= MARK.items()
    except FileNotFoundError:
        ours = not storage.exists(storage.join(out, CARD))
    except ValueError:
        ours = False
    require(
        ours,
        "out",
        out,
        f"it has a {CARD} or {CONFIG} that no export wrote; use another folder",
    )
    # First the card: from here on there is no whole export.
    written = (exporter.file for exporter in EXPORTERS.values())
    for file in (CARD, *written, *QUANTIZED.values(), f"hf/{CARD}", *HF_FILES):
        storage.delete_file(storage.join(out, file))


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
        for file in contents:
            storage.delete_file(storage.join(out, file))
        raise UserError(
            f"{storage.join(out, next(iter(contents)))} computed logits that differ by "
            f"{difference:.1e} from the original's, more than {bound}: it was removed; leave this "
            "format out of --formats"
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
            line += f"; {found.split} top-1 {found.top1:.4f}, {found.ms:.1f} ms an image"
        print(line)
    print(f"Model card    {storage.join(config.out, CARD)}")
