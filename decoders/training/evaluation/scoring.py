"""Scoring a head: which measures its results are held to, and how results and truth come to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from decoders.labels import LabelSet
from decoders.masks import Rle, encode
from decoders.results import (
    ClassificationResult,
    DepthResult,
    InstanceResult,
    PanopticResult,
    Result,
    SemanticResult,
)
from decoders.training.data.samples import (
    ClassSample,
    DepthSample,
    InstanceSample,
    PanopticSample,
    Sample,
    Segments,
    SemanticSample,
)
from decoders.training.evaluation.classification_accuracy import ClassificationAccuracy
from decoders.training.evaluation.clip_overlaps import ClipOverlaps
from decoders.training.evaluation.depth_errors import DepthErrors
from decoders.training.evaluation.mask_average_precision import (
    CLIP_AREAS,
    FoundMask,
    MaskAveragePrecision,
    TrueMask,
)
from decoders.training.evaluation.measure import Counts, Figures, Measure
from decoders.training.evaluation.panoptic_quality import PanopticQuality
from decoders.training.evaluation.segment_matching import count_overlaps
from decoders.training.evaluation.segmentation_tracking_quality import SegmentationTrackingQuality
from decoders.training.evaluation.semantic_iou import SemanticIou
from decoders.training.evaluation.video_panoptic_quality import VideoPanopticQuality

PICTURE_KINDS = ("panoptic", "instance", "semantic", "depth", "classification")
"""Kinds of results that are scored on pictures."""
CLIP_KINDS = ("panoptic", "instance", "semantic")
"""Kinds of results that are scored on clips, from heads that remember."""

Expected = TypeVar("Expected")
Scalar = TypeVar("Scalar", bound=np.generic)
_Add = Callable[[Sequence[Result], Sequence[Sample]], None]


@dataclass(frozen=True)
class Scorer:
    """What one head is held to.

    Attributes:
        measures: the first one's main figure stands for all.
        add: adds a picture (one result, one sample) or a clip (one of each for every frame).
    """

    measures: tuple[Measure, ...]
    add: _Add

    def __len__(self) -> int:
        """Pictures or clips that were added."""
        return len(self.measures[0])

    @property
    def main(self) -> str:
        """The name of the figure that stands for all."""
        return self.measures[0].main

    @property
    def larger_is_better(self) -> bool:
        """Of `main`."""
        return self.measures[0].larger_is_better

    def figures(self, counts: Counts) -> Figures:
        """All measures' figures over pictures of which the n-th counts `counts[n]` times."""
        return {name: value for each in self.measures for name, value in each.figures(counts).items()}

    def own_figures(self) -> NDArray[np.float64]:
        """[N], the main figure of each picture alone; NaN where it has none."""
        figures = np.empty(len(self))
        for number in range(len(self)):
            alone = np.zeros(len(self), dtype=np.int64)
            alone[number] = 1
            figures[number] = self.measures[0].figures(alone)[self.main]
        return figures

    def worst(self, number: int) -> list[int]:
        """The pictures with the worst main figures, the worst first; those without a figure are left out."""
        figures = self.own_figures()
        order = np.argsort(figures if self.larger_is_better else -figures, kind="stable")
        return [int(n) for n in order if np.isfinite(figures[n])][:number]


def picture_scorer(kind: str, label_set: LabelSet | None, *, median_scaled: bool = False) -> Scorer:
    """A scorer of pictures.

    Args:
        kind: of the results, one of `PICTURE_KINDS`.
        label_set: the head's classes; None for depth.
        median_scaled: as in `DepthErrors`.

    Raises:
        ValueError: results of that kind are scored by nothing here.
    """
    match kind, label_set:
        case "panoptic", LabelSet():
            quality = PanopticQuality(label_set)
            return Scorer((quality,), lambda results, samples: _add_panoptic(quality, results, samples))
        case "instance", LabelSet():
            precision = MaskAveragePrecision(label_set)
            return Scorer((precision,), lambda results, samples: _add_instances(precision, results, samples))
        case "semantic", LabelSet():
            iou = SemanticIou(label_set)
            return Scorer((iou,), lambda results, samples: _add_semantic(iou, results, samples))
        case "classification", LabelSet():
            accuracy = ClassificationAccuracy(label_set)
            return Scorer((accuracy,), lambda results, samples: _add_class(accuracy, results, samples))
        case "depth", None:
            errors = DepthErrors(median_scaled=median_scaled)
            return Scorer((errors,), lambda results, samples: _add_depth(errors, results, samples))
    raise ValueError(f"results of kind '{kind}' have no score; those of {', '.join(PICTURE_KINDS)} have")


def clip_scorer(kind: str, label_set: LabelSet) -> Scorer:
    """A scorer of clips; `kind` is one of `CLIP_KINDS`, errors as in `picture_scorer`."""
    match kind:
        case "panoptic":
            quality, tracking = VideoPanopticQuality(label_set), SegmentationTrackingQuality(label_set)

            def add(results: Sequence[Result], samples: Sequence[Sample]) -> None:
                overlaps = _clip_overlaps(results, samples, len(label_set))
                quality.add(overlaps)
                tracking.add(overlaps)

            return Scorer((quality, tracking), add)
        case "instance":
            precision = MaskAveragePrecision(label_set, CLIP_AREAS)
            return Scorer((precision,), lambda results, samples: _add_tracks(precision, results, samples))
        case "semantic":
            iou = SemanticIou(label_set)
            return Scorer((iou,), lambda results, samples: _add_semantic(iou, results, samples))
    raise ValueError(f"clips of kind '{kind}' have no score; those of {', '.join(CLIP_KINDS)} have")


