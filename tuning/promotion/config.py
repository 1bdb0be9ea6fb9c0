"""Options of a promotion (standard library only)."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from cluster.config import Device
from cluster.io.errors import require, require_at_least, require_between
from cluster.io.markers import URI
from trainers.config import AUTO, Auto
from tuning.budget.config import parse_duration_s


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Train a sweep's winner longer, on training and validation images, with several seeds; test
    each once.

    Writes the network to use, exported with a model card, and the sweep's review page. Prints the
    mean on the test split with its 95 percent interval: of t over the seeds, which measures how the
    mean varies with the seed; for one seed, Wilson's interval over the test images. Run the same
    command again to resume:

    python -m tuning promote --sweep runs/sweep

    python -m tuning promote --sweep runs/sweep --budget 1h

    python -m tuning promote --sweep runs/sweep --seeds 5 --epochs 40 --num-workers 8

    python -m tuning promote --sweep runs/sweep --registry cars --registry-alias production

    python -m tuning promote --sweep runs/sweep --folds    # cross-validate it instead
    """

    sweep: Annotated[str, URI]
    """URI of a finished sweep's folder."""
    out: Annotated[str | None, URI] = None
    """URI of the folder for the runs and promoted.json, or folds.json. Default: SWEEP/promoted, or
    SWEEP/folds."""
    seeds: int = 3
    """Number of trainings, with seeds 0, 1, 2 and so on."""
    folds: bool = False
    """Cross-validate instead: for each fold of the data set (`prepare --folds`), train on the other
    folds and validate the last epoch. Gives an accuracy over all images of train and val. Uses no
    test image."""
    epochs: int | None = None
    """Epochs of each training. Default: the winner first trains on the training images only, until
    val/top1 has stopped rising, at most three times as long as the sweep's trials; each seed then
    has the best number of epochs. Default with --folds: three times the epochs of the trials."""
    budget: str | None = None
    """Time limit of the promotion, such as 45m or 2h, with tests, exports and the page. If it is
    too short, each seed has as many epochs as fit for all seeds. If these are fewer than in the
    sweep, there are fewer seeds."""
    last_size_px: int | Auto | None = AUTO
    """Image size of a few last epochs, which are kept if they are better on the validation images.
    auto: 9/7 of the sweep's size (288 after 224), if the network takes it. None: no such epochs."""
    num_workers: int | None = None
    """DDP workers of each training. Default: one per GPU, or one per node without GPUs. 0 trains in
    this process."""
    device: Device = "auto"
    """`auto` uses GPUs if the cluster has any."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: by WANDB_MODE, else online where W&B finds a key, else offline."""
    registry: str | None = None
    """Link the exported network to this collection of W&B's model registry, such as cars, or
    ORGANIZATION/REGISTRY/NAME. Needs W&B online."""
    registry_alias: Literal["candidate", "production"] = "candidate"
    """Alias of the network in the registry. The same command with `production` moves that alias to
    this network."""

    def __post_init__(self) -> None:
        require_between("seeds", self.seeds, 1, 1000)
        require(
            not self.folds or self.seeds == PromoteConfig.seeds,
            "seeds",
            self.seeds,
            "with --folds each fold is trained once, with the seed of the sweep: leave it out",
        )
        require_at_least("num_workers", self.num_workers, 0)
        require_at_least("epochs", self.epochs, 1)
        if self.budget is not None:
            parse_duration_s("budget", self.budget)
            require(
                not self.folds,
                "budget",
                self.budget,
                "with --folds each fold is trained: use --epochs",
            )
        require(
            self.registry is None or not self.folds,
            "registry",
            self.registry,
            "with --folds there is no network to use: leave one of them out",
        )
        require(
            self.registry is None
            or re.fullmatch(r"([^/\s]+/){0,2}[^/\s]+", self.registry) is not None,
            "registry",
            self.registry,
            "give a name, such as cars, or ORGANIZATION/wandb-registry-NAME/cars",
        )
        if self.last_size_px != AUTO:
            require_at_least("last_size_px", self.last_size_px, 1)

    @property
    def kind(self) -> Literal["folds", "promoted"]:
        """Name of the folder and of the summary."""
        return "folds" if self.folds else "promoted"
