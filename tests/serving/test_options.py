"""Options: what a value's bounds let in and say, and that every protocol has the same ones, named with the value."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from serving.errors import InvalidOptionError
from serving.gateways.grpc_messages import parse_options, parse_stream_config, parse_timeout_s
from serving.gateways.http_gateway import SegmentQuery, create_app
from serving.gateways.ws_gateway import VideoConfig
from serving.oip.calls import InferParameters
from serving.options import MAX_IN_FLIGHT, MAX_SIDE, POSTPROCESS_BOUNDS, THRESHOLD, TIMEOUT_S, Bounds, RequestOptions
from serving.protos import segmentation_pb2 as pb
from serving.service import SegmentationService

PER_PICTURE = POSTPROCESS_BOUNDS | {"max_side": MAX_SIDE}
OUTSIDE = [
    *((name, value) for name in POSTPROCESS_BOUNDS for value in (-0.01, 1.01)),
    ("max_side", MAX_SIDE.low - 1),
    ("max_side", MAX_SIDE.high + 1),
]


def _http(name: str, value: float) -> Any:
    return getattr(SegmentQuery.model_validate({name: str(value)}).options, name, None)


def _web_socket(name: str, value: float) -> None:
    VideoConfig.model_validate_json(json.dumps({name: value}))


def _oip(name: str, value: float) -> None:
    InferParameters.read({name: value})


def _grpc(name: str, value: Any) -> None:
    parse_options(pb.Options(**{name: value}))


READERS = {"http": _http, "web socket": _web_socket, "inference protocol": _oip, "grpc": _grpc}


@pytest.mark.parametrize("protocol", READERS)
@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_a_value_outside_its_bounds_is_refused_by_every_protocol(protocol: str, name: str, value: float) -> None:
    with pytest.raises((InvalidOptionError, ValidationError)) as refused:
        READERS[protocol](name, value)
    assert name in str(refused.value)
    assert f"{value:g}" in str(refused.value)


@pytest.mark.parametrize("protocol", READERS)
@pytest.mark.parametrize("name", PER_PICTURE)
def test_the_bounds_themselves_are_let_in_by_every_protocol(protocol: str, name: str) -> None:
    for value in (PER_PICTURE[name].low, PER_PICTURE[name].high):
        READERS[protocol](name, value)


@pytest.mark.parametrize("model", [SegmentQuery, VideoConfig, InferParameters])
def test_every_protocol_takes_every_option_with_the_same_default(model: type[BaseModel]) -> None:
    for name, field in RequestOptions.model_fields.items():
        assert model.model_fields[name].default == field.default


@pytest.mark.parametrize("value", [0.0, 3601.0, float("nan")])
def test_a_time_limit_outside_its_bounds_is_refused_by_every_protocol(
    value: float, make_service: Callable[..., SegmentationService], encode_picture: Callable[..., bytes]
) -> None:
    with pytest.raises(InvalidOptionError, match=f"timeout_s={value:g}") as refused:
        parse_timeout_s(pb.SegmentRequest(timeout_s=value), "timeout_s")
    assert refused.value.remedy == "give more than 0, at most 3600, or leave it out"
    with pytest.raises(InvalidOptionError, match=f"frame_timeout_s={value:g}"):
        parse_stream_config(pb.VideoConfig(frame_timeout_s=value), ("depth",))
    client = TestClient(create_app(make_service()))
    for path in ("/segment", "/v2/models/depth/infer", "/features"):
        headers = {"X-Request-Timeout-S": str(value), "Content-Type": "image/png"}
        answer = client.post(path, content=encode_picture(), headers=headers)
        assert answer.status_code == 400, (path, answer.text)
        assert str(value) in answer.text
    if value == value:
        with pytest.raises(ValidationError, match="frame_timeout_s"):
            VideoConfig.model_validate({"frame_timeout_s": value})
    if value > 1:
        with pytest.raises(InvalidOptionError, match="timeout=3601000000"):
            InferParameters.read({"timeout": int(1e6 * value)})


def test_the_header_and_the_fields_tell_their_bounds_in_the_api_s_description(
    make_service: Callable[..., SegmentationService],
) -> None:
    parameters = create_app(make_service()).openapi()["paths"]["/segment"]["post"]["parameters"]
    told = {
        parameter["name"]: parameter["schema"]["anyOf"][0] for parameter in parameters if "anyOf" in parameter["schema"]
    }
    assert (told["x-request-timeout-s"]["exclusiveMinimum"], told["x-request-timeout-s"]["maximum"]) == (0, 3600)
    assert (told["max_side"]["minimum"], told["max_side"]["maximum"]) == (16, 16384)
    assert (told["score_threshold"]["minimum"], told["score_threshold"]["maximum"]) == (0, 1)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (THRESHOLD, (0, 0.5, 1), (-0.1, 1.1)),
        (TIMEOUT_S, (1e-9, 3600), (0, -1, 3600.1)),
        (MAX_IN_FLIGHT, (1, 64), (0, 65)),
    ],
)
def test_bounds_hold_their_ends_unless_they_say_above(
    bounds: Bounds, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in (*outside, float("nan")))


def test_bounds_say_themselves_for_people() -> None:
    assert str(MAX_SIDE) == "16 to 16384"
    assert str(TIMEOUT_S) == "more than 0, at most 3600"
