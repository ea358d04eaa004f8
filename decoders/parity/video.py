"""Video: the online model over a clip, in every way that it can be run, and a clip's post-processing."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decoders.clips import clip_classes, clip_instances, decode_clip
from decoders.online import OnlineMaskDecoder, StreamState, advance, stack_queries
from decoders.panoptic_merge import MergedSegment, merge_clip
from decoders.parity.cases import Case, CaseError
from decoders.parity.image import compare_features
from decoders.parity.models import read_model
from decoders.parity.postprocess import Entry, compare_instances, entries_of
from decoders.parity.report import TOLERANCES, compare_tensors
from encoders.features import EncoderFeatures
from encoders.geometry import ImageGeometry
from encoders.preprocess import pad_with_mean
from encoders.vit import VisionTransformer

_TASKS = ("vis", "vps", "vss")


# The model


def has_frames(case: Case) -> bool:
    """Whether frames of a clip go in."""
    return case.has("frames_u8")


def run_frames(case: Case) -> None:
    """Run the model frame by frame and compare; then in one go, among other streams, and through to its results."""
    frames = case.input("frames_u8")
    geometry = _frame_geometry(case, (frames.shape[2], frames.shape[3]))
    model = read_model(case)
    if not isinstance(model.decoder, OnlineMaskDecoder):
        raise CaseError("there are frames, but the decoder's weights have no query_updater")
    images = _network_input(case, frames, geometry, model.encoder)
    taps = model.decoder.out_indices
    one_by_one = [model.encoder(image[None], taps) for image in images]
    batch = model.encoder(images, taps)
    compare_features(case, model.decoder, batch)

    mask_logits, class_logits, states = decode_clip(model.decoder, one_by_one)
    _compare_steps(case, model.decoder, one_by_one, states)
    _compare_frames(case, (mask_logits, class_logits, states))
    if len(images) > 1:
        in_one_go = decode_clip(model.decoder, [batch.rows([t], taps, copy=False) for t in range(len(images))])
        _compare_frames(case, in_one_go, "encoded in one go")
        folded = copy.deepcopy(model.decoder)
        folded.fold_laterals()
        _compare_frames(case, decode_clip(folded, one_by_one), "laterals folded")
        _compare_interleaved(case, model.encoder, model.decoder, images)
    else:
        case.skipped.append("streams (there is one frame)")
    _compare_mean(case, class_logits, "class_logits")
    _compare_clip(case, mask_logits.transpose(0, 1), class_logits.mean(dim=0), geometry, "instance_scores")
    _compare_streamed(case, mask_logits, class_logits, geometry)
    case.skip_absent("mask_logits", "class_logits", "query_state", "tokens_in.0", "vis.masks", "vps.map", "vss.map")


def _frame_geometry(case: Case, scaled_size: tuple[int, int]) -> ImageGeometry:
    """Frames come already scaled, so they are placed here: top left in the next multiple of the divisor."""
    divisor = case.fact("size_divisibility", "config.size_divisibility", default=32)
    height, width = (-(-side // divisor) * divisor for side in scaled_size)
    if "padded_hw" in case.facts:
        case.compare_list("padded_hw", [height, width], case.fact("padded_hw"))
    if "unpadded_hw" in case.facts:
        case.compare_list("unpadded_hw", list(scaled_size), case.fact("unpadded_hw"))
    stated = case.fact("config.out_hw", "out_hw", "output_size", default=scaled_size)
    output_size = (stated[0], stated[1])
    return ImageGeometry(output_size, scaled_size, (height, width), output_size, pads_with_mean=True)


def _network_input(case: Case, frames: Tensor, geometry: ImageGeometry, encoder: VisionTransformer) -> Tensor:
    """[T, 3, H, W] in [0, 1]: padding is what standardises to 0."""
    for name, ours in (("pixel_mean", encoder.pixel_mean), ("pixel_std", encoder.pixel_std)):
        stated = case.fact(name, default=None)
        if stated is not None:
            case.compare_list(name, [round(255 * value, 4) for value in ours], stated)
    height, width = geometry.scaled_size
    pixels = frames.new_zeros((len(frames), 3, *geometry.input_size))
    pixels[:, :, :height, :width] = frames
    return pad_with_mean(pixels, [geometry] * len(frames), encoder.pixel_mean)


def _compare_steps(case: Case, decoder: OnlineMaskDecoder, frames: Sequence[EncoderFeatures], states: Tensor) -> None:
    """Compare what enters and leaves the blocks at single frames."""
    for t, features in enumerate(frames):
        queries = states[t - 1][None] if t else None
        if case.expects(f"tokens_in.{t}"):
            case.compare(f"tokens_in.{t}", decoder.embed(features, queries)[0], "tokens")
        if case.expects(f"tokens_out.{t}"):
            case.compare(f"tokens_out.{t}", decoder.decode(features, queries), "tokens")
    rope = decoder.embed(frames[0])[1]
    case.compare("rope_cos", rope[0], "rope")
    case.compare("rope_sin", rope[1], "rope")


def _compare_frames(case: Case, answers: tuple[Tensor, Tensor, Tensor], note: str = "") -> None:
    for result, ours in zip(("mask_logits", "class_logits", "query_state"), answers, strict=True):
        case.compare(result, ours, result, note)


def _compare_interleaved(case: Case, encoder: VisionTransformer, decoder: OnlineMaskDecoder, images: Tensor) -> None:
    """The clip, and the clip backwards beginning one frame later, as two streams in one batch.

    The first must equal what is expected, the second what it gives alone.
    """
    taps = decoder.out_indices
    backwards = images.flip(0)
    states: list[StreamState | None] = [None, None]
    answers: list[list[Tensor]] = [[], []]
    for t in range(len(images)):
        active = [0] if t == 0 else [0, 1]
        features = encoder(torch.stack([images[t], backwards[t - 1]])[: len(active)], taps)
        before = [states[stream] for stream in active]
        mask_logits, class_logits, queries = decoder.step(features, stack_queries(before, decoder.queries))
        for stream, state in zip(active, advance(before, queries, class_logits, None), strict=True):
            states[stream] = state
            answers[stream].append(mask_logits[active.index(stream)])
    case.compare("mask_logits", torch.stack(answers[0]), "mask_logits", "in a batch with another stream")
    alone = decode_clip(decoder, [encoder(image[None], taps) for image in backwards[:-1]])[0]
    tolerance = TOLERANCES["mask_logits"]
    case.add(compare_tensors("the other stream's mask logits, to it alone", torch.stack(answers[1]), alone, tolerance))


# The results of a clip


def has_clip_logits(case: Case) -> bool:
    """Whether logits of a clip are given and results of it expected."""
    given = case.has("mask_logits") and (case.has("class_logits_per_frame") or case.has("mean_class_logits"))
    return given and not has_frames(case)


def run_clip_logits(case: Case) -> None:
    """Draw the results of one clip from its logits."""
    output_size = case.size("output_size", "out_hw")
    geometry = ImageGeometry(
        output_size, case.size("img_size"), case.size("first_resize_size", "padded_hw"), output_size, None, True
    )
    mask_logits = case.input("mask_logits")  # [Q, T, h, w]
    if case.has("class_logits_per_frame"):
        per_frame = case.input("class_logits_per_frame")
        _compare_mean(case, per_frame, "structured")
        class_logits = per_frame.mean(dim=0)
    else:
        class_logits = case.input("mean_class_logits")
    _compare_clip(case, mask_logits, class_logits, geometry, "structured")
    case.skip_absent("vis.masks", "vps.map", "vss.map")


def _compare_mean(case: Case, per_frame: Tensor, tolerance: str) -> None:
    """The clip's class logits, at once and as a stream's running mean; [T, Q, K + 1]."""
    case.compare("mean_class_logits", per_frame.mean(dim=0), tolerance)
    states: list[StreamState | None] = [None]
    for logits in per_frame:
        states = [*advance(states, logits[None], logits[None], None)]
    assert states[0] is not None
    case.compare("mean_class_logits", states[0].class_logits, tolerance, "running")


def _compare_clip(case: Case, mask_logits: Tensor, class_logits: Tensor, geometry: ImageGeometry, scores: str) -> None:
    """Compare a clip's instances, segments and classes; [Q, T, h, w] and [Q, K + 1]."""
    if case.expects("vis.labels"):
        top_k = case.fact("tasks.vis.max_num", "config.max_num", "max_num")
        compare_instances(case, "vis.{}".format, _tracks(mask_logits, class_logits, geometry, top_k), scores)
    stated = case.fact("tasks.vps", "vps", default=None)
    if stated is not None or case.expects("vps.map"):
        segment_map, segments = _merge(case, mask_logits, class_logits, geometry)
        _compare_segments(case, "vps", segments, stated or {})
        case.compare("vps.map", segment_map + 1, "map")
    for name, facts in _other_thresholds(case):
        threshold = float(name.rpartition("_")[2])
        segment_map, segments = _merge(case, mask_logits, class_logits, geometry, threshold)
        _compare_segments(case, name, segments, facts)
        if "all_zero" in facts:
            case.compare_list(f"{name}.all_zero", [bool((segment_map == -1).all())], [facts["all_zero"]])
    if case.expects("vss.map"):
        case.compare("vss.map", clip_classes(mask_logits, class_logits, geometry), "map")


