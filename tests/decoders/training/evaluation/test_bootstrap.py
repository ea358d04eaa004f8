"""Intervals: seeded, around the value, narrower with more pictures, and honest about what is undefined."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from decoders.training.evaluation.bootstrap import Interval, draw_counts, resample, rounded
from decoders.training.evaluation.measure import Counts, Figures


def mean_of(values: np.ndarray) -> Callable[[Counts], Figures]:
    return lambda counts: {"mean": float(np.average(values, weights=counts))}


def intervals(figures: Callable[[Counts], Figures], size: int, *, resamples: int, seed: int) -> dict[str, Interval]:
    return resample(figures, size, resamples=resamples, seed=seed).intervals()


def test_every_resample_draws_as_many_pictures_as_there_are() -> None:
    counts = draw_counts(7, 50, seed=0)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.max() > 1  # with replacement


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    figures = mean_of(np.random.default_rng(3).normal(size=40))
    first, again, other = (intervals(figures, 40, resamples=200, seed=seed)["mean"] for seed in (1, 1, 2))
    assert first == again
    assert first.value == other.value
    assert (first.low, first.high) != (other.low, other.high)


def test_an_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(5).normal(10, 2, size=400)
    found = intervals(mean_of(values), 400, resamples=2000, seed=0)["mean"]
    margin = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - margin, abs=0.02)
    assert found.high == pytest.approx(values.mean() + margin, abs=0.02)


def test_without_resamples_there_is_a_value_and_no_interval() -> None:
    found = intervals(mean_of(np.arange(3.0)), 3, resamples=0, seed=0)["mean"]
    assert found.value == 1
    assert np.isnan([found.low, found.high]).all()


def test_resamples_that_leave_a_figure_undefined_do_not_count_for_it() -> None:
    def only_the_first(counts: Counts) -> Figures:
        return {"first": 5.0 if counts[0] else float("nan")}

    found = intervals(only_the_first, 4, resamples=100, seed=0)["first"]
    assert (found.value, found.low, found.high) == (5, 5, 5)


def test_a_difference_is_paired_so_that_what_both_share_falls_out() -> None:
    rng = np.random.default_rng(7)
    hard = rng.normal(0, 10, size=100)  # pictures differ much more than heads do
    gain = rng.normal(1, 0.5, size=100)
    ours, theirs = (resample(mean_of(values), 100, resamples=500, seed=0) for values in (hard + gain, hard))
    [apart] = ours.intervals().values()
    [found] = ours.minus(theirs).intervals().values()
    assert apart.low < theirs.values["mean"] < apart.high
    assert found.value == pytest.approx(gain.mean())
    assert found.low == pytest.approx(gain.mean() - 1.96 * gain.std() / 10, abs=0.03)
    assert found.high == pytest.approx(gain.mean() + 1.96 * gain.std() / 10, abs=0.03)


def test_a_difference_has_the_figures_that_both_have() -> None:
    ours = resample(lambda counts: {"a": 3.0, "b": 1.0}, 4, resamples=5, seed=0)
    theirs = resample(lambda counts: {"a": 1.0, "c": 1.0}, 4, resamples=5, seed=0)
    assert ours.minus(theirs).intervals() == {"a": Interval(2, 2, 2)}


def test_json_has_none_for_what_is_undefined() -> None:
    assert rounded(Interval(1.23456, float("nan"), 2.0)) == {"value": 1.2346, "low": None, "high": 2.0}
