"""A view is what Albumentations makes of the image, and depends on (seed, epoch, image id)."""

import copy
import itertools
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from datasets.augment import REDUCED_TOLERANCES, augment, reseed, view
from datasets.config import POLICIES, IngestConfig, Policy
from datasets.decode import decode
from datasets.images import encode_jpeg
from datasets.policies import JitterColour, build_policy, colour_matrix
from datasets.synthetic.config import SyntheticConfig
from datasets.synthetic.synthetic import render

WHERE = {"seed": 3, "epoch": 1, "image_id": -(2**62) + 5}


def _render(height: int, index: int) -> np.ndarray:
    return render(SyntheticConfig(render_px=height), index, 0, "train")


@pytest.fixture(scope="module")
def image_HWC() -> np.ndarray:
    """A rendered car of 100 x 133 pixels that nobody may write to, as those of Ray's store."""
    image_HWC = _render(100, 0)
    image_HWC.flags.writeable = False
    return image_HWC


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size_px", [64, 100, 120])
def test_augment_equals_the_albumentations_pipeline(image_HWC, policy: Policy, size_px):
    pipeline = build_policy(policy, size_px)
    for image_id in range(60):
        pipeline.set_random_state(*copy.deepcopy(reseed(1, 2, image_id)))
        expected = pipeline(image=image_HWC.copy())["image"]
        if policy == "flip" and image_id % 2:
            expected = expected[:, ::-1]
        result = augment(image_HWC, policy, size_px, seed=1, epoch=2, image_id=image_id)
        assert result.dtype == np.uint8
        assert result.shape == (size_px, size_px, 3)
        np.testing.assert_array_equal(result, expected)


def test_flip_shows_an_image_and_its_mirror_image_in_turns(image_HWC) -> None:
    ingest = IngestConfig(policy="flip")
    views = [
        [
            augment(image_HWC, "flip", 64, seed=seed, epoch=ingest.view_of(epoch), image_id=7)
            for epoch in range(4)
        ]
        for seed in (0, 1)
    ]

    np.testing.assert_array_equal(views[0][0], views[0][1][:, ::-1])
    np.testing.assert_array_equal(views[0][2:], views[0][:2])
    np.testing.assert_array_equal(views[0], views[1])
    assert not np.array_equal(views[0][0], views[0][1])
    assert [ingest.num_views(epochs) for epochs in (1, 2, 9)] == [1, 2, 2]


@pytest.mark.parametrize("policy", POLICIES)
def test_view_equals_augment_of_the_decoded_image(image_HWC, policy: Policy):
    content = encode_jpeg(image_HWC)
    decoded = decode(content)
    for image_id in range(60):
        where = {**WHERE, "image_id": image_id}
        expected = augment(decoded, policy, 51, **where)
        np.testing.assert_array_equal(view(content, policy, 51, **where), expected)
        np.testing.assert_array_equal(view(pa.py_buffer(content), policy, 51, **where), expected)


