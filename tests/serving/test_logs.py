"""Log lines: one JSON object each, with the request that they belong to, and one line of access log a request."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving import logs
from serving.bundles.loading import Bundle
from serving.gateways.http_gateway import create_app
from serving.request_context import RequestContext, working_for
from serving.service import SegmentationService

PNG = {"Content-Type": "image/png"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def written() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines that were written as JSON so far; the process's logging is as before afterwards."""
    root, access = logging.getLogger(), logging.getLogger("polyhead.access")
    before = (root.handlers[:], root.level, access.disabled)
    stream = StringIO()
    logs.write_json(logging.StreamHandler(stream), {"replica": "r1"})
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], root.level, access.disabled = before


def test_a_line_is_one_object_with_time_level_logger_and_message(written: Any) -> None:
    logging.getLogger("polyhead.engine").warning("head '%s' has a\nsecond line", "depth")
    [line] = written()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "WARNING", "logger": "polyhead.engine", "message": "head 'depth' has a\nsecond line", "replica": "r1",
    }  # fmt: skip


def test_a_traceback_and_what_a_record_was_given_are_in_its_line(written: Any) -> None:
    try:
        raise ValueError("no luck")
    except ValueError:
        logging.getLogger("polyhead").exception("failed", extra={"attempt": 2, "odd": {1}, "_host": 3})
    [line] = written()
    assert line["error"].endswith("ValueError: no luck")
    assert (line["attempt"], line["odd"]) == (2, "{1}")
    assert "_host" not in line  # Ray adds such to every record


def test_a_line_names_the_request_that_is_worked_for(written: Any) -> None:
    with working_for(RequestContext("mine", {"traceparent": PARENT})):
        logging.getLogger("polyhead").info("within")
    logging.getLogger("polyhead").info("after")
    within, after = written()
    assert (within["request_id"], within["trace_id"]) == ("mine", TRACE)
    assert "request_id" not in after


@pytest.mark.parametrize("given", ["", "00-xyz", "garbage"])
def test_a_broken_traceparent_gives_no_trace_id(given: str) -> None:
    assert RequestContext("mine", {"traceparent": given}).trace_id is None


def access(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["logger"] == "polyhead.access"]


def test_every_request_has_one_line_of_access_log(
    written: Any, make_service: Callable[..., SegmentationService], encode_picture: Callable[..., bytes]
) -> None:
    client = TestClient(create_app(make_service()))
    client.post(
        "/segment?tasks=depth", content=encode_picture(),
        headers=PNG | {"X-Request-Id": "mine", "traceparent": PARENT},
    )  # fmt: skip
    client.post("/segment?tasks=depth", content=b"no picture", headers=PNG)
    good, bad = access(written())
    assert good.pop("ms") > 0
    assert good["message"].startswith("POST /segment 200 ")
    assert {name: good[name] for name in ("level", "request_id", "trace_id", "method", "route", "code")} == {
        "level": "INFO", "request_id": "mine", "trace_id": TRACE, "method": "POST", "route": "/segment", "code": "200",
    }  # fmt: skip
    assert (good["tasks"], good["encoder_passes"]) == (["depth"], 1)
    assert "reason" not in good
    assert (bad["code"], bad["encoder_passes"], bad["reason"]) == ("400", 0, "invalid-image")


def test_probes_are_told_at_debug_only(written: Any, make_service: Callable[..., SegmentationService]) -> None:
    client = TestClient(create_app(make_service()))
    for path in ("/healthz", "/readyz", "/metrics"):
        client.get(path)
    client.get("/tasks")
    assert [line["route"] for line in access(written())] == ["/tasks"]


def test_what_fails_in_the_threads_names_its_request(
    written: Any,
    make_service: Callable[..., SegmentationService],
    make_bundle: Callable[..., Bundle],
    probe_head: Any,
    encode_picture: Callable[..., bytes],
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no luck")

    bundle = make_bundle(forward=probe_head(on_call=fail), finish=probe_head(on_postprocess=fail))
    client = TestClient(create_app(make_service(bundle)))
    for task in ("forward", "finish"):
        headers = PNG | {"X-Request-Id": f"of {task}".replace(" ", "-")}
        client.post(f"/segment?tasks={task},depth", content=encode_picture(), headers=headers)
    told = {line["message"]: line["request_id"] for line in written() if line["level"] == "ERROR"}
    assert told == {"head 'forward' failed": "of-forward", "head 'finish' failed": "of-finish"}


def test_text_leaves_the_access_log_to_the_host(
    written: Any, make_service: Callable[..., SegmentationService], caplog: pytest.LogCaptureFixture
) -> None:
    logs.write_text()
    TestClient(create_app(make_service())).get("/tasks")
    assert "polyhead.access" not in {record.name for record in caplog.records}
