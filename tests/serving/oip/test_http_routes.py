"""The Open Inference Protocol over HTTP, as an unchanged tritonclient sees it, and as plain JSON."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import uvicorn
from numpy.typing import NDArray
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from serving.answers.render import result_json
from serving.bundles.loading import Bundle
from serving.errors import TooLargeError
from serving.gateways.http_gateway import create_app
from serving.oip.http_routes import _decompressed
from serving.pictures import decode_picture
from serving.service import SegmentationService

MakeService = Callable[..., SegmentationService]
INFER = "/v2/models/depth/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
def service(make_service: MakeService) -> SegmentationService:
    return make_service()


@pytest.fixture
def http(service: SegmentationService) -> TestClient:
    """Without a socket."""
    return TestClient(create_app(service), raise_server_exceptions=False)


@pytest.fixture
def address(service: SegmentationService) -> Iterator[str]:
    """Where uvicorn listens."""
    server = uvicorn.Server(uvicorn.Config(create_app(service), "127.0.0.1", 0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.005)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="session")
def photo(encode_picture: Callable[..., bytes]) -> bytes:
    """60 high, 90 wide."""
    return encode_picture(60, 90)


def files(*pictures: bytes, binary: bool = True) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", [len(pictures)], "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, dtype=object), binary_data=binary)
    return [tensor]


def pixels(values: NDArray[Any], datatype: str = "UINT8", *, binary: bool = True) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return [tensor]


def outputs(*names: str, binary: bool = True) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def body_of(*data: Any, datatype: str = "BYTES", shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": datatype, "shape": shape or [len(data)], "data": list(data)}
    return {"inputs": [tensor]} | more


def base64_of(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def error_of(response: Any, status: int) -> str:
    """The text of a failure, which is told as the protocol has it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    told: dict[str, str] = response.json()
    assert told.keys() == {"error"}
    return told["error"]


# What the server tells of itself


def test_a_ready_server_says_so(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("panoptic")
    assert client.is_model_ready("panoptic", "1")
    assert not client.is_model_ready("panoptc")
    assert not client.is_model_ready("panoptic", "2")


def test_a_draining_server_lives_and_is_not_ready(http: TestClient, service: SegmentationService) -> None:
    service.drain()
    assert http.get("/v2/health/live").json() == {"live": True}
    for path in ("/v2/health/ready", "/v2/models/depth/ready"):
        response = http.get(path)
        assert "draining" in error_of(response, 503)
        assert response.headers["Retry-After"] == "2"
        assert http.head(path).status_code == 503
    assert {model["state"] for model in http.post("/v2/repository/index").json()} == {"UNAVAILABLE"}
    assert http.post("/v2/repository/index", json={"ready": True}).json() == []


def test_what_is_polled_can_be_asked_for_its_head(http: TestClient) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/depth/ready", "/v2/models/depth/versions/1/ready"):
        assert http.head(path).status_code == http.get(path).status_code == 200


def test_the_server_and_its_models_are_told(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata()
    assert server["name"] == "polyhead"
    assert "binary_tensor_data" in server["extensions"]
    assert "statistics" not in server["extensions"]
    image = {"name": "image", "datatype": "BYTES", "shape": [-1]}
    assert client.get_model_metadata("depth", "1") == {
        "name": "depth",
        "versions": ["1"],
        "platform": "polyhead",
        "inputs": [image],
        "outputs": [
            {"name": "depth", "datatype": "FP32", "shape": [-1, -1, -1]},
            {"name": "json", "datatype": "BYTES", "shape": [-1]},
        ],
    }
    config = client.get_model_config("depth")
    assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert config["output"][0] == {"name": "depth", "data_type": "TYPE_FP32", "dims": [-1, -1, -1]}
    assert config["max_batch_size"] == 0
    assert "sequence_batching" not in config
    assert client.get_model_repository_index() == [
        {"name": name, "version": "1", "state": "READY"} for name in ("panoptic", "depth", "ensemble")
    ]


@pytest.mark.parametrize("path", ["", "/config", "/ready", "/versions/1/config"])
def test_an_unknown_model_is_not_found(http: TestClient, path: str) -> None:
    told = error_of(http.get(f"/v2/models/panoptc{path}"), 404)
    assert "no model 'panoptc'; there are: panoptic, depth, ensemble" in told


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/depth/stats"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/repository/models/depth/load"),
        ("GET", "/v2/nowhere/at/all"),
        ("GET", INFER),
    ],
)
def test_what_is_not_supported_says_so(http: TestClient, method: str, path: str) -> None:
    assert f"{method} {path} is not supported" in error_of(http.request(method, path), 404)


