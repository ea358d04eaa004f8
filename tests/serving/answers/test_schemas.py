"""The models of the API's JSON: what the server documents is what it sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from decoders.masks import encode
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from serving.answers.render import prediction_json
from serving.answers.schemas import (
    ClassificationAnswer,
    DenseEmbeddingAnswer,
    DepthAnswer,
    EmbeddingAnswer,
    InstanceAnswer,
    PanopticAnswer,
    Problem,
    SegmentAnswer,
    SemanticAnswer,
)
from serving.gateways.http_gateway import create_app
from serving.service import SegmentationService
from serving.types import Prediction, Timing

LEFT = np.repeat([[True, False]], 4, axis=0)
CAT = Segment(1, 0, "cat", True, 0.5, 4, (0, 0, 1, 4))
TRACKED = Segment(1, 0, "cat", True, 0.5, 4, (0, 0, 1, 4), track_id=3)
ONE_OF_EACH: list[tuple[Result, type]] = [
    (PanopticResult(LEFT.astype(np.int32), (CAT,)), PanopticAnswer),
    (SemanticResult(LEFT.astype(np.int32), (CAT,)), SemanticAnswer),
    (InstanceResult((4, 2), (TRACKED,), (encode(LEFT),)), InstanceAnswer),
    (DepthResult(np.ones((4, 2), np.float32)), DepthAnswer),
    (ClassificationResult((ClassScore(0, "cat", 0.5),)), ClassificationAnswer),
    (EmbeddingResult(np.array([0.1, -2.0], np.float32)), EmbeddingAnswer),
    (DenseEmbeddingResult(np.ones((2, 3, 4), np.float32)), DenseEmbeddingAnswer),
]


def answer_of(result: Result, masks: Any = "rle") -> dict[str, Any]:
    """The answer that a client receives."""
    prediction = Prediction((4, 2), (4, 2), {"task": result}, {}, Timing())
    answer: dict[str, Any] = json.loads(
        json.dumps(prediction_json(prediction, request_id="r1", bundle="tiny", masks=masks))
    )
    return answer


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


@pytest.mark.parametrize("masks", ["rle", "polygon", "none"])
@pytest.mark.parametrize(("result", "model"), ONE_OF_EACH)
def test_a_result_of_any_kind_is_documented_field_by_field(result: Result, model: type, masks: str) -> None:
    answer = answer_of(result, masks)
    documented = SegmentAnswer.model_validate(answer)
    assert type(documented.results["task"]) is model
    assert documented.model_dump(mode="json", exclude_none=True) == answer


@pytest.mark.parametrize(("result", "model"), ONE_OF_EACH)
def test_a_result_that_does_not_say_its_kind_or_says_more_than_documented_is_no_answer(
    result: Result, model: type
) -> None:
    for change in ({"kind": "flow"}, {"kind": None}, {"more": 1}):
        answer = answer_of(result)
        answer["results"]["task"] |= change
        with pytest.raises(ValidationError):
            SegmentAnswer.model_validate(answer)


def test_the_api_s_documents_tell_what_each_kind_holds(make_service: Callable[..., SegmentationService]) -> None:
    schemas = TestClient(create_app(make_service())).get("/openapi.json").json()["components"]["schemas"]
    kinds = schemas["SegmentAnswer"]["properties"]["results"]["additionalProperties"]["discriminator"]["mapping"]
    assert kinds.keys() == {
        "panoptic", "semantic", "instance", "depth", "classification", "embedding", "dense_embedding",
    }  # fmt: skip
    for reference in kinds.values():
        assert schemas[reference.removeprefix("#/components/schemas/")]["description"]
    assert "little-endian float16" in schemas["DenseEmbeddingAnswer"]["properties"]["vectors16"]["description"]


def test_a_problem_is_as_documented_under_a_documented_status(
    make_service: Callable[..., SegmentationService],
) -> None:
    client = TestClient(create_app(make_service()))
    response = client.post("/segment", content=b"no picture", headers={"Content-Type": "image/png"})
    Problem.model_validate(response.json())
    documented = client.get("/openapi.json").json()["paths"]["/segment"]["post"]["responses"]
    assert str(response.status_code) in documented
    assert documented["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SegmentAnswer")
