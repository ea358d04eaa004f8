"""Encoder features of every training view, computed once and kept on disk: the frozen encoder never runs twice.

A run's features are one memory-mapped array. The arrays of all runs together stay below a bound in bytes: before a new
one is made, those that were used longest ago go, but never one that a run is using. What doesn't fit even so is encoded
again whenever it is asked for.

Several runs may share a folder. A lock of the folder guards its bookkeeping, one of an array the run that fills it (a
second one waits, and then reads), and every reader holds a lock of its own: a lock that can be taken belongs to a run
that has died.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from encoders.base import Encoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry

_THREADS = min(8, os.cpu_count() or 1)
_LARGEST = torch.finfo(torch.float16).max


class Features(Protocol):
    """Features of a fixed list of views."""

    def read(self, rows: Sequence[int]) -> EncoderFeatures:
        """Some rows, float32, on the encoder's device."""
        ...


@dataclass(frozen=True)
class FeatureCache:
    """Computes features, float16, for one encoder and one geometry, and keeps them.

    Attributes:
        directory: where the arrays lie.
        encoder: frozen, on its device.
        geometry: of the network's input.
        out_indices, hidden_indices: blocks kept, after the final LayerNorm and without it, as a head reads them.
        max_bytes: of all arrays in the directory.
    """

    directory: Path
    encoder: Encoder
    geometry: FitGeometry
    out_indices: tuple[int, ...]
    hidden_indices: tuple[int, ...] = ()
    max_bytes: int = 20 * 10**9

    @property
    def spec(self) -> EncoderSpec:
        """Of the encoder."""
        return self.encoder.spec

    @property
    def grid_size(self) -> tuple[int, int]:
        """(grid_h, grid_w) of the features."""
        patch = self.spec.patch_size
        return (self.geometry.height // patch, self.geometry.width // patch)

    @contextmanager
    def open(
        self,
        key: str,
        num_views: int,
        load: Callable[[int], Tensor],
        *,
        progress: Callable[[int], None] = lambda done: None,
        tell: Callable[[str], None] = lambda message: None,
    ) -> Iterator[Features]:
        """The features of `num_views` views, read from disk or computed now (from where an earlier run broke off).

        Args:
            key: identifies the pictures *and* their views; another key is another array.
            num_views: how many.
            load: index to network input, [3, H, W] uint8; called from several threads.
            progress: told the number of views encoded, while there are some to encode.
            tell: told what a person should know: that another run is waited for, that nothing can be kept.
        """
        shape = (num_views, *self._row_shape)
        num_bytes = 2 * int(np.prod(shape))
        dtype = next(self.encoder.parameters()).dtype
        encoder = [self.spec.name, self.spec.revision, str(dtype), self.geometry.typical_size]
        identity = json.dumps([key, *encoder, self.out_indices, self.hidden_indices, shape])
        stem = self.directory / hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.directory.mkdir(parents=True, exist_ok=True)
        reading = FileLock(f"{stem}.use-{uuid.uuid4().hex}")
        with reading:
            try:
                missing = self._make_room(stem, num_bytes)
                if missing:
                    tell(missing)
                    yield _EncodedOnTheFly(self, load)
                else:
                    array = self._filled(stem, shape, load, progress, tell)
                    yield _Kept(self, array)
            finally:
                Path(reading.lock_file).unlink(missing_ok=True)

    def encode(self, views: Sequence[Tensor]) -> Tensor:
        """Network inputs [3, H, W] uint8 to tokens [B, levels, P + N, C] float16, on the encoder's device."""
        with torch.no_grad():
            device = next(self.encoder.parameters()).device
            features = self.encoder(torch.stack(list(views)).to(device), self.out_indices, self.hidden_indices)
            levels = [features.tokens(i) for i in self.out_indices] + [
                features.hidden_state(i) for i in self.hidden_indices
            ]
            return torch.stack(levels, dim=1).clamp(-_LARGEST, _LARGEST).to(torch.float16)

    def as_features(self, tokens: Tensor) -> EncoderFeatures:
        """What `encode` returned, as a head reads it: float32, on the encoder's device."""
        tokens = tokens.to(next(self.encoder.parameters()).device).float()
        levels = tokens.unbind(dim=1)
        normed = len(self.out_indices)
        return EncoderFeatures(
            self.spec,
            self.grid_size,
            dict(zip(self.out_indices, levels[:normed], strict=True)),
            dict(zip(self.hidden_indices, levels[normed:], strict=True)),
        )

    @property
    def _row_shape(self) -> tuple[int, int, int]:
        tokens = self.spec.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        return (len(self.out_indices) + len(self.hidden_indices), tokens, self.spec.embed_dim)

    def _make_room(self, stem: Path, num_bytes: int) -> str | None:
        """Let old arrays go and reserve room for this one, or say why there is none."""
        data = _data(stem)
        with FileLock(self.directory / "cache.lock"):
            if data.exists():
                os.utime(data)
                return None
            kept = {path: path.stat() for path in self.directory.glob("*.f16")}
            total = sum(stat.st_size for stat in kept.values())
            needed = f"the features of this run take {num_bytes / 1e9:.1f} GB"
            if num_bytes <= self.max_bytes:
                for path in sorted(kept, key=lambda path: kept[path].st_mtime):
                    free = shutil.disk_usage(self.directory).free
                    if total + num_bytes <= self.max_bytes and free >= num_bytes:
                        break
                    if not _in_use(path.with_suffix("")):
                        total -= kept[path].st_size
                        path.unlink()
                        _done(path.with_suffix("")).unlink(missing_ok=True)
            every_time = "views are encoded again at every step, which is slow"
            if total + num_bytes > self.max_bytes:
                used = (
                    f", of which other runs hold {total / 1e9:.1f} GB" if total and num_bytes <= self.max_bytes else ""
                )
                return f"{needed}, and {self.max_bytes / 1e9:.1f} GB are allowed (--cache-gb){used}: {every_time}"
            if shutil.disk_usage(self.directory).free < num_bytes:
                return f"{needed}, and the disk of {self.directory} is full: {every_time}"
            _done(stem).unlink(missing_ok=True)
            with data.open("wb") as file:
                file.truncate(num_bytes)
        return None

    def _filled(
        self,
        stem: Path,
        shape: tuple[int, ...],
        load: Callable[[int], Tensor],
        progress: Callable[[int], None],
        tell: Callable[[str], None],
    ) -> NDArray[np.float16]:
        data, done_file = _data(stem), _done(stem)
        with _held(FileLock(f"{stem}.lock"), tell), ThreadPoolExecutor(_THREADS) as threads:
            done = int(done_file.read_text()) if done_file.exists() else 0
            if done < shape[0]:
                array = np.memmap(data, dtype=np.float16, mode="r+", shape=shape)
                batch = 4 if next(self.encoder.parameters()).device.type == "cpu" else 32
                for start in range(done, shape[0], batch):
                    stop = min(start + batch, shape[0])
                    array[start:stop] = self.encode(list(threads.map(load, range(start, stop)))).cpu().numpy()
                    array.flush()
                    unfinished = done_file.with_suffix(".part")
                    unfinished.write_text(str(stop))
                    unfinished.replace(done_file)
                    progress(stop)
        return np.memmap(data, dtype=np.float16, mode="r", shape=shape)


@dataclass(frozen=True)
class _Kept:
    cache: FeatureCache
    array: NDArray[np.float16]

    def read(self, rows: Sequence[int]) -> EncoderFeatures:
        return self.cache.as_features(torch.from_numpy(np.ascontiguousarray(self.array[list(rows)])))


@dataclass(frozen=True)
class _EncodedOnTheFly:
    cache: FeatureCache
    load: Callable[[int], Tensor]

    def read(self, rows: Sequence[int]) -> EncoderFeatures:
        return self.cache.as_features(self.cache.encode([self.load(row) for row in rows]))


@contextmanager
def _held(lock: FileLock, tell: Callable[[str], None]) -> Iterator[None]:
    """A lock that another run may hold for long."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell("another run is encoding the same views; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _data(stem: Path) -> Path:
    return stem.with_suffix(".f16")


def _done(stem: Path) -> Path:
    return stem.with_suffix(".done")


def _in_use(stem: Path) -> bool:
    """Whether a living run reads or fills an array; the locks of dead ones are removed."""
    for path in stem.parent.glob(f"{stem.name}.use-*"):
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return True
    return False
