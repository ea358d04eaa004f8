"""`WS /video`: what is answered to which message, when a stream ends and how that is told, and that nothing stays."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from starlette.testclient import TestClient, WebSocketDenialResponse, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from serving.answers.schemas import Problem, ResultAnswer, Size, TimingAnswer
from serving.gateways.http_gateway import create_app
from serving.service import SegmentationService

MakeService = Callable[..., SegmentationService]
Open = Callable[..., WebSocketTestSession]
RESULTS = TypeAdapter(dict[str, ResultAnswer])


@pytest.fixture
def clients() -> Iterator[Callable[[SegmentationService], TestClient]]:
    """Clients of services, each with one event loop for all of its sockets."""
    with ExitStack() as stack:
        yield lambda service: stack.enter_context(TestClient(create_app(service)))


@pytest.fixture
def service(make_service: MakeService) -> SegmentationService:
    return make_service()


@pytest.fixture
def client(clients: Callable[[SegmentationService], TestClient], service: SegmentationService) -> TestClient:
    return clients(service)


def frame(frame_id: int, data: bytes, captured_at_us: int = 0, size: tuple[int, int] | None = None) -> bytes:
    """A message as the protocol has it."""
    return struct.pack("<QQ", frame_id, captured_at_us) + (struct.pack("<II", *size) if size else b"") + data


def opened(client: TestClient, **config: Any) -> AbstractContextManager[WebSocketTestSession]:
    """A socket whose config was taken."""
    return _Opened(client, config)


class _Opened(AbstractContextManager[WebSocketTestSession]):
    def __init__(self, client: TestClient, config: Mapping[str, Any]) -> None:
        self._session = client.websocket_connect("/video")
        self._config = config

    def __enter__(self) -> WebSocketTestSession:
        session = self._session.__enter__()
        session.send_json(dict(self._config))
        assert session.receive_json().keys() == {"started"}
        return session

    def __exit__(self, *what: Any) -> None:
        self._session.__exit__(*what)


def answers(session: WebSocketTestSession, count: int) -> list[dict[str, Any]]:
    return [session.receive_json() for _ in range(count)]


def ids(told: list[dict[str, Any]]) -> list[int]:
    return [answer["frame_id"] for answer in told]


def assert_ended(session: WebSocketTestSession, code: int, status: int, *words: str) -> dict[str, Any]:
    """The stream's last message is a problem of that status whose detail holds the words; then comes the close."""
    last = session.receive_json()
    assert last.keys() == {"problem"}, last
    problem = last["problem"]
    Problem.model_validate(problem)
    assert problem["status"] == status, problem
    assert problem["remedy"]
    for word in words:
        assert word in problem["detail"]
    with pytest.raises(WebSocketDisconnect) as closed:
        session.receive_json()
    assert closed.value.code == code
    assert closed.value.reason == problem["title"]
    return problem


def assert_closed(session: WebSocketTestSession) -> None:
    """Everything was answered, and the socket is closed as the client wished."""
    with pytest.raises(WebSocketDisconnect) as closed:
        session.receive_json()
    assert closed.value.code == 1000


def wait_until_freed(client: TestClient, service: SegmentationService) -> None:
    """Let the application's loop run until no stream is left."""

    async def freed() -> None:
        while len(service.streams):
            await asyncio.sleep(0)

    assert client.portal is not None
    client.portal.call(asyncio.wait_for, freed(), 20)


