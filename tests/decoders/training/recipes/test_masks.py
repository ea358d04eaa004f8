"""Targets of mask heads: which objects of which kind of truth, cut like the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from decoders.labels import LabelSet
from decoders.masks import encode
from decoders.panoptic import PanopticDecoder
from decoders.training.data.samples import (
    IGNORE,
    InstanceMask,
    InstanceSample,
    PanopticSample,
    Segments,
    SemanticSample,
)
from decoders.training.losses.set_prediction import MaskTarget
from decoders.training.recipes.masks import MaskObjective
from decoders.training.views import View
from encoders.features import EncoderSpec
from encoders.geometry import FitGeometry
from encoders.vit import VisionTransformer

WHOLE = View((0, 0, 24, 16))
IMAGE = Image.new("RGB", (24, 16))


def segment_map() -> np.ndarray:
    """16 x 24: a left half (1) and a right half (2), a crowd (3) in its upper right, one pixel of 5."""
    ids = np.ones((16, 24), np.int32)
    ids[:, 12:] = 2
    ids[:8, 18:] = 3
    ids[0, 0] = 5
    return ids


PANOPTIC = PanopticSample(
    "drawn", lambda: IMAGE, lambda: Segments(segment_map(), {1: 2, 2: 0, 3: 1, 5: 1, 99: 1}, frozenset({3}))
)


@pytest.fixture
def objective(tiny_encoder: VisionTransformer, label_set: LabelSet) -> MaskObjective:
    spec: EncoderSpec = tiny_encoder.spec
    return MaskObjective(PanopticDecoder(spec, label_set=label_set, out_indices=(1,), num_queries=3, num_blocks=1))


def target(objective: MaskObjective, sample: Any, *views: View, size: tuple[int, int] = (32, 48)) -> MaskTarget:
    places = []
    for view in views:
        left, top, right, bottom = view.box
        places.append(FitGeometry(*size).place((bottom - top, right - left)))
    return objective.target(sample, views, places)


def test_crowds_specks_and_segments_that_are_not_there_are_no_targets(objective: MaskObjective) -> None:
    found = target(objective, PANOPTIC, WHOLE)
    assert found.labels.tolist() == [2, 0]
    assert found.masks.shape == (1, 2, 32, 48)
    assert found.known.all()
    assert found.extents == ((1.0, 1.0),)
    assert found.masks[0, 0, 4:, :24].all() and not found.masks[0, 0, :, 24:].any()
    assert not found.masks[0, 1, :16, 36:].any()  # the crowd is not the right half's


@pytest.mark.parametrize("box", [(0, 0, 24, 16), (4, 0, 20, 16), (10, 8, 24, 16)], ids=str)
def test_a_flipped_view_has_the_mirrored_targets(objective: MaskObjective, box: tuple[int, int, int, int]) -> None:
    plain, flipped = (target(objective, PANOPTIC, View(box, flip=flip)) for flip in (False, True))
    columns = round(48 * plain.extents[0][1])
    assert len(plain.labels) > 0
    assert plain.labels.tolist() == flipped.labels.tolist()
    assert torch.equal(plain.masks[..., :columns].flip(-1), flipped.masks[..., :columns])


def test_padding_is_unknown_and_holds_no_mask(objective: MaskObjective) -> None:
    found = target(objective, PANOPTIC, View((0, 0, 12, 16)))  # scaled to 32 x 24 of 32 x 48
    assert found.extents == ((1.0, 0.5),)
    assert found.known[0, :, :24].all() and not found.known[0, :, 24:].any()
    assert not found.masks[..., 24:].any()


def test_a_view_without_objects_gives_an_empty_target(objective: MaskObjective) -> None:
    found = target(objective, PANOPTIC, View((18, 0, 24, 8)))
    assert found.labels.shape == (0,)
    assert found.masks.shape[:2] == (1, 0)


def test_objects_of_a_clip_are_the_same_in_every_frame(objective: MaskObjective) -> None:
    found = target(objective, PANOPTIC, View((0, 0, 12, 16)), View((12, 0, 24, 16)))
    assert found.labels.tolist() == [2, 0]
    seen = found.masks.flatten(2).any(dim=2)
    assert seen.tolist() == [[True, False], [False, True]]


def test_every_class_of_a_label_map_is_one_object_and_ignored_pixels_are_unknown(objective: MaskObjective) -> None:
    label_map = np.full((16, 24), 4, np.int32)
    label_map[:, :6] = label_map[:, 18:] = 1
    label_map[:4] = IGNORE
    found = target(objective, SemanticSample("drawn", lambda: IMAGE, lambda: label_map), WHOLE)
    assert found.labels.tolist() == [1, 4]
    assert not found.known[0, :8].any() and found.known[0, 8:].all()
    assert torch.equal(found.masks[0].any(dim=0), found.known[0])


def test_instances_may_overlap_and_crowds_are_left_out(objective: MaskObjective) -> None:
    large, small = np.ones((16, 24), bool), np.zeros((16, 24), bool)
    small[4:12, 4:12] = True
    objects = [InstanceMask(2, encode(large), False), InstanceMask(0, encode(small), False)]
    sample = InstanceSample("drawn", lambda: IMAGE, lambda: [*objects, InstanceMask(1, encode(large), True)])
    found = target(objective, sample, WHOLE)
    assert found.labels.tolist() == [2, 0]
    assert found.masks[0, 0].all()
    assert found.masks[0, 1].sum() == 4 * 64
    assert found.known.all()
