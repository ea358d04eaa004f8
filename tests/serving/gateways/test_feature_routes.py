"""`POST /features` and what `POST /segment` does with the id: no second pass, and exactly the results of one."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from encoders.features import EncoderFeatures
from serving.answers.schemas import FeaturesAnswer, SegmentAnswer
from serving.bundles.loading import Bundle
from serving.gateways.http_gateway import create_app
from serving.service import SegmentationService
from serving.types import PredictOptions

MakeService = Callable[..., SegmentationService]
PNG = {"Content-Type": "image/png"}
BLOCK_BYTES = (3 + 16) * 32 * 4
"""One block of the tiny encoder: a class token, two registers and 4 x 4 patches of width 32, float32."""


def client_of(service: SegmentationService) -> TestClient:
    return TestClient(create_app(service), raise_server_exceptions=False)


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


@pytest.fixture(scope="session")
def other_photo(encode_picture: Callable[..., bytes]) -> bytes:
    return encode_picture(60, 90, seed=1)


def keep(client: TestClient, photo: bytes, **query: str) -> dict[str, Any]:
    response = client.post("/features", params=query, content=photo, headers=PNG)
    assert response.status_code == 200, response.text
    FeaturesAnswer.model_validate(response.json())
    return dict(response.json())


def problem_of(response: Any, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:polyhead:problem:{kind}"
    assert problem["remedy"]
    return problem


def encoder_calls(service: SegmentationService, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the batch size with each call of the encoder."""
    calls: list[int] = []
    encoder: Any = service.engine.bundle.encoder
    forward = encoder.forward

    def counted(images: Any, *blocks: Any) -> EncoderFeatures:
        calls.append(len(images))
        result: EncoderFeatures = forward(images, *blocks)
        return result

    monkeypatch.setattr(encoder, "forward", counted)
    return calls


# What is answered


def test_the_answer_tells_the_id_the_tasks_the_size_and_the_cost(client: TestClient, photo: bytes) -> None:
    answer = keep(client, photo)
    assert answer["bundle"] == "tiny"
    assert answer["image"] == {"height": 60, "width": 90}
    assert answer["tasks"] == ["panoptic", "depth"]
    assert answer["bytes"] == 3 * BLOCK_BYTES
    assert answer["timing"]["encoder_passes"] == 1
    assert answer["timing"]["heads_ms"] == {}


def test_tasks_limit_what_is_kept(client: TestClient, photo: bytes) -> None:
    answer = keep(client, photo, tasks="depth")
    assert answer["tasks"] == ["depth"]
    assert answer["bytes"] == 2 * BLOCK_BYTES


def test_a_form_is_taken_as_a_raw_body_is(client: TestClient, photo: bytes) -> None:
    form = client.post("/features", files={"image": ("photo.png", photo, "image/png")})
    assert form.status_code == 200
    assert form.json()["id"] == keep(client, photo)["id"]


