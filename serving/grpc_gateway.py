"""gRPC: the standard health service, `grpc.health.v1`. Knows nothing of Ray."""

from __future__ import annotations

from grpc_health.v1 import health_pb2

from serving.errors import UnavailableError
from serving.service import SegmentationService

SERVICER_FUNCTIONS = ["grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server"]
"""Import paths of the services whose methods `GrpcGateway` has."""


class GrpcGateway:
    """The gRPC methods of one replica.

    Attributes:
        service: set before the first call.
    """

    service: SegmentationService

    async def Check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:  # noqa: N802  # the proto names it
        """SERVING if pictures can be answered now."""
        try:
            self.service.check_ready()
        except UnavailableError:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
