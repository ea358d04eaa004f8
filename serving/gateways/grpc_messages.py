"""Between typed values and the messages of `polyhead.v1`, both ways: the server writes what a client reads, and back.

Pure: no gRPC call is made here. The messages are told in serving/protos/segmentation.proto.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.base import PostprocessOptions
from decoders.masks import Rle
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
from serving.answers.render import DEPTH_SCALE_M, MaskFormat, result_json, result_png
from serving.errors import InvalidOptionError, PolyheadError
from serving.grpc_status import problem_message
from serving.options import MAX_SIDE, POSTPROCESS_BOUNDS, TIMEOUT_S, Bounds
from serving.protos import segmentation_pb2 as pb
from serving.streams.frames import FrameFormat
from serving.streams.stream import DropPolicy, FrameAnswer, StreamConfig
from serving.types import Prediction, PredictOptions, Timing

_MASK_FORMATS: dict[int, MaskFormat] = {
    pb.MASK_FORMAT_UNSPECIFIED: "rle",
    pb.MASK_FORMAT_RLE: "rle",
    pb.MASK_FORMAT_POLYGON: "polygon",
    pb.MASK_FORMAT_NONE: "none",
}
_FRAME_FORMATS: dict[int, FrameFormat] = {
    pb.FRAME_FORMAT_UNSPECIFIED: "image",
    pb.FRAME_FORMAT_IMAGE: "image",
    pb.FRAME_FORMAT_RGB24: "rgb24",
    pb.FRAME_FORMAT_H264: "h264",
    pb.FRAME_FORMAT_HEVC: "hevc",
}
_DROP_POLICIES: dict[int, DropPolicy] = {
    pb.DROP_POLICY_UNSPECIFIED: "block",
    pb.DROP_POLICY_BLOCK: "block",
    pb.DROP_POLICY_LATEST: "latest",
    pb.DROP_POLICY_REJECT: "reject",
}
_SEGMENT_FIELDS = ("segment_id", "label_id", "label", "is_thing", "score", "area", "track_id")
_TIMES_MS = ("queue_ms", "decode_ms", "preprocess_ms", "encoder_ms", "postprocess_ms", "total_ms")
_ERRORS = {
    error("", remedy="").problem()["type"]: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, PolyheadError)
}
"""The class of an error by the type of its problem."""


# ---------------------------------------------------------------- options


def options_message(options: PredictOptions, masks: MaskFormat = "rle") -> pb.Options:
    """What a caller wishes, as a message."""
    post = options.postprocess
    return pb.Options(
        score_threshold=post.score_threshold,
        mask_threshold=post.mask_threshold,
        overlap_threshold=post.overlap_threshold,
        max_side=options.max_side,
        masks=_number(masks, _MASK_FORMATS),
    )


def parse_options(message: pb.Options) -> tuple[PredictOptions, MaskFormat]:
    """What a message wishes.

    Raises:
        InvalidOptionError: a value is out of its range; names the field.
    """
    thresholds = {name: _in_bounds(message, name, bounds) for name, bounds in POSTPROCESS_BOUNDS.items()}
    max_side = _in_bounds(message, "max_side", MAX_SIDE)
    options = PredictOptions(PostprocessOptions(**thresholds), None if max_side is None else int(max_side))
    return options, _name(message, "masks", _MASK_FORMATS)


def parse_timeout_s(message: pb.SegmentRequest | pb.VideoConfig, name: str) -> float | None:
    """A field that holds a time limit in seconds, or None if it is not set.

    Raises:
        InvalidOptionError: it is 0, negative, or longer than an hour.
    """
    return _in_bounds(message, name, TIMEOUT_S)


def frame_format_number(form: FrameFormat) -> pb.FrameFormat:
    """The enum's value."""
    number: pb.FrameFormat = _number(form, _FRAME_FORMATS)
    return number


def drop_policy_number(policy: DropPolicy) -> pb.DropPolicy:
    """The enum's value."""
    number: pb.DropPolicy = _number(policy, _DROP_POLICIES)
    return number


def parse_frame_format(message: pb.VideoConfig) -> FrameFormat:
    """What a stream's frames are; raises `InvalidOptionError` on a number that has no name."""
    form: FrameFormat = _name(message, "frame_format", _FRAME_FORMATS)
    return form


def parse_stream_config(message: pb.VideoConfig, tasks: tuple[str, ...]) -> tuple[StreamConfig, MaskFormat]:
    """What a client wants of a stream, and how it wants masks.

    Args:
        message: the stream's first.
        tasks: checked.

    Raises:
        InvalidOptionError: a value is out of its range; names the field.
    """
    options, masks = parse_options(message.options)
    config = StreamConfig(
        tasks,
        options,
        _name(message, "drop_policy", _DROP_POLICIES),
        message.max_in_flight or StreamConfig.max_in_flight,
        parse_timeout_s(message, "frame_timeout_s"),
    )
    return config, masks


# ---------------------------------------------------------------- answers


