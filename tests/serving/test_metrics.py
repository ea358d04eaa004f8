"""The metrics: what is counted when, and that a saved pass is one that a second head did not have to pay for."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from decoders.results import Result
from encoders.geometry import ImageGeometry
from serving.engine import PassInput, PassOutput, PassReport
from serving.errors import (
    DeadlineExceededError,
    HeadFailedError,
    InternalError,
    InvalidImageError,
    OverloadedError,
    PolyheadError,
    UnavailableError,
)
from serving.gateways.http_gateway import create_app
from serving.metrics import GRPC_ROUTES, HTTP_ROUTES, SOCKET_ROUTES, Metrics
from serving.metrics_hub import MetricsHub
from serving.protos import segmentation_pb2 as pb
from serving.types import Prediction, Timing


@pytest.fixture
def metrics() -> Metrics:
    return make_metrics()


def make_metrics(bundle: str = "tiny") -> Metrics:
    return Metrics(
        bundle=bundle,
        encoder="dinov2_vits14",
        revision="abc123",
        device=torch.device("cpu"),
        dtype="float32",
        heads=("panoptic", "depth"),
    )


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """A sample's value, 0 before it was ever counted."""
    return metrics.registry.get_sample_value(name, labels) or 0.0


def served(pictures: int, heads: dict[str, int], *, encoder_s: float = 0.5) -> list[PassOutput]:
    """The outputs of as many pictures, from one run; 0: of one whose features were there."""
    report = PassReport(pictures, encoder_s, dict.fromkeys(heads, 0.25), heads)
    return [PassOutput(report) for _ in range(pictures or 1)]


def told(metrics: Metrics, *others: Metrics) -> str:
    """What `metrics` renders of itself and of others."""
    hub = MetricsHub()
    for number, each in enumerate(others):
        hub.push(str(number), each.snapshot())
    return metrics.render(hub.exchange("own", metrics.snapshot())).decode()


def picture(input_size: tuple[int, int], scaled_size: tuple[int, int], views: int = 1, **options: Any) -> PassInput:
    """A picture's part in a pass."""
    geometry = ImageGeometry(scaled_size, scaled_size, input_size, scaled_size, **options)
    return PassInput(torch.zeros((views, 3, *input_size), dtype=torch.uint8), geometry, ("depth",))


def test_info_names_the_bundle_and_its_encoder(metrics: Metrics) -> None:
    labels = {"encoder": "dinov2_vits14", "revision": "abc123", "device": "cpu", "dtype": "float32"}
    assert value(metrics, "polyhead_info", bundle="tiny", version=version("polyhead"), **labels) == 1


def test_one_picture_for_two_heads_is_one_pass_and_saves_one(metrics: Metrics) -> None:
    metrics.count_batch([], served(1, {"panoptic": 1, "depth": 1}), 0)
    assert value(metrics, "polyhead_encoder_runs_total") == 1
    assert value(metrics, "polyhead_encoder_passes_total") == 1
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 1
    assert value(metrics, "polyhead_encoder_saved_seconds_total") == pytest.approx(0.5)


def test_one_picture_for_one_head_saves_nothing(metrics: Metrics) -> None:
    metrics.count_batch([], served(1, {"depth": 1}), 0)
    assert value(metrics, "polyhead_encoder_passes_total") == 1
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 0
    assert value(metrics, "polyhead_encoder_saved_seconds_total") == 0


def test_a_batch_counts_each_of_its_pictures(metrics: Metrics) -> None:
    metrics.count_batch([], served(4, {"panoptic": 4, "depth": 2}, encoder_s=2.0), 0)
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
    metrics.count_batch([], served(2, {"panoptic": 2}), 0)
    metrics.count_batch([], served(1, {"panoptic": 1, "depth": 1}), 0)
    assert value(metrics, "polyhead_encoder_passes_total") == 3
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 1


def test_a_batch_that_never_got_through_the_encoder_is_no_pass(metrics: Metrics) -> None:
    metrics.count_batch([], [PassOutput(PassReport())], 0)
    assert value(metrics, "polyhead_encoder_runs_total") == 0
    assert value(metrics, "polyhead_encoder_passes_total") == 0
    assert value(metrics, "polyhead_batch_size_count") == 0


