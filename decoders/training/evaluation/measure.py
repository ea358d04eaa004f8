"""What every figure of merit is: statistics of each picture, from which figures over any choice of pictures follow."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""[N], how often each picture (or clip) counts: once each for the figures themselves, drawn for a bootstrap."""

Figures = dict[str, float]
"""Values by name; NaN where nothing is there to measure, as the quality of stuff where there is none."""

ClassFigures = dict[str, dict[str, float | str]]
"""What is told of each class, by its name."""


class Measure(Protocol):
    """Statistics of pictures, added one by one; each class has an `add` for what it compares.

    Attributes:
        main: the figure that stands for the others, by which the worst pictures are found.
        larger_is_better: whether a larger `main` is better.
    """

    main: ClassVar[str]
    larger_is_better: ClassVar[bool]

    def __len__(self) -> int:
        """Pictures (or clips) that were added."""
        ...

    def figures(self, counts: Counts) -> Figures:
        """The figures over all pictures, of which the n-th counts `counts[n]` times."""
        ...

    def per_class(self) -> ClassFigures:
        """Figures of every class that occurs; empty for a measure without classes."""
        ...


class Rows:
    """Arrays of equal shape, one for each picture, that are put into one when they are first summed up."""

    def __init__(self) -> None:
        self._waiting: list[NDArray[np.float64]] = []
        self._stacked: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, row: NDArray[np.float64]) -> None:
        """Add a picture's."""
        self._waiting.append(row)
        self._stacked = None

    def total(self, counts: Counts | None = None) -> NDArray[np.float64]:
        """Their sum, in which the n-th counts `counts[n]` times (None: once)."""
        if self._stacked is None:
            self._stacked = np.stack(self._waiting)
        total: NDArray[np.float64] = np.tensordot(np.ones(len(self)) if counts is None else counts, self._stacked, 1)
        return total


def mean_of(values: NDArray[np.float64], which: NDArray[np.bool_]) -> float:
    """The mean of some of the values, or NaN if there are none."""
    return float(values[which].mean()) if which.any() else float("nan")


def quotient(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Element by element; NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)
