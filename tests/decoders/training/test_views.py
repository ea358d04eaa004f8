"""Augmented views: picture and truth are cut alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from decoders.training.views import View, clip_views, random_view, whole


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 30, 20), (3, 2, 28, 11), (29, 19, 30, 20)], ids=str)
def test_picture_and_truth_are_cut_alike(
    draw_picture: Callable[..., Image.Image], box: tuple[int, int, int, int], flip: bool
) -> None:
    image = draw_picture(20, 30)
    view = View(box, flip)
    pixels = np.asarray(view.apply(image))
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], view.cut(np.asarray(image)[..., channel]))


def test_a_flip_mirrors_left_and_right_only() -> None:
    map_ = np.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(View((1, 0, 3, 2), flip=True).cut(map_), [[3, 2], [6, 5]])


def test_light_changes_the_picture_and_not_the_truth(draw_picture: Callable[..., Image.Image]) -> None:
    image = draw_picture(20, 30)
    plain = View((0, 0, 30, 20))
    for light in ({"brightness": 1.3}, {"contrast": 0.5}, {"saturation": 0.0}):
        view = View((0, 0, 30, 20), **light)
        assert np.any(np.asarray(view.apply(image)) != np.asarray(plain.apply(image)))
        np.testing.assert_array_equal(view.cut(np.asarray(image)), plain.cut(np.asarray(image)))


def test_the_whole_view_is_the_picture(draw_picture: Callable[..., Image.Image]) -> None:
    image = draw_picture(20, 30)
    np.testing.assert_array_equal(np.asarray(whole(image).apply(image)), np.asarray(image))


def test_random_views_lie_within_the_picture_and_are_large_enough(draw_picture: Callable[..., Image.Image]) -> None:
    image, rng = draw_picture(41, 60), np.random.default_rng(0)
    views = [random_view(image, rng, least_side=0.4) for _ in range(300)]
    for view in views:
        left, top, right, bottom = view.box
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 41
        assert right - left >= 24
        assert bottom - top >= round(0.4 * 41)
        assert all(0.75 <= factor <= 1.3 for factor in (view.brightness, view.contrast, view.saturation))
    uncropped = sum(view.box == (0, 0, 60, 41) for view in views) / 300
    flipped = sum(view.flip for view in views) / 300
    assert 0.2 < uncropped < 0.4
    assert 0.4 < flipped < 0.6


def test_one_seed_gives_one_sequence_of_views(draw_picture: Callable[..., Image.Image]) -> None:
    image = draw_picture(20, 30)
    first, second, other = (
        [random_view(image, rng, least_side=0.5) for _ in range(5)] for rng in map(np.random.default_rng, (1, 1, 2))
    )
    assert first == second != other


def test_a_clip_glides_and_zooms_steadily_over_the_picture(draw_picture: Callable[..., Image.Image]) -> None:
    image = draw_picture(400, 600)
    moved = zoomed = False
    for seed in range(20):
        views = clip_views(image, np.random.default_rng(seed), frames=5, least_side=0.5)
        assert len(views) == 5
        assert len({(view.flip, view.brightness, view.contrast, view.saturation) for view in views}) == 1
        boxes = np.array([view.box for view in views])
        assert boxes.min() >= 0 and boxes[:, 2].max() <= 600 and boxes[:, 3].max() <= 400
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides >= (300, 200)).all()
        np.testing.assert_allclose(sides[:, 0] / 600, sides[:, 1] / 400, atol=0.005)
        assert np.abs(np.diff(sides, n=2, axis=0)).max() <= 2  # steady, but for rounding
        moved |= bool(np.abs(boxes[0, :2] - boxes[-1, :2]).max() > 20)
        zoomed |= bool(np.abs(sides[0] - sides[-1]).max() > 20)
    assert moved and zoomed


def test_a_clip_of_one_frame_is_a_view(draw_picture: Callable[..., Image.Image]) -> None:
    assert len(clip_views(draw_picture(20, 30), np.random.default_rng(0), frames=1, least_side=0.5)) == 1
