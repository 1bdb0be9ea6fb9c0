"""Augmentation policies: what happens to an image between decoding and the network.

A view depends on (seed, epoch, image id) alone: the same pixels on 1 worker or 64, after a
restart, in any order. Albumentations seeds itself per DataLoader worker, which means nothing inside
a Ray task, so every image seeds the policy anew.
"""

import os
from functools import cache

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network at import otherwise

import albumentations as A
import numpy as np

from datasets.config import Policy


def _none(size_px: int) -> list[A.BasicTransform]:
    return [A.SmallestMaxSize(size_px), A.CenterCrop(size_px, size_px)]


def _light(size_px: int) -> list[A.BasicTransform]:
    return [
        A.RandomResizedCrop((size_px, size_px), scale=(0.7, 1.0), ratio=(0.8, 1.25)),
        A.HorizontalFlip(),
    ]


def _cars(size_px: int) -> list[A.BasicTransform]:
    # No vertical flip or large rotation: cars stand on their wheels. Colour says little about a
    # model, so it is jittered; hue a little, as lamps and plates do tell.
    return [
        A.RandomResizedCrop((size_px, size_px), scale=(0.5, 1.0), ratio=(0.75, 1.333)),
        A.HorizontalFlip(),
        A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.02, p=0.8),
        A.ToGray(p=0.05),
        A.CoarseDropout(
            num_holes_range=(1, 2),
            hole_height_range=(0.1, 0.3),
            hole_width_range=(0.1, 0.3),
            p=0.25,
        ),
    ]


POLICIES = {"none": _none, "light": _light, "cars": _cars}


@cache
def build_policy(policy: Policy, size_px: int) -> A.Compose:
    """Build the policy as one Albumentations pipeline, once per process."""
    return A.Compose([*POLICIES[policy](size_px)])


def augment(
    image_HWC: np.ndarray, policy: Policy, size_px: int, *, seed: int, epoch: int, image_id: int
) -> np.ndarray:
    """Return one view of an RGB image as uint8 `[size_px, size_px, 3]`."""
    pipeline = build_policy(policy, size_px)
    if policy != "none":
        entropy = np.random.SeedSequence((seed, epoch, image_id))
        pipeline.set_random_seed(int(entropy.generate_state(1)[0]))
    return pipeline(image=image_HWC)["image"]
