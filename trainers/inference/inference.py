"""Runs a network of a run, or a published one, on any images in actors of Ray.

B images, S size in pixels, H height, W width, C channels, K outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor, nn

from cluster.config import ClusterConfig
from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.lease import hold_lease
from cluster.io.terminal import report
from cluster.runtime import connect
from datasets.config import IngestConfig
from datasets.passes.actors import Workers
from datasets.passes.collection import lies_in, list_images
from datasets.passes.inference import Outcome, infer
from datasets.prepare.partition import tally_reasons
from trainers.config import FinetuneConfig, ModelConfig
from trainers.inference.actors import CPU_BATCH_SIZE, plan_actors
from trainers.inference.compiled import is_compiled
from trainers.inference.config import InferenceConfig
from trainers.inference.forward import ForwardPass
from trainers.networks.backbones import build, find, require_size, set_size
from trainers.networks.precision import inference_precision
from trainers.networks.published import IMAGENET_CLASSES
from trainers.networks.weights.initialization import initialize
from trainers.networks.weights.pretrained import pretrained_available
from trainers.run.calibration import Calibration, read_calibration
from trainers.run.combination import describe_network, list_backbones
from trainers.run.ensemble import Ensemble
from trainers.run.folder import load_best_model

ToColumns = Callable[[Tensor], dict[str, pa.Array]]
"""float32 outputs_BK on the CPU -> columns of B rows."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network in eval mode on the CPU, and its training config."""

    model: nn.Module
    config: FinetuneConfig
    classes: tuple[str, ...]
    origin: str
    """For messages."""
    validated: bool = True
    """Whether its validation images can calibrate it: not where they trained it."""
    calibration: Calibration | None = None
    """Of a run, for images of the size of its training."""
    calibrated_px: int | None = None
    """That size, where the network has been given another one and has no calibration for it."""


def open_network(config: InferenceConfig, *, keep_head: bool) -> Network:
    """Load the network that `config` names.

    Args:
        keep_head: whether pretrained weights must include the head for ImageNet's classes; an
            ensemble has nothing but its heads' answer.

    Raises:
        UserError: where there is no such run, or no such weights, or `size_px` is too small.
    """
    if config.run is not None:
        run, progress, model = load_best_model(config.run, ensembles=keep_head)
        network = Network(
            model=model,
            config=run,
            classes=progress.classes,
            origin=f"{describe_network(config.run, run, progress)} ({config.run})",
            validated=progress.validated,
            calibration=read_calibration(config.run, progress.global_step),
        )
    else:
        network = _open_pretrained(config, keep_head=keep_head)
    if config.size_px in (None, network.config.ingest.size_px):
        return network
    return _resize(network, config.run, config.size_px)


def _resize(network: Network, run: str | None, size_px: int) -> Network:
    """Make a network take another image size; its logits are others there than those that a
    calibration was fitted on."""
    members, backbones = [network.model], [network.config.model.backbone]
    if isinstance(network.model, Ensemble):
        assert run is not None
        members, backbones = [*network.model.members], list_backbones(run, network.config)
    for member, backbone in zip(members, backbones, strict=True):
        require_size(backbone, size_px)
        set_size(member, backbone, size_px)
    before = network.config.ingest
    return replace(
        network,
        config=replace(network.config, ingest=replace(before, size_px=size_px)),
        calibration=None,
        calibrated_px=network.calibration and before.size_px,
    )


