"""Whole clips: equal to PMT's video evaluation, and to a plain implementation of its rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decoders.clips import clip_classes, clip_instances, decode_clip
from decoders.online import OnlineMaskDecoder
from decoders.panoptic_merge import merge_clip
from encoders.geometry import ImageGeometry, ShortestEdgeGeometry
from encoders.vit import VisionTransformer

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]
Clip = tuple[dict[str, Any], dict[str, Tensor], ImageGeometry]


@pytest.fixture
def clip(read_golden: ReadGolden) -> Clip:
    """A recorded clip's logits, and where its frames lie."""
    facts, tensors = read_golden("video_post")
    output_size = tuple(facts["output_size"])
    geometry = ImageGeometry(
        output_size, tuple(facts["img_size"]), tuple(facts["first_resize_size"]), output_size, pads_with_mean=True
    )
    return facts, tensors, geometry


def test_instances_of_a_clip_equal_pmt(clip: Clip) -> None:
    facts, tensors, geometry = clip
    frames = clip_instances(tensors["mask_logits"], tensors["mean_class_logits"], geometry, top_k=facts["max_num"])
    wanted = list(zip(tensors["vis.query"].tolist(), tensors["vis.labels"].tolist(), strict=True))
    for t, pairs in enumerate(frames):
        found = {(pair.query, pair.label_id): pair for pair in pairs}
        assert found.keys() == set(wanted)
        for row, key in enumerate(wanted):
            assert found[key].probability == pytest.approx(tensors["vis.scores"][row].item(), abs=1e-5)
            differing = torch.from_numpy(found[key].mask.decode()) != tensors["vis.masks"][row, t].bool()
            assert differing.float().mean() <= 1e-4


def test_segments_of_a_clip_equal_pmt(clip: Clip) -> None:
    facts, tensors, geometry = clip
    segment_map, segments = merge_clip(
        tensors["mask_logits"],
        tensors["class_logits_per_frame"].mean(dim=0),
        geometry,
        stuff_ids=range(facts["num_things"], facts["num_classes"]),
        score_threshold=facts["object_mask_threshold"],
        overlap_threshold=facts["overlap_threshold"],
    )
    assert [s.query for s in segments] == facts["vps"]["query"]
    assert [(s.segment_id + 1, s.label_id) for s in segments] == [
        (s["id"], s["category_id"]) for s in facts["vps"]["segments"]
    ]
    assert (segment_map + 1 != tensors["vps.map"]).float().mean() <= 1e-4


def test_classes_of_a_clip_equal_pmt(clip: Clip) -> None:
    _, tensors, geometry = clip
    classes = clip_classes(tensors["mask_logits"], tensors["mean_class_logits"], geometry)
    assert (classes != tensors["vss.map"]).float().mean() <= 1e-4


# Equal to a plain implementation

STUFF = frozenset({3, 4})
GEOMETRY = ShortestEdgeGeometry(40, multiple=32).place((50, 80))  # 40 x 64 in 64 x 64


