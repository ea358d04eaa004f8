from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MaskFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MASK_FORMAT_UNSPECIFIED: _ClassVar[MaskFormat]
    MASK_FORMAT_RLE: _ClassVar[MaskFormat]
    MASK_FORMAT_POLYGON: _ClassVar[MaskFormat]
    MASK_FORMAT_NONE: _ClassVar[MaskFormat]

class FrameFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_FORMAT_UNSPECIFIED: _ClassVar[FrameFormat]
    FRAME_FORMAT_IMAGE: _ClassVar[FrameFormat]
    FRAME_FORMAT_RGB24: _ClassVar[FrameFormat]
    FRAME_FORMAT_H264: _ClassVar[FrameFormat]
    FRAME_FORMAT_HEVC: _ClassVar[FrameFormat]

class DropPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DROP_POLICY_UNSPECIFIED: _ClassVar[DropPolicy]
    DROP_POLICY_BLOCK: _ClassVar[DropPolicy]
    DROP_POLICY_LATEST: _ClassVar[DropPolicy]
    DROP_POLICY_REJECT: _ClassVar[DropPolicy]
MASK_FORMAT_UNSPECIFIED: MaskFormat
MASK_FORMAT_RLE: MaskFormat
MASK_FORMAT_POLYGON: MaskFormat
MASK_FORMAT_NONE: MaskFormat
FRAME_FORMAT_UNSPECIFIED: FrameFormat
FRAME_FORMAT_IMAGE: FrameFormat
FRAME_FORMAT_RGB24: FrameFormat
FRAME_FORMAT_H264: FrameFormat
FRAME_FORMAT_HEVC: FrameFormat
DROP_POLICY_UNSPECIFIED: DropPolicy
DROP_POLICY_BLOCK: DropPolicy
DROP_POLICY_LATEST: DropPolicy
DROP_POLICY_REJECT: DropPolicy

