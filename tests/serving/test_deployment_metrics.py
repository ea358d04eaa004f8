"""`GET /metrics` tells of all replicas, on one Ray node and on two, also of those that are gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics_hub import Key

pytestmark = [pytest.mark.server, pytest.mark.timeout(420)]

START_S, PATIENCE_S = 180, 60
ANSWERED: Key = ("polyhead_requests_total", (("code", "200"), ("route", "/segment")))
REJECTED: Key = ("polyhead_rejected_total", (("code", "invalid-image"), ("route", "/segment")))
PASSES: Key = ("polyhead_encoder_passes_total", ())
REPLICAS: Key = ("polyhead_replicas", ())

PROGRAM = """
import json
import sys
from serving import app
from serving.config import Settings

nodes, values = json.loads(sys.argv[1])
settings = Settings(**values)
app._set_environment(settings)
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.config import HTTPOptions, ProxyLocation

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2 / nodes, "include_dashboard": False})
for _ in range(nodes - 1):
    cluster.add_node(num_cpus=2 / nodes)
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
serve.start(
    proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=settings.host, port=settings.http_port)
)
for replicas in (2, 1):
    scaled = settings.model_copy(update={"replicas": replicas})
    serve.run(app.application(scaled), name=app.APPLICATION, route_prefix="/")
    print("ready", flush=True)
    sys.stdin.readline()
serve.shutdown()
ray.shutdown()
cluster.shutdown()
"""


@dataclass
class Deployment:
    """Two replicas, and what was sent to them.

    Attributes:
        program: that deployed them.
        url: of HTTP.
        nodes: of Ray.
        answered, rejected: pictures that came back with results, or as no picture.
        told: the last answer of `/metrics` that was of more than one replica.
    """

    program: subprocess.Popen[str]
    url: str
    nodes: int
    answered: int = 0
    rejected: int = 0
    told: dict[Key, float] = field(default_factory=dict)

    def replicas(self) -> dict[int, int]:
        """Their processes, each with the Ray node's that started it."""
        below = psutil.Process(self.program.pid).children(recursive=True)
        return {each.pid: each.ppid() for each in below if "ServeReplica:polyhead" in " ".join(command_of(each))}

    def send(self, pictures: list[bytes]) -> None:
        """Post pictures from four clients; each call takes connections of its own."""

        def post(picture: bytes) -> int:
            headers = {"Content-Type": "image/png"}
            return httpx.post(f"{self.url}/segment", content=picture, headers=headers, timeout=120).status_code

        with ThreadPoolExecutor(4) as clients:
            statuses = list(clients.map(post, pictures))
        assert set(statuses) <= {200, 400}
        self.answered += statuses.count(200)
        self.rejected += statuses.count(400)

    def scrape(self) -> dict[Key, float]:
        """All samples; none of a counter may be less than before."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).raise_for_status().text
        families = list(text_string_to_metric_families(text))
        samples = {(x.name, tuple(sorted(x.labels.items()))): x.value for family in families for x in family.samples}
        if samples[REPLICAS] > 1:  # or the replica that answers may have found no other in time, and says so
            counters = {
                x.name for family in families if family.type in ("counter", "histogram") for x in family.samples
            }
            less = {key for key, value in self.told.items() if key[0] in counters and samples.get(key, 0) < value}
            assert not less
            self.told = samples
        return samples

    def wait_for(self, what: str, condition: Callable[[dict[Key, float]], bool]) -> None:
        """Scrape until a condition holds."""
        give_up_at_s, samples = time.monotonic() + PATIENCE_S, {}
        while time.monotonic() < give_up_at_s:
            try:
                if condition(samples := self.scrape()):
                    return
            except httpx.HTTPError:
                pass  # it was on its way to a replica that is no more: no answer, or Ray's own 500
            time.sleep(0.2)
        pytest.fail(f"{what}: {samples.get(ANSWERED)} {samples.get(REJECTED)} {samples.get(REPLICAS)}")

    def wait_for_totals(self) -> None:
        """Until what the clients counted is told: a replica's figures are a second old at most."""
        expected = {ANSWERED: self.answered, REJECTED: self.rejected, PASSES: self.answered}
        self.wait_for(f"totals are not {expected}", lambda samples: expected.items() <= samples.items())


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(params=[1, 2], ids=["one node", "two nodes"])
def deployment(
    request: pytest.FixtureRequest, bundle_file: Path, tmp_path: Path, free_port: int
) -> Iterator[Deployment]:
    """Two replicas of the tiny bundle."""
    values = {"bundle": str(bundle_file), "http_port": free_port, "replicas": 2, "device": "cpu"}
    values |= {"cache_dir": str(tmp_path), "torch_threads": 1, "max_pictures_inside": 16}
    with (tmp_path / "log").open("w") as log:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([request.param, values])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            wait_for_line(program, tmp_path / "log")
            yield Deployment(program, f"http://127.0.0.1:{free_port}", request.param)
        finally:
            assert program.stdin is not None
            program.stdin.close()
            below = psutil.Process(program.pid).children(recursive=True) if program.poll() is None else []
            try:
                program.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                program.kill()
            for process in psutil.wait_procs(below, timeout=10)[1]:
                process.kill()


def wait_for_line(program: subprocess.Popen[str], log: Path) -> None:
    """Return once the program says that its replicas are ready."""
    assert program.stdout is not None
    while (line := program.stdout.readline()) != "ready\n":
        assert line, log.read_text()


def test_totals_are_what_all_clients_counted_whatever_becomes_of_the_replicas(
    deployment: Deployment, encode_picture: Callable[..., bytes]
) -> None:
    pictures = [encode_picture(60, 90, seed) for seed in range(12)]
    first = deployment.replicas()
    assert len(first) == 2
    assert len(set(first.values())) == deployment.nodes
    deployment.send([*pictures, b"no picture", b"nor this"])
    deployment.wait_for_totals()
    deployment.wait_for("two replicas", lambda samples: samples[REPLICAS] == 2)

    for process in first:  # one after the other, so that none remains that served the first pictures
        psutil.Process(process).kill()
        gone = process
        deployment.wait_for(
            "a replica in its place",
            lambda samples: len(deployment.replicas().keys() - {gone}) == 2 and samples[REPLICAS] >= 2,  # noqa: B023
        )
        deployment.wait_for_totals()
    deployment.send(pictures)
    deployment.wait_for_totals()

    assert deployment.program.stdin is not None
    deployment.program.stdin.write("\n")
    deployment.program.stdin.flush()
    wait_for_line(deployment.program, Path())
    deployment.wait_for("one replica", lambda samples: samples[REPLICAS] == 1 and len(deployment.replicas()) == 1)
    deployment.wait_for_totals()
    deployment.send(pictures[:3])
    deployment.wait_for_totals()


@pytest.fixture
def free_port() -> Any:
    """A port that nobody listens on."""
    from serving.app import _any_free_port

    return _any_free_port(set())
