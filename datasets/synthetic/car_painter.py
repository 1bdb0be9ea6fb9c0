"""Paint one car into a picture, from far to near: far wheels, body, its parts, near wheels."""

from functools import lru_cache

import cv2
import numpy as np

from datasets.synthetic.car_parts import (
    Part,
    end_parts,
    side_parts,
    wheel_parts,
    wheel_plane,
    wheel_ring,
)
from datasets.synthetic.car_shapes import GLASS, PAINT, End, Shape
from datasets.synthetic.car_view import SHIFT, Camera, Colour, Light, fill, line

_GLASS_TINT = (22, 27, 32)
_DULL_INKS: dict[str, Colour] = {
    "black": (20, 20, 22),
    "plastic": (36, 36, 38),
    "tyre": (30, 30, 32),
    "void": (10, 10, 11),
    "chrome": (214, 217, 221),
    "plate": (228, 228, 220),
    "nose_lamp": (205, 211, 217),
    "tail_lamp": (178, 24, 26),
}
_BURNING: dict[str, Colour] = {"nose_lamp": (255, 252, 235), "tail_lamp": (255, 48, 36)}


@lru_cache(maxsize=256)
def _side(shape: Shape) -> list[Part]:
    return side_parts(shape)


@lru_cache(maxsize=1024)
def _end(shape: Shape, end: End, seen: bool) -> list[Part]:
    return end_parts(shape, end, seen=seen)


def paint_car(
    picture: np.ndarray,
    camera: Camera,
    light: Light,
    shape: Shape,
    paint: Colour,
    *,
    spin: float,
    lamps_on: bool,
) -> None:
    """Draw a car; spin turns its wheels, in radians."""
    inks = _mix_inks(camera, light, shape, paint, lamps_on)
    design = shape.design
    axles = design.front_axle, design.rear_axle
    for d in axles:
        _tread(picture, camera, shape, d, -1, inks["tyre"])
    _underbody(picture, camera, shape, inks["void"])
    _body(picture, camera, light, shape, paint)
    parts = list(_side(shape))
    nose_seen = bool(camera.position[0] > design.length / 2)
    tail_seen = bool(camera.position[0] < -design.length / 2)
    parts += _end(shape, "nose", nose_seen) + _end(shape, "tail", tail_seen)
    _draw(picture, camera, parts + _trimmings(shape), inks)
    for d in axles:
        _tread(picture, camera, shape, d, 1, inks["tyre"])
        _draw(picture, camera, wheel_parts(shape, d, spin), inks)


def _draw(
    picture: np.ndarray, camera: Camera, parts: list[Part], inks: dict[str, np.ndarray]
) -> None:
    pixels = camera.project(np.concatenate([part.points for part in parts]))
    start = 0
    for part in parts:
        points = pixels[start : start + len(part.points)]
        start += len(part.points)
        if part.stroke_m:
            line(picture, points, inks[part.ink], part.stroke_m * camera.px_per_m)
        else:
            fill(picture, points, inks[part.ink])


def _mix_inks(
    camera: Camera, light: Light, shape: Shape, paint: Colour, lamps_on: bool
) -> dict[str, np.ndarray]:
    """Colours of all inks in this light."""
    dull = {name: light.dim(colour) for name, colour in _DULL_INKS.items()}
    burning = {name: np.array(colour) for name, colour in _BURNING.items()} if lamps_on else {}
    lean = np.array([[0, 1, shape.design.tumble]]) / np.hypot(1, shape.design.tumble)
    middle = np.array([[0, shape.design.width / 2, shape.design.belt]])
    glass = light.shade(lean, _to_eye(camera, middle), _GLASS_TINT, 1.0)[0]
    up, out = np.array([[0.0, 0.0, 1.0]]), np.array([[0.0, 0.95, 0.3]])
    rim_tone = 0.12 + 0.88 * shape.design.rim_tone
    return dull | burning | {
        "glass": glass,
        "glass_sky": 0.85 * glass + 0.14 * light.sky_rgb,
        "rim": light.dim(np.array([240, 242, 245]) * rim_tone),
        "seam": light.dim(paint) * 0.3,
        "mirror": light.shade(out, _to_eye(camera, middle), paint, 0.5)[0] * 0.85,
        "wing": light.shade(up, _to_eye(camera, middle), paint, 0.5)[0],
        "wing_edge": light.dim(paint) * 0.5,
    }  # fmt: skip


