"""Every failure that a caller can meet, and what it is called over HTTP and gRPC: the one table.

parse ──▶ admission ──▶ decode ──▶ queue ──▶ encoder ──▶ heads ──▶ render
400 404   429 503       400 413    503 504   500         per task
409 415                 422                              (`errors` of the answer)
"""

from __future__ import annotations

from typing import Any, ClassVar


class PolyheadError(Exception):
    """A failure with a name for the caller: what happened to which value, and what to do about it.

    Attributes:
        status: HTTP status.
        grpc_status: name of the gRPC status code.
        title: the kind of failure, the same for every occurrence.
        detail: this occurrence; names the value.
        remedy: what the caller can do.
        retry_after_s: when another try is worth while, where that is known.
    """

    status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, remedy: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """The kind as a label value and the last part of the problem's type, e.g. ``invalid-image``."""
        name = type(self).__name__.removesuffix("Error")
        return "".join("-" + c.lower() if c.isupper() else c for c in name).lstrip("-")

    def problem(self) -> dict[str, Any]:
        """This failure as an RFC 9457 problem object."""
        return {
            "type": f"urn:polyhead:problem:{self.reason}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "remedy": self.remedy,
        }


class InvalidImageError(PolyheadError):
    """The bytes are no picture that can be read."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"
    title = "Not a readable image"


class InvalidOptionError(PolyheadError):
    """A query parameter or option has a value that it can't have."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"
    title = "Invalid option"


class UnsupportedTaskError(PolyheadError):
    """A task was asked that no loaded head does."""

    status = 404
    grpc_status = "NOT_FOUND"
    title = "Unknown task"


class UnknownFeaturesError(PolyheadError):
    """Kept features were named that are not, or no longer, in this replica."""

    status = 404
    grpc_status = "NOT_FOUND"
    title = "Unknown features"


class FeatureCacheOffError(PolyheadError):
    """Features were to be kept or read by a server that keeps none."""

    status = 404
    grpc_status = "NOT_FOUND"
    title = "Feature cache off"


class MissingBlocksError(PolyheadError):
    """A head was asked to run on kept features that lack encoder blocks which it reads."""

    status = 409
    grpc_status = "FAILED_PRECONDITION"
    title = "Missing encoder blocks"


class TooLargeError(PolyheadError):
    """More bytes or pixels than the server takes."""

    status = 413
    grpc_status = "RESOURCE_EXHAUSTED"
    title = "Image too large"


class UnsupportedMediaTypeError(PolyheadError):
    """The body is declared as something that is not a picture."""

    status = 415
    grpc_status = "INVALID_ARGUMENT"
    title = "Unsupported media type"


class UnusableImageError(PolyheadError):
    """A picture that reads well but can't be used: too small or too thin."""

    status = 422
    grpc_status = "INVALID_ARGUMENT"
    title = "Unusable image"


class OverloadedError(PolyheadError):
    """Shed: the queue is too long to serve this in time."""

    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    title = "Overloaded"


class UnavailableError(PolyheadError):
    """Not ready yet, or draining."""

    status = 503
    grpc_status = "UNAVAILABLE"
    title = "Unavailable"


class DeadlineExceededError(PolyheadError):
    """The caller's deadline passed before there was an answer."""

    status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    title = "Deadline exceeded"


class StreamEvictedError(PolyheadError):
    """A stream that the server ended: idle, not read, or one too many for the memory set aside."""

    status = 409
    grpc_status = "ABORTED"
    title = "Stream ended by the server"


class HeadFailedError(PolyheadError):
    """One head failed on this picture; the other tasks are not affected."""

    title = "Head failed"


class EncoderFailedError(PolyheadError):
    """The encoder failed on this picture."""

    title = "Encoder failed"


class InternalError(PolyheadError):
    """A bug of ours."""


class StartError(RuntimeError):
    """What a person asked for on the command line can't be done: a port is taken, say, or there is no GPU."""


class BundleError(ValueError):
    """A bundle can't be loaded: at start-up, for the operator, never for a caller."""
