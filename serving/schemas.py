"""The JSON of the HTTP API as pydantic models: what `/docs` shows, and what the tests hold every answer to."""

from __future__ import annotations

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
    """One panoptic segment; `rle` with masks=rle, `polygons` with masks=polygon."""

    segment_id: int = Field(ge=1, description="Its value in the map of format=png.")
    label_id: int
    label: str
    is_thing: bool
    score: float = Field(ge=0, le=1)
    area: int = Field(description="Pixels.")
    bbox: tuple[int, int, int, int] = Field(description="(x, y, width, height), pixels.")
    rle: Rle | None = None
    polygons: list[list[float]] | None = Field(None, description="Outer outlines, [x0, y0, x1, y1, …].")


class PanopticAnswer(_Strict):
    """Result of a panoptic task."""

    segments: list[SegmentItem]


class DepthAnswer(_Strict):
    """Result of a depth task; distance = value of the PNG times `scale`, in `unit`."""

    unit: str
    min: float
    max: float
    scale: float
    png16: str = Field(description="16-bit grey PNG, base64.")


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
    encoder_passes: int
    batch_size: int


class SegmentAnswer(_Strict):
    """The answer of `POST /segment`: every asked task is in `results` or in `errors`."""

    request_id: str
    bundle: str
    image: Size = Field(description="The upright picture.")
    results: dict[str, PanopticAnswer | DepthAnswer]
    errors: dict[str, Problem]
    timing: TimingAnswer
