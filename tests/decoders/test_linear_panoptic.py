"""The linear panoptic head: segments in the picture's own pixels, with the semantic one's network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders.base import Decoder, PostprocessOptions
from decoders.labels import LabelSet
from decoders.linear_panoptic import LinearPanopticDecoder
from decoders.linear_semantic import LinearSemanticDecoder
from encoders.geometry import FitGeometry, WindowGeometry
from encoders.vit import VisionTransformer

OPTIONS = PostprocessOptions()


def build(encoder: VisionTransformer, label_set: LabelSet, **settings: float) -> LinearPanopticDecoder:
    return LinearPanopticDecoder(encoder.spec, label_set=label_set, out_indices=[3], **settings).eval()


def logits_of(classes: Tensor, num_classes: int = 5) -> Tensor:
    """Logits that are sure of a map of classes."""
    return 20 * torch.nn.functional.one_hot(classes.long(), num_classes).permute(2, 0, 1).float()


def test_the_answer_lies_in_the_pictures_own_pixels(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    classes = torch.full((4, 6), 3)
    classes[:, 3:] = 4
    classes[1:3, 0:2] = 0  # four patches
    head = build(tiny_encoder, label_set)
    assert isinstance(head, Decoder) and head.kind == "panoptic"
    geometry = FitGeometry(32, 48).place((64, 96))
    result = head.postprocess({"class_logits": logits_of(classes)}, geometry, OPTIONS)
    assert result.segment_map.shape == (64, 96)
    assert {each.label for each in result.segments} == {"cat", "sky", "road"}
    for each in result.segments:
        mask = result.segment_map == each.segment_id
        rows, columns = mask.nonzero()
        assert each.area == mask.sum()
        assert each.bbox == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert 0.9 < each.score <= 1


@pytest.mark.parametrize("image_size", [(32, 48), (128, 192)])
def test_the_least_area_counts_in_patches_whatever_the_size_of_the_picture(
    tiny_encoder: VisionTransformer, label_set: LabelSet, image_size: tuple[int, int]
) -> None:
    classes = torch.full((4, 6), 3)
    classes[1, 1] = 0  # about one patch: bilinear upsampling takes and gives a little
    raw = {"class_logits": logits_of(classes)}
    geometry = FitGeometry(32, 48).place(image_size)
    found = {
        least: {
            each.label
            for each in build(tiny_encoder, label_set, min_patches=least).postprocess(raw, geometry, OPTIONS).segments
        }
        for least in (0.5, 2.0)
    }
    assert found == {0.5: {"cat", "sky"}, 2.0: {"sky"}}


def test_a_request_may_set_the_score_threshold(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    head = build(tiny_encoder, label_set, score_threshold=0.9)
    raw, geometry = {"class_logits": torch.zeros(5, 4, 6)}, FitGeometry(32, 48).place((32, 48))  # each class 0.2
    assert head.postprocess(raw, geometry, OPTIONS).segments == ()
    assert len(head.postprocess(raw, geometry, PostprocessOptions(score_threshold=0.1)).segments) == 1


def test_windows_are_put_together(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    geometry = WindowGeometry(16).place((16, 28))  # two windows of 16 x 16, from 0 and 12
    logits = torch.zeros(2, 5, 2, 2)
    logits[:, 0] = 9
    head = build(tiny_encoder, label_set)
    assert head.takes_windows
    [one] = head.postprocess({"class_logits": logits}, geometry, OPTIONS).segments
    assert (one.label, one.area) == ("cat", 16 * 28)


@torch.no_grad()
def test_weights_of_the_linear_semantic_head_fit(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    semantic = LinearSemanticDecoder(tiny_encoder.spec, label_set=label_set, out_indices=[3]).eval()
    head = build(tiny_encoder, label_set)
    head.load_state_dict(semantic.state_dict())
    features = tiny_encoder(torch.rand(1, 3, 32, 48), (3,))
    assert torch.equal(head(features)["class_logits"], semantic(features)["class_logits"])


def test_a_negative_area_is_refused(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    with pytest.raises(ValueError, match=r"min_patches is -1; an area is 0 or more"):
        build(tiny_encoder, label_set, min_patches=-1)
