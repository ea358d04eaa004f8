"""Errors of depth maps on cases whose value is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from decoders.training.evaluation.depth_errors import DepthErrors

ONE = np.ones(1, dtype=np.int64)
TRUE = np.array([[1.0, 2.0, 4.0, np.nan]], dtype=np.float32)


def test_a_perfect_prediction_has_no_error() -> None:
    measure = DepthErrors()
    measure.add(np.nan_to_num(TRUE, nan=7), TRUE)
    assert measure.figures(ONE) == {"AbsRel": 0, "RMSE_m": 0, "log10": 0, "delta1": 1, "delta2": 1, "delta3": 1}


def test_a_known_case() -> None:
    measure = DepthErrors()
    measure.add(np.array([[1.2, 1.0, 6.0, 9.0]], dtype=np.float32), TRUE)
    figures = measure.figures(ONE)
    assert figures["AbsRel"] == pytest.approx((0.2 + 0.5 + 0.5) / 3)
    assert figures["RMSE_m"] == pytest.approx(((0.04 + 1 + 4) / 3) ** 0.5)
    assert figures["log10"] == pytest.approx((np.log10(1.2) + np.log10(2) + np.log10(1.5)) / 3, rel=1e-6)
    assert [figures[f"delta{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])  # ratios 1.2, 2, 1.5


def test_median_scaling_forgives_scale_and_nothing_else() -> None:
    measure = DepthErrors(median_scaled=True)
    measure.add(3 * np.nan_to_num(TRUE, nan=7), TRUE)
    assert measure.figures(ONE)["AbsRel"] == pytest.approx(0, abs=1e-6)
    measure.add(np.array([[1.0, 2.0, 2.0, 9.0]], dtype=np.float32), TRUE)
    assert measure.figures(np.array([0, 1]))["AbsRel"] == pytest.approx(0.5 / 3)


def test_figures_are_means_over_pictures_weighed_by_how_often_they_count() -> None:
    measure = DepthErrors()
    for factor in (1, 2):
        measure.add(factor * np.nan_to_num(TRUE, nan=7), TRUE)
    assert measure.figures(np.array([1, 1]))["AbsRel"] == pytest.approx(0.5)
    assert measure.figures(np.array([1, 3]))["AbsRel"] == pytest.approx(0.75)


def test_a_prediction_of_nought_is_an_error_that_can_be_measured() -> None:
    measure = DepthErrors()
    measure.add(np.zeros((1, 4), np.float32), TRUE)
    assert np.isfinite(list(measure.figures(ONE).values())).all()


def test_a_truth_that_is_unknown_everywhere_is_refused() -> None:
    with pytest.raises(ValueError, match="no pixel"):
        DepthErrors().add(np.ones((1, 4), np.float32), np.full((1, 4), np.nan, np.float32))
