"""The options that a caller may set, with their bounds: one definition, which each protocol reads in its own form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

from decoders.base import PostprocessOptions
from serving.answers.render import MaskFormat
from serving.types import PredictOptions


@dataclass(frozen=True)
class Bounds:
    """The values that an option may have. Its text says them for people: ``0 to 1``, ``more than 0, at most 3600``.

    Attributes:
        low, high: least and largest value.
        above: `low` itself is too small.
    """

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high  # False for NaN

    def __str__(self) -> str:
        return f"more than {self.low:g}, at most {self.high:g}" if self.above else f"{self.low:g} to {self.high:g}"

    @property
    def limits(self) -> dict[str, Any]:
        """Keyword arguments of pydantic's `Field` and of FastAPI's parameters."""
        return {"gt" if self.above else "ge": self.low, "le": self.high}


THRESHOLD = Bounds(0, 1)
MAX_SIDE = Bounds(16, 16384)
"""Pixels."""
MAX_IN_FLIGHT = Bounds(1, 64)
"""Frames of a stream."""
TIMEOUT_S = Bounds(0, 3600, above=True)

POSTPROCESS_BOUNDS = dict.fromkeys(("score_threshold", "mask_threshold", "overlap_threshold"), THRESHOLD)


class RequestOptions(BaseModel):
    """What may be set with every picture, and once with a stream; the base of each protocol's own options."""

    masks: MaskFormat = Field("rle", description="How segments are told in JSON.")
    score_threshold: float | None = Field(None, **THRESHOLD.limits, description="Least class probability.")
    mask_threshold: float | None = Field(
        None, **THRESHOLD.limits, description="Probability from which a pixel is in a mask."
    )
    overlap_threshold: float | None = Field(
        None, **THRESHOLD.limits, description="Least part of a mask left by better ones."
    )
    max_side: int | None = Field(None, **MAX_SIDE.limits, description="Results' longer side, pixels.")

    @property
    def options(self) -> PredictOptions:
        """The thresholds and the output size."""
        return PredictOptions(
            PostprocessOptions(self.score_threshold, self.mask_threshold, self.overlap_threshold), self.max_side
        )