def sample(service: SegmentationService, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


# Answers


def test_each_frame_gets_the_results_that_its_picture_gets_alone(
    client: TestClient, encode_picture: Callable[..., bytes]
) -> None:
    pictures = [encode_picture(60, 90, seed) for seed in range(3)]
    alone = [client.post("/segment", content=picture, headers={"Content-Type": "image/png"}) for picture in pictures]
    with opened(client, tasks=["panoptic", "depth"]) as session:
        for number, picture in enumerate(pictures):
            session.send_bytes(frame(100 - number, picture, captured_at_us=2**63 + number))
        told = answers(session, 3)
    assert ids(told) == [100, 99, 98]  # the client's own numbers, in the order of its frames
    for number, (answer, expected) in enumerate(zip(told, alone, strict=True)):
        keys = {"frame_id", "captured_at_us", "dropped_since_last", "age_ms", "image", "results", "errors", "timing"}
        assert answer.keys() == keys
        assert answer["captured_at_us"] == 2**63 + number
        assert answer["dropped_since_last"] == 0
        assert answer["age_ms"] >= answer["timing"]["total_ms"] > 0
        RESULTS.validate_python(answer["results"])
        TimingAnswer.model_validate(answer["timing"])
        Size.model_validate(answer["image"])
        for key in ("image", "results", "errors"):
            assert answer[key] == expected.json()[key]


def test_the_start_says_what_was_agreed(clients: Any, make_service: MakeService) -> None:
    with clients(make_service(max_upload_bytes=2**26)).websocket_connect("/video") as session:
        session.send_json({"max_in_flight": 2})
        assert session.receive_json()["started"] == {
            "bundle": "tiny",
            "tasks": ["panoptic", "depth"],
            "max_in_flight": 2,
            "max_frame_bytes": 2**24 - 24,  # what uvicorn takes, less the header
            "max_ahead_bytes": 2**26,
        }


@pytest.mark.parametrize(("masks", "key"), [("rle", "rle"), ("polygon", "polygons"), ("none", None)])
def test_options_are_those_of_a_picture(
    client: TestClient, encode_picture: Callable[..., bytes], masks: str, key: str | None
) -> None:
    config = {"tasks": ["panoptic"], "masks": masks, "max_side": 45, "score_threshold": 0.2, "overlap_threshold": 0.5}
    picture = encode_picture()
    query = config | {"tasks": "panoptic"}
    expected = client.post("/segment", params=query, content=picture, headers={"Content-Type": "image/png"}).json()
    with opened(client, **config) as session:
        session.send_bytes(frame(1, picture))
        answer = session.receive_json()
    assert answer["results"] == expected["results"]
    for segment in answer["results"]["panoptic"]["segments"]:
        assert segment.keys() & {"rle", "polygons"} == ({key} if key else set())


def test_after_the_end_all_frames_are_answered_and_the_socket_closes(
    client: TestClient, service: SegmentationService, encode_picture: Callable[..., bytes]
) -> None:
    with opened(client, tasks=["depth"], max_in_flight=2) as session:
        for number in range(5):
            session.send_bytes(frame(number, encode_picture()))
        session.send_json({"end": True})
        assert ids(answers(session, 5)) == [0, 1, 2, 3, 4]
        assert_closed(session)
    wait_until_freed(client, service)
    assert sample(service, "polyhead_requests_total", route="/video", code="101") == 1


def test_raw_frames_bring_their_size(client: TestClient, encode_picture: Callable[..., bytes]) -> None:
    picture = encode_picture(40, 70)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).tobytes()
    expected = client.post("/segment", content=picture, headers={"Content-Type": "image/png"}).json()
    with opened(client, format="rgb24") as session:
        session.send_bytes(frame(1, pixels, size=(40, 70)))
        session.send_bytes(frame(2, pixels, size=(70, 70)))
        good, wrong = answers(session, 2)
    assert good["results"] == expected["results"]
    assert "70 x 70" in wrong["error"]["detail"]


def access_units(count: int) -> list[bytes]:
    """A clip in H.264 without reordering, one access unit a frame."""
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = 96, 64, "yuv420p"
    context.time_base = Fraction(1, 10)
    context.options = {"tune": "zerolatency"}
    units = []
    for number in range(count):
        pixels = np.full((64, 96, 3), 20 * number, np.uint8)
        pixels[:, 8 * number : 8 * number + 8] = 255
        units += [bytes(packet) for packet in context.encode(av.VideoFrame.from_ndarray(pixels))]
    return units + [bytes(packet) for packet in context.encode(None)]


def test_access_units_are_answered_one_by_one(client: TestClient) -> None:
    units = access_units(6)
    with opened(client, format="h264", tasks=["depth"]) as session:
        for number, unit in enumerate(units):
            session.send_bytes(frame(number, unit))
        session.send_json({"end": True})
        told = answers(session, 6)
        assert_closed(session)
    assert ids(told) == list(range(6))
    assert {(answer["image"]["height"], answer["image"]["width"]) for answer in told} == {(64, 96)}


