"""The Ray Serve deployment: one class that is the HTTP ingress and the gRPC servicer and holds encoder and heads.

The only module that knows Ray. `start` sets what must be set before Ray is imported, deploys, and returns; `stop` ends
what `start` began.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import io
import logging
import logging.handlers
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psutil
from fastapi import FastAPI

from serving import logs
from serving.config import Settings, read_settings
from serving.errors import StartError, UnavailableError
from serving.gateways import grpc_gateway
from serving.gateways.grpc_gateway import GrpcGateway
from serving.gateways.http_gateway import create_app
from serving.grpc_status import GrpcContext, set_status
from serving.metrics import Metrics
from serving.metrics_hub import MetricsHub, Snapshot
from serving.oip import grpc_methods
from serving.oip.grpc_methods import OipMethods
from serving.protos import segmentation_pb2 as pb
from serving.protos.segmentation_pb2_grpc import SegmentationServiceStub
from serving.service import create_service

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import ServeStatus

APPLICATION = "polyhead"

SERVICER_FUNCTIONS = [*grpc_gateway.SERVICER_FUNCTIONS, *grpc_methods.SERVICER_FUNCTIONS]
"""Import paths of all gRPC services; Ray Serve adds reflection."""

_DAY_S = 24 * 3600
_STOP_S = 20.0
"""How long a stopping replica may take to finish requests under way, after `drain_s`, before it is killed."""

_INTERRUPTED = 130
"""Exit code after Ctrl-C, by the shells' custom."""

_KILL_S = 5.0
"""How long killed processes may take to be gone."""

_DIRECT_S = 10.0
"""How long HAProxy may take to see a started replica."""

_REPORT_S = 1.0
"""How often a replica tells its figures."""

_HUB_S = 1.0
"""How long the figures of the other replicas are waited for."""

_HUB_START_S = 30.0
"""How long it may take until what keeps them runs."""

_HEAD_NODE = "node:__internal_head__"
"""The resource that only Ray's head node has."""

_LOOPBACK = ("127.0.0.1", "::1", "localhost")

_RAY_METRICS_PORT = 8090
"""Used where it is free, and no other is asked for."""

_HAPROXY_PORTS = {
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": 9500,
}
"""Ray Serve's own defaults; used where they are free."""

_cleanup = ExitStack()
atexit.register(_cleanup.close)

logger = logging.getLogger("polyhead.app")


class PolyheadDeployment(GrpcGateway, OipMethods):
    """One replica: loads the bundle, answers HTTP and gRPC until it is drained.

    Args:
        settings: of the server, as plain values (they travel to the replica).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        given = Settings(**settings)
        _configure_logs(given)
        _keep_grpc_port_apart()
        self.service = create_service(given)
        self._shared_metrics = _SharedMetrics(self.service.metrics) if _replica_fields() else None
        _call_when_stopping(self.service.streams.end_all)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once the replica is built; see `ray.serve.ingress`."""
        total = None if self._shared_metrics is None else self._shared_metrics.total
        return create_app(self.service, host_gives_request_id=True, total_metrics=total)

    def SegmentVideo(
        self, requests: AsyncIterator[pb.VideoRequest], grpc_context: GrpcContext
    ) -> AsyncGenerator[pb.VideoResponse, None]:
        """As in `GrpcGateway`; see `_hosted`."""
        return _hosted(super().SegmentVideo, requests, grpc_context)

    def ModelStreamInfer(self, requests: AsyncIterator[Any], grpc_context: GrpcContext) -> AsyncGenerator[Any, None]:
        """As in `OipMethods`; see `_hosted`."""
        return _hosted(super().ModelStreamInfer, requests, grpc_context)

    async def check_health(self) -> None:
        """Called by Ray Serve from time to time; a replica that raises is replaced."""
        self.service.check_ready()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve where replicas are scaled; what `serving.autoscaling.QueueTimePolicy` reads."""
        return self.service.load.read()

    def __del__(self) -> None:
        if hasattr(self, "service"):
            self.service.drain()
        if shared_metrics := getattr(self, "_shared_metrics", None):
            shared_metrics.end()


def _hosted(
    method: Callable[[AsyncIterator[Any], GrpcContext], AsyncGenerator[Any, None]],
    requests: AsyncIterator[Any],
    grpc_context: GrpcContext,
) -> AsyncGenerator[Any, None]:
    """A stream as Ray Serve must have it.

    HAProxy sends what comes while it knows of no replica, a quarter of a second of a redeploy, through Ray Serve's own
    proxy. A stream would stay there, without back-pressure and at a seventh of the speed, so it is asked to come again.
    """
    if not inspect.isasyncgen(getattr(requests, "_request_iterator", None)):
        return method(requests, grpc_context)  # HAProxy speaks to this replica itself
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return _told(method(requests, grpc_context), grpc_context)
    set_status(
        grpc_context,
        UnavailableError("the way to this replica is not open yet", remedy="open the stream again", retry_after_s=1),
    )
    return _told(_nothing(), grpc_context)


async def _told(stream: AsyncGenerator[Any, None], grpc_context: Any) -> AsyncGenerator[Any, None]:
    """A stream by way of Ray Serve's own proxy, which forgets a status unless an exception brings it."""
    try:
        async for response in stream:
            yield response
    finally:
        await stream.aclose()
    if grpc_context.code():
        raise RuntimeError(grpc_context.details())


