"""Grad-CAM: the parts of an image that speak for a class, drawn as a sheet.

Source: Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks. B images, C
channels, h x w positions of a layer's map, H x W pixels, K classes; N images of a split.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.runtime import connect
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from trainers.config import FinetuneConfig
from trainers.evaluation.config import ExplainConfig, Which
from trainers.evaluation.evaluate import write_evaluation
from trainers.evaluation.pictures import Explained, draw_heat_maps
from trainers.evaluation.split import read_views
from trainers.networks.backbones import Backbone, find
from trainers.networks.layout import is_channels_last
from trainers.run import folder as run_folder
from trainers.run.evaluations import folder_of, predictions_uri, read_evaluation
from trainers.run.predictions import read_table
from trainers.step.settings import step_settings
from trainers.step.step import StepSettings, predict

TITLES = {
    "mistakes": "Mistakes of highest confidence: the image, Grad-CAM of the predicted class "
    "(orange) and of the true one (blue)",
    "confident": "Correct predictions of highest confidence: the image, Grad-CAM of its class",
    "random": "Images drawn at random: the image, Grad-CAM of the predicted class, and for "
    "mistakes (orange) of the true one",
}


def run_explain(config: ExplainConfig) -> None:
    """Draw the sheet and print what it shows."""
    run, out = storage.absolute(config.run, "run"), storage.absolute(config.out, "out")
    training, progress, model = run_folder.load_best_model(run)
    manifest = read_manifest(training.data, training.fold)
    check_classes(run, progress.classes, training.data, manifest)
    evaluation = read_evaluation(
        run, config.split, epoch=progress.epoch, fingerprint=manifest.fingerprint
    )
    if evaluation is None:
        connect(config.address)
        write_evaluation(run, split=config.split, device=config.device)
    rows = read_table(predictions_uri(folder_of(run, config.split))).table.to_pylist()
    matching = order(rows, config.which, config.seed)
    shown = matching[: config.num_images]
    require(
        bool(shown),
        "which",
        config.which,
        f"no such image in the {config.split} split; use --which random",
    )
    explained = explain(model, training, manifest, config.split, shown)
    picture = draw_heat_maps(explained, TITLES[config.which])
    storage.write_bytes(out, picture)
    print(f"{len(shown)} of {len(matching)} ({config.which}, {config.split} split): {config.out}")


def check_classes(run: str, classes: Sequence[str], data: str, manifest: Manifest) -> None:
    """Refuse a data set whose classes are not those of the checkpoint."""
    if tuple(classes) != manifest.classes:
        raise UserError(
            f"run is {run!r}: its checkpoint has {len(classes)} classes ({classes[0]} ...), "
            f"the data set {data} has {len(manifest.classes)} ({manifest.classes[0]} ...); "
            "evaluate on the data it was trained for"
        )


def explain(
    model: nn.Module,
    config: FinetuneConfig,
    manifest: Manifest,
    split: str,
    rows: Sequence[dict[str, Any]],
) -> list[Explained]:
    """Compute heat maps for rows of a split's predictions, on CPUs.

    Raises:
        UserError: where the network is not convolutional.
    """
    images_BHWC = read_views(config, manifest, split, [row["row"] for row in rows])
    classes_B2 = [
        [manifest.classes.index(row[name]) for name in ("predicted", "label")] for row in rows
    ]
    probabilities_BK, heats_B2HW = grad_cam(
        model,
        torch.tensor(images_BHWC),
        torch.tensor(classes_B2),
        replace(step_settings(config, torch.device("cpu")), autocast_dtype=None),
        find(config.model.backbone),
    )
    return [
        Explained(
            image_HWC=images_BHWC[at],
            true=row["label"],
            heats=tuple(
                (manifest.classes[label], probabilities_BK[at, label].item(), heat_HW.numpy())
                for label, heat_HW in dict(zip(classes_B2[at], heats_B2HW[at], strict=True)).items()
            ),
        )
        for at, row in enumerate(rows)
    ]


def order(rows: Sequence[dict[str, Any]], which: Which, seed: int) -> list[dict[str, Any]]:
    """Select rows of predictions.parquet, by falling confidence in turns: the first of each pair
    (true, predicted), then the second of each, and so on."""
    if which == "random":
        return [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))]
    matching = [row for row in rows if (row["label"] != row["predicted"]) == (which == "mistakes")]
    matching.sort(key=lambda row: -row["confidence"])
    turns: Counter[tuple[str, str]] = Counter()
    of_turn: list[tuple[int, dict[str, Any]]] = []
    for row in matching:
        pair = (row["label"], row["predicted"])
        of_turn.append((turns[pair], row))
        turns[pair] += 1
    return [row for _, row in sorted(of_turn, key=lambda item: item[0])]


def grad_cam(
    model: nn.Module,
    images_BHWC: Tensor,
    classes_BJ: Tensor,
    settings: StepSettings,
    backbone: Backbone | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the heat map of each of J classes, in the last layer that has a map.

    In a plain ViT it is the input of the last block, since patches after it may have no part in the
    logits. Only the layers after it are differentiated, so frozen networks work as well.

    Returns:
        probabilities_BK, and heats_BJHW from 0 to 1 (each map by its own maximum).

    Raises:
        UserError: where no layer has a map.
    """
    last: list[Tensor] = []

    with_tokens = backbone.stages[-2][1][-1] if backbone and len(backbone.stages) > 1 else None

    def to_maps(output: Tensor) -> Tensor:
        """Return maps_BChw of maps, or of tokens_BND after class token and registers."""
        if output.ndim == 3:
            patches_BND = output[:, getattr(model, "num_prefix_tokens", 0) :]
            side = isqrt(patches_BND.shape[1])
            return patches_BND[:, : side**2].transpose(1, 2).unflatten(2, (side, side))
        return output.permute(0, 3, 1, 2) if is_channels_last(output) else output

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return None
        if len(output) != len(images_BHWC) or (output.ndim == 3 and name != with_tokens):
            return None
        if min(to_maps(output).shape[2:]) < 2:
            return None
        last[:] = [output.detach().requires_grad_()]
        return last[0].clone()  # the next layer may work in place

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        logits_BK = predict(model, images_BHWC, settings)
    if not last:
        raise UserError("run has a network without convolutional layers: Grad-CAM needs one")
    activations_BChw, heats = to_maps(last[0].detach()), []
    for classes_B in classes_BJ.T:
        score = logits_BK.gather(1, classes_B[:, None]).sum()  # in eval mode images don't interact
        (gradient,) = torch.autograd.grad(score, last[0], retain_graph=True)
        weights_BC11 = to_maps(gradient).mean((2, 3), keepdim=True)
        heats.append((weights_BC11 * activations_BChw).sum(1).relu())
    heats_BJhw = torch.stack(heats, 1)
    heats_BJHW = F.interpolate(heats_BJhw, images_BHWC.shape[1:3], mode="bilinear")
    highest_BJ11 = heats_BJHW.amax((2, 3), keepdim=True).clamp(min=torch.finfo().tiny)
    return logits_BK.detach().softmax(1), heats_BJHW / highest_BJ11
