"""How many replicas there should be: more when pictures wait, fewer when accelerators are idle. Knows nothing of Ray.

CPU and GPU are busy with one picture as with a hundred, and requests under way say little where batches grow with load;
how long pictures wait for the accelerator is what callers feel.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class LoadMeter:
    """What one replica tells: how long batches' oldest pictures waited, and how busy the accelerator was.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since_s = clock()
        self._batches = 0
        self._waited_s = self._busy_s = 0.0

    def count(self, wait_s: float, busy_s: float) -> None:
        """Count a batch: the wait of its oldest picture, and the time that it ran."""
        with self._lock:
            self._batches += 1
            self._waited_s += wait_s
            self._busy_s += busy_s

    def read(self) -> dict[str, float]:
        """``queue_s``, the mean wait, and ``busy``, part of the time in [0, 1], since it was last read."""
        with self._lock:
            now_s = self._clock()
            told = {
                "queue_s": self._waited_s / max(1, self._batches),
                "busy": min(1.0, self._busy_s / max(1e-9, now_s - self._since_s)),
            }
            self._since_s, self._batches, self._waited_s, self._busy_s = now_s, 0, 0.0, 0.0
        return told


class ScalingContext(Protocol):
    """What is used of `ray.serve.config.AutoscalingContext`."""

    current_num_replicas: int
    target_num_replicas: int

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None:
        """By the names of `LoadMeter.read` and by replica, over the look-back period."""
        ...


class QueueTimePolicy:
    """An autoscaling policy of Ray Serve; bounds and delays are Ray Serve's to apply.

    Args:
        target_queue_s: pictures may wait this long on average; above it replicas are added, at most twice as many.
        target_busy: below that wait, replicas go as long as the others stay under this part of their time.

    Raises:
        ValueError: a target makes no sense.
    """

    def __init__(self, target_queue_s: float = 0.25, target_busy: float = 0.7) -> None:
        if not (target_queue_s > 0 and 0 < target_busy <= 1):
            raise ValueError(
                f"target_queue_s={target_queue_s:g} must be positive, and target_busy={target_busy:g} in (0, 1]"
            )
        self.target_queue_s = target_queue_s
        self.target_busy = target_busy

    def __call__(self, context: ScalingContext) -> tuple[float, dict[str, Any]]:
        """The number of replicas wanted, and the state of the policy, of which there is none."""
        metrics = context.aggregated_metrics or {}
        waits, busy = (list(metrics.get(name, {}).values()) for name in ("queue_s", "busy"))
        now = context.current_num_replicas
        if not (waits and busy and now):
            return context.target_num_replicas, {}
        wait_s = sum(waits) / len(waits)
        if wait_s > self.target_queue_s:
            return now * min(2.0, wait_s / self.target_queue_s), {}
        needed = math.ceil(round(now * sum(busy) / len(busy) / self.target_busy, 6))
        return max(1, min(now, needed)), {}
