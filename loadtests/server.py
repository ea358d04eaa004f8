"""A server of our own for a benchmark, on free ports, started as a user would start it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunningServer:
    """Where it answers. `pid`: of `polyhead serve`; Ray's processes are its children."""

    url: str
    grpc_address: str
    pid: int


@contextmanager
def running_server(bundle: str, *options: str) -> Iterator[RunningServer]:
    """Start `polyhead serve` with further options, wait until it says that it is ready, and stop it as Ctrl-C does."""
    http_port, grpc_port = (str(port) for port in _free_ports(2))
    ports = ["--http-port", http_port, "--grpc-port", grpc_port]
    url = f"http://127.0.0.1:{http_port}"
    with tempfile.NamedTemporaryFile() as log:
        command = [sys.executable, "-m", "serving.cli.main", "serve", "--bundle", bundle, *ports, *options]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while "\nready" not in (told := Path(log.name).read_text()):
                if process.poll() is not None:
                    raise RuntimeError(f"the server did not get ready:\n{told}")
                time.sleep(0.2)
            yield RunningServer(url, f"127.0.0.1:{grpc_port}", process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for number in sockets:
        number.bind(("127.0.0.1", 0))
    ports = [number.getsockname()[1] for number in sockets]
    for number in sockets:
        number.close()
    return ports