def _compare_streamed(case: Case, mask_logits: Tensor, class_logits: Tensor, geometry: ImageGeometry) -> None:
    """Compare results of one call a frame: classes are not averaged; [T, Q, h, w] and [T, Q, K + 1]."""
    stated = case.fact("tasks.vps_stream", "vps_stream", default=None)
    if stated is not None or case.expects("vps_stream.map"):
        maps = []
        for t, (masks, classes) in enumerate(zip(mask_logits, class_logits, strict=True)):
            segment_map, segments = _merge(case, masks[:, None], classes, geometry)
            maps.append(segment_map[0] + 1)
            _compare_segments(case, f"vps_stream[{t}]", segments, stated[t] if stated else {})
        case.compare("vps_stream.map", torch.stack(maps), "map")
    if case.expects("vss_stream.map"):
        maps = [
            clip_classes(masks[:, None], classes, geometry)[0]
            for masks, classes in zip(mask_logits, class_logits, strict=True)
        ]
        case.compare("vss_stream.map", torch.stack(maps), "map")
    if stated is None:
        case.skip_absent("vps_stream.map")


def _tracks(mask_logits: Tensor, class_logits: Tensor, geometry: ImageGeometry, top_k: int) -> list[Entry]:
    """The clip's instances, each with its masks in all frames; the score is the class probability alone."""
    frames = clip_instances(mask_logits, class_logits, geometry, top_k=top_k)
    masks = [torch.stack(of_pair) for of_pair in zip(*([e.mask for e in entries_of(f)] for f in frames), strict=True)]
    return [
        Entry(pair.label_id, pair.probability, mask, pair.query) for pair, mask in zip(frames[0], masks, strict=True)
    ]


