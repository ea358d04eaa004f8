"""gRPC health: what the standard service says of this replica."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable

from grpc_health.v1 import health_pb2

from serving.grpc_gateway import SERVICER_FUNCTIONS, GrpcGateway
from serving.service import SegmentationService


def status_of(service: SegmentationService) -> int:
    gateway = GrpcGateway()
    gateway.service = service
    response = asyncio.run(gateway.Check(health_pb2.HealthCheckRequest()))
    status: int = response.status
    return status


def test_a_ready_service_is_serving(make_service: Callable[..., SegmentationService]) -> None:
    assert status_of(make_service()) == health_pb2.HealthCheckResponse.SERVING


def test_a_draining_service_is_not_serving(make_service: Callable[..., SegmentationService]) -> None:
    service = make_service()
    service.drain()
    assert status_of(service) == health_pb2.HealthCheckResponse.NOT_SERVING


def test_every_servicer_function_can_be_imported() -> None:
    for path in SERVICER_FUNCTIONS:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
