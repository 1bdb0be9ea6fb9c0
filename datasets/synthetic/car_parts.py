"""Parts of a body: windows, doors, lamps, grille, wheels, as outlines on its surface.

Parts depend on the design alone, so they are built once for a model and only projected for each
photograph. Outlines are [N, 3] in the frame of the car (see `car_shapes`).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from datasets.synthetic.car_shapes import Design, End, Shape

CIRCLE = np.linspace(0, 2 * np.pi, 25)[:-1]

# Number of spokes, and their half angles at the hub and at the tip.
_RIMS = (
    (5, 0.3, 0.26), (10, 0.12, 0.09), (6, 0.42, 0.18), (3, 0.5, 0.75), (7, 0.2, 0.3),
    (5, 0.12, 0.62),
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """An outline and its ink (see `car_painter`); with a stroke, an open line that wide."""

    points: np.ndarray
    ink: str
    stroke_m: float = 0.0


def side_parts(shape: Shape) -> list[Part]:
    """Wheel arches, seams and handles of the doors, windows."""
    design = shape.design
    parts = []
    angle = np.linspace(-0.25, np.pi + 0.25, 20)
    for d in (design.front_axle, design.rear_axle):
        rings = [(1.34, "plastic")] if design.cladding > 0 else []
        for scale, ink in [*rings, (1.17, "void")]:
            reach = scale * design.wheel_radius
            z = np.maximum(design.wheel_radius + reach * np.sin(angle), shape.bottom(d) - 0.02)
            parts.append(Part(shape.on_side(d + reach * np.cos(angle), z), ink))
    panes = _panes(shape)
    parts += _doors(shape, panes)
    if design.frame:
        frame = _pane_outline(shape, panes[0][0] - 0.05, panes[-1][1] + 0.04, 0.028)
        parts.append(Part(frame, "chrome" if design.frame == 1 else "black"))
    for start, end in panes:
        outline = _pane_outline(shape, start, end, 0.0)
        upper = outline.copy()
        upper[9:] = 0.5 * outline[9:] + 0.5 * outline[8::-1]
        parts += [Part(outline, "glass"), Part(upper, "glass_sky")]
    if design.roof_style == 2 and design.body in ("suv", "van", "hatchback"):
        d = np.linspace(shape.roof_start + 0.15, shape.roof_end - 0.1, 6)
        rail = shape.on_side(d, shape.top(d) - 0.03) + np.array([0, -0.03, 0.09])
        parts.append(Part(rail, "chrome" if design.frame == 1 else "black", 0.045))
    return parts


def _panes(shape: Shape) -> list[tuple[float, float]]:
    """Start and end of every side window."""
    design = shape.design
    start = shape.cowl + 0.18 * design.windshield + 0.1
    end = shape.roof_end + 0.45 * (shape.deck - shape.roof_end) - design.rear_pillar
    if design.body == "van" and design.panes == 1:
        end = start + 1.25  # a panel van
    cuts = {1: (), 2: (0.56,), 3: (0.46, 0.8)}[design.panes]
    edges = [start, *(start + cut * (end - start) for cut in cuts), end]
    pillar = 0.05 if design.frame == 2 else 0.085
    return [(a + pillar / 2, b - pillar / 2) for a, b in pairwise(edges)]


def _pane_outline(shape: Shape, start: float, end: float, grow: float) -> np.ndarray:
    d = np.linspace(start, end, 9)
    low = shape.shoulder(d) + 0.05 - grow
    high = np.maximum(shape.top(d) - 0.115 + grow, low)
    return np.concatenate([shape.on_side(d, high), shape.on_side(d[::-1], low[::-1])])


def _doors(shape: Shape, panes: list[tuple[float, float]]) -> list[Part]:
    design = shape.design
    num_doors = 1 if design.body == "coupe" else min(2, len(panes))
    arch = design.rear_axle - 1.22 * design.wheel_radius
    cuts = [panes[0][0] - 0.02, *(end + 0.04 for _, end in panes[:num_doors])]
    cuts = [min(cut, arch) for cut in cuts]
    sill = design.clearance + 0.12
    parts = []
    for cut in cuts:
        z = np.linspace(sill, float(shape.shoulder(cut)) + 0.03, 5)
        parts.append(Part(shape.on_side(np.full(5, cut), z), "seam", 0.014))
    d = np.linspace(cuts[0], cuts[-1], 6)
    parts.append(Part(shape.on_side(d, np.full(6, sill)), "seam", 0.014))
    for cut in cuts[1:]:
        handle = shape.on_side([cut - 0.25, cut - 0.07], [float(shape.shoulder(cut)) - 0.09] * 2)
        parts.append(Part(handle, "chrome" if design.frame == 1 else "black", 0.035))
    return parts


def end_parts(shape: Shape, end: End, *, seen: bool) -> list[Part]:
    """Bumper, plate, grille and lamps; of an unseen end, what shows around its near corner."""
    d = 0 if end == "nose" else shape.design.length
    low, span = float(shape.bottom(d)), float(shape.top(d) - shape.bottom(d))
    parts = []
    if seen:
        parts += _bumper(shape, end, low, span)
        parts += _grille(shape, low, span) if end == "nose" else []
    for side in (-1, 1):
        for outline in _lamps(shape.design, end, low, span):
            if end == "nose":
                centre = outline.mean(0)
                housing = centre + (outline - centre) * 1.22
                parts += _lamp(shape, end, seen, side, housing, "black")
            parts += _lamp(shape, end, seen, side, outline, f"{end}_lamp")
    return parts


def _lamp(
    shape: Shape, end: End, seen: bool, side: int, outline: np.ndarray, ink: str
) -> list[Part]:
    flat = shape.end_share(end)
    y = np.minimum(outline[:, 0], 1.0)
    if not seen:
        if side < 0 or y.max() <= flat:
            return []
        y = np.maximum(y, flat)
    elif side < 0:
        y = np.minimum(y, flat)  # the rest lies around the far corner
    return [Part(shape.on_end(end, side * y, outline[:, 1]), ink)]


def _bumper(shape: Shape, end: End, low: float, span: float) -> list[Part]:
    high = 0.34 if shape.design.cladding > 0 else 0.16
    z = low + span * np.array([0, 0, high, high])
    bumper = shape.on_end(end, [-0.74, 0.74, 0.7, -0.7], z)
    plate_z = low + span * (0.42 if end == "nose" else 0.5)
    plate = shape.on_end(end, *_box(-0.27, 0.27, plate_z - 0.055, plate_z + 0.055).T)
    return [Part(bumper, "plastic"), Part(plate, "plate")]


def _grille(shape: Shape, low: float, span: float) -> list[Part]:
    size, style = shape.design.grille_size, shape.design.grille
    kidney = _box(0.04, 0.3 * size, 0.42, 0.86)
    hexagon = [[-0.5, 0.5], [-0.34, 0.2], [0.34, 0.2], [0.5, 0.5], [0.36, 0.84], [-0.36, 0.84]]
    # Both coordinates are shares, of the half width and of the height of the nose.
    outlines, bars = (
        ([_box(-0.5 * size, 0.5 * size, 0.14, 0.26)], 0),
        ([_box(-0.5, 0.5, 0.78 - 0.24 * size, 0.84)], 3),
        ([np.array([[-0.3, 0.12], [0.3, 0.12], [0.42 * size, 0.86], [-0.42 * size, 0.86]])], 0),
        ([np.array(hexagon) * [size, 1]], 1),
        ([kidney, kidney * [-1, 1]], 0),
        ([_box(-0.42, 0.42, 0.74 - 0.06 * size, 0.74 + 0.06 * size)], 0),
    )[style]
    parts = []
    for outline in outlines:
        z = low + span * outline[:, 1]
        parts.append(Part(shape.on_end("nose", outline[:, 0], z), "void"))
        reach = 0.93 * outline[:, 0].max()
        for share in (np.arange(bars) + 1) / (bars + 1):
            height = z.min() + share * (z.max() - z.min())
            bar = shape.on_end("nose", [-reach, reach], [height, height])
            parts.append(Part(bar, "chrome", 0.018))
    return parts


def _lamps(design: Design, end: End, low: float, span: float) -> list[np.ndarray]:
    """Outlines [N, 2] of the lamps of one side: (share of the half width, height in metres)."""
    size = design.lamp_size
    if end == "nose":
        z, tall = low + design.lamp_height * span, 0.085 * size
        wedge = [[0.44, z - 0.04], [0.7, z - tall], [0.99, z + 0.05], [0.99, z + 0.11]]
        return (
            [_oval(0.74, z, 0.125 * size, 0.11 * size)],
            [_box(0.45, 0.97, z - 0.03 * size, z + 0.03 * size)],
            [_box(0.56, 0.93, z - tall, z + tall)],
            [_box(0.74, 0.95, z - 0.26 * span, z + 0.08 * span)],
            [_oval(y, z, 0.085 * size, 0.075 * size) for y in (0.58, 0.8)],
            [np.array(wedge)],
        )[design.lamp]
    z, tall = low + 0.78 * span, 0.2 * span * size
    hook = [[0.5, z + 0.07], [0.99, z + 0.09], [0.99, z - tall], [0.8, z - 0.04]]
    return (
        [_box(0.78, 0.99, z - tall, z + tall)],
        [_box(0.0, 0.98, z - 0.05 * size, z + 0.05 * size)],
        [_oval(y, z, 0.1 * size, 0.09 * size) for y in (0.56, 0.82)],
        [_box(0.55, 0.98, z - 0.5 * tall, z + 0.5 * tall)],
        [np.array(hook)],
    )[design.tail]


def wheel_parts(shape: Shape, d: float, spin: float) -> list[Part]:
    """Tyre and rim of a near wheel, d behind the nose, turned by spin radians."""
    design = shape.design
    y, rim = wheel_plane(shape, d), design.rim_ratio
    count, at_hub, at_tip = _RIMS[design.rim]
    spokes = spin + 2 * np.pi * np.arange(count)[:, None] / count
    around = spokes + np.array([-at_hub, at_hub, at_tip, -at_tip])
    reach = np.broadcast_to(rim * np.array([0.2, 0.2, 0.93, 0.93]), around.shape)
    return [
        Part(wheel_ring(shape, d, y, 0.97), "tyre"),
        Part(wheel_ring(shape, d, y, rim), "rim"),
        Part(wheel_ring(shape, d, y - 0.03, rim * 0.9), "void"),
        *(Part(spoke, "rim") for spoke in wheel_ring(shape, d, y - 0.015, reach, around)),
        Part(wheel_ring(shape, d, y, 0.24 * rim, CIRCLE[::2]), "rim"),
    ]


def wheel_plane(shape: Shape, d: float) -> float:
    """Distance of a wheel's outer face from the middle plane."""
    return float(shape.half_width(d, shape.design.wheel_radius * 1.6)) - 0.035


def wheel_ring(
    shape: Shape, d: float, y: float, scale: float | np.ndarray, angle: np.ndarray = CIRCLE
) -> np.ndarray:
    """Points [..., 3] around a wheel's axle, at a share of its radius."""
    radius = shape.design.wheel_radius
    x = shape.design.length / 2 - d + scale * radius * np.cos(angle)
    z = radius + scale * radius * np.sin(angle)
    return np.stack([x, np.full_like(x, y), z], -1)


def _box(left: float, right: float, low: float, high: float) -> np.ndarray:
    return np.array([[left, low], [right, low], [right, high], [left, high]])


def _oval(y: float, z: float, half_y: float, half_z: float) -> np.ndarray:
    return np.stack([y + half_y * np.cos(CIRCLE), z + half_z * np.sin(CIRCLE)], 1)
