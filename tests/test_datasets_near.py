"""Near duplicates are found, and distinct photographs are none."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.prepare.duplicates import near
from datasets.prepare.duplicates.near import correlate, find_candidates, find_pairs, hash_image
from tests.support.data import draw_image


def photograph(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth shapes of all sizes, as a photograph has."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24):
        noise = rng.normal(0, 200 / cells, (cells, cells, 3))
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + 128, 0, 255).astype(np.uint8)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content).convert("RGB"))


def crop(image: np.ndarray, top: float, left: float, bottom: float, right: float) -> np.ndarray:
    height, width, _ = image.shape
    rows = slice(round(top * height), round((1 - bottom) * height))
    return np.ascontiguousarray(image[rows, round(left * width) : round((1 - right) * width)])


CHANGES = {
    "compressed": lambda image: compress(image, 30),
    "compressed hard": lambda image: compress(image, 10),
    "half as large": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5),
    "larger": lambda image: cv2.resize(image, None, fx=1.7, fy=1.7),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "mirrored and small": lambda image: compress(cv2.resize(image[:, ::-1], (80, 60)), 50),
    "cropped": lambda image: crop(image, 0.05, 0.05, 0.05, 0.05),
    "cropped at a corner": lambda image: crop(image, 0, 0, 0.06, 0.06),
    "cropped at a side": lambda image: crop(image, 0, 0.05, 0, 0),
    "cropped and mirrored": lambda image: crop(image[:, ::-1], 0.04, 0.05, 0.05, 0.04),
    "brighter": lambda image: np.clip(image * 1.1 + 10, 0, 255).astype(np.uint8),
    "grey": lambda image: np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2),
}


def pairs_of(images: list[np.ndarray]) -> list[tuple[int, int]]:
    hashed = [hash_image(image) for image in images]
    hashes, thumbnails = zip(*hashed, strict=True)
    found = find_pairs(
        hashes, range(len(images)), lambda indices: {int(i): thumbnails[i] for i in indices}
    )
    return sorted(pair[:2] for pair in found)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_is_found(change):
    images = [photograph(seed) for seed in range(20)]
    changed = [CHANGES[change](image) for image in images]
    found = pairs_of(images + changed)
    expected = {(number, number + 20) for number in range(20)}
    assert len(expected & set(found)) >= 18
    assert set(found) <= expected


def test_distinct_images_are_no_pair():
    assert pairs_of([photograph(seed) for seed in range(200)]) == []


def test_uniform_and_noisy_images_are_no_pair():
    """Flat colours have no shape, and noise has another each."""
    colours = [np.full((40, 40, 3), 20 * number, np.uint8) for number in range(10)]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(40)]
    assert pairs_of(colours + noise) == []


def test_images_of_the_tests_are_no_pair():
    assert pairs_of([draw_image(number % 3, number) for number in range(60)]) == []


def test_candidates_are_those_of_all_pairs():
    rng = np.random.default_rng(1)
    hashes_NW = rng.integers(0, 2**63, (60, near.NUM_WINDOWS), np.uint64)
    flips = np.bitwise_or.reduce(near._BITS[rng.integers(0, 64, (60, near.MAX_BITS))], axis=1)
    hashes_NW[30:, 4] = hashes_NW[:30, 0] ^ flips[:30]
    hashes_NW[10:20, 0] = hashes_NW[20:30, 7] ^ near._MIRROR ^ flips[40:50]
    expected = set()
    for one in range(60):
        for other in range(60):
            bits = min(
                int(np.bitwise_count(hashes_NW[one, 0] ^ mirror ^ hashes_NW[other]).min())
                for mirror in (np.uint64(0), near._MIRROR)
            )
            if one != other and bits <= near.MAX_BITS:
                expected.add((min(one, other), max(one, other)))
    assert {tuple(pair) for pair in find_candidates(hashes_NW)} == expected
    assert len(expected) >= 30


def test_many_images_of_one_scene_take_bounded_work(monkeypatch, caplog):
    monkeypatch.setattr(near, "MAX_COMPARED", 30)
    rng = np.random.default_rng(3)
    flips = near._BITS[rng.integers(1, 64, (300, 1))]
    hashes_NW = np.full((300, near.NUM_WINDOWS), 12345, np.uint64) ^ flips
    thumbnail = hash_image(photograph(1))[1]
    found = find_pairs(
        [row.tobytes() for row in hashes_NW],
        range(300),
        lambda indices: {int(i): thumbnail for i in indices},
    )
    assert len(found) == 30 and "only the closest 30 are compared" in caplog.text
    bits = near.count_bits(hashes_NW, np.array([pair[:2] for pair in found]))
    assert (bits == 0).all()  # of those with one bit in common


def test_copies_of_the_same_pixels_are_no_near_duplicates():
    image = photograph(1)
    hashes, thumbnail = hash_image(image)
    changed, other = hash_image(compress(image, 30))
    read = {0: thumbnail, 1: thumbnail, 2: other}
    found = find_pairs([hashes, hashes, changed], [7, 7, 8], lambda indices: read)
    assert [pair[:2] for pair in found] == [(0, 2)]
    assert correlate(np.array([[0, 1]]), read) == pytest.approx(1, abs=1e-5)


def correlate_by_definition(one: bytes, other: bytes) -> float:
    """The largest correlation of one image with each crop of the other, as OpenCV crops."""
    size = near.THUMBNAIL_PX
    crops = [(1.0, 1.0, 0.0, 0.0)]
    for scale in (0.97, 0.94, 0.91, 0.88):
        offsets = np.linspace(0, 1 - scale, 3)
        crops += [(scale, scale, x, y) for x in offsets for y in offsets]
    for scale in (0.96, 0.92):
        crops += [(scale, 1.0, x, 0.0) for x in (0, 1 - scale)]
        crops += [(1.0, scale, 0.0, y) for y in (0, 1 - scale)]

    def list_views(image_SS: np.ndarray) -> np.ndarray:
        return np.array([
            cv2.warpAffine(
                image_SS,
                np.array([[w, 0, x * size + w / 2 - 0.5], [0, h, y * size + h / 2 - 0.5]]),
                (size, size),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            ).ravel()
            for w, h, x, y in crops
        ])  # fmt: skip

    one_SS, other_SS = (np.frombuffer(t, np.uint8).reshape(size, size) for t in (one, other))
    mirrored_SS = np.ascontiguousarray(other_SS[:, ::-1])
    sides = ((one_SS, other_SS), (one_SS, mirrored_SS), (other_SS, one_SS), (mirrored_SS, one_SS))
    best = 0.0
    for fixed_SS, moved_SS in sides:
        for view in list_views(moved_SS):
            a, b = fixed_SS.ravel() - fixed_SS.mean(), view - view.mean()
            best = max(best, (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return best


@pytest.mark.shared
def test_pairs_of_real_photographs_are_those_of_the_definition(shared_dir):
    """Photographs of cars, changed in each way, and with blends on both sides of the bound."""
    files = sorted((shared_dir / "cars/train").rglob("*.jpg"))[::45]
    images = [np.array(Image.open(file).convert("RGB")) for file in files]
    images += [change(image) for change in CHANGES.values() for image in images]
    hashes, thumbnails = zip(*(hash_image(np.ascontiguousarray(i)) for i in images), strict=True)
    candidates = find_candidates(
        np.frombuffer(b"".join(hashes), np.uint64).reshape(len(images), -1)
    )
    candidates = candidates[:: -(-len(candidates) // 200)]
    greys = [np.frombuffer(thumbnail, np.uint8) for thumbnail in thumbnails[: len(files)]]
    for share in (0.25, 0.35, 0.45):
        pairs = [*zip(greys, [*greys[1:], greys[0]], strict=True)]
        blends = [((1 - share) * one + share * other).round() for one, other in pairs]
        thumbnails += tuple(blend.astype(np.uint8).tobytes() for blend in blends)
    with_blends = [[i % len(files), i] for i in range(len(images), len(thumbnails))]
    pairs = np.concatenate([candidates, with_blends])
    expected = np.array([correlate_by_definition(*(thumbnails[i] for i in p)) for p in pairs])
    found = correlate(pairs, dict(enumerate(thumbnails)))
    np.testing.assert_allclose(found, expected, atol=5e-4)
    is_near = expected >= near.MIN_CORRELATION
    np.testing.assert_array_equal(found >= near.MIN_CORRELATION, is_near)
    assert 100 < is_near.sum() < len(pairs) - 20 and (abs(expected - 0.93) < 0.02).sum() > 10
