"""Augmentation: encoded images -> random views.

A view depends only on (seed, epoch, image id): the same pixels on 1 worker or 64, after a restart,
in any order. Albumentations seeds itself per DataLoader worker, which has no effect inside a Ray
task, so the policy is seeded for every image. The crop is drawn first, from the shape in a JPEG's
header, so that no image is decoded larger than its view needs.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np

from datasets.config import NUM_VIEWS, Policy
from datasets.decode import REDUCTIONS, Content, decode, decode_jpeg, jpeg_shape

REDUCED_TOLERANCES = {2: 5.0, 4: 8.0, 8: 13.0}
"""By how much `view` may differ from `augment` where it decodes reduced by the key: mean absolute
difference over photographs, in levels of 0 to 255. Reducing averages pixels that plain bilinear
skips, and the crop's edges are rounded to reduced pixels."""

# There is one process per core already: OpenCV's own threads would only compete.
cv2.setNumThreads(0)

# Shared by all transforms. Reseeding them costs a tenth of Albumentations' `set_random_seed`,
# which makes new generators for each transform.
_random, _generator = random.Random(), np.random.Generator(np.random.PCG64())


@cache
def _build_steps(policy: Policy, size_px: int) -> tuple[Any, Sequence[Callable[..., Any]]]:
    """Build the random crop, or None, and the other transforms, all on the shared state."""
    from datasets.policies import build_policy  # imports Albumentations, which takes a second

    pipeline = build_policy(policy, size_px)
    pipeline.set_random_state(_generator, _random)
    first, *rest = pipeline.transforms
    return (None, pipeline.transforms) if policy in NUM_VIEWS else (first, rest)


def reseed(seed: int, epoch: int, image_id: int) -> tuple[np.random.Generator, random.Random]:
    """Seed the generators of the policies for one view, and return them."""
    # Every bit of the key spreads over the whole Mersenne Twister, and from there to PCG64.
    _random.seed(seed << 128 | epoch << 64 | image_id & (2**64 - 1))
    _generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": _random.getrandbits(128), "inc": _random.getrandbits(128) | 1},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _generator, _random


def view(
    content: Content, policy: Policy, size_px: int, *, seed: int, epoch: int, image_id: int
) -> np.ndarray:
    """Return one view of an encoded image as uint8 `[size_px, size_px, 3]`.

    It equals `augment` of the decoded image: bit by bit, or within REDUCED_TOLERANCES where both
    sides of the crop are at least twice `size_px`.

    Raises:
        UserError: where the bytes hold no readable image.
    """
    shape_HW = jpeg_shape(content)
    if shape_HW is None:
        image_HWC = decode(content)
        return augment(image_HWC, policy, size_px, seed=seed, epoch=epoch, image_id=image_id)
    key = seed, epoch, image_id
    box = left, top, right, bottom = _draw_box(policy, size_px, shape_HW, key)
    times_larger = min(right - left, bottom - top) // size_px
    reduction = next((r for r in REDUCTIONS if r <= times_larger), 1)
    image_HWC = decode_jpeg(content, shape_HW, reduction=reduction)
    box = tuple(round(edge / reduction) for edge in box)
    return _apply(policy, size_px, image_HWC, box, is_mirrored=_is_mirrored(policy, key))


def augment(
    image_HWC: np.ndarray, policy: Policy, size_px: int, *, seed: int, epoch: int, image_id: int
) -> np.ndarray:
    """Return one view of an RGB image as uint8 `[size_px, size_px, 3]`.

    The image is never written to; a view that changes no pixel shares its memory.
    """
    key = seed, epoch, image_id
    box = _draw_box(policy, size_px, image_HWC.shape, key)
    return _apply(policy, size_px, image_HWC, box, is_mirrored=_is_mirrored(policy, key))


def _is_mirrored(policy: Policy, key: tuple[int, int, int]) -> bool:
    """Whether `flip` mirrors this view: every second one, in an epoch half of the images."""
    _, epoch, image_id = key
    return policy == "flip" and (epoch + image_id) % 2 == 1


def _draw_box(
    policy: Policy, size_px: int, shape_HWC: tuple[int, ...], key: tuple[int, int, int]
) -> tuple[int, ...]:
    """Return left, top, right and bottom of the part of an image that its view shows."""
    crop, _ = _build_steps(policy, size_px)
    if crop is None:
        return 0, 0, shape_HWC[1], shape_HWC[0]
    reseed(*key)
    _random.random()  # in step with A.Compose, which draws whether to run at all
    return crop.get_params_dependent_on_data({"shape": shape_HWC}, {})["crop_coords"]


def _apply(
    policy: Policy,
    size_px: int,
    image_HWC: np.ndarray,
    box: tuple[int, ...],
    *,
    is_mirrored: bool,
) -> np.ndarray:
    crop, transforms = _build_steps(policy, size_px)
    left, top, right, bottom = box
    image_HWC = image_HWC[top:bottom, left:right]
    if crop is not None:
        image_HWC = cv2.resize(image_HWC, (size_px, size_px), interpolation=crop.interpolation)
    for transform in transforms:
        image_HWC = transform(image=image_HWC)["image"]
    return cv2.flip(image_HWC, 1) if is_mirrored else image_HWC
