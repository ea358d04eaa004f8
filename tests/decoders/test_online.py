"""The online decoder: a stream's state goes in and comes out, and streams in one batch know nothing of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from decoders.clips import decode_clip
from decoders.online import OnlineMaskDecoder, StreamState, advance, stack_queries
from decoders.plain_mask_decoder import LateralProjection, PlainMaskDecoder
from decoders.pmt_checkpoints import load_pmt_decoder
from encoders.checkpoints import build_encoder
from encoders.embedded import embedded_encoder
from encoders.geometry import ShortestEdgeGeometry
from encoders.preprocess import pad_with_mean
from encoders.vit import VisionTransformer

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]
MASKS, CLASSES, QUERIES = ({"atol": 2e-4, "rtol": 1e-4}, {"atol": 1e-4, "rtol": 0}, {"atol": 5e-5, "rtol": 0})
"""Tolerances of the PMT specification, section 12."""
TAPS = (1, 3)


@pytest.mark.parametrize("case", ["video_dinov2_tiny", "video_dinov3_tiny"])
@torch.no_grad()
def test_every_frame_equals_pmt(read_golden: ReadGolden, case: str) -> None:
    facts, expected = read_golden(f"{case}.io")
    config = facts["config"]
    _, weights = read_golden(f"{case}.ckpt")
    encoder = build_encoder(embedded_encoder(weights), revision="golden", num_heads=config["heads"])
    decoder = load_pmt_decoder(weights, encoder.spec, config["interaction"])
    assert isinstance(decoder, OnlineMaskDecoder)
    frames = expected["frames_u8"]
    height, width = frames.shape[2:]
    geometry = ShortestEdgeGeometry(min(height, width), multiple=facts["size_divisibility"]).place((height, width))
    assert list(geometry.input_size) == facts["padded_hw"]
    pixels = frames.new_zeros(len(frames), 3, *geometry.input_size)
    pixels[:, :, :height, :width] = frames
    images = pad_with_mean(pixels, [geometry] * len(frames), encoder.pixel_mean)
    features = [encoder(image[None], config["interaction"]) for image in images]
    mask_logits, class_logits, queries = decode_clip(decoder, features)
    torch.testing.assert_close(mask_logits, expected["mask_logits"], **MASKS)
    torch.testing.assert_close(class_logits, expected["class_logits"], **CLASSES)
    torch.testing.assert_close(queries, expected["query_state"], **QUERIES)
    before = torch.cat([decoder.queries[None], queries[:-1]])
    for t in (0, 5):
        entering = decoder.embed(features[t], before[t][None])[0][0]
        torch.testing.assert_close(entering, expected[f"tokens_in.{t}"], **QUERIES)


@pytest.fixture
def decoder(tiny_encoder: VisionTransformer) -> OnlineMaskDecoder:
    """A tiny decoder whose updater and batch norms do something."""
    made = OnlineMaskDecoder(tiny_encoder.spec, out_indices=TAPS, num_queries=6, num_classes=5, num_blocks=2)
    for lateral in made.laterals:
        assert isinstance(lateral, LateralProjection)
        lateral.norm.running_mean.normal_()
        lateral.norm.running_var.uniform_(0.5, 2)
    return made.eval().requires_grad_(False)


def draw_stream(frames: int, seed: int) -> Tensor:
    return torch.rand(frames, 1, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


def run_alone(
    decoder: OnlineMaskDecoder, encoder: VisionTransformer, frames: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(mask_logits, class_logits, queries after) of every frame of one stream."""
    answers = []
    queries = None
    for frame in frames:
        answers.append(decoder.step(encoder(frame, TAPS), queries))
        queries = answers[-1][2]
    return answers


