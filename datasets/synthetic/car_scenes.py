"""Where a car is photographed: the background behind it and its shadow.

Nothing here knows which car it is: a scene is drawn from its own random numbers alone. Pictures are
uint8 [H, W, 3] RGB and are drawn upon in place.
"""

from collections.abc import Callable

import cv2
import numpy as np

from datasets.synthetic.car_view import Camera, Light, fill

Scene = Callable[[np.ndarray, Camera, np.random.Generator, Light], None]


# A car far away, four units long; y points down.
_PARKED = np.array([
    [0, 0], [0, -0.55], [0.9, -0.7], [1.3, -1.2], [2.8, -1.2], [3.3, -0.7], [4, -0.6], [4, 0],
])  # fmt: skip
_PARKED_GLASS = np.array([[1.05, -0.72], [1.4, -1.1], [2.7, -1.1], [3.1, -0.72]])


def draw_background(
    picture: np.ndarray, camera: Camera, rng: np.random.Generator, light: Light
) -> None:
    """Draw sky, ground and one of the SCENES."""
    height = len(picture)
    horizon = int(np.clip(camera.horizon_px, 2, height - 2))
    sky_low = 0.35 * light.sky_rgb + 0.65 * np.array([238, 236, 230]) * light.sky_rgb.mean() / 255
    _gradient(picture[:horizon], light.sky_rgb * 0.85, sky_low)
    ground = light.ground_rgb
    _gradient(picture[horizon:], ground * 0.95 + 0.05 * sky_low, ground * 0.8)
    SCENES[rng.integers(len(SCENES))](picture, camera, rng, light)


