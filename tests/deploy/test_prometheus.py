"""A real Prometheus scrapes a real server by the committed configuration: no panel, rule or alert asks in vain.

The server gets a load that touches everything that is counted. A second Prometheus is kept from one metric, which
shows that the check would notice.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from expressions import DEPLOY, Expression, expressions
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tiny_bundle import write_tiny_bundle

from polyhead.client import Client
from serving.protos import segmentation_pb2 as pb
from serving.protos.segmentation_pb2_grpc import SegmentationServiceStub

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]

PATIENCE_S = 120
POLYHEAD = str(Path(sys.executable).parent / "polyhead")
PNG = {"Content-Type": "image/png"}
HIDDEN = "polyhead_batch_wait_seconds"
"""The metric that the second Prometheus does not get to see."""

HAPPENED = {
    "polyhead_shed_total", "polyhead_expired_total", "polyhead_rejected_total", "polyhead_cancelled_total",
    "polyhead_encoder_passes_saved_total", "polyhead_padding_pixels_total", "polyhead_frames_dropped_total",
    "polyhead_stream_evictions_total", "polyhead_feature_cache_hits_total", "polyhead_feature_cache_misses_total",
    "polyhead_feature_cache_evictions_total", "polyhead_frame_age_seconds_count", "polyhead_render_seconds_count",
}  # fmt: skip
"""What the load must have made, each more than once or of some size."""


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition`; another process's progress can only be polled."""
    give_up_at_s = time.monotonic() + patience_s
    while time.monotonic() < give_up_at_s:
        if value := condition():
            return value
        time.sleep(0.25)
    return pytest.fail(f"{what} did not happen within {patience_s} s")


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def process(command: list[str], log: Path, environment: dict[str, str], patience_s: float) -> Iterator[None]:
    """A running program, interrupted at the end and waited for."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        running.send_signal(signal.SIGINT)
        try:
            running.wait(patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # the session that we started it in
            running.wait()


@dataclass(frozen=True)
class Server:
    """Where a server can be reached: `target` is gRPC's address."""

    url: str
    target: str
    photo: bytes
    metrics_ports: dict[str, int]

    def counted(self, name: str) -> float:
        """The sum of a metric over its labels, at the server itself."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=30).text)
        return sum(each.value for family in families for each in family.samples if each.name == name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, draw_picture: Callable[..., Image.Image]) -> Iterator[Server]:
    """A server with narrow limits: two pictures inside, a stream idle after a second, room for few features."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is absent; `make prometheus` installs it where it can")
    folder = tmp_path_factory.mktemp("server")
    http_port, grpc_port, ray_port, haproxy_port = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("POLYHEAD_", "RAY_"))}
    environment |= {
        "POLYHEAD_DEVICE": "cpu",
        "POLYHEAD_HTTP_PORT": str(http_port),
        "POLYHEAD_GRPC_PORT": str(grpc_port),
        "POLYHEAD_RAY_METRICS_PORT": str(ray_port),
        "POLYHEAD_MAX_PICTURES_INSIDE": "2",
        "POLYHEAD_STREAM_IDLE_S": "1",
        "POLYHEAD_FEATURE_CACHE_BYTES": "30000",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(haproxy_port),
    }
    ports = {"polyhead": http_port, "ray": ray_port, "haproxy": haproxy_port}
    photo = io.BytesIO()
    draw_picture(60, 90).save(photo, "PNG")
    found = Server(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", photo.getvalue(), ports)
    log = folder / "output.txt"
    bundle = write_tiny_bundle(folder)

    def ready() -> bool:
        try:
            return httpx.get(f"{found.url}/readyz", timeout=5).status_code == 200 and b"try:" in log.read_bytes()
        except httpx.TransportError:
            return False

    with process([POLYHEAD, "serve", "--bundle", str(bundle)], log, environment, 60):
        wait_until(ready, "the server's start", 120)
        yield found
    print(log.read_text())  # noqa: T201


def segment(server: Server, tasks: str, **options: Any) -> httpx.Response:
    headers = PNG | options.pop("headers", {})
    given = {"content": server.photo, "timeout": 60} | options
    return httpx.post(f"{server.url}/segment", params={"tasks": tasks}, headers=headers, **given)


def make_cancelled(server: Server) -> None:
    """Begin to send a picture, and go away."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /segment?tasks=depth HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100000\r\n\r\n" + server.photo[:100]
        )


def make_drops(server: Server) -> None:
    """Send frames faster than they can be answered, and want the latest."""
    with Client(server.target) as client:
        for _ in client.video([server.photo] * 40, ["panoptic", "depth"], drop_policy="latest", max_in_flight=1):
            pass


def make_eviction(server: Server) -> None:
    """Open a stream and send nothing, until the server ends it."""
    ended = threading.Event()

    def silence() -> Iterator[pb.VideoRequest]:
        yield pb.VideoRequest(config=pb.VideoConfig(tasks=["depth"]))
        ended.wait(60)

    with grpc.insecure_channel(server.target) as channel:
        try:
            list(SegmentationServiceStub(channel).SegmentVideo(silence(), timeout=60))
        except grpc.RpcError:
            pass
        finally:
            ended.set()


def make_features(server: Server) -> None:
    """Keep features, ask another head of them, and ask for some that never were."""
    another = server.photo + uuid.uuid4().bytes  # what follows a PNG's end is part of its digest alone
    kept = httpx.post(f"{server.url}/features", content=another, headers=PNG, timeout=60)
    if kept.status_code == 200:
        for name in (kept.json()["id"], "0" * 32):
            httpx.post(f"{server.url}/segment", params={"features": name, "tasks": "depth"}, timeout=60)


def put_load(server: Server) -> None:
    """One round of everything."""
    segment(server, "depth")
    segment(server, "panoptic,depth")
    segment(server, "depth", content=b"no picture")
    segment(server, "depth", headers={"X-Request-Timeout-S": "0.001"})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: segment(server, "panoptic,depth"), range(16)))
    make_cancelled(server)
    make_features(server)
    make_drops(server)


@pytest.fixture(scope="module")
def loaded(server: Server) -> Iterator[Server]:
    """The server under load until the tests end."""
    over = threading.Event()
    failures: list[Exception] = []

    def load() -> None:
        try:
            while not over.is_set():
                put_load(server)
        except Exception as error:  # noqa: BLE001  # told by the test's thread
            failures.append(error)

    threads = [threading.Thread(target=load), threading.Thread(target=make_eviction, args=(server,))]
    for thread in threads:
        thread.start()
    yield server
    over.set()
    for thread in threads:
        thread.join()
    assert not failures, failures


class Prometheus:
    """A running Prometheus, asked over its HTTP API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, query: str) -> list[float]:
        """The values of all series that a query gives now; those that are no numbers are left out."""
        answer = self._client.post("/api/v1/query", data={"query": query}).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        result = answer["data"]["result"]
        pairs = [result] if answer["data"]["resultType"] == "scalar" else [series["value"] for series in result]
        return [float(value) for _, value in pairs if value != "NaN"]

    def unanswered(self) -> set[Expression]:
        """Expressions that give no number, or have a selector that no series fits, though another one hides that."""
        asked = {selector: self.ask(selector) for each in expressions() for selector in each.selectors}
        return {each for each in expressions() if not self.ask(each.text) or not all(map(asked.get, each.selectors))}


