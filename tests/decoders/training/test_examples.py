"""Examples: one seed gives one list of views, and picture and truth are cut alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from decoders.training.data.samples import Sample
from decoders.training.examples import Examples
from decoders.training.placing import place_labels, place_mask
from decoders.training.views import View
from encoders.geometry import FitGeometry

GEOMETRY = FitGeometry(32, 48)


@pytest.fixture
def examples(draw_picture: Callable[..., Image.Image]) -> Examples:
    """Three pictures, two clips of four frames of each."""
    pictures = [draw_picture(30, 40, seed) for seed in range(3)]
    samples = [Sample(str(seed), lambda seed=seed: pictures[seed]) for seed in range(3)]
    return Examples(samples, GEOMETRY, views_per_picture=2, frames=4, least_side=0.5, seed=0)


def test_every_picture_has_its_share_of_examples(examples: Examples) -> None:
    assert len(examples) == 6
    assert [examples.sample(index).name for index in range(6)] == ["0", "1", "2"] * 2
    assert examples.rows([0, 5]) == [[0, 20], [1, 21], [2, 22], [3, 23]]


def test_views_depend_on_seed_and_example_alone(examples: Examples) -> None:
    image = examples.sample(0).read_image()
    assert examples.views(0, image) == examples.views(0, image)
    assert examples.views(0, image) != examples.views(3, image)
    assert examples.views(0, image) != replace(examples, seed=1).views(0, image)


def test_pixels_of_a_row_are_those_of_its_frame(examples: Examples) -> None:
    image = examples.sample(4).read_image()
    view = examples.views(4, image)[2]
    pixels = examples.pixels(4 * 4 + 2)
    height, width = examples.place(view).scaled_size
    expected = view.apply(image).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels[:, :height, :width].permute(1, 2, 0).numpy(), np.asarray(expected))
    assert not pixels[:, height:].any() and not pixels[:, :, width:].any()


def test_a_whole_still_is_the_picture_as_it_is(examples: Examples) -> None:
    whole = replace(examples, frames=1, least_side=1)
    assert whole.views(0, examples.sample(0).read_image()) == [View((0, 0, 40, 30))]


@pytest.mark.parametrize("change", ["pictures", "views_per_picture", "frames", "least_side", "seed"])
def test_the_key_changes_with_whatever_changes_the_pixels(examples: Examples, change: str) -> None:
    other = {
        "pictures": {"samples": [*examples.samples[:2], examples.samples[0]]},
        "views_per_picture": {"views_per_picture": 3},
        "frames": {"frames": 2},
        "least_side": {"least_side": 0.6},
        "seed": {"seed": 1},
    }[change]
    assert replace(examples, **other).key() != examples.key() == replace(examples).key()


@pytest.mark.parametrize("flip", [False, True])
def test_labels_and_masks_lie_where_the_picture_lies(flip: bool) -> None:
    box = np.zeros((20, 30), np.int32)
    box[5:15, 6:12] = 4
    view = View((3, 5, 21, 20), flip)
    place = GEOMETRY.place((15, 18))
    labels = place_labels(box, view, place, padding=-1)
    height, width = place.scaled_size
    picture = Image.fromarray(np.where(box == 4, 255, 0).astype(np.uint8))
    seen = np.asarray(view.apply(picture).resize((width, height), Image.Resampling.BILINEAR))
    inside = labels[:height, :width] == 4
    assert (seen[inside] >= 120).all() and (seen[~inside] <= 135).all()
    assert (labels[height:] == -1).all() and (labels[:, width:] == -1).all()
    mask = place_mask(box == 4, view, place)
    assert np.count_nonzero(mask[:height, :width] != inside) <= 2 * (height + width)
    assert not mask[:, width:].any()