def test_other_paths_fail_as_before(http: TestClient) -> None:
    assert http.get("/nowhere").headers["content-type"] == "application/problem+json"


def test_an_index_is_asked_with_an_object_or_nothing(http: TestClient) -> None:
    for wrong in (b"[1]", b"{", b"\xff"):
        assert "no JSON object" in error_of(http.post("/v2/repository/index", content=wrong), 400)


def test_the_schema_tells_the_protocol(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    infer = paths["/v2/models/{model}/infer"]["post"]
    parameters = infer["requestBody"]["content"]["application/json"]["schema"]["properties"]["parameters"]
    assert parameters["properties"]["max_side"]["description"]
    assert [path for path in paths if "versions" in path or "rest" in path] == []
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(set(names)) == len(names)


# Answers


@pytest.mark.parametrize("in_binary", [True, False])
@pytest.mark.parametrize("out_binary", [True, False, None])
def test_tensors_go_in_binary_or_in_json_both_ways(
    client: triton.InferenceServerClient,
    service: SegmentationService,
    photo: bytes,
    in_binary: bool,
    out_binary: bool | None,
) -> None:
    given = files(photo) if in_binary else files(base64.b64encode(photo), binary=False)
    asked = None if out_binary is None else outputs("segment_map", "json", binary=out_binary)
    result = client.infer("panoptic", given, outputs=asked, request_id="mine-1")
    expected: Any = service.engine.predict(photo, ["panoptic"])[0].results["panoptic"]
    assert expected.segments
    np.testing.assert_array_equal(result.as_numpy("segment_map")[0], expected.segment_map)
    told = result.as_numpy("json")[0]
    assert json.loads(told) == json.loads(json.dumps(result_json(expected, "rle")))
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine-1", "panoptic", "1")
    assert response["parameters"]["encoder_passes"] == 1
    assert all(("data" in output) == (out_binary is False) for output in response["outputs"])


def test_outputs_may_be_mixed_and_come_in_the_order_in_which_they_are_asked(
    client: triton.InferenceServerClient, service: SegmentationService, photo: bytes
) -> None:
    asked = outputs("depth.json") + outputs("panoptic.json", binary=False) + outputs("depth.depth")
    result = client.infer("ensemble", files(photo), outputs=asked)
    assert [output["name"] for output in result.get_response()["outputs"]] == [
        "depth.json", "panoptic.json", "depth.depth",
    ]  # fmt: skip
    assert json.loads(result.as_numpy("depth.json")[0])["kind"] == "depth"
    assert json.loads(result.as_numpy("panoptic.json")[0])["kind"] == "panoptic"
    expected: Any = service.engine.predict(photo, ["depth"])[0].results["depth"]
    np.testing.assert_array_equal(result.as_numpy("depth.depth")[0], expected.depth_m)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_raw_pixels_are_answered_as_their_picture_file(
    client: triton.InferenceServerClient, encode_picture: Callable[..., bytes], binary: bool, batched: bool
) -> None:
    picture = encode_picture(30, 40)
    values = np.asarray(decode_picture(picture))
    raw = client.infer("depth", pixels(values[None] if batched else values, binary=binary))
    np.testing.assert_array_equal(raw.as_numpy("depth"), client.infer("depth", files(picture)).as_numpy("depth"))


@pytest.mark.parametrize("asked", ["gzip", "deflate"])
def test_both_bodies_may_be_compressed(client: triton.InferenceServerClient, photo: bytes, asked: str) -> None:
    plain = client.infer("panoptic", files(photo))
    for binary in (True, False):
        result = client.infer(
            "panoptic",
            files(photo),
            outputs=outputs("segment_map", "json", binary=binary),
            request_compression_algorithm=asked,
            response_compression_algorithm=asked,
        )
        np.testing.assert_array_equal(result.as_numpy("segment_map"), plain.as_numpy("segment_map"))
        assert json.loads(result.as_numpy("json")[0]) == json.loads(plain.as_numpy("json")[0])


def test_an_answer_is_compressed_only_on_purpose(http: TestClient, photo: bytes) -> None:
    body = body_of(base64_of(photo))
    assert "content-encoding" not in http.post(INFER, json=body).headers
    for asked in ("gzip", "deflate"):
        response = http.post(INFER, json=body, headers={"Accept-Encoding": asked})
        assert response.headers["content-encoding"] == asked
        assert response.json()["outputs"][0]["shape"] == [1, 60, 90]


def test_plain_json_is_enough(http: TestClient, service: SegmentationService, photo: bytes) -> None:
    response = http.post(INFER, json=body_of(base64_of(photo), id="mine-1", outputs=[{"name": "depth"}]))
    assert response.headers["content-type"] == "application/json"
    assert LENGTH not in response.headers
    answer = response.json()
    assert answer.keys() == {"model_name", "model_version", "id", "parameters", "outputs"}
    (depth,) = answer["outputs"]
    assert (depth["name"], depth["datatype"], depth["shape"]) == ("depth", "FP32", [1, 60, 90])
    expected: Any = service.engine.predict(photo, ["depth"])[0].results["depth"]
    np.testing.assert_array_equal(np.array(depth["data"], np.float32).reshape(60, 90), expected.depth_m)


def test_an_answer_without_a_request_id_has_none(http: TestClient, photo: bytes) -> None:
    assert "id" not in http.post(INFER, json=body_of(base64_of(photo))).json()


def test_nested_data_are_taken_as_flat_ones(http: TestClient) -> None:
    values = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    nested = http.post(INFER, json=body_of(*values.tolist(), datatype="UINT8", shape=[10, 12, 3])).json()
    flat = http.post(INFER, json=body_of(*values.ravel().tolist(), datatype="UINT8", shape=[10, 12, 3])).json()
    assert nested["outputs"] == flat["outputs"]


def test_parameters_are_read(http: TestClient, photo: bytes) -> None:
    asked = body_of(base64_of(photo), parameters={"max_side": 45, "score_threshold": 1, "tasks": "panoptic"})
    answer = http.post("/v2/models/ensemble/infer", json=asked).json()
    segment_map, told = answer["outputs"]
    assert segment_map["name"] == "panoptic.segment_map"
    assert segment_map["shape"] == [1, 30, 45]
    assert not any(segment_map["data"])
    assert json.loads(told["data"][0]) == {"kind": "panoptic", "segments": []}


def test_a_version_may_be_named(client: triton.InferenceServerClient, photo: bytes) -> None:
    assert client.infer("depth", files(photo), model_version="1").as_numpy("depth").shape == (1, 60, 90)
    with pytest.raises(InferenceServerException, match="no version '2' of model 'depth'"):
        client.infer("depth", files(photo), model_version="2")


def test_the_asynchronous_client_works_unchanged(address: str, service: SegmentationService, photo: bytes) -> None:
    async def use() -> Any:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            return await client.infer("depth", files(photo, photo))

    expected: Any = service.engine.predict(photo, ["depth"])[0].results["depth"]
    depth = asyncio.run(use()).as_numpy("depth")
    np.testing.assert_allclose(depth, np.stack([expected.depth_m] * 2), rtol=1e-5)


def test_requests_and_refusals_are_counted_by_route(
    http: TestClient, service: SegmentationService, photo: bytes
) -> None:
    http.post(INFER, json=body_of(base64_of(photo)))
    http.post(INFER, json=body_of(base64_of(b"no picture")))
    count = service.metrics.registry.get_sample_value
    route = "/v2/models/{model}/infer"
    assert count("polyhead_requests_total", {"route": route, "code": "200"}) == 1
    assert count("polyhead_requests_total", {"route": route, "code": "400"}) == 1
    assert count("polyhead_rejected_total", {"route": route, "code": "invalid-image"}) == 1
    assert count("polyhead_render_seconds_count") == 1
    assert count("polyhead_admission_seconds_count") == 2


# Refusals


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"inputs": files(b"no picture at all")}, "400", "no image that can be read"),
        ({"inputs": pixels(np.zeros((60, 90, 3), np.float32), "FP32")}, "400", "datatype FP32"),
        ({"inputs": pixels(np.zeros((60, 90), np.uint8))}, "400", "UINT8 of shape [60, 90]"),
        ({"inputs": pixels(np.zeros((4, 4, 3), np.uint8))}, "422", "shorter side is under"),
        ({"inputs": files(*[b"x"] * 5)}, "413", "5 pictures in one request; at most 4"),
        ({"inputs": files(b"x" * 200_001)}, "413", "a picture of 200,001 bytes"),
        ({"inputs": files(b"x" * 400_000)}, "413", "the request is over 265,536 bytes"),
        ({"model_name": "panoptc"}, "404", "no model 'panoptc'"),
        ({"outputs": outputs("map")}, "400", "no output 'map'"),
        ({"parameters": {"treshold": 0.5}}, "400", "parameter treshold=0.5"),
        ({"sequence_id": 5, "sequence_start": True}, "400", "sequence 5 outside a stream"),
        ({"sequence_id": "five"}, "400", "sequence 'five' outside a stream"),
    ],
)
def test_a_wrong_request_is_refused(
    client: triton.InferenceServerClient, photo: bytes, asked: dict[str, Any], status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException) as failure:
        client.infer(**({"model_name": "depth", "inputs": files(photo)} | asked))
    assert failure.value.status() == status
    assert words in failure.value.message()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is no inference request"),
        (b"{", "the body is no inference request: body: Invalid JSON"),
        (b"[]", "the body is no inference request"),
        (b"{}", "inputs: Field required"),
        (b"\xff\xfe", "the body is no inference request"),
        ({"inputs": []}, "the inputs are none"),
        (body_of("%%%%"), "'%%%%' … is no picture file in base64"),
        (body_of(7), "int is no picture file in base64"),
        (body_of(None), "NoneType is no picture file"),
        (body_of(["aGk="]), "list is no picture file"),
        (body_of("aGk=", shape=[2]), "shape [2] came with 1 elements"),
        (body_of(1, 2, 256, datatype="UINT8", shape=[1, 1, 3]), "whole numbers in 0..255"),
        (body_of(1, 2, -1, datatype="UINT8", shape=[1, 1, 3]), "whole numbers in 0..255"),
        (body_of(1, 2, 0.5, datatype="UINT8", shape=[1, 1, 3]), "whole numbers in 0..255"),
        (body_of(1, 2, "a", datatype="UINT8", shape=[1, 1, 3]), "whole numbers in 0..255"),
        (body_of(1, [2, 3], datatype="UINT8", shape=[1, 1, 3]), "whole numbers in 0..255"),
        (body_of(True, True, True, datatype="UINT8", shape=[1, 1, 3]), "whole numbers in 0..255"),
        (body_of(datatype="UINT8", shape=[1, 1, 3]), "whole numbers in 0..255"),
        (body_of(1, 2, datatype="UINT8", shape=[1 << 40, 1 << 40, 3]), "came with 2 bytes"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}, "came without data"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": "aGk="}]}, "are no list"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": ["a"], "data": []}]}, "inputs.0.shape.0"),
        (body_of("aGk=", parameters={"sequence_start": True}), "without a sequence_id"),
        (body_of("aGk=", outputs=[{"name": "json", "parameters": {"shared_memory_region": "r"}}]), "shared memory"),
    ],
)
def test_a_body_that_is_no_request_is_refused(http: TestClient, body: Any, words: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert words in error_of(http.post(INFER, content=content), 400)


def binary_body(size: Any, section: bytes) -> tuple[bytes, int]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + section, len(header)


@pytest.mark.parametrize(
    ("size", "section", "words"),
    [
        (100, b"\x02\0\0\0hi", "binary_data_size of 100, but 6 bytes are left"),
        (-1, b"\x02\0\0\0hi", "binary_data_size of -1"),
        ("6", b"\x02\0\0\0hi", "binary_data_size of '6'"),
        (5, b"\x02\0\0\0h", "cut short: an element of 2 bytes at byte 4 of 5"),
        (3, b"\x02\0\0", "cut short"),
        (6, b"\x02\0\0\0hi and more", "9 bytes of binary data belong to no input"),
        (6, b"\x03\0\0\0hi", "cut short"),
    ],
)
def test_a_binary_section_that_does_not_fit_is_refused(http: TestClient, size: Any, section: bytes, words: str) -> None:
    body, length = binary_body(size, section)
    assert words in error_of(http.post(INFER, content=body, headers={LENGTH: str(length)}), 400)


@pytest.mark.parametrize("length", ["1000", "-1", "many", "", "1.5", "²"])
def test_a_wrong_header_length_is_refused(http: TestClient, length: str) -> None:
    body, _ = binary_body(6, b"\x02\0\0\0hi")
    told = error_of(http.post(INFER, content=body, headers={LENGTH: length.encode()}), 400)
    assert LENGTH in told


def test_binary_data_without_the_header_length_are_refused(http: TestClient) -> None:
    body, _ = binary_body(6, b"\x02\0\0\0hi")
    assert LENGTH in error_of(http.post(INFER, content=body), 400)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_broken_compression_is_refused(http: TestClient, photo: bytes, encoding: str) -> None:
    plain = json.dumps(body_of(base64_of(photo))).encode()
    packed = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    headers = {"Content-Encoding": encoding}
    assert http.post(INFER, content=packed, headers=headers).status_code == 200
    assert "cut short" in error_of(http.post(INFER, content=packed[:-20], headers=headers), 400)
    assert f"no {encoding}" in error_of(http.post(INFER, content=plain, headers=headers), 400)
    bomb = gzip.compress(bytes(10_000_000)) if encoding == "gzip" else zlib.compress(bytes(10_000_000))
    assert "over 265,536 bytes" in error_of(http.post(INFER, content=bomb, headers=headers), 413)


def test_a_bomb_never_gets_large_in_memory() -> None:
    bomb = zlib.compress(bytes(10_000_000))
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        _decompressed(bomb, {"content-encoding": "deflate"}, 1000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200_000


def test_what_was_sent_is_not_given_back_by_the_megabyte(http: TestClient) -> None:
    told = error_of(http.post(INFER, json=body_of("aGk=", parameters={"masks": "x" * 100_000})), 400)
    assert told.startswith("parameter masks='xxx")
    assert len(told) <= 1000


def test_an_unknown_compression_is_refused(http: TestClient) -> None:
    response = http.post(INFER, content=b"x", headers={"Content-Encoding": "br"})
    assert "encoded as br; send it as it is, or as gzip or deflate" in error_of(response, 415)


def test_the_deadline_of_the_header_is_kept(make_service: MakeService, photo: bytes) -> None:
    service = make_service(gated=True)
    http = TestClient(create_app(service), raise_server_exceptions=False)
    response = http.post(INFER, json=body_of(base64_of(photo)), headers={"X-Request-Timeout-S": "0.3"})
    assert "no answer within" in error_of(response, 504)
    assert service.admission.inside == 0
    wrong = http.post(INFER, json=body_of(base64_of(photo)), headers={"X-Request-Timeout-S": "soon"})
    assert "x-request-timeout-s='soon'" in error_of(wrong, 400)


def test_an_overloaded_server_says_when_to_come_again(make_service: MakeService, photo: bytes) -> None:
    service = make_service(max_pictures_inside=1)
    service.admission.enter(30)
    response = TestClient(create_app(service)).post(INFER, json=body_of(base64_of(photo)))
    assert "as many as are let in" in error_of(response, 429)
    assert response.headers["Retry-After"] == "1"


def test_a_bug_is_told_without_its_insides(
    http: TestClient,
    service: SegmentationService,
    photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def bug(*arguments: object) -> None:
        raise ZeroDivisionError("secret of the server")

    monkeypatch.setattr(service.engine, "prepare", bug)
    told = error_of(http.post(INFER, json=body_of(base64_of(photo))), 500)
    assert told == "an unexpected failure; the server's log has it; report it"
    assert "secret of the server" in caplog.text
    assert service.admission.inside == 0


def test_a_client_that_goes_away_is_counted_and_nothing_is_said(service: SegmentationService) -> None:
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode(), "query_string": b"",
        "headers": [], "http_version": "1.1", "root_path": "", "scheme": "http",
        "client": ("c", 1), "server": ("s", 1),
    }  # fmt: skip
    asyncio.run(create_app(service)(scope, receive, send))
    assert sent == []
    count = service.metrics.registry.get_sample_value
    assert count("polyhead_requests_total", {"route": "/v2/models/{model}/infer", "code": "499"}) == 1
    assert service.admission.inside == 0


def test_a_video_head_says_that_it_remembers(make_bundle: Callable[..., Bundle], make_service: MakeService) -> None:
    from decoders.labels import load_label_set
    from decoders.video import VideoSemanticDecoder

    head = VideoSemanticDecoder(
        make_bundle().encoder.spec,
        label_set=load_label_set("coco_supercategories"), out_indices=(0, 2), num_queries=4, num_blocks=1,
    )  # fmt: skip
    http = TestClient(create_app(make_service(make_bundle(video=head.eval()))))
    assert http.get("/v2/models/video/config").json()["sequence_batching"] == {
        "max_sequence_idle_microseconds": 30_000_000
    }


def test_httpx_reads_a_binary_answer_as_the_extension_says(address: str, photo: bytes) -> None:
    body = body_of(base64_of(photo), parameters={"binary_data_output": True}, outputs=[{"name": "depth"}])
    response = httpx.post(f"http://{address}{INFER}", json=body)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    (depth,) = json.loads(response.content[:length])["outputs"]
    assert depth == {
        "name": "depth", "datatype": "FP32", "shape": [1, 60, 90], "parameters": {"binary_data_size": 4 * 60 * 90},
    }  # fmt: skip
    assert len(response.content) == length + 4 * 60 * 90
