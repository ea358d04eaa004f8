"""Which waiting pictures run together, and when. Pure: time is passed in, nothing here waits, locks or computes.

Entries with equal keys may share a batch. A batch leaves when it is full, or when its oldest entry has waited
`max_wait_s`. While the accelerator is busy nobody asks, so batches grow by themselves under load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class BatchPolicy:
    """Limits of a `BatchQueue`.

    Attributes:
        max_batch_size: of one batch, in the sizes of its entries; an entry that alone is larger runs alone.
        max_wait_s: how long the oldest entry waits for others, seconds.
    """

    max_batch_size: int
    max_wait_s: float

    def __post_init__(self) -> None:
        if self.max_batch_size < 1 or self.max_wait_s < 0:
            raise ValueError(f"batch policy out of range: {self}")


@dataclass(eq=False)
class Entry(Generic[Item]):
    """A waiting picture.

    Attributes:
        item: what to run.
        key: entries run together only if their keys are equal.
        size: what it counts in a batch: the network inputs that the picture makes.
        enqueued_at_s, deadline_s: on the caller's clock; no deadline = None.
        cancelled: set by whoever no longer wants the answer.
    """

    item: Item
    key: Hashable
    enqueued_at_s: float
    deadline_s: float | None = None
    size: int = 1
    cancelled: bool = False

    def expired(self, now_s: float) -> bool:
        """Whether the deadline has passed."""
        return self.deadline_s is not None and now_s >= self.deadline_s


@dataclass
class Batch(Generic[Item]):
    """What `BatchQueue.pop` hands out: entries to run together, and entries whose deadline passed while waiting."""

    entries: list[Entry[Item]] = field(default_factory=list)
    expired: list[Entry[Item]] = field(default_factory=list)


class BatchQueue(Generic[Item]):
    """First in, first out within a key; across keys the one whose oldest entry came first.

    Args:
        policy: limits.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self._queues: dict[Hashable, deque[Entry[Item]]] = {}

    def __len__(self) -> int:
        """Entries waiting that are still wanted."""
        return sum(1 for _ in self.items())

    def items(self) -> Iterator[Item]:
        """What waits and is still wanted."""
        return (entry.item for queue in self._queues.values() for entry in queue if not entry.cancelled)

    def push(self, entry: Entry[Item]) -> None:
        """Add an entry behind those of its key."""
        self._queues.setdefault(entry.key, deque()).append(entry)

    def pop(self, now_s: float) -> Batch[Item]:
        """The next batch that is due, possibly empty; drops cancelled entries and hands out expired ones."""
        batch: Batch[Item] = Batch()
        for key, queue in list(self._queues.items()):
            batch.expired += [entry for entry in queue if not entry.cancelled and entry.expired(now_s)]
            waiting = deque(entry for entry in queue if not entry.cancelled and not entry.expired(now_s))
            if waiting:
                self._queues[key] = waiting
            else:
                del self._queues[key]
        due = [queue for queue in self._queues.values() if self._due_at_s(queue) <= now_s]
        if due:
            queue = min(due, key=lambda q: q[0].enqueued_at_s)
            room = self.policy.max_batch_size
            while queue and (not batch.entries or queue[0].size <= room):
                room -= queue[0].size
                batch.entries.append(queue.popleft())
            if not queue:
                del self._queues[batch.entries[0].key]
        return batch

    def next_due_s(self) -> float | None:
        """When `pop` next has something to hand out, on the caller's clock; None if nothing waits."""
        times = [self._due_at_s(queue) for queue in self._queues.values()]
        times += [
            entry.deadline_s for queue in self._queues.values() for entry in queue if entry.deadline_s is not None
        ]
        return min(times, default=None)

    def _due_at_s(self, queue: deque[Entry[Item]]) -> float:
        if sum(entry.size for entry in queue) >= self.policy.max_batch_size:
            return float("-inf")
        return queue[0].enqueued_at_s + self.policy.max_wait_s
