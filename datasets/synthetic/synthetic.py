"""Procedural photographs of invented cars: the data set that needs no download.

The class is in the design (`car_shapes`): proportions, roof line, windows, wheels, lamps, grille.
Everything else is chance and the same for every class: paint, light, viewpoint, place
(`car_scenes`), scale, obstacles, blur and noise.
"""

import zlib
from functools import lru_cache

import cv2
import numpy as np

from datasets.synthetic.car_obstacles import draw_obstacle
from datasets.synthetic.car_painter import paint_car
from datasets.synthetic.car_scenes import draw_background, draw_shadow
from datasets.synthetic.car_shapes import BODIES, body_of, shape_of
from datasets.synthetic.car_view import Camera, Colour, Light
from datasets.synthetic.config import SyntheticConfig

__all__ = ["BODIES", "class_names", "label_of", "render"]

_SUPERSAMPLE = 2
_NOISE_LENGTH = 1 << 18
_MAKES = (
    "Aurel", "Bravik", "Corvane", "Dalmor", "Estrin", "Galdor", "Halvex",
    "Ilmaro", "Kestova", "Lumbrel", "Marwen", "Norvane", "Ostrel", "Pellaro",
)  # fmt: skip
_MODELS = (
    "Vanta", "Sorrin", "Tavo", "Quillan", "Ondara", "Merro", "Kivo", "Zephra", "Brisa", "Calyx",
    "Fenro", "Halden", "Isolde", "Orsa", "Pindra", "Rovel", "Solven", "Tarnik", "Ulmo", "Velda",
)  # fmt: skip
_BODY_TITLES = ("Sedan", "Coupe", "SUV", "Van", "Pickup", "Hatchback")

# Hue, saturation and value of paints as they are seen on a road, and how common they are.
_PAINTS = (
    ((0, 0.02, 0.95), 0.16), ((30, 0.03, 0.72), 0.13), ((210, 0.06, 0.42), 0.11),
    ((220, 0.1, 0.12), 0.1), ((358, 0.88, 0.76), 0.15), ((213, 0.82, 0.66), 0.14),
    ((150, 0.6, 0.4), 0.06), ((45, 0.88, 0.93), 0.05), ((20, 0.86, 0.88), 0.05),
    ((35, 0.35, 0.66), 0.05),
)  # fmt: skip


def class_names(config: SyntheticConfig) -> tuple[str, ...]:
    """Name every class: make, model, body and year, or the bodies that occur."""
    if config.label_by == "body":
        return BODIES[: config.num_classes]
    rng = np.random.default_rng([config.seed, _stable_hash("names")])
    pairs = rng.permutation(len(_MAKES) * len(_MODELS))[: config.num_classes]
    years = rng.integers(1998, 2025, 196)
    return tuple(
        f"{_MAKES[pair % len(_MAKES)]} {_MODELS[pair // len(_MAKES)]} "
        f"{_BODY_TITLES[BODIES.index(body_of(model))]} {years[model]}"
        for model, pair in enumerate(pairs)
    )


def label_of(config: SyntheticConfig, model: int) -> int:
    """Index of a model's class in `class_names`."""
    return model if config.label_by == "model" else BODIES.index(body_of(model))


def render(config: SyntheticConfig, model: int, index: int, split: str) -> np.ndarray:
    """Take one photograph: uint8 RGB [render_px, 4/3 render_px, 3].

    It depends on (config.seed, config.render_px, model, index, split) alone.
    """
    rng = np.random.default_rng([config.seed, model, index, _stable_hash(split)])
    height, width = config.render_px, round(config.render_px * 4 / 3)
    shape = shape_of(config.seed, model)
    camera = _place_camera(rng, (width, height), shape.points_SP3)
    light, paint = _choose_light(rng), _choose_paint(rng)

    backdrop = np.empty((height, width, 3), np.uint8)
    draw_background(backdrop, camera, rng, light)
    softness = rng.uniform(0.0, 1.6) * height / 160
    if softness > 0.3:
        backdrop = cv2.GaussianBlur(backdrop, (0, 0), softness)
    large = width * _SUPERSAMPLE, height * _SUPERSAMPLE
    picture = cv2.resize(backdrop, large, interpolation=cv2.INTER_LINEAR)
    camera.enlarge(_SUPERSAMPLE)
    sharp_sun = float(light.sun_rgb.mean() / (light.sun_rgb + light.sky_rgb).mean())
    draw_shadow(picture, camera, shape.points_SP3[::3].reshape(-1, 3), light, sharp_sun)
    spin, lamps_on = rng.uniform(0, 2 * np.pi), rng.random() < 0.2
    paint_car(picture, camera, light, shape, paint, spin=spin, lamps_on=lamps_on)
    if rng.random() < 0.3:
        draw_obstacle(picture, rng, light)
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return _expose(picture, rng)


