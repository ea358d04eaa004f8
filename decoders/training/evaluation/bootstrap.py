"""Confidence intervals by bootstrap over pictures: how far figures vary with the pictures that happened to be taken."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoders.training.evaluation.measure import Counts, Figures

COVERAGE = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its percentile interval (Efron 1979); the ends are NaN without resamples."""

    value: float
    low: float
    high: float


def draw_counts(size: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """[resamples, size]: in each row, how often every one of `size` pictures was drawn in `size` draws."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.int64)


@dataclass(frozen=True)
class Resampled:
    """Figures over some pictures, and over each resample of them.

    Attributes:
        values: of the pictures, each once.
        drawn: of the resamples, in the order of the draws.
    """

    values: Figures
    drawn: Sequence[Figures]

    def intervals(self) -> dict[str, Interval]:
        """Every figure with its interval.

        A resample that leaves a figure undefined (no picture with stuff was drawn) does not count for it.
        """
        return {
            name: Interval(value, *_ends([each[name] for each in self.drawn])) for name, value in self.values.items()
        }

    def minus(self, other: Resampled) -> Resampled:
        """The paired difference, figure by figure: each resample's own, so that what both share falls out.

        Args:
            other: of the same pictures, drawn alike.
        """
        drawn = [_difference(ours, theirs) for ours, theirs in zip(self.drawn, other.drawn, strict=True)]
        return Resampled(_difference(self.values, other.values), drawn)


def resample(figures: Callable[[Counts], Figures], size: int, *, resamples: int, seed: int) -> Resampled:
    """Every figure over `size` pictures and over draws of them.

    Pictures of one call with the same size and seed are drawn alike, so what two heads got on the same pictures may be
    compared resample by resample.

    Args:
        figures: of `Measure`, or several measures together.
        size: pictures.
        resamples: 0 for none.
        seed: of the draws.
    """
    drawn = [figures(counts) for counts in draw_counts(size, resamples, seed)]
    return Resampled(figures(np.ones(size, dtype=np.int64)), drawn)


def rounded(interval: Interval, digits: int = 4) -> Mapping[str, float | None]:
    """For JSON: value, low and high, None for what is undefined."""
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: round(end, digits) if np.isfinite(end) else None for name, end in ends.items()}


def _difference(ours: Figures, theirs: Figures) -> Figures:
    return {name: value - theirs[name] for name, value in ours.items() if name in theirs}


def _ends(values: list[float]) -> tuple[float, float]:
    tail = 50 * (1 - COVERAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all undefined: NaN is the answer
        low, high = np.nanpercentile(values, (tail, 100 - tail)) if values else (np.nan, np.nan)
    return float(low), float(high)
