"""Camera, light and brush of a rendered photograph.

Points are metres in the frame of the car ([..., 3], see `car_shapes`) or pixels ([..., 2]); colours
are RGB floats 0-255; pictures are uint8 [H, W, 3] and are drawn upon in place.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

Colour = tuple[float, float, float]

SHIFT = 3  # OpenCV's fixed-point pixels: an eighth of a pixel


def fill(picture: np.ndarray, points: np.ndarray, colour: Iterable[float]) -> None:
    """Fill one polygon, antialiased."""
    corners = np.round(points * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(picture, [corners], _scalar(colour), cv2.LINE_AA, SHIFT)


def line(picture: np.ndarray, points: np.ndarray, colour: Iterable[float], width_px: float) -> None:
    """Draw an open line through points, antialiased."""
    corners = np.round(points * (1 << SHIFT)).astype(np.int32)
    thickness = max(1, round(width_px))
    cv2.polylines(picture, [corners], False, _scalar(colour), thickness, cv2.LINE_AA, SHIFT)


def _scalar(colour: Iterable[float]) -> tuple[float, ...]:
    return tuple(min(max(float(channel), 0.0), 255.0) for channel in colour)


class Camera:
    """A pinhole camera that looks at the car from the near side."""

    def __init__(
        self, *, yaw: float, height_m: float, distance_m: float, roll: float, size: tuple[int, int]
    ) -> None:
        """Yaw in radians: 0 sees the side, positive the nose, negative the tail; size is (W, H)."""
        self.position = np.array([distance_m * np.sin(yaw), distance_m * np.cos(yaw), height_m])
        forward = np.array([0, 0, 0.7]) - self.position
        self.forward = forward / np.linalg.norm(forward)
        right = np.cross(self.forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        up = np.cross(right, self.forward)
        self.axes = np.stack([
            np.cos(roll) * right + np.sin(roll) * up,
            np.sin(roll) * right - np.cos(roll) * up,
        ])  # fmt: skip
        self.focal_px, self.centre = 1.0, np.zeros(2)
        self.size = size

    def frame(self, points: np.ndarray, *, fill_share: float, shift: tuple[float, float]) -> None:
        """Zoom and move until points fill a share of the picture; shift is a share of the slack."""
        seen = self.project(points.reshape(-1, 3))
        low, high = seen.min(0), seen.max(0)
        size = np.array(self.size, float)
        self.focal_px = float(np.min(fill_share * size / (high - low)))
        slack = size - self.focal_px * (high - low)
        self.centre = size / 2 + np.array(shift) * slack / 2 - self.focal_px * (high + low) / 2

    def enlarge(self, times: int) -> None:
        """See the same on a picture that many times as large."""
        # Pixel centres stay where they are: (x + 1/2) scales, not x.
        self.focal_px *= times
        self.centre = (self.centre + 0.5) * times - 0.5
        self.size = (self.size[0] * times, self.size[1] * times)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] of points [..., 3] before the camera."""
        ray = points - self.position
        depth = ray @ self.forward
        return self.focal_px * (ray @ self.axes.T) / depth[..., None] + self.centre

    def ground(self, corners: ArrayLike) -> np.ndarray:
        """Pixels of a polygon on the ground ([N, 2] metres), cut off behind the camera."""
        xy = np.asarray(corners, float)
        points = np.concatenate([xy, np.zeros((len(xy), 1))], 1)
        depth = (points - self.position) @ self.forward - 0.8
        if depth.min() > 0:
            return self.project(points)
        kept = []
        for here, there, a, b in zip(
            points, np.roll(points, -1, 0), depth, np.roll(depth, -1), strict=True
        ):
            if a > 0:
                kept.append(here)
            if (a > 0) != (b > 0):
                kept.append(here + (there - here) * a / (a - b))
        return self.project(np.array(kept)) if kept else np.zeros((0, 2))

    @property
    def px_per_m(self) -> float:
        """Scale at the middle of the car."""
        return self.focal_px / float(np.linalg.norm(self.position))

    @property
    def horizon_px(self) -> float:
        """Row of the horizon in the middle column (the roll is small)."""
        level = self.forward * [1, 1, 0]
        return float(self.project(self.position + level)[1])


@dataclass(frozen=True, kw_only=True)
class Light:
    """Where light comes from; brightness is in the colours."""

    sun: np.ndarray
    """Direction to the sun, of length one."""
    sun_rgb: np.ndarray
    sky_rgb: np.ndarray
    ground_rgb: np.ndarray
    """Colour that the underside and the doors reflect."""

    @property
    def level(self) -> float:
        """Brightness of the day, about 0.4 to 1.2."""
        return float(np.mean(self.sky_rgb + 0.5 * self.sun_rgb)) / 270

    def dim(self, colour: ArrayLike) -> np.ndarray:
        """A dull colour in this light."""
        return np.asarray(colour, float) * min(1.1, 0.2 + 0.8 * self.level)

    def shade(
        self, normals: np.ndarray, to_eye: np.ndarray, colour: ArrayLike, gloss: ArrayLike
    ) -> np.ndarray:
        """Colours [N, 3] of surfaces with unit normals [N, 3]: diffuse light and a reflection."""
        up = 0.5 + 0.5 * normals[:, 2:]
        direct = np.maximum(normals @ self.sun, 0)[:, None] * self.sun_rgb
        diffuse = 0.85 * (up * self.sky_rgb + (1 - up) * 0.6 * self.ground_rgb) + direct
        facing = np.sum(normals * to_eye, 1, keepdims=True)
        mirror = 2 * facing * normals - to_eye
        # The reflected horizon makes the surface look like sheet metal.
        sky = 1 / (1 + np.exp(-9 * (mirror[:, 2:] - 0.06)))
        world = (
            sky * self.sky_rgb * (1.15 - 0.4 * mirror[:, 2:]) + (1 - sky) * 0.45 * self.ground_rgb
        )
        fresnel = np.asarray(gloss) * (0.12 + 0.75 * (1 - np.clip(facing, 0, 1)) ** 4)
        glint = np.asarray(gloss) * np.clip(mirror @ self.sun, 0, 1)[:, None] ** 40 * self.sun_rgb
        shaded = np.asarray(colour) / 255 * diffuse * (1 - fresnel) + fresnel * world + 0.7 * glint
        return np.clip(shaded, 0, 255)
