"""Average precision of masks, of objects in pictures (COCO) and in clips (YouTube-VIS)."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from decoders.labels import LabelSet
from decoders.masks import Rle
from decoders.training.evaluation.measure import ClassFigures, Counts, Figures, mean_of

_BEYOND = 1e10
PICTURE_AREAS: Mapping[str, tuple[float, float]] = {
    "": (0, _BEYOND),
    "_small": (0, 32**2),
    "_medium": (32**2, 96**2),
    "_large": (96**2, _BEYOND),
}
"""COCO's ranges of an object's area, pixels."""
CLIP_AREAS: Mapping[str, tuple[float, float]] = {
    "": (0, _BEYOND),
    "_small": (0, 128**2),
    "_medium": (128**2, 256**2),
    "_large": (256**2, _BEYOND),
}
"""YouTube-VIS's, of the mean area over the frames that show the object, pixels."""
MOST_DETECTIONS = 100
"""Of a class in a picture; the least probable beyond it are left out."""
_RECALLS = np.linspace(0, 1, 101)


class FoundMask(NamedTuple):
    """A predicted object. `area`: pixels, by which it is small or large."""

    label_id: int
    score: float
    mask: Rle
    area: float


class TrueMask(NamedTuple):
    """A true object, or a crowd of them, which is never a target and pardons what lies on it. `area`: pixels."""

    label_id: int
    mask: Rle
    area: float
    is_crowd: bool = False


class MaskAveragePrecision:
    """AP over IoU thresholds from 0.5 to 0.95, AP50, AP75 and AP by area, in percent; a `Measure`.

    Within each picture pycocotools matches; what it would sum up over pictures is summed up here, so that pictures may
    count several times. AP is the mean over the classes that occur in the truth.

    Args:
        label_set: the classes.
        areas: ranges by the ending of a figure's name; the first is all.
    """

    main: ClassVar[str] = "AP"
    larger_is_better: ClassVar[bool] = True

    def __init__(self, label_set: LabelSet, areas: Mapping[str, tuple[float, float]] = PICTURE_AREAS) -> None:
        self._label_set = label_set
        self._areas = areas
        self._size = 0
        self._pictures: dict[tuple[int, str], list[_PictureMatches]] = defaultdict(list)
        self._tables: dict[tuple[int, str], _Table] = {}

    def __len__(self) -> int:
        return self._size

    def add(self, found: Sequence[FoundMask], truth: Sequence[TrueMask]) -> None:
        """Add one picture, or a clip whose masks stand on top of each other, frame by frame, as one tall mask."""
        if found or truth:
            evaluation = _evaluation(found, truth, list(self._areas.values()))
            endings = {tuple(limits): ending for ending, limits in self._areas.items()}
            for each in evaluation:
                if each is not None:
                    key = (each["category_id"], endings[tuple(each["aRng"])])
                    self._pictures[key].append(_PictureMatches.read(self._size, each))
        self._tables.clear()
        self._size += 1

    def figures(self, counts: Counts) -> Figures:
        """As in `Measure`."""
        figures = {}
        for ending in self._areas:
            by_class = self._by_class(ending, counts)
            figures[f"AP{ending}"] = _mean_percent(by_class)
            if not ending:
                figures["AP50"], figures["AP75"] = _mean_percent(by_class[:, :1]), _mean_percent(by_class[:, 5:6])
        return figures

    def per_class(self) -> ClassFigures:
        """As in `Measure`: AP and AP50 of every class in the truth."""
        by_class = 100 * self._by_class("", np.ones(self._size, dtype=np.int64))
        return {
            label.name: {"AP": float(values.mean()), "AP50": float(values[0])}
            for label, values in zip(self._label_set.labels, by_class, strict=True)
            if np.isfinite(values[0])
        }

    def _by_class(self, ending: str, counts: Counts) -> NDArray[np.float64]:
        """[K, 10], AP by class and IoU threshold; NaN for a class without truth."""
        return np.stack([self._table(k, ending).average_precision(counts) for k in range(len(self._label_set))])

    def _table(self, label_id: int, ending: str) -> _Table:
        key = (label_id, ending)
        if key not in self._tables:
            self._tables[key] = _Table(self._pictures.get(key, []))
        return self._tables[key]


