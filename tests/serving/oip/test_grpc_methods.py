"""The Open Inference Protocol over gRPC, as an unchanged tritonclient sees it, in unary calls and in streams."""

from __future__ import annotations

import asyncio
import inspect
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from decoders.embedding import DenseEmbeddingDecoder, EmbeddingDecoder
from decoders.instance import InstanceDecoder
from decoders.labels import load_label_set
from decoders.linear_classification import LinearClassificationDecoder
from decoders.online import StreamState
from decoders.semantic import SemanticDecoder
from decoders.video import VideoInstanceDecoder, VideoPanopticDecoder
from serving.answers.render import result_json
from serving.bundles.loading import Bundle
from serving.oip import grpc_methods as oip_grpc
from serving.oip import models as oip_models
from serving.oip.grpc_methods import OipMethods
from serving.pictures import decode_picture
from serving.service import SegmentationService
from serving.types import PredictOptions

Value = TypeVar("Value")
MakeService = Callable[..., SegmentationService]

LABELS = load_label_set("coco_supercategories")
QUERIES: dict[str, Any] = {"label_set": LABELS, "out_indices": (0, 2), "num_queries": 8, "num_blocks": 1}
SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def enlivened(head: Any, seed: int = 5) -> Any:
    """Seeded weights, large enough that queries and frames differ; never "no object"."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            scale = 3.0 if name.endswith("queries") else 2 / max(1, parameter[0].numel()) ** 0.5
            if parameter.ndim > 1:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        if hasattr(head, "mask_decoder"):
            head.mask_decoder.class_head.bias[-1] = -1e4
    return head.eval().requires_grad_(False)


@pytest.fixture
def video_bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    """The tiny bundle and a head "video" that remembers."""
    spec = make_bundle().encoder.spec
    return make_bundle(video=enlivened(VideoPanopticDecoder(spec, score_threshold=0, overlap_threshold=0, **QUERIES)))


@pytest.fixture
def full_bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    """One head of each kind."""
    spec = make_bundle().encoder.spec
    return make_bundle(
        video=enlivened(VideoPanopticDecoder(spec, score_threshold=0, overlap_threshold=0, **QUERIES)),
        tracks=enlivened(VideoInstanceDecoder(spec, score_threshold=0, **QUERIES)),
        instance=enlivened(InstanceDecoder(spec, **QUERIES)),
        semantic=enlivened(SemanticDecoder(spec, **QUERIES)),
        classes=enlivened(LinearClassificationDecoder(spec, label_set=LABELS, out_indices=(2,), top_k=3)),
        vector=EmbeddingDecoder(spec),
        vectors=DenseEmbeddingDecoder(spec),
    )


KINDS = ["panoptic", "depth", "video", "tracks", "instance", "semantic", "classes", "vector", "vectors"]


class Server:
    """A grpc.aio server around `OipMethods`, as Ray Serve calls them, on a loop in a thread of its own."""

    def __init__(self, service: SegmentationService) -> None:
        self.service = service
        self.methods = OipMethods()
        self.methods.service = service
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _start(self) -> str:
        self._server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.methods, name)
        if inspect.isasyncgenfunction(method):

            async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
                async with aclosing(method(requests, grpc_context=context)) as responses:
                    async for response in responses:
                        yield response

            return stream

        async def unary(request: Any, context: Any) -> Any:
            return await method(request, grpc_context=context)

        return unary

    async def _finish(self) -> None:
        await self._server.stop(None)
        left = asyncio.all_tasks() - {asyncio.current_task()}  # the streams' sweeper, which looks up once a second
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def stop(self) -> None:
        self.run(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def start_server() -> Iterator[Callable[[SegmentationService], Server]]:
    servers: list[Server] = []

    def start(service: SegmentationService) -> Server:
        servers.append(Server(service))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(
    video_bundle: Bundle, make_service: MakeService, start_server: Callable[[SegmentationService], Server]
) -> Server:
    return start_server(make_service(video_bundle))


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture(scope="session")
def photo(encode_picture: Callable[..., bytes]) -> bytes:
    """60 high, 90 wide."""
    return encode_picture(60, 90)


@pytest.fixture(scope="session")
def frames(encode_picture: Callable[..., bytes]) -> list[bytes]:
    """Four pictures of one size, each another."""
    return [encode_picture(60, 90, seed) for seed in range(4)]


def files(*pictures: bytes) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", [len(pictures)], "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, dtype=object))
    return [tensor]


def pixels(values: NDArray[Any], datatype: str = "UINT8", name: str = "image") -> list[triton.InferInput]:
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


def outputs(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


def names_of(result: Any) -> list[str]:
    return [output.name for output in result.get_response().outputs]


def json_of(result: Any, name: str = "json", number: int = 0) -> Any:
    return json.loads(result.as_numpy(name)[number])


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


# What the server tells of itself


def test_a_ready_server_says_so(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("panoptic")
    assert client.is_model_ready("ensemble", "1")


def test_an_unknown_model_or_version_is_not_ready(client: triton.InferenceServerClient) -> None:
    assert not client.is_model_ready("panoptc")
    assert not client.is_model_ready("panoptic", "2")


def test_a_draining_server_lives_and_is_not_ready(server: Server, client: triton.InferenceServerClient) -> None:
    server.service.drain()
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert not client.is_model_ready("panoptic")
    states = client.get_model_repository_index().models
    assert {model.state for model in states} == {"UNAVAILABLE"}
    assert "draining" in states[0].reason
    ready = client._client_stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))
    assert len(ready.models) == 0


def test_the_servers_metadata_names_what_is_supported_only(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "polyhead"
    assert metadata.version
    assert set(metadata.extensions) == {
        "binary_tensor_data", "model_configuration", "parameters", "sequence", "sequence(string_id)",
    }  # fmt: skip


def test_there_is_a_model_for_each_task_and_one_for_several(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index().models
    assert [(model.name, model.version, model.state) for model in index] == [
        (name, "1", "READY") for name in ("panoptic", "depth", "video", "ensemble")
    ]


def assert_fits(metadata: Any, result: Any) -> None:
    """A result with all outputs has the tensors that the metadata tells, of the datatypes and shapes told."""
    assert names_of(result) == [tensor.name for tensor in metadata.outputs]
    for told, given in zip(metadata.outputs, result.get_response().outputs, strict=True):
        assert (told.name, told.datatype) == (given.name, given.datatype)
        assert len(told.shape) == len(given.shape)
        assert all(dim in (-1, length) for dim, length in zip(told.shape, given.shape, strict=True))
        values = result.as_numpy(told.name)
        assert values.dtype == {"BYTES": np.object_, "FP32": np.float32, "INT32": np.int32}[told.datatype]
        assert list(values.shape) == list(given.shape)


def test_metadata_and_config_of_every_model_are_true(
    full_bundle: Bundle,
    make_service: MakeService,
    start_server: Callable[[SegmentationService], Server],
    photo: bytes,
) -> None:
    server = start_server(make_service(full_bundle))
    types = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT32": "TYPE_INT32"}
    with triton.InferenceServerClient(server.address) as client:
        for name in [*KINDS, "ensemble"]:
            metadata = client.get_model_metadata(name)
            assert (metadata.name, metadata.versions, metadata.platform) == (name, ["1"], "polyhead")
            assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("image", "BYTES", [-1])]
            parameters = {"tasks": ",".join(KINDS)} if name == "ensemble" else None
            assert_fits(metadata, client.infer(name, files(photo, photo), parameters=parameters))
            config = client.get_model_config(name, as_json=True)["config"]
            assert (config["name"], config["platform"], config.get("max_batch_size", 0)) == (name, "polyhead", 0)
            assert [(t["name"], t["data_type"], t["dims"]) for t in config["output"]] == [
                (t.name, types[t.datatype], [str(dim) for dim in t.shape]) for t in metadata.outputs
            ]
            assert [(t["name"], t["data_type"], t["dims"]) for t in config["input"]] == [
                ("image", "TYPE_STRING", ["-1"])
            ]
            assert ("sequence_batching" in config) == (name in ("video", "tracks"))
        sequences = client.get_model_config("video").config.sequence_batching
        assert sequences.max_sequence_idle_microseconds == 1e6 * server.service.settings.stream_idle_s


def test_every_method_of_the_service_is_there_and_takes_the_hosts_context() -> None:
    for method in SERVICE.methods:
        parameters = list(inspect.signature(getattr(OipMethods, method.name)).parameters)
        assert parameters[0] == "self"
        assert parameters[2:] == ["grpc_context"], method.name
        assert getattr(OipMethods, method.name).__name__ == method.name
        assert getattr(OipMethods, method.name).__doc__


# Answers


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_result_is_that_of_the_engine(
    kind: str,
    full_bundle: Bundle,
    make_service: MakeService,
    start_server: Callable[[SegmentationService], Server],
    photo: bytes,
) -> None:
    server = start_server(make_service(full_bundle))
    expected: Any = server.service.engine.predict(photo, [kind])[0].results[kind]
    with triton.InferenceServerClient(server.address) as client:
        result = client.infer(kind, files(photo))
    tensors = {name: result.as_numpy(name)[0] for name in names_of(result)}
    assert json.loads(tensors.pop("json")) == as_json(result_json(expected, "rle"))
    match kind:
        case "panoptic" | "video" | "semantic":
            assert expected.segments
            np.testing.assert_array_equal(tensors.pop("segment_map"), expected.segment_map)
        case "depth":
            np.testing.assert_array_equal(tensors.pop("depth"), expected.depth_m)
        case "instance" | "tracks":
            assert len(expected.instances) > 1
            assert tensors.pop("labels").tolist() == [i.label.encode() for i in expected.instances]
            assert tensors.pop("label_ids").tolist() == [i.label_id for i in expected.instances]
            assert tensors.pop("scores").tolist() == [np.float32(i.score) for i in expected.instances]
            assert tensors.pop("boxes").tolist() == [list(i.bbox) for i in expected.instances]
            assert tensors.pop("track_ids").tolist() == [i.track_id or 0 for i in expected.instances]
            assert any(i.track_id for i in expected.instances) == (kind == "tracks")
        case "classes":
            assert tensors.pop("labels").tolist() == [c.label.encode() for c in expected.classes]
            assert tensors.pop("label_ids").tolist() == [c.label_id for c in expected.classes]
            assert tensors.pop("scores").tolist() == [np.float32(c.score) for c in expected.classes]
        case "vector":
            np.testing.assert_array_equal(tensors.pop("embedding"), expected.vector)
        case "vectors":
            np.testing.assert_array_equal(tensors.pop("embedding"), expected.vectors)
    assert tensors == {}


def test_the_answer_names_request_model_and_cost(client: triton.InferenceServerClient, photo: bytes) -> None:
    response = client.infer("depth", files(photo), request_id="mine-1").get_response()
    assert (response.id, response.model_name, response.model_version) == ("mine-1", "depth", "1")
    assert response.parameters["encoder_passes"].int64_param == 1
    assert response.parameters["batch_size"].int64_param == 1
    assert response.parameters["total_ms"].double_param > 0


def test_several_pictures_are_answered_in_their_order(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    result = client.infer("depth", files(*frames[:3]))
    expected: Any = [prediction.results["depth"] for prediction in server.service.engine.predict(frames[:3], ["depth"])]
    np.testing.assert_allclose(result.as_numpy("depth"), np.stack([one.depth_m for one in expected]), rtol=1e-5)
    assert result.as_numpy("json").shape == (3,)
    assert not np.array_equal(result.as_numpy("depth")[0], result.as_numpy("depth")[1])


def test_pictures_of_one_request_share_a_batch(
    make_service: MakeService, start_server: Callable[[SegmentationService], Server], frames: list[bytes]
) -> None:
    server = start_server(make_service(gated=True, max_wait_ms=0))
    gate: Any = server.service.engine.run_pass
    with triton.InferenceServerClient(server.address) as client:
        first = client.async_infer("depth", files(frames[0]), callback=lambda result, error: None)
        assert gate.entered.wait(60)
        got: queue.Queue[Any] = queue.Queue()
        client.async_infer("depth", files(*frames[1:]), callback=lambda result, error: got.put(error or result))
        wait_until(lambda: server.service.admission.inside == 4 and server.service._runner.waiting == 3)
        gate.opened.set()
        response = got.get(timeout=60).get_response()
        del first
    assert [len(batch) for batch in gate.batches] == [1, 3]
    assert response.parameters["batch_size"].int64_param == 3
    assert response.parameters["encoder_passes"].int64_param == 3


@pytest.mark.parametrize("batched", [True, False])
def test_raw_pixels_are_answered_as_their_picture_file(
    client: triton.InferenceServerClient, photo: bytes, batched: bool
) -> None:
    values = np.asarray(decode_picture(photo))
    raw = client.infer("panoptic", pixels(values[None] if batched else values))
    file = client.infer("panoptic", files(photo))
    np.testing.assert_array_equal(raw.as_numpy("segment_map"), file.as_numpy("segment_map"))
    assert raw.as_numpy("json").tolist() == file.as_numpy("json").tolist()


def test_raw_pictures_of_one_request_keep_their_order(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    batch = np.stack([np.asarray(decode_picture(frame)) for frame in frames[:2]])
    together = client.infer("depth", pixels(batch)).as_numpy("depth")
    for number, frame in enumerate(frames[:2]):
        expected: Any = server.service.engine.predict(frame, ["depth"])[0].results["depth"]
        np.testing.assert_allclose(together[number], expected.depth_m, rtol=1e-5)


def request_of(model: str = "depth", datatype: str = "BYTES", shape: Sequence[int] = (1,), **contents: Any) -> Any:
    """A request with typed contents, as other clients than tritonclient send them."""
    message = service_pb2.ModelInferRequest(model_name=model)
    tensor = message.inputs.add(name="image", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return message


def test_typed_contents_are_taken_too(client: triton.InferenceServerClient, photo: bytes) -> None:
    values = np.asarray(decode_picture(photo))
    stub = client._client_stub
    whole = client.infer("depth", files(photo)).as_numpy("depth").tobytes()
    assert stub.ModelInfer(request_of(bytes_contents=[photo])).raw_output_contents[0] == whole
    raw = request_of(datatype="UINT8", shape=values.shape, uint_contents=values.ravel().tolist())
    assert stub.ModelInfer(raw).raw_output_contents[0] == whole


def test_only_what_is_asked_is_made(
    client: triton.InferenceServerClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oip_models, "result_json", lambda result, masks: pytest.fail("nobody asked for json"))
    result = client.infer("panoptic", files(photo), outputs=outputs("segment_map"))
    assert names_of(result) == ["segment_map"]


def test_outputs_come_in_the_order_in_which_they_are_asked(client: triton.InferenceServerClient, photo: bytes) -> None:
    result = client.infer("ensemble", files(photo), outputs=outputs("depth.json", "panoptic.json", "depth.depth"))
    assert names_of(result) == ["depth.json", "panoptic.json", "depth.depth"]
    assert json_of(result, "panoptic.json")["kind"] == "panoptic"


def test_the_ensemble_runs_the_default_tasks_in_one_pass(
    server: Server, client: triton.InferenceServerClient, photo: bytes
) -> None:
    result = client.infer("ensemble", files(photo))
    assert names_of(result) == ["panoptic.segment_map", "panoptic.json", "depth.depth", "depth.json"]
    assert result.get_response().parameters["encoder_passes"].int64_param == 1
    expected: Any = server.service.engine.predict(photo)[0].results
    np.testing.assert_array_equal(result.as_numpy("panoptic.segment_map")[0], expected["panoptic"].segment_map)
    np.testing.assert_array_equal(result.as_numpy("depth.depth")[0], expected["depth"].depth_m)


@pytest.mark.parametrize(
    ("tasks", "asked", "ran"),
    [
        ("depth", (), {"depth"}),
        (" video , depth ", (), {"video", "depth"}),
        (None, ("video.json",), {"video"}),
        ("video,depth", ("video.json",), {"video"}),
    ],
)
def test_the_ensemble_runs_the_tasks_that_are_named_or_whose_outputs_are_asked(
    server: Server,
    client: triton.InferenceServerClient,
    photo: bytes,
    tasks: str | None,
    asked: tuple[str, ...],
    ran: set[str],
) -> None:
    result = client.infer(
        "ensemble", files(photo), outputs=outputs(*asked) or None, parameters={"tasks": tasks} if tasks else None
    )
    assert {name.split(".")[0] for name in names_of(result)} == ran
    server.service.drain()
    count = server.service.metrics.registry.get_sample_value
    assert {task for task in KINDS if count("polyhead_head_runs_total", {"head": task})} == ran


def test_the_parameters_reach_the_heads(server: Server, client: triton.InferenceServerClient, photo: bytes) -> None:
    parameters = {"score_threshold": 1.0, "max_side": 45, "masks": "none"}
    result = client.infer("panoptic", files(photo), parameters=parameters)
    assert result.as_numpy("segment_map").shape == (1, 30, 45)
    assert not result.as_numpy("segment_map").any()
    assert json_of(result) == {"kind": "panoptic", "segments": []}
    polygons = client.infer("panoptic", files(photo), parameters={"masks": "polygon"})
    assert all("polygons" in segment and "rle" not in segment for segment in json_of(polygons)["segments"])


def test_tritons_own_parameters_do_no_harm(client: triton.InferenceServerClient, photo: bytes) -> None:
    message = request_of(bytes_contents=[photo])
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    message.parameters["priority"].uint64_param = 3
    assert client._client_stub.ModelInfer(message).model_name == "depth"


# Refusals


def assert_refused(failure: Any, status: str, *words: str) -> None:
    assert failure.value.status() == f"StatusCode.{status}"
    for word in words:
        assert word in failure.value.message()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (pixels(np.zeros((60, 90, 3), np.float32), "FP32"), "datatype FP32"),
        (pixels(np.zeros((60, 90), np.uint8)), "UINT8 of shape [60, 90]"),
        (pixels(np.zeros((60, 90, 4), np.uint8)), "UINT8 of shape [60, 90, 4]"),
        (pixels(np.zeros((3, 60, 90), np.uint8)), "UINT8 of shape [3, 60, 90]"),
        (pixels(np.zeros((1, 1, 60, 90, 3), np.uint8)), "UINT8 of shape"),
        (pixels(np.zeros((60, 90, 3), np.uint8), name="picture"), "the inputs are 'picture'; a model takes one"),
        (files(b"x") + files(b"x"), "the inputs are 'image', 'image'"),
        ([], "the inputs are none"),
        (files(b"no picture at all"), "no image that can be read"),
        (files(b""), "the body is empty"),
        (pixels(np.zeros((4, 4, 3), np.uint8)), "shorter side is under"),
    ],
)
def test_a_wrong_input_is_refused(
    client: triton.InferenceServerClient, inputs: list[triton.InferInput], words: str
) -> None:
    with pytest.raises(InferenceServerException) as failure:
        client.infer("depth", inputs)
    assert_refused(failure, "INVALID_ARGUMENT", words)


def raw_request(datatype: str, shape: Sequence[int], *raw: bytes) -> Any:
    message = request_of(datatype=datatype, shape=shape)
    message.raw_input_contents.extend(raw)
    return message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (raw_request("BYTES", [1], b"\x10\0\0\0abc"), "cut short: an element of 16 bytes at byte 4 of 7"),
        (raw_request("BYTES", [1], b"\x10\0"), "cut short"),
        (raw_request("BYTES", [2], b"\x01\0\0\0a"), "shape [2] came with 1 elements"),
        (raw_request("BYTES", [1], b"\x01\0\0\0a\x01\0\0\0b"), "shape [1] came with 2 elements"),
        (raw_request("BYTES", [1, 1], b"\x01\0\0\0a"), "BYTES of shape [1, 1]"),
        (raw_request("BYTES", [0], b""), "BYTES of shape [0]"),
        (raw_request("BYTES", [], b"\x01\0\0\0a"), "BYTES of shape []"),
        (raw_request("BYTES", [1], b"", b""), "2 raw_input_contents for 1 inputs"),
        (raw_request("UINT8", [1 << 40, 1 << 40, 3], b"few"), "came with 3 bytes, not 3,626"),
        (raw_request("UINT8", [-60, -90, 3], b"a" * 16200), "UINT8 of shape [-60, -90, 3]"),
        (raw_request("UINT8", [60, 90, 3], b"a" * 16199), "came with 16,199 bytes, not 16,200"),
        (raw_request("BYTES", [1]), "came without data"),
        (request_of(datatype="UINT8", shape=[1, 1, 3], uint_contents=[1, 2, 300]), "whole numbers in 0..255"),
        (request_of(datatype="UINT8", shape=[1, 1, 3], bytes_contents=[b"a"]), "whole numbers in 0..255"),
    ],
)
def test_data_that_do_not_fit_their_shape_are_refused(
    client: triton.InferenceServerClient, message: Any, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        client._client_stub.ModelInfer(message)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in failure.value.details()


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"model_name": "panoptc"}, "NOT_FOUND", "no model 'panoptc'; there are: panoptic, depth, video, ensemble"),
        ({"model_version": "2"}, "NOT_FOUND", "no version '2' of model 'depth'"),
        ({"outputs": outputs("map")}, "INVALID_ARGUMENT", "model 'depth' has no output 'map'; there are: depth, json"),
        ({"parameters": {"treshold": 0.5}}, "INVALID_ARGUMENT", "parameter treshold=0.5"),
        ({"parameters": {"score_threshold": 2.0}}, "INVALID_ARGUMENT", "parameter score_threshold=2.0"),
        ({"parameters": {"masks": "png"}}, "INVALID_ARGUMENT", "parameter masks='png'"),
        ({"parameters": {"tasks": "panoptic"}}, "INVALID_ARGUMENT", "tasks=panoptic for the model 'depth'"),
        ({"model_name": "ensemble", "parameters": {"tasks": "pose"}}, "NOT_FOUND", "no head for 'pose'"),
        ({"model_name": "ensemble", "parameters": {"tasks": ""}}, "NOT_FOUND", "no head for an empty list"),
        (
            {"model_name": "ensemble", "parameters": {"tasks": "depth"}, "outputs": outputs("panoptic.json")},
            "INVALID_ARGUMENT",
            "outputs of panoptic are asked for, but only depth run",
        ),
        ({"outputs": [triton.InferRequestedOutput("json", 3)]}, "INVALID_ARGUMENT", "as a classification"),
        ({"sequence_id": 5, "sequence_start": True}, "INVALID_ARGUMENT", "ModelStreamInfer"),
        ({"sequence_id": "five", "sequence_end": True}, "INVALID_ARGUMENT", "sequence 'five' outside a stream"),
    ],
)
def test_a_wrong_wish_is_refused(
    client: triton.InferenceServerClient, photo: bytes, asked: dict[str, Any], status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException) as failure:
        client.infer(**({"model_name": "depth", "inputs": files(photo)} | asked))
    assert_refused(failure, status, words)


def test_shared_memory_is_refused(client: triton.InferenceServerClient, photo: bytes) -> None:
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_shared_memory("region", 12)
    output = triton.InferRequestedOutput("json")
    output.set_shared_memory("region", 12)
    for asked in ({"inputs": [tensor]}, {"inputs": files(photo), "outputs": [output]}):
        with pytest.raises(InferenceServerException) as failure:
            client.infer("depth", **asked)
        assert_refused(failure, "INVALID_ARGUMENT", "in shared memory; send tensors in the messages themselves")


def test_maps_of_different_sizes_are_refused_and_their_json_is_not(
    client: triton.InferenceServerClient, photo: bytes, encode_picture: Callable[..., bytes]
) -> None:
    two = files(photo, encode_picture(56, 56))
    with pytest.raises(InferenceServerException) as failure:
        client.infer("panoptic", two)
    assert_refused(failure, "INVALID_ARGUMENT", "'segment_map' is of different size for each picture: 60 x 90, 56 x 56")
    result = client.infer("panoptic", two, outputs=outputs("json"))
    assert json_of(result, number=1)["segments"][0]["rle"]["size"] == [56, 56]


def test_one_bad_picture_of_several_is_named(client: triton.InferenceServerClient, photo: bytes) -> None:
    with pytest.raises(InferenceServerException) as failure:
        client.infer("depth", files(photo, b"no picture", photo))
    assert_refused(failure, "INVALID_ARGUMENT", "picture 2 of 3: 10 bytes")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (files(*[b"x"] * 5), "5 pictures in one request; at most 4"),
        (pixels(np.zeros((5, 8, 8, 3), np.uint8)), "5 pictures in one request; at most 4"),
        (files(b"x" * 200_001), "a picture of 200,001 bytes; at most 200,000"),
        (pixels(np.zeros((1001, 1000, 3), np.uint8)), "1000 x 1001 pixels are 1,001,000"),
    ],
)
def test_what_is_too_large_is_refused(
    client: triton.InferenceServerClient, inputs: list[triton.InferInput], words: str
) -> None:
    with pytest.raises(InferenceServerException) as failure:
        client.infer("depth", inputs)
    assert_refused(failure, "RESOURCE_EXHAUSTED", words)


def test_a_failing_head_fails_the_request_and_says_which(
    make_bundle: Callable[..., Bundle],
    make_service: MakeService,
    start_server: Callable[[SegmentationService], Server],
    probe_head: Callable[..., Any],
    photo: bytes,
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("secret of the head")

    server = start_server(make_service(make_bundle(probe=probe_head(on_call=fail))))
    with triton.InferenceServerClient(server.address) as client:
        with pytest.raises(InferenceServerException) as failure:
            client.infer("ensemble", files(photo, photo), parameters={"tasks": "depth,probe"})
        assert_refused(failure, "INTERNAL", "picture 1 of 2: head 'probe' failed with a ZeroDivisionError")
        assert "secret" not in failure.value.message()
        assert client.infer("depth", files(photo)).as_numpy("depth").shape == (1, 60, 90)


def test_a_bug_is_told_without_its_insides(
    server: Server,
    client: triton.InferenceServerClient,
    photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def bug(*arguments: object) -> None:
        raise ZeroDivisionError("secret of the server")

    monkeypatch.setattr(server.service.engine, "prepare", bug)
    with pytest.raises(InferenceServerException) as failure:
        client.infer("depth", files(photo))
    assert_refused(failure, "INTERNAL", "an unexpected failure; the server's log has it")
    assert "secret" not in failure.value.message()
    assert "secret of the server" in caplog.text
    assert server.service.admission.inside == 0


def test_a_draining_server_refuses(server: Server, client: triton.InferenceServerClient, photo: bytes) -> None:
    server.service.drain()
    with pytest.raises(InferenceServerException) as failure:
        client.infer("depth", files(photo))
    assert_refused(failure, "UNAVAILABLE", "draining")


def test_a_request_that_waits_past_its_timeout_is_given_up(
    make_service: MakeService, start_server: Callable[[SegmentationService], Server], photo: bytes
) -> None:
    server = start_server(make_service(gated=True))
    with triton.InferenceServerClient(server.address) as client:
        with pytest.raises(InferenceServerException) as failure:
            client.infer("depth", files(photo, photo), timeout=200_000)
        assert_refused(failure, "DEADLINE_EXCEEDED", "no answer within 0.2 s")
    wait_until(lambda: server.service.admission.inside == 0)


def test_more_pictures_than_there_is_room_for_are_shed_together(
    make_service: MakeService, start_server: Callable[[SegmentationService], Server], photo: bytes
) -> None:
    server = start_server(make_service(gated=True))
    gate: Any = server.service.engine.run_pass
    got: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(server.address) as client:
        client.async_infer("depth", files(photo, photo), callback=lambda result, error: got.put(error or result))
        assert gate.entered.wait(60)
        with pytest.raises(InferenceServerException) as failure:
            client.infer("depth", files(photo, photo, photo))
        assert_refused(failure, "RESOURCE_EXHAUSTED", "4 pictures are waiting, as many as are let in")
        assert server.service.admission.inside == 2
        gate.opened.set()
        assert got.get(timeout=60).as_numpy("depth").shape == (2, 60, 90)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ModelStatistics", "GET /metrics"),
        ("RepositoryModelLoad", "the bundle"),
        ("RepositoryModelUnload", "the bundle"),
        ("SystemSharedMemoryStatus", "in the messages"),
        ("SystemSharedMemoryRegister", "in the messages"),
        ("SystemSharedMemoryUnregister", "in the messages"),
        ("CudaSharedMemoryStatus", "in the messages"),
        ("CudaSharedMemoryRegister", "in the messages"),
        ("CudaSharedMemoryUnregister", "in the messages"),
        ("TraceSetting", "the operator's"),
        ("LogSettings", "the operator's"),
    ],
)
def test_what_is_not_supported_says_so(client: triton.InferenceServerClient, name: str, words: str) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        getattr(client._client_stub, name)(getattr(service_pb2, f"{name}Request")())
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert failure.value.details().startswith(f"{name} is not supported; ")
    assert words in failure.value.details()


def test_calls_and_refusals_are_counted(server: Server, client: triton.InferenceServerClient, photo: bytes) -> None:
    client.infer("depth", files(photo))
    with pytest.raises(InferenceServerException):
        client.infer("depth", files(b"no picture"))
    with Stream(client) as stream:
        stream.send("depth", files(photo))
        stream.send("depth", files(b"no picture"))
        stream.take(2)
    count = server.service.metrics.registry.get_sample_value
    for method in ("ModelInfer", "ModelStreamInfer"):
        route = f"/inference.GRPCInferenceService/{method}"
        assert count("polyhead_requests_total", {"route": route, "code": "OK"}) == 1
        assert count("polyhead_requests_total", {"route": route, "code": "INVALID_ARGUMENT"}) == 1
        assert count("polyhead_request_seconds_count", {"route": route}) == 2
        assert count("polyhead_rejected_total", {"route": route, "code": "invalid-image"}) == 1


# Streams


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


class Stream:
    """A stream of tritonclient."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client
        self._got: queue.Queue[Any] = queue.Queue()

    def __enter__(self) -> Stream:
        self._client.start_stream(lambda result, error: self._got.put(error or result))
        return self

    def __exit__(self, *error: object) -> None:
        self._client.stop_stream()

    def send(self, model: str, inputs: list[triton.InferInput], **options: Any) -> None:
        self._client.async_stream_infer(model, inputs, **options)

    def frame(self, picture: bytes, sequence_id: int | str, *flags: str, model: str = "video", **options: Any) -> None:
        self.send(
            model,
            files(picture),
            sequence_id=sequence_id,
            sequence_start="start" in flags,
            sequence_end="end" in flags,
            **options,
        )

    def take(self, number: int = 1) -> list[Any]:
        return [self._got.get(timeout=60) for _ in range(number)]

    def results(self, number: int = 1) -> list[Any]:
        taken = self.take(number)
        for one in taken:
            if isinstance(one, InferenceServerException):
                raise one
        return taken


