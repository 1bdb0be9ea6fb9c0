"""The card of an exported network, as Hugging Face reads it: what it is, how good, how to load."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cluster.io.markers import NOT_ON_CARD, ON_CARD, SET_BY_PHASES, URI, flatten, marked
from cluster.io.uris import name_of
from trainers.config import FinetuneConfig
from trainers.networks.backbones import find
from trainers.run.checkpoint import TrainingProgress

LIMITS = (
    "- It names one of its classes for every image, also for one that shows none of them.",
    "- Its numbers hold for photographs like those it was trained on; others, other crops and "
    "other countries' cars may differ.",
    "- No license is stated: that of the photographs and of the weights it started from isn't "
    "known to Thaw. Find out before you share it.",
)


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """One exported file."""

    file: str
    num_bytes: int
    max_difference: float
    """Largest absolute difference of a logit from the original's."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    config: FinetuneConfig
    progress: TrainingProgress
    files: Mapping[str, FileFacts]
    """By format."""
    preprocessing: Mapping[str, Any]
    """`Subject.describe`: its mean and std are those of the pixels."""
    dynamic_batch: bool
    evaluation: Mapping[str, Any] | None
    """What evaluation_test.json holds, of this checkpoint on the test images of its data set."""
    commit: str | None
    """Of the Thaw that exported."""


def write_card(facts: CardFacts) -> str:
    """Return the text of README.md: YAML front matter, then Markdown."""
    data, title = name_of(facts.config.data), title_of(facts)
    return "\n".join(
        [
            "---",
            _front_matter(facts, title, data).to_yaml(),
            "---",
            f"# {title}",
            "",
            introduce(facts),
            "",
            "## How it was trained",
            "",
            *table(("setting", "value"), training_rows(facts, data)),
            "",
            "## How good it is",
            "",
            *table(("images", "measure", "value"), result_rows(facts)),
            "",
            "## How to load it",
            "",
            _explain_input(facts),
            *_explain_source(facts),
            "",
            *(line for name in facts.files for line in snippet(name, facts)),
            "Each file was loaded back at export and compared with the original on random images:",
            "",
            *table(
                ("file", "MiB", "largest difference of a logit"),
                (
                    (f"`{f.file}`", f"{f.num_bytes / 2**20:.1f}", f"{f.max_difference:.1e}")
                    for f in facts.files.values()
                ),
            ),
            "",
            "## Limits",
            "",
            *LIMITS,
            "",
        ]
    )


def title_of(facts: CardFacts) -> str:
    num_classes, data = len(facts.progress.classes), name_of(facts.config.data)
    return f"{facts.config.model.backbone} for {num_classes} classes of {data}"


def introduce(facts: CardFacts) -> str:
    """Say in a sentence what the network does."""
    config, classes = facts.config, facts.progress.classes
    shown = ", ".join(classes[:8])
    more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
    return (
        f"An image classifier that tells {len(classes)} classes apart ({shown}{more}; all in "
        f"`config.json`), trained by Thaw: {config.model.backbone} on images of "
        f"{config.ingest.size_px} x {config.ingest.size_px} pixels."
    )


def _front_matter(facts: CardFacts, title: str, data: str) -> ModelCardData:
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
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=["thaw", "image-classification", facts.config.model.backbone, *facts.files],
        datasets=[data],
        metrics=["accuracy"],
        model_name=title,
        eval_results=results or None,
    )


