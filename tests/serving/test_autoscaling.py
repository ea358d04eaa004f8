"""Replicas follow the time that pictures wait, and go when the others can do the work."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from serving.autoscaling import LoadMeter, QueueTimePolicy


@dataclass
class _Context:
    current_num_replicas: int
    target_num_replicas: int
    aggregated_metrics: dict[str, dict[str, float]] | None = field(default_factory=dict)


def context(waits_s: list[float], busy: list[float], *, target: int | None = None) -> _Context:
    metrics = {name: {f"r{i}": v for i, v in enumerate(told)} for name, told in (("queue_s", waits_s), ("busy", busy))}
    return _Context(len(waits_s), len(waits_s) if target is None else target, metrics)


@pytest.mark.parametrize(
    ("waits_s", "busy", "wanted"),
    [
        ([0.3], [1.0], 1.5),  # half as long again as wanted: half as many again
        ([5.0], [1.0], 2),  # never more than twice as many at once
        ([0.1, 0.5], [1.0, 1.0], 3),  # the mean counts
        ([0.1], [1.0], 1),  # busy, but nobody waits for long
        ([0.0, 0.0, 0.0, 0.0], [0.35, 0.35, 0.35, 0.35], 2),  # two at 0.7 do the work of four at 0.35
        ([0.0, 0.0], [0.7, 0.7], 2),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 1),  # how few there may be is for Ray Serve to say
    ],
)
def test_the_number_wanted(waits_s: list[float], busy: list[float], wanted: float) -> None:
    policy = QueueTimePolicy(target_queue_s=0.2, target_busy=0.7)
    assert policy(context(waits_s, busy)) == (pytest.approx(wanted), {})


@pytest.mark.parametrize("metrics", [None, {}, {"queue_s": {}, "busy": {}}, {"queue_s": {"r0": 9.0}}])
def test_without_word_of_the_replicas_nothing_changes(metrics: dict[str, dict[str, float]] | None) -> None:
    assert QueueTimePolicy()(_Context(2, 3, metrics)) == (3, {})


@pytest.mark.parametrize("given", [{"target_queue_s": 0.0}, {"target_busy": 0.0}, {"target_busy": 1.5}])
def test_targets_that_make_no_sense_are_refused(given: dict[str, float]) -> None:
    [(name, value)] = given.items()
    with pytest.raises(ValueError, match=f"{name}={value:g}"):
        QueueTimePolicy(**given)


def test_a_meter_tells_what_happened_since_it_was_last_read() -> None:
    now_s = 100.0
    meter = LoadMeter(lambda: now_s)
    meter.count(wait_s=0.2, busy_s=1.0)
    meter.count(wait_s=0.4, busy_s=1.0)
    now_s = 104.0
    assert meter.read() == pytest.approx({"queue_s": 0.3, "busy": 0.5})
    now_s = 105.0
    assert meter.read() == {"queue_s": 0.0, "busy": 0.0}


def test_a_batch_that_began_before_the_meter_was_read_cannot_fill_more_than_the_time() -> None:
    now_s = 0.0
    meter = LoadMeter(lambda: now_s)
    now_s = 1.0
    meter.count(wait_s=0.0, busy_s=3.0)
    assert meter.read()["busy"] == 1.0
