"""The cars of the synthetic fleet: the design of every model, and its body as a mesh.

A body is a loft: cross-sections at stations d along its length, each from the near sill over the
shoulder and the roof to the far sill. Lengths are metres; x points forward from the car's middle,
y to the near side, z up; d is the distance behind the nose. Shapes: D grid points, S stations,
P points of a section, Q quads.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

BODIES = ("sedan", "coupe", "suv", "van", "pickup", "hatchback")

End = Literal["nose", "tail"]

PAINT, GLASS, TRIM = 0, 1, 2
"""Materials of a mesh."""

PLAN_POWER = 2.5
"""How suddenly nose and tail narrow, seen from above."""
NOSE_ZONE, TAIL_ZONE = 0.7, 0.5

# The minimum and maximum of every measure, by body. `belt` is a share of the height; `hood` and
# `roof_end` are shares of the length; `panes` and `cladding` are choices, the last one excluded.
_BODY_SPANS: dict[str, tuple[tuple[float, float], ...]] = {
    "length": ((4.5, 5.1), (4.15, 4.65), (4.3, 4.95), (4.5, 5.5), (5.0, 5.7), (3.6, 4.2)),
    "height": ((1.38, 1.52), (1.20, 1.36), (1.62, 1.88), (1.85, 2.35), (1.68, 1.92), (1.42, 1.62)),
    "clearance": ((0.15, 0.2), (0.11, 0.16), (0.22, 0.33), (0.17, 0.25), (0.26, 0.37), (0.15, 0.2)),
    "wheel_radius": ((0.3, 0.36), (0.32, 0.37),
        (0.35, 0.43), (0.3, 0.36), (0.37, 0.45), (0.28, 0.34)),
    "belt": ((0.60, 0.68), (0.63, 0.71), (0.56, 0.66), (0.46, 0.57), (0.57, 0.65), (0.58, 0.67)),
    "hood": ((0.24, 0.31), (0.27, 0.37), (0.22, 0.31), (0.08, 0.19), (0.23, 0.29), (0.17, 0.25)),
    "windshield": ((0.6, 0.9), (0.65, 0.95), (0.4, 0.8), (0.35, 0.9), (0.4, 0.75), (0.5, 0.85)),
    "roof_end": ((0.64, 0.74), (0.58, 0.67),
        (0.82, 0.93), (0.93, 0.98), (0.48, 0.62), (0.76, 0.88)),
    "rear_run": ((0.45, 0.9), (0.8, 1.35), (0.15, 0.65), (0.05, 0.2), (0.08, 0.25), (0.2, 0.7)),
    "panes": ((2, 4), (1, 3), (2, 4), (1, 4), (1, 3), (2, 4)),
    "cladding": ((-1, 1), (-2, 1), (-1, 2), (-1, 1), (-1, 2), (-1, 1)),
}  # fmt: skip
_SPANS: dict[str, tuple[float, float]] = {
    "width": (1.74, 1.94),
    "hood_drop": (0.05, 0.24),
    "wedge": (0.0, 0.13),
    "tumble": (0.2, 0.42),
    "roundness": (0.05, 0.3),
    "roof_fall": (0.0, 0.14),
    "roof_peak": (0.15, 0.75),
    "deck_rise": (0.0, 0.12),
    "crease": (0.5, 0.85),
    "crease_slope": (-0.05, 0.1),
    "rear_pillar": (0.08, 0.38),
    "front_axle": (0.165, 0.2),
    "rear_axle": (0.19, 0.24),
    "rim_ratio": (0.58, 0.8),
    "rim_tone": (0.25, 0.95),
    "lamp_height": (0.68, 0.9),
    "lamp_size": (0.75, 1.3),
    "grille_size": (0.7, 1.25),
    "rim": (0, 6),
    "lamp": (0, 6),
    "tail": (0, 5),
    "grille": (0, 6),
    "roof_style": (0, 4),
    "frame": (0, 3),
}
_CHOICES = ("panes", "cladding", "rim", "lamp", "tail", "grille", "roof_style", "frame")


@dataclass(frozen=True, kw_only=True)
class Design:
    """Properties of a model that are the same in every photograph; in metres unless noted."""

    body: str
    length: float
    width: float
    height: float
    clearance: float
    wheel_radius: float
    belt: float
    hood: float
    windshield: float
    roof_end: float
    rear_run: float
    hood_drop: float
    wedge: float
    tumble: float
    """Lean of the windows: metres inward per metre upward."""
    roundness: float
    roof_fall: float
    roof_peak: float
    deck_rise: float
    crease: float
    crease_slope: float
    rear_pillar: float
    front_axle: float
    rear_axle: float
    rim_ratio: float
    rim_tone: float
    lamp_height: float
    lamp_size: float
    grille_size: float
    panes: int
    """Windows on one side."""
    cladding: int
    """Positive: lower body and arches in black plastic."""
    rim: int
    lamp: int
    tail: int
    grille: int
    roof_style: int
    """1: black roof. 2: rails (suv, van, hatchback). 3: spoiler (no pickup)."""
    frame: int
    """Around the windows: 0 paint, 1 chrome, 2 black."""


def body_of(model: int) -> str:
    return BODIES[model % len(BODIES)]


def design_of(seed: int, model: int) -> Design:
    """Draw the design of one model; it depends only on (seed, model)."""
    body = body_of(model)
    column = BODIES.index(body)
    spans = {name: by_body[column] for name, by_body in _BODY_SPANS.items()} | _SPANS
    # A Kronecker sequence instead of independent draws: models of one body keep apart.
    start = np.random.default_rng([seed, column]).random(len(spans))
    steps = np.sqrt(_primes(len(spans)))
    shares = (start + (model // len(BODIES)) * steps) % 1
    values = {
        name: low + share * (high - low)
        for (name, (low, high)), share in zip(spans.items(), shares, strict=True)
    }
    values |= {name: int(np.floor(values[name])) for name in _CHOICES}
    values["belt"] *= values["height"]
    for name in ("hood", "roof_end", "front_axle", "rear_axle"):
        values[name] *= values["length"]
    values["rear_axle"] = values["length"] - values["rear_axle"]
    return Design(body=body, **values)


def _primes(count: int) -> list[int]:
    primes: list[int] = []
    candidate = 2
    while len(primes) < count:
        if all(candidate % prime for prime in primes):
            primes.append(candidate)
        candidate += 1
    return primes


class Shape:
    """The body of a design as curves over d, a surface, and a mesh of quads."""

    def __init__(self, design: Design) -> None:
        self.design = design
        length, height, belt = design.length, design.height, design.belt
        self.cowl = design.hood
        self.roof_start = design.hood + design.windshield
        self.roof_end = max(design.roof_end, self.roof_start + 0.35)
        self.deck = min(self.roof_end + design.rear_run, length - 0.06)
        self.grid_D = np.linspace(0, length, 160)

        nose = belt + 0.03 - design.hood_drop
        tail = belt + design.wedge + design.deck_rise
        peak = self.roof_start + design.roof_peak * (self.roof_end - self.roof_start)
        top_D = np.interp(
            self.grid_D,
            [0, 0.14, self.cowl, self.roof_start, peak, self.roof_end, self.deck, length],
            [nose - 0.16, nose, belt + 0.04, height - 0.05, height,
             height - design.roof_fall, tail + 0.03, tail - 0.03],
        )  # fmt: skip
        self.top_D = _rounded(top_D, design.roundness / length)
        belt_D = belt + design.wedge * self.grid_D / length
        self.shoulder_D = np.minimum(belt_D, self.top_D - 0.05)
        self.bottom_D = design.clearance + np.interp(
            self.grid_D, [0, 0.6, length - 0.7, length], [0.06, 0, 0, 0.14]
        )
        self._build_mesh()

    def top(self, d: ArrayLike) -> np.ndarray:
        return np.interp(np.asarray(d, float), self.grid_D, self.top_D)

    def shoulder(self, d: ArrayLike) -> np.ndarray:
        return np.interp(np.asarray(d, float), self.grid_D, self.shoulder_D)

    def bottom(self, d: ArrayLike) -> np.ndarray:
        return np.interp(np.asarray(d, float), self.grid_D, self.bottom_D)

    def half_width(self, d: ArrayLike, z: ArrayLike) -> np.ndarray:
        """Distance of the near surface from the middle plane, at d behind the nose and height z."""
        d, z = np.asarray(d, float), np.asarray(z, float)
        bottom, shoulder = self.bottom(d), self.shoulder(d)
        crease = self.design.crease
        share = np.interp(
            (z - bottom) / (shoulder - bottom),
            [0, 0.12, 0.35, crease - 0.1, crease, 1],
            [0.925, 0.965, 0.985, 0.972, 1.0, 0.945],
        )
        nose = np.clip(1 - d / NOSE_ZONE, 0, 1) ** PLAN_POWER
        tail = np.clip(1 - (self.design.length - d) / TAIL_ZONE, 0, 1) ** PLAN_POWER
        plan = 1 - (1 - self.end_share("nose")) * nose - (1 - self.end_share("tail")) * tail
        lean = self.design.tumble * np.maximum(z - shoulder, 0)
        return self.design.width / 2 * share * plan - lean

    def end_share(self, end: End) -> float:
        """Width of the flat end of the body as a share of its full width."""
        if end == "nose":
            return 0.76
        return 0.94 if self.design.body in ("van", "pickup") else 0.85

    def on_side(self, d: ArrayLike, z: ArrayLike) -> np.ndarray:
        """Points [..., 3] of the near side."""
        d, z = np.broadcast_arrays(np.asarray(d, float), np.asarray(z, float))
        return np.stack([self.design.length / 2 - d, self.half_width(d, z), z], -1)

    def on_end(self, end: End, y: ArrayLike, z: ArrayLike) -> np.ndarray:
        """Points [..., 3] of nose or tail; y is a share of the half width, -1 to 1."""
        y, z = np.broadcast_arrays(np.asarray(y, float), np.asarray(z, float))
        flat, zone = self.end_share(end), NOSE_ZONE if end == "nose" else TAIL_ZONE
        inward = np.clip((1 - np.abs(y)) / (1 - flat), 0, 1) ** (1 / PLAN_POWER)
        depth = np.where(np.abs(y) > flat, zone * (1 - inward), 0)
        d = depth if end == "nose" else self.design.length - depth
        # Around the corner the surface is the side's; on the flat end the width is free.
        edge = self.half_width(d, z)
        width = np.where(np.abs(y) > flat, np.sign(y) * edge, y / flat * edge)
        return np.stack([self.design.length / 2 - d, width, z], -1)

    def _build_mesh(self) -> None:
        design, length = self.design, self.design.length
        glass_rear = self.roof_end + 0.06, self.deck - 0.05
        stations = [0, 0.04, 0.14, 0.3, self.cowl, self.cowl + 0.1, self.roof_start - 0.05]
        stations += [self.roof_start, *glass_rear, self.deck, length - 0.12, length]
        stations += list(np.linspace(0.5, length - 0.3, 15))
        d_S = np.unique(np.clip(np.round(stations, 2), 0, length))
        bottom, shoulder, top = self.bottom(d_S), self.shoulder(d_S), self.top(d_S)

        shares = [0, 0.12, 0.35, design.crease - 0.1, design.crease, 1]
        side_z = [bottom + share * (shoulder - bottom) for share in shares]
        side_z += [shoulder + share * (top - 0.04 - shoulder) for share in (0.5, 1)]
        half = [(self.half_width(d_S, z), z) for z in side_z]
        edge = half[-1][0]
        half += [(edge * 0.92, top - 0.005), (edge * 0.45, top + 0.02)]
        half_SP3 = np.stack([np.stack([length / 2 - d_S, y, z], -1) for y, z in half], axis=1)
        mirrored_SP3 = half_SP3[:, ::-1] * np.array([1, -1, 1])
        self.points_SP3 = np.concatenate([half_SP3, mirrored_SP3], axis=1)

        corners = self.points_SP3
        self.quads_Q43 = np.stack(
            [corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=2
        ).reshape(-1, 4, 3)
        across = self.quads_Q43[:, 2] - self.quads_Q43[:, 0]
        along = self.quads_Q43[:, 3] - self.quads_Q43[:, 1]
        normals = np.cross(along, across)
        size = np.linalg.norm(normals, axis=1, keepdims=True)
        self.normals_Q3 = normals / np.maximum(size, 1e-9)
        self.centres_Q3 = self.quads_Q43.mean(1)
        self.materials_Q = self._materials(d_S, glass_rear).reshape(-1)

    def _materials(self, d_S: np.ndarray, glass_rear: tuple[float, float]) -> np.ndarray:
        middle = (d_S[:-1] + d_S[1:]) / 2
        num_strips = self.points_SP3.shape[1] - 1
        material = np.full((len(middle), num_strips), PAINT)
        centre = slice(8, num_strips - 8)
        front_glass = (middle > self.cowl + 0.09) & (middle < self.roof_start - 0.04)
        rear_glass = (middle > glass_rear[0]) & (middle < glass_rear[1])
        material[front_glass | rear_glass, centre] = GLASS
        if self.design.roof_style == 1:
            roof = (middle > self.roof_start - 0.05) & (middle < self.roof_end + 0.05)
            material[roof, 7 : num_strips - 7] = TRIM
        if self.design.body == "pickup":
            material[(middle > self.deck) & (middle < self.design.length - 0.1), centre] = TRIM
        if self.design.cladding > 0:
            material[:, :2] = material[:, -2:] = TRIM
        return material


def _rounded(curve_D: np.ndarray, share: float) -> np.ndarray:
    """Round the corners of a curve by a moving average over a share of its length."""
    half = max(1, round(share * len(curve_D) / 2))
    kernel = np.hanning(2 * half + 3)[1:-1]
    padded = np.pad(curve_D, half, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


@lru_cache(maxsize=256)
def shape_of(seed: int, model: int) -> Shape:
    """Build a model's shape; cached, as a worker renders many photographs of it."""
    return Shape(design_of(seed, model))
