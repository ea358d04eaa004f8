"""Open Inference Protocol v2: from a request's tensors to pictures, and from results to tensors.

Knows nothing of gRPC or HTTP; `serving.oip.grpc_methods` and `serving.oip.http_routes` bring requests into the form
that is read here.
"""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import ConfigDict, Field, ValidationError

from serving.engine import Engine
from serving.errors import InvalidImageError, InvalidOptionError, PolyheadError, TooLargeError, UnavailableError
from serving.oip.models import IMAGE, VERSION, Model, Output, find_model, model_names
from serving.options import TIMEOUT_S, RequestOptions
from serving.request_context import add_stage
from serving.service import SegmentationService
from serving.types import Prediction, parse_tasks

Encoded = TypeVar("Encoded")

_IMAGE_REMEDY = "send it as BYTES [N] (picture files) or UINT8 [N, H, W, 3] or [H, W, 3] (RGB)"
_DTYPES: Mapping[str, DTypeLike] = {"BYTES": object, "FP32": "<f4", "INT32": "<i4"}
_MAX_TEXT = 1000
"""Characters of an error."""

_RESERVED = "triton_"
"""Parameters that begin so are Triton's own; what they ask for, e.g. empty final answers, does not arise here."""


@dataclass(frozen=True)
class InputTensor:
    """An input as it came.

    Attributes:
        name, datatype, shape: the client's.
        data: little-endian and row-major, BYTES with their lengths before them; or the elements themselves, for BYTES
            bytes or base64 text; None if there is none.
        parameters: the client's.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Sequence[Any] | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class InferRequest:
    """A request as it came.

    Attributes:
        model, version, request_id, parameters, inputs: the client's.
        outputs: parameters by name of the asked tensors; empty: all.
    """

    model: str
    version: str
    request_id: str
    parameters: Mapping[str, Any]
    inputs: Sequence[InputTensor]
    outputs: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OutputTensor:
    """An output: little-endian numbers, or an object array of bytes."""

    name: str
    datatype: str
    values: NDArray[Any]

    def raw(self) -> bytes:
        """Row-major; BYTES with their lengths before them."""
        if self.datatype == "BYTES":
            return b"".join(struct.pack("<I", len(item)) + item for item in self.values.ravel())
        return self.values.tobytes()


@dataclass(frozen=True)
class InferAnswer:
    """The answer to a request; `parameters` say what it cost."""

    model: str
    request_id: str
    parameters: Mapping[str, float]
    outputs: Sequence[OutputTensor]
    version: str = VERSION


class InferParameters(RequestOptions):
    """The parameters of a request; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: str | None = Field(None, description="Of the model `ensemble`, separated by commas.")
    timeout: int = Field(
        0, ge=0, le=int(1e6 * TIMEOUT_S.high),
        description="Microseconds until the answer is of no use; 0: the server's default.",
    )  # fmt: skip
    priority: int = Field(0, ge=0, description="Heeded by no model here.")
    binary_data_output: bool = Field(False, description="HTTP: answer in binary unless an output says otherwise.")
    sequence_id: int | str = Field(0, description="gRPC streams only; 0 or '': of no sequence.")
    sequence_start: bool = False
    sequence_end: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Check a request's parameters.

        Raises:
            InvalidOptionError: names each one that is unknown or wrong.
        """
        ours = {name: value for name, value in given.items() if not name.startswith(_RESERVED)}
        try:
            parameters = cls.model_validate(ours)
        except ValidationError as error:
            raise InvalidOptionError(
                "; ".join(f"parameter {e['loc'][0]}={e['input']!r}: {e['msg']}" for e in error.errors()),
                remedy=f"the parameters are: {', '.join(cls.model_fields)}",
            ) from None
        if (parameters.sequence_start or parameters.sequence_end) and not parameters.sequence_id:
            raise InvalidOptionError(
                "sequence_start or sequence_end without a sequence_id", remedy="give the sequence an id, not 0 or ''"
            )
        return parameters

    @property
    def timeout_s(self) -> float | None:
        """`timeout` in seconds; None if it is not set."""
        return self.timeout / 1e6 if self.timeout else None


@dataclass(frozen=True)
class Call:
    """A request that was understood.

    Attributes:
        model: that is asked.
        request_id: the client's.
        parameters: checked.
        pictures: files; raw pixels have become PPM files, whose decoding costs next to nothing.
        tasks: to run: those whose tensors are asked for.
        outputs: names of the asked tensors.
    """

    model: Model
    request_id: str
    parameters: InferParameters
    pictures: tuple[bytes, ...]
    tasks: tuple[str, ...]
    outputs: tuple[str, ...]


def error_text(error: PolyheadError) -> str:
    """A failure in the one string that the protocol has for it, not as long as what a client may have sent."""
    text = f"{error.detail}; {error.remedy}"
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def unready_because(service: SegmentationService) -> str | None:
    """Why pictures can't be answered now; None: they can."""
    try:
        service.check_ready()
    except UnavailableError as error:
        return error_text(error)
    return None


