"""The models of the API's JSON: what the server documents is what it sends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from serving.http_gateway import create_app
from serving.schemas import Problem, SegmentAnswer
from serving.service import SegmentationService


@pytest.mark.parametrize("masks", ["rle", "polygon", "none"])
def test_every_answer_is_as_documented(
    make_service: Callable[..., SegmentationService], encode_picture: Callable[..., bytes], masks: str
) -> None:
    client = TestClient(create_app(make_service()))
    response = client.post(
        "/segment", params={"masks": masks}, content=encode_picture(), headers={"Content-Type": "image/png"}
    )
    answer = SegmentAnswer.model_validate(response.json())
    segments = answer.results["panoptic"].segments
    assert segments
    assert all((segment.rle is not None) == (masks == "rle") for segment in segments)
    assert all((segment.polygons is not None) == (masks == "polygon") for segment in segments)


def test_a_problem_is_as_documented_under_a_documented_status(
    make_service: Callable[..., SegmentationService],
) -> None:
    client = TestClient(create_app(make_service()))
    response = client.post("/segment", content=b"no picture", headers={"Content-Type": "image/png"})
    Problem.model_validate(response.json())
    documented = client.get("/openapi.json").json()["paths"]["/segment"]["post"]["responses"]
    assert str(response.status_code) in documented
    assert documented["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SegmentAnswer")
