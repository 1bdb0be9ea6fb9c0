"""The augmentation policies, as lists of Albumentations' transforms.

`light` and `cars` begin with the random crop, which is drawn before the image is decoded. `flip` is
`none` here: augment.py mirrors, by the number of the view.
"""

import math
import os
import sys
from typing import Any

import cv2
import numpy as np

from datasets.config import Policy

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network at import otherwise
# It also imports torch where it finds it, for converters that are not used here: 1.4 s and 300 MiB
# of each reader. It works without.
_without_torch = sys.modules.setdefault("torch", None) is None  # pyright: ignore
try:
    import albumentations as A
finally:
    if _without_torch:
        del sys.modules["torch"]

# RGB -> YIQ: Y is the luma; (I, Q) is the chroma, its length the saturation, its angle the hue.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _in_rgb(map_of_yiq: list[list[int]]) -> np.ndarray:
    return np.linalg.inv(_YIQ) @ np.array(map_of_yiq) @ _YIQ


_GREY = _in_rgb([[1, 0, 0], [0, 0, 0], [0, 0, 0]])
_CHROMA = _in_rgb([[0, 0, 0], [0, 1, 0], [0, 0, 1]])
_TURNED_CHROMA = _in_rgb([[0, 0, 0], [0, 0, -1], [0, 1, 0]])
_MID_GREY = 127.5


class JitterColour(A.ImageOnlyTransform):
    """Jitter saturation and hue, contrast about mid-grey, and brightness, all by one matrix.

    One pass where A.ColorJitter takes four, at a tenth of the cost. Saturation, contrast and
    brightness are factors drawn from 1 - x to 1 + x; hue turns by up to that part of a full turn.
    """

    def __init__(
        self, *, brightness: float, contrast: float, saturation: float, hue: float, p: float
    ) -> None:
        super().__init__(p=p)
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue

    def get_params(self) -> dict[str, Any]:
        draw = self.py_random.uniform
        brightness = 1 + draw(-self.brightness, self.brightness)
        contrast = 1 + draw(-self.contrast, self.contrast)
        saturation = 1 + draw(-self.saturation, self.saturation)
        turn = 2 * math.pi * draw(-self.hue, self.hue)
        return {"matrix": colour_matrix(brightness, contrast, saturation, turn)}

    def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        return cv2.transform(img, matrix)


def colour_matrix(brightness: float, contrast: float, saturation: float, turn: float) -> np.ndarray:
    """Return `[3, 4]`: RGB in levels and 1 -> RGB in levels; `turn` of the hue is in radians."""
    cosine, sine = saturation * math.cos(turn), saturation * math.sin(turn)
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * (_GREY + cosine * _CHROMA + sine * _TURNED_CHROMA)
    matrix[:, 3] = brightness * (1 - contrast) * _MID_GREY
    return matrix


def _none(size_px: int) -> list[A.BasicTransform]:
    return [A.SmallestMaxSize(size_px), A.CenterCrop(size_px, size_px)]


def _light(size_px: int) -> list[A.BasicTransform]:
    return [
        A.RandomResizedCrop((size_px, size_px), scale=(0.7, 1.0), ratio=(0.8, 1.25)),
        A.HorizontalFlip(),
    ]


def _cars(size_px: int) -> list[A.BasicTransform]:
    # No vertical flip or large rotation: cars are upright. Colour says little about a model, so it
    # is jittered; hue only a little, as the colours of lamps and plates are informative.
    hole = (0.1, 0.3)
    return [
        A.RandomResizedCrop((size_px, size_px), scale=(0.5, 1.0), ratio=(0.75, 1.333)),
        A.HorizontalFlip(),
        JitterColour(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.02, p=0.8),
        A.ToGray(p=0.05),
        A.CoarseDropout((1, 2), hole_height_range=hole, hole_width_range=hole, p=0.25),
    ]


POLICIES = {"none": _none, "flip": _none, "light": _light, "cars": _cars}


def build_policy(policy: Policy, size_px: int) -> A.Compose:
    """Build the policy as an Albumentations pipeline with its own random state."""
    return A.Compose([*POLICIES[policy](size_px)])
