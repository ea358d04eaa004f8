"""The metrics: what is counted when, and that a saved pass is one that a second head did not have to pay for."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from decoders.results import Result
from serving.engine import PassOutput, PassReport
from serving.errors import HeadFailedError
from serving.metrics import Metrics
from serving.types import Prediction, Timing


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("tiny", "dinov2_vits14", "abc123")


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """A sample's value, 0 before it was ever counted."""
    return metrics.registry.get_sample_value(name, labels) or 0.0


def served(pictures: int, heads: dict[str, int], *, encoder_s: float = 0.5) -> list[PassOutput]:
    """The outputs of as many pictures, from one run."""
    report = PassReport(pictures, encoder_s, dict.fromkeys(heads, 0.25), heads)
    return [PassOutput(report) for _ in range(pictures)]


def test_info_names_the_bundle_and_its_encoder(metrics: Metrics) -> None:
    assert value(metrics, "polyhead_info", bundle="tiny", encoder="dinov2_vits14", revision="abc123") == 1


def test_one_picture_for_two_heads_is_one_pass_and_saves_one(metrics: Metrics) -> None:
    metrics.count_batch(served(1, {"panoptic": 1, "depth": 1}))
    assert value(metrics, "polyhead_encoder_runs_total") == 1
    assert value(metrics, "polyhead_encoder_passes_total") == 1
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 1
    assert value(metrics, "polyhead_encoder_saved_seconds_total") == pytest.approx(0.5)


def test_one_picture_for_one_head_saves_nothing(metrics: Metrics) -> None:
    metrics.count_batch(served(1, {"depth": 1}))
    assert value(metrics, "polyhead_encoder_passes_total") == 1
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 0
    assert value(metrics, "polyhead_encoder_saved_seconds_total") == 0


def test_a_batch_counts_each_of_its_pictures(metrics: Metrics) -> None:
    metrics.count_batch(served(4, {"panoptic": 4, "depth": 2}, encoder_s=2.0))
    assert value(metrics, "polyhead_encoder_runs_total") == 1
    assert value(metrics, "polyhead_encoder_passes_total") == 4
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 2
    assert value(metrics, "polyhead_encoder_saved_seconds_total") == pytest.approx(2 * 2.0 / 4)
    assert value(metrics, "polyhead_encoder_busy_seconds_total") == pytest.approx(2.0)
    assert value(metrics, "polyhead_head_runs_total", head="panoptic") == 4
    assert value(metrics, "polyhead_head_runs_total", head="depth") == 2
    assert value(metrics, "polyhead_head_busy_seconds_total", head="depth") == pytest.approx(0.25)
    assert value(metrics, "polyhead_batch_size_sum") == 4
    assert value(metrics, "polyhead_batch_size_count") == 1


def test_batches_add_up(metrics: Metrics) -> None:
    metrics.count_batch(served(2, {"panoptic": 2}))
    metrics.count_batch(served(1, {"panoptic": 1, "depth": 1}))
    assert value(metrics, "polyhead_encoder_passes_total") == 3
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 1


def test_a_batch_that_never_got_through_the_encoder_is_no_pass(metrics: Metrics) -> None:
    metrics.count_batch([PassOutput(PassReport())])
    assert value(metrics, "polyhead_encoder_runs_total") == 0
    assert value(metrics, "polyhead_encoder_passes_total") == 0
    assert value(metrics, "polyhead_batch_size_count") == 0


def test_a_batch_that_was_run_again_picture_by_picture_counts_each_run_and_not_the_failed_one(
    metrics: Metrics,
) -> None:
    alone = [served(1, {"panoptic": 1, "depth": 1}), [PassOutput(PassReport())], served(1, {"depth": 1})]
    metrics.count_batch([output for outputs in alone for output in outputs])
    assert value(metrics, "polyhead_encoder_runs_total") == 2
    assert value(metrics, "polyhead_encoder_passes_total") == 2
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 1
    assert value(metrics, "polyhead_encoder_busy_seconds_total") == pytest.approx(1)
    assert value(metrics, "polyhead_head_runs_total", head="depth") == 2
    assert value(metrics, "polyhead_batch_size_count") == 2
    assert value(metrics, "polyhead_batch_size_sum") == 2


def test_the_stages_of_an_answered_picture_are_observed_in_seconds(metrics: Metrics) -> None:
    timing = Timing(decode_ms=4, encoder_ms=2000, heads_ms={"depth": 500})
    metrics.count_prediction(Prediction((8, 8), (8, 8), dict[str, Result](), {}, timing))
    assert value(metrics, "polyhead_stage_seconds_sum", stage="decode", head="") == pytest.approx(0.004)
    assert value(metrics, "polyhead_stage_seconds_sum", stage="encoder", head="") == pytest.approx(2)
    assert value(metrics, "polyhead_stage_seconds_sum", stage="head", head="depth") == pytest.approx(0.5)
    for stage in ("queue", "preprocess", "postprocess"):
        assert value(metrics, "polyhead_stage_seconds_count", stage=stage, head="") == 1


def test_a_failed_head_is_counted(metrics: Metrics) -> None:
    errors = {"depth": HeadFailedError("broken", remedy="report it")}
    metrics.count_prediction(Prediction((8, 8), (8, 8), dict[str, Result](), errors, Timing()))
    assert value(metrics, "polyhead_head_errors_total", head="depth") == 1


def test_what_is_rendered_can_be_parsed_and_every_metric_says_what_it_is(metrics: Metrics) -> None:
    metrics.count_batch(served(1, {"panoptic": 1, "depth": 1}))
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    assert all(name.startswith("polyhead_") and family.documentation for name, family in families.items())
    assert {"polyhead_encoder_passes", "polyhead_requests", "polyhead_stage_seconds"} <= families.keys()


def test_two_replicas_in_one_process_count_apart(metrics: Metrics) -> None:
    other = Metrics("other", "dinov2_vits14", "abc123")
    metrics.count_batch(served(1, {"depth": 1}))
    assert value(other, "polyhead_encoder_passes_total") == 0
