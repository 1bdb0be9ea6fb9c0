"""Obstacles between the camera and a car: a pole, a passer-by, a bush, the end of another car.

Pictures are uint8 [H, W, 3] RGB and are drawn upon in place.
"""

from collections.abc import Callable

import cv2
import numpy as np

from datasets.synthetic.car_view import Light, fill

# Outlines of a passer-by one unit tall, standing at (0, 0); y points down.
_COAT = np.array([
    [-0.05, -0.85], [0.05, -0.85], [0.1, -0.75], [0.1, -0.45], [-0.1, -0.45], [-0.1, -0.75],
])  # fmt: skip
# Outlines of another car that reaches in from the left to x = 0.
_FENDER = np.array([
    [-1, 0.1], [-1, -0.62], [-0.4, -0.58], [-0.05, -0.45], [0, -0.2], [-0.02, 0.1],
])  # fmt: skip
_FENDER_BAND = np.array([[-1, -0.45], [-0.08, -0.4], [-0.03, -0.3], [-1, -0.33]])
_FENDER_LAMP = np.array([[-0.2, -0.42], [-0.07, -0.4], [-0.03, -0.3], [-0.16, -0.33]])


def draw_obstacle(picture: np.ndarray, rng: np.random.Generator, light: Light) -> None:
    """Draw one of the OBSTACLES at a random place."""
    tone = rng.uniform(30, 200) * rng.uniform(0.7, 1, 3) * light.level
    OBSTACLES[rng.integers(len(OBSTACLES))](picture, rng, light, tone)


def _pole(picture: np.ndarray, rng: np.random.Generator, light: Light, tone: np.ndarray) -> None:
    height, width = picture.shape[:2]
    x, half = rng.uniform(0.05, 0.95) * width, rng.uniform(0.008, 0.03) * width
    grey = 0.2 * tone + 0.8 * tone.mean()
    for share, shade in ((1, 0.6), (0.55, 1.0), (0.2, 1.3)):
        left, right = x - half, x - half + 2 * half * share
        edge = np.array([[left, 0], [right, 0], [right, height], [left, height]])
        fill(picture, edge, grey * shade)


def _passer_by(
    picture: np.ndarray, rng: np.random.Generator, light: Light, tone: np.ndarray
) -> None:
    height, width = picture.shape[:2]
    size = rng.uniform(0.5, 0.8) * height
    place = np.array([rng.uniform(0.05, 0.95) * width, rng.uniform(0.95, 1.1) * height])
    skin = rng.uniform(0.45, 1) * np.array([235, 190, 165]) * light.level
    step = rng.uniform(0.04, 0.13)
    legs = np.array([
        [-0.06, -0.5], [0.07, -0.5], [step, 0], [step - 0.06, 0],
        [0, -0.38], [0.05 - step, 0], [-step, 0],
    ])  # fmt: skip
    fill(picture, legs * size + place, tone[::-1] * 0.5)
    fill(picture, _COAT * size + place, tone)
    head = np.linspace(0, 2 * np.pi, 17)[:-1]
    outline = np.stack([0.055 * np.cos(head), 0.07 * np.sin(head) - 0.92], 1)
    fill(picture, outline * size + place, skin)


def _bush(picture: np.ndarray, rng: np.random.Generator, light: Light, tone: np.ndarray) -> None:
    height, width = picture.shape[:2]
    x = rng.uniform(0.0, 1.0) * width
    leaf = rng.uniform([40, 75, 25], [95, 125, 60]) * light.level
    for _ in range(14):
        centre = round(x + rng.normal(0, 0.07) * width), round(rng.uniform(0.88, 1.05) * height)
        radius, shade = round(rng.uniform(0.03, 0.06) * height), rng.uniform(0.6, 1.3)
        cv2.circle(picture, centre, radius, (leaf * shade).tolist(), -1, cv2.LINE_AA)


def _other_car(
    picture: np.ndarray, rng: np.random.Generator, light: Light, tone: np.ndarray
) -> None:
    height, width = picture.shape[:2]
    size = rng.uniform(0.45, 0.7) * height
    reach = np.array([rng.uniform(0.08, 0.22) * width / size, 0])
    from_right = rng.random() < 0.5
    place = np.array([width if from_right else 0, 0.98 * height])
    scale = np.array([-size if from_right else size, size])
    fill(picture, (_FENDER + reach) * scale + place, tone)
    fill(picture, (_FENDER_BAND + reach) * scale + place, tone * 1.25)
    fill(picture, (_FENDER_LAMP + reach) * scale + place, light.dim((215, 212, 200)))


Obstacle = Callable[[np.ndarray, np.random.Generator, Light, np.ndarray], None]
OBSTACLES: tuple[Obstacle, ...] = (_pole, _passer_by, _bush, _other_car)
