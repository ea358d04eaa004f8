"""The figures of all replicas as one: how snapshots add up, and what is kept of replicas that have ended.

Pure: time is passed in, and nothing of ours is imported, so that the process that holds a hub stays small.

Counters of the whole never decrease: each replica's are added as they grow, and stay when it is gone. Prometheus would
take a decrease for a restart and count everything again. Gauges are of the replicas that were heard of lately.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample: its name, and its labels with their values."""

Samples = dict[Key, float]

SILENT_S = 10.0
"""A replica that was not heard of for so long is taken for dead: its gauges no longer count."""

FORGET_S = 3600.0
"""And after so long nothing is kept of it but what it added to the counters."""


@dataclass(frozen=True)
class Snapshot:
    """The samples of one replica, or of all together, by the rule under which they are joined; zeros are left out.

    Attributes:
        counters: add up, and only grow.
        gauges: add up over live replicas.
        ratios: their mean over live replicas counts.
        facts: 1 where any live replica says so.
    """

    counters: Samples = field(default_factory=dict)
    gauges: Samples = field(default_factory=dict)
    ratios: Samples = field(default_factory=dict)
    facts: Samples = field(default_factory=dict)


@dataclass
class _Replica:
    last: Snapshot
    heard_s: float


class MetricsHub:
    """Holds the last snapshot of each replica and the counters of all that ever were.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counters: Samples = {}
        self._replicas: dict[str, _Replica] = {}

    def push(self, replica: str, snapshot: Snapshot) -> None:
        """Take a replica's figures; an older snapshot that comes after a newer one takes nothing away.

        Args:
            replica: an id that no other process has or will have.
            snapshot: all of it, not what has changed.
        """
        now_s = self._clock()
        known = self._replicas.get(replica)
        counted = known.last.counters if known else {}
        for key, value in snapshot.counters.items():
            before = counted.get(key, 0.0)
            self._counters[key] = self._counters.get(key, 0.0) + max(0.0, value - before)
            counted[key] = max(before, value)
        last = Snapshot(counted, snapshot.gauges, snapshot.ratios, snapshot.facts)
        self._replicas[replica] = _Replica(last, now_s)
        for gone in [name for name, other in self._replicas.items() if now_s - other.heard_s > FORGET_S]:
            del self._replicas[gone]

    def end(self, replica: str, snapshot: Snapshot) -> None:
        """Take the last figures of a replica that ends."""
        self.push(replica, snapshot)
        del self._replicas[replica]

    def exchange(self, replica: str, snapshot: Snapshot) -> Snapshot:
        """Take a replica's figures and give back those of all together."""
        self.push(replica, snapshot)
        return self.total()

    def total(self) -> Snapshot:
        """The figures of all replicas."""
        now_s = self._clock()
        live = [known.last for known in self._replicas.values() if now_s - known.heard_s <= SILENT_S]
        ratios = _added([snapshot.ratios for snapshot in live])
        return Snapshot(
            dict(self._counters),
            _added([snapshot.gauges for snapshot in live]),
            {key: value / len(live) for key, value in ratios.items()},
            dict.fromkeys((key for snapshot in live for key in snapshot.facts), 1.0),
        )


def _added(parts: list[Samples]) -> Samples:
    total: Samples = {}
    for samples in parts:
        for key, value in samples.items():
            total[key] = total.get(key, 0.0) + value
    return total