def _open_pretrained(config: InferenceConfig, *, keep_head: bool) -> Network:
    assert config.backbone is not None
    backbone = find(config.backbone)
    weights = storage.absolute(config.weights, "weights") if config.weights else None
    chosen = ModelConfig(
        backbone=config.backbone,
        init=config.init or ("file" if weights else "imagenet"),
        weights=weights,
        normalization=config.normalization or "auto",
    )
    if (problem := pretrained_available(chosen)) is not None:
        raise UserError(f"{problem}; give a file with --weights")
    size_px = config.size_px or backbone.size_px
    require_size(chosen.backbone, size_px)
    model = build(chosen.backbone, len(IMAGENET_CLASSES), size_px)
    report = initialize(model, chosen, seed=0)
    unused = f"{backbone.aux}."
    missing = [
        name
        for name in (*report.replaced, *report.missing)
        if (keep_head or backbone.stage_of(name) < len(backbone.stages))
        and not name.startswith(unused)
    ]
    require(
        not missing,
        "weights",
        config.weights,
        f"it has no {missing[:1]} that fits {chosen.backbone} with ImageNet's "
        f"{len(IMAGENET_CLASSES)} classes; give the published weights, or --run for a network that "
        "Thaw has trained",
    )
    return Network(
        model=model.eval(),
        config=FinetuneConfig(data="", model=chosen, ingest=IngestConfig(size_px=size_px)),
        classes=IMAGENET_CLASSES,
        origin=f"{chosen.backbone} ({weights or chosen.init})",
    )


class NetworkActor:
    """Holds the network on the device of its actor, and turns images into columns in batches."""

    def __init__(
        self,
        network: "ray.ObjectRef[Network]",
        to_columns: ToColumns,
        *,
        worker_batch_size: int,
        threads: int,
        use_gpu: bool,
        compiled: bool,
    ) -> None:
        loaded = ray.get(network)
        self._forward = ForwardPass(
            loaded.model,
            loaded.config,
            threads=threads,
            use_gpu=use_gpu,
            compiled=compiled,
            batch_size=worker_batch_size,
        )
        self._to_columns = to_columns

    def __call__(self, images_NSSC: np.ndarray) -> dict[str, pa.Array]:
        (outputs_NK,) = self._forward(torch.tensor(images_NSSC))
        return self._to_columns(outputs_NK)


def run_inference(
    config: InferenceConfig,
    network: Network,
    to_columns: ToColumns,
    *,
    name: str,
    row_bytes: int,
    facts: dict[str, Any],
) -> Outcome:
    """Run the network on the images on the cluster; write OUT/`name` and print a summary.

    Args:
        row_bytes, facts: as of `infer`.

    Raises:
        UserError: where there are no images, or the cluster lacks the requested resources.
    """
    images, out = storage.absolute(config.images, "images"), storage.absolute(config.out, "out")
    require(
        not lies_in(out, images),
        "out",
        out,
        f"it is in the images {images!r}, where results would be read as images; write elsewhere",
    )
    collection = list_images(images, split=config.split, image_column=config.image_column)
    resources = connect(config.address)
    plan = plan_actors(
        resources,
        ClusterConfig(num_workers=config.num_workers, device=config.device),
        [network.config.model.backbone],
    )
    batch_size = config.batch_size if plan.use_gpu else min(config.batch_size, CPU_BATCH_SIZE)
    compute = inference_precision(network.config.compute, use_gpu=plan.use_gpu)
    network = replace(network, config=replace(network.config, compute=compute))
    size_px = network.config.ingest.size_px
    report(
        f"{network.origin}: {len(collection.references)} {collection.kind} at {images}, "
        f"{size_px} px -> {out}"
    )
    build = partial(
        NetworkActor,
        ray.put(network),
        to_columns,
        worker_batch_size=batch_size,
        threads=plan.threads_per_worker,
        use_gpu=plan.use_gpu,
        compiled=is_compiled(network.config, len(collection.references), use_gpu=plan.use_gpu),
    )
    workers = Workers.of(plan)
    with hold_lease(out):
        outcome = infer(
            collection,
            build,
            out=out,
            name=name,
            size_px=size_px,
            batch_size=batch_size,
            row_bytes=row_bytes,
            workers=workers,
            facts={"images": images, "network": network.origin, "size_px": size_px, **facts},
        )
    rate = outcome.num_images / outcome.seconds
    print(
        f"{outcome.num_images} images: {outcome.num_good} done, {len(outcome.bad)} bad; "
        f"{outcome.seconds:.0f} s, {rate:.0f} images/s"
    )
    if len(outcome.bad):
        tally = tally_reasons(outcome.bad["reason"].to_pylist())
        print(f"Bad images: {outcome.bad_images} ({tally})")
    return outcome
