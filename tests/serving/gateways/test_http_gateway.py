"""The HTTP contract: what is answered to whom, with which status and headers, and that nothing goes uncounted."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from decoders.embedding import EmbeddingDecoder
from serving.bundles.loading import Bundle
from serving.gateways import http_gateway
from serving.gateways.http_gateway import create_app
from serving.service import SegmentationService

MakeService = Callable[..., SegmentationService]
PNG = {"Content-Type": "image/png"}
TASKS = {"tasks": "panoptic,depth"}


def client_of(service: SegmentationService, **options: Any) -> TestClient:
    return TestClient(create_app(service, **options), raise_server_exceptions=False)


@pytest.fixture
def service(make_service: MakeService) -> SegmentationService:
    return make_service()


@pytest.fixture
def client(service: SegmentationService) -> TestClient:
    return client_of(service)


@pytest.fixture(scope="session")
def photo(encode_picture: Callable[..., bytes]) -> bytes:
    """60 high, 90 wide."""
    return encode_picture(60, 90)


def sample(service: SegmentationService, name: str, **labels: str) -> float:
    """The value of a metric, 0 before it was ever counted; drain first where a batch was run, for it counts last."""
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


def assert_problem(response: Any, status: int, title: str, *words: str) -> dict[str, Any]:
    """The answer is an RFC 9457 problem of that kind whose detail holds the words."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.keys() == {"type", "title", "status", "detail", "remedy"}
    assert (problem["status"], problem["title"]) == (status, title)
    assert problem["remedy"]
    for word in words:
        assert word in problem["detail"]
    return problem


# Answers


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "application/octet-stream", None])
def test_a_raw_body_is_answered_whatever_kind_of_picture_it_says_it_is(
    client: TestClient, photo: bytes, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = client.post("/segment", params=TASKS, content=photo, headers=headers)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer.keys() == {"request_id", "bundle", "image", "results", "errors", "timing"}
    assert answer["bundle"] == "tiny"
    assert answer["image"] == {"height": 60, "width": 90}
    assert answer["results"].keys() == {"panoptic", "depth"}
    assert answer["errors"] == {}
    assert answer["timing"]["encoder_passes"] == 1
    assert answer["timing"]["heads_ms"].keys() == {"panoptic", "depth"}


def test_the_form_field_image_is_answered_as_the_raw_body_is(client: TestClient, photo: bytes) -> None:
    raw = client.post("/segment", content=photo, headers=PNG).json()
    form = client.post("/segment", files={"image": ("photo.png", photo, "image/png")})
    assert form.status_code == 200, form.text
    assert form.json()["results"] == raw["results"]


def test_other_fields_of_the_form_do_no_harm(client: TestClient, photo: bytes) -> None:
    response = client.post("/segment", data={"note": "mine"}, files={"image": ("photo.png", photo, "image/png")})
    assert response.status_code == 200, response.text


def test_without_tasks_the_default_ones_run(client: TestClient, photo: bytes) -> None:
    answer = client.post("/segment", content=photo, headers=PNG).json()
    assert answer["results"].keys() == {"panoptic", "depth"}


def test_results_are_those_of_the_engine(client: TestClient, service: SegmentationService, photo: bytes) -> None:
    results = client.post("/segment", content=photo, headers=PNG).json()["results"]
    expected = service.engine.predict(photo)[0].results
    segments = results["panoptic"]["segments"]
    assert [segment["label"] for segment in segments] == [s.label for s in expected["panoptic"].segments]
    for segment in segments:
        expected_mask = expected["panoptic"].segment_map == segment["segment_id"]
        np.testing.assert_array_equal(coco_mask.decode(segment["rle"]).astype(bool), expected_mask)
    depth = np.asarray(Image.open(io.BytesIO(base64.b64decode(results["depth"]["png16"]))))
    np.testing.assert_allclose(depth * results["depth"]["scale"], expected["depth"].depth_m, atol=0.002)


@pytest.mark.parametrize("task", ["panoptic", "depth"])
@pytest.mark.parametrize("kind", ["png", "overlay"])
def test_one_task_is_answered_as_a_picture(client: TestClient, photo: bytes, task: str, kind: str) -> None:
    response = client.post("/segment", params={"tasks": task, "format": kind}, content=photo, headers=PNG)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(response.content)).size == (90, 60)
    assert "Server-Timing" in response.headers


