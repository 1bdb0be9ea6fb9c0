"""Exports a run's best network; each file is loaded back and compared with the original.

OUT/model.safetensors   tensors; OUT/config.json has the network's name, classes and pixels
OUT/model.onnx          for onnxruntime and other readers of ONNX
OUT/model.pt2           for torch.export.load
OUT/README.md           the model card, written last
"""

import json
import shlex
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
from trainers.export.formats import EXPORTERS, Exporter, Run, Subject, require_onnx
from trainers.export.model_card import CardFacts, FileFacts, write_card
from trainers.run.calibration import read_calibration
from trainers.run.evaluations import read_evaluation
from trainers.run.folder import load_best_model
from trainers.settings import step_settings
from trainers.step import predict

CARD, CONFIG, MARK = "README.md", "config.json", {"exported_by": "Thaw"}
MAX_DIFFERENCE = 1e-3
"""How far a logit may be from the original's."""
_NUM_COMPARED = 4


def export(config: ExportConfig) -> dict[str, FileFacts]:
    """Write a run's best network to `config.out`; return the facts of each file by format.

    Raises:
        UserError: where there is no such run, a package is missing, or a file, then deleted,
            computes other logits than the original.
    """
    if "onnx" in config.formats:
        require_onnx()
    run = storage.absolute(config.run, "run")
    out = storage.absolute(config.out, "out")
    training, progress, model = load_best_model(run)
    settings = step_settings(training, torch.device("cpu"))
    calibration = read_calibration(run, progress.global_step)
    if calibration is None and progress.validated:
        report(
            f"{config.run} is not calibrated: `python -m trainers evaluate --run "
            f"{shlex.quote(config.run)}` first adds a temperature and `unknown` to the files",
            warning=True,
        )
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
    files = {name: _export_to(EXPORTERS[name], subject, out) for name in config.formats}
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
    storage.write_bytes(storage.join(out, CARD), write_card(facts).encode())
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
    for file in (CARD, *(exporter.file for exporter in EXPORTERS.values())):
        storage.delete_file(storage.join(out, file))


def _export_to(exporter: Exporter, subject: Subject, out: str) -> FileFacts:
    """Write one file, load it back from where it was written and compare it."""
    uri = storage.join(out, exporter.file)
    storage.write_bytes(uri, exporter.write(subject))
    content = storage.read_bytes(uri)
    difference = compare(subject, exporter.load(content))
    if not difference <= MAX_DIFFERENCE:  # nor is NaN
        storage.delete_file(uri)
        raise UserError(
            f"{uri} computed logits that differ by {difference:.1e} from the original's, more than "
            f"{MAX_DIFFERENCE}: it was removed; leave this format out of --formats"
        )
    return FileFacts(file=exporter.file, num_bytes=len(content), max_difference=difference)


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
        print(
            f"{name:<13} {storage.join(config.out, facts.file)}, {facts.num_bytes / 2**20:.1f} "
            f"MiB, largest difference of a logit {facts.max_difference:.1e}"
        )
    print(f"Model card    {storage.join(config.out, CARD)}")