def _gradient(picture: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> None:
    share = np.linspace(0, 1, len(picture))[:, None]
    rows = np.clip((1 - share) * top + share * bottom, 0, 255).astype(np.uint8)
    picture[:] = rows[:, None]


def _box(
    picture: np.ndarray, left: float, top: float, width: float, height: float, colour: np.ndarray
) -> None:
    low, high = (round(left), round(top)), (round(left + width), round(top + height))
    cv2.rectangle(picture, low, high, np.minimum(colour, 255).tolist(), -1)


def _strip(
    picture: np.ndarray,
    camera: Camera,
    along: tuple[float, float],
    across: tuple[float, float],
    colour: np.ndarray,
) -> None:
    """Paint a rectangle on the ground, from one x to another and one y to another (metres)."""
    (x0, x1), (y0, y1) = along, across
    outline = camera.ground([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if len(outline):
        fill(picture, outline, colour)


def _grain(picture: np.ndarray, rng: np.random.Generator, first_row: int, strength: float) -> None:
    """Blotches on the ground below a row."""
    part = picture[first_row:]
    if len(part) < 4:
        return
    coarse = rng.integers(0, 255, (max(len(part) // 5, 2), max(part.shape[1] // 12, 2)), np.uint8)
    blotches = cv2.resize(coarse, (part.shape[1], len(part)), interpolation=cv2.INTER_CUBIC)
    faint = cv2.merge([cv2.convertScaleAbs(blotches, alpha=strength)] * 3)
    cv2.add(part, faint, part)


def _trees(picture: np.ndarray, rng: np.random.Generator, base: float, light: Light) -> None:
    height, width = picture.shape[:2]
    leaf = np.array([rng.uniform(35, 120), rng.uniform(75, 125), rng.uniform(25, 60)]) * light.level
    for _ in range(rng.integers(2, 6)):
        size = rng.uniform(0.08, 0.28) * height
        x = rng.uniform(-0.05, 1.05) * width
        trunk = np.array([[-0.07, 0], [0.07, 0], [0.05, -1.2], [-0.05, -1.2]]) * size + [x, base]
        fill(picture, trunk, np.array([70, 52, 38]) * light.level)
        for _ in range(6):
            dx, dy, r = rng.uniform([-0.6, -1.9, 0.35], [0.6, -0.9, 0.65]) * size
            tone = leaf * rng.uniform(0.7, 1.25)
            centre = round(x + dx), round(base + dy)
            cv2.circle(picture, centre, max(1, round(r)), tuple(np.minimum(tone, 255)), -1)


def _hills(picture: np.ndarray, camera: Camera, rng: np.random.Generator, light: Light) -> None:
    height, width = picture.shape[:2]
    x = np.linspace(0, width, 24)
    haze = light.sky_rgb * 0.7
    for layer in range(rng.integers(1, 4)):
        share = 0.35 + 0.25 * layer
        tone = rng.uniform([40, 70, 40], [110, 110, 80]) * light.level
        crest = rng.uniform(0.02, 0.22) / (layer + 1) * height
        waves = np.sin(x / width * rng.uniform(3, 11) + rng.uniform(0, 6)) * rng.uniform(0.2, 0.6)
        y = camera.horizon_px - crest * (1 + waves)
        below = [[width, camera.horizon_px + 2], [0, camera.horizon_px + 2]]
        ridge = np.concatenate([np.stack([x, y], 1), below])
        fill(picture, ridge, share * tone + (1 - share) * haze)


def _country(picture: np.ndarray, camera: Camera, rng: np.random.Generator, light: Light) -> None:
    """A road through fields."""
    horizon = int(np.clip(camera.horizon_px, 0, len(picture) - 1))
    _hills(picture, camera, rng, light)
    grass = rng.uniform([70, 95, 35], [150, 140, 70]) * light.level
    _gradient(picture[horizon:], grass * 0.9, grass * 1.05)
    if rng.random() < 0.7:
        _trees(picture, rng, camera.horizon_px + 0.02 * len(picture), light)
    near, far = rng.uniform(2.5, 6), rng.uniform(-6, -2)
    _strip(picture, camera, (-60, 60), (far, near), light.ground_rgb * 0.85)
    _grain(picture, rng, horizon, 0.08)
    lane = rng.uniform(-1.6, -1.2) + far * 0.3
    for x in range(-24, 24, 4):
        colour = np.array([225, 222, 205]) * light.level
        _strip(picture, camera, (x, x + 2), (lane - 0.14, lane), colour)


def _city(picture: np.ndarray, camera: Camera, rng: np.random.Generator, light: Light) -> None:
    """House fronts across a street with a kerb."""
    height, width = picture.shape[:2]
    base = camera.horizon_px + rng.uniform(0.03, 0.1) * height
    x = -rng.uniform(0, 0.2) * width
    while x < width:
        wide, tall = rng.uniform(0.15, 0.45) * width, rng.uniform(0.3, 1.1) * base
        tone = rng.uniform(70, 215) * rng.uniform([0.9, 0.8, 0.7], [1, 1, 1]) * light.level
        _box(picture, x, base - tall, wide, tall, tone)
        pitch, floor = rng.uniform(0.05, 0.09) * width, rng.uniform(0.08, 0.15) * height
        pane = rng.uniform(0.3, 1.1) * tone * [0.75, 0.85, 1.0] + 12
        for left in np.arange(x + 0.3 * pitch, x + wide - 0.7 * pitch, pitch):
            for top in np.arange(base - tall + 0.3 * floor, base - 0.9 * floor, floor):
                _box(picture, left, top, 0.5 * pitch, 0.55 * floor, pane)
        x += wide
    if rng.random() < 0.5:
        _trees(picture, rng, base, light)
    pavement = np.array([150, 147, 142]) * light.level
    _gradient(picture[max(int(base), 0) :], pavement * 0.9, pavement)
    kerb = rng.uniform(-3.5, -1.6)
    _strip(picture, camera, (-60, 60), (kerb, 9), light.ground_rgb * 0.8)
    _strip(picture, camera, (-60, 60), (kerb - 0.18, kerb), pavement * 1.2)
    _grain(picture, rng, max(int(base), 0), 0.06)


def _wall(picture: np.ndarray, camera: Camera, rng: np.random.Generator, light: Light) -> None:
    """A wall of bricks, panels or plain plaster close behind the car."""
    height, width = picture.shape[:2]
    base = float(camera.ground([[0, 0], [0.1, 0], [0, 0.1]])[0, 1])
    base = camera.horizon_px + rng.uniform(0.35, 0.6) * (base - camera.horizon_px)
    tone = rng.uniform(90, 220) * rng.uniform([0.95, 0.85, 0.68], [1, 1, 1]) * light.level
    if rng.random() < 0.35:
        tone = rng.uniform([120, 55, 40], [175, 90, 70]) * light.level
    last = int(np.clip(base, 1, height))
    _gradient(picture[:last], tone, tone * 0.8)
    kind = rng.integers(4)
    joint = tuple(np.minimum(tone * rng.uniform(0.7, 1.15), 255))
    if kind < 2:
        course = (0.05 if kind == 0 else 0.2) * height
        for row, y in enumerate(np.arange(base, 0, -course)):
            cv2.line(picture, (0, round(y)), (width, round(y)), joint, 1)
            for x in np.arange((row % 2) * course, width, 2 * course):
                cv2.line(picture, (round(x), round(y)), (round(x), round(y - course)), joint, 1)
    elif kind == 2:
        for y in np.arange(base, 0.1 * height, -0.035 * height):
            cv2.line(picture, (0, round(y)), (width, round(y)), joint, 1)
    _box(picture, 0, base, width, 0.02 * height, tone * 0.45)
    _grain(picture, rng, last, 0.06)


def _parking(picture: np.ndarray, camera: Camera, rng: np.random.Generator, light: Light) -> None:
    """Painted bays, parked cars far behind and trees behind those."""
    height, width = picture.shape[:2]
    _trees(picture, rng, camera.horizon_px + 0.01 * height, light)
    _grain(picture, rng, int(np.clip(camera.horizon_px, 0, height)), 0.07)
    paint = np.array([228, 226, 215]) * light.level
    pitch = rng.uniform(2.5, 3.2)
    along = rng.random() < 0.5
    for k in range(-6, 7):
        across, reach = ((k + 0.5) * pitch, (k + 0.5) * pitch + 0.12), (-6, 1.2)
        _strip(picture, camera, *((across, reach) if along else (reach, across)), paint)
    size = rng.uniform(0.05, 0.09) * height
    for x in np.arange(-0.1, 1.1, 4.6 * size / width) * width:
        if rng.random() < 0.55:
            tone = rng.uniform(30, 230) * rng.uniform(0.6, 1, 3) * light.level
            place = np.array([x, camera.horizon_px + 0.05 * height])
            fill(picture, _PARKED * size + place, tone)
            fill(picture, _PARKED_GLASS * size + place, tone * 0.25 + 10)
            for wheel in (0.8, 3.2):
                centre = round(x + wheel * size), round(place[1])
                cv2.circle(picture, centre, max(1, round(0.32 * size)), (15, 15, 15), -1)


SCENES: tuple[Scene, ...] = (_country, _city, _wall, _parking)


def draw_shadow(
    picture: np.ndarray, camera: Camera, points: np.ndarray, light: Light, strength: float
) -> None:
    """Darken the ground below a body and where it keeps the sun away; points [N, 3]."""
    height, width = picture.shape[:2]
    below = points * [1, 1, 0]
    cast = below - light.sun * (points[:, 2:] / light.sun[2])
    mask = np.full((height // 4, width // 4), 255, np.uint8)
    for ground, depth, blur in ((cast, strength, 1.2), (below * [0.97, 0.98, 0], 0.75, 2.4)):
        hull = cv2.convexHull((camera.project(ground) / 4).astype(np.float32))[:, 0]
        layer = np.full_like(mask, 255)
        fill(layer, hull, [255 * (1 - depth)] * 3)
        layer = cv2.GaussianBlur(layer, (0, 0), blur * height / 320)
        mask = cv2.multiply(mask, layer, scale=1 / 255)
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
    cv2.multiply(picture, cv2.merge([mask] * 3), picture, scale=1 / 255)