@dataclass(frozen=True)
class _PictureMatches:
    """What pycocotools found for one class and range of areas in one picture, at each of 10 IoU thresholds.

    Attributes:
        picture: its number.
        scores: [D].
        hits, mistakes: [10, D] bool; what lies on a crowd or is of another size is neither.
        positives: objects to be found.
    """

    picture: int
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    mistakes: NDArray[np.bool_]
    positives: int

    @classmethod
    def read(cls, picture: int, evaluated: Mapping[str, Any]) -> _PictureMatches:
        """From an entry of `COCOeval.evalImgs`."""
        matched, counted = evaluated["dtMatches"] > 0, ~evaluated["dtIgnore"].astype(bool)
        positives = int(np.count_nonzero(np.asarray(evaluated["gtIgnore"]) == 0))
        return cls(picture, np.array(evaluated["dtScores"]), matched & counted, ~matched & counted, positives)


class _Table:
    """All detections of one class and range of areas, the most probable first."""

    def __init__(self, pictures: Sequence[_PictureMatches]) -> None:
        self._positives = np.array([(each.picture, each.positives) for each in pictures], np.int64).reshape(-1, 2)
        scores = np.concatenate([np.zeros(0), *(each.scores for each in pictures)])
        order = np.argsort(-scores, kind="stable")  # as pycocotools: among equals, the earlier picture first
        owners = [np.full(len(each.scores), each.picture) for each in pictures]
        self._pictures = np.concatenate([np.zeros(0, np.int64), *owners])[order]
        none = np.zeros((10, 0), dtype=bool)
        self._hits = np.concatenate([none, *(each.hits for each in pictures)], axis=1)[:, order]
        self._mistakes = np.concatenate([none, *(each.mistakes for each in pictures)], axis=1)[:, order]

    def average_precision(self, counts: Counts) -> NDArray[np.float64]:
        """[10], by IoU threshold; NaN if there was nothing to be found."""
        positives = int(counts[self._positives[:, 0]] @ self._positives[:, 1])
        if not positives:
            return np.full(10, np.nan)
        weights = counts[self._pictures]
        drawn = weights > 0
        hits = np.cumsum(self._hits[:, drawn] * weights[drawn], axis=1)
        mistakes = np.cumsum(self._mistakes[:, drawn] * weights[drawn], axis=1)
        precision = hits / (hits + mistakes + np.spacing(1))
        best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.zeros((10, len(_RECALLS)))
        for row, (recall, best) in enumerate(zip(hits / positives, best_from_here, strict=True)):
            places = np.searchsorted(recall, _RECALLS, side="left")
            within = places < len(best)
            reached[row, within] = best[places[within]]
        return reached.mean(axis=1)


def _evaluation(
    found: Sequence[FoundMask], truth: Sequence[TrueMask], areas: Sequence[tuple[float, float]]
) -> list[dict[str, Any] | None]:
    """One picture's `COCOeval.evalImgs`."""
    labels = sorted({each.label_id for each in found} | {each.label_id for each in truth})
    true = [
        _annotation(number, each.label_id, each.mask, each.area) | {"iscrowd": int(each.is_crowd)}
        for number, each in enumerate(truth, 1)
    ]
    answers = [
        _annotation(number, each.label_id, each.mask, each.area) | {"score": each.score}
        for number, each in enumerate(found, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        evaluation = COCOeval(_coco(true, labels), _coco(answers, labels), "segm")
        evaluation.params.areaRng = [list(limits) for limits in areas]
        evaluation.params.maxDets = [MOST_DETECTIONS]
        evaluation.evaluate()
    return evaluation.evalImgs


def _annotation(number: int, label_id: int, mask: Rle, area: float) -> dict[str, Any]:
    coded = {"size": list(mask.size), "counts": mask.counts}
    return {"id": number, "image_id": 0, "category_id": label_id, "segmentation": coded, "area": area}


def _coco(annotations: list[dict[str, Any]], labels: Sequence[int]) -> COCO:
    coco = COCO()
    height, width = annotations[0]["segmentation"]["size"] if annotations else (0, 0)
    coco.dataset = {
        "images": [{"id": 0, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": label_id} for label_id in labels],
    }
    coco.createIndex()
    return coco


def _mean_percent(by_class: NDArray[np.float64]) -> float:
    return 100 * mean_of(by_class, np.isfinite(by_class))