class SegmentRequest(_message.Message):
    __slots__ = ("image", "tasks", "options", "timeout_s")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    tasks: _containers.RepeatedScalarFieldContainer[str]
    options: Options
    timeout_s: float
    def __init__(self, image: _Optional[bytes] = ..., tasks: _Optional[_Iterable[str]] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class Options(_message.Message):
    __slots__ = ("score_threshold", "mask_threshold", "overlap_threshold", "max_side", "masks")
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MASK_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    score_threshold: float
    mask_threshold: float
    overlap_threshold: float
    max_side: int
    masks: MaskFormat
    def __init__(self, score_threshold: _Optional[float] = ..., mask_threshold: _Optional[float] = ..., overlap_threshold: _Optional[float] = ..., max_side: _Optional[int] = ..., masks: _Optional[_Union[MaskFormat, str]] = ...) -> None: ...

class VideoRequest(_message.Message):
    __slots__ = ("config", "frame")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    config: VideoConfig
    frame: VideoFrame
    def __init__(self, config: _Optional[_Union[VideoConfig, _Mapping]] = ..., frame: _Optional[_Union[VideoFrame, _Mapping]] = ...) -> None: ...

class VideoConfig(_message.Message):
    __slots__ = ("tasks", "options", "frame_format", "drop_policy", "max_in_flight", "frame_timeout_s")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    FRAME_FORMAT_FIELD_NUMBER: _ClassVar[int]
    DROP_POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    FRAME_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    options: Options
    frame_format: FrameFormat
    drop_policy: DropPolicy
    max_in_flight: int
    frame_timeout_s: float
    def __init__(self, tasks: _Optional[_Iterable[str]] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., frame_format: _Optional[_Union[FrameFormat, str]] = ..., drop_policy: _Optional[_Union[DropPolicy, str]] = ..., max_in_flight: _Optional[int] = ..., frame_timeout_s: _Optional[float] = ...) -> None: ...

class VideoFrame(_message.Message):
    __slots__ = ("frame_id", "captured_at_us", "data", "height", "width")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_AT_US_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    captured_at_us: int
    data: bytes
    height: int
    width: int
    def __init__(self, frame_id: _Optional[int] = ..., captured_at_us: _Optional[int] = ..., data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("request_id", "bundle", "image", "results", "errors", "timing")
    class ResultsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Result
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...
    class ErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Problem
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    bundle: str
    image: Size
    results: _containers.MessageMap[str, Result]
    errors: _containers.MessageMap[str, Problem]
    timing: Timing
    def __init__(self, request_id: _Optional[str] = ..., bundle: _Optional[str] = ..., image: _Optional[_Union[Size, _Mapping]] = ..., results: _Optional[_Mapping[str, Result]] = ..., errors: _Optional[_Mapping[str, Problem]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class VideoResponse(_message.Message):
    __slots__ = ("frame_id", "captured_at_us", "image", "results", "errors", "timing", "dropped_since_last", "age_ms", "error")
    class ResultsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Result
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...
    class ErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Problem
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_AT_US_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    DROPPED_SINCE_LAST_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    captured_at_us: int
    image: Size
    results: _containers.MessageMap[str, Result]
    errors: _containers.MessageMap[str, Problem]
    timing: Timing
    dropped_since_last: int
    age_ms: float
    error: Problem
    def __init__(self, frame_id: _Optional[int] = ..., captured_at_us: _Optional[int] = ..., image: _Optional[_Union[Size, _Mapping]] = ..., results: _Optional[_Mapping[str, Result]] = ..., errors: _Optional[_Mapping[str, Problem]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., dropped_since_last: _Optional[int] = ..., age_ms: _Optional[float] = ..., error: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class Size(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("type", "title", "status", "detail", "remedy", "retry_after_s")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    type: str
    title: str
    status: int
    detail: str
    remedy: str
    retry_after_s: float
    def __init__(self, type: _Optional[str] = ..., title: _Optional[str] = ..., status: _Optional[int] = ..., detail: _Optional[str] = ..., remedy: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "decode_ms", "preprocess_ms", "encoder_ms", "heads_ms", "postprocess_ms", "total_ms", "encoder_passes", "batch_size")
    class HeadsMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODER_MS_FIELD_NUMBER: _ClassVar[int]
    HEADS_MS_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODER_PASSES_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    decode_ms: float
    preprocess_ms: float
    encoder_ms: float
    heads_ms: _containers.ScalarMap[str, float]
    postprocess_ms: float
    total_ms: float
    encoder_passes: int
    batch_size: int
    def __init__(self, queue_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., preprocess_ms: _Optional[float] = ..., encoder_ms: _Optional[float] = ..., heads_ms: _Optional[_Mapping[str, float]] = ..., postprocess_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., encoder_passes: _Optional[int] = ..., batch_size: _Optional[int] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("panoptic", "semantic", "instance", "depth", "classification", "embedding", "dense_embedding")
    PANOPTIC_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    DENSE_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    panoptic: PanopticResult
    semantic: SemanticResult
    instance: InstanceResult
    depth: DepthResult
    classification: ClassificationResult
    embedding: EmbeddingResult
    dense_embedding: DenseEmbeddingResult
    def __init__(self, panoptic: _Optional[_Union[PanopticResult, _Mapping]] = ..., semantic: _Optional[_Union[SemanticResult, _Mapping]] = ..., instance: _Optional[_Union[InstanceResult, _Mapping]] = ..., depth: _Optional[_Union[DepthResult, _Mapping]] = ..., classification: _Optional[_Union[ClassificationResult, _Mapping]] = ..., embedding: _Optional[_Union[EmbeddingResult, _Mapping]] = ..., dense_embedding: _Optional[_Union[DenseEmbeddingResult, _Mapping]] = ...) -> None: ...

class PanopticResult(_message.Message):
    __slots__ = ("size", "segments")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    size: Size
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, size: _Optional[_Union[Size, _Mapping]] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class SemanticResult(_message.Message):
    __slots__ = ("size", "segments")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    size: Size
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, size: _Optional[_Union[Size, _Mapping]] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class InstanceResult(_message.Message):
    __slots__ = ("size", "instances")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    size: Size
    instances: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, size: _Optional[_Union[Size, _Mapping]] = ..., instances: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("segment_id", "label_id", "label", "is_thing", "score", "area", "bbox", "track_id", "rle", "polygons")
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    IS_THING_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    BBOX_FIELD_NUMBER: _ClassVar[int]
    TRACK_ID_FIELD_NUMBER: _ClassVar[int]
    RLE_FIELD_NUMBER: _ClassVar[int]
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    segment_id: int
    label_id: int
    label: str
    is_thing: bool
    score: float
    area: int
    bbox: BoundingBox
    track_id: int
    rle: Rle
    polygons: Polygons
    def __init__(self, segment_id: _Optional[int] = ..., label_id: _Optional[int] = ..., label: _Optional[str] = ..., is_thing: _Optional[bool] = ..., score: _Optional[float] = ..., area: _Optional[int] = ..., bbox: _Optional[_Union[BoundingBox, _Mapping]] = ..., track_id: _Optional[int] = ..., rle: _Optional[_Union[Rle, _Mapping]] = ..., polygons: _Optional[_Union[Polygons, _Mapping]] = ...) -> None: ...

class BoundingBox(_message.Message):
    __slots__ = ("x", "y", "width", "height")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    x: int
    y: int
    width: int
    height: int
    def __init__(self, x: _Optional[int] = ..., y: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Rle(_message.Message):
    __slots__ = ("size", "counts")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    size: Size
    counts: str
    def __init__(self, size: _Optional[_Union[Size, _Mapping]] = ..., counts: _Optional[str] = ...) -> None: ...

class Polygons(_message.Message):
    __slots__ = ("polygons",)
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    polygons: _containers.RepeatedCompositeFieldContainer[Polygon]
    def __init__(self, polygons: _Optional[_Iterable[_Union[Polygon, _Mapping]]] = ...) -> None: ...

class Polygon(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, points: _Optional[_Iterable[float]] = ...) -> None: ...

class DepthResult(_message.Message):
    __slots__ = ("unit", "min", "max", "scale", "png16")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    PNG16_FIELD_NUMBER: _ClassVar[int]
    unit: str
    min: float
    max: float
    scale: float
    png16: bytes
    def __init__(self, unit: _Optional[str] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., scale: _Optional[float] = ..., png16: _Optional[bytes] = ...) -> None: ...

class ClassificationResult(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[ClassScore]
    def __init__(self, classes: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ...) -> None: ...

class ClassScore(_message.Message):
    __slots__ = ("label_id", "label", "score")
    LABEL_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    label_id: int
    label: str
    score: float
    def __init__(self, label_id: _Optional[int] = ..., label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class EmbeddingResult(_message.Message):
    __slots__ = ("vector",)
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    vector: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, vector: _Optional[_Iterable[float]] = ...) -> None: ...

class DenseEmbeddingResult(_message.Message):
    __slots__ = ("rows", "columns", "dim", "vectors16")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    VECTORS16_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    dim: int
    vectors16: bytes
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., dim: _Optional[int] = ..., vectors16: _Optional[bytes] = ...) -> None: ...