def segment_response(
    prediction: Prediction, *, request_id: str, bundle: str, masks: MaskFormat = "rle"
) -> pb.SegmentResponse:
    """The answer for one picture as a message."""
    response = pb.SegmentResponse(request_id=request_id, bundle=bundle)
    _write_prediction(response, prediction, masks)
    return response


def video_response(answer: FrameAnswer, masks: MaskFormat = "rle") -> pb.VideoResponse:
    """The answer for one frame as a message."""
    response = pb.VideoResponse(
        frame_id=answer.frame.frame_id,
        captured_at_us=answer.frame.captured_at_us,
        dropped_since_last=answer.dropped_since_last,
        age_ms=1e3 * answer.age_s,
        error=None if answer.error is None else problem_message(answer.error),
    )
    if answer.prediction is not None:
        _write_prediction(response, answer.prediction, masks)
    return response


def parse_prediction(response: pb.SegmentResponse | pb.VideoResponse) -> Prediction:
    """The typed answer in a message that was asked for with RLE masks.

    Without masks, maps and lists of masks come back empty. `output_size` is that of the largest result with a size.

    Raises:
        ValueError: a result is of a kind that this version does not know, or its masks are polygons.
    """
    results = {task: parse_result(task, result) for task, result in response.results.items()}
    errors_ = {task: parse_problem(problem) for task, problem in response.errors.items()}
    image_size = (response.image.height, response.image.width)
    sizes = [size for result in results.values() if (size := _map_size(result)) is not None]
    return Prediction(image_size, max(sizes, default=image_size), results, errors_, parse_timing(response.timing))


def parse_problem(message: pb.Problem) -> PolyheadError:
    """The failure in a message; of a kind that this version does not know, the base class of all."""
    error = _ERRORS.get(message.type, PolyheadError)
    retry_after_s = message.retry_after_s if message.HasField("retry_after_s") else None
    return error(message.detail, remedy=message.remedy, retry_after_s=retry_after_s)


def timing_message(timing: Timing) -> pb.Timing:
    """Where the time went, as a message."""
    return pb.Timing(
        **{name: getattr(timing, name) for name in _TIMES_MS},
        heads_ms=timing.heads_ms,
        encoder_passes=timing.encoder_passes,
        batch_size=timing.batch_size,
    )


def parse_timing(message: pb.Timing) -> Timing:
    """Where the time went."""
    times = {name: getattr(message, name) for name in _TIMES_MS}
    return Timing(
        **times,
        heads_ms=dict(message.heads_ms),
        encoder_passes=message.encoder_passes,
        batch_size=message.batch_size,
    )


# ---------------------------------------------------------------- results


def result_message(result: Result, masks: MaskFormat = "rle") -> pb.Result:
    """One task's result as a message."""
    match result:
        case PanopticResult():
            return pb.Result(panoptic=pb.PanopticResult(size=_size(result), segments=_segments(result, masks)))
        case SemanticResult():
            return pb.Result(semantic=pb.SemanticResult(size=_size(result), segments=_segments(result, masks)))
        case InstanceResult():
            return pb.Result(instance=pb.InstanceResult(size=_size(result), instances=_segments(result, masks)))
        case DepthResult():
            depth = pb.DepthResult(
                unit="m",
                min=float(result.depth_m.min()),
                max=float(result.depth_m.max()),
                scale=DEPTH_SCALE_M,
                png16=result_png(result),
            )
            return pb.Result(depth=depth)
        case ClassificationResult():
            classes = [pb.ClassScore(label_id=x.label_id, label=x.label, score=x.score) for x in result.classes]
            return pb.Result(classification=pb.ClassificationResult(classes=classes))
        case EmbeddingResult():
            return pb.Result(embedding=pb.EmbeddingResult(vector=result.vector.tolist()))
        case DenseEmbeddingResult():
            rows, columns, dim = result.vectors.shape
            limit = np.finfo(np.float16).max
            halves = np.clip(result.vectors, -limit, limit).astype("<f2").tobytes()
            return pb.Result(
                dense_embedding=pb.DenseEmbeddingResult(rows=rows, columns=columns, dim=dim, vectors16=halves)
            )


def parse_result(task: str, message: pb.Result) -> Result:
    """The typed result in a message; raises as `parse_prediction` does.

    Args:
        task: named in an error.
        message: of the server.
    """
    match message.WhichOneof("kind"):
        case "panoptic":
            found = message.panoptic
            return PanopticResult(_parse_map(task, found.segments, found.size), _parse_segments(found.segments))
        case "semantic":
            semantic = message.semantic
            return SemanticResult(
                _parse_map(task, semantic.segments, semantic.size), _parse_segments(semantic.segments)
            )
        case "instance":
            instances = message.instance.instances
            masks = tuple(_parse_rle(x.rle) for x in instances if _has_rle(task, x))
            size = message.instance.size
            return InstanceResult((size.height, size.width), _parse_segments(instances), masks)
        case "depth":
            steps = np.asarray(Image.open(io.BytesIO(message.depth.png16)))
            return DepthResult((steps * message.depth.scale).astype(np.float32))
        case "classification":
            classes = message.classification.classes
            return ClassificationResult(tuple(ClassScore(x.label_id, x.label, x.score) for x in classes))
        case "embedding":
            return EmbeddingResult(np.array(message.embedding.vector, dtype=np.float32))
        case "dense_embedding":
            dense = message.dense_embedding
            halves = np.frombuffer(dense.vectors16, dtype="<f2").reshape(dense.rows, dense.columns, dense.dim)
            return DenseEmbeddingResult(halves.astype(np.float32))
    raise ValueError(f"the result of task '{task}' is of a kind that this version does not know")