def _to_eye(camera: Camera, points: np.ndarray) -> np.ndarray:
    ray = camera.position - points
    return ray / np.linalg.norm(ray, axis=1, keepdims=True)


def _tread(
    picture: np.ndarray, camera: Camera, shape: Shape, d: float, side: int, colour: np.ndarray
) -> None:
    y = wheel_plane(shape, d)
    faces = np.stack([wheel_ring(shape, d, side * (y - inward), 1.0) for inward in (0.0, 0.22)])
    hull = cv2.convexHull(camera.project(faces).reshape(-1, 2).astype(np.float32))
    fill(picture, hull[:, 0], colour * 0.55)


def _underbody(picture: np.ndarray, camera: Camera, shape: Shape, colour: np.ndarray) -> None:
    x, y = shape.design.length / 2 - 0.25, shape.design.width * 0.42
    low = shape.design.wheel_radius * 0.55
    box = [[sx * x, sy * y, z] for sx in (-1, 1) for sy in (-1, 1) for z in (low, low + 0.35)]
    hull = cv2.convexHull(camera.project(np.array(box)).astype(np.float32))
    fill(picture, hull[:, 0], colour)


def _body(picture: np.ndarray, camera: Camera, light: Light, shape: Shape, paint: Colour) -> None:
    to_eye = camera.position - shape.centres_Q3
    depth_Q = np.linalg.norm(to_eye, axis=1)
    facing_Q = np.sum(shape.normals_Q3 * to_eye, 1)
    seen = np.flatnonzero(facing_Q > 0)
    seen = seen[np.argsort(-depth_Q[seen], kind="stable")]
    material = shape.materials_Q[seen]
    colours = np.where(material[:, None] == PAINT, [paint], [(24, 26, 29)])
    gloss = np.where(material == GLASS, 1.0, 0.7)[:, None]
    to_eye = to_eye[seen] / depth_Q[seen, None]
    colours = light.shade(shape.normals_Q3[seen], to_eye, colours, gloss).tolist()
    corners = np.round(camera.project(shape.quads_Q43[seen]) * (1 << SHIFT)).astype(np.int32)
    for quad, colour in zip(corners, colours, strict=True):
        cv2.fillConvexPoly(picture, quad, colour, cv2.LINE_AA, SHIFT)
    for ring, forward in ((shape.points_SP3[0], 1), (shape.points_SP3[-1], -1)):
        if forward * (camera.position[0] - ring[0, 0]) > 0:
            normal = np.array([[forward * 0.98, 0.0, 0.2]])
            colour = light.shade(normal, _to_eye(camera, ring[:1]), paint, 0.5)[0]
            fill(picture, camera.project(ring), colour)


@lru_cache(maxsize=256)
def _trimmings(shape: Shape) -> list[Part]:
    """Mirror and spoiler."""
    design = shape.design
    base = shape.on_side(
        shape.cowl + 0.3 * design.windshield + 0.12, shape.shoulder(shape.cowl) + 0.1
    )
    sweep = [[0.1, 0, -0.06], [0.08, 0.2, -0.05], [-0.04, 0.22, 0.08], [-0.1, 0, 0.07]]
    parts = [Part(base + np.array(sweep), "mirror")]
    if design.roof_style == 3 and design.body != "pickup":
        on_roof = design.body in ("suv", "hatchback", "van")
        d = shape.roof_end + 0.05 if on_roof else design.length - 0.12
        top = float(shape.top(d))
        y, z = 0.95 * float(shape.half_width(d, top - 0.05)), top + (0.02 if on_roof else 0.1)
        front, back = design.length / 2 - d + 0.12, design.length / 2 - d - 0.24
        wing = np.array([[front, y, z], [back, y, z + 0.03], [back, -y, z + 0.03], [front, -y, z]])
        parts += [Part(wing - [0, 0, 0.05], "wing_edge"), Part(wing, "wing")]
    return parts