def training_rows(facts: CardFacts, data: str) -> list[tuple[str, str]]:
    """Return settings and their values: those always shown, and those that aren't the default."""
    values, defaults = (
        flatten(config.to_dict()) for config in (facts.config, FinetuneConfig(data=""))
    )
    rows = [("network", facts.config.model.backbone)]
    always, never, uris, unused = (
        marked(FinetuneConfig, marker) for marker in (ON_CARD, NOT_ON_CARD, URI, SET_BY_PHASES)
    )
    if facts.config.schedule.phases:
        always, never = always - unused, never | unused
    for field, value in values.items():
        if field in always or (field not in never and value != defaults[field]):
            rows.append((field, name_of(value) if field in uris else str(value)))
    mean, std = facts.preprocessing["mean"], facts.preprocessing["std"]
    rows += [
        ("input", f"{facts.config.ingest.size_px} px, mean {mean}, deviation {std}"),
        ("best epoch", str(facts.progress.epoch)),
        ("seconds of training until then", f"{facts.progress.total_s:.0f}"),
        ("data set", f"{data}, fingerprint `{facts.progress.fingerprint}`"),
    ]
    if facts.commit is not None:
        rows.append(("exported by Thaw at commit", f"`{facts.commit}`"))
    return rows


def result_rows(facts: CardFacts) -> list[tuple[str, str, str]]:
    """Return images, measure and value of what was measured."""
    progress = facts.progress
    known = f"{progress.val_top1:.4f}" if progress.validated else "not measured: they train too"
    rows = [("validation", "top-1", known)]
    if facts.evaluation is None:
        return [*rows, ("test", "not measured", "`python -m trainers evaluate` does")]
    images = f"test ({facts.evaluation['num_images']})"
    return rows + [
        (images, name.removeprefix("test/").replace("top", "top-"), f"{value:.4f}")
        for name, value in facts.evaluation.items()
        if name.startswith("test/") and isinstance(value, float)
    ]


def _explain_input(facts: CardFacts) -> str:
    size_px = facts.config.ingest.size_px
    batch = "any number of them" if facts.dynamic_batch else "one of them at a time (N = 1)"
    return (
        f"`images` are pixels as they come: uint8 RGB of shape [N, {size_px}, {size_px}, 3], the "
        f"short side resized to {size_px} and the middle cropped. Normalization is part of the "
        f"ONNX and torch.export graphs, which take {batch}."
    )


def _explain_source(facts: CardFacts) -> list[str]:
    """Say what the tensors alone need, where torchvision doesn't have the network."""
    source = find(facts.config.model.backbone).source
    if "safetensors" not in facts.files or source == "torchvision":
        return []
    needed = "" if source == "thaw" else f", with {source} installed"
    return [
        "",
        "`model.safetensors` holds tensors alone, and torchvision doesn't have their network: its "
        f"lines run in a clone of Thaw{needed}. The other formats need nothing of it.",
    ]


def snippet(name: str, facts: CardFacts) -> list[str]:
    """Return how to load one format, for a reader in the folder with uint8 `images`."""
    backbone = facts.config.model.backbone
    torchvision = find(backbone).source == "torchvision"
    load = "from torchvision.models import get_model"
    build = f'get_model("{backbone}", num_classes=len(config["classes"]))'
    if not torchvision:
        load = "from trainers.networks.backbones import build  # in a clone of Thaw"
        build = f'build("{backbone}", len(config["classes"]))'
    lines = {
        "safetensors": [
            f"import json, torch, safetensors.torch\n{load}",
            'config = json.load(open("config.json"))',
            f"model = {build}.eval()",
            'model.load_state_dict(safetensors.torch.load_file("model.safetensors"))',
            'pixels = (torch.tensor(images) / 255 - torch.tensor(config["mean"])) / '
            'torch.tensor(config["std"])',
            "logits = model(pixels.permute(0, 3, 1, 2))",
        ],
        "onnx": [
            "import json, onnxruntime",
            'session = onnxruntime.InferenceSession("model.onnx")',
            'logits = session.run(None, {"images": images})[0]',
            'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        ],
        "torch_export": [
            "import json, torch",
            'extra = {"classes": ""}',
            'model = torch.export.load("model.pt2", extra_files=extra).module()',
            "logits = model(torch.tensor(images))",
            'classes = json.loads(extra["classes"])',
        ],
    }[name]
    return ["```python", *lines, "```", ""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines: list[Sequence[str]] = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines]


def _escape(cell: str) -> str:
    """Keep a cell in one piece: a class may have a bar in its name."""
    return cell.replace("|", "\\|")