def _write_prediction(
    response: pb.SegmentResponse | pb.VideoResponse, prediction: Prediction, masks: MaskFormat
) -> None:
    response.image.height, response.image.width = prediction.image_size
    for task, result in prediction.results.items():
        response.results[task].CopyFrom(result_message(result, masks))
    for task, error in prediction.errors.items():
        response.errors[task].CopyFrom(problem_message(error))
    response.timing.CopyFrom(timing_message(prediction.timing))


def _size(result: PanopticResult | SemanticResult | InstanceResult) -> pb.Size:
    height, width = result.image_size if isinstance(result, InstanceResult) else result.segment_map.shape
    return pb.Size(height=height, width=width)


def _map_size(result: Result) -> tuple[int, int] | None:
    match result:
        case PanopticResult() | SemanticResult():
            height, width = result.segment_map.shape
        case InstanceResult():
            return result.image_size
        case DepthResult():
            height, width = result.depth_m.shape
        case _:
            return None
    return height, width


def _segments(result: PanopticResult | SemanticResult | InstanceResult, masks: MaskFormat) -> list[pb.Segment]:
    fields = result_json(result, masks)
    items: list[dict[str, Any]] = fields["instances" if isinstance(result, InstanceResult) else "segments"]
    return [_segment(item) for item in items]


def _segment(item: Mapping[str, Any]) -> pb.Segment:
    x, y, width, height = item["bbox"]
    segment = pb.Segment(
        **{name: item[name] for name in _SEGMENT_FIELDS if name in item},
        bbox=pb.BoundingBox(x=x, y=y, width=width, height=height),
    )
    if "rle" in item:
        height, width = item["rle"]["size"]
        segment.rle.CopyFrom(pb.Rle(size=pb.Size(height=height, width=width), counts=item["rle"]["counts"]))
    elif "polygons" in item:
        outlines = [pb.Polygon(points=points) for points in item["polygons"]]
        segment.polygons.CopyFrom(pb.Polygons(polygons=outlines))
    return segment


def _parse_segments(messages: Iterable[pb.Segment]) -> tuple[Segment, ...]:
    return tuple(
        Segment(
            segment_id=x.segment_id,
            label_id=x.label_id,
            label=x.label,
            is_thing=x.is_thing,
            score=x.score,
            area=x.area,
            bbox=(x.bbox.x, x.bbox.y, x.bbox.width, x.bbox.height),
            track_id=x.track_id if x.HasField("track_id") else None,
        )
        for x in messages
    )


def _parse_map(task: str, segments: Sequence[pb.Segment], size: pb.Size) -> NDArray[np.int32]:
    segment_map = np.zeros((size.height, size.width), dtype=np.int32, order="F")  # masks decode column by column
    for segment in segments:
        if _has_rle(task, segment):
            segment_map[_parse_rle(segment.rle).decode()] = segment.segment_id
    return np.ascontiguousarray(segment_map)


def _has_rle(task: str, segment: pb.Segment) -> bool:
    if segment.WhichOneof("mask") == "polygons":
        raise ValueError(f"the masks of task '{task}' are polygons, from which no map is made; ask for RLE")
    return bool(segment.WhichOneof("mask") == "rle")


def _parse_rle(message: pb.Rle) -> Rle:
    return Rle((message.size.height, message.size.width), message.counts)


# ---------------------------------------------------------------- fields


def _in_bounds(message: pb.Options | pb.SegmentRequest | pb.VideoConfig, name: str, bounds: Bounds) -> float | None:
    """A field that may be left out; None if it is."""
    if not message.HasField(name):
        return None
    value: float = getattr(message, name)
    if value not in bounds:
        raise InvalidOptionError(f"{name}={value:g}", remedy=f"give {bounds}, or leave it out")
    return value


def _name(message: pb.Options | pb.VideoConfig, field: str, names: Mapping[int, Any]) -> Any:
    number = getattr(message, field)
    if number not in names:  # enums are open: a newer client may know more
        known = ", ".join(f"{number} ({name})" for number, name in names.items() if number)
        raise InvalidOptionError(f"{field}={number}", remedy=f"give one of {known}")
    return names[number]


def _number(name: str, names: Mapping[int, str]) -> Any:  # protobuf's enums are numbers that only mypy tells apart
    numbers = {known: number for number, known in names.items() if number}  # 0 stands for "not said"
    if name not in numbers:
        raise InvalidOptionError(f"'{name}' is none of {', '.join(numbers)}", remedy="choose one of them")
    return numbers[name]