def _merge(
    case: Case,
    mask_logits: Tensor,
    class_logits: Tensor,
    geometry: ImageGeometry,
    score_threshold: float | None = None,
) -> tuple[Tensor, list[MergedSegment]]:
    if score_threshold is None:
        score_threshold = case.fact("tasks.vps.object_mask_threshold", "object_mask_threshold", default=0.8)
    return merge_clip(
        mask_logits,
        class_logits,
        geometry,
        stuff_ids=range(_num_things(case), class_logits.shape[-1] - 1),
        score_threshold=score_threshold,
        overlap_threshold=case.fact("tasks.vps.overlap_threshold", "overlap_threshold", default=0.8),
    )


def _num_things(case: Case) -> int:
    return case.fact("tasks.vps.num_things", "config.num_things", "num_things")


def _compare_segments(case: Case, name: str, segments: Sequence[MergedSegment], stated: Mapping[str, Any]) -> None:
    if "segments" in stated:
        things = _num_things(case)
        ours = [
            {"id": segment.segment_id + 1, "isthing": segment.label_id < things, "category_id": segment.label_id}
            for segment in segments
        ]
        case.compare_list(f"{name}.segments", ours, stated["segments"])
    if "query" in stated:
        case.compare_list(f"{name}.query", [segment.query for segment in segments], stated["query"])


def _other_thresholds(case: Case) -> list[tuple[str, Mapping[str, Any]]]:
    """Facts such as "vps_threshold_0.99": what the merge gives at another score threshold."""
    both = {**case.facts, **case.fact("tasks", default={})}
    return [(name, facts) for name, facts in both.items() if re.fullmatch(r"vps_threshold_[\d.e-]+", name)]