def test_view_of_a_png_equals_augment_of_the_decoded_image(image_HWC):
    content = cv2.imencode(".png", image_HWC)[1].tobytes()
    expected = augment(decode(content), "cars", 64, **WHERE)
    np.testing.assert_array_equal(view(content, "cars", 64, **WHERE), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_view_of_a_truncated_jpeg_is_refused(image_HWC, policy: Policy):
    content = encode_jpeg(image_HWC)
    for length in (0, 100, len(content) // 2, len(content) - 2):
        for size_px in (20, 64):
            with pytest.raises(ValueError, match="cannot be decoded"):
                view(content[:length], policy, size_px, **WHERE)


def _assert_reduced_views_are_near(photos: list[np.ndarray], size_px: int) -> None:
    """Compare views, at the reductions that the photographs' size allows, with plain ones."""
    reduction = min(photos[0].shape[:2]) // size_px
    reduction = max(r for r in REDUCED_TOLERANCES if r <= reduction)
    for policy in POLICIES:
        differences = []
        for image_id, photo_HWC in enumerate(photos):
            content = encode_jpeg(photo_HWC)
            where = {"seed": 0, "epoch": 0, "image_id": image_id}
            plain = augment(decode(content), policy, size_px, **where)
            reduced = view(content, policy, size_px, **where)
            differences.append(np.abs(reduced.astype(int) - plain).mean())
        assert 0 < np.mean(differences) < REDUCED_TOLERANCES[reduction], policy


@pytest.mark.parametrize("size_px", [60, 112, 224])
def test_reduced_views_stay_within_tolerance(size_px):
    _assert_reduced_views_are_near([_render(487, index) for index in range(12)], size_px)


@pytest.mark.shared
@pytest.mark.parametrize("size_px", [60, 112, 224])
def test_reduced_views_of_photographs_stay_within_tolerance(shared_dir: Path, size_px):
    files = sorted((shared_dir / "cars" / "train").glob("*/*.jpg"))[::20]
    photos = [
        cv2.resize(decode(file.read_bytes()), (640, 487), interpolation=cv2.INTER_CUBIC)
        for file in files
    ]
    assert len(photos) > 20
    _assert_reduced_views_are_near(photos, size_px)


def test_view_depends_on_seed_epoch_and_image_alone(image_HWC):
    image_ids = (0, 1, 2**32, 2**63 - 1, -1, -(2**63))
    keys = tuple(itertools.product((0, 1), (0, 1), image_ids))

    def views(order: Iterable[tuple[int, int, int]]) -> dict[tuple[int, int, int], bytes]:
        return {
            (seed, epoch, image_id): augment(
                image_HWC, "cars", 48, seed=seed, epoch=epoch, image_id=image_id
            ).tobytes()
            for seed, epoch, image_id in order
        }

    forward = views(keys)
    assert forward == views(keys[::-1])
    assert len(set(forward.values())) == len(keys)


def test_draws_of_neighbouring_images_are_uniform_and_independent():
    draws = np.empty((4, 3000))
    for image_id in range(draws.shape[1]):
        generator, uniform = reseed(0, 0, image_id)
        draws[:, image_id] = (
            uniform.random(), uniform.random(), generator.random(), generator.random()
        )  # fmt: skip
    shares = np.stack([np.histogram(row, 10, (0, 1))[0] for row in draws]) / draws.shape[1]
    assert np.abs(shares - 0.1).max() < 0.025  # 4.5 standard deviations
    following = np.vstack([draws[:, 1:], draws[:, :-1]])
    correlations = np.corrcoef(following) - np.eye(8)
    assert np.abs(correlations).max() < 0.085  # 4.6 standard deviations


def test_evaluation_is_the_middle_and_draws_nothing(image_HWC):
    views = [
        augment(image_HWC, "none", 100, seed=seed, epoch=seed, image_id=seed) for seed in range(3)
    ]
    for result in views:
        np.testing.assert_array_equal(result, image_HWC[:, 16:116])


def test_colour_matrix_moves_one_thing_at_a_time():
    grey, red = np.array([90.0, 90, 90]), np.array([200.0, 40, 40])

    def see(colour: np.ndarray, **changed: float) -> np.ndarray:
        plain = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "turn": 0.0}
        return colour_matrix(**plain | changed) @ [*colour, 1]

    np.testing.assert_allclose(see(red), red)
    np.testing.assert_allclose(see(red, brightness=1.2), 1.2 * red)
    np.testing.assert_allclose(see(red, contrast=0.5), (red + 127.5) / 2)
    np.testing.assert_allclose(see(red, saturation=0), red @ [0.299, 0.587, 0.114])
    np.testing.assert_allclose(see(grey, saturation=1.3, turn=0.5), grey)
    turned = see(red, turn=0.1)
    assert turned @ [0.299, 0.587, 0.114] == pytest.approx(red @ [0.299, 0.587, 0.114])
    assert np.abs(turned - red).max() > 5


def test_colour_jitter_stays_within_what_it_was_told(image_HWC):
    jitter = JitterColour(brightness=0.2, contrast=0, saturation=0, hue=0, p=1)
    jitter.set_random_seed(0)
    factors = [jitter.get_params()["matrix"][0].sum() for _ in range(500)]
    assert 0.8 <= min(factors) < 0.81
    assert 1.19 < max(factors) <= 1.2
    still = JitterColour(brightness=0, contrast=0, saturation=0, hue=0, p=1)
    np.testing.assert_allclose(still(image=image_HWC)["image"], image_HWC, atol=1)