async def _nothing() -> AsyncGenerator[Any, None]:
    return
    yield


class _SharedMetrics:
    """Brings a replica's figures to the hub of its application, and those of all replicas back.

    The hub is a Ray actor on the head node, where Ray Serve's controller is, and outlives the replicas. Nothing waits
    for it: whoever asks before it is there gets the figures of this replica.

    Args:
        metrics: of this replica.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._replica = uuid.uuid4().hex
        self._hub: Future[Any] = Future()
        self._hub_answered = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._report, name="metrics", daemon=True)
        self._thread.start()

    async def total(self) -> Snapshot:
        """The figures of all replicas, this one's as they are now; its own as long as the hub has never answered.

        Raises:
            UnavailableError: the hub answered before, and does not now.
        """
        import ray

        own = await asyncio.to_thread(self._metrics.snapshot)
        try:
            async with asyncio.timeout(_HUB_S):
                hub = await asyncio.shield(asyncio.wrap_future(self._hub))
                total: Snapshot = await hub.exchange.remote(self._replica, own)
        except (TimeoutError, ray.exceptions.RayError) as error:
            why = str(error) or f"no answer within {_HUB_S:g} s"
            logger.warning("no metrics of the other replicas: %s", why)
            if self._hub_answered:  # fewer counts than before would pass for a restart
                raise UnavailableError(
                    f"the figures of the other replicas can't be had: {why}", remedy="ask again", retry_after_s=1
                ) from None
            return own
        self._hub_answered = True
        return total

    def end(self) -> None:
        """Leave the last figures with the hub."""
        self._ending.set()
        self._thread.join(2 * _HUB_S)

    def _report(self) -> None:
        """Tell the hub what there is, from time to time and at the end; in a thread."""
        import ray

        healthy, wait_s = True, 0.0
        while True:
            ending, wait_s = self._ending.wait(wait_s), _REPORT_S
            told = self._metrics.snapshot()
            try:
                if not self._hub.done():
                    self._hub.set_result(_find_hub())
                hub = self._hub.result()
                call = hub.end if ending else hub.push
                ray.get(call.remote(self._replica, told), timeout=_HUB_S if ending else _HUB_START_S)
                healthy = True
            except (TimeoutError, ValueError, ray.exceptions.RayError) as error:
                if healthy:
                    logger.warning("the figures of this replica could not be told: %s", error)
                healthy = False
                if isinstance(error, ray.exceptions.ActorDiedError):
                    self._hub = Future()  # for good: another is made
            if ending:
                return


def _find_hub() -> Any:
    """The hub of this replica's application: one for all its replicas, made by the first that asks."""
    import ray

    return (
        ray.remote(MetricsHub)
        .options(
            name=f"metrics of {_replica_fields()['application']}",
            namespace="polyhead",
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            resources={_HEAD_NODE: 0.001},
            max_restarts=-1,
        )
        .remote()
    )


