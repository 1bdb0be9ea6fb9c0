"""The model card of an exported network, by Hugging Face's ModelCard. Its text is in
model_card.md.j2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cluster.io.markers import NOT_ON_CARD, ON_CARD, SET_BY_PHASES, URI, flatten, marked
from cluster.io.uris import name_of
from trainers import metrics
from trainers.config import PRETRAINED, FinetuneConfig
from trainers.networks.backbones import find
from trainers.networks.weights.pretrained import describe_weights
from trainers.run.calibration import Calibration
from trainers.run.checkpoint import TrainingProgress
from trainers.run.combination import CombinedRun, CombinedTrial, describe_combination

LABELS = {
    metrics.TEST_TOP1: "top-1",
    metrics.TEST_TOP5: "top-5",
    metrics.TEST_ECE: "ECE before calibration",
    metrics.TEST_CALIBRATED_ECE: "ECE after calibration",
    metrics.TEST_CALIBRATED_LOSS: "loss after calibration",
}
TEMPLATE = Path(__file__).with_name("model_card.md.j2")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An ONNX file on the images of a split."""

    top1: float
    ms: float
    """Median time of one image alone, milliseconds."""
    split: str
    num_images: int
    num_unreadable: int = 0
    trained: bool = False
    """Whether these images trained the network."""

    @property
    def images(self) -> str:
        """`13 test images`, and what limits what they say."""
        limits = ["they trained the network"] if self.trained else []
        if self.num_unreadable:
            limits.append(f"{self.num_unreadable} more could not be read")
        noted = f" ({', '.join(limits)})" if limits else ""
        return f"{self.num_images} {self.split} images{noted}"


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """One exported file."""

    file: str
    num_bytes: int
    max_difference: float
    """Largest absolute difference of a logit from the original's."""
    measured: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    config: FinetuneConfig
    progress: TrainingProgress
    files: Mapping[str, FileFacts]
    """By format."""
    preprocessing: Mapping[str, Any]
    """`Subject.describe`: its mean and std are those of the pixels."""
    dynamic_batch: bool
    calibration: Calibration | None
    evaluation: Mapping[str, Any] | None
    """The content of evaluation_test.json for this checkpoint and its data set."""
    commit: str | None
    """Of the code that exported."""
    backbones: tuple[str, ...] = ()
    """Of an ensemble's networks."""
    combined: CombinedRun | None = None
    """Of a combination of trainings; `config` and `progress` are the winner's."""

    @property
    def networks(self) -> tuple[str, ...]:
        return self.backbones or (self.config.model.backbone,)


def write_card(facts: CardFacts, folder: str = "hf") -> str:
    """Return the text of README.md: YAML metadata, then Markdown.

    Args:
        folder: where the files of the format hf are, seen from the card.
    """
    backbone, data = facts.config.model.backbone, name_of(facts.config.data)
    name, combined = describe_combination(facts.combined, facts.networks), facts.combined
    title = f"{name} for {len(facts.progress.classes)} classes of {data}"
    card = ModelCard.from_template(
        _metadata(facts, title, data),
        str(TEMPLATE),
        title=title,
        classes=[escape(name) for name in facts.progress.classes],
        name=name,
        backbone=backbone,
        source=find(backbone).source,
        size_px=facts.config.ingest.size_px,
        combined=combined,
        about=combined and describe_kind(combined),
        trials=[] if combined is None else [_trial_cells(each) for each in combined.trials],
        training=training_rows(facts, data),
        results=result_rows(facts),
        files=facts.files,
        folder=folder,
        measured=[file for file in facts.files.values() if file.measured is not None],
        dynamic_batch=facts.dynamic_batch,
        calibration=facts.preprocessing["calibration"],
        num_val=facts.calibration and facts.calibration.num_images,
    )
    return f"{card.content}\n"


def _metadata(facts: CardFacts, title: str, data: str) -> ModelCardData:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(facts.evaluation[f"test/{key}"], 4),
        )
        for key, name in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy"))
        if facts.evaluation is not None
    ]
    return ModelCardData(
        library_name="timm" if list(facts.files) == ["hf"] else "pytorch",
        pipeline_tag="image-classification",
        tags=["thaw", "image-classification", *dict.fromkeys(facts.networks), *facts.files],
        datasets=[data],
        metrics=["accuracy"],
        model_name=title,
        eval_results=results or None,
    )