def test_all_arrays_are_answered_as_an_archive(client: TestClient, photo: bytes) -> None:
    response = client.post("/segment", params=TASKS | {"format": "npz"}, content=photo, headers=PNG)
    assert response.status_code == 200
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        assert set(archive) == {"panoptic/segment_map", "panoptic/segments", "depth/depth_m"}
        assert archive["depth/depth_m"].shape == (60, 90)


@pytest.mark.parametrize(("masks", "key"), [("rle", "rle"), ("polygon", "polygons"), ("none", None)])
def test_masks_are_told_as_asked(client: TestClient, photo: bytes, masks: str, key: str | None) -> None:
    answer = client.post("/segment", params={"masks": masks}, content=photo, headers=PNG).json()
    for segment in answer["results"]["panoptic"]["segments"]:
        assert segment.keys() & {"rle", "polygons"} == ({key} if key else set())


def test_thresholds_and_the_size_of_results_reach_the_heads(client: TestClient, photo: bytes) -> None:
    options = {"score_threshold": "1", "max_side": "45"}
    answer = client.post("/segment", params=options, content=photo, headers=PNG).json()
    assert answer["results"]["panoptic"]["segments"] == []
    depth = Image.open(io.BytesIO(base64.b64decode(answer["results"]["depth"]["png16"])))
    assert depth.size == (45, 30)
    assert answer["image"] == {"height": 60, "width": 90}


def test_server_timing_names_every_stage(client: TestClient, photo: bytes) -> None:
    header = client.post("/segment", params=TASKS, content=photo, headers=PNG).headers["Server-Timing"]
    stages = [part.partition(";dur=") for part in header.split(", ")]
    assert [name for name, _, _ in stages] == [
        "queue", "decode", "preprocess", "encoder", "panoptic", "depth", "postprocess", "total",
    ]  # fmt: skip
    assert all(float(milliseconds) >= 0 for _, _, milliseconds in stages)


# A head that fails


@pytest.fixture
def broken(make_service: MakeService, make_bundle: Callable[..., Bundle], probe_head: Any) -> SegmentationService:
    """A service with a third head, "broken", that always raises."""

    def fail(features: Any, raw: Any) -> None:
        raise RuntimeError("no luck")

    return make_service(make_bundle(broken=probe_head((1,), fail)))


def test_a_failing_head_is_told_beside_the_answers_of_the_others(broken: SegmentationService, photo: bytes) -> None:
    response = client_of(broken).post("/segment", params={"tasks": "broken,depth"}, content=photo, headers=PNG)
    assert response.status_code == 200
    answer = response.json()
    assert answer["results"].keys() == {"depth"}
    assert answer["errors"]["broken"]["title"] == "Head failed"
    assert answer["errors"]["broken"]["detail"] == "head 'broken' failed with a RuntimeError; the server's log has it"
    assert "no luck" not in response.text


@pytest.mark.parametrize("kind", ["json", "png", "overlay", "npz"])
def test_a_request_of_which_nothing_is_left_is_a_problem(broken: SegmentationService, photo: bytes, kind: str) -> None:
    options = {"tasks": "broken", "format": kind}
    response = client_of(broken).post("/segment", params=options, content=photo, headers=PNG)
    assert_problem(response, 500, "Head failed", "head 'broken' failed with a RuntimeError")
    assert "no luck" not in response.text


# Refusals


def test_an_unknown_task_is_refused_and_the_loaded_ones_are_named(client: TestClient, photo: bytes) -> None:
    response = client.post("/segment", params={"tasks": "depth,panoptc"}, content=photo, headers=PNG)
    problem = assert_problem(response, 404, "Unknown task", "no head for 'panoptc'; loaded: depth, panoptic")
    assert problem["type"] == "urn:polyhead:problem:unsupported-task"