def test_heads_run_on_kept_features_without_a_pass_and_without_the_picture(
    service: SegmentationService, client: TestClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = encoder_calls(service, monkeypatch)
    kept = keep(client, photo)["id"]
    for task in ("panoptic", "depth"):
        answer = client.post("/segment", params={"features": kept, "tasks": task})
        assert answer.status_code == 200, answer.text
        SegmentAnswer.model_validate(answer.json())
        assert answer.json()["results"].keys() == {task}
        assert answer.json()["image"] == {"height": 60, "width": 90}
        assert answer.json()["timing"]["encoder_passes"] == 0
        assert answer.json()["timing"]["batch_size"] == 0
        assert answer.json()["timing"]["heads_ms"].keys() == {task}
    assert calls == [1]


@pytest.mark.parametrize("body", [False, True])
def test_results_on_kept_features_are_those_of_a_plain_request_to_the_last_bit(
    client: TestClient, photo: bytes, body: bool
) -> None:
    options = {"format": "npz", "max_side": "45", "tasks": "panoptic,depth"}
    plain = client.post("/segment", params=options, content=photo, headers=PNG)
    kept = keep(client, photo)["id"]
    content = {"content": photo, "headers": PNG} if body else {}
    cached = client.post("/segment", params=options | {"features": kept}, **content)
    with np.load(io.BytesIO(plain.content)) as expected, np.load(io.BytesIO(cached.content)) as found:
        assert set(expected) == set(found)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    plain_json = client.post("/segment", content=photo, headers=PNG).json()
    cached_json = client.post("/segment", params={"features": kept}).json()
    assert cached_json["results"] == plain_json["results"]


def test_the_same_picture_again_gives_the_same_id_and_no_pass(
    service: SegmentationService, client: TestClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = encoder_calls(service, monkeypatch)
    first, second = keep(client, photo), keep(client, photo)
    assert first["id"] == second["id"]
    assert second["timing"]["encoder_passes"] == 0
    assert calls == [1]


def test_further_tasks_of_the_same_picture_add_their_blocks(client: TestClient, photo: bytes) -> None:
    first = keep(client, photo, tasks="depth")
    second = keep(client, photo, tasks="panoptic")
    assert first["id"] == second["id"]
    assert second["timing"]["encoder_passes"] == 1
    assert second["tasks"] == ["panoptic", "depth"]


def test_another_picture_has_another_id(client: TestClient, photo: bytes, other_photo: bytes) -> None:
    assert keep(client, photo)["id"] != keep(client, other_photo)["id"]


def test_a_head_of_another_geometry_costs_a_pass_once(
    make_service: MakeService, make_bundle: Callable[..., Bundle], probe_head: Any, photo: bytes
) -> None:
    client = client_of(make_service(make_bundle(fine=(probe_head(), (84, 84)))))
    kept = keep(client, photo)
    assert kept["timing"]["encoder_passes"] == 2
    answer = client.post("/segment", params={"features": kept["id"], "tasks": "fine,depth"}).json()
    assert answer["results"].keys() == {"fine", "depth"}
    assert answer["timing"]["encoder_passes"] == 0
    assert answer["results"] == client.post(
        "/segment", params={"tasks": "fine,depth"}, content=photo, headers=PNG
    ).json()["results"]  # fmt: skip


def test_a_head_that_writes_into_its_features_does_not_change_the_kept_ones(
    make_service: MakeService, make_bundle: Callable[..., Bundle], probe_head: Any, photo: bytes
) -> None:
    def spoil(features: EncoderFeatures, raw: Any) -> None:
        for tokens in features.lateral_features.values():
            tokens.zero_()

    client = client_of(make_service(make_bundle(spoiler=probe_head((0, 1, 2), spoil))))
    kept = keep(client, photo)["id"]
    first = client.post("/segment", params={"features": kept, "tasks": "spoiler,depth,panoptic"}).json()
    again = client.post("/segment", params={"features": kept, "tasks": "spoiler"}).json()
    last = client.post("/segment", params={"features": kept, "tasks": "depth,panoptic,spoiler"}).json()
    assert first["results"] == last["results"]
    assert again["results"]["spoiler"] == first["results"]["spoiler"]


def test_a_plain_request_neither_fills_nor_reads_the_cache(
    service: SegmentationService, client: TestClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = encoder_calls(service, monkeypatch)
    client.post("/segment", content=photo, headers=PNG)
    assert len(service.features) == 0
    keep(client, photo)
    answer = client.post("/segment", content=photo, headers=PNG).json()
    assert answer["timing"]["encoder_passes"] == 1
    assert calls == [1, 1, 1]


def test_an_overlay_on_kept_features_needs_the_picture(client: TestClient, photo: bytes) -> None:
    options = {"features": keep(client, photo)["id"], "tasks": "depth", "format": "overlay"}
    problem_of(client.post("/segment", params=options), 400, "invalid-option")
    response = client.post("/segment", params=options, content=photo, headers=PNG)
    assert response.headers["content-type"] == "image/png"


def test_pictures_that_are_kept_share_a_batch_with_those_that_are_answered(
    make_service: MakeService, photo: bytes, other_photo: bytes
) -> None:
    service = make_service(gated=True, max_wait_ms=60_000, max_batch_size=2)
    gate: Any = service.engine.run_pass
    gate.opened.set()

    async def scenario() -> tuple[Any, Any]:
        async with service.admitted(60) as deadline_s:
            return await asyncio.gather(
                service.keep_features(photo, ["panoptic"], deadline_s),
                service.predict(other_photo, ["depth"], PredictOptions(), deadline_s),
            )

    (entry, timing), prediction = asyncio.run(scenario())
    assert timing.batch_size == prediction.timing.batch_size == 2
    [features] = entry.passes.values()
    assert features.batch_size == 1
    assert set(features.lateral_features) == {0, 2}


# What is not there


def test_without_a_picture_an_unknown_id_is_a_problem(client: TestClient) -> None:
    problem = problem_of(client.post("/segment?features=abc-def"), 404, "unknown-features")
    assert "send it along" in problem["remedy"]


def test_with_the_picture_an_unknown_id_is_but_a_hint(client: TestClient, photo: bytes) -> None:
    kept = keep(client, photo)["id"]
    stale = f"{kept.partition('-')[0]}-{'0' * 32}"  # as of another revision of the encoder
    answer = client.post("/segment", params={"features": stale}, content=photo, headers=PNG).json()
    assert answer["timing"]["encoder_passes"] == 1
    assert answer["results"].keys() == {"panoptic", "depth"}


def test_an_id_of_another_picture_than_the_one_in_the_body_is_an_error(
    client: TestClient, photo: bytes, other_photo: bytes
) -> None:
    options = {"features": keep(client, photo)["id"]}
    response = client.post("/segment", params=options, content=other_photo, headers=PNG)
    assert "another picture" in problem_of(response, 400, "invalid-option")["detail"]


def test_heads_whose_blocks_are_not_kept_are_told_with_the_remedy(client: TestClient, photo: bytes) -> None:
    options = {"features": keep(client, photo, tasks="depth")["id"], "tasks": "panoptic,depth"}
    problem = problem_of(client.post("/segment", params=options), 409, "missing-blocks")
    assert "panoptic" in problem["detail"]
    assert "tasks=panoptic" in problem["remedy"]
    answer = client.post("/segment", params=options, content=photo, headers=PNG).json()
    assert answer["timing"]["encoder_passes"] == 1


def test_the_least_recently_used_picture_makes_room(
    make_service: MakeService, photo: bytes, other_photo: bytes
) -> None:
    size = 3 * BLOCK_BYTES
    service = make_service(feature_cache_bytes=size)
    client = client_of(service)
    first = keep(client, photo)["id"]
    keep(client, other_photo)
    problem_of(client.post("/segment", params={"features": first}), 404, "unknown-features")
    samples = service.metrics.registry.get_sample_value
    assert samples("polyhead_feature_cache_evictions_total") == 1
    assert samples("polyhead_feature_cache_misses_total") == 3
    assert samples("polyhead_feature_cache_entries") == 1
    assert samples("polyhead_feature_cache_bytes") == size


def test_features_larger_than_the_cache_are_refused_with_their_size(make_service: MakeService, photo: bytes) -> None:
    response = client_of(make_service(feature_cache_bytes=1000)).post("/features", content=photo, headers=PNG)
    problem = problem_of(response, 413, "too-large")
    assert f"{3 * BLOCK_BYTES:,} bytes; at most 1,000" in problem["detail"]


def test_a_cache_of_no_bytes_says_so(make_service: MakeService, photo: bytes) -> None:
    client = client_of(make_service(feature_cache_bytes=0))
    problem_of(client.post("/features", content=photo, headers=PNG), 404, "feature-cache-off")
    problem_of(client.post("/segment?features=abc-def"), 404, "feature-cache-off")


# Failures


def test_an_encoder_that_fails_is_told_and_nothing_is_kept(
    service: SegmentationService, client: TestClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(service.engine.bundle.encoder, "forward", fail)
    problem_of(client.post("/features", content=photo, headers=PNG), 500, "encoder-failed")
    assert len(service.features) == 0


@pytest.mark.parametrize(
    ("query", "body", "status", "kind"),
    [
        ("?tasks=panoptc", b"x", 404, "unsupported-task"),
        ("?tasks=", b"x", 404, "unsupported-task"),
        ("?format=png", b"x", 400, "invalid-option"),
        ("?tasks=depth&tasks=depth", b"x", 400, "invalid-option"),
        ("", b"no picture", 400, "invalid-image"),
        ("", b"", 400, "invalid-image"),
        ("", b"x" * 200_001, 413, "too-large"),
    ],
)
def test_mistakes_are_told_as_for_segment(client: TestClient, query: str, body: bytes, status: int, kind: str) -> None:
    problem_of(client.post(f"/features{query}", content=body, headers=PNG), status, kind)


def test_a_full_server_sheds_pictures_to_keep(make_service: MakeService, photo: bytes) -> None:
    service = make_service(max_pictures_inside=1)
    service.admission.enter(60)
    problem_of(client_of(service).post("/features", content=photo, headers=PNG), 429, "overloaded")
    service.admission.leave()


def test_a_deadline_that_passes_is_told(make_service: MakeService, photo: bytes) -> None:
    service = make_service(gated=True)
    headers = PNG | {"X-Request-Timeout-S": "0.05"}
    problem_of(client_of(service).post("/features", content=photo, headers=headers), 504, "deadline-exceeded")


def test_the_route_is_described(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/features"]["post"]
    assert operation["requestBody"]["content"].keys() == {"image/*", "multipart/form-data"}
    assert {parameter["name"] for parameter in operation["parameters"]} == {"tasks", "x-request-timeout-s"}
    assert {"200", "400", "404", "413", "415", "422", "429", "503", "504"} <= operation["responses"].keys()
