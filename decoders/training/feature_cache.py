"""Encoder features of every training view, computed once and kept on disk: the frozen encoder never runs twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.base import Encoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry


class FeatureCache:
    """A memory-mapped array of features, [views, levels, P + N, C] float16, for one encoder and one geometry.

    Args:
        directory: where the arrays lie.
        encoder: frozen.
        geometry: of the network's input.
        out_indices: the levels kept.
    """

    def __init__(self, directory: Path, encoder: Encoder, geometry: FitGeometry, out_indices: Sequence[int]) -> None:
        self.directory = directory
        self.encoder = encoder
        self.geometry = geometry
        self.out_indices = encoder.spec.check_out_indices(out_indices)
        patch = encoder.spec.patch_size
        self.grid_size = (geometry.height // patch, geometry.width // patch)

    @property
    def spec(self) -> EncoderSpec:
        """Of the encoder."""
        return self.encoder.spec

    def encode(
        self, key: str, num_views: int, load: Callable[[int], Tensor], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float16]:
        """The features of `num_views` pictures, read from disk or computed now (and resumed where a run broke off).

        Args:
            key: identifies the pictures *and* their views; another key is another array.
            num_views: how many.
            load: index to network input, [3, H, W] uint8.
            progress: told the number of pictures done.
        """
        spec = self.spec
        tokens = spec.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        shape = (num_views, len(self.out_indices), tokens, spec.embed_dim)
        identity = json.dumps([key, spec.name, spec.revision, self.geometry.typical_size, self.out_indices, shape])
        stem = self.directory / hashlib.sha256(identity.encode()).hexdigest()[:16]
        data, done_file = stem.with_suffix(".f16"), stem.with_suffix(".done")
        self.directory.mkdir(parents=True, exist_ok=True)
        done = int(done_file.read_text()) if done_file.exists() and data.exists() else 0
        array = np.memmap(data, dtype=np.float16, mode="r+" if done else "w+", shape=shape)
        batch = 4
        for start in range(done, num_views, batch):
            stop = min(start + batch, num_views)
            with torch.no_grad():
                features = self.encoder(torch.stack([load(i) for i in range(start, stop)]), self.out_indices)
            levels = torch.stack([features.tokens(i) for i in self.out_indices], dim=1)
            array[start:stop] = levels.to(torch.float16).cpu().numpy()
            array.flush()
            done_file.write_text(str(stop))
            if progress is not None:
                progress(stop)
        return np.memmap(data, dtype=np.float16, mode="r", shape=shape)

    def features(self, array: NDArray[np.float16], rows: Sequence[int]) -> EncoderFeatures:
        """Some rows of what `encode` returned, as a decoder wants them (float32)."""
        levels = torch.from_numpy(np.ascontiguousarray(array[list(rows)])).float()
        return EncoderFeatures(
            self.spec, self.grid_size, {index: levels[:, i] for i, index in enumerate(self.out_indices)}
        )
