"""Clips cut from photos: the truth of every frame is cut as the picture is, and objects keep their place."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from decoders.masks import encode
from decoders.training.data.samples import (
    DepthSample,
    InstanceMask,
    InstanceSample,
    PanopticSample,
    Segments,
    SemanticSample,
)
from decoders.training.evaluation.clips import pseudo_clip

SEGMENT_MAP = np.arange(60 * 90, dtype=np.int32).reshape(60, 90) // 600 + 1


def image_of(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([values] * 3, axis=-1).astype(np.uint8))


@pytest.fixture
def sample() -> PanopticSample:
    """A photo that shows its own segment ids."""
    labels = {int(i): int(i) % 5 for i in np.unique(SEGMENT_MAP)}
    return PanopticSample("a.jpg", lambda: image_of(SEGMENT_MAP), lambda: Segments(SEGMENT_MAP, labels, frozenset({2})))


def test_every_frame_of_a_clip_shows_what_its_truth_says(sample: PanopticSample) -> None:
    clip = pseudo_clip(sample, 4)
    assert len(clip.frames) == 4
    seen = []
    for frame in clip.frames:
        assert isinstance(frame, PanopticSample)
        pixels = np.asarray(frame.read_image())[..., 0]
        truth = frame.read_segments()
        assert (pixels == truth.segment_map).all()
        assert truth.crowd_ids == {2}
        seen.append(pixels)
    assert [pixels.shape for pixels in (seen[0], seen[-1])] == [(42, 63), (48, 72)]  # from 70 to 80 %
    assert seen[0][0, 0] == SEGMENT_MAP[0, 0]
    assert seen[-1][-1, -1] == SEGMENT_MAP[-1, -1]


def test_label_maps_and_masks_are_cut_alike(sample: PanopticSample) -> None:
    semantic = SemanticSample("a.jpg", sample.read_image, lambda: SEGMENT_MAP - 1)
    masks = [InstanceMask(0, encode(i == SEGMENT_MAP), False) for i in (1, 5, 9)]
    instances = InstanceSample("a.jpg", sample.read_image, lambda: masks)
    for frame, labelled in zip(pseudo_clip(instances, 3).frames, pseudo_clip(semantic, 3).frames, strict=True):
        assert isinstance(frame, InstanceSample)
        assert isinstance(labelled, SemanticSample)
        shown = np.asarray(frame.read_image())[..., 0]
        assert (labelled.read_label_map() == shown.astype(np.int32) - 1).all()
        found = frame.read_masks()
        assert len(found) == 3  # an object out of view keeps its place
        for each, i in zip(found, (1, 5, 9), strict=True):
            assert (each.mask.decode() == (shown == i)).all()


def test_depth_makes_no_clip(sample: PanopticSample) -> None:
    depth = DepthSample("a.jpg", sample.read_image, lambda: np.ones((60, 90), np.float32))
    with pytest.raises(TypeError, match="no clip is cut from a DepthSample"):
        pseudo_clip(depth, 3)
