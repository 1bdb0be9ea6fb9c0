"""python -m trainers [RECIPE] --data URI ... | VERB ..."""

from collections.abc import Sequence
from typing import Any

from cluster.dispatch import Verb, dispatch, list_verbs, parse_verb
from cluster.entry import run_room
from datasets.config import READERS
from trainers.recipes import RECIPES

DEFAULT = "transfer"
OTHERS = {
    "evaluate": Verb(
        "measure a run's best checkpoint on the test split",
        "trainers.evaluation.config:EvaluateConfig",
        "trainers.evaluation.evaluate:run_evaluation",
        address="address",
        imports=READERS,
    ),
    "compare": Verb(
        "compare two runs: McNemar's test, classes, pictures",
        "trainers.evaluation.config:CompareConfig",
        "trainers.evaluation.compare:run_compare",
        address="address",
        imports=READERS,
    ),
    "explain": Verb(
        "draw which parts of an image decide its class (Grad-CAM)",
        "trainers.evaluation.config:ExplainConfig",
        "trainers.evaluation.explain:run_explain",
        address="address",
        imports=READERS,
    ),
    "predict": Verb(
        "classify any images, by a run or a published network",
        "trainers.inference.config:PredictConfig",
        "trainers.inference.predict:run_predict",
        address="address",
        imports=READERS,
    ),
    "features": Verb(
        "write the features of images at a stage of a network",
        "trainers.inference.config:FeaturesConfig",
        "trainers.inference.features:run_features",
        address="address",
        imports=READERS,
    ),
    "audit": Verb(
        "find faults of a data set: label errors, outliers, duplicates",
        "trainers.audit.config:FeatureAuditConfig",
        "trainers.audit.audit:run_audit",
        address="address",
        imports=READERS,
    ),
    "export": Verb(
        "write safetensors with a model card, ONNX, torch.export",
        "trainers.export.config:ExportConfig",
        "trainers.export.export:run_export",
    ),
    "serve": Verb(
        "serve predictions over HTTP with Ray Serve, and a page to drop photographs on",
        "trainers.serving.config:ServeConfig",
        "trainers.serving.serve:run_serve",
        address="address",
    ),
    "zoo": Verb(
        "list networks: size, accuracy, parameters, depth, time of a step",
        "trainers.networks.config:ZooConfig",
        "trainers.networks.zoo:run_zoo",
    ),
    "track": Verb(
        "`track sync` uploads the runs that W&B does not have",
        "trainers.tracking.config:SyncConfig",
        "trainers.tracking.sync:run_sync",
    ),
}
HELP = f"""Fine-tune a network on a prepared data set, with DDP under Ray Train.

RECIPE is one of {", ".join(RECIPES)} (default {DEFAULT}). The options below change its fields:

  python -m trainers transfer --data runs/cars
  python -m trainers staged   --data runs/cars --phases all 4 3e-3 -2 6 3e-4
  python -m trainers finetune --data runs/cars --freeze-depth 2 --learning-rate 1e-4
  python -m trainers scratch  --data runs/cars --backbone mobilenet_v2 --num-workers 2

Run the same command again to resume. Other commands, each with its own --help:

{list_verbs(OTHERS)}
"""
VERBS = {
    recipe: Verb(
        f"train by the recipe {recipe}",
        "trainers.config:FinetuneConfig",
        "trainers.commands:run_training",
        help=HELP,
        default=config,
        address="cluster.address",
        imports=READERS,
    )
    for recipe, config in RECIPES.items()
} | OTHERS


def main(arguments: Sequence[str]) -> None:
    dispatch("trainers", VERBS, arguments, default=DEFAULT)


def parse(arguments: Sequence[str]) -> Any:
    """Parse a recipe or verb and its options into a FinetuneConfig, or the verb's config."""
    return parse_verb("trainers", VERBS, arguments, default=DEFAULT)


if __name__ == "__main__":
    run_room(main, early=True)
