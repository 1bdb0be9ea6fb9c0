"""The initial weights of a network: ImageNet's, a file's, or drawn from a seed."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from trainers.config import RANDOM, ModelConfig
from trainers.networks.weights.head_files import load_head
from trainers.networks.weights.initializers import INITIALIZERS, draw_weights, seeded
from trainers.networks.weights.loading import LoadReport, load_pretrained
from trainers.networks.weights.pretrained import read_pretrained


def initialize(
    model: nn.Module,
    config: ModelConfig,
    *,
    seed: int,
    classes: Sequence[str] | None = None,
) -> LoadReport:
    """Initialize a model on the CPU; the same seed gives the same tensors.

    A random initialization draws all convolutions and linear layers, the heads included, and resets
    normalization (weight 1, bias 0). A pretrained one loads tensors that fit; a head of another
    number of classes, and modules that the file lacks, get torch's default initialization from the
    seed. The head of `config.head` takes the place of either. The global random state is unchanged.

    Args:
        classes: of the model's outputs. Rows of a pretrained head follow their names, where the
            weights have names.

    Raises:
        UserError: for weights that can't be read, or belong to another network.
    """
    with seeded(seed):
        if config.init in RANDOM:
            draw_weights(model, INITIALIZERS[config.init])
            report = LoadReport()
        else:
            report = load_pretrained(model, read_pretrained(model, config), config, classes)
    if config.head is not None:
        note = load_head(model, config, classes)
        report = replace(report, notes=(*report.notes, *filter(None, [note])))
    return report