def test_requests_of_a_stream_are_answered_in_their_order(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        for number in range(20):
            stream.send(("depth", "panoptic")[number % 2], files(frames[number % 4]), request_id=f"n{number}")
        responses = [result.get_response() for result in stream.results(20)]
    assert [response.id for response in responses] == [f"n{number}" for number in range(20)]
    assert [response.model_name for response in responses[:2]] == ["depth", "panoptic"]
    assert all(response.parameters["triton_final_response"].bool_param for response in responses)
    expected: Any = server.service.engine.predict(frames[2], ["depth"])[0].results["depth"]
    given = np.frombuffer(responses[2].raw_output_contents[0], np.float32).reshape(60, 90)
    np.testing.assert_allclose(given, expected.depth_m, rtol=1e-5)


def test_no_more_than_a_few_requests_of_a_stream_are_worked_at_at_once(
    make_service: MakeService, start_server: Callable[[SegmentationService], Server], photo: bytes
) -> None:
    server = start_server(make_service(gated=True, max_pictures_inside=64))
    gate: Any = server.service.engine.run_pass
    with triton.InferenceServerClient(server.address) as client, Stream(client) as stream:
        for _ in range(20):
            stream.send("depth", files(photo))
        assert gate.entered.wait(60)
        wait_until(lambda: server.service.admission.inside == 8)
        time.sleep(0.05)
        assert server.service.admission.inside == 8
        gate.opened.set()
        assert len(stream.results(20)) == 20


def test_an_error_is_one_answer_of_a_stream_and_does_not_end_it(
    client: triton.InferenceServerClient, photo: bytes
) -> None:
    with Stream(client) as stream:
        stream.send("depth", files(photo))
        stream.send("depth", files(b"no picture"))
        stream.send("panoptc", files(photo))
        stream.send("depth", files(photo), parameters={"treshold": 0.5})
        stream.send("depth", files(photo))
        first, image, model, parameter, last = stream.take(5)
    assert "no image that can be read" in image.message()
    assert "no model 'panoptc'" in model.message()
    assert "parameter treshold" in parameter.message()
    np.testing.assert_array_equal(first.as_numpy("depth"), last.as_numpy("depth"))


def test_an_error_in_a_stream_names_its_request(client: triton.InferenceServerClient) -> None:
    message = request_of(bytes_contents=[b"no picture"])
    message.id = "mine-1"
    (answer,) = client._client_stub.ModelStreamInfer(iter([message]))
    assert answer.error_message
    assert answer.infer_response.id == "mine-1"
    assert answer.infer_response.model_name == "depth"


def alone(service: SegmentationService, pictures: Sequence[bytes], task: str = "video") -> list[Any]:
    """The results of the frames of one clip, by the engine alone."""
    engine, options = service.engine, PredictOptions()
    states: dict[str, StreamState] = {}
    results = []
    for picture in pictures:
        inputs = engine.prepare(decode_picture(picture), [task], options, states)
        passes = [engine.run_pass([item])[0] for item in inputs]
        for output in passes:
            states |= output.states
        results.append(engine.finish(inputs, passes, options)[0][task])
    return results


def assert_same(results: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(results) == len(expected)
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.as_numpy("segment_map")[0], one.segment_map)
        told = json_of(result)["segments"]
        assert [(s["segment_id"], s["label_id"], s.get("track_id")) for s in told] == [
            (s.segment_id, s.label_id, s.track_id) for s in one.segments
        ]
        assert [s["score"] for s in told] == pytest.approx([s.score for s in one.segments], rel=1e-4)


def assert_state_shows(service: SegmentationService, frames: Sequence[bytes]) -> None:
    """The last frame looks different with what came before than without: else the tests here show nothing."""
    with_state, without = alone(service, frames)[-1], alone(service, frames[-1:])[-1]
    assert [s.score for s in with_state.segments] != pytest.approx([s.score for s in without.segments], rel=1e-3)


@pytest.mark.parametrize("sequence_id", [7, "seven", 2**63 - 1])
def test_a_sequence_remembers(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes], sequence_id: int | str
) -> None:
    assert_state_shows(server.service, frames)
    with Stream(client) as stream:
        stream.frame(frames[0], sequence_id, "start")
        stream.frame(frames[1], sequence_id)
        stream.frame(frames[2], sequence_id)
        stream.frame(frames[3], sequence_id, "end")
        assert_same(stream.results(4), alone(server.service, frames))