def test_a_streams_first_frame_is_a_still_picture(decoder: OnlineMaskDecoder, tiny_encoder: VisionTransformer) -> None:
    features = tiny_encoder(draw_stream(1, 0)[0], TAPS)
    for streamed, still in zip(decoder.step(features), decoder(features), strict=False):
        torch.testing.assert_close(streamed, still, atol=0, rtol=0)
    learned = decoder.queries[None]
    for streamed, begun in zip(decoder.step(features, learned), decoder.step(features), strict=True):
        torch.testing.assert_close(streamed, begun, atol=0, rtol=0)


def test_queries_of_the_frame_before_change_the_answer(
    decoder: OnlineMaskDecoder, tiny_encoder: VisionTransformer
) -> None:
    frames = draw_stream(2, 0)
    features = tiny_encoder(frames[1], TAPS)
    after_another_frame = run_alone(decoder, tiny_encoder, frames)[1][0]
    assert (after_another_frame - decoder.step(features)[0]).abs().max() > 1e-3


def test_next_queries_are_the_updated_tokens_before_the_last_norm_plus_the_learned_ones(
    decoder: OnlineMaskDecoder, tiny_encoder: VisionTransformer
) -> None:
    features = tiny_encoder(draw_stream(1, 0)[0], TAPS)
    tokens = decoder.decode(features)[:, :6]
    assert not torch.allclose(decoder.norm(tokens), tokens, atol=0.1)
    torch.testing.assert_close(decoder.step(features)[2], decoder.query_updater(tokens) + decoder.queries)


def test_two_video_streams_keep_separate_queries(decoder: OnlineMaskDecoder, tiny_encoder: VisionTransformer) -> None:
    first, second = draw_stream(4, 1), draw_stream(4, 2)
    alone = run_alone(decoder, tiny_encoder, first)
    others = run_alone(decoder, tiny_encoder, second)
    queries: list[Tensor | None] = [None, None]
    for t in range(4):  # by turns, on one decoder
        for stream, (frames, wanted) in enumerate(((first, alone), (second, others))):
            answer = decoder.step(tiny_encoder(frames[t], TAPS), queries[stream])
            queries[stream] = answer[2]
            for ours, theirs in zip(answer, wanted[t], strict=True):
                torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_a_batch_of_streams_equals_each_stream_alone(
    decoder: OnlineMaskDecoder, tiny_encoder: VisionTransformer
) -> None:
    streams = [draw_stream(4, seed) for seed in (1, 2, 3)]
    alone = [run_alone(decoder, tiny_encoder, frames) for frames in streams]
    begins = (0, 2, 1)  # not all at once: batches of 1, 2 and 3, some with streams that begin
    states: dict[int, StreamState | None] = {}
    for tick in range(6):
        active = [s for s, begin in enumerate(begins) if 0 <= tick - begin < 4]
        features = tiny_encoder(torch.cat([streams[s][tick - begins[s]] for s in active]), TAPS)
        before = [states.get(s) for s in active]
        mask_logits, class_logits, queries = decoder.step(features, stack_queries(before, decoder.queries))
        states |= dict(zip(active, advance(before, queries, class_logits, None), strict=True))
        for row, stream in enumerate(active):
            wanted = alone[stream][tick - begins[stream]]
            torch.testing.assert_close(mask_logits[row], wanted[0][0], **MASKS)
            torch.testing.assert_close(class_logits[row], wanted[1][0], **CLASSES)
            torch.testing.assert_close(queries[row], wanted[2][0], **QUERIES)


def test_nothing_of_a_stream_stays_on_the_decoder(decoder: OnlineMaskDecoder, tiny_encoder: VisionTransformer) -> None:
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    first = run_alone(decoder, tiny_encoder, draw_stream(3, 1))
    run_alone(decoder, tiny_encoder, draw_stream(2, 2))
    again = run_alone(decoder, tiny_encoder, draw_stream(3, 1))
    assert all(torch.equal(decoder.state_dict()[name], tensor) for name, tensor in before.items())
    for answers, wanted in zip(again, first, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(answers, wanted, strict=True))


# States


