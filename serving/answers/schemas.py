"""The JSON of the HTTP API as pydantic models: what `/docs` shows, and what the tests hold every answer to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Size(_Strict):
    """Pixels."""

    height: int
    width: int


class Rle(_Strict):
    """A mask as COCO's compressed run lengths, column by column; pycocotools reads it."""

    size: tuple[int, int] = Field(description="(height, width)")
    counts: str


class SegmentItem(_Strict):
    """One segment or instance; `rle` with masks=rle, `polygons` with masks=polygon."""

    segment_id: int = Field(
        ge=1,
        description="Panoptic: its value in the map of format=png. Instance: its rank, and its value in that map. "
        "Semantic: label_id + 1.",
    )
    label_id: int = Field(ge=0)
    label: str
    is_thing: bool
    score: float = Field(ge=0, le=1)
    area: int = Field(description="Pixels.")
    bbox: tuple[int, int, int, int] = Field(description="(x, y, width, height), pixels.")
    track_id: int | None = Field(None, description="Only in videos: the same for the same object in every frame.", ge=1)
    rle: Rle | None = None
    polygons: list[list[float]] | None = Field(None, description="Outer outlines, [x0, y0, x1, y1, …].")


class PanopticAnswer(_Strict):
    """Result of a panoptic task: no pixel belongs to two segments."""

    kind: Literal["panoptic"]
    segments: list[SegmentItem] = Field(description="In the order in which the head accepted them.")


class SemanticAnswer(_Strict):
    """Result of a semantic task: every pixel has a class."""

    kind: Literal["semantic"]
    segments: list[SegmentItem] = Field(description="One for each class present, largest first.")


class InstanceAnswer(_Strict):
    """Result of an instance task: masks may overlap."""

    kind: Literal["instance"]
    instances: list[SegmentItem] = Field(description="Best score first.")


class DepthAnswer(_Strict):
    """Result of a depth task; distance = value of the PNG times `scale`, in `unit`."""

    kind: Literal["depth"]
    unit: str
    min: float
    max: float
    scale: float
    png16: str = Field(description="16-bit grey PNG, base64.")


class ClassItem(_Strict):
    """One class of the picture as a whole."""

    label_id: int = Field(ge=0)
    label: str
    score: float = Field(ge=0, le=1, description="Probability.")


class ClassificationAnswer(_Strict):
    """Result of a classification task."""

    kind: Literal["classification"]
    classes: list[ClassItem] = Field(description="The most probable first.")


class EmbeddingAnswer(_Strict):
    """Result of an embedding task: the picture as one vector."""

    kind: Literal["embedding"]
    dim: int = Field(description="Length of the vector.")
    vector: list[float] = Field(description="Each number reads back as the very float32 that the head gave.")


class DenseEmbeddingAnswer(_Strict):
    """Result of a dense embedding task: a vector for each cell of a grid that covers the picture."""

    kind: Literal["dense_embedding"]
    dim: int = Field(description="Length of each vector.")
    grid: tuple[int, int] = Field(description="(rows, columns).")
    vectors16: str = Field(
        description="[rows, columns, dim] little-endian float16, row by row, base64. In NumPy: "
        "np.frombuffer(base64.b64decode(vectors16), '<f2').reshape(*grid, dim). "
        "format=npz has them in float32."
    )


ResultAnswer = Annotated[
    PanopticAnswer
    | SemanticAnswer
    | InstanceAnswer
    | DepthAnswer
    | ClassificationAnswer
    | EmbeddingAnswer
    | DenseEmbeddingAnswer,
    Field(discriminator="kind"),
]
"""One task's result; `kind`, the same as in `GET /tasks`, says which."""


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    remedy: str


class TimingAnswer(_Strict):
    """Where the time went, milliseconds."""

    queue_ms: float
    decode_ms: float
    preprocess_ms: float
    encoder_ms: float
    heads_ms: dict[str, float]
    postprocess_ms: float
    total_ms: float
    encoder_passes: int = Field(description="0 if kept features served.")
    batch_size: int = Field(description="Pictures in the largest pass; 0 if there was none.")


class SegmentAnswer(_Strict):
    """The answer of `POST /segment`: every asked task is in `results` or in `errors`."""

    request_id: str
    bundle: str
    image: Size = Field(description="The upright picture.")
    results: dict[str, ResultAnswer] = Field(description="By task; `kind` is the task's in GET /tasks.")
    errors: dict[str, Problem]
    timing: TimingAnswer


class FeaturesAnswer(_Strict):
    """The answer of `POST /features`."""

    request_id: str
    id: str = Field(description="For `features` of POST /segment; the same for the same picture and geometries.")
    bundle: str
    image: Size = Field(description="The upright picture.")
    tasks: list[str] = Field(description="That can be run on what is kept.")
    bytes: int = Field(description="Memory that the features take.")
    timing: TimingAnswer = Field(description="encoder_passes is 0 if they were there already.")
