"""The deployment: what is set before Ray is imported, and what one replica does without it."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2
from starlette.testclient import TestClient

from serving import app
from serving.config import Settings
from serving.errors import BundleError, StartError, UnavailableError


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An empty environment, and a temporary folder of the test's own."""
    empty: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", empty)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return empty


@pytest.fixture
def replica(bundle_file: Path, settings: Settings, tmp_path: Path) -> Iterator[app.PolyheadDeployment]:
    """One replica, built as Ray Serve builds it from plain values."""
    values = settings.model_dump(mode="json") | {"bundle": str(bundle_file), "cache_dir": str(tmp_path)}
    built = app.PolyheadDeployment(values)
    yield built
    built.service.drain()


def test_ray_is_told_to_use_its_fast_path_and_to_send_nothing_home(environment: dict[str, str]) -> None:
    app._set_environment(Settings())
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_what_the_operator_has_set_stays(environment: dict[str, str]) -> None:
    environment["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    app._set_environment(Settings())
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


def test_the_sockets_of_two_servers_lie_in_folders_that_only_their_owner_may_enter(
    environment: dict[str, str],
) -> None:
    app._set_environment(Settings())
    first = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    environment.clear()
    app._set_environment(Settings())
    second = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert first != second
    for folder in (first, second):
        assert folder.stat().st_mode & 0o077 == 0


def test_the_sockets_paths_stay_short_where_the_temporary_folder_is_deep(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 10)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    app._set_environment(Settings())
    folder = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert len(str(folder)) <= 27  # HAProxy's limit of 97 bytes less what Ray appends


def test_ray_s_proxy_keeps_off_the_ports_that_the_server_will_listen_on(environment: dict[str, str]) -> None:
    app._set_environment(Settings(http_port=8500, grpc_port=9500))
    given = [int(environment[name]) for name in app._HAPROXY_PORTS]
    assert not {8500, 9500} & set(given)
    assert len(set(given)) == len(given)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this machine that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes after the checks of `start` fails the test."""
    monkeypatch.setattr(app, "_set_environment", lambda settings: pytest.fail("it went on to start Ray"))


@pytest.fixture
def free() -> int:
    """A port that nobody listens on."""
    return app._any_free_port(set())


def test_the_ports_of_ray_s_proxy_are_its_own_where_they_are_free(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_is_free", lambda host, port: True)
    app._set_environment(Settings())
    assert {name: environment[name] for name in app._HAPROXY_PORTS} == {
        "RAY_SERVE_HAPROXY_METRICS_PORT": "9101",
        "RAY_SERVE_HAPROXY_STATS_PORT": "8404",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "8500",
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": "9500",
    }


def test_a_taken_port_of_ray_s_proxy_gives_way_to_a_free_one(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.setitem(app._HAPROXY_PORTS, "RAY_SERVE_HAPROXY_STATS_PORT", taken)
    app._set_environment(Settings())
    given = int(environment["RAY_SERVE_HAPROXY_STATS_PORT"])
    assert given != taken
    assert app._is_free("127.0.0.1", given)


def test_a_port_of_ray_s_proxy_that_the_operator_has_set_stays(environment: dict[str, str], taken: int) -> None:
    environment["RAY_SERVE_HAPROXY_STATS_PORT"] = str(taken)
    app._set_environment(Settings())
    assert environment["RAY_SERVE_HAPROXY_STATS_PORT"] == str(taken)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("name", ["http_port", "grpc_port"])
def test_a_taken_port_is_told_with_the_option_that_changes_it(name: str, taken: int, free: int) -> None:
    ports = {"http_port": free, "grpc_port": free + 1} | {name: taken}
    if len(set(ports.values())) < 2:
        pytest.skip("the system gave the same port twice")
    option = "--" + name.replace("_", "-")
    with pytest.raises(StartError, match=rf"can't listen on 127\.0\.0\.1:{taken}: .*; choose another with {option}$"):
        app.start(Settings(**ports))


@pytest.mark.usefixtures("no_ray")
def test_an_address_that_is_not_of_this_machine_is_told(free: int) -> None:
    with pytest.raises(StartError, match=rf"can't listen on 192\.0\.2\.1:{free}: "):
        app.start(Settings(host="192.0.2.1", http_port=free, grpc_port=free + 1))


@pytest.mark.usefixtures("no_ray")
def test_one_port_for_two_protocols_is_refused() -> None:
    with pytest.raises(StartError, match="can't share port 8000; choose another with --grpc-port"):
        app.start(Settings(http_port=8000, grpc_port=8000))


@pytest.mark.parametrize(
    ("settings", "resources", "words"),
    [
        (
            {"device": "cpu", "replicas": 3},
            {"CPU": 2.0},
            r"3 replica\(s\) on device 'cpu' need 3 cpus, but there are 2",
        ),
        ({"device": "cuda"}, {"CPU": 8.0}, r"1 replica\(s\) on device 'cuda' need 1 gpus, but there are 0"),
        ({"device": "cuda", "replicas": 4}, {"CPU": 8.0, "GPU": 2.0}, r"need 4 gpus, but there are 2"),
    ],
)
def test_too_few_cpus_or_gpus_are_told(settings: dict[str, Any], resources: dict[str, float], words: str) -> None:
    with pytest.raises(StartError, match=words) as refused:
        app._check_resources(Settings(**settings), resources)
    assert "choose fewer --replicas or another --device" in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "resources"),
    [
        ({"device": "cpu", "replicas": 2}, {"CPU": 2.0}),
        ({"device": "cuda", "replicas": 2}, {"CPU": 2.0, "GPU": 2.0}),
    ],
)
def test_just_enough_cpus_and_gpus_are_enough(settings: dict[str, Any], resources: dict[str, float]) -> None:
    app._check_resources(Settings(**settings), resources)


def test_a_replica_answers_http_and_grpc(replica: app.PolyheadDeployment, encode_picture: Callable[..., bytes]) -> None:
    client = TestClient(replica.__serve_build_asgi_app__())
    answer = client.post("/segment", content=encode_picture(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"].keys() == {"panoptic", "depth"}
    assert "X-Request-Id" not in answer.headers  # Ray Serve gives it
    health = asyncio.run(replica.Check(health_pb2.HealthCheckRequest()))
    assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_a_replica_that_cannot_answer_fails_its_health_check(replica: app.PolyheadDeployment) -> None:
    asyncio.run(replica.check_health())
    replica.service.drain()
    with pytest.raises(UnavailableError):
        asyncio.run(replica.check_health())


def test_without_a_host_a_replica_tells_its_own_metrics(replica: app.PolyheadDeployment) -> None:
    text = TestClient(replica.__serve_build_asgi_app__()).get("/metrics").text
    assert "polyhead_replicas 1.0" in text.splitlines()


def test_a_hub_that_does_not_answer_in_time_leaves_a_replica_its_own_figures_and_a_word_in_the_log(
    replica: app.PolyheadDeployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "_HUB_S", 0.01)
    monkeypatch.setattr(app._SharedMetrics, "_report", lambda self: None)
    shared = app._SharedMetrics(replica.service.metrics)
    replica.service.metrics.count_request("/segment", 200)
    told = asyncio.run(shared.total())
    assert told.counters["polyhead_requests_total", (("route", "/segment"), ("code", "200"))] == 1
    assert told.gauges["polyhead_replicas", ()] == 1
    assert "no metrics of the other replicas: no answer within 0.01 s" in caplog.text


def test_a_hub_that_answered_before_and_does_not_now_is_an_error_since_fewer_counts_would_pass_for_a_restart(
    replica: app.PolyheadDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_HUB_S", 0.01)
    monkeypatch.setattr(app._SharedMetrics, "_report", lambda self: None)
    shared = app._SharedMetrics(replica.service.metrics)
    shared._hub_answered = True
    with pytest.raises(UnavailableError, match=r"can't be had: no answer within 0\.01 s"):
        asyncio.run(shared.total())


def test_what_a_replica_tells_the_autoscaler_is_its_load_since_it_was_last_asked(
    replica: app.PolyheadDeployment,
) -> None:
    asyncio.run(replica.record_autoscaling_stats())
    replica.service.load.count(wait_s=0.5, busy_s=60)
    assert asyncio.run(replica.record_autoscaling_stats()) == {"queue_s": 0.5, "busy": 1.0}
    assert asyncio.run(replica.record_autoscaling_stats())["queue_s"] == 0


def test_ray_s_metrics_have_the_port_that_was_asked_for_or_else_a_known_one(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app._set_environment(Settings())
    monkeypatch.setattr(app, "_is_free", lambda host, port: True)
    assert app._ray_metrics_port(Settings()) == 8090
    assert app._ray_metrics_port(Settings(ray_metrics_port=8123)) == 8123
    assert app._ray_metrics_port(Settings(http_port=8090)) != 8090


def test_a_taken_port_of_ray_s_metrics_gives_way_to_a_free_one(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    app._set_environment(Settings())
    monkeypatch.setattr(app, "_RAY_METRICS_PORT", taken)
    given = app._ray_metrics_port(Settings())
    assert given != taken
    assert app._is_free("127.0.0.1", given)


@pytest.mark.usefixtures("no_ray")
def test_a_taken_port_that_was_asked_for_ray_s_metrics_is_told(taken: int, free: int) -> None:
    with pytest.raises(StartError, match=f"{taken}: .*; choose another with POLYHEAD_RAY_METRICS_PORT"):
        app.start(Settings(http_port=free, grpc_port=app._any_free_port({free}), ray_metrics_port=taken))


def test_a_replica_that_could_not_be_built_goes_quietly() -> None:
    values = Settings(bundle="no-such-bundle").model_dump(mode="json")
    with pytest.raises(BundleError, match="no bundle 'no-such-bundle'"):
        app.PolyheadDeployment(values)
    app.PolyheadDeployment.__new__(app.PolyheadDeployment).__del__()  # what Python does to the unfinished one


def test_json_lines_go_to_the_replicas_log_file_whose_other_lines_look_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = logging.FileHandler(tmp_path / "replica.log")
    buffered = logging.handlers.MemoryHandler(1000, target=file)
    host, root, access = (logging.getLogger(name) for name in ("ray.serve", None, "polyhead.access"))
    for logger, handlers in ((host, [buffered]), (root, [])):
        monkeypatch.setattr(logger, "handlers", handlers)
        monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(host, "propagate", False)
    monkeypatch.setattr(access, "disabled", True)
    monkeypatch.setattr(app, "_replica_fields", lambda: {"replica": "r1"})
    app._configure_logs(Settings(log_format="json"))
    logging.getLogger("polyhead.engine").info("ours")
    assert json.loads((tmp_path / "replica.log").read_text())["message"] == "ours"  # at once, not buffered
    host.info("the host's")
    buffered.flush()
    lines = [json.loads(line) for line in (tmp_path / "replica.log").read_text().splitlines()]
    assert [(line["logger"], line["message"], line["replica"]) for line in lines] == [
        ("polyhead.engine", "ours", "r1"),
        ("ray.serve", "the host's", "r1"),
    ]
    assert not access.disabled
    file.close()
