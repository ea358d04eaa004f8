"""The feature cache: what is on disk is what the encoder said, and it is computed once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

from decoders.training.feature_cache import FeatureCache
from encoders.features import EncoderFeatures
from encoders.geometry import FitGeometry
from encoders.vit import VisionTransformer

GEOMETRY = FitGeometry(16, 24)


class Pictures:
    """Ten seeded network inputs that remember which were asked for, and can break off."""

    def __init__(self, break_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.break_at = break_at

    def __call__(self, index: int) -> Tensor:
        if index == self.break_at:
            raise KeyboardInterrupt
        self.asked.append(index)
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=generator)


ROW_BYTES = 2 * (3 + 6) * 16
"""Of one level of one view."""


def read(
    cache: FeatureCache, rows: Sequence[int], pictures: Callable[[int], Tensor], **options: object
) -> EncoderFeatures:
    """Some rows of an array of 10 views under the key "key", unless told otherwise."""
    given: dict[str, object] = {"key": "key", "num_views": 10} | options
    with cache.open(load=pictures, **given) as features:
        return features.read(rows)


def arrays(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.f16"))


def test_kept_features_are_those_of_the_encoder_in_half_precision(
    tmp_path: Path, tiny_encoder: VisionTransformer
) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1, 3), (2,))
    pictures, rows = Pictures(), [7, 0, 7]
    features = read(cache, rows, pictures)
    expected = tiny_encoder(torch.stack([pictures(row) for row in rows]), (1, 3), (2,))
    assert features.spec == tiny_encoder.spec
    assert features.grid_size == expected.grid_size == (2, 3)
    pairs = [(features.tokens(i), expected.tokens(i)) for i in (1, 3)]
    for found, wanted in (*pairs, (features.hidden_state(2), expected.hidden_state(2))):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted.half().float(), atol=2e-2, rtol=2e-3)


def test_values_beyond_half_precision_stay_finite(
    tmp_path: Path, make_encoder: Callable[..., VisionTransformer]
) -> None:
    encoder = make_encoder()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.startswith("norm."):
                parameter.mul_(1e6)
    features = read(FeatureCache(tmp_path, encoder, GEOMETRY, (3,)), [0], Pictures())
    assert features.tokens(3).isfinite().all()


def test_every_picture_is_encoded_once_and_never_again(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    pictures = Pictures()
    first = read(FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1, 3)), range(10), pictures)
    assert sorted(pictures.asked) == list(range(10))
    again = read(FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1, 3)), range(10), pictures)
    assert len(pictures.asked) == 10
    assert torch.equal(first.tokens(3), again.tokens(3))


def test_a_run_that_broke_off_is_resumed_at_its_last_whole_batch(
    tmp_path: Path, tiny_encoder: VisionTransformer
) -> None:
    broken = FeatureCache(tmp_path / "broken", tiny_encoder, GEOMETRY, (1,))
    with pytest.raises(KeyboardInterrupt):
        read(broken, [0], Pictures(break_at=6))
    pictures, told = Pictures(), []
    resumed = read(broken, range(10), pictures, progress=told.append)
    whole = read(FeatureCache(tmp_path / "whole", tiny_encoder, GEOMETRY, (1,)), range(10), Pictures())
    assert sorted(pictures.asked) == [4, 5, 6, 7, 8, 9]
    assert told == [8, 10]
    assert torch.equal(resumed.tokens(1), whole.tokens(1))


@pytest.mark.parametrize("difference", ["revision", "dtype", "key", "views", "levels", "hidden", "geometry"])
def test_whatever_changes_the_features_is_another_entry(
    tmp_path: Path, make_encoder: Callable[..., VisionTransformer], difference: str
) -> None:
    def encode(changed: str | None) -> int:
        encoder = make_encoder(revision="other" if changed == "revision" else "random")
        encoder.to(dtype=torch.float64 if changed == "dtype" else torch.float32)
        geometry = FitGeometry(24, 16) if changed == "geometry" else GEOMETRY
        pictures = Pictures()

        def load(index: int) -> Tensor:
            picture = pictures(index)
            return picture.transpose(1, 2) if changed == "geometry" else picture

        levels = {"levels": ((2,), ()), "hidden": ((), (1,))}.get(changed or "", ((1,), ()))
        cache = FeatureCache(tmp_path, encoder, geometry, *levels)
        key = "other" if changed == "key" else "key"
        with cache.open(key, 5 if changed == "views" else 4, load):
            return len(pictures.asked)

    assert encode(None) == 4
    assert encode(difference) >= 4
    assert encode(None) == 0


def test_the_array_used_longest_ago_goes_first(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1,), max_bytes=25 * ROW_BYTES)
    for age, key in enumerate(("old", "newer")):
        before = set(arrays(tmp_path))
        read(cache, [0], Pictures(), key=key)
        (made,) = set(arrays(tmp_path)) - before
        os.utime(made, (1000 + age, 1000 + age))
    read(cache, [0], Pictures(), key="old")  # used again, so that it is the younger one now
    read(cache, [0], Pictures(), key="third")
    assert sum(path.stat().st_size for path in arrays(tmp_path)) == 20 * ROW_BYTES
    pictures = Pictures()
    read(cache, [0], pictures, key="old")
    assert pictures.asked == []


def test_an_array_in_use_never_goes(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1,), max_bytes=15 * ROW_BYTES)
    told: list[str] = []
    with cache.open("used", 10, Pictures()) as features:
        (used,) = arrays(tmp_path)
        os.utime(used, (0, 0))
        other = read(cache, [3], Pictures(), key="other", tell=told.append)
        assert arrays(tmp_path) == [used]
        assert "of which other runs hold" in told[0]
        assert torch.equal(features.read([3]).tokens(1), other.tokens(1))
    read(cache, [3], Pictures(), key="other")
    assert used not in arrays(tmp_path)


def test_an_array_that_a_dead_run_used_may_go(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1,), max_bytes=15 * ROW_BYTES)
    read(cache, [0], Pictures(), key="used")
    (used,) = arrays(tmp_path)
    lock = used.with_suffix(".use-dead")
    script = f"import filelock, os; filelock.FileLock({str(lock)!r}).acquire(); os._exit(1)"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert lock.exists()
    read(cache, [0], Pictures(), key="other")
    assert used not in arrays(tmp_path)
    assert not lock.exists()


def test_what_does_not_fit_is_encoded_on_the_fly_and_a_person_is_told(
    tmp_path: Path, tiny_encoder: VisionTransformer
) -> None:
    told: list[str] = []
    kept = read(FeatureCache(tmp_path / "large", tiny_encoder, GEOMETRY, (1,)), [2, 5], Pictures())
    small = FeatureCache(tmp_path / "small", tiny_encoder, GEOMETRY, (1,), max_bytes=5 * ROW_BYTES)
    pictures = Pictures()
    found = read(small, [2, 5], pictures, tell=told.append)
    assert pictures.asked == [2, 5]
    assert arrays(tmp_path / "small") == []
    assert "are allowed (--cache-gb): views are encoded again at every step" in told[0]
    torch.testing.assert_close(found.tokens(1), kept.tokens(1), atol=2e-3, rtol=2e-3)


def test_a_second_run_waits_for_the_first_and_encodes_nothing(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    started, go_on, waiting = Event(), Event(), Event()
    pictures = Pictures()

    def slow(index: int) -> Tensor:
        started.set()
        assert go_on.wait(60)
        return pictures(index)

    def tell(message: str) -> None:
        assert "another run" in message
        waiting.set()

    cache, late = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1,)), Pictures()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(read, cache, range(10), slow)
        assert started.wait(60)
        second = threads.submit(read, cache, range(10), late, tell=tell)
        assert waiting.wait(60)
        go_on.set()
        assert torch.equal(first.result().tokens(1), second.result().tokens(1))
    assert late.asked == []


def test_no_lock_of_a_reader_is_left(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    read(FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1,)), [0], Pictures())
    assert list(tmp_path.glob("*.use-*")) == []


def test_writing_to_a_batch_does_not_reach_the_disk(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1,))
    with cache.open("key", 2, Pictures()) as features:
        before = features.read([0]).tokens(1)
        features.read([0]).tokens(1).zero_()
        assert torch.equal(features.read([0]).tokens(1), before)
