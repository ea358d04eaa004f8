"""Messages of `polyhead.v1`: every value comes back from the wire as it went, and wrong ones are told by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoders.base import PostprocessOptions
from decoders.masks import encode
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from serving import errors
from serving.answers.render import result_json
from serving.errors import InvalidOptionError, OverloadedError, PolyheadError, UnsupportedTaskError
from serving.gateways.grpc_messages import (
    drop_policy_number,
    frame_format_number,
    options_message,
    parse_frame_format,
    parse_options,
    parse_prediction,
    parse_problem,
    parse_result,
    parse_stream_config,
    parse_timeout_s,
    parse_timing,
    result_message,
    segment_response,
    timing_message,
    video_response,
)
from serving.grpc_status import problem_message
from serving.protos import segmentation_pb2 as pb
from serving.streams.stream import Frame, FrameAnswer, StreamConfig
from serving.types import Prediction, PredictOptions, Timing

REPOSITORY = Path(__file__).parents[3]
PROTO = Path("serving/protos/segmentation.proto")

MAP = np.zeros((6, 9), dtype=np.int32)
MAP[1:3, 2:7] = 1
MAP[4:, :3] = 2
SEGMENTS = (
    Segment(1, 3, "cat", True, 0.875, 10, (2, 1, 5, 2), track_id=7),
    Segment(2, 0, "ciel d'été", False, 1 / 3, 6, (0, 4, 3, 2)),
)
OVERLAPPING = np.zeros((2, 6, 9), dtype=bool)
OVERLAPPING[0, 1:4, 1:5] = OVERLAPPING[1, 2:6, 3:9] = True
VECTORS = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float16).astype(np.float32)

RESULTS: dict[str, Result] = {
    "panoptic": PanopticResult(MAP, SEGMENTS),
    "semantic": SemanticResult(MAP, SEGMENTS[::-1]),
    "instance": InstanceResult((6, 9), SEGMENTS, tuple(encode(mask) for mask in OVERLAPPING)),
    "depth": DepthResult(np.array([[0.5, 2.25], [65.535, 1.001]], dtype=np.float32)),
    "classification": ClassificationResult((ClassScore(5, "gull", 0.9), ClassScore(1, "gannet", 0.1))),
    "embedding": EmbeddingResult(np.array([0.1, -3e-8, 1e30], dtype=np.float32)),
    "dense_embedding": DenseEmbeddingResult(VECTORS),
}
TIMING = Timing(1.5, 2.25, 0.125, 30.1, {"panoptic": 4.7, "depth": 0.3}, 5.5, 44.4, 2, 3)


def assert_same(one: Result, other: Result) -> None:
    """Equal to the last bit, in type as in value; depth to half a step of its PNG."""
    assert type(one) is type(other)
    for name, expected in vars(other).items():
        value = getattr(one, name)
        if not isinstance(expected, np.ndarray):
            assert value == expected
            continue
        assert value.dtype == expected.dtype
        np.testing.assert_allclose(value, expected, rtol=0, atol=0.5e-3 if name == "depth_m" else 0)


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_of_every_kind_comes_back_as_it_went(kind: str) -> None:
    message = over_the_wire(result_message(RESULTS[kind]))
    assert message.WhichOneof("kind") == kind
    assert_same(parse_result("task", message), RESULTS[kind])


def test_every_kind_of_result_is_tried_here() -> None:
    assert set(RESULTS) == {field.name for field in pb.Result.DESCRIPTOR.oneofs_by_name["kind"].fields}


@pytest.mark.parametrize("masks", ["rle", "polygon", "none"])
@pytest.mark.parametrize("kind", ["panoptic", "semantic", "instance"])
def test_segments_are_told_as_in_json(kind: str, masks: Any) -> None:
    message = getattr(over_the_wire(result_message(RESULTS[kind], masks)), kind)
    told = message.instances if kind == "instance" else message.segments
    expected = result_json(RESULTS[kind], masks)["instances" if kind == "instance" else "segments"]
    assert (message.size.height, message.size.width) == (6, 9)
    for segment, item in zip(told, expected, strict=True):
        box = segment.bbox
        assert [box.x, box.y, box.width, box.height] == item["bbox"]
        for name in ("segment_id", "label_id", "label", "is_thing", "score", "area"):
            assert getattr(segment, name) == item[name]
        assert segment.HasField("track_id") == ("track_id" in item)
        assert segment.HasField("rle") == ("rle" in item)
        assert [list(polygon.points) for polygon in segment.polygons.polygons] == item.get("polygons", [])


def test_without_masks_there_are_segments_but_no_maps() -> None:
    panoptic = parse_result("task", result_message(RESULTS["panoptic"], "none"))
    assert isinstance(panoptic, PanopticResult)
    assert panoptic.segments == SEGMENTS
    assert panoptic.segment_map.shape == (6, 9)
    assert not panoptic.segment_map.any()
    instance = parse_result("task", result_message(RESULTS["instance"], "none"))
    assert isinstance(instance, InstanceResult)
    assert instance.instances == SEGMENTS
    assert instance.masks == ()


def test_polygons_are_no_map() -> None:
    with pytest.raises(ValueError, match="the masks of task 'things' are polygons"):
        parse_result("things", result_message(RESULTS["panoptic"], "polygon"))


def test_a_result_of_an_unknown_kind_is_told() -> None:
    with pytest.raises(ValueError, match="task 'flow' is of a kind that this version does not know"):
        parse_result("flow", pb.Result())


def test_depth_is_a_png_that_people_can_open() -> None:
    depth = result_message(RESULTS["depth"]).depth
    assert (depth.unit, depth.min, depth.max, depth.scale) == ("m", 0.5, pytest.approx(65.535), 0.001)
    assert depth.png16.startswith(b"\x89PNG")


def test_a_dense_embedding_beyond_float16_saturates() -> None:
    vectors = np.array([[[1e6, -1e6]]], dtype=np.float32)
    parsed = parse_result("task", result_message(DenseEmbeddingResult(vectors)))
    assert isinstance(parsed, DenseEmbeddingResult)
    assert parsed.vectors.tolist() == [[[65504, -65504]]]


# Answers


def prediction() -> Prediction:
    failed: dict[str, PolyheadError] = {"flow": errors.HeadFailedError("head 'flow' failed", remedy="report it")}
    return Prediction((60, 90), (6, 9), {k: v for k, v in RESULTS.items() if k != "depth"}, failed, TIMING)


def assert_same_prediction(one: Prediction, other: Prediction) -> None:
    assert (one.image_size, one.output_size, one.timing) == (other.image_size, other.output_size, other.timing)
    assert one.results.keys() == other.results.keys()
    for task, result in other.results.items():
        assert_same(one.results[task], result)
    assert {task: (type(e), e.problem()) for task, e in one.errors.items()} == {
        task: (type(e), e.problem()) for task, e in other.errors.items()
    }


def test_the_answer_for_a_picture_comes_back_as_it_went() -> None:
    response = over_the_wire(segment_response(prediction(), request_id="r-1", bundle="tiny"))
    assert (response.request_id, response.bundle) == ("r-1", "tiny")
    assert_same_prediction(parse_prediction(response), prediction())


def test_the_answer_for_a_frame_comes_back_as_it_went() -> None:
    answer = FrameAnswer(Frame(2**64 - 1, b"", 2**63 + 5), prediction(), None, 3, 0.25)
    response = over_the_wire(video_response(answer))
    assert (response.frame_id, response.captured_at_us) == (2**64 - 1, 2**63 + 5)
    assert (response.dropped_since_last, response.age_ms) == (3, 250)
    assert not response.HasField("error")
    assert_same_prediction(parse_prediction(response), prediction())


def test_a_frame_that_failed_has_its_error_and_nothing_else() -> None:
    error = OverloadedError("4 frames are inside", remedy="send fewer", retry_after_s=1.5)
    response = over_the_wire(video_response(FrameAnswer(Frame(4, b""), None, error, 0, 0.001)))
    assert not response.results and not response.errors
    assert not response.HasField("image") and not response.HasField("timing")
    assert parse_problem(response.error).problem() == error.problem()


def test_masks_are_told_as_asked() -> None:
    answer = segment_response(prediction(), request_id="", bundle="", masks="none")
    assert answer.results["panoptic"].panoptic.segments[0].WhichOneof("mask") is None


def test_timing_comes_back_as_it_went() -> None:
    assert parse_timing(over_the_wire(timing_message(TIMING))) == TIMING


@pytest.mark.parametrize(
    "kind",
    [x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, PolyheadError)],
    ids=lambda kind: kind.__name__,
)
def test_an_error_of_every_kind_comes_back_as_it_went(kind: type[PolyheadError]) -> None:
    error = parse_problem(over_the_wire(problem_message(kind("it’s so", remedy="do this", retry_after_s=2.5))))
    assert type(error) is kind
    assert (error.detail, error.remedy, error.retry_after_s) == ("it’s so", "do this", 2.5)


def test_an_error_of_a_newer_server_is_still_an_error() -> None:
    message = problem_message(UnsupportedTaskError("that", remedy="this"))
    message.type = "urn:polyhead:problem:quota-spent"
    error = parse_problem(message)
    assert type(error) is PolyheadError
    assert (error.detail, error.retry_after_s) == ("that", None)


# Options


@pytest.mark.parametrize("masks", ["rle", "polygon", "none"])
@pytest.mark.parametrize(
    "options", [PredictOptions(), PredictOptions(PostprocessOptions(0.0, 0.5, 1.0), 16), PredictOptions(max_side=16384)]
)
def test_options_come_back_as_they_went(options: PredictOptions, masks: Any) -> None:
    assert parse_options(over_the_wire(options_message(options, masks))) == (options, masks)


def test_what_is_not_said_is_the_head_s_and_rle() -> None:
    assert parse_options(pb.Options()) == (PredictOptions(), "rle")


@pytest.mark.parametrize("name", ["score_threshold", "mask_threshold", "overlap_threshold"])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_a_threshold_that_is_no_share_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidOptionError, match=name):
        parse_options(pb.Options(**{name: value}))


@pytest.mark.parametrize("max_side", [0, 15, 16385])
def test_a_side_out_of_range_is_refused(max_side: int) -> None:
    with pytest.raises(InvalidOptionError, match=f"max_side={max_side}"):
        parse_options(pb.Options(max_side=max_side))


def test_a_mask_format_without_a_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidOptionError, match="masks=9") as refused:
        parse_options(pb.Options(masks=9))  # type: ignore[arg-type]
    assert "2 (polygon)" in refused.value.remedy


@pytest.mark.parametrize("value", [0, -1, 3601, math.inf, math.nan])
def test_a_time_limit_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(InvalidOptionError, match="timeout_s="):
        parse_timeout_s(pb.SegmentRequest(timeout_s=value), "timeout_s")


def test_a_time_limit_may_be_left_out() -> None:
    assert parse_timeout_s(pb.SegmentRequest(), "timeout_s") is None
    assert parse_timeout_s(pb.SegmentRequest(timeout_s=0.5), "timeout_s") == 0.5


def test_a_stream_s_config_is_read_with_all_its_wishes() -> None:
    message = pb.VideoConfig(
        options=options_message(PredictOptions(max_side=64), "none"),
        drop_policy=drop_policy_number("latest"),
        frame_format=frame_format_number("hevc"),
        max_in_flight=7,
        frame_timeout_s=0.25,
    )
    expected = StreamConfig(("depth",), PredictOptions(max_side=64), "latest", 7, 0.25)
    assert parse_stream_config(over_the_wire(message), ("depth",)) == (expected, "none")
    assert parse_frame_format(message) == "hevc"


def test_a_stream_s_config_has_defaults() -> None:
    assert parse_stream_config(pb.VideoConfig(), ("depth",)) == (StreamConfig(("depth",)), "rle")
    assert parse_frame_format(pb.VideoConfig()) == "image"


@pytest.mark.parametrize("name", ["image", "rgb24", "h264", "hevc"])
def test_every_frame_format_has_a_number(name: Any) -> None:
    assert parse_frame_format(pb.VideoConfig(frame_format=frame_format_number(name))) == name


@pytest.mark.parametrize("name", ["block", "latest", "reject"])
def test_every_drop_policy_has_a_number(name: Any) -> None:
    config, _ = parse_stream_config(pb.VideoConfig(drop_policy=drop_policy_number(name)), ())
    assert config.drop_policy == name


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pb.VideoConfig(max_in_flight=65), "max_in_flight"),
        (pb.VideoConfig(frame_timeout_s=-1), "frame_timeout_s=-1"),
        (pb.VideoConfig(drop_policy=4), "drop_policy=4"),  # type: ignore[arg-type]
        (pb.VideoConfig(options=pb.Options(mask_threshold=2)), "mask_threshold=2"),
    ],
)
def test_a_wrong_stream_config_is_refused_by_name(message: pb.VideoConfig, words: str) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        parse_stream_config(message, ())


def test_a_name_that_has_no_number_is_refused() -> None:
    wrong: Any = "mp4"
    with pytest.raises(InvalidOptionError, match="'mp4' is none of image, rgb24, h264, hevc"):
        frame_format_number(wrong)


# The proto


def test_the_stubs_are_what_protoc_makes_of_the_proto(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools, a development dependency, is absent")
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    assert protoc.main(["protoc", f"--proto_path={REPOSITORY}", *outputs, str(REPOSITORY / PROTO)]) == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / PROTO.parent).iterdir()}
    assert made.keys() == {"segmentation_pb2.py", "segmentation_pb2.pyi", "segmentation_pb2_grpc.py"}
    for name, content in made.items():
        assert content == (REPOSITORY / PROTO.parent / name).read_bytes(), f"{name} is stale: run 'make protos'"


def test_a_map_survives_a_picture_of_one_pixel() -> None:
    one = PanopticResult(np.ones((1, 1), dtype=np.int32), (Segment(1, 0, "x", True, 1.0, 1, (0, 0, 1, 1)),))
    assert_same(parse_result("task", result_message(one)), one)


def test_a_result_without_segments_keeps_its_size() -> None:
    empty = PanopticResult(np.zeros((4, 5), dtype=np.int32), ())
    assert_same(parse_result("task", result_message(empty)), empty)
    nothing = InstanceResult((4, 5), (), ())
    assert_same(parse_result("task", result_message(nothing)), nothing)
