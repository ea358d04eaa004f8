"""Batching, with a clock that is only a number: which entries leave together, and when."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from serving.batching import BatchPolicy, BatchQueue, Entry


def queue_of(*entries: Entry[str], size: int = 4, wait_s: float = 10.0) -> BatchQueue[str]:
    queue: BatchQueue[str] = BatchQueue(BatchPolicy(max_batch_size=size, max_wait_s=wait_s))
    for entry in entries:
        queue.push(entry)
    return queue


def entry(
    item: str, at_s: float = 0.0, key: Hashable = "key", deadline_s: float | None = None, size: int = 1
) -> Entry[str]:
    return Entry(item, key, at_s, deadline_s, size)


def popped(queue: BatchQueue[str], now_s: float) -> list[str]:
    return [each.item for each in queue.pop(now_s).entries]


def test_partial_batch_is_held_until_oldest_request_has_waited_max_wait() -> None:
    assert popped(queue_of(entry("a", 100), entry("b", 109)), 109.999) == []


def test_partial_batch_is_released_when_oldest_request_reaches_max_wait() -> None:
    assert popped(queue_of(entry("a", 100), entry("b", 109)), 110) == ["a", "b"]


def test_full_batch_leaves_at_once() -> None:
    assert popped(queue_of(entry("a"), entry("b"), size=2), 0) == ["a", "b"]


def test_no_batch_is_larger_than_its_limit_and_the_rest_stays_in_order() -> None:
    queue = queue_of(*(entry(item) for item in "abcde"), size=2)
    assert popped(queue, 0) == ["a", "b"]
    assert popped(queue, 0) == ["c", "d"]
    assert popped(queue, 0) == []
    assert popped(queue, 10) == ["e"]
    assert len(queue) == 0


def test_without_a_wait_whatever_is_there_leaves_at_once() -> None:
    assert popped(queue_of(entry("a", 5), entry("b", 5), wait_s=0), 5) == ["a", "b"]


def test_entries_of_different_keys_never_share_a_batch() -> None:
    queue = queue_of(entry("small", 0, key=56), entry("large", 1, key=112), entry("small too", 2, key=56))
    assert popped(queue, 100) == ["small", "small too"]
    assert popped(queue, 100) == ["large"]


def test_the_key_with_the_oldest_entry_goes_first() -> None:
    queue = queue_of(entry("younger", 2, key=56), entry("older", 1, key=112))
    assert popped(queue, 100) == ["older"]
    assert popped(queue, 100) == ["younger"]


def test_a_full_batch_of_younger_entries_does_not_wait_for_an_older_key_that_is_not_due() -> None:
    queue = queue_of(entry("old", 0, key=56), entry("a", 1, key=112), entry("b", 1, key=112), size=2)
    assert popped(queue, 1) == ["a", "b"]
    assert popped(queue, 1) == []


def test_of_two_full_batches_the_one_with_the_oldest_entry_leaves_first() -> None:
    entries = [entry("b1", 1, key=112), entry("a1", 0, key=56), entry("b2", 1, key=112), entry("a2", 2, key=56)]
    queue = queue_of(*entries, size=2)
    assert popped(queue, 2) == ["a1", "a2"]
    assert popped(queue, 2) == ["b1", "b2"]


def test_a_cancelled_entry_is_dropped_and_leaves_room_for_another() -> None:
    entries = [entry(item) for item in "abc"]
    queue = queue_of(*entries, size=2)
    entries[0].cancelled = True
    assert popped(queue, 0) == ["b", "c"]


def test_a_batch_that_is_full_only_by_cancelled_entries_keeps_waiting() -> None:
    entries = [entry("a", 0), entry("b", 1)]
    queue = queue_of(*entries, size=2)
    entries[0].cancelled = True
    assert popped(queue, 1) == []
    assert popped(queue, 11) == ["b"]


def test_max_wait_counts_from_the_oldest_entry_that_is_still_wanted() -> None:
    entries = [entry("a", 0), entry("b", 5)]
    queue = queue_of(*entries)
    entries[0].cancelled = True
    assert popped(queue, 10) == []
    assert popped(queue, 15) == ["b"]


def test_cancelled_entries_are_not_counted_as_waiting() -> None:
    entries = [entry("a"), entry("b", key="other")]
    queue = queue_of(*entries)
    assert len(queue) == 2
    entries[1].cancelled = True
    assert len(queue) == 1


def test_an_entry_is_handed_out_as_expired_at_its_deadline_and_is_not_run() -> None:
    queue = queue_of(entry("late", 0, deadline_s=5), entry("in time", 0, deadline_s=50))
    batch = queue.pop(5)
    assert [each.item for each in batch.expired] == ["late"]
    assert batch.entries == []
    assert popped(queue, 10) == ["in time"]


def test_an_entry_just_before_its_deadline_is_run() -> None:
    batch = queue_of(entry("a", 0, deadline_s=11)).pop(10.999)
    assert [each.item for each in batch.entries] == ["a"]
    assert batch.expired == []


def test_expired_entries_of_every_key_are_handed_out_beside_a_batch_that_is_due() -> None:
    queue = queue_of(entry("x", 0, key=1, deadline_s=5), entry("y", 0, key=2, deadline_s=6), entry("z", 0, key=3))
    batch = queue.pop(10)
    assert {each.item for each in batch.expired} == {"x", "y"}
    assert [each.item for each in batch.entries] == ["z"]


def test_an_entry_is_handed_out_as_expired_only_once() -> None:
    queue = queue_of(entry("late", 0, deadline_s=5))
    assert len(queue.pop(6).expired) == 1
    assert queue.pop(7).expired == []


def test_a_cancelled_entry_never_expires() -> None:
    late = entry("late", 0, deadline_s=5)
    queue = queue_of(late)
    late.cancelled = True
    assert queue.pop(6).expired == []


def test_next_due_is_the_end_of_the_oldest_wait() -> None:
    queue = queue_of(entry("a", 103, key=1), entry("b", 101, key=2))
    assert queue.next_due_s() == 111


def test_next_due_is_a_deadline_that_comes_before_the_end_of_the_wait() -> None:
    assert queue_of(entry("a", 100), entry("b", 101, deadline_s=104)).next_due_s() == 104


def test_a_full_batch_is_due_already() -> None:
    due_s = queue_of(entry("a", 100), entry("b", 100), size=2).next_due_s()
    assert due_s is not None and due_s < 100


def test_nothing_is_due_when_nothing_waits() -> None:
    queue = queue_of(entry("a"), wait_s=0)
    queue.pop(0)
    assert queue.next_due_s() is None
    assert len(queue) == 0


def test_at_the_time_it_names_pop_has_something_to_hand_out() -> None:
    queue = queue_of(entry("a", 100), entry("b", 101, deadline_s=104), entry("c", 102, key="other"))
    handed_out = []
    while (due_s := queue.next_due_s()) is not None:
        batch = queue.pop(due_s)
        assert batch.entries or batch.expired
        handed_out += [each.item for each in (*batch.entries, *batch.expired)]
    assert handed_out == ["b", "a", "c"]


@pytest.mark.parametrize(("size", "wait_s"), [(0, 1.0), (-1, 1.0), (1, -0.1)])
def test_limits_out_of_range_are_refused(size: int, wait_s: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        BatchPolicy(size, wait_s)


def test_a_batch_is_full_by_the_sizes_of_its_entries() -> None:
    queue = queue_of(entry("a", size=2), entry("b", size=1), entry("c", size=2), size=4)
    assert popped(queue, 0) == ["a", "b"]
    assert popped(queue, 0) == []
    assert popped(queue, 10) == ["c"]


def test_an_entry_that_alone_passes_the_limit_runs_alone() -> None:
    queue = queue_of(entry("long", size=9), entry("short"), size=4)
    assert popped(queue, 0) == ["long"]
    assert popped(queue, 10) == ["short"]


def test_a_large_entry_is_not_overtaken_by_small_ones_behind_it() -> None:
    queue = queue_of(entry("a", size=3), entry("large", size=3), entry("small"), size=4)
    assert popped(queue, 10) == ["a"]
    assert popped(queue, 10) == ["large", "small"]