def make_states(frames: Sequence[Tensor], window: int | None = None) -> list[StreamState]:
    """The states of one stream after each frame's class logits [Q, K + 1]."""
    state: StreamState | None = None
    states = []
    for number, logits in enumerate(frames):
        queries = torch.full((1, len(logits), 8), float(number))
        state = advance([state], queries, logits[None], window)[0]
        states.append(state)
    return states


def test_class_logits_of_a_state_are_the_mean_over_all_frames() -> None:
    frames = torch.randn(7, 6, 5) * 5
    states = make_states(frames)
    assert [state.num_frames for state in states] == list(range(1, 8))
    for t, state in enumerate(states):
        torch.testing.assert_close(state.class_logits, frames[: t + 1].mean(dim=0))
        assert (state.queries == t).all()


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_lets_the_mean_forget(window: int) -> None:
    frames = torch.cat([torch.zeros(20, 6, 5), torch.ones(3 * window, 6, 5)])
    means = [state.class_logits.mean().item() for state in make_states(frames, window)]
    assert means[19] == 0
    assert means[19 + window] == pytest.approx(1 - (1 - 1 / window) ** window)
    whole = make_states(frames)[19 + window].class_logits.mean().item()
    assert whole == pytest.approx(window / (20 + window))


def test_a_window_that_is_not_full_yet_is_the_mean_of_what_there_was() -> None:
    frames = torch.randn(3, 6, 5)
    torch.testing.assert_close(make_states(frames, 10)[-1].class_logits, frames.mean(dim=0))


def test_class_logits_are_kept_in_float32_whatever_the_networks_precision() -> None:
    state = advance([None], torch.zeros(1, 6, 8, dtype=torch.bfloat16), torch.ones(1, 6, 5, dtype=torch.bfloat16), None)
    assert (state[0].class_logits.dtype, state[0].queries.dtype) == (torch.float32, torch.bfloat16)


def test_a_state_tells_the_bytes_that_it_keeps_alive() -> None:
    batch = torch.randn(16, 200, 64)
    logits = torch.randn(16, 200, 41)
    for state in advance([None] * 16, batch, logits, None):
        assert state.num_bytes == 4 * 200 * (64 + 41)
        kept = state.queries.untyped_storage().nbytes() + state.class_logits.untyped_storage().nbytes()
        assert kept == state.num_bytes  # and not the whole batch's


def test_advancing_leaves_the_states_before_as_they_were() -> None:
    states = make_states(torch.randn(2, 6, 5))
    before = states[-1].class_logits.clone()
    advance([states[-1]], torch.zeros(1, 6, 8), torch.randn(1, 6, 5), None)
    assert torch.equal(states[-1].class_logits, before)


def test_streams_that_begin_get_the_learned_queries() -> None:
    learned = torch.randn(6, 8)
    (state,) = make_states(torch.randn(1, 6, 5))
    stacked = stack_queries([None, state], learned)
    assert stacked is not None
    assert torch.equal(stacked[0], learned)
    assert torch.equal(stacked[1], state.queries)
    assert stack_queries([None, None], learned) is None


def test_without_propagation_every_frame_begins_with_the_learned_queries(tiny_encoder: VisionTransformer) -> None:
    sizes: dict[str, Any] = {"out_indices": (1, 3), "num_queries": 4, "num_classes": 3, "num_blocks": 1}
    still = PlainMaskDecoder(tiny_encoder.spec, **sizes).eval()
    online = OnlineMaskDecoder(tiny_encoder.spec, propagates=False, **sizes).eval()
    online.load_state_dict(still.state_dict())  # the very same names: no updater
    features = tiny_encoder(torch.rand(2, 3, 16, 24), (1, 3))
    _, _, queries = online.step(features)
    mask_logits, class_logits, queries = online.step(features, queries)
    expected = still(features)
    torch.testing.assert_close((mask_logits, class_logits), expected)
    torch.testing.assert_close(queries, still.queries.expand(2, -1, -1))