def test_a_frame_that_is_no_picture_fails_alone(
    client: TestClient, service: SegmentationService, encode_picture: Callable[..., bytes]
) -> None:
    with opened(client, tasks=["depth"]) as session:
        for number, data in enumerate((encode_picture(), b"no picture", b"", encode_picture())):
            session.send_bytes(frame(number, data))
        told = answers(session, 4)
    assert ids(told) == [0, 1, 2, 3]
    assert ["error" in answer for answer in told] == [False, True, True, False]
    for failed in told[1:3]:
        assert failed.keys() == {"frame_id", "captured_at_us", "dropped_since_last", "age_ms", "error"}
        Problem.model_validate(failed["error"])
        assert failed["error"]["status"] == 400
    assert sample(service, "polyhead_frames_total", code="invalid-image") == 2
    assert sample(service, "polyhead_frames_total", code="ok") == 2
    assert sample(service, "polyhead_frame_age_seconds_count") == 4


def test_two_sockets_do_not_mix(client: TestClient, encode_picture: Callable[..., bytes]) -> None:
    with opened(client, tasks=["depth"]) as one, opened(client, tasks=["panoptic"]) as other:
        for number in range(3):
            one.send_bytes(frame(number, encode_picture()))
            other.send_bytes(frame(10 + number, encode_picture()))
        first, second = answers(one, 3), answers(other, 3)
    assert ids(first) == [0, 1, 2] and ids(second) == [10, 11, 12]
    assert all(answer["results"].keys() == {"depth"} for answer in first)
    assert all(answer["results"].keys() == {"panoptic"} for answer in second)


# Mistakes


@pytest.mark.parametrize(
    ("config", "status", "words"),
    [
        ("no json", 400, ("Invalid JSON",)),
        ("[]", 400, ("object",)),
        ('{"color": 1}', 400, ("color=1",)),
        ('{"format": "mjpeg"}', 400, ("format='mjpeg'", "rgb24")),
        ('{"max_in_flight": 0}', 400, ("max_in_flight=0",)),
        ('{"max_in_flight": "4"}', 400, ("max_in_flight='4'",)),
        ('{"max_in_flight": 65}', 400, ("max_in_flight=65",)),
        ('{"drop_policy": "oldest"}', 400, ("drop_policy='oldest'", "latest")),
        ('{"frame_timeout_s": 0}', 400, ("frame_timeout_s=0",)),
        ('{"score_threshold": 2}', 400, ("score_threshold=2",)),
        ('{"masks": "png", "max_side": 1}', 400, ("masks='png'", "max_side=1")),
        ('{"tasks": "depth"}', 400, ("tasks='depth'", "array")),
        ('{"tasks": ["dept"]}', 404, ("'dept'", "panoptic")),
        ('{"tasks": []}', 404, ("empty list",)),
    ],
)
def test_a_config_that_cannot_be_is_refused_and_named(
    client: TestClient, service: SegmentationService, config: str, status: int, words: tuple[str, ...]
) -> None:
    with client.websocket_connect("/video") as session:
        session.send_text(config)
        assert_ended(session, 1008, status, *words)
    assert sample(service, "polyhead_requests_total", route="/video", code=str(status)) == 1


def test_a_wrong_value_is_not_told_at_length(client: TestClient) -> None:
    with client.websocket_connect("/video") as session:
        session.send_json({"tasks": "x" * 5000})
        assert len(assert_ended(session, 1008, 400)["detail"]) < 300


def test_a_frame_before_the_config_is_refused(client: TestClient) -> None:
    with client.websocket_connect("/video") as session:
        session.send_bytes(frame(1, b"data"))
        assert_ended(session, 1008, 400, "the first message is binary")


@pytest.mark.parametrize(
    "text", ['{"tasks": ["depth"]}', "frame", '{"end": false}', '{"end": true, "now": true}', "[" * 10**5]
)
def test_a_text_where_a_frame_belongs_ends_the_stream(client: TestClient, text: str) -> None:
    with opened(client) as session:
        session.send_text(text)
        assert_ended(session, 1008, 400, "where a frame belongs", text[:20])


def test_a_frame_after_the_end_is_refused(
    clients: Any, make_service: MakeService, encode_picture: Callable[..., bytes]
) -> None:
    with opened(clients(make_service(gated=True))) as session:
        session.send_bytes(frame(1, encode_picture()))  # holds the stream open
        session.send_json({"end": True})
        session.send_bytes(frame(2, encode_picture()))
        assert_ended(session, 1008, 400, "after the end")


