"""The Ray Serve deployment: one class that is the HTTP ingress and the gRPC servicer and holds encoder and heads.

The only module that knows Ray. `start` sets what must be set before Ray is imported, deploys, and returns; `stop` ends
what `start` began.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from serving.config import Settings
from serving.grpc_gateway import SERVICER_FUNCTIONS, GrpcGateway
from serving.http_gateway import create_app
from serving.service import create_service

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "polyhead"


class StartError(RuntimeError):
    """The deployment did not come up."""


class PolyheadDeployment(GrpcGateway):
    """One replica: loads the bundle, answers HTTP and gRPC until it is drained.

    Args:
        settings: of the server, as plain values (they travel to the replica).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        logging.basicConfig(level=logging.INFO)
        self.service = create_service(Settings(**settings))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once the replica is built; see `ray.serve.ingress`."""
        return create_app(self.service, host_gives_request_id=True)

    async def check_health(self) -> None:
        """Called by Ray Serve from time to time; a replica that raises is replaced."""
        self.service.check_ready()

    def __del__(self) -> None:
        if hasattr(self, "service"):
            self.service.drain()


def start(settings: Settings) -> None:
    """Start Ray on this machine, deploy, and wait until the replicas are ready.

    Raises:
        StartError: a port is taken, or the deployment failed.
    """
    for port, option in ((settings.http_port, "--http-port"), (settings.grpc_port, "--grpc-port")):
        _check_free(settings.host, port, option)
    _set_environment(settings)
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

    ray.init(
        address="local",  # never join a cluster that a crashed run left behind
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,  # the replicas' logs stand in files; see `log_directory`
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=settings.host, port=settings.http_port),
        grpc_options=gRPCOptions(port=settings.grpc_port, grpc_servicer_functions=SERVICER_FUNCTIONS),
    )
    try:
        serve.run(application(settings), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        status = serve.status().applications[APPLICATION]
        reason = next((d.message for d in status.deployments.values() if d.message), str(error))
        raise StartError(f"the server did not start: {reason.strip().splitlines()[-1]}") from None


def log_directory() -> Path:
    """Where the logs of the replicas, the proxy and the controller are."""
    import ray

    context = ray.get_runtime_context()
    return Path(context.get_temp_dir()) / context.get_session_name() / "logs" / "serve"


def stop() -> None:
    """Drain the replicas and end the Ray that `start` began, if it got that far."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        return
    serve.shutdown()
    ray.shutdown()


def application(settings: Settings) -> Application:
    """The deployment bound to its settings, for `serve.run` or a Serve config file."""
    import torch
    from ray import serve

    on_gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    deployment = serve.deployment(
        name="PolyheadDeployment",
        num_replicas=settings.replicas,
        max_ongoing_requests=4 * settings.max_queued_pictures,  # shedding is ours: see serving.admission
        graceful_shutdown_wait_loop_s=settings.drain_s,
        ray_actor_options={"num_gpus": 1 if on_gpu else 0},
    )(serve.ingress()(PolyheadDeployment))
    return deployment.bind(settings.model_dump(mode="json"))


def _check_free(host: str, port: int, option: str) -> None:
    """HAProxy would retry for a minute and then say little."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(f"can't listen on {host}:{port}: {error.strerror}; choose another with {option}") from None


def _set_environment(settings: Settings) -> None:
    """Ray reads these when it is imported; what the operator has set stays."""
    scratch = Path(tempfile.gettempdir()) / f"polyhead-{os.getuid()}-{settings.http_port}"
    scratch.mkdir(mode=0o700, exist_ok=True)
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
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