def repository_index(service: SegmentationService, *, only_ready: bool) -> list[dict[str, str]]:
    """All models with their states, as Triton's repository extension tells them."""
    reason = unready_because(service)
    state = {"state": "READY"} if reason is None else {"state": "UNAVAILABLE", "reason": reason}
    names = () if only_ready and reason is not None else model_names(service.engine.bundle)
    return [{"name": name, "version": VERSION} | state for name in names]


def read_call(
    service: SegmentationService, request: InferRequest, parameters: InferParameters, within: Call | None = None
) -> Call:
    """Check a request against the model that it asks for.

    Args:
        service: of the replica.
        request: as it came.
        parameters: read from `request`.
        within: the first call of the sequence that this one goes on with; its tasks are the ones that run.

    Raises:
        PolyheadError: no such model, tensor or task; an input that is no picture by its datatype, shape or length.
    """
    model = find_model(service.engine.bundle, request.model, request.version)
    tasks, outputs = _asked(service.engine, model, parameters, request.outputs, within)
    settings = service.settings
    pictures = _read_pictures(request.inputs, settings.max_pictures_inside, settings.max_upload_bytes)
    return Call(model, request.request_id, parameters, pictures, tasks, outputs)


async def infer(
    service: SegmentationService,
    call: Call,
    encode: Callable[[InferAnswer], Encoded],
    begun: float,
    timeout_s: float | None = None,
) -> Encoded:
    """Answer a call that belongs to no sequence; its pictures may share a batch.

    Args:
        service: of the replica.
        call: from `read_call`.
        encode: brings the answer into its protocol's form; runs in a picture thread.
        begun: when the request arrived, on `time.perf_counter`.
        timeout_s: at most; None: the server's default. The call's own may be less.

    Raises:
        PolyheadError: whatever stands in the way; if one picture or one task fails, the call fails.
    """
    if call.parameters.sequence_id:
        raise InvalidOptionError(
            f"sequence {call.parameters.sequence_id!r} outside a stream: the next request may reach another replica",
            remedy="send sequences over gRPC's ModelStreamInfer, one stream for all requests of a sequence",
        )
    timeout_s = service.settings.default_timeout_s if timeout_s is None else timeout_s
    timeout_s = min(timeout_s, call.parameters.timeout_s or timeout_s)
    async with AsyncExitStack() as inside:
        for _ in call.pictures:
            deadline_s = await inside.enter_async_context(service.admitted(timeout_s))
            service.metrics.admission_s.observe(time.perf_counter() - begun)
        running = [
            asyncio.create_task(_predict(service, call, number, deadline_s)) for number in range(len(call.pictures))
        ]
        try:
            predictions = await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()  # of those beside one that failed
        return await render(service, call, predictions, encode)


async def render(
    service: SegmentationService,
    call: Call,
    predictions: Sequence[Prediction],
    encode: Callable[[InferAnswer], Encoded],
) -> Encoded:
    """Bring predictions, one for each of a call's pictures, into a protocol's form, in a picture thread.

    Raises:
        PolyheadError: a task failed, or maps of different sizes were asked for as one tensor.
    """

    def work() -> Encoded:
        begun = time.perf_counter()
        encoded = encode(_answer(call, predictions))
        service.metrics.render_s.observe(time.perf_counter() - begun)
        add_stage("render", begun)
        return encoded

    return await service.in_pool(work)