def _add_panoptic(quality: PanopticQuality, results: Sequence[Result], samples: Sequence[Sample]) -> None:
    [(result, sample)] = zip(results, samples, strict=True)
    result = _expect(result, PanopticResult)
    labels = {segment.segment_id: segment.label_id for segment in result.segments}
    quality.add(result.segment_map, labels, *_segments(sample))


def _add_instances(precision: MaskAveragePrecision, results: Sequence[Result], samples: Sequence[Sample]) -> None:
    [(result, sample)] = zip(results, samples, strict=True)
    result = _expect(result, InstanceResult)
    found = [
        FoundMask(instance.label_id, instance.score, mask, instance.area)
        for instance, mask in zip(result.instances, result.masks, strict=True)
    ]
    objects = _expect(sample, InstanceSample).read_masks()
    sized = [TrueMask(each.label_id, each.mask, each.mask.area(), each.is_crowd) for each in objects]
    precision.add(found, [each for each in sized if each.area])


def _add_semantic(iou: SemanticIou, results: Sequence[Result], samples: Sequence[Sample]) -> None:
    predicted = [_expect(result, SemanticResult).segment_map - 1 for result in results]  # void, 0, becomes IGNORED
    true = [_expect(sample, SemanticSample).read_label_map() for sample in samples]
    iou.add(_joined(predicted), _joined(true))


def _add_class(accuracy: ClassificationAccuracy, results: Sequence[Result], samples: Sequence[Sample]) -> None:
    [(result, sample)] = zip(results, samples, strict=True)
    ranked = [score.label_id for score in _expect(result, ClassificationResult).classes]
    accuracy.add(ranked, _expect(sample, ClassSample).label_id)


def _add_depth(errors: DepthErrors, results: Sequence[Result], samples: Sequence[Sample]) -> None:
    [(result, sample)] = zip(results, samples, strict=True)
    errors.add(_expect(result, DepthResult).depth_m, _expect(sample, DepthSample).read_depth_m())


def _clip_overlaps(results: Sequence[Result], samples: Sequence[Sample], num_labels: int) -> ClipOverlaps:
    """A clip's overlaps. A thing is its identity under one class: a query that changes class is another segment."""
    frames = []
    predicted_labels: dict[int, int] = {}
    true_labels: dict[int, int] = {}
    crowd_ids: set[int] = set()
    for result, sample in zip(results, samples, strict=True):
        result, truth = _expect(result, PanopticResult), _segments(sample)
        clip_ids = np.zeros(1 + max((segment.segment_id for segment in result.segments), default=0), dtype=np.int32)
        for segment in result.segments:
            clip_id = 1 + segment.label_id + num_labels * (segment.track_id or 0)
            clip_ids[segment.segment_id] = clip_id
            predicted_labels[clip_id] = segment.label_id
        frames.append(count_overlaps(clip_ids[result.segment_map], truth.segment_map))
        true_labels |= truth.labels
        crowd_ids |= truth.crowd_ids
    return ClipOverlaps(tuple(frames), predicted_labels, true_labels, frozenset(crowd_ids))


def _add_tracks(precision: MaskAveragePrecision, results: Sequence[Result], samples: Sequence[Sample]) -> None:
    """Add a clip. A track has the class that got most of its scores, and of these the mean over its frames."""
    masks: dict[int, dict[int, NDArray[np.bool_]]] = defaultdict(dict)
    scores: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    sizes = []
    for number, result in enumerate(results):
        result = _expect(result, InstanceResult)
        sizes.append(result.image_size)
        for instance, mask in zip(result.instances, result.masks, strict=True):
            assert instance.track_id is not None
            masks[instance.track_id][number] = mask.decode()
            scores[instance.track_id][instance.label_id] += instance.score
    found = []
    for track, by_frame in masks.items():
        label_id, total = max(scores[track].items(), key=lambda item: item[1])
        frames = [by_frame.get(number, np.zeros(size, dtype=bool)) for number, size in enumerate(sizes)]
        found.append(FoundMask(label_id, total / len(by_frame), *_tube(frames)))
    truth = []
    for views in zip(*(_expect(sample, InstanceSample).read_masks() for sample in samples), strict=True):
        mask, area = _tube([view.mask.decode() for view in views])
        if area:
            truth.append(TrueMask(views[0].label_id, mask, area, views[0].is_crowd))
    precision.add(found, truth)


def _tube(frames: Sequence[NDArray[np.bool_]]) -> tuple[Rle, float]:
    """An object's masks in all frames as one, and its mean area over the frames that show it."""
    areas = [int(np.count_nonzero(frame)) for frame in frames]
    return encode(_joined(frames)[:, None]), sum(areas) / max(1, sum(area > 0 for area in areas))


def _joined(frames: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    """All pixels of all frames in one row; frames may differ in size."""
    return np.concatenate([frame.ravel() for frame in frames])


def _segments(sample: Sample) -> Segments:
    """Panoptic truth in which what no label is told of is unlabelled."""
    segments = _expect(sample, PanopticSample).read_segments()
    listed = np.isin(segments.segment_map, list(segments.labels))
    return segments._replace(segment_map=np.where(listed, segments.segment_map, 0))


def _expect(value: object, wanted: type[Expected]) -> Expected:
    if not isinstance(value, wanted):
        raise TypeError(f"this score needs a {wanted.__name__}, not a {type(value).__name__}")
    return value
