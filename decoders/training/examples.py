"""What is trained on: views of pictures, one for a still, several for a pseudo-clip, always the same for one seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from decoders.training.data.samples import Sample
from decoders.training.views import View, clip_views, random_view, whole
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.preprocess import to_pixels


@dataclass(frozen=True)
class Examples:
    """Views of samples; example i is a view, or a clip, of sample ``i % len(samples)``.

    Attributes:
        samples: the labelled pictures.
        geometry: of the network's input.
        views_per_picture: examples made of each picture.
        frames: views that make one example.
        least_side: as in `random_view` and `clip_views`; 1 with one view of a still picture: the picture as it is.
        seed: of the views.
    """

    samples: Sequence[Sample]
    geometry: FitGeometry
    views_per_picture: int
    frames: int
    least_side: float
    seed: int

    def __len__(self) -> int:
        return self.views_per_picture * len(self.samples)

    def sample(self, index: int) -> Sample:
        """The labelled picture of an example."""
        return self.samples[index % len(self.samples)]

    def views(self, index: int, image: Image.Image) -> list[View]:
        """The views of an example, one for each frame; `image` is its picture."""
        rng = np.random.default_rng([self.seed, index])
        if self.frames > 1:
            return clip_views(image, rng, frames=self.frames, least_side=self.least_side)
        if self.least_side == 1:
            return [whole(image)]
        return [random_view(image, rng, least_side=self.least_side)]

    def place(self, view: View) -> ImageGeometry:
        """Where a view lies in the network's input."""
        left, top, right, bottom = view.box
        return self.geometry.place((bottom - top, right - left))

    def pixels(self, row: int) -> Tensor:
        """Network input of a frame, [3, H, W] uint8; row = index of the example * frames + frame."""
        index, frame = divmod(row, self.frames)
        image = self.sample(index).read_image()
        view = self.views(index, image)[frame]
        return to_pixels(view.apply(image), self.place(view))[0]

    def rows(self, indices: Sequence[int]) -> list[list[int]]:
        """For each frame, the rows of some examples."""
        return [[index * self.frames + frame for index in indices] for frame in range(self.frames)]

    def key(self) -> str:
        """Identifies the pictures and their views."""
        digest = hashlib.sha256()
        with ThreadPoolExecutor() as threads:
            for picture in threads.map(lambda sample: sample.digest(), self.samples):
                digest.update(picture)
        return f"{digest.hexdigest()}|{self.views_per_picture}|{self.frames}|{self.least_side}|{self.seed}"