def test_a_batch_that_was_run_again_picture_by_picture_counts_each_run_and_not_the_failed_one(
    metrics: Metrics,
) -> None:
    alone = [served(1, {"panoptic": 1, "depth": 1}), [PassOutput(PassReport())], served(1, {"depth": 1})]
    metrics.count_batch([], [output for outputs in alone for output in outputs], 0)
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
    assert value(metrics, "polyhead_decode_seconds_sum") == pytest.approx(0.004)
    assert value(metrics, "polyhead_encoder_seconds_sum") == pytest.approx(2)
    assert value(metrics, "polyhead_head_seconds_sum", head="depth") == pytest.approx(0.5)
    for stage in ("queue", "preprocess", "postprocess"):
        assert value(metrics, f"polyhead_{stage}_seconds_count") == 1


def test_a_failed_head_is_counted(metrics: Metrics) -> None:
    errors = {"depth": HeadFailedError("broken", remedy="report it")}
    metrics.count_prediction(Prediction((8, 8), (8, 8), dict[str, Result](), errors, Timing()))
    assert value(metrics, "polyhead_head_errors_total", head="depth") == 1


def test_what_is_rendered_can_be_parsed_and_every_metric_says_what_it_is(metrics: Metrics) -> None:
    metrics.count_batch([], served(1, {"panoptic": 1, "depth": 1}), 0)
    families = {family.name: family for family in text_string_to_metric_families(told(metrics))}
    assert all(name.startswith("polyhead_") and family.documentation for name, family in families.items())
    assert {"polyhead_encoder_passes", "polyhead_requests", "polyhead_encoder_seconds"} <= families.keys()


def test_two_replicas_in_one_process_count_apart(metrics: Metrics) -> None:
    other = make_metrics("other")
    metrics.count_batch([], served(1, {"depth": 1}), 0)
    assert value(other, "polyhead_encoder_passes_total") == 0


def test_features_that_are_read_again_save_a_pass_for_each_head_at_the_last_time_per_pass(metrics: Metrics) -> None:
    metrics.count_batch([], served(1, {"depth": 1}, encoder_s=2), 0)
    metrics.count_batch([], served(0, {"depth": 1, "panoptic": 1}), 0)
    assert value(metrics, "polyhead_encoder_passes_total") == 1
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 2
    assert value(metrics, "polyhead_encoder_saved_seconds_total") == pytest.approx(4)
    assert value(metrics, "polyhead_head_runs_total", head="depth") == 2
    assert value(metrics, "polyhead_encoder_runs_total") == value(metrics, "polyhead_batch_size_count") == 1


def test_a_pass_that_no_head_read_yet_saves_nothing_for_its_first_reader(metrics: Metrics) -> None:
    metrics.count_batch([], served(1, {}), 0)
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 0
    metrics.count_batch([], served(0, {"depth": 1}), 0)
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 0
    metrics.count_batch([], served(0, {"depth": 1}), 0)
    assert value(metrics, "polyhead_encoder_passes_saved_total") == 1


def test_the_padding_of_a_batch_is_what_its_pictures_do_not_cover(metrics: Metrics) -> None:
    windows = picture((8, 8), (8, 12), views=2, window_starts=((0, 0), (0, 4)))
    there = picture((0, 0), (6, 8))
    metrics.count_batch([picture((8, 8), (6, 8)), windows, there], [], 0.5)
    assert value(metrics, "polyhead_input_pixels_total") == 8 * 8 + 2 * 8 * 8
    assert value(metrics, "polyhead_padding_pixels_total") == 2 * 8
    assert value(metrics, "polyhead_batch_wait_seconds_sum") == 0.5


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [
        (OverloadedError, "shed", None),
        (DeadlineExceededError, "expired", None),
        (InvalidImageError, "rejected", "invalid-image"),
        (InternalError, "failed", "internal"),
        (UnavailableError, "failed", "unavailable"),
    ],
)
def test_a_request_that_ends_badly_is_counted_once_by_whose_doing_it_was(
    metrics: Metrics, kind: type[PolyheadError], name: str, code: str | None
) -> None:
    metrics.count_failure("/segment", kind("it went wrong", remedy="try again"))
    names = {f"polyhead_{each}_total" for each in ("shed", "expired", "cancelled", "rejected", "failed")}
    counted = {key: value for key, value in metrics.snapshot().counters.items() if key[0] in names}
    labels = {"route": "/segment"} | ({"code": code} if code else {})
    assert counted == {(f"polyhead_{name}_total", tuple(labels.items())): 1}


