"""The cache by itself: what an id stands for, what serves, who goes first, and that bytes are counted rightly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry, InputGeometry, ShortestEdgeGeometry, WindowGeometry
from serving.errors import FeatureCacheOffError, MissingBlocksError, TooLargeError, UnknownFeaturesError
from serving.feature_cache import FeatureCache, FeatureEntry, features_id, is_of_picture, picture_digest
from serving.planner import Head

SPEC = EncoderSpec("tiny", "abc", embed_dim=4, depth=3, num_heads=1, patch_size=8, num_prefix_tokens=1)
COMMON, FINE = FitGeometry(16, 16), FitGeometry(32, 32)
BLOCK_BYTES = 5 * 4 * 4
"""One block of `features`: 5 tokens of width 4 in float32."""


def features(*blocks: int, hidden: tuple[int, ...] = ()) -> EncoderFeatures:
    def tokens(index: int) -> torch.Tensor:
        return torch.full((1, 5, 4), float(index))

    return EncoderFeatures(SPEC, (2, 2), {i: tokens(i) for i in blocks}, {i: tokens(i) for i in hidden})


def entry(name: str, *blocks: int, geometry: InputGeometry = COMMON) -> FeatureEntry:
    return FeatureEntry(name, (60, 90), {geometry: features(*blocks)})


@pytest.fixture
def head(probe_head: Any) -> Head:
    """Reads block 1 at the common geometry."""
    return Head("depth", probe_head((1,)), COMMON)


# Ids


def test_the_same_picture_geometries_and_encoder_give_the_same_id() -> None:
    first = features_id(picture_digest(b"photo"), [COMMON, FINE], SPEC, torch.float32)
    assert first == features_id(picture_digest(b"photo"), [FINE, COMMON, FINE], SPEC, torch.float32)


@pytest.mark.parametrize(
    ("picture", "geometries", "spec", "dtype"),
    [
        (b"other", [COMMON], SPEC, torch.float32),
        (b"photo", [FINE], SPEC, torch.float32),
        (b"photo", [COMMON, FINE], SPEC, torch.float32),
        (b"photo", [COMMON], replace(SPEC, name="other"), torch.float32),
        (b"photo", [COMMON], replace(SPEC, revision="abd"), torch.float32),
        (b"photo", [COMMON], SPEC, torch.bfloat16),
    ],
    ids=["bytes", "geometry", "one geometry more", "encoder", "revision", "dtype"],
)
def test_whatever_the_features_depend_on_changes_the_id(
    picture: bytes, geometries: list[InputGeometry], spec: EncoderSpec, dtype: torch.dtype
) -> None:
    reference = features_id(picture_digest(b"photo"), [COMMON], SPEC, torch.float32)
    assert features_id(picture_digest(picture), geometries, spec, dtype) != reference


def test_geometries_that_look_alike_to_people_have_ids_of_their_own() -> None:
    geometries: list[InputGeometry] = [
        ShortestEdgeGeometry(32, 64),
        ShortestEdgeGeometry(32, 96),
        ShortestEdgeGeometry(32, 64, 16),
        WindowGeometry(32),
    ]
    ids = {features_id("a", [geometry], SPEC, torch.float32) for geometry in geometries}
    assert len(ids) == len(geometries)


def test_an_id_tells_of_which_picture_it_is() -> None:
    given = features_id(picture_digest(b"photo"), [COMMON], SPEC, torch.float32)
    assert is_of_picture(given, picture_digest(b"photo"))
    assert not is_of_picture(given, picture_digest(b"other"))
    assert not is_of_picture("", picture_digest(b"photo"))


# What serves


def test_an_entry_serves_heads_whose_blocks_and_geometry_it_has(probe_head: Any) -> None:
    kept = entry("a", 0, 1)
    assert kept.serves(Head("depth", probe_head((0, 1)), COMMON))
    assert not kept.serves(Head("more blocks", probe_head((1, 2)), COMMON))
    assert not kept.serves(Head("finer", probe_head((1,)), FINE))


def test_the_hidden_state_of_a_block_is_not_the_normed_one(probe_head: Any) -> None:
    bare = probe_head((1,))
    bare.hidden_indices = (1,)
    assert not entry("a", 1).serves(Head("bare", bare, COMMON))
    assert FeatureEntry("a", (60, 90), {COMMON: features(1, hidden=(1,))}).serves(Head("bare", bare, COMMON))


def test_what_was_put_is_found(head: Head) -> None:
    cache = FeatureCache(1000)
    kept = cache.put(entry("a", 1))
    assert cache.find("a", [head]) is kept
    assert (len(cache), cache.num_bytes) == (1, BLOCK_BYTES)


def test_an_unknown_id_is_an_error_that_names_the_remedy(head: Head) -> None:
    with pytest.raises(UnknownFeaturesError, match="no features 'b' are kept in this replica") as missing:
        FeatureCache(1000).find("b", [head])
    assert "post the picture to /features again" in missing.value.remedy


def test_blocks_that_were_not_kept_are_an_error_that_names_the_heads(head: Head) -> None:
    cache = FeatureCache(1000)
    cache.put(entry("a", 0))
    with pytest.raises(MissingBlocksError, match="lack what depth read") as missing:
        cache.find("a", [head])
    assert "tasks=depth" in missing.value.remedy


def test_further_blocks_of_the_same_picture_join_those_that_are_there(head: Head, probe_head: Any) -> None:
    cache = FeatureCache(1000)
    cache.put(entry("a", 0))
    cache.put(entry("a", 1))
    assert cache.find("a", [head, Head("first", probe_head((0,)), COMMON)])
    assert (len(cache), cache.num_bytes) == (1, 2 * BLOCK_BYTES)


# Room


def test_the_least_recently_used_makes_room(head: Head) -> None:
    evicted: list[None] = []
    cache = FeatureCache(2 * BLOCK_BYTES, on_evict=lambda: evicted.append(None))
    cache.put(entry("a", 1))
    cache.put(entry("b", 1))
    cache.find("a", [head])
    cache.put(entry("c", 1))
    assert cache.find("a", [head])
    assert cache.find("c", [head])
    with pytest.raises(UnknownFeaturesError):
        cache.find("b", [head])
    assert len(evicted) == 1
    assert cache.num_bytes == 2 * BLOCK_BYTES


def test_as_many_go_as_the_new_one_needs() -> None:
    evicted: list[None] = []
    cache = FeatureCache(3 * BLOCK_BYTES, on_evict=lambda: evicted.append(None))
    for name in "abc":
        cache.put(entry(name, 1))
    cache.put(entry("d", 0, 1, 2))
    assert (len(cache), len(evicted), cache.num_bytes) == (1, 3, 3 * BLOCK_BYTES)


def test_an_entry_larger_than_all_may_be_is_refused_with_its_size_and_nobody_goes_for_it(head: Head) -> None:
    cache = FeatureCache(2 * BLOCK_BYTES)
    cache.put(entry("a", 1))
    with pytest.raises(TooLargeError, match=f"have {3 * BLOCK_BYTES} bytes; at most {2 * BLOCK_BYTES}"):
        cache.put(entry("b", 0, 1, 2))
    assert cache.find("a", [head])


def test_putting_the_same_again_takes_no_more_room_and_evicts_nobody() -> None:
    evicted: list[None] = []
    cache = FeatureCache(2 * BLOCK_BYTES, on_evict=lambda: evicted.append(None))
    for name in "abab":
        cache.put(entry(name, 1))
    assert (len(cache), evicted, cache.num_bytes) == (2, [], 2 * BLOCK_BYTES)


def test_nothing_is_left_once_it_is_cleared() -> None:
    cache = FeatureCache(1000)
    cache.put(entry("a", 1))
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_hits_and_misses_are_told(head: Head) -> None:
    told: list[str] = []
    cache = FeatureCache(1000, on_hit=lambda: told.append("hit"), on_miss=lambda: told.append("miss"))
    cache.put(entry("a", 1))
    cache.put(entry("b", 0))
    cache.find("a", [head])
    for name in "bc":
        with pytest.raises((UnknownFeaturesError, MissingBlocksError)):
            cache.find(name, [head])
    assert told == ["hit", "miss", "miss"]


def test_without_bytes_the_cache_is_off_and_says_so(head: Head) -> None:
    cache = FeatureCache(0)
    with pytest.raises(FeatureCacheOffError, match="keeps no features") as off:
        cache.put(entry("a", 1))
    assert "POLYHEAD_FEATURE_CACHE_BYTES" in off.value.remedy
    with pytest.raises(FeatureCacheOffError):
        cache.find("a", [head])
