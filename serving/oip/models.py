"""The models that the Open Inference Protocol tells of: one per task, and `ensemble` for several at once.

Protocol: https://github.com/kserve/open-inference-protocol; extensions: Triton's ``docs/protocol``.

Every model takes one input, `image`: BYTES [N] (picture files) or UINT8 [N, H, W, 3] or [H, W, 3] (RGB). The protocol
gives an input one datatype, so the metadata tells BYTES, and the config's parameters tell both. What a model answers
with depends on the kind of its head, see `OUTPUTS`; a tensor of `ensemble` is called ``<task>.<tensor>``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from decoders.results import (
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    PanopticResult,
    Result,
    SemanticResult,
)
from decoders.video import StreamDecoder
from serving.answers.render import MaskFormat, result_json
from serving.bundles.loading import Bundle
from serving.config import Settings
from serving.errors import UnsupportedTaskError

IMAGE = "image"
ENSEMBLE = "ensemble"
PLATFORM = "polyhead"
VERSION = "1"

EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters", "sequence", "sequence(string_id)")
"""Of Triton's extensions. Not `statistics`: counts of one replica would pass for the server's (see `GET /metrics`)."""

_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT32": "TYPE_INT32"}

Value = Callable[[Any, MaskFormat], NDArray[Any]]


@dataclass(frozen=True)
class Output:
    """A tensor that a kind of result is answered with.

    Attributes:
        name: within its task.
        datatype: the protocol's name.
        dims: of N pictures: -1 for N, then the shape of one picture's part, -1 where it varies.
        value: one picture's part, [dims without N], from its result.
        fill: stands in the rows that a picture has fewer than another; None: all parts must be of one shape.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    value: Value
    fill: bytes | float | None = None


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: the task, or `ENSEMBLE`.
        tasks: that it can run.
        outputs: (task, output) by the tensor's name.
    """

    name: str
    tasks: tuple[str, ...]
    outputs: Mapping[str, tuple[str, Output]]

    @property
    def is_ensemble(self) -> bool:
        """Whether the request says which of the tasks run; a bundle may have one task only."""
        return self.tasks != (self.name,)


def _json(result: Result, masks: MaskFormat) -> NDArray[Any]:
    return np.array(json.dumps(result_json(result, masks)).encode(), dtype=object)


def _segment_map(result: PanopticResult | SemanticResult, masks: MaskFormat) -> NDArray[Any]:
    return result.segment_map


def _depth(result: DepthResult, masks: MaskFormat) -> NDArray[Any]:
    return result.depth_m


def _vector(result: EmbeddingResult, masks: MaskFormat) -> NDArray[Any]:
    return result.vector


def _vectors(result: DenseEmbeddingResult, masks: MaskFormat) -> NDArray[Any]:
    return result.vectors


def _column(rows: str, cell: Callable[[Any], object], dtype: DTypeLike, *tail: int) -> Value:
    """The value of an output that has a row [*tail] for each instance or class."""

    def value(result: Result, masks: MaskFormat) -> NDArray[Any]:
        return np.array([cell(row) for row in getattr(result, rows)], dtype).reshape(-1, *tail)

    return value


_JSON = Output("json", "BYTES", (-1,), _json)
_SEGMENT_MAP = Output("segment_map", "INT32", (-1, -1, -1), _segment_map)

OUTPUTS: Mapping[str, tuple[Output, ...]] = {
    "panoptic": (_SEGMENT_MAP, _JSON),
    "semantic": (_SEGMENT_MAP, _JSON),
    "instance": (
        Output("labels", "BYTES", (-1, -1), _column("instances", lambda row: row.label.encode(), object), b""),
        Output("label_ids", "INT32", (-1, -1), _column("instances", lambda row: row.label_id, np.int32), -1),
        Output("scores", "FP32", (-1, -1), _column("instances", lambda row: row.score, np.float32), 0),
        Output("boxes", "INT32", (-1, -1, 4), _column("instances", lambda row: row.bbox, np.int32, 4), 0),
        Output("track_ids", "INT32", (-1, -1), _column("instances", lambda row: row.track_id or 0, np.int32), 0),
        _JSON,
    ),
    "depth": (Output("depth", "FP32", (-1, -1, -1), _depth), _JSON),
    "classification": (
        Output("labels", "BYTES", (-1, -1), _column("classes", lambda row: row.label.encode(), object), b""),
        Output("label_ids", "INT32", (-1, -1), _column("classes", lambda row: row.label_id, np.int32), -1),
        Output("scores", "FP32", (-1, -1), _column("classes", lambda row: row.score, np.float32), 0),
        _JSON,
    ),
    "embedding": (Output("embedding", "FP32", (-1, -1), _vector), _JSON),
    "dense_embedding": (Output("embedding", "FP32", (-1, -1, -1, -1), _vectors), _JSON),
}
"""By kind of head. Maps are in pixels, [N, H, W]: ids as in `decoders.results` (0 = void), depth in metres. Instances
come best first, classes most probable first; a box is (x, y, width, height) in pixels, a track_id of 0 is none. A
picture with fewer instances than another of its request is filled up: label "", label_id -1, all else 0."""


def find_model(bundle: Bundle, name: str, model_version: str = "") -> Model:
    """The model of a name.

    Args:
        bundle: that is loaded.
        name: a task, or `ENSEMBLE` (unless a task is called so).
        model_version: "" or `VERSION`.

    Raises:
        UnsupportedTaskError: there is no such model or version.
    """
    names = list(model_names(bundle))
    if name not in names:
        told = ", ".join(names)
        raise UnsupportedTaskError(f"no model '{name}'; there are: {told}", remedy="ask one of them")
    if model_version not in ("", VERSION):
        raise UnsupportedTaskError(
            f"no version '{model_version}' of model '{name}'; there is: {VERSION}", remedy=f"ask {VERSION}, or none"
        )
    if name in bundle.heads:
        return Model(name, (name,), {output.name: (name, output) for output in _outputs_of(bundle, name)})
    tasks = tuple(bundle.heads)
    return Model(
        name, tasks, {f"{task}.{output.name}": (task, output) for task in tasks for output in _outputs_of(bundle, task)}
    )


def model_names(bundle: Bundle) -> Iterator[str]:
    """All models, in the bundle's order, `ENSEMBLE` last."""
    yield from bundle.heads
    if ENSEMBLE not in bundle.heads:
        yield ENSEMBLE


