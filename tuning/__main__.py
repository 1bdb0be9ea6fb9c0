"""python -m tuning [RECIPE] --data URI ... | VERB ..."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.dispatch import Verb, dispatch, list_verbs, parse_verb
from cluster.entry import run_room
from datasets.config import READERS
from trainers.recipes import RECIPES

DEFAULT = "finetune"
OTHERS = {
    "advise": Verb(
        "recommend a freeze depth before any sweep; --from-advice then sweeps it",
        "tuning.advice.config:AdviseConfig",
        "tuning.advice.advise:run_advise",
        address="address",
        imports=READERS,
    ),
    "promote": Verb(
        "train a sweep's winner longer, on validation images too, with several seeds; test it",
        "tuning.promotion.config:PromoteConfig",
        "tuning.promotion.promote:run_promote",
        address="address",
        imports=READERS,
    ),
    "review": Verb(
        "write a sweep as one HTML page, also while it runs",
        "tuning.review.config:ReviewConfig",
        "tuning.review.review:run_review",
    ),
    "cache": Verb(
        "list the features that sweeps share, delete the least recently used",
        "tuning.sharing.config:CacheConfig",
        "tuning.sharing.cache:run_cache",
    ),
    "demo": Verb(
        "run a whole sweep on synthetic cars",
        "tuning.config:DemoConfig",
        "tuning.demo:run_demo",
        address="address",
        imports=READERS,
    ),
}
HELP = f"""Find out how much of a pretrained network to thaw for your images.

RECIPE is the training that every trial starts from: {", ".join(RECIPES)} (default {DEFAULT}).
A trial changes its freeze depth, learning rate, clipnorm and initialization, and any other field
that --axis names:

  python -m tuning --data runs/cars
  python -m tuning --data runs/cars --freeze-depths all 0.75 layer2 --learning-rates 1e-3 3e-4
  python -m tuning --data runs/cars --backbone mobilenet_v2 --inits file he --weights FILE
  python -m tuning --data runs/cars --search optuna --learning-rate-range 1e-5 1e-2 --trials 40
  python -m tuning --data runs/cars --budget 1h --promote
  python -m tuning --data runs/cars --backbones resnet50 mobilenet_v2=FILE@half
  python -m tuning --data runs/cars --axis ingest.policy light cars \\
      --axis optim.weight_decay 0.01..0.3 log --when model.freeze_depth=0

Run the same command again to resume; a finished sweep is reused. Other commands, each with its own
--help:

{list_verbs(OTHERS)}
"""


def sweeps(parse: str) -> dict[str, Verb]:
    return {
        recipe: Verb(
            f"sweep the recipe {recipe}",
            "tuning.options:Command",
            "tuning.commands:run_sweep",
            help=HELP,
            address="base.cluster.address",
            imports=READERS,
            parse=parse,
        )
        for recipe in RECIPES
    }


VERBS = sweeps("tuning.commands:parse_sweep") | OTHERS


def main(arguments: Sequence[str]) -> None:
    dispatch("tuning", VERBS, arguments, default=DEFAULT)


def parse(arguments: Sequence[str]) -> Any:
    """Parse a recipe or verb and its options into a TuningConfig, or the verb's config."""
    return parse_verb("tuning", VERBS, arguments, default=DEFAULT)


def parse_for_job(arguments: Sequence[str]) -> Any:
    """Parse a command that runs elsewhere: its advice may be unreadable from here."""
    advise = replace(OTHERS["advise"], parse="tuning.commands:parse_advise_for_job")
    verbs = sweeps("tuning.commands:parse_without_advice") | OTHERS | {"advise": advise}
    return parse_verb("tuning", verbs, arguments, default=DEFAULT)


if __name__ == "__main__":
    run_room(main, early=True)