def test_an_empty_list_of_tasks_is_refused(client: TestClient, photo: bytes) -> None:
    assert_problem(client.post("/segment?tasks=", content=photo, headers=PNG), 404, "Unknown task", "an empty list")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"treshold": "0.5"}, ["treshold"]),
        ({"format": "gif"}, ["format='gif'"]),
        ({"masks": "bitmap"}, ["masks='bitmap'"]),
        ({"score_threshold": "1.5"}, ["score_threshold='1.5'"]),
        ({"score_threshold": "high"}, ["score_threshold='high'"]),
        ({"mask_threshold": "-0.1"}, ["mask_threshold='-0.1'"]),
        ({"overlap_threshold": "nan"}, ["overlap_threshold='nan'"]),
        ({"max_side": "0"}, ["max_side='0'"]),
        ({"max_side": "1e9"}, ["max_side='1e9'"]),
        ({"max_side": "0", "format": "gif"}, ["max_side='0'", "format='gif'"]),
    ],
)
def test_an_option_that_cannot_be_is_refused_and_named(
    client: TestClient, photo: bytes, options: dict[str, str], words: list[str]
) -> None:
    response = client.post("/segment", params=options, content=photo, headers=PNG)
    assert_problem(response, 400, "Invalid option", *words)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("tasks=panoptic&tasks=depth", "tasks given more than once"),
        ("format=json&format=json", "format given more than once"),
        ("max_side=64&masks=rle&max_side=32&masks=none", "masks, max_side given more than once"),
    ],
)
def test_an_option_that_is_given_twice_is_refused_and_named(
    client: TestClient, photo: bytes, query: str, words: str
) -> None:
    problem = assert_problem(client.post(f"/segment?{query}", content=photo, headers=PNG), 400, "Invalid option", words)
    assert "separated by commas" in problem["remedy"]


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "soon", "100000"])
def test_a_deadline_that_cannot_be_is_refused_and_named(client: TestClient, photo: bytes, timeout: str) -> None:
    headers = PNG | {"X-Request-Timeout-S": timeout}
    response = client.post("/segment", content=photo, headers=headers)
    assert_problem(response, 400, "Invalid option", f"x-request-timeout-s='{timeout}'")


@pytest.mark.parametrize("kind", ["png", "overlay"])
def test_a_picture_of_two_tasks_is_refused(client: TestClient, photo: bytes, kind: str) -> None:
    response = client.post("/segment", params=TASKS | {"format": kind}, content=photo, headers=PNG)
    detail = f"format={kind} takes exactly one task, not 2 (panoptic, depth)"
    problem = assert_problem(response, 400, "Invalid option", detail)
    assert "tasks=panoptic" in problem["remedy"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("image", ("a.png", b"x")), ("image", ("b.png", b"x"))], "2 fields 'image'"),
        ([("picture", ("a.png", b"x"))], "no field 'image', only ['picture']"),
        ([("image", (None, b"x"))], "a field 'image' that is text, not a file"),
    ],
)
def test_a_form_without_exactly_one_file_is_refused(client: TestClient, files: Any, words: str) -> None:
    assert_problem(client.post("/segment", files=files), 400, "Invalid option", words)


def test_a_form_without_its_boundary_is_refused(client: TestClient) -> None:
    response = client.post("/segment", content=b"anything", headers={"Content-Type": "multipart/form-data"})
    assert_problem(response, 400, "Invalid option", "the form can't be read", "boundary")


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "application/json", "text/plain; charset=utf-8", "video/mp4"]
)
def test_a_body_that_says_it_is_no_picture_is_refused(client: TestClient, photo: bytes, content_type: str) -> None:
    response = client.post("/segment", content=photo, headers={"Content-Type": content_type})
    assert_problem(response, 415, "Unsupported media type", content_type.split(";")[0])