def draw_clip(seed: int, frames: int = 3, queries: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Smooth masks that move a little from frame to frame; some queries are no object."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(queries, 1, 4, 4, generator=generator) * 6
    moving = torch.randn(queries, frames, 4, 4, generator=generator)
    mask_logits = F.interpolate(still + moving, size=(16, 16), mode="bicubic")
    best = torch.randint(0, classes + 1, (queries,), generator=generator)
    confidence = 3 + 5 * torch.rand(queries, 1, generator=generator)
    return mask_logits, F.one_hot(best, classes + 1) * confidence


def probabilities_naively(mask_logits: Tensor, geometry: ImageGeometry) -> Tensor:
    """Logits resized and cropped, the sigmoid, and then the second resize: [Q, T, H, W]."""
    resize = {"mode": "bilinear", "align_corners": False}
    maps = F.interpolate(mask_logits, size=geometry.input_size, **resize)
    maps = maps[:, :, : geometry.scaled_size[0], : geometry.scaled_size[1]].sigmoid()
    return F.interpolate(maps, size=geometry.output_size, **resize)


def merge_naively(
    mask_logits: Tensor, class_logits: Tensor, geometry: ImageGeometry, score_threshold: float, overlap_threshold: float
) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Section 7 of the PMT specification, word for word; ids from 0 and -1 for void."""
    scores, labels = class_logits.softmax(-1).max(-1)
    no_object = class_logits.shape[-1] - 1
    kept = [q for q in range(len(scores)) if labels[q] != no_object and scores[q] > score_threshold]
    probabilities = probabilities_naively(mask_logits, geometry)[kept]
    segment_map = torch.full(probabilities.shape[1:], -1, dtype=torch.int32)
    if not kept:
        return segment_map, []
    owner = (scores[kept][:, None, None, None] * probabilities).argmax(0)
    segments: list[tuple[int, int, int]] = []
    id_of_stuff: dict[int, int] = {}
    for k, query in enumerate(kept):
        original, owned = probabilities[k] >= 0.5, owner == k
        areas = [int(mask.sum()) for mask in (original, owned, original & owned)]
        if 0 in areas or areas[1] / areas[0] < overlap_threshold:
            continue
        label = int(labels[query])
        segment_id = id_of_stuff.get(label, len(segments))
        if segment_id == len(segments):
            segments.append((segment_id, label, query))
            if label in STUFF:
                id_of_stuff[label] = segment_id
        segment_map[original & owned] = segment_id
    return segment_map, segments


@pytest.mark.parametrize(("score_threshold", "overlap_threshold"), [(0.8, 0.8), (0.3, 0.4), (0.9999, 0.8)], ids=str)
def test_the_merge_of_a_clip_equals_the_plain_one(score_threshold: float, overlap_threshold: float) -> None:
    for seed in range(6):
        logits = draw_clip(seed)
        wanted_map, wanted = merge_naively(*logits, GEOMETRY, score_threshold, overlap_threshold)
        segment_map, segments = merge_clip(
            *logits,
            GEOMETRY,
            stuff_ids=STUFF,
            score_threshold=score_threshold,
            overlap_threshold=overlap_threshold,
        )
        assert [(s.segment_id, s.label_id, s.query) for s in segments] == wanted
        assert segment_map.shape == (3, 50, 80)
        assert (segment_map != wanted_map).float().mean() <= 1e-4


def test_a_query_that_is_covered_in_one_frame_stands_or_falls_with_the_whole_clip() -> None:
    height, width = GEOMETRY.input_size
    mask_logits = torch.full((2, 2, height, width), -10.0)
    mask_logits[0] = 5.0  # everywhere, in both frames
    mask_logits[1, 0] = 10.0  # better, and over it in the first
    class_logits = torch.tensor([[9.0, 0, 0, 0, 0, 0], [0, 9.0, 0, 0, 0, 0]])
    _, segments = merge_clip(mask_logits, class_logits, GEOMETRY, stuff_ids=(), overlap_threshold=0.6)
    assert [s.query for s in segments] == [1]  # half of query 0 is left, too little
    segment_map, segments = merge_clip(mask_logits, class_logits, GEOMETRY, stuff_ids=(), overlap_threshold=0.4)
    assert [s.query for s in segments] == [0, 1]
    assert [frame.unique().tolist() for frame in segment_map] == [[1], [0]]


def test_classes_of_a_clip_equal_the_plain_ones() -> None:
    for seed in range(3):
        mask_logits, class_logits = draw_clip(seed)
        votes = torch.einsum(
            "qthw,qc->cthw", probabilities_naively(mask_logits, GEOMETRY), class_logits.softmax(-1)[:, :-1]
        )
        classes = clip_classes(mask_logits, class_logits, GEOMETRY)
        assert (classes != votes.argmax(dim=0)).float().mean() <= 1e-4


def test_the_same_pairs_come_in_every_frame_with_that_frames_mask() -> None:
    mask_logits, class_logits = draw_clip(0)
    frames = clip_instances(mask_logits, class_logits, GEOMETRY, top_k=7)
    assert len(frames) == 3
    keys = [[(pair.query, pair.label_id, pair.probability) for pair in pairs] for pairs in frames]
    assert keys[0] == keys[1] == keys[2]
    for t, pairs in enumerate(frames):
        for pair in pairs:
            wanted = GEOMETRY.to_output(mask_logits[[pair.query], t])[0] > 0
            assert torch.equal(torch.from_numpy(pair.mask.decode()), wanted)


@torch.no_grad()
def test_a_clip_decoded_at_once_equals_one_frame_after_the_other(tiny_encoder: VisionTransformer) -> None:
    decoder = OnlineMaskDecoder(tiny_encoder.spec, out_indices=(1, 3), num_queries=6, num_classes=5, num_blocks=2)
    frames = torch.rand(4, 3, 16, 24)
    at_once = tiny_encoder(frames, (1, 3))
    masks, classes, states = decode_clip(
        decoder.eval(), [at_once.rows([t], (1, 3), copy=False) for t in range(len(frames))]
    )
    queries = None
    for t, frame in enumerate(frames):
        mask_logits, class_logits, queries = decoder.step(tiny_encoder(frame[None], (1, 3)), queries)
        torch.testing.assert_close(masks[t], mask_logits[0], atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(classes[t], class_logits[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(states[t], queries[0], atol=5e-5, rtol=0)