def server_metadata() -> dict[str, Any]:
    """The protocol's $metadata_server_response."""
    return {"name": PLATFORM, "version": version("polyhead"), "extensions": list(EXTENSIONS)}


def model_metadata(model: Model) -> dict[str, Any]:
    """The protocol's $metadata_model_response."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": name, "datatype": output.datatype, "shape": list(output.dims)}
            for name, (_, output) in model.outputs.items()
        ],
    }


def model_config(model: Model, bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """Triton's ModelConfig (extension `model_configuration`), as far as it says something of us."""
    told = {"image": "BYTES [N]: picture files; or UINT8 [N, H, W, 3] or [H, W, 3]: RGB"}
    if model.is_ensemble:
        told["tasks"] = f"without the request parameter 'tasks' or outputs: {','.join(bundle.default_tasks)}"
    config: dict[str, Any] = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"specific": {"versions": [int(VERSION)]}},
        "max_batch_size": 0,
        "input": [{"name": IMAGE, "data_type": "TYPE_STRING", "dims": [-1]}],
        "output": [
            {"name": name, "data_type": _CONFIG_TYPES[output.datatype], "dims": list(output.dims)}
            for name, (_, output) in model.outputs.items()
        ],
        "model_transaction_policy": {"decoupled": False},
        "parameters": {name: {"string_value": text} for name, text in told.items()},
    }
    tasks = bundle.default_tasks if model.is_ensemble else model.tasks  # a client may then send sequences only
    if any(isinstance(bundle.heads[task].decoder, StreamDecoder) for task in tasks):
        config["sequence_batching"] = {"max_sequence_idle_microseconds": round(1e6 * settings.stream_idle_s)}
    return config


def _outputs_of(bundle: Bundle, task: str) -> tuple[Output, ...]:
    return OUTPUTS[bundle.heads[task].decoder.kind]
