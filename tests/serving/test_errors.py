"""The one table of failures: each names itself over HTTP and gRPC and tells the caller what to do."""

from __future__ import annotations

import grpc
import pytest

from serving import errors
from serving.errors import BundleError, HeadFailedError, OverloadedError, PolyheadError, UnsupportedMediaTypeError

FAILURES = sorted(PolyheadError.__subclasses__(), key=lambda kind: kind.__name__)

TABLE = {
    "InvalidImageError": (400, "INVALID_ARGUMENT"),
    "InvalidOptionError": (400, "INVALID_ARGUMENT"),
    "UnsupportedTaskError": (404, "NOT_FOUND"),
    "UnknownFeaturesError": (404, "NOT_FOUND"),
    "FeatureCacheOffError": (404, "NOT_FOUND"),
    "MissingBlocksError": (409, "FAILED_PRECONDITION"),
    "TooLargeError": (413, "RESOURCE_EXHAUSTED"),
    "UnsupportedMediaTypeError": (415, "INVALID_ARGUMENT"),
    "UnusableImageError": (422, "INVALID_ARGUMENT"),
    "OverloadedError": (429, "RESOURCE_EXHAUSTED"),
    "HeadFailedError": (500, "INTERNAL"),
    "EncoderFailedError": (500, "INTERNAL"),
    "InternalError": (500, "INTERNAL"),
    "UnavailableError": (503, "UNAVAILABLE"),
    "DeadlineExceededError": (504, "DEADLINE_EXCEEDED"),
}
"""The contract: clients rely on these."""


@pytest.mark.parametrize(("name", "statuses"), TABLE.items())
def test_statuses_are_those_of_the_contract(name: str, statuses: tuple[int, str]) -> None:
    kind = getattr(errors, name)
    assert (kind.status, kind.grpc_status) == statuses


@pytest.mark.parametrize("kind", FAILURES)
def test_every_failure_has_a_real_grpc_status_and_a_title_of_its_own(kind: type[PolyheadError]) -> None:
    assert kind.grpc_status in grpc.StatusCode.__members__
    assert kind.title == "Internal error" or [other.title for other in FAILURES].count(kind.title) == 1


def test_every_kind_has_a_reason_of_its_own() -> None:
    assert len({kind("x", remedy="y").reason for kind in FAILURES}) == len(FAILURES)


def test_reason_is_the_class_name_in_kebab_case() -> None:
    assert UnsupportedMediaTypeError("x", remedy="y").reason == "unsupported-media-type"


def test_problem_has_the_fields_of_rfc_9457_and_the_remedy() -> None:
    assert HeadFailedError("head 'depth' failed", remedy="report it").problem() == {
        "type": "urn:polyhead:problem:head-failed",
        "title": "Head failed",
        "status": 500,
        "detail": "head 'depth' failed",
        "remedy": "report it",
    }


def test_the_message_of_the_exception_is_its_detail() -> None:
    error = OverloadedError("64 pictures are waiting", remedy="try again", retry_after_s=3)
    assert (str(error), error.retry_after_s) == ("64 pictures are waiting", 3)


def test_a_bundle_error_is_for_the_operator_and_never_a_problem_for_a_caller() -> None:
    assert not issubclass(BundleError, PolyheadError)
