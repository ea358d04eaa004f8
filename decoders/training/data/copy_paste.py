"""More pictures out of few: segments of one picture pasted into another (Simple Copy-Paste, arXiv 2012.07177).

A head that has seen a hundred photos knows them by heart before it knows what a chair is. Pasted segments tear objects
out of the scenes that give them away. Here stuff is pasted too, though less often than things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.labels import LabelSet
from decoders.training.data.samples import PanopticSample, Segments

_THING_PROBABILITY, _STUFF_PROBABILITY = 0.8, 0.3
_LEAST_SCALE, _LARGEST_SCALE = 0.4, 1.25
"""Of the donor, over the size at which it would just cover its host."""


def with_pasted(
    samples: Sequence[PanopticSample], label_set: LabelSet, count: int, seed: int
) -> tuple[PanopticSample, ...]:
    """The samples, and `count` more of each with segments of another picture in it.

    Args:
        samples: two or more.
        label_set: of their labels.
        count: pasted forms of each picture.
        seed: of what is pasted where.
    """
    made = list(samples)
    for number in range(count):
        for index, host in enumerate(samples):
            rng = np.random.default_rng([seed, number, index])
            donor = samples[(index + int(rng.integers(1, len(samples)))) % len(samples)]
            pasting = _Pasting(host, donor, label_set, int(rng.integers(1 << 32)))
            name = f"{host.name} with {donor.name}, {number}"
            made.append(PanopticSample(name, pasting.read_image, pasting.read_segments))
    return tuple(made)


@dataclass(frozen=True)
class _Pasting:
    host: PanopticSample
    donor: PanopticSample
    label_set: LabelSet
    seed: int

    def read_image(self) -> Image.Image:
        image = self.host.read_image()
        place, donor, chosen = self._draw(image.size)
        pasted = np.isin(place.put_map(donor.segment_map), chosen)
        image.paste(place.put_image(self.donor.read_image()), mask=Image.fromarray(pasted))
        return image

    def read_segments(self) -> Segments:
        host = self.host.read_segments()
        height, width = host.segment_map.shape
        place, donor, chosen = self._draw((width, height))
        placed = place.put_map(donor.segment_map)
        segment_map, labels, crowd_ids = host.segment_map.copy(), dict(host.labels), set(host.crowd_ids)
        stuff_ids = {label: i for i, label in labels.items() if not self.label_set[label].is_thing}
        free = max(labels, default=0) + 1
        for i in chosen:
            label = donor.labels[i]
            own = free if self.label_set[label].is_thing else stuff_ids.setdefault(label, free)  # stuff is one segment
            segment_map[placed == i] = own
            labels[own] = label
            if i in donor.crowd_ids:
                crowd_ids.add(own)
            free = max(free, own + 1)
        return Segments(segment_map, labels, frozenset(crowd_ids))

    def _draw(self, host_size: tuple[int, int]) -> tuple[_Place, Segments, list[int]]:
        """Where the donor lies, its segments, and which of them are pasted: one at least, if it has any."""
        rng = np.random.default_rng(self.seed)
        segments = self.donor.read_segments()
        height, width = segments.segment_map.shape
        place = _Place.draw(host_size, (width, height), rng)
        chosen = []
        for i, label in segments.labels.items():
            probability = _THING_PROBABILITY if self.label_set[label].is_thing else _STUFF_PROBABILITY
            if rng.random() < probability:
                chosen.append(i)
        return place, segments, chosen or list(segments.labels)[:1]


@dataclass(frozen=True)
class _Place:
    """Where the donor comes to lie in its host. Sizes are (width, height) in pixels."""

    host_size: tuple[int, int]
    donor_size: tuple[int, int]
    left: int
    top: int
    flip: bool

    @classmethod
    def draw(cls, host_size: tuple[int, int], donor_size: tuple[int, int], rng: np.random.Generator) -> _Place:
        cover = max(host / donor for host, donor in zip(host_size, donor_size, strict=True))
        scale = cover * float(np.exp(rng.uniform(np.log(_LEAST_SCALE), np.log(_LARGEST_SCALE))))
        width, height = (max(1, round(scale * side)) for side in donor_size)
        left, top = (
            int(rng.integers(min(0, host - side), max(0, host - side) + 1))
            for host, side in zip(host_size, (width, height), strict=True)
        )
        return cls(host_size, (width, height), left, top, bool(rng.random() < 0.5))

    def put_image(self, image: Image.Image) -> Image.Image:
        """The donor on a canvas of the host's size."""
        return self._put(image.resize(self.donor_size, Image.Resampling.BILINEAR), Image.new("RGB", self.host_size))

    def put_map(self, segment_map: NDArray[np.int32]) -> NDArray[np.int32]:
        """Its segment map likewise; 0 where it is not."""
        image = Image.fromarray(segment_map).resize(self.donor_size, Image.Resampling.NEAREST)
        return np.asarray(self._put(image, Image.new("I", self.host_size)))

    def _put(self, image: Image.Image, canvas: Image.Image) -> Image.Image:
        canvas.paste(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else image, (self.left, self.top))
        return canvas