def _stable_hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _place_camera(rng: np.random.Generator, size: tuple[int, int], points: np.ndarray) -> Camera:
    kind = rng.random()
    if kind < 0.34:
        yaw = rng.normal(0, 8)
    elif kind < 0.74:
        yaw = rng.uniform(18, 62)
    else:
        yaw = -rng.uniform(18, 60)
    camera = Camera(
        yaw=float(np.radians(yaw)),
        height_m=rng.uniform(0.9, 2.6),
        distance_m=rng.uniform(6.5, 13),
        roll=float(np.radians(rng.normal(0, 1.6))),
        size=size,
    )
    shift = rng.uniform(-0.8, 0.8), rng.uniform(0.0, 0.7)
    camera.frame(points, fill_share=rng.uniform(0.7, 0.97), shift=shift)
    return camera


def _choose_light(rng: np.random.Generator) -> Light:
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(28, 75))
    sun = np.array([
        np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
    ])  # fmt: skip
    brightness, cloud, warmth = rng.uniform(0.7, 1.15), rng.random(), rng.normal(0, 0.05)
    tint = np.array([1 + warmth, 1, 1 - warmth])
    blue, grey = np.array([142, 184, 238]), np.array([212, 216, 222])
    return Light(
        sun=sun,
        sun_rgb=brightness * (1 - 0.85 * cloud) * 165 * tint * [1.05, 1.0, 0.9],
        sky_rgb=brightness * tint * ((1 - cloud) * blue + cloud * grey),
        ground_rgb=brightness
        * tint
        * rng.uniform(75, 165)
        * rng.uniform([1, 0.96, 0.88], [1, 1, 1.03]),
    )


def _choose_paint(rng: np.random.Generator) -> Colour:
    shares = np.array([share for _, share in _PAINTS])
    hue, saturation, value = _PAINTS[rng.choice(len(_PAINTS), p=shares / shares.sum())][0]
    hue = (hue + rng.normal(0, 5)) % 360
    saturation = np.clip(saturation * rng.uniform(0.7, 1.1), 0, 1)
    value = np.clip(value * rng.uniform(0.8, 1.15), 0.04, 0.97)
    pixel = np.array([[[hue, saturation, value]]], np.float32)
    red, green, blue = 255 * cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]
    return float(red), float(green), float(blue)


@lru_cache(maxsize=4)
def _noise(length: int) -> np.ndarray:
    """Noise that images take slices of: new noise would cost more than the car."""
    return np.random.default_rng(0).standard_normal(length, np.float32)


def _expose(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lens and sensor: blur, exposure, noise, and the side the car faces."""
    height, width = picture.shape[:2]
    blur = rng.uniform(0, 0.9) * height / 160
    if blur > 0.35:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    gain, offset = rng.uniform(0.9, 1.25), rng.uniform(-12, 12)
    table = np.clip(np.arange(256) * gain + offset, 0, 255).astype(np.uint8)
    start = rng.integers(0, _NOISE_LENGTH)
    noise = _noise(3 * height * width + _NOISE_LENGTH)[start : start + 3 * height * width]
    noise = noise.reshape(height, width, 3) * np.float32(rng.uniform(1, 5.5))
    noisy = cv2.add(cv2.LUT(picture, table), noise, dtype=cv2.CV_8U)
    return np.ascontiguousarray(noisy[:, ::-1]) if rng.random() < 0.5 else noisy
