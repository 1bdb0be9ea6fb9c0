"""A run's network as ONNX, and what its logits mean.

B images, H x W pixels, C channels, K classes.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from trainers.config import FinetuneConfig
from trainers.evaluation.explain import grad_cam
from trainers.export.formats import EXPORTERS, Subject, open_session
from trainers.networks.backbones import find
from trainers.run.calibration import Calibration, read_calibration, unknown_scores
from trainers.run.folder import load_best_model
from trainers.serving.config import ServiceConfig
from trainers.step.settings import step_settings


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a replica computes with; small enough to travel."""

    run: str
    onnx: bytes
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
    settings = replace(step_settings(config, torch.device("cpu")), autocast_dtype=None)
    subject = Subject(
        model=model,
        config=config,
        classes=progress.classes,
        settings=settings,
        dynamic_batch=True,
    )
    return Exported(
        run=run,
        onnx=EXPORTERS["onnx"].write(subject),
        classes=progress.classes,
        size_px=config.ingest.size_px,
        calibration=read_calibration(run, progress.global_step),
        name=f"{config.model.backbone}, epoch {progress.epoch}",
    )


class Answerer:
    """Turns pixels into answers."""

    def __init__(self, exported: Exported, config: ServiceConfig) -> None:
        self.exported, self._config = exported, config
        self._session = open_session(exported.onnx, shares_cores=True)

    def compute(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Return logits_BK."""
        return np.asarray(self._session.run(None, {"images": images_BHWC})[0])

    def explain(self, image_HWC: np.ndarray) -> bytes:
        """Return Grad-CAM of the likeliest class over a grey copy of an image: a PNG.

        Raises:
            UserError: where the network has no convolutions.
        """
        label = int(self.compute(image_HWC[None])[0].argmax())
        config, model = self._trained
        settings = replace(step_settings(config, torch.device("cpu")), autocast_dtype=None)
        _, heats_BJHW = grad_cam(
            model,
            torch.tensor(image_HWC)[None],
            torch.tensor([[label]]),
            settings,
            find(config.model.backbone),
        )
        heat_HW1 = heats_BJHW[0, 0].numpy()[..., None]
        colours_HWC = cv2.applyColorMap((255 * heat_HW1).astype(np.uint8), cv2.COLORMAP_INFERNO)
        grey_HW1 = 0.8 * image_HWC.mean(2, keepdims=True) + 48
        blend_HWC = (1 - 0.75 * heat_HW1) * grey_HW1 + 0.75 * heat_HW1 * colours_HWC
        return cv2.imencode(".png", blend_HWC.clip(0, 255).astype(np.uint8))[1].tobytes()

    @cached_property
    def _trained(self) -> tuple[FinetuneConfig, nn.Module]:
        """The network in torch, for gradients."""
        config, _, model = load_best_model(self.exported.run)
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
            least = calibration.least_probability(self._config.coverage)
            answer |= {
                "unknown": score > calibration.unknown_threshold(self._config.refused),
                "unknown_score": score,
                "class_set": [classes[k] for k in order_K if probabilities_K[k] >= least],
            }
        return answer