def training_rows(facts: CardFacts, data: str) -> list[tuple[str, str]]:
    """Return settings and values: those marked ON_CARD, and those that aren't the default."""
    values, defaults = (
        flatten(config.to_dict()) for config in (facts.config, FinetuneConfig(data=""))
    )
    rows: list[tuple[str, str]] = []
    if facts.backbones and facts.combined is None:  # an ensemble of an older Thaw
        lacks = "not recorded for each network"
        rows = [("networks", ", ".join(facts.backbones)), ("initial weights", lacks)]
        rows.append(("their license", lacks))
    elif facts.combined is None:
        rows = _network_rows(facts.config)
    always, never, uris, unused = (
        marked(FinetuneConfig, marker) for marker in (ON_CARD, NOT_ON_CARD, URI, SET_BY_PHASES)
    )
    if facts.config.schedule.phases:
        always, never = always - unused, never | unused
    for field, value in values.items():
        if field in always or (field not in never and value != defaults[field]):
            rows.append((field, name_of(value) if field in uris else str(value)))
    mean, std = facts.preprocessing["mean"], facts.preprocessing["std"]
    rows.append(("input", f"{facts.config.ingest.size_px} px, mean {mean}, deviation {std}"))
    if facts.combined is None:
        rows += [
            ("best epoch", str(facts.progress.epoch)),
            ("seconds of training until then", f"{facts.progress.total_s:.0f}"),
        ]
    rows.append(("data set", f"{data}, fingerprint `{facts.progress.fingerprint}`"))
    if facts.commit is not None:
        rows.append(("exported by Thaw at commit", f"`{facts.commit}`"))
    return rows


def _network_rows(config: FinetuneConfig) -> list[tuple[str, str]]:
    rows = [("network", config.model.backbone)]
    if config.model.init in PRETRAINED:
        origin, license = describe_weights(config.model)
        rows += [("initial weights", origin), ("their license", license or "none is stated")]
    return rows


def describe_kind(combined: CombinedRun) -> str:
    """Return what a combination computes."""
    return {
        "ensemble": "the mean of the probabilities of the networks below",
        "soup": "one network, each weight the mean of those of the networks below",
        "interpolation": f"one network, each weight {combined.share or 1:.0%} of that of the "
        "network below and the rest of its initial weight, but for the head",
    }.get(combined.kind, combined.kind)


def _trial_cells(trial: CombinedTrial) -> list[str]:
    cells = (
        trial.trial,
        trial.backbone,
        trial.weights,
        trial.license or "none is stated",
        str(trial.best_epoch),
        f"{trial.total_s:.0f}",
        f"{trial.val_top1:.4f}",
    )
    return [escape(cell) for cell in cells]


def result_rows(facts: CardFacts) -> list[tuple[str, str, str]]:
    """Return images, measure and value of each measure."""
    progress = facts.progress
    top1 = f"{progress.val_top1:.4f}" if progress.validated else "not measured: they train too"
    rows = [("validation", "top-1", top1)]
    if (found := facts.calibration) is not None:
        without = "" if found.origin is None else " of a training without them,"
        val = f"validation ({found.num_images},{without} each by the others)"
        rows += [
            (val, "ECE before calibration", f"{found.ece_before:.4f}"),
            (val, "ECE after calibration", f"{found.ece_after:.4f}"),
        ]
    if facts.evaluation is None:
        return [*rows, ("test", "not measured", "`python -m trainers evaluate` does")]
    images = f"test ({facts.evaluation['num_images']})"
    return rows + [
        (images, LABELS.get(name, name.removeprefix("test/")), f"{value:.4f}")
        for name, value in facts.evaluation.items()
        if name.startswith("test/") and isinstance(value, float)
    ]


def escape(name: str) -> str:
    """Return a class name as text in one line of Markdown, without HTML or links."""
    text = " ".join(name.split())
    return "".join(f"\\{char}" if char in "\\`*<>[]|" else char for char in text)