def test_series_whose_labels_are_known_are_there_before_the_first_event(metrics: Metrics) -> None:
    lines = told(metrics).splitlines()
    for series in (
        'polyhead_requests_total{code="200",route="/segment"}',
        'polyhead_requests_total{code="429",route="/segment"}',
        'polyhead_requests_total{code="499",route="/segment"}',
        'polyhead_requests_total{code="RESOURCE_EXHAUSTED",route="/polyhead.v1.SegmentationService/Segment"}',
        'polyhead_requests_total{code="101",route="/video"}',
        'polyhead_shed_total{route="/segment"}',
        'polyhead_cancelled_total{route="/video"}',
        'polyhead_rejected_total{code="invalid-image",route="/segment"}',
        'polyhead_failed_total{code="encoder-failed",route="/segment"}',
        'polyhead_head_errors_total{head="depth"}',
        'polyhead_head_seconds_count{head="depth"}',
        'polyhead_frames_total{code="ok"}',
        'polyhead_stream_evictions_total{code="idle"}',
        "polyhead_feature_cache_hits_total",
        "polyhead_gpus",
    ):
        assert f"{series} 0.0" in lines, series
    assert 'polyhead_rejected_total{code="overloaded",route="/segment"}' not in told(metrics)
    assert 'polyhead_failed_total{code="deadline-exceeded",route="/segment"}' not in told(metrics)


def test_the_routes_that_answer_pictures_exist(make_service: Callable[..., Any]) -> None:
    described = json.dumps(create_app(make_service()).openapi()["paths"])
    assert all(f'"{route}"' in described for route in HTTP_ROUTES if "{version}" not in route)
    ours = pb.DESCRIPTOR.services_by_name["SegmentationService"]
    methods = {f"/{ours.full_name}/{method.name}" for method in ours.methods}
    assert methods == {route for route in GRPC_ROUTES if "polyhead" in route}
    assert SOCKET_ROUTES == ("/video",)


def test_only_four_labels_are_used_beside_those_that_say_what_runs(metrics: Metrics) -> None:
    used = {label for each in metrics.described if each.name != "polyhead_info" for label in each.labels}
    assert used <= {"head", "route", "code", "bundle"}


def test_two_replicas_are_told_as_one(metrics: Metrics) -> None:
    other = make_metrics()
    metrics.count_request("/segment", 200, 0.1)
    other.count_request("/segment", 200, 0.2)
    other.count_request("/tasks", 200, 0.2)  # a route that the answering replica has not met
    metrics.pictures_inside.set(2)
    other.pictures_inside.set(3)
    metrics.gpu_utilization_ratio.set(0.5)
    lines = told(metrics, other).splitlines()
    assert 'polyhead_requests_total{code="200",route="/segment"} 2.0' in lines
    assert 'polyhead_requests_total{code="200",route="/tasks"} 1.0' in lines
    assert 'polyhead_request_seconds_count{route="/tasks"} 1.0' in lines
    assert 'polyhead_request_seconds_bucket{le="0.001",route="/tasks"} 0.0' in lines
    assert "polyhead_pictures_inside 5.0" in lines
    assert "polyhead_gpu_utilization_ratio 0.25" in lines
    assert "polyhead_replicas 2.0" in lines
    assert [line.rpartition(" ")[2] for line in lines if line.startswith("polyhead_info{")] == ["1.0"]


def test_the_figures_of_the_process_are_read_anew(metrics: Metrics) -> None:
    ((cpu, _),) = [item for item in metrics.snapshot().counters.items() if "cpu" in item[0][0]]
    assert cpu == ("polyhead_process_cpu_seconds_total", ())
    gauges = metrics.snapshot().gauges
    assert gauges["polyhead_process_memory_bytes", ()] > 10 * 2**20
    assert ("polyhead_gpus", ()) not in gauges


def test_what_a_snapshot_leaves_out_is_0(metrics: Metrics) -> None:
    assert all(value for value in metrics.snapshot().counters.values())
    assert not any(name.endswith("_created") for name, _ in metrics.snapshot().counters)