def test_raw_frames_make_a_sequence_too(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        for number, frame in enumerate(frames):
            values = np.asarray(decode_picture(frame))
            stream.send("video", pixels(values), sequence_id=1, sequence_start=number == 0)
        assert_same(stream.results(4), alone(server.service, frames))


def test_sequences_of_one_stream_are_kept_apart(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    clips = {5: frames, "5": frames[::-1], 6: frames[1:] + frames[:1]}
    with Stream(client) as stream:
        for number in range(4):
            for sequence_id, clip in clips.items():
                stream.frame(clip[number], sequence_id, *(["start"] if number == 0 else []))
        results = stream.results(12)
    for place, clip in enumerate(clips.values()):
        assert_same(results[place::3], alone(server.service, clip))


def test_a_sequence_belongs_to_its_model(client: triton.InferenceServerClient, frames: list[bytes]) -> None:
    with Stream(client) as stream:
        stream.frame(frames[0], 5, "start")
        stream.frame(frames[1], 5, model="depth")
        _, refused = stream.take(2)
    assert "sequence 5 of model 'depth' was not started" in refused.message()


def test_a_sequence_of_another_stream_is_never_gone_on_with(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    """triton-inference-server/server#7117: a client inherited what another had left under its id."""
    with Stream(client) as mine, triton.InferenceServerClient(server.address) as other_client:
        mine.frame(frames[0], 5, "start")
        mine.results()
        with Stream(other_client) as other:
            other.frame(frames[3], 5)
            (refused,) = other.take()
            assert "sequence 5 of model 'video' was not started in this stream" in refused.message()
            other.frame(frames[3], 5, "start")
            other.frame(frames[2], 5)
            assert_same(other.results(2), alone(server.service, frames[:1:-1]))
        for frame in frames[1:]:
            mine.frame(frame, 5)
        assert_same(mine.results(3), alone(server.service, frames)[1:])


def test_starting_a_sequence_again_resets_it(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        stream.frame(frames[0], 5, "start")
        stream.frame(frames[1], 5)
        stream.frame(frames[2], 5, "start")
        stream.frame(frames[3], 5)
        results = stream.results(4)
        assert len(server.service.streams) == 1
    assert_same(results, alone(server.service, frames[:2]) + alone(server.service, frames[2:]))


def test_a_sequence_that_has_ended_is_freed_and_not_gone_on_with(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        stream.frame(frames[0], 5, "start")
        stream.results()
        assert server.service.streams.state_bytes > 0
        stream.frame(frames[1], 5, "end")
        stream.frame(frames[2], 5)
        _, refused = stream.take(2)
        assert "was not started" in refused.message()
        wait_until(lambda: len(server.service.streams) == 0)
        stream.frame(frames[3], 5, "start", "end")
        assert_same(stream.results(), alone(server.service, frames[3:]))
        wait_until(lambda: len(server.service.streams) == 0)


@pytest.mark.parametrize("cancel", [True, False])
def test_the_end_of_a_stream_frees_its_sequences(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes], cancel: bool
) -> None:
    client.start_stream(lambda result, error: got.put(error or result))
    got: queue.Queue[Any] = queue.Queue()
    for sequence_id in (1, 2):
        client.async_stream_infer("video", files(frames[0]), sequence_id=sequence_id, sequence_start=True)
    for _ in range(2):
        assert not isinstance(got.get(timeout=60), InferenceServerException)
    assert len(server.service.streams) == 2
    client.stop_stream(cancel_requests=cancel)
    wait_until(lambda: len(server.service.streams) == 0 and server.service.admission.inside == 0)


def test_a_client_that_leaves_with_work_inside_leaves_nothing_behind(
    video_bundle: Bundle,
    make_service: MakeService,
    start_server: Callable[[SegmentationService], Server],
    frames: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = make_service(video_bundle, gated=True, max_pictures_inside=64)
    server = start_server(service)
    gate: Any = service.engine.run_pass
    with triton.InferenceServerClient(server.address) as client:
        client.start_stream(lambda result, error: None)
        for number in range(20):
            client.async_stream_infer("video", files(frames[0]), sequence_id=1, sequence_start=number == 0)
            client.async_stream_infer("depth", files(frames[0]))
        assert gate.entered.wait(60)
        wait_until(lambda: service.admission.inside > 2)
        client.stop_stream(cancel_requests=True)
        wait_until(lambda: len(service.streams) == 0 and service.admission.inside == 0)
    gate.opened.set()
    assert sum(len(batch) for batch in gate.batches) <= 8

    async def tasks() -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks()}

    wait_until(lambda: not {name for name in server.run(tasks()) if "oip" in name or "video stream" in name})
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_broken_frame_is_one_answer_and_the_sequence_goes_on(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        stream.frame(frames[0], 5, "start")
        stream.frame(b"no picture", 5)
        stream.send("video", files(frames[1], frames[2]), sequence_id=5)
        stream.frame(frames[1], 5, outputs=outputs("map"))
        stream.frame(frames[1], 5)
        first, broken, two, output, last = stream.take(5)
    assert "no image that can be read" in broken.message()
    assert "2 pictures in one request of a sequence" in two.message()
    assert "no output 'map'" in output.message()
    assert_same([first, last], alone(server.service, frames[:2]))


def test_a_sequence_keeps_the_options_of_its_first_request(
    client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        stream.frame(frames[0], 5, "start", parameters={"max_side": 45, "masks": "none"})
        stream.frame(frames[1], 5)
        stream.frame(frames[2], 5, parameters={"max_side": 45, "masks": "polygon"})
        first, kept, same = stream.results(3)
        stream.frame(frames[3], 5, parameters={"max_side": 60})
        (other,) = stream.take()
    assert first.as_numpy("segment_map").shape == kept.as_numpy("segment_map").shape == (1, 30, 45)
    assert not any("rle" in segment for segment in json_of(kept)["segments"])
    assert all("polygons" in segment for segment in json_of(same)["segments"])
    assert "other options than those with which sequence 5 was started" in other.message()


def test_a_sequence_of_several_tasks_runs_those_of_its_first_request(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        stream.frame(frames[0], 5, "start", model="ensemble", parameters={"tasks": "video,depth"})
        stream.frame(frames[1], 5, model="ensemble")
        stream.frame(frames[2], 5, model="ensemble", outputs=outputs("video.segment_map"))
        results = stream.results(3)
        stream.frame(frames[3], 5, model="ensemble", outputs=outputs("panoptic.json"))
        (refused,) = stream.take()
    assert names_of(results[1]) == ["depth.depth", "depth.json", "video.segment_map", "video.json"]
    assert names_of(results[2]) == ["video.segment_map"]
    for result, expected in zip(results, alone(server.service, frames[:3]), strict=True):
        np.testing.assert_array_equal(result.as_numpy("video.segment_map")[0], expected.segment_map)
    assert results[1].get_response().parameters["encoder_passes"].int64_param == 1
    assert "outputs of panoptic are asked for, but only depth, video run" in refused.message()


def test_a_head_that_does_not_remember_takes_sequences_too(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        stream.frame(frames[0], 5, "start", model="depth")
        stream.frame(frames[1], 5, "end", model="depth")
        results = stream.results(2)
    expected: Any = server.service.engine.predict(frames[1], ["depth"])[0].results["depth"]
    np.testing.assert_allclose(results[1].as_numpy("depth")[0], expected.depth_m, rtol=1e-5)


@pytest.mark.parametrize("flag", ["sequence_start", "sequence_end"])
def test_a_flag_without_a_sequence_is_refused(client: triton.InferenceServerClient, photo: bytes, flag: str) -> None:
    message = request_of(bytes_contents=[photo])
    message.parameters[flag].bool_param = True
    (answer,) = client._client_stub.ModelStreamInfer(iter([message]))
    assert "without a sequence_id" in answer.error_message


def test_too_many_sequences_are_refused_until_one_ends(
    video_bundle: Bundle,
    make_service: MakeService,
    start_server: Callable[[SegmentationService], Server],
    frames: list[bytes],
) -> None:
    server = start_server(make_service(video_bundle, max_streams=2))
    with triton.InferenceServerClient(server.address) as client, Stream(client) as stream:
        for sequence_id in (1, 2, 3):
            stream.frame(frames[0], sequence_id, "start")
        _, _, refused = stream.take(3)
        assert "2 streams are open, as many as are let in" in refused.message()
        stream.frame(frames[1], 3)
        (refused,) = stream.take()
        assert "was not started" in refused.message()
        stream.frame(frames[1], 1, "end")
        stream.results()
        wait_until(lambda: len(server.service.streams) == 1)
        stream.frame(frames[0], 3, "start")
        assert_same(stream.results(), alone(server.service, frames[:1]))


def test_a_sequence_that_the_server_ended_is_told_and_may_be_started_again(
    server: Server, client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    service = server.service

    async def evict() -> None:
        service.streams.evict_idle(time.monotonic() + 2 * service.settings.stream_idle_s)

    with Stream(client) as stream:
        stream.frame(frames[0], 5, "start")
        stream.results()
        server.run(evict())
        stream.frame(frames[1], 5)
        stream.frame(frames[2], 5)
        for ended in stream.take(2):
            assert "no frame came for 30 s" in ended.message()
        wait_until(lambda: len(service.streams) == 0)
        stream.frame(frames[2], 5, "start")
        assert_same(stream.results(), alone(service, frames[2:3]))


def test_a_sequence_without_its_start_is_refused_over_and_over(
    client: triton.InferenceServerClient, frames: list[bytes]
) -> None:
    with Stream(client) as stream:
        for _ in range(3):
            stream.frame(frames[0], "mine", "end")
        for refused in stream.take(3):
            assert "sequence 'mine' of model 'video' was not started in this stream" in refused.message()


# The end of a stream on our side


def test_a_stream_ends_with_its_replica_after_what_is_inside(
    server: Server, client: triton.InferenceServerClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oip_grpc, "_WATCH_PERIOD_S", 0.02)
    with Stream(client) as stream:
        stream.frame(photo, 5, "start")
        stream.send("depth", files(photo))
        stream.results(2)
        server.service.streams.end_all()
        (ended,) = stream.take()
    assert ended.status() == "StatusCode.UNAVAILABLE"
    assert "this replica is stopping" in ended.message()
    wait_until(lambda: server.methods._streams == 0)


class Context:
    """A call's context, as the host gives it."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: Any = ()

    def invocation_metadata(self) -> Any:
        return ()

    def trailing_metadata(self) -> Any:
        return self.trailing

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


def test_a_client_that_never_reads_is_left(
    video_bundle: Bundle, make_service: MakeService, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oip_grpc, "_WATCH_PERIOD_S", 0.01)
    monkeypatch.setattr(oip_grpc, "_GOODBYE_S", 0.05)
    methods, context = OipMethods(), Context()
    methods.service = make_service(video_bundle, stream_idle_s=0.1)
    asked = []

    async def requests() -> AsyncIterator[Any]:
        for number in range(100):
            message = request_of(bytes_contents=[photo])
            asked.append(number)
            yield message

    async def host() -> None:
        async with aclosing(methods.ModelStreamInfer(requests(), grpc_context=context)) as responses:
            async for _ in responses:
                await asyncio.sleep(60)  # the client's window is full

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(host())
    assert context.code == grpc.StatusCode.ABORTED
    assert context.details.startswith("answers were not read for 0.1 s")
    assert len(asked) < 10
    assert methods._streams == 0
    assert methods.service.admission.inside == 0


def test_requests_that_can_not_be_read_end_the_stream_and_free_it(
    video_bundle: Bundle, make_service: MakeService, photo: bytes
) -> None:
    methods = OipMethods()
    methods.service = make_service(video_bundle)
    answers = []

    async def requests() -> AsyncIterator[Any]:
        message = request_of("video", bytes_contents=[photo])
        message.parameters["sequence_id"].int64_param = 5
        message.parameters["sequence_start"].bool_param = True
        yield message
        raise ConnectionError("torn")

    async def host() -> None:
        async for answer in methods.ModelStreamInfer(requests(), grpc_context=Context()):
            answers.append(answer)

    with pytest.raises(ConnectionError, match="torn"):
        asyncio.run(host())
    assert [answer.error_message for answer in answers] == [""]
    assert (methods._streams, len(methods.service.streams)) == (0, 0)


def test_too_many_streams_are_refused_until_one_ends(
    make_service: MakeService, start_server: Callable[[SegmentationService], Server], photo: bytes
) -> None:
    server = start_server(make_service(max_streams=1))
    with (
        triton.InferenceServerClient(server.address) as one,
        triton.InferenceServerClient(server.address) as other,
    ):
        with Stream(one) as stream:
            stream.send("depth", files(photo))
            stream.results()
            with Stream(other) as refused:
                (ended,) = refused.take()
            assert ended.status() == "StatusCode.RESOURCE_EXHAUSTED"
            assert "1 streams are open, as many as are let in" in ended.message()
        wait_until(lambda: server.methods._streams == 0)
        with Stream(other) as stream:
            stream.send("depth", files(photo))
            stream.results()


# The asynchronous client


def test_the_asynchronous_client_works_unchanged(server: Server, frames: list[bytes]) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, frame in enumerate(frames):
            yield {
                "model_name": "video", "inputs": files(frame), "sequence_id": "clip", "sequence_start": number == 0,
            }  # fmt: skip

    async def use() -> tuple[Any, list[Any]]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("video")).name == "video"
            still = await client.infer("depth", files(frames[0]), outputs=outputs("depth"))
            return still, [pair async for pair in client.stream_infer(requests())]

    still, pairs = server.run(use())
    expected: Any = server.service.engine.predict(frames[0], ["depth"])[0].results["depth"]
    np.testing.assert_array_equal(still.as_numpy("depth")[0], expected.depth_m)
    assert [error for _, error in pairs] == [None] * 4
    assert_same([result for result, _ in pairs], alone(server.service, frames))
    wait_until(lambda: len(server.service.streams) == 0)
