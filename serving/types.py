"""The values that travel through the server: a request's wishes, and the answer with its timing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from decoders.base import PostprocessOptions
from decoders.results import Result
from serving.errors import PolyheadError


@dataclass(frozen=True)
class PredictOptions:
    """What a caller may set, beyond the tasks.

    Attributes:
        postprocess: thresholds for the heads.
        max_side: results are no larger than this along the longer side, pixels.
    """

    postprocess: PostprocessOptions = field(default_factory=PostprocessOptions)
    max_side: int | None = None


@dataclass
class Timing:
    """Where a request's time went, milliseconds. A stage of a batch counts whole for each picture in it.

    Attributes:
        queue_ms: waiting for the accelerator (the longest, if several passes ran).
        decode_ms: from bytes to RGB.
        preprocess_ms: resize and pad.
        encoder_ms: all encoder passes.
        heads_ms: by task, the network only.
        postprocess_ms: from network output to results, all tasks.
        total_ms: from the arrival of the whole body to the result, rendering not included.
        encoder_passes: passes that served this picture.
        batch_size: pictures in the largest of them.
    """

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    preprocess_ms: float = 0.0
    encoder_ms: float = 0.0
    heads_ms: dict[str, float] = field(default_factory=dict)
    postprocess_ms: float = 0.0
    total_ms: float = 0.0
    encoder_passes: int = 0
    batch_size: int = 0


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture; every asked task is either in `results` or in `errors`.

    Attributes:
        image_size: (height, width) of the upright picture.
        output_size: (height, width) of the results' maps.
        results: by task.
        errors: by task.
        timing: where the time went.
    """

    image_size: tuple[int, int]
    output_size: tuple[int, int]
    results: Mapping[str, Result]
    errors: Mapping[str, PolyheadError]
    timing: Timing


def parse_tasks(text: str | None) -> list[str] | None:
    """Tasks as people write them, separated by commas; None (the default tasks) stays None."""
    return None if text is None else [task.strip() for task in text.split(",") if task.strip()]
