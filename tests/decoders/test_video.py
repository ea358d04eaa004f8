"""The video heads: causal, each stream for itself, and a track keeps its id."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from decoders.base import Decoder, PostprocessOptions
from decoders.labels import LabelSet
from decoders.online import OnlineMaskDecoder, StreamState
from decoders.results import InstanceResult, PanopticResult, Segment, SemanticResult
from decoders.video import StreamDecoder, VideoInstanceDecoder, VideoPanopticDecoder, VideoSemanticDecoder
from encoders.features import EncoderFeatures
from encoders.geometry import ShortestEdgeGeometry
from encoders.vit import VisionTransformer

HEADS = (VideoInstanceDecoder, VideoPanopticDecoder, VideoSemanticDecoder)
Head = VideoInstanceDecoder | VideoPanopticDecoder | VideoSemanticDecoder
TAPS = (1, 3)
GEOMETRY = ShortestEdgeGeometry(12, multiple=8).place((30, 50))  # 12 x 20 in 16 x 24


def make_head(kind: type[Head], encoder: VisionTransformer, label_set: LabelSet, **options: Any) -> Head:
    torch.manual_seed(3)
    sizes = {"out_indices": TAPS, "num_queries": 12, "num_blocks": 2}
    if kind is VideoInstanceDecoder:  # it knows no stuff
        label_set = LabelSet("things", tuple(replace(label, is_thing=True) for label in label_set.labels))
    return kind(encoder.spec, label_set=label_set, **sizes, **options).eval().requires_grad_(False)


def draw_frames(encoder: VisionTransformer, number: int, seed: int = 0) -> list[EncoderFeatures]:
    frames = torch.rand(number, 1, 3, 16, 24, generator=torch.Generator().manual_seed(seed))
    return [encoder(frame, TAPS) for frame in frames]


def run_stream(head: Head, frames: list[EncoderFeatures]) -> tuple[list[dict[str, Tensor]], list[StreamState]]:
    """The raw output of every frame of one stream (without the batch dimension), and the state after it."""
    raws, states = [], []
    state: StreamState | None = None
    for features in frames:
        raw, (state,) = head.step(features, [state])
        raws.append({name: tensor[0] for name, tensor in raw.items()})
        states.append(state)
    return raws, states


@pytest.mark.parametrize("kind", HEADS)
def test_a_video_head_is_a_decoder_that_also_steps(
    kind: type[Head], tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = make_head(kind, tiny_encoder, label_set)
    assert isinstance(head, Decoder)
    assert isinstance(head, StreamDecoder)
    assert isinstance(head.mask_decoder, OnlineMaskDecoder)
    raw, states = head.step(tiny_encoder(torch.rand(2, 3, 16, 24), TAPS), [None, None])
    assert {name: tuple(t.shape) for name, t in raw.items()} == {
        "mask_logits": (2, 12, 4, 6),
        "class_logits": (2, 12, 6),
    }
    assert len(states) == 2


@pytest.mark.parametrize("kind", HEADS)
def test_a_streams_first_frame_is_answered_as_a_still_picture(
    kind: type[Head], tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = make_head(kind, tiny_encoder, label_set)
    features = tiny_encoder(torch.rand(2, 3, 16, 24), TAPS)
    still, (streamed, _) = head(features), head.step(features, [None, None])
    for name, tensor in still.items():
        assert torch.equal(tensor, streamed[name])
    for tensor, plain in zip(still.values(), head.mask_decoder(features), strict=True):
        assert torch.equal(tensor, plain)


def test_class_logits_are_the_mean_of_the_streams_frames(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    head = make_head(VideoPanopticDecoder, tiny_encoder, label_set)
    frames = draw_frames(tiny_encoder, 4)
    raws, _ = run_stream(head, frames)
    queries, seen = None, []
    for features, raw in zip(frames, raws, strict=True):
        mask_logits, class_logits, queries = head.mask_decoder.step(features, queries)
        seen.append(class_logits[0])
        torch.testing.assert_close(raw["class_logits"], torch.stack(seen).mean(dim=0))
        torch.testing.assert_close(raw["mask_logits"], mask_logits[0], atol=0, rtol=0)


def test_with_a_class_window_of_one_every_frame_speaks_for_itself(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = make_head(VideoPanopticDecoder, tiny_encoder, label_set, class_window=1)
    frames = draw_frames(tiny_encoder, 3)
    raws, _ = run_stream(head, frames)
    queries = None
    for features, raw in zip(frames, raws, strict=True):
        _, class_logits, queries = head.mask_decoder.step(features, queries)
        torch.testing.assert_close(raw["class_logits"], class_logits[0])


@pytest.mark.parametrize("kind", HEADS)
def test_a_frames_answer_does_not_depend_on_later_frames(
    kind: type[Head], tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = make_head(kind, tiny_encoder, label_set)
    frames = draw_frames(tiny_encoder, 4)
    whole, _ = run_stream(head, frames)
    begun, _ = run_stream(head, frames[:2])
    for early, late in zip(begun, whole, strict=False):
        assert all(torch.equal(early[name], late[name]) for name in early)


@pytest.mark.parametrize("kind", HEADS)
def test_two_video_streams_keep_separate_queries_and_classes(
    kind: type[Head], tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = make_head(kind, tiny_encoder, label_set)
    streams = [draw_frames(tiny_encoder, 3, seed) for seed in (1, 2)]
    alone = [run_stream(head, frames)[0] for frames in streams]
    states: list[StreamState | None] = [None, None]
    for t in range(3):  # by turns, on one head
        for stream, frames in enumerate(streams):
            raw, (states[stream],) = head.step(frames[t], [states[stream]])
            assert all(torch.equal(raw[name][0], alone[stream][t][name]) for name in raw)


@pytest.mark.parametrize("kind", HEADS)
def test_streams_in_one_batch_get_the_answers_they_get_alone(
    kind: type[Head], tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = make_head(kind, tiny_encoder, label_set)
    images = torch.rand(2, 3, 3, 16, 24)
    alone = [run_stream(head, [tiny_encoder(image[None], TAPS) for image in stream])[0] for stream in images]
    states: list[StreamState | None] = [None, None]
    for t in range(3):
        raw, after = head.step(tiny_encoder(images[:, t], TAPS), states)
        states = [*after]
        for stream in range(2):
            for name in raw:
                torch.testing.assert_close(raw[name][stream], alone[stream][t][name], atol=1e-4, rtol=1e-4)


# Results


def segments_of(result: PanopticResult | InstanceResult | SemanticResult) -> tuple[Segment, ...]:
    return result.instances if isinstance(result, InstanceResult) else result.segments


def draw_raw(*, frames: int = 3) -> list[dict[str, Tensor]]:
    """Frames in which every query has a place of its own and a sure class; things are 0..2, stuff is 3, 4."""
    class_logits = torch.zeros(12, 6)
    class_logits[torch.arange(12), torch.arange(12) % 5] = 9.0
    raws = []
    for t in range(frames):
        mask_logits = torch.full((12, 16, 24), -9.0)
        for query, (row, column) in enumerate(itertools.product(range(3), range(4))):
            mask_logits[query, 4 * row : 4 * row + 4, 5 * column + t % 2 : 5 * column + 5] = 9.0
        raws.append({"mask_logits": mask_logits, "class_logits": class_logits})
    return raws


@pytest.mark.parametrize(
    ("kind", "result_type", "tracked"),
    [
        (VideoInstanceDecoder, InstanceResult, range(12)),
        (VideoPanopticDecoder, PanopticResult, [q for q in range(12) if q % 5 < 3]),
        (VideoSemanticDecoder, SemanticResult, []),
    ],
)
def test_a_track_id_stays_with_its_query_in_every_frame(
    kind: type[Head],
    result_type: type,
    tracked: range | list[int],
    tiny_encoder: VisionTransformer,
    label_set: LabelSet,
) -> None:
    head = make_head(kind, tiny_encoder, label_set)
    for raw in draw_raw():
        result = head.postprocess(raw, GEOMETRY, PostprocessOptions())
        assert isinstance(result, result_type)
        classes = {s.track_id - 1: s.label_id for s in segments_of(result) if s.track_id is not None}
        assert classes == {query: query % 5 for query in tracked}


def test_track_ids_do_not_move_up_when_a_query_is_gone(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    head = make_head(VideoInstanceDecoder, tiny_encoder, label_set)
    (raw,) = draw_raw(frames=1)
    raw["mask_logits"][4] = -9.0
    result = head.postprocess(raw, GEOMETRY, PostprocessOptions())
    assert {segment.track_id for segment in segments_of(result)} == set(range(1, 13)) - {5}


@pytest.mark.parametrize("kind", HEADS)
def test_results_are_in_the_frames_own_pixels(
    kind: type[Head], tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = make_head(kind, tiny_encoder, label_set)
    result = head.postprocess(draw_raw()[0], GEOMETRY, PostprocessOptions())
    if isinstance(result, InstanceResult):
        assert result.image_size == (30, 50)
        assert {mask.decode().shape for mask in result.masks} == {(30, 50)}
    else:
        assert result.segment_map.shape == (30, 50)
        assert {segment.segment_id for segment in result.segments} <= set(result.segment_map.ravel().tolist())


def test_an_instance_comes_once_under_its_best_class_and_scores_its_class_probability(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = make_head(VideoInstanceDecoder, tiny_encoder, label_set, score_threshold=0.2)
    (raw,) = draw_raw(frames=1)
    raw["class_logits"] = torch.zeros(12, 6)
    raw["class_logits"][2, 1], raw["class_logits"][2, 4] = 4.0, 4.2
    result = head.postprocess(raw, GEOMETRY, PostprocessOptions())
    probability = raw["class_logits"].softmax(-1)[2, 4].item()
    assert [(s.track_id, s.label_id) for s in segments_of(result)] == [(3, 4)]
    assert segments_of(result)[0].score == pytest.approx(probability)


def test_an_instance_below_the_threshold_is_left_out(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    head = make_head(VideoInstanceDecoder, tiny_encoder, label_set)
    (raw,) = draw_raw(frames=1)
    raw["class_logits"][5:] = torch.tensor([0.5, 0, 0, 0, 0, 0])  # the best class at 0.25, below the head's own 0.3
    assert len(segments_of(head.postprocess(raw, GEOMETRY, PostprocessOptions()))) == 5
    assert len(segments_of(head.postprocess(raw, GEOMETRY, PostprocessOptions(score_threshold=0.2)))) == 12
    assert segments_of(head.postprocess(raw, GEOMETRY, PostprocessOptions(score_threshold=1.0))) == ()


def test_stuff_is_joined_and_carries_no_track(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    head = make_head(VideoPanopticDecoder, tiny_encoder, label_set)
    result = head.postprocess(draw_raw()[0], GEOMETRY, PostprocessOptions())
    stuff = [segment for segment in segments_of(result) if not segment.is_thing]
    assert sorted(segment.label_id for segment in stuff) == [3, 4]
    assert all(segment.track_id is None for segment in stuff)


def test_a_caller_may_set_the_thresholds_of_the_merge(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    head = make_head(VideoPanopticDecoder, tiny_encoder, label_set)
    (raw,) = draw_raw(frames=1)
    assert segments_of(head.postprocess(raw, GEOMETRY, PostprocessOptions(score_threshold=0.9999))) == ()
    assert segments_of(head.postprocess(raw, GEOMETRY, PostprocessOptions(overlap_threshold=50.0))) == ()


def test_stuff_is_no_instance(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    sizes = {"out_indices": TAPS, "num_queries": 12, "num_blocks": 2}
    head = VideoInstanceDecoder(tiny_encoder.spec, label_set=label_set, score_threshold=0.0, **sizes).eval()
    (raw,) = draw_raw(frames=1)
    found = segments_of(head.postprocess(raw, GEOMETRY, PostprocessOptions()))
    assert found and all(segment.is_thing for segment in found)
