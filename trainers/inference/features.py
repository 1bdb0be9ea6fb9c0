"""Extracts the features of a network's stage from photographs, and writes them as Parquet.

B images, C channels, H x W positions of a feature map, D features.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from cluster.io import storage
from cluster.io.errors import require
from trainers.inference.config import FeaturesConfig, Pooling
from trainers.inference.inference import Network, open_network, run_inference
from trainers.networks.backbones import find
from trainers.networks.layout import is_channels_last


class _Reached(Exception):
    """Carries a stage's output out of the forward pass; later modules are not computed."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


class StageFeatures(nn.Module):
    """The network up to the end of a stage: images_BCHW -> features_BD."""

    def __init__(self, network: nn.Module, backbone: str, stage: str, pooling: Pooling) -> None:
        """`stage` is a name.

        Raises:
            UserError: where the stage's output is not one tensor.
        """
        super().__init__()
        require(
            stage not in find(backbone).uncuttable,
            "stage",
            stage,
            f"its output in {backbone} is not one tensor; give another stage",
        )
        self.network = network
        self.module = dict(find(backbone).stages)[stage][-1]
        self.activation = find(backbone).activations.get(self.module, nn.Identity())
        self.channels_last = stage in find(backbone).channels_last
        self.pooling: Pooling = pooling

    def forward(self, images_BCHW: Tensor) -> Tensor:
        def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
            raise _Reached(output)

        hook = self.network.get_submodule(self.module).register_forward_hook(stop)
        try:
            self.network(images_BCHW)
        except _Reached as reached:
            return pool(self.activation(reached.output), self.pooling, self.channels_last)
        finally:
            hook.remove()
        raise AssertionError(f"the forward pass calls {self.module}")


def pool(output: Tensor, pooling: Pooling, channels_last: bool = False) -> Tensor:
    """Turn a stage's output into float32 features_BD.

    Args:
        output: vectors_BD, tokens_BND, maps_BCHW or maps_BHWC.
        channels_last: whether maps with as many channels as rows are maps_BHWC.
    """
    output = output.float()
    if output.ndim == 2 or pooling == "none":
        return output.flatten(1)
    if output.ndim == 3:
        positions = (1,)
    else:
        positions = (1, 2) if is_channels_last(output, otherwise=channels_last) else (2, 3)
    return output.mean(positions) if pooling == "avg" else output.amax(positions)


def find_stage(backbone_name: str, stage: str | None) -> str:
    """Return the name of a stage.

    Args:
        stage: its name, or its number counted from 1 at the input; None is the last.

    Raises:
        UserError: where the backbone has no such stage.
    """
    names = [name for name, _ in find(backbone_name).stages]
    if stage is None:
        stage = names[-1]
    elif stage.isdecimal() and 1 <= int(stage) <= len(names):
        stage = names[int(stage) - 1]
    require(
        stage in names,
        "stage",
        stage,
        f"{backbone_name} has {', '.join(names)}: give a name, or 1 to {len(names)}",
    )
    return stage


def to_features(features_BD: Tensor, *, half: bool) -> dict[str, pa.Array]:
    """Return one column of lists of fixed size."""
    values = features_BD.numpy().astype(np.float16 if half else np.float32, copy=False).ravel()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), features_BD.shape[1])
    return {"features": lists}


def open_stage(config: FeaturesConfig) -> tuple[Network, str]:
    """Load a network up to its stage; also return the stage's name.

    Raises:
        UserError: as `open_network` and `find_stage`.
    """
    network = open_network(config, keep_head=False)
    backbone = network.config.model.backbone
    stage = find_stage(backbone, config.stage)
    # Distances between features need all digits: no autocast on GPUs.
    compute = replace(network.config.compute, precision="fp32")
    staged = replace(
        network,
        model=StageFeatures(network.model, backbone, stage, config.pooling),
        config=replace(network.config, compute=compute),
        origin=f"{stage} of {network.origin}",
    )
    return staged, stage


def run_features(config: FeaturesConfig) -> None:
    """Extract features, and print their size and URI."""
    network, stage = open_stage(config)
    size_px = network.config.ingest.size_px
    with torch.inference_mode():
        num_features = network.model(torch.zeros(1, 3, size_px, size_px)).shape[1]
    outcome = run_inference(
        config,
        network,
        partial(to_features, half=config.half),
        name="features",
        row_bytes=4 * num_features,
        facts={"stage": stage, "pooling": config.pooling, "num_features": num_features},
    )
    if outcome.parts:
        print(
            f"Features: {storage.join(config.out, 'features')}, {num_features} of {stage} for each "
            f"of {outcome.num_good} images"
        )