@pytest.mark.parametrize(
    ("body", "status", "title"),
    [
        pytest.param(b"", 400, "Not a readable image", id="empty"),
        pytest.param(b"no picture", 400, "Not a readable image", id="text"),
        pytest.param("cut short", 400, "Not a readable image", id="cut short"),
        pytest.param("1 x 1", 422, "Unusable image", id="1 x 1"),
        pytest.param("2000 x 2000", 413, "Image too large", id="too many pixels"),
    ],
)
def test_a_body_that_is_no_usable_picture_is_refused(
    client: TestClient, photo: bytes, body: bytes | str, status: int, title: str
) -> None:
    if body == "cut short":
        body = photo[: len(photo) // 2]
    elif isinstance(body, str):
        buffer = io.BytesIO()
        width, height = map(int, body.split(" x "))
        Image.new("1", (width, height)).save(buffer, "PNG")
        body = buffer.getvalue()
    assert_problem(client.post("/segment", content=body, headers=PNG), status, title)


async def call(
    service: SegmentationService,
    receive: Callable[[], Awaitable[dict[str, Any]]],
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> list[dict[str, Any]]:
    """`POST /segment` below the client: what is sent in answer to a body that the test hands out itself."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/segment", "raw_path": b"/segment", "root_path": "", "query_string": b"tasks=depth",
        "headers": list(headers), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    await create_app(service)(scope, receive, send)
    return sent


def in_chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 10_000):
        yield b"\0" * 10_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda: {"content": b"\0" * 300_000, "headers": PNG}, id="declared"),
        pytest.param(lambda: {"content": in_chunks(300_000), "headers": PNG}, id="streamed"),
        pytest.param(lambda: {"content": in_chunks(5_000_000), "headers": PNG}, id="streamed on and on"),
        pytest.param(lambda: {"files": {"image": ("a.png", b"\0" * 300_000, "image/png")}}, id="form"),
        pytest.param(lambda: {"files": {"image": ("a.png", b"\0" * 200_001, "image/png")}}, id="form, by one byte"),
        pytest.param(lambda: {"content": b"\0" * 200_001, "headers": PNG}, id="by one byte"),
    ],
)
def test_a_body_over_the_limit_is_refused(
    client: TestClient, service: SegmentationService, body: Callable[[], dict[str, Any]]
) -> None:
    response = client.post("/segment", **body())
    assert_problem(response, 413, "Image too large", "over 200,000 bytes")
    assert service.admission.inside == 0


@pytest.mark.parametrize("form", [False, True])
def test_a_body_at_the_limit_is_read(client: TestClient, photo: bytes, form: bool) -> None:
    body = photo + bytes(200_000 - len(photo))  # PNG ends where it says so; what follows is nothing to it
    if form:
        response = client.post("/segment", files={"image": ("a.png", body, "image/png")})
    else:
        response = client.post("/segment", content=body, headers=PNG)
    assert response.status_code == 200, response.text


def test_a_streamed_body_within_the_limit_is_answered(client: TestClient, photo: bytes) -> None:
    chunks = (photo[i : i + 100] for i in range(0, len(photo), 100))
    response = client.post("/segment", content=chunks, headers=PNG)
    assert response.status_code == 200, response.text


def test_a_full_server_sheds_with_the_time_of_another_try(
    client: TestClient, service: SegmentationService, photo: bytes
) -> None:
    service.admission.inside = 4
    service.admission.rate.observe(1, 2.5)
    response = client.post("/segment", content=photo, headers=PNG)
    assert_problem(response, 429, "Overloaded", "4 pictures are waiting")
    assert response.headers["Retry-After"] == "3"
    service.admission.inside = 0
    assert client.post("/segment", content=photo, headers=PNG).status_code == 200


def test_a_draining_server_refuses_pictures_and_is_not_ready(
    client: TestClient, service: SegmentationService, photo: bytes
) -> None:
    service.drain()
    for response in (client.post("/segment", content=photo, headers=PNG), client.get("/readyz")):
        assert_problem(response, 503, "Unavailable", "draining")
        assert response.headers["Retry-After"] == "2"
    assert client.get("/healthz").json() == {"status": "ok"}


def test_the_deadline_of_the_caller_is_held(make_service: MakeService, photo: bytes) -> None:
    service = make_service(gated=True)
    headers = PNG | {"X-Request-Timeout-S": "0.05"}
    response = client_of(service).post("/segment", content=photo, headers=headers)
    assert_problem(response, 504, "Deadline exceeded", "no answer within 0.05 s")
    assert service.admission.inside == 0


def test_the_default_deadline_is_a_setting(make_service: MakeService, photo: bytes) -> None:
    service = make_service(gated=True, default_timeout_s=0.03)
    response = client_of(service).post("/segment", content=photo, headers=PNG)
    assert_problem(response, 504, "Deadline exceeded", "no answer within 0.03 s")
    assert service.admission.inside == 0


def test_a_full_server_sheds_before_it_reads_the_body(service: SegmentationService) -> None:
    service.admission.inside = 4

    async def never() -> dict[str, Any]:
        pytest.fail("the body was read")

    sent = asyncio.run(call(service, never))
    assert sent[0]["status"] == 429


def test_the_deadline_is_held_while_the_body_comes(service: SegmentationService) -> None:
    inside: list[float] = []

    async def stall() -> dict[str, Any]:
        inside.append(service.admission.inside)
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    sent = asyncio.run(call(service, stall, headers=[(b"x-request-timeout-s", b"0.05")]))
    assert sent[0]["status"] == 504
    assert b"no answer within 0.05 s" in sent[1]["body"]
    assert inside == [1]
    assert service.admission.inside == 0


def test_the_deadline_is_held_while_the_answer_is_rendered(
    service: SegmentationService, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered, inside = threading.Event(), []

    def render_for_ever(*arguments: object, **options: object) -> None:
        inside.append(service.admission.inside)
        rendered.wait(60)

    monkeypatch.setattr(http_gateway, "prediction_json", render_for_ever)
    try:
        response = client_of(service).post("/segment", content=photo, headers=PNG | {"X-Request-Timeout-S": "0.5"})
        assert_problem(response, 504, "Deadline exceeded", "no answer within 0.5 s")
    finally:
        rendered.set()
    assert inside in ([1], [])  # [] on a machine so slow that the deadline came before
    assert service.admission.inside == 0


def bug(*arguments: object, **options: object) -> None:
    raise ZeroDivisionError("secret of the server")


def assert_bug_is_told(service: SegmentationService, response: Any, caplog: pytest.LogCaptureFixture) -> None:
    problem = assert_problem(response, 500, "Internal error", "the server's log has it")
    assert problem["type"] == "urn:polyhead:problem:internal"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.headers.get_list("X-Request-Id") == ["mine-1"]
    assert response.headers["traceparent"] == "00-1-2-01"
    (record,) = [record for record in caplog.records if record.name == "polyhead.http"]
    assert record.getMessage() == "unexpected failure of request mine-1"
    assert record.exc_info is not None and str(record.exc_info[1]) == "secret of the server"
    assert sample(service, "polyhead_requests_total", route="/segment", code="500") == 1
    assert sample(service, "polyhead_request_seconds_count", route="/segment") == 1
    assert sample(service, "polyhead_failed_total", route="/segment", code="internal") == 1
    assert service.admission.inside == 0


IDS = {"X-Request-Id": "mine-1", "traceparent": "00-1-2-01"}


def test_a_bug_is_a_problem_without_its_stack_trace(
    client: TestClient,
    service: SegmentationService,
    photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(service.engine, "prepare", bug)
    assert_bug_is_told(service, client.post("/segment", content=photo, headers=PNG | IDS), caplog)


def test_a_bug_in_rendering_is_a_problem_too(
    client: TestClient,
    service: SegmentationService,
    photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(http_gateway, "prediction_json", bug)
    assert_bug_is_told(service, client.post("/segment", content=photo, headers=PNG | IDS), caplog)


@pytest.mark.parametrize("content_type", [b"image/png", b"multipart/form-data; boundary=x"])
def test_a_client_that_goes_away_is_counted_and_nothing_is_said(
    service: SegmentationService, content_type: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    messages = iter([{"type": "http.request", "body": b"--x\r\n", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    sent = asyncio.run(call(service, receive, headers=[(b"content-type", content_type)]))
    assert sent == []
    assert sample(service, "polyhead_requests_total", route="/segment", code="499") == 1
    assert sample(service, "polyhead_cancelled_total", route="/segment") == 1
    assert service.admission.inside == 0
    assert [record for record in caplog.records if record.name.startswith("polyhead")] == []


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [("GET", "/nowhere", 404, "Not Found"), ("GET", "/segment", 405, "Method Not Allowed")],
)
def test_a_wrong_path_or_method_is_a_problem_too(
    client: TestClient, method: str, path: str, status: int, title: str
) -> None:
    problem = assert_problem(client.request(method, path), status, title, f"{method} {path}")
    assert problem["type"] == "about:blank"


# Ids


def test_the_request_id_and_the_trace_are_given_back(client: TestClient, photo: bytes) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = PNG | {"X-Request-Id": "mine-1", "traceparent": trace}
    response = client.post("/segment", content=photo, headers=headers)
    assert response.headers.get_list("X-Request-Id") == ["mine-1"]
    assert response.headers["traceparent"] == trace
    assert response.json()["request_id"] == "mine-1"


def test_a_refusal_gives_the_request_id_back_too(client: TestClient) -> None:
    response = client.post("/segment", content=b"", headers=PNG | {"X-Request-Id": "mine-1"})
    assert response.status_code == 400
    assert response.headers["X-Request-Id"] == "mine-1"


def test_a_request_without_an_id_gets_one_of_its_own(client: TestClient, photo: bytes) -> None:
    first, second = (client.post("/segment", content=photo, headers=PNG) for _ in range(2))
    ids = [response.headers["X-Request-Id"] for response in (first, second)]
    assert ids == [response.json()["request_id"] for response in (first, second)]
    assert len(set(ids)) == 2
    assert all(ids)


@pytest.mark.parametrize("given", ["x", "!~", "a" * 128, "urn:uuid:5f8c-1"])
def test_a_request_id_of_visible_ascii_is_taken(client: TestClient, given: str) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", [b"", b"a" * 129, b"two words", b"tab\there", b"caf\xe9", b"\x1b[31mred", b"\x7f"])
def test_any_other_request_id_is_replaced(client: TestClient, given: bytes) -> None:
    answered = client.get("/healthz", headers={b"X-Request-Id": given}).headers.get_list("X-Request-Id")
    assert len(answered) == 1
    assert re.fullmatch("[0-9a-f]{32}", answered[0])


def test_the_request_id_is_left_to_a_host_that_gives_it(service: SegmentationService, photo: bytes) -> None:
    client = client_of(service, host_gives_request_id=True)
    response = client.post("/segment", content=photo, headers=PNG | {"X-Request-Id": "mine-1"})
    assert "X-Request-Id" not in response.headers
    assert response.json()["request_id"] == "mine-1"


# What the server tells of itself


def test_the_tasks_are_told_with_their_labels_and_sizes(client: TestClient, service: SegmentationService) -> None:
    told = client.get("/tasks").json()
    assert told.keys() == {"bundle", "encoder", "default_tasks", "tasks"}
    assert told["bundle"] == "tiny"
    assert told["encoder"] == {"name": "tiny", "revision": "abc123", "patch_size": 14}
    assert told["default_tasks"] == ["panoptic", "depth"]
    panoptic, depth = told["tasks"]
    labels = panoptic.pop("labels")
    assert panoptic == {
        "name": "panoptic", "kind": "panoptic", "description": "Things and stuff.", "input_size": [56, 56],
    }  # fmt: skip
    assert len(labels) == len(service.engine.bundle.label_sets["panoptic"]) == 27
    assert labels[0] == {"label_id": 0, "name": "person", "is_thing": True, "color": [220, 20, 60]}
    assert depth == {
        "name": "depth", "kind": "depth", "description": "Metres.", "input_size": [56, 56], "labels": [],
    }  # fmt: skip


def test_a_healthy_server_says_so(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_what_is_polled_can_be_asked_for_its_head(client: TestClient, path: str) -> None:
    response = client.head(path)
    assert response.status_code == 200
    assert response.content == b""
    assert response.headers["content-type"] == client.get(path).headers["content-type"]


def test_a_draining_server_says_so_to_head_too(client: TestClient, service: SegmentationService) -> None:
    service.drain()
    assert client.head("/readyz").status_code == 503
    assert client.head("/healthz").status_code == 200


def test_a_request_for_two_tasks_is_counted_as_one_pass_with_one_saved(
    client: TestClient, service: SegmentationService, photo: bytes
) -> None:
    client.post("/segment", params=TASKS, content=photo, headers=PNG)
    service.drain()
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    lines = metrics.text.splitlines()
    assert "polyhead_encoder_passes_total 1.0" in lines
    assert "polyhead_encoder_passes_saved_total 1.0" in lines
    assert "polyhead_encoder_runs_total 1.0" in lines
    assert 'polyhead_head_runs_total{head="panoptic"} 1.0' in lines
    assert 'polyhead_head_runs_total{head="depth"} 1.0' in lines
    assert 'polyhead_requests_total{code="200",route="/segment"} 1.0' in lines
    assert (
        f'polyhead_info{{bundle="tiny",device="cpu",dtype="float32",encoder="tiny",revision="abc123",'
        f'version="{version("polyhead")}"}} 1.0'
    ) in lines


def test_a_request_for_one_task_saves_no_pass(client: TestClient, service: SegmentationService, photo: bytes) -> None:
    client.post("/segment", params={"tasks": "depth"}, content=photo, headers=PNG)
    service.drain()
    assert sample(service, "polyhead_encoder_passes_total") == 1
    assert sample(service, "polyhead_encoder_passes_saved_total") == 0


def test_refusals_are_counted_by_reason_and_requests_by_route_and_code(
    client: TestClient, service: SegmentationService, photo: bytes
) -> None:
    client.post("/segment", content=b"", headers=PNG)
    client.post("/segment", params={"tasks": "x"}, content=photo, headers=PNG)
    client.get("/nowhere/at/all")
    client.get("/healthz")
    assert sample(service, "polyhead_rejected_total", route="/segment", code="invalid-image") == 1
    assert sample(service, "polyhead_rejected_total", route="/segment", code="unsupported-task") == 1
    assert sample(service, "polyhead_rejected_total", route="other", code="not-found") == 1
    assert sample(service, "polyhead_requests_total", route="/segment", code="400") == 1
    assert sample(service, "polyhead_requests_total", route="/segment", code="404") == 1
    assert sample(service, "polyhead_requests_total", route="other", code="404") == 1
    assert sample(service, "polyhead_requests_total", route="/healthz", code="200") == 1
    assert sample(service, "polyhead_encoder_passes_total") == 0


def test_every_metric_of_a_request_is_in_seconds_by_stage(
    client: TestClient, service: SegmentationService, photo: bytes
) -> None:
    client.post("/segment", params={"tasks": "depth"}, content=photo, headers=PNG)
    for stage in ("admission", "queue", "decode", "preprocess", "encoder", "postprocess", "render"):
        assert sample(service, f"polyhead_{stage}_seconds_count") == 1, stage
    assert sample(service, "polyhead_head_seconds_count", head="depth") == 1
    assert sample(service, "polyhead_head_seconds_count", head="panoptic") == 0
    assert sample(service, "polyhead_request_seconds_count", route="/segment") == 1


# Pages


def addresses(html: str) -> list[str]:
    """Everything that a page loads."""
    return re.findall(r"""(?:src|href)=["']([^"']+)["']|(?:url|Url): ?["']([^"']+)["']""", html)


def test_the_api_docs_load_nothing_from_outside(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    loaded = [one or other for one, other in addresses(page.text)]
    assert any(address.endswith(".js") for address in loaded)
    for address in loaded:
        assert not re.match(r"(https?:)?//", address)
        assert client.get(address).status_code == 200


def test_the_schema_tells_the_options_and_both_ways_to_send_a_picture(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/segment"]["post"]
    assert operation["requestBody"]["content"].keys() == {"image/*", "multipart/form-data"}
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "tasks", "format", "masks", "score_threshold", "mask_threshold", "overlap_threshold", "max_side", "features",
        "x-request-timeout-s",
    }  # fmt: skip
    assert all(parameter["description"] for parameter in operation["parameters"])


def test_every_operation_of_the_schema_has_a_name_of_its_own(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"].values()
    names = [operation["operationId"] for path in paths for operation in path.values()]
    assert len(set(names)) == len(names)


def assert_page_headers(response: Any) -> None:
    """What is loaded may load from this server only, is what it says it is, and is asked for anew each time."""
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy == {"default-src": "'self'", "img-src": "'self' blob: data:", "media-src": "'self' blob:"}
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-cache"


def test_a_script_is_served_as_a_script_and_only_once_if_it_has_not_changed(client: TestClient) -> None:
    page = client.get("/").text
    (script, *_) = [one for one, _ in addresses(page) if one.endswith(".js")]
    response = client.get(f"/{script}")
    assert response.headers["content-type"].startswith("text/javascript")
    again = client.get(f"/{script}", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304
    assert_page_headers(again)


def test_the_playground_is_served_and_may_load_from_this_server_only(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert_page_headers(page)
    loaded = [one for one, _ in addresses(page.text) if not one.startswith(("#", "./"))]
    assert any(address.endswith(".js") for address in loaded)
    for address in loaded:
        assert not re.match(r"(https?:)?//", address)
        loaded_file = client.get(f"/{address}")
        assert loaded_file.status_code == 200, address
        if address.startswith("static/"):
            assert_page_headers(loaded_file)


def test_an_answer_is_plain_json_without_nan(client: TestClient, photo: bytes) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    json.loads(client.post("/segment", content=photo, headers=PNG).text, parse_constant=refuse)


@pytest.mark.parametrize("form", ["png", "overlay"])
def test_a_task_that_has_no_map_is_refused_as_a_picture_before_it_runs(
    form: str, make_bundle: Callable[..., Bundle], make_service: Callable[..., SegmentationService]
) -> None:
    bundle = make_bundle(vector=EmbeddingDecoder(make_bundle().encoder.spec))
    response = client_of(make_service(bundle)).post(f"/segment?tasks=vector&format={form}", content=b"never looked at")
    assert response.status_code == 400
    assert response.json()["detail"] == f"a result of kind 'embedding' has no format={form}"
    assert response.json()["remedy"] == "ask with format=json or npz"
