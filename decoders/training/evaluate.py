"""Scoring a head on held-out pictures, through the same steps that serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from decoders.labels import LabelSet
from decoders.results import DepthResult, PanopticResult, Result
from decoders.training.data.samples import DepthSample, PanopticSample
from decoders.training.metrics import PanopticQuality, depth_errors

Predict = Callable[[Image.Image], Result]
"""A picture to its result, in the picture's own pixels."""


def score_panoptic(
    predict: Predict, samples: Sequence[PanopticSample], label_set: LabelSet, progress: Callable[[int], None]
) -> dict[str, float]:
    """PQ, SQ, RQ, PQ_things, PQ_stuff in percent over all samples; `progress` is told the number done."""
    quality = PanopticQuality(label_set)
    for number, sample in enumerate(samples, 1):
        result = predict(sample.read_image())
        if not isinstance(result, PanopticResult):
            raise TypeError(f"a panoptic score needs panoptic results, not {type(result).__name__}")
        labels = {segment.segment_id: segment.label_id for segment in result.segments}
        quality.add(result.segment_map, labels, *sample.read_segments())
        progress(number)
    return quality.summary()


def score_depth(predict: Predict, samples: Sequence[DepthSample], progress: Callable[[int], None]) -> dict[str, float]:
    """AbsRel, RMSE_m and delta1, each the mean over the samples; `progress` is told the number done."""
    errors = []
    for number, sample in enumerate(samples, 1):
        result = predict(sample.read_image())
        if not isinstance(result, DepthResult):
            raise TypeError(f"a depth score needs depth results, not {type(result).__name__}")
        errors.append(depth_errors(result.depth_m, sample.read_depth_m()))
        progress(number)
    return {name: float(np.mean([error[name] for error in errors])) for name in errors[0]}