@contextmanager
def prometheus(server: Server, folder: Path, **drop: Any) -> Iterator[Prometheus]:
    """One with the committed configuration, but for ports, pace, and what is added to the job of our own metrics."""
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", folder)
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        (targets,) = job["static_configs"]
        targets["targets"] = [f"127.0.0.1:{server.metrics_ports[job['job_name']]}"]
        if job["job_name"] == "polyhead":
            job |= drop
    (folder / "prometheus.yml").write_text(json.dumps(config))
    (port,) = free_ports(1)
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with process(command, folder / "output.txt", dict(os.environ), 30):
        running = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(running.is_ready, "Prometheus' start")
        yield running


def told(unanswered: set[Expression]) -> str:
    return "\n".join(sorted(f"{each.where}: {each.text}" for each in unanswered))


def test_every_expression_gives_a_series_and_one_dropped_metric_is_noticed(loaded: Server, tmp_path: Path) -> None:
    whole, kept_from = tmp_path / "whole", tmp_path / "kept_from"
    for folder in (whole, kept_from):
        folder.mkdir()
    drop = {"source_labels": ["__name__"], "regex": f"{HIDDEN}_.*", "action": "drop"}
    with prometheus(loaded, whole) as seeing, prometheus(loaded, kept_from, metric_relabel_configs=[drop]) as blind:
        wait_until(lambda: not [name for name in HAPPENED if not loaded.counted(name)], "all that is counted")
        give_up_at_s = time.monotonic() + PATIENCE_S
        while (unanswered := seeing.unanswered()) and time.monotonic() < give_up_at_s:
            time.sleep(1)  # the next scrape
        assert unanswered == set(), told(unanswered)
        missed = {each for each in expressions() if any(name.startswith(HIDDEN) for name in each.metrics)}
        assert missed
        wait_until(lambda: blind.unanswered() == missed, "that the others, and they alone, are answered")
