"""The deployment: what is set before Ray is imported, and what one replica does without it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from starlette.testclient import TestClient

from serving import app
from serving.config import Settings
from serving.errors import BundleError, UnavailableError


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
    environment: dict[str, str], tmp_path: Path
) -> None:
    app._set_environment(Settings(http_port=8001))
    first = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    environment.clear()
    app._set_environment(Settings(http_port=8002))
    second = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert first != second
    for folder in (first, second):
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0


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


def test_a_replica_that_could_not_be_built_goes_quietly() -> None:
    values = Settings(bundle="no-such-bundle").model_dump(mode="json")
    with pytest.raises(BundleError, match="no bundle 'no-such-bundle'"):
        app.PolyheadDeployment(values)
    app.PolyheadDeployment.__new__(app.PolyheadDeployment).__del__()  # what Python does to the unfinished one
