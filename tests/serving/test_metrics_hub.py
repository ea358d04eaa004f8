"""How the figures of replicas add up, and that no total ever decreases."""

from __future__ import annotations

import pytest

from serving.metrics_hub import FORGET_S, SILENT_S, Key, MetricsHub, Snapshot

SERVED: Key = ("polyhead_requests_total", (("route", "/segment"), ("code", "200")))
SHED: Key = ("polyhead_shed_total", (("route", "/segment"),))
INSIDE: Key = ("polyhead_pictures_inside", ())
BUSY: Key = ("polyhead_gpu_utilization_ratio", ())
INFO: Key = ("polyhead_info", (("bundle", "tiny"),))


class Clock:
    """Seconds that a test sets."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(clock: Clock) -> MetricsHub:
    return MetricsHub(clock)


def counted(served: float, **gauges: float) -> Snapshot:
    """A snapshot with one counter, and the gauge `inside`."""
    return Snapshot({SERVED: served}, {INSIDE: gauges["inside"]} if gauges else {})


def test_counters_and_gauges_of_replicas_are_added(hub: MetricsHub) -> None:
    hub.push("a", counted(3, inside=1))
    assert hub.exchange("b", counted(4, inside=2)) == Snapshot({SERVED: 7}, {INSIDE: 3})


def test_a_replica_that_tells_again_is_not_counted_twice(hub: MetricsHub) -> None:
    for served in (3, 3, 5):
        hub.push("a", counted(served))
    assert hub.total().counters == {SERVED: 5}


def test_labels_that_only_one_replica_knows_are_in_the_total(hub: MetricsHub) -> None:
    hub.push("a", Snapshot({SERVED: 1}))
    hub.push("b", Snapshot({SHED: 2}))
    assert hub.total().counters == {SERVED: 1, SHED: 2}


def test_a_ratio_is_the_mean_over_live_replicas_those_at_0_included(hub: MetricsHub) -> None:
    hub.push("a", Snapshot(ratios={BUSY: 0.6}))
    hub.push("b", Snapshot())
    assert hub.total().ratios == {BUSY: 0.3}


def test_a_fact_that_two_replicas_tell_is_told_once(hub: MetricsHub) -> None:
    for replica in ("a", "b"):
        hub.push(replica, Snapshot(facts={INFO: 1}))
    assert hub.total().facts == {INFO: 1}


def test_a_replica_that_has_ended_leaves_its_counters_and_nothing_else(hub: MetricsHub) -> None:
    hub.push("a", Snapshot({SERVED: 3}, {INSIDE: 1}, {BUSY: 1}, {INFO: 1}))
    hub.end("a", Snapshot({SERVED: 4}, {INSIDE: 1}, {BUSY: 1}, {INFO: 1}))
    assert hub.total() == Snapshot({SERVED: 4})
    assert hub.exchange("b", counted(1)) == Snapshot({SERVED: 5})


def test_a_silent_replica_keeps_its_counters_and_loses_its_gauges(hub: MetricsHub, clock: Clock) -> None:
    hub.push("a", counted(3, inside=1))
    clock.now_s += SILENT_S + 1
    hub.push("b", counted(1, inside=2))
    assert hub.total() == Snapshot({SERVED: 4}, {INSIDE: 2})


def test_a_silent_replica_that_comes_back_goes_on_where_it_was(hub: MetricsHub, clock: Clock) -> None:
    hub.push("a", counted(3, inside=1))
    clock.now_s += FORGET_S - 1
    hub.push("b", counted(1, inside=2))
    hub.push("a", counted(5, inside=1))
    assert hub.total() == Snapshot({SERVED: 6}, {INSIDE: 3})


def test_a_replica_that_is_gone_for_long_leaves_only_its_counters(hub: MetricsHub, clock: Clock) -> None:
    hub.push("a", counted(3))
    clock.now_s += FORGET_S + 1
    hub.push("b", counted(1))
    assert hub.total().counters == {SERVED: 4}
    assert hub._replicas.keys() == {"b"}


def test_an_older_snapshot_that_comes_late_takes_nothing_away(hub: MetricsHub) -> None:
    hub.push("a", counted(5))
    hub.push("a", counted(4))
    assert hub.total().counters == {SERVED: 5}
    hub.push("a", counted(6))
    assert hub.total().counters == {SERVED: 6}


def test_a_hub_that_begins_anew_knows_everything_once_all_have_told(hub: MetricsHub) -> None:
    for fresh in (hub, MetricsHub()):
        fresh.push("a", counted(3))
        assert fresh.exchange("b", counted(4)).counters == {SERVED: 7}


def test_a_total_is_not_changed_by_what_comes_later(hub: MetricsHub) -> None:
    before = hub.exchange("a", counted(3))
    hub.push("a", counted(5))
    assert before.counters == {SERVED: 3}


def test_no_total_decreases_whatever_order_replicas_come_and_go_in(hub: MetricsHub) -> None:
    told = []
    for replica, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("a", 0.7), ("b", 0.9), ("c", 1.1)):
        told.append(hub.exchange(replica, counted(seconds)).counters[SERVED])
    for replica, seconds in (("b", 0.9), ("a", 0.7), ("c", 1.1)):
        hub.end(replica, counted(seconds))
        told.append(hub.total().counters[SERVED])
    assert told == sorted(told)
    assert told[-1] == pytest.approx(2.7)
