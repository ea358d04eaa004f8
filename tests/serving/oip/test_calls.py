"""What the Open Inference Protocol says of a bundle, and how the results of several pictures become tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from decoders.results import InstanceResult, Segment
from serving.answers.render import _KINDS
from serving.bundles.loading import Bundle
from serving.errors import UnsupportedTaskError
from serving.gateways.http_gateway import SegmentQuery
from serving.oip import models as oip_models
from serving.oip.calls import Call, InferParameters, InferRequest, InputTensor, OutputTensor, _together, read_call
from serving.service import SegmentationService


def test_a_task_called_ensemble_is_that_task(make_bundle: Callable[..., Bundle], probe_head: Callable[[], Any]) -> None:
    bundle = make_bundle(ensemble=probe_head())
    assert list(oip_models.model_names(bundle)) == ["panoptic", "depth", "ensemble"]
    assert oip_models.find_model(bundle, "ensemble").tasks == ("ensemble",)


def test_a_picture_with_fewer_instances_is_filled_up() -> None:
    def result(*scores: float) -> InstanceResult:
        found = tuple(Segment(n, 7, "cup", True, score, 4, (1, 2, 3, 4)) for n, score in enumerate(scores, 1))
        return InstanceResult((8, 8), found, ())

    given = {
        output.name: _together(output.name, output, [output.value(one, "none") for one in (result(0.5), result())])
        for output in oip_models.OUTPUTS["instance"]
        if output.name != "json"
    }
    assert given["labels"].tolist() == [[b"cup"], [b""]]
    assert given["label_ids"].tolist() == [[7], [-1]]
    assert given["scores"].tolist() == [[0.5], [0.0]]
    assert given["boxes"].tolist() == [[[1, 2, 3, 4]], [[0, 0, 0, 0]]]
    assert given["track_ids"].tolist() == [[0], [0]]


def test_the_parameters_have_the_bounds_of_http() -> None:
    for name in ("score_threshold", "mask_threshold", "overlap_threshold", "max_side"):
        assert InferParameters.model_fields[name].metadata == SegmentQuery.model_fields[name].metadata


def test_every_kind_of_head_has_outputs() -> None:
    assert set(oip_models.OUTPUTS) == set(_KINDS.values())


def test_a_bundle_of_one_task_has_an_ensemble_too(
    make_bundle: Callable[..., Bundle], make_service: Callable[..., SegmentationService]
) -> None:
    whole = make_bundle()
    bundle = replace(whole, heads={"depth": whole.heads["depth"]}, default_tasks=("depth",))
    tensor = InputTensor("image", "BYTES", (1,), [b"x"], {})
    for parameters in ({}, {"tasks": "depth"}):
        call: Call = read_call(
            make_service(bundle),
            InferRequest("ensemble", "", "", parameters, [tensor], {}),
            InferParameters.read(parameters),
        )
        assert call.tasks == ("depth",)
        assert call.outputs == ("depth.depth", "depth.json")


def test_an_unknown_model_or_version_is_named(make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(UnsupportedTaskError, match="no model 'x'; there are: panoptic, depth, ensemble"):
        oip_models.find_model(make_bundle(), "x")
    with pytest.raises(UnsupportedTaskError, match="no version '0' of model 'depth'; there is: 1"):
        oip_models.find_model(make_bundle(), "depth", "0")


def test_numbers_go_out_little_endian_and_row_by_row() -> None:
    columns_first = np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3))
    assert OutputTensor("x", "INT32", columns_first).raw() == bytes(
        byte for number in range(6) for byte in (number, 0, 0, 0)
    )
    texts: Any = np.array([[b"a", b""], [b"bcd", b"\xff"]], dtype=object)
    assert OutputTensor("x", "BYTES", texts).raw() == b"\1\0\0\0a\0\0\0\0\3\0\0\0bcd\1\0\0\0\xff"
