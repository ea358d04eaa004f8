"""A labelled picture, by kind of truth. Pictures and maps are read when asked for, so that a sample is a few bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from decoders.labels import LabelSet
from decoders.masks import Rle, encode
from decoders.training.data.lookup import translate_map

IGNORE = -1
"""In a label map: a pixel that is neither learned from nor scored."""


@dataclass(frozen=True)
class ImageFile:
    """Reads a picture file as RGB, upright as its EXIF orientation says; raises OSError if it can't be read."""

    path: Path

    def __call__(self) -> Image.Image:
        """The picture."""
        with Image.open(self.path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")


@dataclass(frozen=True)
class Sample:
    """A picture.

    Attributes:
        name: of the file below the data's folder, for messages; unique within the data.
        read_image: gives the picture, RGB.
    """

    name: str
    read_image: Callable[[], Image.Image]

    def digest(self) -> bytes:
        """SHA-256 of the picture: of its file where it is one, or else of its pixels."""
        if isinstance(self.read_image, ImageFile):
            with self.read_image.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        image = self.read_image()
        return hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).digest()


class Segments(NamedTuple):
    """Panoptic truth.

    Attributes:
        segment_map: [H, W] int32, segment ids, 0 = unlabelled.
        labels: ``{segment id: label_id}``.
        crowd_ids: segments that stand for a group; never a target, and pardoned when scoring.
    """

    segment_map: NDArray[np.int32]
    labels: dict[int, int]
    crowd_ids: frozenset[int]


@dataclass(frozen=True)
class PanopticSample(Sample):
    """A picture and its segments."""

    read_segments: Callable[[], Segments]


class InstanceMask(NamedTuple):
    """One object. `is_crowd`: it stands for a group; never a target, and pardoned when scoring."""

    label_id: int
    mask: Rle
    is_crowd: bool


@dataclass(frozen=True)
class InstanceSample(Sample):
    """A picture and its objects; their masks may overlap, and there may be none."""

    read_masks: Callable[[], list[InstanceMask]]


@dataclass(frozen=True)
class SemanticSample(Sample):
    """A picture and the class of every pixel: [H, W] int32 label ids, `IGNORE` where there is none."""

    read_label_map: Callable[[], NDArray[np.int32]]


@dataclass(frozen=True)
class DepthSample(Sample):
    """A picture and its depth: [H, W] float32 metres, NaN where nothing was measured."""

    read_depth_m: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class ClassSample(Sample):
    """A picture and what it shows."""

    label_id: int


@dataclass(frozen=True)
class Problem:
    """Something wrong with the data.

    Attributes:
        where: the file or category, as a person would look for it.
        what: is wrong with it.
        is_error: training would learn from what is wrong, or can't go on; or else what is said here is left out.
    """

    where: str
    what: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


S_co = TypeVar("S_co", bound=Sample, covariant=True)


@dataclass(frozen=True)
class Dataset(Generic[S_co]):
    """Samples of one kind, and what was already found wrong when they were listed.

    Attributes:
        name: of the folder.
        samples: in the order of the data's own list, or by name.
        label_set: that their label ids are of; None for depth.
        problems: found without opening a picture; `decoders.training.data.check` finds the others.
    """

    name: str
    samples: tuple[S_co, ...]
    label_set: LabelSet | None
    problems: tuple[Problem, ...] = field(default=())


def as_semantic(sample: PanopticSample) -> SemanticSample:
    """The classes of a panoptic sample's pixels; crowds count as their class, unlabelled pixels are ignored."""

    def read_label_map() -> NDArray[np.int32]:
        segment_map, labels, _ = sample.read_segments()
        return translate_map(segment_map, labels, IGNORE)

    return SemanticSample(sample.name, sample.read_image, read_label_map)


def as_instances(sample: PanopticSample, label_set: LabelSet) -> InstanceSample:
    """The things of a panoptic sample; label ids stay those of `label_set`, so that its stuff has no objects."""

    def read_masks() -> list[InstanceMask]:
        segment_map, labels, crowd_ids = sample.read_segments()
        return [
            InstanceMask(label_id, encode(segment_map == segment_id), segment_id in crowd_ids)
            for segment_id, label_id in labels.items()
            if label_set[label_id].is_thing
        ]

    return InstanceSample(sample.name, sample.read_image, read_masks)
