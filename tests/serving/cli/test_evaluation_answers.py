"""Answers to score: batches change nothing, clips beside each other keep their own state, failures name the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoders.results import DepthResult, PanopticResult
from decoders.video import VideoPanopticDecoder
from encoders.geometry import ShortestEdgeGeometry
from serving.bundles.loading import Bundle
from serving.cli.evaluation_answers import answer_clips, answer_pictures
from serving.engine import Engine, PassInput
from serving.errors import StartError
from serving.planner import Head
from serving.types import PredictOptions

OPTIONS = PredictOptions()

Pictures = list[tuple[str, Image.Image]]


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the size of every batch that is run."""
    sizes: list[int] = []
    run_pass = Engine.run_pass

    def counting(self: Engine, inputs: Sequence[PassInput]) -> Any:
        sizes.append(len(inputs))
        return run_pass(self, inputs)

    monkeypatch.setattr(Engine, "run_pass", counting)
    return sizes


@pytest.fixture
def make_video_engine(make_bundle: Callable[..., Bundle]) -> Callable[[], Engine]:
    """An engine with a head that remembers, of random weights under which propagated queries matter."""

    def make() -> Engine:
        bundle = make_bundle()
        head = VideoPanopticDecoder(
            bundle.encoder.spec,
            label_set=bundle.label_sets["panoptic"],
            out_indices=(0, 2),
            num_queries=6,
            num_blocks=1,
            score_threshold=0,
            overlap_threshold=0,
        )
        head.mask_decoder.queries.data.mul_(100)
        head.eval().requires_grad_(False)
        heads = {"follow": Head("follow", head, bundle.heads["panoptic"].geometry)}
        return Engine(dataclasses.replace(bundle, heads=heads, default_tasks=("follow",)))

    return make


def drawn(draw_picture: Callable[..., Image.Image], sizes: Sequence[tuple[int, int]], first: int = 0) -> Pictures:
    return [(f"{n}.png", draw_picture(*size, n)) for n, size in enumerate(sizes, first)]


def test_pictures_of_one_input_size_run_together_and_come_back_in_their_order(
    make_bundle: Callable[..., Bundle], draw_picture: Callable[..., Image.Image], batch_sizes: list[int]
) -> None:
    bundle = make_bundle()
    depth = dataclasses.replace(bundle.heads["depth"], geometry=ShortestEdgeGeometry(56, longest=112, multiple=14))
    engine = Engine(dataclasses.replace(bundle, heads={"depth": depth}))
    pictures = drawn(draw_picture, [(60, 60), (60, 120), (70, 70), (56, 112), (80, 80)])
    together = answer_pictures(engine, pictures, ["depth"], OPTIONS, 2)
    assert sorted(batch_sizes) == [1, 2, 2]
    for picture, answer in zip(pictures, together, strict=True):
        [alone] = answer_pictures(engine, [picture], ["depth"], OPTIONS, 1)
        result, expected = answer["depth"], alone["depth"]
        assert isinstance(result, DepthResult)
        assert isinstance(expected, DepthResult)
        assert result.depth_m == pytest.approx(expected.depth_m, rel=1e-4)


def test_clips_beside_each_other_are_answered_as_each_alone(
    make_video_engine: Callable[[], Engine], draw_picture: Callable[..., Image.Image], batch_sizes: list[int]
) -> None:
    engine = make_video_engine()
    clips = [drawn(draw_picture, [(40, 60)] * length, 10 * length) for length in (3, 1, 2)]
    together = answer_clips(engine, clips, "follow", OPTIONS, 2)
    assert batch_sizes == [2, 1, 2, 1]  # three clips have a first frame, two a second, one a third
    for clip, results in zip(clips, together, strict=True):
        [alone] = answer_clips(engine, [clip], "follow", OPTIONS, 8)
        assert len(results) == len(clip)
        for result, expected in zip(results, alone, strict=True):
            assert isinstance(result, PanopticResult)
            assert isinstance(expected, PanopticResult)
            assert np.mean(result.segment_map == expected.segment_map) > 0.99


def test_a_frame_is_answered_with_what_the_frames_before_it_left(
    make_video_engine: Callable[[], Engine], draw_picture: Callable[..., Image.Image]
) -> None:
    engine = make_video_engine()
    seen: list[dict[str, Any]] = []
    run_pass = engine.run_pass
    engine.run_pass = lambda inputs: [seen.append(dict(i.states)) for i in inputs] and run_pass(inputs)  # type: ignore[func-returns-value, method-assign]
    answer_clips(engine, [drawn(draw_picture, [(40, 60)] * 3)], "follow", OPTIONS, 8)
    assert [state["follow"].num_frames if state else 0 for state in seen] == [0, 1, 2]


def test_a_head_that_fails_is_told_with_the_picture(
    make_bundle: Callable[..., Bundle], probe_head: type, draw_picture: Callable[..., Image.Image]
) -> None:
    def fail(raw: Any) -> None:
        raise RuntimeError("broken")

    engine = Engine(make_bundle(probe=probe_head(on_postprocess=fail)))
    with pytest.raises(StartError, match=r"^0\.png: task 'probe' failed"):
        answer_pictures(engine, drawn(draw_picture, [(40, 60)]), ["probe"], OPTIONS, 4)
