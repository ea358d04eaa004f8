"""Features of pictures that were encoded before: content-keyed, bounded in bytes, the least recently used go first.

An entry holds what some heads read of one picture, on the encoder's device. Its id is computed from what the features
depend on, so that one id never stands for two different things:

    <digest of the picture's bytes>-<digest of the input geometries, the encoder's name and revision, and the dtype>

Used in the event loop only.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import InputGeometry
from serving.errors import FeatureCacheOffError, MissingBlocksError, TooLargeError, UnknownFeaturesError
from serving.planner import Head

_DIGEST_BYTES = 16
_REMEDY = "post the picture to /features again, or send it along in the body"


@dataclass(frozen=True)
class FeatureEntry:
    """The kept features of one picture.

    Attributes:
        features_id: from `features_id`.
        image_size: (height, width) of the upright picture.
        passes: by input geometry, one picture's features: [V, P + N, C] a block, for V windows (1 without).
    """

    features_id: str
    image_size: tuple[int, int]
    passes: Mapping[InputGeometry, EncoderFeatures]

    @property
    def num_bytes(self) -> int:
        """Memory of all features."""
        return sum(features.num_bytes for features in self.passes.values())

    def merged(self, other: FeatureEntry) -> FeatureEntry:
        """An entry with the blocks of both; `other` is of the same id."""
        passes = {
            geometry: replace(
                features,
                lateral_features={**features.lateral_features, **other.passes[geometry].lateral_features},
                hidden_states={**features.hidden_states, **other.passes[geometry].hidden_states},
            )
            for geometry, features in self.passes.items()
        }
        return replace(self, passes=passes)

    def serves(self, head: Head) -> bool:
        """Whether everything that a head reads is kept."""
        features = self.passes.get(head.geometry)
        return (
            features is not None
            and features.lateral_features.keys() >= set(head.decoder.out_indices)
            and features.hidden_states.keys() >= set(head.decoder.hidden_indices)
        )


def picture_digest(data: bytes) -> str:
    """What stands in ids for a picture's file: the first 16 bytes of its SHA-256, in hexadecimal."""
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES].hex()


def features_id(picture: str, geometries: Iterable[InputGeometry], spec: EncoderSpec, dtype: torch.dtype) -> str:
    """The id of a picture's features.

    Args:
        picture: from `picture_digest`.
        geometries: of the passes; their order has no meaning.
        spec: of the encoder, whose name and revision count.
        dtype: of the encoder.
    """
    # The geometries' repr: their str is for people, and does not tell all of their numbers.
    parts = (*sorted(map(repr, set(geometries))), spec.name, spec.revision, str(dtype))
    return f"{picture}-{hashlib.sha256(repr(parts).encode()).digest()[:_DIGEST_BYTES].hex()}"


def is_of_picture(given_id: str, picture: str) -> bool:
    """Whether an id, as a client gives it, is that of some features of a picture with this digest."""
    return given_id.partition("-")[0] == picture


class FeatureCache:
    """The entries of one replica.

    Args:
        max_bytes: of all entries together; 0: nothing is kept.
        on_hit: called when an entry was found that serves.
        on_miss: called when it was not.
        on_evict: called for each entry that made room for another.

    Attributes:
        num_bytes: of all entries.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        on_hit: Callable[[], None] = lambda: None,
        on_miss: Callable[[], None] = lambda: None,
        on_evict: Callable[[], None] = lambda: None,
    ) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._on_hit, self._on_miss, self._on_evict = on_hit, on_miss, on_evict
        self._entries: OrderedDict[str, FeatureEntry] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def check_on(self) -> None:
        """Raise unless features are kept here.

        Raises:
            FeatureCacheOffError: the cache has no bytes.
        """
        if not self.max_bytes:
            raise FeatureCacheOffError(
                "this server keeps no features",
                remedy="send the picture to /segment with all tasks at once, or start the server with "
                "POLYHEAD_FEATURE_CACHE_BYTES above 0",
            )

    def find(self, wanted_id: str, heads: Iterable[Head]) -> FeatureEntry:
        """The entry of an id, which becomes the most recently used.

        Args:
            wanted_id: as a client gives it.
            heads: that are to run on it.

        Raises:
            UnknownFeaturesError: there is no such entry, or no longer.
            MissingBlocksError: a head reads what was not kept.
        """
        self.check_on()
        entry = self._entries.get(wanted_id)
        if entry is None:
            self._on_miss()
            raise UnknownFeaturesError(f"no features '{wanted_id[:80]}' are kept in this replica", remedy=_REMEDY)
        lacking = [head.task for head in heads if not entry.serves(head)]
        if lacking:
            self._on_miss()
            raise MissingBlocksError(
                f"the kept features lack what {', '.join(lacking)} read",
                remedy=f"{_REMEDY}, with tasks={','.join(lacking)} among the tasks",
            )
        self._entries.move_to_end(wanted_id)
        self._on_hit()
        return entry

    def put(self, entry: FeatureEntry) -> FeatureEntry:
        """Keep an entry; the least recently used others make room.

        Returns:
            The kept entry: where there was one of the same id, its further blocks are in it.

        Raises:
            TooLargeError: it alone is larger than all may be.
        """
        self.check_on()
        before = self._entries.get(entry.features_id)
        entry = entry if before is None else before.merged(entry)
        if entry.num_bytes > self.max_bytes:
            raise TooLargeError(
                f"the picture's features have {entry.num_bytes:,} bytes; at most {self.max_bytes:,} are kept",
                remedy="keep those of fewer tasks, or raise POLYHEAD_FEATURE_CACHE_BYTES",
            )
        self._drop(entry.features_id)
        while self.num_bytes + entry.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self._on_evict()
        self._entries[entry.features_id] = entry
        self.num_bytes += entry.num_bytes
        return entry

    def clear(self) -> None:
        """Let go of everything."""
        self._entries.clear()
        self.num_bytes = 0

    def _drop(self, dropped_id: str) -> None:
        dropped = self._entries.pop(dropped_id, None)
        self.num_bytes -= dropped.num_bytes if dropped else 0