@pytest.mark.parametrize(("form", "least"), [("image", 16), ("rgb24", 24)])
def test_a_message_shorter_than_its_header_ends_the_stream(client: TestClient, form: str, least: int) -> None:
    with opened(client, format=form) as session:
        session.send_bytes(bytes(least - 1))
        assert_ended(session, 1008, 400, f"{least - 1} bytes", f"has {least}")


def test_a_frame_over_the_limit_fails_alone(
    client: TestClient, service: SegmentationService, encode_picture: Callable[..., bytes]
) -> None:
    limit = service.settings.max_upload_bytes
    with opened(client, tasks=["depth"]) as session:
        for number, data in enumerate((bytes(limit), bytes(limit + 1), encode_picture())):
            session.send_bytes(frame(number, data))
            # read at once, since three of them are more than may be sent ahead
            (answer,) = answers(session, 1)
            assert answer.get("error", {}).get("status") == (400, 413, None)[number]


def test_a_head_that_fails_is_named_in_the_frames_errors(
    clients: Any,
    make_service: MakeService,
    make_bundle: Callable[..., Any],
    probe_head: Any,
    encode_picture: Callable[..., bytes],
) -> None:
    def fail(raw: Any) -> None:
        raise ValueError("broken head")

    service = make_service(make_bundle(broken=probe_head(on_postprocess=fail)))
    with opened(clients(service), tasks=["depth", "broken"]) as session:
        session.send_bytes(frame(1, encode_picture()))
        answer = session.receive_json()
    assert answer["results"].keys() == {"depth"}
    assert answer["errors"]["broken"]["title"] == "Head failed"


# Other sites