def _asked(
    engine: Engine,
    model: Model,
    parameters: InferParameters,
    outputs: Mapping[str, Mapping[str, Any]],
    within: Call | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks to run and the tensors to make."""
    named = parse_tasks(parameters.tasks)
    if named is not None and not model.is_ensemble and named != [model.name]:
        raise InvalidOptionError(
            f"tasks={parameters.tasks} for the model '{model.name}'", remedy="ask the model 'ensemble' for several"
        )
    if within is not None:
        tasks = within.tasks if named is None else engine.check_tasks(named)
    else:
        tasks = engine.check_tasks(named) if model.is_ensemble else model.tasks
    wanted = {name: task for name, (task, _) in model.outputs.items() if task in tasks}
    if outputs:
        wanted = {}
        for name, tensor_parameters in outputs.items():
            if name not in model.outputs:
                told = ", ".join(model.outputs)
                raise InvalidOptionError(f"model '{model.name}' has no output '{name}'", remedy=f"there are: {told}")
            _check_tensor_parameters(f"output '{name}'", tensor_parameters)
            wanted[name] = model.outputs[name][0]
    running = within.tasks if within is not None else tasks if named is not None else model.tasks
    if others := sorted({task for task in wanted.values() if task not in running}):
        raise InvalidOptionError(
            f"outputs of {', '.join(others)} are asked for, but only {', '.join(running)} run",
            remedy="name all tasks in the parameter 'tasks', for a sequence in its first request",
        )
    return tuple(dict.fromkeys(wanted.values())), tuple(wanted)


def _check_tensor_parameters(tensor: str, parameters: Mapping[str, Any]) -> None:
    for name in parameters:
        if name.startswith("shared_memory_"):
            raise InvalidOptionError(f"{tensor} in shared memory", remedy="send tensors in the messages themselves")
        if name == "classification" and parameters[name]:
            raise InvalidOptionError(
                f"{tensor} as a classification", remedy="ask for the outputs labels and scores as they are"
            )


def _read_pictures(inputs: Sequence[InputTensor], max_pictures: int, max_bytes: int) -> tuple[bytes, ...]:
    if len(inputs) != 1 or inputs[0].name != IMAGE:
        told = ", ".join(f"'{tensor.name}'" for tensor in inputs) or "none"
        raise InvalidOptionError(f"the inputs are {told}; a model takes one, '{IMAGE}'", remedy=_IMAGE_REMEDY)
    tensor = inputs[0]
    _check_tensor_parameters(f"input '{IMAGE}'", tensor.parameters)
    if tensor.data is None:
        raise InvalidOptionError(f"input '{IMAGE}' came without data", remedy=_IMAGE_REMEDY)
    if any(length < 1 for length in tensor.shape) or not tensor.shape:
        raise _bad_shape(tensor)
    match tensor.datatype:
        case "BYTES" if len(tensor.shape) == 1:
            count = tensor.shape[0]
            read = _read_files
        case "UINT8" if len(tensor.shape) in (3, 4) and tensor.shape[-1] == 3:
            count = tensor.shape[0] if len(tensor.shape) == 4 else 1
            read = _read_pixels
        case "BYTES" | "UINT8":
            raise _bad_shape(tensor)
        case _:
            raise InvalidOptionError(f"input '{IMAGE}' has the datatype {tensor.datatype[:32]}", remedy=_IMAGE_REMEDY)
    if count > max_pictures:
        raise TooLargeError(
            f"{count} pictures in one request; at most {max_pictures} are let in at once",
            remedy="send them in several requests",
        )
    pictures = read(tensor)
    for picture in pictures:
        if tensor.datatype == "BYTES" and len(picture) > max_bytes:
            raise TooLargeError(
                f"a picture of {len(picture):,} bytes; at most {max_bytes:,} are taken",
                remedy="send a smaller file; results would not get finer",
            )
    return pictures


def _read_files(tensor: InputTensor) -> tuple[bytes, ...]:
    assert tensor.data is not None
    files = _split_bytes(tensor.data) if isinstance(tensor.data, bytes) else [_to_bytes(item) for item in tensor.data]
    if len(files) != tensor.shape[0]:
        raise InvalidOptionError(
            f"input '{IMAGE}' of shape {list(tensor.shape)} came with {len(files)} elements",
            remedy="send as many elements as the shape says",
        )
    return tuple(files)


def _split_bytes(data: bytes) -> list[bytes]:
    """The elements of a BYTES tensor: 4 bytes of length before each."""
    items, start = [], 0
    while start < len(data):
        length = int.from_bytes(data[start : start + 4], "little")
        start += 4
        if start + length > len(data):
            raise InvalidOptionError(
                f"input '{IMAGE}' is cut short: an element of {length:,} bytes at byte {start:,} of {len(data):,}",
                remedy="send BYTES with 4 little-endian bytes of length before each element",
            )
        items.append(data[start : start + length])
        start += length
    return items


def _to_bytes(item: Any) -> bytes:
    if isinstance(item, bytes):
        return item
    try:
        return base64.b64decode(item, validate=True)
    except (TypeError, ValueError):
        told = f"{item[:12]!r} …" if isinstance(item, str) else type(item).__name__
        raise InvalidImageError(
            f"{told} is no picture file in base64", remedy="send BYTES in JSON as base64 text, or as binary data"
        ) from None


def _read_pixels(tensor: InputTensor) -> tuple[bytes, ...]:
    assert tensor.data is not None
    data = tensor.data if isinstance(tensor.data, bytes) else _octets(tensor.data)
    if len(data) != math.prod(tensor.shape):
        raise InvalidOptionError(
            f"input '{IMAGE}' of shape {list(tensor.shape)} came with {len(data):,} bytes, not "
            f"{math.prod(tensor.shape):,}",
            remedy="send one byte for each element, row by row",
        )
    height, width, _ = tensor.shape[-3:]
    size = height * width * 3
    header = b"P6 %d %d 255\n" % (width, height)
    return tuple(header + data[start : start + size] for start in range(0, len(data), size))


def _octets(elements: Sequence[Any]) -> bytes:
    """The elements of a UINT8 tensor, flat or nested."""
    try:
        values = np.array(elements)
        if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 255:
            return values.astype(np.uint8).tobytes()
    except ValueError:
        pass  # lists of different lengths, or none
    raise InvalidOptionError(
        f"the data of input '{IMAGE}' are not all whole numbers in 0..255", remedy="send UINT8 as what it is"
    )


def _bad_shape(tensor: InputTensor) -> InvalidOptionError:
    return InvalidOptionError(
        f"input '{IMAGE}' is {tensor.datatype} of shape {list(tensor.shape)[:8]}", remedy=_IMAGE_REMEDY
    )


async def _predict(service: SegmentationService, call: Call, number: int, deadline_s: float) -> Prediction:
    try:
        return await service.predict(call.pictures[number], call.tasks, call.parameters.options, deadline_s)
    except PolyheadError as error:
        raise _of_picture(error, number, len(call.pictures)) from None


def _of_picture(error: PolyheadError, number: int, count: int) -> PolyheadError:
    """The error of one of several pictures; says of which."""
    if count == 1:
        return error
    return type(error)(
        f"picture {number + 1} of {count}: {error.detail}", remedy=error.remedy, retry_after_s=error.retry_after_s
    )


def _answer(call: Call, predictions: Sequence[Prediction]) -> InferAnswer:
    for number, prediction in enumerate(predictions):
        for error in prediction.errors.values():  # the protocol has no place for half an answer
            raise _of_picture(error, number, len(predictions))
    timings = [prediction.timing for prediction in predictions]
    costs = {
        "encoder_passes": sum(timing.encoder_passes for timing in timings),
        "batch_size": max(timing.batch_size for timing in timings),
        "queue_ms": round(max(timing.queue_ms for timing in timings), 3),
        "total_ms": round(max(timing.total_ms for timing in timings), 3),
    }
    tensors = []
    for name in call.outputs:
        task, output = call.model.outputs[name]
        parts = [output.value(prediction.results[task], call.parameters.masks) for prediction in predictions]
        tensors.append(OutputTensor(name, output.datatype, _together(name, output, parts)))
    return InferAnswer(call.model.name, call.request_id, costs, tensors)


def _together(name: str, output: Output, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The parts of N pictures as one array, [N, …]."""
    if len({part.shape for part in parts}) > 1:
        if output.fill is None:
            told = ", ".join(" x ".join(map(str, part.shape)) for part in parts)
            raise InvalidOptionError(
                f"output '{name}' is of different size for each picture: {told}",
                remedy="ask for one picture at a time, for pictures of one size together, or for the output json only",
            )
        rows = max(len(part) for part in parts)
        parts = [_filled(part, rows, output.fill) for part in parts]
    return np.stack(parts).astype(_DTYPES[output.datatype], copy=False)


def _filled(part: NDArray[Any], rows: int, fill: bytes | float) -> NDArray[Any]:
    whole = np.full((rows, *part.shape[1:]), fill, part.dtype)
    whole[: len(part)] = part
    return whole
