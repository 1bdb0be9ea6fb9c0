"""A run's network as ONNX, and what its logits mean.

B images, H x W pixels, C channels, K classes.
"""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from cluster.io.errors import UserError
from trainers.config import FinetuneConfig
from trainers.evaluation.explain import grad_cam
from trainers.export.formats import EXPORTERS, Subject, open_session
from trainers.networks.backbones import find
from trainers.run.calibration import Calibration, read_calibration, unknown_scores
from trainers.run.checkpoint import MODEL, TrainingProgress
from trainers.run.combination import describe_network
from trainers.run.ensemble import Ensemble
from trainers.run.folder import load_best_model, load_model
from trainers.serving.config import ServiceConfig
from trainers.serving.uploads import Refused
from trainers.step.settings import step_settings
from trainers.step.step import StepSettings

logger = logging.getLogger(__name__)

MAX_SENT_BYTES = 256 * 2**20
"""Of a network that replicas are sent: Ray Serve's controller keeps it in Ray's GCS, whose messages
have 512 MiB at most."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a replica computes with; small enough to travel."""

    run: str
    step: int
    """Of the checkpoint."""
    sha256: str | None
    """Of the checkpoint's weights."""
    onnx: bytes | None
    """None where it is larger than MAX_SENT_BYTES: a replica reads the run and exports it again."""
    classes: tuple[str, ...]
    size_px: int
    calibration: Calibration | None
    name: str
    """Network and run, for the page."""


def export_for_service(run: str) -> Exported:
    """Export a run's best network for any number of images at once.

    Raises:
        UserError: where there is no such run.
    """
    config, progress, model = load_best_model(run, ensembles=True)
    onnx = _write_onnx(config, progress, model)
    return Exported(
        run=run,
        step=progress.global_step,
        sha256=_sha256(progress),
        onnx=onnx if len(onnx) <= MAX_SENT_BYTES else None,
        classes=progress.classes,
        size_px=config.ingest.size_px,
        calibration=read_calibration(run, progress.global_step),
        name=describe_network(run, config, progress),
    )


def _write_onnx(config: FinetuneConfig, progress: TrainingProgress, model: nn.Module) -> bytes:
    subject = Subject(
        model=model,
        config=config,
        classes=progress.classes,
        settings=_settings(config),
        dynamic_batch=True,
    )
    return EXPORTERS["onnx"].write(subject)


def _settings(config: FinetuneConfig) -> StepSettings:
    return replace(step_settings(config, torch.device("cpu")), autocast_dtype=None)


def _sha256(progress: TrainingProgress) -> str | None:
    found = progress.files.get(MODEL, {}).get("sha256")
    return None if found is None else str(found)


def _load(exported: Exported) -> tuple[FinetuneConfig, TrainingProgress, nn.Module]:
    """Read the network that was exported, in torch.

    Raises:
        UserError: where this process can't read it, or the run has other weights by now.
    """
    config, progress, model = load_model(exported.run, exported.step)
    if _sha256(progress) != exported.sha256:
        raise UserError(
            f"run is {exported.run!r}: it was trained again since the service started; start the "
            "service again"
        )
    return config, progress, model


class Answerer:
    """Turns pixels into answers."""

    def __init__(self, exported: Exported, config: ServiceConfig) -> None:
        """Open the network.

        Raises:
            UserError: where the network was too large to send, and the run can't be read here.
        """
        self.exported, self._config = exported, config
        onnx = _write_onnx(*_load(exported)) if exported.onnx is None else exported.onnx
        self._session = open_session(onnx, shares_cores=True)
        if (calibration := exported.calibration) is not None:
            self._unknown_threshold = calibration.unknown_threshold(config.refused)
            self._least_probability = calibration.least_probability(config.coverage)

    def compute(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Return logits_BK."""
        return np.asarray(self._session.run(None, {"images": images_BHWC})[0])

    def explain(self, image_HWC: np.ndarray) -> bytes:
        """Return Grad-CAM of the likeliest class over a grey copy of an image: a PNG.

        Raises:
            Refused: where the network has none, or can't be read here.
        """
        label = int(self.compute(image_HWC[None])[0].argmax())
        try:
            config, model = self._trained
        except (UserError, OSError) as error:  # for the owner; the client gets no path of ours
            logger.warning("No Grad-CAM: %s", error)
            raise Refused(503, "The service can't read the network for Grad-CAM.") from None
        if isinstance(model, Ensemble):
            raise Refused(501, "Grad-CAM needs one network, and the service has an ensemble.")
        try:
            _, heats_BJHW = grad_cam(
                model,
                torch.tensor(image_HWC)[None],
                torch.tensor([[label]]),
                _settings(config),
                find(config.model.backbone),
            )
        except UserError:
            sentence = "Grad-CAM needs convolutions, and the network of the service has none."
            raise Refused(501, sentence) from None
        heat_HW1 = heats_BJHW[0, 0].numpy()[..., None]
        colours_HWC = cv2.applyColorMap((255 * heat_HW1).astype(np.uint8), cv2.COLORMAP_INFERNO)
        grey_HW1 = 0.8 * image_HWC.mean(2, keepdims=True) + 48
        blend_HWC = (1 - 0.75 * heat_HW1) * grey_HW1 + 0.75 * heat_HW1 * colours_HWC
        return cv2.imencode(".png", blend_HWC.clip(0, 255).astype(np.uint8))[1].tobytes()

    @cached_property
    def _trained(self) -> tuple[FinetuneConfig, nn.Module]:
        """The network in torch, for gradients."""
        config, _, model = _load(self.exported)
        return config, model

    def answer(self, logits_K: np.ndarray) -> dict[str, Any]:
        """Return the answer for one image."""
        calibration, classes = self.exported.calibration, self.exported.classes
        logits_BK = logits_K[None].astype(np.float64)
        if calibration is None:
            exponents_K = np.exp(logits_K - logits_K.max())
            probabilities_K = exponents_K / exponents_K.sum()
        else:
            probabilities_K = calibration.probabilities(logits_BK)[0]
        order_K = np.argsort(-probabilities_K, kind="stable")
        answer: dict[str, Any] = {
            "class": classes[order_K[0]],
            "probability": float(probabilities_K[order_K[0]]),
            "top": [
                {"class": classes[label], "probability": float(probabilities_K[label])}
                for label in order_K[: self._config.top_k]
            ],
            "unknown": None,
        }
        if calibration is not None:
            score = float(unknown_scores(logits_BK)[0])
            answer |= {
                "unknown": score > self._unknown_threshold,
                "unknown_score": score,
                "class_set": [
                    classes[k] for k in order_K if probabilities_K[k] >= self._least_probability
                ],
            }
        return answer
