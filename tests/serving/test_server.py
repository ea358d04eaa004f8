"""One whole server, started as a user starts it, on a tiny bundle: the contract over real sockets.

The tests run in the order of the file: those that count come first, then one compares the metrics with all that was
sent before, and the last ones replace the replica.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import websockets.sync.client
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from polyhead.client import Client, VideoAnswer
from serving.config import Settings
from serving.errors import UnsupportedTaskError
from serving.protos import segmentation_pb2 as pb
from serving.protos.segmentation_pb2_grpc import SegmentationServiceStub

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

START_S, STOP_S = 120, 90
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "polyhead-foreground"
POLYHEAD = str(Path(sys.executable).parent / "polyhead")
PNG = {"Content-Type": "image/png"}
TASKS = {"tasks": "panoptic,depth"}


@dataclass
class Server:
    """A running server, and what the tests have sent to it.

    Attributes:
        process: `polyhead serve`.
        http_port, grpc_port: on 127.0.0.1.
        log: standard output and error.
        processes: those that it started.
        passes, saved: encoder passes that the requests so far must have cost and saved.
    """

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    log: Path
    processes: list[psutil.Process] = field(default_factory=list)
    passes: int = 0
    saved: int = 0
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=120)

    @property
    def url(self) -> str:
        """Of HTTP."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def scratch(self) -> list[Path]:
        """Where the proxy's sockets and state lie; one folder while the server runs."""
        return [
            folder
            for folder in Path(tempfile.gettempdir()).glob("ph-*")
            if any(f":{self.http_port}" in config.read_text() for config in folder.rglob("haproxy.cfg"))
        ]

    @property
    def proxy_config(self) -> str:
        """HAProxy's."""
        (scratch,) = self.scratch
        (config,) = scratch.rglob("haproxy.cfg")
        return config.read_text()

    @property
    def target(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def replicas(self) -> dict[int, dict[str, str]]:
        """The processes of this server's replicas, and their environments."""
        if not Path("/proc").is_dir():
            pytest.skip("no /proc here, in which a server's processes can be found")
        (scratch,) = self.scratch
        found = {}
        for process in Path("/proc").iterdir():
            try:
                if not (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica:polyhead"):
                    continue
                pairs = (pair.partition("=") for pair in (process / "environ").read_text().split("\0"))
            except OSError:
                continue  # no process, or one that is gone
            own = {name: value for name, _, value in pairs if name.startswith("RAY_")}
            if own.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC") == str(scratch / "haproxy.cfg"):
                found[int(process.name)] = own
        return found

    def press_ctrl_c(self) -> None:
        """As in a terminal, which interrupts the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def assert_gone(self, *, exit_code: int) -> None:
        """It ends by itself, and leaves nothing: no process, no folder, no port, no mess on the terminal."""
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server did not end:\n{self.log.read_text()}")
        said = self.log.read_text()
        assert self.process.returncode == exit_code, said
        assert said.splitlines()[-1] == "stopping … (Ctrl-C again ends at once)"
        _, left = psutil.wait_procs(self.processes, timeout=10)
        assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
        assert self.scratch == []
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{self.url}/healthz", timeout=10)

    def change(self, program: str) -> subprocess.Popen[bytes]:
        """Run a program that is connected to the server's Ray and has `serve` imported."""
        ((_, own),) = self.replicas().items()
        raylet = Path(f"/proc/{own['RAY_RAYLET_PID']}/cmdline").read_text()
        (address,) = set(re.findall(r"gcs-address=([\d.]+:\d+)", raylet))
        connect = (
            "import ray; from ray import serve; "
            f"ray.init(address='{address}', logging_level='ERROR', log_to_driver=False)\n"
        )
        return subprocess.Popen([sys.executable, "-c", connect + program], env=environment() | own)

    def segment(self, content: Any, *, status: int, **options: Any) -> httpx.Response:
        """`POST /segment` that must be answered with a status; counts the passes."""
        headers = PNG | options.pop("headers", {})
        response = self.client.post("/segment", params=options.pop("params", TASKS), content=content, headers=headers)
        assert response.status_code == status, response.text
        if status == 200 and response.headers["content-type"] == "application/json":
            self.passes += response.json()["timing"]["encoder_passes"]
            self.saved += len(response.json()["results"]) - response.json()["timing"]["encoder_passes"]
        return response

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        return sum(each.value for family in families for each in family.samples if each.name == name)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now and that are nobody's default here."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def environment() -> dict[str, str]:
    """Ours without any setting of polyhead or Ray."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("POLYHEAD_", "RAY_"))}
    return ours | {"POLYHEAD_DEVICE": "cpu", "COLUMNS": "200"}


def wait_until_ready(server: Server) -> None:
    """Return when /readyz says so; fails with the server's output if it ends or takes too long."""
    give_up_at_s = time.monotonic() + START_S
    while time.monotonic() < give_up_at_s:
        if server.process.poll() is not None:
            break
        try:
            if server.client.get("/readyz", timeout=5).status_code == 200 and b"try:" in server.log.read_bytes():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)  # another process's start can only be polled
    pytest.fail(f"the server did not become ready (exit code {server.process.poll()}):\n{server.log.read_text()}")


@pytest.fixture(scope="module")
def outside_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of docs/add-a-decoder.md, installed by pip into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source") / EXAMPLE.name, tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)  # building leaves files beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def extended_bundle(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's bundle, on top of the tiny one instead of the demo."""
    folder = tmp_path_factory.mktemp("extended")
    text = (EXAMPLE / "bundle.yaml").read_text().replace("extends: demo", f"extends: {bundle_file}")
    (folder / "bundle.yaml").write_text(text.replace("[panoptic, foreground]", "[panoptic, depth]"))
    shutil.copy(EXAMPLE / "labels.yaml", folder)
    return folder / "bundle.yaml"


@contextmanager
def started(bundle: Path, folder: Path, **variables: str) -> Iterator[Server]:
    """A server that is ready; what is left of it at the end is killed.

    Args:
        bundle: that it serves.
        folder: for its output.
        variables: of its environment.
    """
    log = folder / "output.txt"
    http_port, grpc_port = free_ports(2)
    ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [POLYHEAD, "serve", "--bundle", str(bundle), *ports],
            env=environment() | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Server(process, http_port, grpc_port, log)
    try:
        wait_until_ready(running)
        running.processes = psutil.Process(process.pid).children(recursive=True)
        yield running
    finally:
        running.client.close()
        for left in running.processes:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the session that we started it in
            process.wait()


@pytest.fixture(scope="module")
def server(extended_bundle: Path, outside_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of this module; it is interrupted at the end as Ctrl-C does it, and waited for."""
    folder = tmp_path_factory.mktemp("server")
    with started(extended_bundle, folder, PYTHONPATH=str(outside_package)) as running:
        yield running
        running.press_ctrl_c()
        running.assert_gone(exit_code=0)


@pytest.fixture(autouse=True)
def _show_output(server: Server) -> Iterator[None]:
    """Print what the server said, which pytest shows with a failure, and notice at once if it has died."""
    yield
    print(server.log.read_text())  # noqa: T201
    assert server.process.poll() is None, "the server has died"


@pytest.fixture(scope="module")
def photo(encode_picture: Callable[..., bytes]) -> bytes:
    """60 high, 90 wide."""
    return encode_picture(60, 90)


def huge_png() -> bytes:
    """30,000 x 30,000 pixels in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def tiny_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_started_server_says_that_it_is_ready_and_how_to_ask_it(server: Server) -> None:
    said = server.log.read_text()
    assert re.search(rf"^ready +{server.url} ", said, re.MULTILINE)
    assert f"gRPC on {server.grpc_port}" in said
    (line,) = re.findall(r"^try: +(curl .*)$", said, re.MULTILINE)
    assert f"'{server.url}/segment?tasks=panoptic,depth'" in line
    assert "Traceback" not in said


def test_two_tasks_are_answered_from_one_encoder_pass(server: Server, photo: bytes) -> None:
    answer = server.segment(photo, status=200).json()
    assert answer["results"].keys() == {"panoptic", "depth"}
    assert answer["errors"] == {}
    assert answer["timing"]["encoder_passes"] == 1
    assert answer["image"] == {"height": 60, "width": 90}


def test_a_head_of_an_outside_package_is_served_beside_the_built_in_ones_on_one_pass(
    server: Server, photo: bytes
) -> None:
    answer = server.segment(photo, status=200, params={"tasks": "panoptic,foreground"}).json()
    assert answer["errors"] == {}
    assert answer["timing"]["encoder_passes"] == 1
    assert {segment["label"] for segment in answer["results"]["foreground"]["segments"]} == {"background", "foreground"}
    assert sum(segment["area"] for segment in answer["results"]["foreground"]["segments"]) == 60 * 90
    [task] = [task for task in server.client.get("/tasks").json()["tasks"] if task["name"] == "foreground"]
    assert task["kind"] == "semantic"
    assert [label["name"] for label in task["labels"]] == ["background", "foreground"]


def test_the_command_that_the_server_prints_works(server: Server, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    (line,) = re.findall(r"^try: +(curl .*)$", server.log.read_text(), re.MULTILINE)
    line = line.replace("PHOTO.jpg", str(tmp_path / "photo.png")).replace("curl ", "curl --silent --fail ", 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=120)
    answer = json.loads(done.stdout)
    assert answer["results"].keys() == {"panoptic", "depth"}
    server.passes += 1
    server.saved += 1


def test_the_form_field_image_is_answered_too(server: Server, photo: bytes) -> None:
    response = server.client.post("/segment", params={"tasks": "depth"}, files={"image": ("photo.png", photo)})
    assert response.status_code == 200, response.text
    server.passes += 1


def test_ids_are_given_back_exactly_once(server: Server, photo: bytes) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = server.segment(photo, status=200, headers={"X-Request-Id": "mine-1", "traceparent": trace})
    assert response.headers.get_list("X-Request-Id") == ["mine-1"]
    assert response.headers.get_list("traceparent") == [trace]
    assert response.json()["request_id"] == "mine-1"
    assert "encoder;dur=" in response.headers["Server-Timing"]


def test_an_id_is_given_to_who_sends_none(server: Server, photo: bytes) -> None:
    response = server.segment(photo, status=200)
    (given,) = response.headers.get_list("X-Request-Id")
    assert response.json()["request_id"] == given


def test_a_row_of_bad_requests_is_refused_and_the_server_lives_on(server: Server, photo: bytes) -> None:
    pid = server.process.pid
    bad: list[tuple[Any, int, dict[str, Any]]] = [
        (b"", 400, {}),
        (b"no picture at all", 400, {}),
        (photo[: len(photo) // 2], 400, {}),
        (tiny_png(1, 1), 422, {}),
        (tiny_png(1, 20_000), 422, {}),
        (huge_png(), 413, {}),
        (photo, 404, {"params": {"tasks": "panoptc"}}),
        (photo, 400, {"params": {"format": "gif"}}),
        (photo, 400, {"params": TASKS | {"format": "png"}}),
        (photo, 400, {"params": [("tasks", "panoptic"), ("tasks", "depth")]}),
        (photo, 415, {"headers": {"Content-Type": "application/x-www-form-urlencoded"}}),
        (photo, 400, {"headers": {"X-Request-Timeout-S": "-1"}}),
    ]
    for content, status, options in bad:
        response = server.segment(content, status=status, **options)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status
        assert response.json()["remedy"]
    assert server.process.pid == pid and server.process.poll() is None
    server.segment(photo, status=200)


def test_a_body_of_100_mb_is_refused(server: Server, photo: bytes) -> None:
    response = server.segment(bytes(100_000_000), status=413)
    assert response.json()["title"] == "Image too large"
    server.segment(photo, status=200)


def test_a_streamed_body_of_100_mb_is_refused(server: Server, photo: bytes) -> None:
    response = server.segment((bytes(1_000_000) for _ in range(100)), status=413)
    assert response.json()["title"] == "Image too large"
    server.segment(photo, status=200)


def test_health_is_told_over_http_and_grpc(server: Server) -> None:
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").json() == {"status": "ready"}
    assert server.client.head("/healthz").status_code == server.client.head("/readyz").status_code == 200
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        response = check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_a_picture_is_answered_over_grpc_as_over_http(server: Server, photo: bytes) -> None:
    over_http = server.segment(photo, status=200).json()
    with Client(server.target) as client:
        answer = client.segment(photo, ["panoptic", "depth"])
    server.passes += 1
    server.saved += 1
    assert (answer.bundle, answer.image_size, answer.errors) == ("with-foreground", (60, 90), {})
    assert answer.timing.encoder_passes == 1
    panoptic: Any = answer.results["panoptic"]
    told = over_http["results"]["panoptic"]["segments"]
    assert [(x.segment_id, x.label, x.area) for x in panoptic.segments] == [
        (x["segment_id"], x["label"], x["area"]) for x in told
    ]


def test_a_failure_keeps_its_words_and_its_request_s_id_through_the_proxy(server: Server, photo: bytes) -> None:
    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            SegmentationServiceStub(channel).Segment(
                pb.SegmentRequest(image=photo, tasks=["panoptc"]), metadata=(("request_id", "mine-7"),), timeout=60
            )
        call: Any = failed.value
    assert call.code() is grpc.StatusCode.NOT_FOUND
    trailers = list(call.trailing_metadata())
    assert [value for name, value in trailers if name == "request_id"] == ["mine-7"]
    assert ("reason", "unsupported-task") in trailers
    with Client(server.target) as client, pytest.raises(UnsupportedTaskError, match="no head for 'panoptc'"):
        client.segment(photo, ["panoptc"])
    with Client(server.target) as client, pytest.raises(UnsupportedTaskError, match="no head for 'panoptc'"):
        list(client.video([photo], ["panoptc"]))


def test_a_video_is_answered_frame_by_frame(server: Server, photo: bytes, encode_picture: Callable[..., bytes]) -> None:
    frames = [encode_picture(60, 90, seed) for seed in range(9)]
    with Client(server.target) as client:
        answers = list(client.video([*frames[:5], b"garbage", *frames[5:]], ["panoptic", "depth"]))
    server.passes += 9
    server.saved += 9
    assert [answer.frame_id for answer in answers] == list(range(10))
    assert [answer.frame_id for answer in answers if answer.error] == [5]
    assert not any(answer.state_lost or answer.dropped_since_last for answer in answers)
    assert all(answer.results.keys() == {"panoptic", "depth"} for answer in answers if not answer.error)


def test_a_frame_of_50_mb_is_refused_and_the_stream_goes_on(server: Server, photo: bytes) -> None:
    with Client(server.target) as client:
        large, good = client.video([bytes(50_000_000), photo], ["depth"])
    server.passes += 1
    assert large.error is not None
    assert large.error.status == 413
    assert good.results.keys() == {"depth"}


def test_reflection_tells_every_grpc_service(server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="polyhead.v1.SegmentationService"),
        ]
        services, file = ask(iter(asked), timeout=60)
    assert {service.name for service in services.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "polyhead.v1.SegmentationService",
    }
    assert b"SegmentVideo" in file.file_descriptor_response.file_descriptor_proto[0]


def test_the_proxy_lets_streams_live(server: Server) -> None:
    """Its defaults cut every stream two minutes after any change of replicas; see `serving.app`."""
    config = server.proxy_config
    assert re.findall(r"^ *hard-stop-after (.*?) *$", config, re.MULTILINE) == ["86400s"]
    limits = dict(re.findall(r"^ *timeout (\S+) +(\S+)", config, re.MULTILINE))
    assert limits == {"connect": "5s", "client": "3600s", "http-keep-alive": "90s"}  # of silence; none on the replica
    for side in ("fe", "be"):
        (calls,) = re.findall(rf"tune\.h2\.{side}\.max-concurrent-streams (\d+)", config)
        assert int(calls) >= Settings().max_streams + Settings().max_pictures_inside


def test_ray_serve_s_own_proxy_sends_streams_away_with_a_word(server: Server, photo: bytes) -> None:
    (port,) = set(re.findall(r"server \S+ \S+:(\d+) proto h2 check backup", server.proxy_config))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = SegmentationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            list(stub.SegmentVideo(iter([pb.VideoRequest(config=pb.VideoConfig())]), timeout=60))
        call: Any = failed.value
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "open the stream again" in call.details()
        assert stub.Segment(pb.SegmentRequest(image=photo, tasks=["depth"]), timeout=60).results
    server.passes += 1


def test_the_pages_are_served(server: Server) -> None:
    for path in ("/", "/docs", "/openapi.json", "/tasks"):
        assert server.client.get(path).status_code == 200, path
    assert server.client.get("/tasks").json()["bundle"] == "with-foreground"


def test_the_command_line_writes_what_the_server_answers(server: Server, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    where = ["--url", server.url, "--out", str(tmp_path / "out")]
    command = [POLYHEAD, "segment", str(tmp_path / "photo.png"), "--tasks", "panoptic,depth", *where]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result.json", "panoptic.png", "panoptic_overlay.png", "depth.png", "depth_overlay.png",
    }  # fmt: skip
    assert Image.open(tmp_path / "out" / "depth.png").size == (90, 60)
    assert "1 encoder pass" in done.stdout
    server.passes += 1
    server.saved += 1


def test_a_second_server_on_the_same_port_is_refused_in_one_line(server: Server, bundle_file: Path) -> None:
    (free,) = free_ports(1)
    command = [
        POLYHEAD,
        "serve",
        "--bundle",
        str(bundle_file),
        "--http-port",
        str(server.http_port),
        "--grpc-port",
        str(free),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=START_S)
    assert done.returncode == 1
    starting, *said = done.stderr.splitlines()
    assert starting.startswith("starting 1 replica(s) of bundle ")
    assert len(said) == 1
    assert said[0].startswith(f"error can't listen on 127.0.0.1:{server.http_port}: ")
    assert said[0].endswith("choose another with --http-port")
    assert server.client.get("/readyz").status_code == 200


def test_metrics_tell_exactly_what_was_sent(server: Server, photo: bytes) -> None:
    before = (server.passes, server.saved)
    server.segment(photo, status=200)
    assert (server.passes, server.saved) == (before[0] + 1, before[1] + 1)
    give_up_at_s = time.monotonic() + 10  # a batch is counted after it was answered
    while server.metric("polyhead_encoder_passes_total") < server.passes and time.monotonic() < give_up_at_s:
        time.sleep(0.05)
    assert server.metric("polyhead_encoder_passes_total") == server.passes
    assert server.metric("polyhead_encoder_passes_saved_total") == server.saved
    assert server.metric("polyhead_pictures_inside") == 0
    assert server.metric("polyhead_head_errors_total") == 0


def test_what_prometheus_may_scrape_is_told_at_start_and_answers(server: Server) -> None:
    told = dict(
        re.findall(r"^scrape (http://127\.0\.0\.1:\d+/metrics)  \((\w+)\)$", server.log.read_text(), re.MULTILINE)
    )
    prefixes = {"polyhead": "polyhead_", "HAProxy": "haproxy_", "Ray": "ray_"}
    assert sorted(told.values()) == sorted(prefixes)
    for address, whose in told.items():
        text = httpx.get(address, timeout=30).raise_for_status().text
        assert f"\n{prefixes[whose]}" in text, address


def test_the_server_s_scratch_folder_is_closed_to_others(server: Server) -> None:
    (scratch,) = server.scratch
    assert scratch.stat().st_mode & 0o077 == 0
    assert any(path.is_socket() for path in scratch.rglob("*"))


class Watched:
    """A video that is played to a server while something happens to it, from a thread."""

    def __init__(self, server: Server, frame: bytes) -> None:
        self.answers: list[VideoAnswer] = []
        self._stop = threading.Event()
        self._some = threading.Event()
        self._frame = frame
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._play, args=(server.target,), daemon=True)
        self._thread.start()
        assert self._some.wait(60), self._failure

    def _frames(self) -> Iterator[bytes]:
        while not self._stop.wait(0.05):
            yield self._frame

    def _play(self, target: str) -> None:
        try:
            with Client(target) as client:
                for answer in client.video(self._frames(), ["depth"]):
                    self.answers.append(answer)
                    if len(self.answers) == 10:
                        self._some.set()
        except Exception as error:  # noqa: BLE001  # told by the test's thread
            self._failure = error

    def assert_goes_on(self, *, times_lost: int) -> None:
        """The stream began anew so many times, with an answer to every frame, each once and in its order."""
        before, give_up_at_s = len(self.answers), time.monotonic() + 90
        while len(self.answers) < before + 20 and self._failure is None and time.monotonic() < give_up_at_s:
            time.sleep(0.1)
        self._stop.set()
        self._thread.join(60)
        assert self._failure is None
        assert len(self.answers) >= before + 20
        assert [answer.frame_id for answer in self.answers] == list(range(len(self.answers)))
        assert len([answer for answer in self.answers if answer.state_lost]) == times_lost
        assert not any(answer.error or answer.dropped_since_last for answer in self.answers)


@contextmanager
def raw_stream(server: Server, frame: bytes) -> Iterator[Any]:
    """A call of SegmentVideo on which a frame comes every tenth of a second and the first is answered."""
    left = threading.Event()

    def frames() -> Iterator[pb.VideoRequest]:
        yield pb.VideoRequest(config=pb.VideoConfig(tasks=["depth"]))
        while True:
            yield pb.VideoRequest(frame=pb.VideoFrame(data=frame))
            if left.wait(0.1):
                return

    with grpc.insecure_channel(server.target) as channel:
        call = SegmentationServiceStub(channel).SegmentVideo(frames(), timeout=120)
        next(call)
        try:
            yield call
        finally:
            left.set()
            call.cancel()


def assert_ends_since_the_replica_stops(call: Any) -> None:
    """A stream's call says that its replica stops, and that another stream may be opened."""
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    status: Any = ended.value
    assert status.code() is grpc.StatusCode.UNAVAILABLE, status
    assert "this replica is stopping" in status.details()
    assert ("reason", "unavailable") in status.trailing_metadata()


OTHER_APPLICATION = """
@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    def __call__(self):
        return "here"

serve.run(Other.bind(), name="other", route_prefix="/other")
serve.delete("other")
"""


def test_a_stream_lives_through_reloads_of_the_proxy(server: Server, photo: bytes) -> None:
    (scratch,) = server.scratch
    (config,) = scratch.rglob("haproxy.cfg")
    written_ns = config.stat().st_mtime_ns
    (replica,) = server.replicas()
    video = Watched(server, photo)
    assert server.change(OTHER_APPLICATION).wait(120) == 0
    assert config.stat().st_mtime_ns > written_ns  # HAProxy was started anew, and the old one carries the stream
    video.assert_goes_on(times_lost=0)
    assert list(server.replicas()) == [replica]


def test_a_redeploy_ends_streams_with_a_word_and_clients_go_on(
    server: Server, photo: bytes, extended_bundle: Path
) -> None:
    video = Watched(server, photo)
    with raw_stream(server, photo) as call:
        redeploy = server.change(
            "from serving import app; from serving.config import Settings; "
            f"settings = Settings(bundle={str(extended_bundle)!r}, max_pictures_inside=63); "
            "serve.run(app.application(settings), name=app.APPLICATION, route_prefix='/')"
        )
        assert_ends_since_the_replica_stops(call)
    assert redeploy.wait(120) == 0
    video.assert_goes_on(times_lost=1)


def test_a_killed_replica_is_survived_by_the_client_s_videos(server: Server, photo: bytes) -> None:
    video = Watched(server, photo)
    (process,) = server.replicas()
    os.kill(process, signal.SIGKILL)
    video.assert_goes_on(times_lost=1)
    assert process not in server.replicas()


@pytest.fixture(scope="module")
def neighbour(server: Server, bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second server on this machine, with another bundle; the last test that uses it stops it."""
    with started(bundle_file, tmp_path_factory.mktemp("neighbour")) as running:
        yield running


def test_two_servers_on_one_machine_answer_their_own_clients_only(
    server: Server, neighbour: Server, photo: bytes
) -> None:
    for _ in range(8):  # each over a connection of its own, among which the system would share a common port
        answered = []
        for each in (server, neighbour):
            with Client(each.target) as client:
                answered.append(client.segment(photo, ["depth"]).bundle)
        assert answered == ["with-foreground", "tiny"]


def test_ctrl_c_ends_streams_with_a_word_and_leaves_nothing_behind(neighbour: Server, photo: bytes) -> None:
    address = f"ws://127.0.0.1:{neighbour.http_port}/video"
    with raw_stream(neighbour, photo) as call, websockets.sync.client.connect(address) as socket_:
        socket_.send(json.dumps({"tasks": ["depth"]}))
        assert "started" in json.loads(socket_.recv(60))
        neighbour.press_ctrl_c()
        assert_ends_since_the_replica_stops(call)
        told = json.loads(socket_.recv(60))
        assert told["problem"]["detail"] == "this replica is stopping"
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            socket_.recv(60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
    neighbour.assert_gone(exit_code=0)


def test_a_second_ctrl_c_ends_the_server_at_once(
    server: Server, bundle_file: Path, photo: bytes, tmp_path: Path
) -> None:
    with started(bundle_file, tmp_path) as running, raw_stream(running, photo) as call:
        running.process.terminate()
        assert_ends_since_the_replica_stops(call)  # so it is stopping, and waits for its replica
        assert running.process.poll() is None
        running.press_ctrl_c()
        running.assert_gone(exit_code=130)
