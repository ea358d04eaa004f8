"""The linear instance head: the pieces of things, the most probable first, with the panoptic one's network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from decoders.base import Decoder, PostprocessOptions
from decoders.labels import LabelSet
from decoders.linear_instance import LinearInstanceDecoder
from decoders.linear_panoptic import LinearPanopticDecoder
from encoders.geometry import FitGeometry
from encoders.vit import VisionTransformer

GEOMETRY = FitGeometry(32, 48).place((64, 96))
CAT, SKY = 0, 3


def two_cats() -> Tensor:
    """[5, 4, 6] logits: a large cat that is doubtful, a small one that is sure, sky around."""
    logits = torch.zeros(5, 4, 6)
    logits[SKY] = 20
    logits[:, :, :3] = 0
    logits[CAT, :, :3] = 3  # e^3 of e^3 + 4: 0.83
    logits[SKY, 1:3, 4:] = 0
    logits[CAT, 1:3, 4:] = 20
    return logits


def build(encoder: VisionTransformer, label_set: LabelSet, **settings: float) -> LinearInstanceDecoder:
    return LinearInstanceDecoder(encoder.spec, label_set=label_set, out_indices=[3], **settings).eval()


def test_objects_are_pieces_of_things_the_most_probable_first(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = build(tiny_encoder, label_set)
    assert isinstance(head, Decoder) and head.kind == "instance"
    result = head.postprocess({"class_logits": two_cats()}, GEOMETRY, PostprocessOptions())
    assert [(each.segment_id, each.label, each.is_thing) for each in result.instances] == [
        (1, "cat", True),
        (2, "cat", True),
    ]
    small, large = result.instances
    assert small.score > 0.9 > large.score > 0.7
    assert small.area < large.area
    assert result.image_size == (64, 96)


def test_masks_are_the_panoptic_heads_segments(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    raw = {"class_logits": two_cats()}
    found = build(tiny_encoder, label_set).postprocess(raw, GEOMETRY, PostprocessOptions())
    panoptic = LinearPanopticDecoder(tiny_encoder.spec, label_set=label_set, out_indices=[3]).eval()
    segments = panoptic.postprocess(raw, GEOMETRY, PostprocessOptions())
    by_area = {each.area: each for each in segments.segments if each.is_thing}
    assert len(by_area) == len(found.instances) == 2
    for instance, mask in zip(found.instances, found.masks, strict=True):
        same = by_area[instance.area]
        assert (instance.score, instance.bbox) == (same.score, same.bbox)
        assert np.array_equal(mask.decode(), segments.segment_map == same.segment_id)


def test_a_request_may_set_the_score_threshold(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    raw = {"class_logits": two_cats()}
    found = build(tiny_encoder, label_set).postprocess(raw, GEOMETRY, PostprocessOptions(score_threshold=0.9))
    assert len(found.instances) == 1


def test_a_picture_may_show_no_thing(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    logits = torch.zeros(5, 4, 6)
    logits[SKY] = 20
    result = build(tiny_encoder, label_set).postprocess({"class_logits": logits}, GEOMETRY, PostprocessOptions())
    assert (result.instances, result.masks) == ((), ())