def _configure_logs(settings: Settings) -> None:
    """Set up this replica's log.

    Ray Serve sends what a replica writes to stderr into the replica's log file, as the messages of lines of its own. A
    JSON object would be text within one, so JSON goes to the file itself, whose other lines then look the same.
    """
    if settings.log_format == "text":
        logs.write_text()
        return
    handlers = logging.getLogger("ray.serve").handlers
    files = [handler.target for handler in handlers if isinstance(handler, logging.handlers.MemoryHandler)]
    logs.write_json(next((file for file in files if file is not None), logging.StreamHandler()), _replica_fields())


def _replica_fields() -> dict[str, str]:
    """What the lines of a replica's log say of it; nothing outside of one."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        context = serve.get_replica_context()
    except RayServeException:
        return {}
    return {"application": context.app_name, "deployment": context.deployment, "replica": context.replica_tag}


def _call_when_stopping(callback: Callable[[], None]) -> None:
    """Have `callback` called when this replica begins to stop; does nothing outside of one.

    Ray Serve tells a deployment that it stops by `__del__`, and that only when its requests have ended: a stream would
    be waited for until the replica is killed.
    """
    module = sys.modules.get("ray.serve._private.replica")
    if module is None:
        return
    try:
        stop = module.Replica.perform_graceful_shutdown
        loop = asyncio.get_running_loop()
    except (AttributeError, RuntimeError):
        logger.warning("this version of Ray Serve does not let streams know that their replica stops")
        return

    async def stop_and_tell(replica: Any) -> None:
        loop.call_soon_threadsafe(callback)
        await stop(replica)

    module.Replica.perform_graceful_shutdown = stop_and_tell


def _keep_grpc_port_apart() -> None:
    """Have this replica's gRPC server share its port with no other; does nothing outside of a replica.

    Ray Serve asks gRPC for it with the text "0", and gRPC heeds numbers alone (ray-project/ray#64623). So the replicas
    of two servers on one machine would both listen on port 40000, and each answer calls of the other's clients. Where
    the port is taken Ray Serve tries the next one.
    """
    module = sys.modules.get("ray.serve._private.grpc_util")
    if module is None:
        return
    begin = module.gRPCGenericServer.__init__

    def begin_alone(server: Any, *arguments: Any, extra_options: Any = None, **named: Any) -> None:
        alone = ("grpc.so_reuseport", 0)  # the first of two wins
        begin(server, *arguments, extra_options=[alone, *(extra_options or ())], **named)

    module.gRPCGenericServer.__init__ = begin_alone


def start(settings: Settings) -> None:
    """Start Ray on this machine, deploy, and wait until the replicas are ready.

    Raises:
        StartError: a port is taken, CPUs or GPUs are too few, or the deployment failed.
    """
    if settings.http_port == settings.grpc_port:
        raise StartError(f"HTTP and gRPC can't share port {settings.http_port}; choose another with --grpc-port")
    for port, option in ((settings.http_port, "--http-port"), (settings.grpc_port, "--grpc-port")):
        _check_free(settings.host, port, option)
    if settings.ray_metrics_port is not None:
        _check_free(settings.host, settings.ray_metrics_port, "POLYHEAD_RAY_METRICS_PORT")
    _set_environment(settings)
    if settings.host in _LOOPBACK:  # Ray's own ports then listen for this machine alone, too, as they do on macOS
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

    ray.init(
        address="local",  # never join a cluster that a crashed run left behind
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,  # the replicas' logs stand in files; see `log_directory`
        _metrics_export_port=_ray_metrics_port(settings),
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _check_resources(settings, ray.cluster_resources())
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=settings.host, port=settings.http_port),
            grpc_options=gRPCOptions(
                port=settings.grpc_port, grpc_servicer_functions=SERVICER_FUNCTIONS, enable_reflection=True
            ),
        )
        serve.run(application(settings), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise StartError(
            f"the server did not start: {_reason(serve.status(), error)}; logs: {log_directory()}"
        ) from None
    _wait_for_streams(settings)


def _wait_for_streams(settings: Settings) -> None:
    """Return once HAProxy has seen a replica alive, or after a while; it carries no streams before (see `_hosted`)."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # not bound here
    target = f"[{host}]:{settings.grpc_port}" if ":" in host else f"{host}:{settings.grpc_port}"
    give_up_at_s = time.monotonic() + _DIRECT_S
    with grpc.insecure_channel(target) as channel:
        open_stream = SegmentationServiceStub(channel).SegmentVideo
        while time.monotonic() < give_up_at_s:
            try:
                list(open_stream(iter([pb.VideoRequest(config=pb.VideoConfig())]), timeout=_DIRECT_S))
                return
            except grpc.RpcError:
                time.sleep(0.05)
    logger.warning("gRPC on %s carries no streams yet", target)


def log_directory() -> Path:
    """Where the logs of the replicas, the proxy and the controller are."""
    import ray

    context = ray.get_runtime_context()
    return Path(context.get_temp_dir()) / context.get_session_name() / "logs" / "serve"


def scraped_urls(settings: Settings) -> dict[str, str]:
    """What Prometheus may scrape of the server that `start` began: addresses by whose metrics they are.

    HAProxy's are on all of the machine's addresses, whatever `host` says; Ray's on those of its node.
    """
    import ray

    [node] = ray.nodes()
    ports = {
        "polyhead": settings.http_port,
        "HAProxy": int(os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"]),
    }
    urls = {whose: f"http://{settings.host}:{port}/metrics" for whose, port in ports.items()}
    return urls | {"Ray": f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"}


def stop() -> None:
    """Drain the replicas and end the Ray that `start` began, if it got that far.

    Requests under way are answered, and streams are told why they end. A `KeyboardInterrupt` meanwhile ends everything
    at once, this process included.
    """
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    try:
        with redirect_stdout(io.StringIO()):  # Ray tells there that the controller, which ends itself, has failed
            with suppress(TimeoutError, ray.exceptions.RayError):
                if APPLICATION in serve.status().applications:
                    serve.delete(APPLICATION)  # `shutdown` alone ends HAProxy first, and with it all that it carries
            serve.shutdown()
            ray.shutdown()
    except KeyboardInterrupt:
        _kill_all()
        _cleanup.close()
        os._exit(_INTERRUPTED)  # Ray's own threads would crash on the ordinary way out, with nobody left to talk to


def _kill_all() -> None:
    """Kill what this process has started, and all that that has started: without its raylet HAProxy would live on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third Ctrl-C must not leave some of them
    below = psutil.Process().children(recursive=True)
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(below, timeout=_KILL_S)


def application(settings: Settings) -> Application:
    """The deployment bound to its settings, for `serve.run` or a Serve config file."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    as_json = LoggingConfig(encoding="JSON", enable_access_log=False)  # the access log is ours then
    deployment = serve.deployment(
        name="PolyheadDeployment",
        logging_config=as_json if settings.log_format == "json" else None,
        num_replicas=settings.replicas,
        # Shedding is ours (`serving.admission`, `serving.streams.registry`); these are a back-stop that leaves room for
        # /healthz and /metrics. A stream is a request for as long as it lives.
        max_ongoing_requests=4 * settings.max_pictures_inside + 2 * settings.max_streams,
        max_queued_requests=4 * settings.max_pictures_inside,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_s + _STOP_S,
        ray_actor_options=_replica_resources(settings),
    )(serve.ingress()(PolyheadDeployment))
    return deployment.bind(settings.model_dump(mode="json"))


def build(args: dict[str, Any]) -> Application:
    """The application that a Serve config file names as ``serving.app:build``; see deploy/serve.yaml.

    Args:
        args: of the config file: settings by name. Those of addresses and ports are the config file's own to say.

    Raises:
        StartError: names each wrong setting.
    """
    return application(read_settings(**args))


def _check_free(host: str, port: int, option: str) -> None:
    """HAProxy would retry for a minute and then say little."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(f"can't listen on {host}:{port}: {error.strerror}; choose another with {option}") from None


def _replica_resources(settings: Settings) -> dict[str, float]:
    return {"num_cpus": 1, "num_gpus": 1 if settings.torch_device == "cuda" else 0}


def _check_resources(settings: Settings, resources: dict[str, float]) -> None:
    """Ray Serve would wait for ever for replicas that it can't place."""
    for kind, needed in _replica_resources(settings).items():
        there = int(resources.get(kind.removeprefix("num_")[:-1].upper(), 0))
        if needed * settings.replicas > there:
            raise StartError(
                f"{settings.replicas} replica(s) on device '{settings.device}' need {needed * settings.replicas:g} "
                f"{kind.removeprefix('num_')}, but there are {there}; choose fewer --replicas or another --device"
            )


def _reason(status: ServeStatus, error: RuntimeError) -> str:
    deployments = status.applications[APPLICATION].deployments if APPLICATION in status.applications else {}
    message = next((deployment.message for deployment in deployments.values() if deployment.message), str(error))
    return message.strip().splitlines()[-1]


def _set_environment(settings: Settings) -> None:
    """Ray reads these when it is imported; what the operator has set stays."""
    # Ours alone, since HAProxy's default folder is open to everybody; and short, since socket paths end at 97 bytes.
    base = tempfile.gettempdir()
    scratch = Path(tempfile.mkdtemp(prefix="ph-", dir=base if len(base) < 16 else "/tmp"))  # noqa: S108  # mkdtemp
    _cleanup.callback(shutil.rmtree, scratch, ignore_errors=True)
    defaults = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 s are too few on a busy small machine
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(settings.drain_s),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(scratch / "metrics.sock"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 makes the replica give way to everything else on the machine
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(_max_message_bytes(settings)),
        # After a change of replicas, also by a redeploy, an old HAProxy lives on for the calls that it carries; Ray's
        # 120 s would cut the streams among them. Ports of replicas that went would be kept from others as long, so
        # that what such an HAProxy still sends does not reach another application; here there is but one.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(_DAY_S),
        "RAY_SERVE_PORT_QUARANTINE_S": "150",
        # Silence on a stream, not its length; idle ones we end ourselves. The replica's side has no such limit.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(max(3600, 2 * math.ceil(settings.stream_idle_s))),
        # Calls of one connection; more of them would wait for a stream to end.
        "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": str(_calls_at_once(settings)),
        "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS": str(_calls_at_once(settings)),
    }
    # HAProxy shares a port with another HAProxy without a word, so a second server needs ports of its own.
    taken = {settings.http_port, settings.grpc_port}
    for name, preferred in _HAPROXY_PORTS.items():
        port = preferred if preferred not in taken and _is_free("127.0.0.1", preferred) else _any_free_port(taken)
        taken.add(port)
        defaults[name] = str(port)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _max_message_bytes(settings: Settings) -> int:
    """Largest gRPC message: a picture that is refused with words, not by gRPC, or the largest map of an answer."""
    return max(2 * settings.max_upload_bytes, 4 * settings.max_pixels) + 2**20


def _calls_at_once(settings: Settings) -> int:
    return max(100, settings.max_streams + settings.max_pictures_inside)


def _ray_metrics_port(settings: Settings) -> int:
    if settings.ray_metrics_port is not None:
        return settings.ray_metrics_port
    taken = {settings.http_port, settings.grpc_port, *(int(os.environ[name]) for name in _HAPROXY_PORTS)}
    if _RAY_METRICS_PORT not in taken and _is_free("", _RAY_METRICS_PORT):
        return _RAY_METRICS_PORT
    return _any_free_port(taken)


def _is_free(host: str, port: int) -> bool:
    try:
        _check_free(host, port, "")
    except StartError:
        return False
    return True


def _any_free_port(taken: set[int]) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return _any_free_port(taken) if port in taken else port