@pytest.mark.parametrize(
    "origin",
    [
        "https://elsewhere.example",
        "http://testserver:8001",
        "http://testserver.evil.example",
        "null",
        "",
        "x",
        "http://[",
    ],
)
def test_a_page_of_another_site_gets_no_socket(client: TestClient, service: SegmentationService, origin: str) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/video", headers={"origin": origin}),
    ):
        pass
    response: Any = refused.value
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    Problem.model_validate(problem)
    assert origin in problem["detail"] and "testserver" in problem["detail"]
    assert len(service.streams) == 0
    assert sample(service, "polyhead_requests_total", route="/video", code="403") == 1


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "testserver"),
        ("http://testserver", "testserver"),
        ("https://TestServer", "testserver"),
        ("http://testserver", "testserver:80"),
        ("https://testserver", "testserver:443"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_the_servers_own_page_and_programs_get_one(client: TestClient, origin: str | None, host: str) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    with client.websocket_connect("/video", headers=headers) as session:
        session.send_json({})
        assert "started" in session.receive_json()


def test_another_schemes_default_port_is_another_site(client: TestClient) -> None:
    headers = {"host": "testserver:443", "origin": "http://testserver"}
    with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/video", headers=headers):
        pass


# Too much


def test_latest_drops_the_oldest_waiting_frames_and_says_how_many(
    clients: Any, make_service: MakeService, encode_picture: Callable[..., bytes]
) -> None:
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass
    client = clients(service)
    with opened(client, tasks=["depth"], drop_policy="latest", max_in_flight=2) as session:
        session.send_bytes(frame(0, encode_picture()))
        assert gate.entered.wait(20)
        for number in range(1, 8):
            session.send_bytes(frame(number, encode_picture()))
        session.send_json({"end": True})
        gate.opened.set()
        told = []
        while not told or told[-1]["frame_id"] < 7:
            told.append(session.receive_json())
        assert_closed(session)
    assert ids(told) == sorted(ids(told)) and told[0]["frame_id"] == 0
    assert sum(answer["dropped_since_last"] for answer in told) == 8 - len(told) > 0


def test_reject_answers_each_frame_for_which_there_is_no_room(
    clients: Any, make_service: MakeService, encode_picture: Callable[..., bytes]
) -> None:
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass
    with opened(clients(service), tasks=["depth"], drop_policy="reject", max_in_flight=1) as session:
        session.send_bytes(frame(0, encode_picture()))
        assert gate.entered.wait(20)
        for number in (1, 2):
            session.send_bytes(frame(number, encode_picture()))
        session.send_json({"end": True})
        gate.opened.set()
        told = answers(session, 3)
        assert_closed(session)
    assert ids(told) == [0, 1, 2]
    assert [answer.get("error", {}).get("status") for answer in told] == [None, 429, 429]


def test_block_keeps_what_is_sent_ahead_and_ends_a_stream_that_sends_too_far_ahead(
    clients: Any, make_service: MakeService, encode_picture: Callable[..., bytes]
) -> None:
    service = make_service(gated=True, max_upload_bytes=100_000)
    gate: Any = service.engine.run_pass
    padded = encode_picture().ljust(20_000, b"\0")
    with opened(clients(service), tasks=["depth"], max_in_flight=1) as session:
        session.send_bytes(frame(0, padded))
        assert gate.entered.wait(20)
        for number in range(1, 5):
            session.send_bytes(frame(number, padded))
        gate.opened.set()
        assert ids(answers(session, 5)) == [0, 1, 2, 3, 4]  # none was lost
        gate.opened.clear()
        gate.entered.clear()
        session.send_bytes(frame(5, padded))
        assert gate.entered.wait(20)
        for number in range(6, 12):
            session.send_bytes(frame(number, padded))
        problem = assert_ended(session, 1013, 429, "100,000 bytes")
        assert "latest" in problem["remedy"]


def test_tiny_frames_sent_ahead_have_a_bound_too(
    clients: Any, make_service: MakeService, encode_picture: Callable[..., bytes]
) -> None:
    service = make_service(gated=True, max_upload_bytes=100_000)
    gate: Any = service.engine.run_pass
    with opened(clients(service), tasks=["depth"], max_in_flight=1) as session:
        session.send_bytes(frame(0, encode_picture()))
        assert gate.entered.wait(20)
        for number in range(1, 120):
            session.send_bytes(frame(number, b""))
        assert_ended(session, 1013, 429, "wait for their turn")


def test_what_was_answered_does_not_count_as_sent_ahead(clients: Any, make_service: MakeService) -> None:
    service = make_service(gated=True, max_upload_bytes=4000)
    gate: Any = service.engine.run_pass
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    with opened(clients(service), tasks=["depth"], max_in_flight=1) as session:
        for number in range(300):  # headers alone are more than 4000 bytes
            session.send_bytes(frame(number, b""))
            session.receive_json()
        session.send_bytes(frame(300, buffer.getvalue()))
        assert gate.entered.wait(20)
        for number in (301, 302, 303):
            session.send_bytes(frame(number, b""))
        session.send_json({"end": True})
        gate.opened.set()
        assert ids(answers(session, 4)) == [300, 301, 302, 303]
        assert_closed(session)


def test_a_frame_larger_than_what_is_kept_ahead_is_still_taken_alone(
    clients: Any, make_service: MakeService, encode_picture: Callable[..., bytes]
) -> None:
    size = len(frame(0, encode_picture()))
    with opened(clients(make_service(max_upload_bytes=size)), tasks=["depth"]) as session:
        for number in range(3):
            session.send_bytes(frame(number, encode_picture()))
            assert session.receive_json()["results"].keys() == {"depth"}


def test_a_frame_that_waited_too_long_is_answered_with_an_error(
    clients: Any, make_service: MakeService, encode_picture: Callable[..., bytes]
) -> None:
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass
    with opened(clients(service), tasks=["depth"], frame_timeout_s=0.5) as session:
        for number in (0, 1):
            session.send_bytes(frame(number, encode_picture()))
        assert gate.entered.wait(20)
        assert not gate.opened.wait(0.6)
        gate.opened.set()
        first, second = answers(session, 2)
    assert "results" in first  # its turn came at once
    assert second["error"]["status"] == 504


def test_one_stream_too_many_is_told_to_try_later(clients: Any, make_service: MakeService) -> None:
    client = clients(make_service(max_streams=1))
    with opened(client), client.websocket_connect("/video") as session:
        session.send_json({})
        assert_ended(session, 1013, 429, "1 streams are open")


# Ends


def test_a_silent_stream_is_ended_and_told_why(clients: Any, make_service: MakeService) -> None:
    service = make_service(stream_idle_s=0.05)
    client = clients(service)
    with opened(client) as session:
        assert_ended(session, 4409, 409, "no frame came for 0.05 s")
    wait_until_freed(client, service)


def test_a_socket_without_a_config_is_ended(clients: Any, make_service: MakeService) -> None:
    with clients(make_service(stream_idle_s=0.05)).websocket_connect("/video") as session:
        assert_ended(session, 4409, 409, "no config came for 0.05 s")


def test_a_replica_that_stops_tells_its_streams(
    client: TestClient, service: SegmentationService, encode_picture: Callable[..., bytes]
) -> None:
    with opened(client, tasks=["depth"]) as session:
        session.send_bytes(frame(1, encode_picture()))
        assert session.receive_json()["frame_id"] == 1
        assert client.portal is not None
        client.portal.call(service.streams.end_all)
        assert_ended(session, 1013, 503, "stopping")
    wait_until_freed(client, service)


def test_a_draining_replica_takes_no_stream(client: TestClient, service: SegmentationService) -> None:
    service.drain()
    with client.websocket_connect("/video") as session:
        session.send_json({})
        assert_ended(session, 1013, 503, "draining")


@pytest.mark.parametrize("code", [1000, 1001, 1006])
def test_a_client_that_leaves_leaves_nothing_behind(
    clients: Any,
    make_service: MakeService,
    encode_picture: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass
    client = clients(service)
    with opened(client, max_in_flight=1) as session:
        for number in range(3):  # one before the encoder, two that wait
            session.send_bytes(frame(number, encode_picture()))
        assert gate.entered.wait(20)
        session.close(code)
        wait_until_freed(client, service)  # though the encoder still stands
        gate.opened.set()
    assert sample(service, "polyhead_requests_total", route="/video", code="101") == 1
    assert service.admission.inside == 0
    assert sample(service, "polyhead_cancelled_total", route="/video") == 1
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


def test_a_bug_of_ours_is_told_as_one_and_ends_the_stream(
    client: TestClient,
    service: SegmentationService,
    encode_picture: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("serving.gateways.ws_gateway.prediction_json", broken)
    with opened(client, tasks=["depth"]) as session:
        session.send_bytes(frame(1, encode_picture()))
        problem = assert_ended(session, 1011, 500, "the server's log")
    assert "bug" not in problem["detail"]
    assert "ZeroDivisionError" in caplog.text
    wait_until_freed(client, service)
    assert sample(service, "polyhead_requests_total", route="/video", code="500") == 1
    assert sample(service, "polyhead_failed_total", route="/video", code="internal") == 1
    assert sample(service, "polyhead_cancelled_total", route="/video") == 0


class Peer:
    """The other end of a socket, which takes the first `reads` messages and then no more.

    Attributes:
        sent: all messages that it took.
    """

    def __init__(self, messages: list[dict[str, Any]], reads: int) -> None:
        self.sent: list[dict[str, Any]] = []
        self._messages = [{"type": "websocket.connect"}, *messages]
        self._reads = reads

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.sent) == self._reads:
            await asyncio.Event().wait()
        self.sent.append(message)

    async def call(self, service: SegmentationService) -> None:
        scope = {
            "type": "websocket",
            "path": "/video",
            "raw_path": b"/video",
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "subprotocols": [],
            "extensions": {},
        }
        await create_app(service)(scope, self.receive, self.send)


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_a_client_that_never_reads_is_given_up(
    make_service: MakeService,
    encode_picture: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    reads: int,
) -> None:
    monkeypatch.setattr("serving.gateways.ws_gateway._GOODBYE_S", 0.05)
    service = make_service(stream_idle_s=0.1)
    frames = [{"type": "websocket.receive", "bytes": frame(number, encode_picture())} for number in range(20)]
    peer = Peer([{"type": "websocket.receive", "text": json.dumps({"max_in_flight": 1})}, *frames], reads)

    asyncio.run(asyncio.wait_for(peer.call(service), 20))
    assert len(peer.sent) == reads
    assert len(service.streams) == 0
    assert sample(service, "polyhead_requests_total", route="/video", code="409") == 1


def test_a_stream_whose_task_is_cancelled_is_freed(
    make_service: MakeService, encode_picture: Callable[..., bytes]
) -> None:
    service = make_service()  # as Ray Serve does it when a client leaves
    peer = Peer([{"type": "websocket.receive", "text": "{}"}], 2)

    async def scenario() -> None:
        call = asyncio.create_task(peer.call(service))
        while not len(service.streams):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert len(service.streams) == 0
    assert sample(service, "polyhead_requests_total", route="/video", code="101") == 1
    assert sample(service, "polyhead_cancelled_total", route="/video") == 1
