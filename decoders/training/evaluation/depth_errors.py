"""The usual errors of depth maps (Eigen et al., arXiv 1406.2283; log10 as on NYU)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from decoders.training.evaluation.measure import ClassFigures, Counts, Figures, Rows

LEAST_M = 1e-3
"""Predictions are taken to be at least so far, as in the usual code: a logarithm and a ratio need it."""
_NAMES = ("AbsRel", "RMSE_m", "log10", "delta1", "delta2", "delta3")


class DepthErrors:
    """AbsRel, RMSE_m (metres), log10 and delta1 to delta3 (parts within a factor of 1.25, 1.25², 1.25³); a `Measure`.

    Each is taken over the known pixels of a picture and averaged over pictures.

    Args:
        median_scaled: first multiply a picture's prediction so that its median is the truth's: what is then measured is
            shape, not scale.
    """

    main: ClassVar[str] = "AbsRel"
    larger_is_better: ClassVar[bool] = False

    def __init__(self, *, median_scaled: bool = False) -> None:
        self._median_scaled = median_scaled
        self._errors = Rows()

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, predicted_m: NDArray[np.float32], true_m: NDArray[np.float32]) -> None:
        """Add one picture.

        Args:
            predicted_m, true_m: [H, W] metres; NaN in the truth = unknown.

        Raises:
            ValueError: nothing of the truth is known.
        """
        known = np.isfinite(true_m)
        if not known.any():
            raise ValueError("no pixel of the true depth is known")
        predicted, true = predicted_m[known].astype(np.float64), true_m[known].astype(np.float64)
        if self._median_scaled:
            predicted = predicted * (np.median(true) / np.median(predicted))
        predicted = np.maximum(predicted, LEAST_M)
        ratio = np.maximum(predicted / true, true / predicted)
        errors = (
            np.mean(np.abs(predicted - true) / true),
            np.sqrt(np.mean((predicted - true) ** 2)),
            np.mean(np.abs(np.log10(predicted / true))),
            *(np.mean(ratio < 1.25**power) for power in (1, 2, 3)),
        )
        self._errors.append(np.array(errors))

    def figures(self, counts: Counts) -> Figures:
        """As in `Measure`."""
        means = self._errors.total(counts) / counts.sum()
        return dict(zip(_NAMES, means.tolist(), strict=True))

    def per_class(self) -> ClassFigures:
        """As in `Measure`; there are no classes."""
        return {}
