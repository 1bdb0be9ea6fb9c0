from dataclasses import replace

import cv2
import numpy as np
import pytest

from datasets.synthetic import synthetic
from datasets.synthetic.car_shapes import design_of, shape_of
from datasets.synthetic.config import SyntheticConfig

CONFIG = SyntheticConfig(num_classes=12, render_px=64)
SOME = [(model, index) for model in range(6) for index in range(3)]


def test_a_photograph_is_the_same_in_any_order():
    first = {at: synthetic.render(CONFIG, *at, "train") for at in SOME}
    shape_of.cache_clear()
    for at in reversed(SOME):
        np.testing.assert_array_equal(synthetic.render(CONFIG, *at, "train"), first[at])


def test_more_classes_leave_the_first_ones_as_they_are():
    more = replace(CONFIG, num_classes=100, train_per_class=7, label_by="body")
    np.testing.assert_array_equal(
        synthetic.render(more, 3, 1, "train"), synthetic.render(CONFIG, 3, 1, "train")
    )


def test_photographs_differ_by_seed_model_index_and_split():
    photos = [
        synthetic.render(replace(CONFIG, seed=seed), model, index, split)
        for seed in (0, 1)
        for model in (0, 6)
        for index in range(4)
        for split in ("train", "test")
    ]
    assert len({photo.tobytes() for photo in photos}) == len(photos)


@pytest.mark.parametrize("render_px", [32, 64, 97, 160, 300])
def test_a_photograph_is_rgb_bytes_of_four_to_three(render_px: int):
    photo = synthetic.render(replace(CONFIG, render_px=render_px), 2, 0, "test")
    assert photo.dtype == np.uint8
    assert photo.shape == (render_px, round(render_px * 4 / 3), 3)
    assert photo.flags.c_contiguous
    assert photo.std() > 10  # there is something in it


@pytest.mark.parametrize("num_classes", [2, 6, 20, 196])
def test_names_are_distinct_and_labels_point_at_the_right_body(num_classes: int):
    config = SyntheticConfig(num_classes=num_classes)
    names = synthetic.class_names(config)
    assert len(set(names)) == num_classes
    assert names == synthetic.class_names(config)
    bodies = synthetic.class_names(replace(config, label_by="body"))
    assert bodies == synthetic.BODIES[:num_classes]
    for model, name in enumerate(names):
        assert synthetic.label_of(config, model) == model
        body = bodies[synthetic.label_of(replace(config, label_by="body"), model)]
        assert body == design_of(config.seed, model).body
        assert body in name.lower()


def test_another_seed_is_another_fleet():
    other = replace(CONFIG, seed=1)
    assert not set(synthetic.class_names(CONFIG)) & set(synthetic.class_names(other))
    assert all(design_of(0, model) != design_of(1, model) for model in range(196))


def test_models_of_one_body_keep_apart():
    """The closest pair of each body still differs somewhere that shows in a 64 pixel picture."""
    for seed in (0, 1):
        outlines = np.stack(
            [
                shape_of(seed, model).top_D / shape_of(seed, model).design.length
                for model in range(196)
            ]
        )
        styles = [design_of(seed, model) for model in range(196)]
        for a in range(196):
            for b in range(a + 6, 196, 6):
                same_look = all(
                    getattr(styles[a], part) == getattr(styles[b], part)
                    for part in ("lamp", "tail", "grille", "rim", "panes", "frame", "roof_style")
                )
                assert not same_look or np.abs(outlines[a] - outlines[b]).max() > 0.01


@pytest.fixture(scope="module")
def photos() -> dict[str, np.ndarray]:
    """[model, index, H, W, 3] by split."""
    return {
        split: np.stack(
            [
                [synthetic.render(CONFIG, model, index, split) for index in range(count)]
                for model in range(CONFIG.num_classes)
            ]
        )
        for split, count in (("train", 30), ("test", 15))
    }


def _mean_colour(photo: np.ndarray) -> np.ndarray:
    return photo.mean((0, 1))


def _edges(photo: np.ndarray) -> np.ndarray:
    """Where edges of four directions lie, the same for a mirrored photograph."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    size, angle = cv2.cartToPolar(
        cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    )
    direction = (angle / np.pi * 4).astype(int) % 4
    maps = np.stack([np.where(direction == k, size, 0) for k in range(4)], -1)
    maps += maps[:, ::-1, [0, 3, 2, 1]]
    coarse = cv2.resize(maps, (12, 8), interpolation=cv2.INTER_AREA)
    return np.sqrt(coarse / coarse.mean()).ravel()


def _nearest_centroid_accuracy(photos, feature, label_by) -> float:
    config = replace(CONFIG, label_by=label_by)
    labels = np.array([synthetic.label_of(config, model) for model in range(CONFIG.num_classes)])
    train, test = (
        np.array([[feature(photo) for photo in of_model] for of_model in photos[split]])
        for split in ("train", "test")
    )
    centroids = np.stack([train[labels == label].mean((0, 1)) for label in range(labels.max() + 1)])
    nearest = ((test[:, :, None] - centroids) ** 2).sum(-1).argmin(-1)
    return float((nearest == labels[:, None]).mean())


@pytest.mark.parametrize(("label_by", "chance"), [("model", 1 / 12), ("body", 1 / 6)])
def test_the_class_is_in_the_design_and_not_in_the_colours(photos, label_by: str, chance: float):
    assert _nearest_centroid_accuracy(photos, _mean_colour, label_by) < 1.5 * chance
    assert _nearest_centroid_accuracy(photos, _edges, label_by) > 1.8 * chance
