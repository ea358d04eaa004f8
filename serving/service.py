"""The request path, whatever protocol it came by: admission, decode, queue, encoder and heads, post-processing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import replace
from typing import TypeVar

import torch
from PIL import Image

from serving.admission import Admission
from serving.autoscaling import LoadMeter
from serving.batching import BatchPolicy
from serving.config import Settings
from serving.engine import Engine, PassInput, count_pass
from serving.errors import (
    DeadlineExceededError,
    FeatureCacheOffError,
    InvalidOptionError,
    MissingBlocksError,
    UnavailableError,
    UnknownFeaturesError,
)
from serving.feature_cache import FeatureCache, FeatureEntry, features_id, is_of_picture, picture_digest
from serving.metrics import Metrics
from serving.pictures import decode_picture
from serving.planner import plan, taps
from serving.request_context import RequestContext, add_stage, add_tasks, current_request
from serving.runner import BatchRun, PassAnswer, PassRunner
from serving.streams.registry import StreamRegistry
from serving.tracing import Tracer, create_tracer
from serving.types import Prediction, PredictOptions, Timing

Value = TypeVar("Value")


class SegmentationService:
    """One replica's engine with its queue, threads and metrics; gateways call `predict` inside `admitted`.

    Args:
        engine: loaded.
        settings: of the server.
        tracer: of its requests, if they are traced.
    """

    def __init__(self, engine: Engine, settings: Settings, tracer: Tracer | None = None) -> None:
        self.engine = engine
        self.settings = settings
        self.tracer = tracer
        spec = engine.bundle.encoder.spec
        self.metrics = Metrics(
            bundle=engine.bundle.name,
            encoder=spec.name,
            revision=spec.revision,
            device=engine.device,
            dtype=settings.dtype,
            heads=engine.bundle.heads,
        )
        self.admission = Admission(settings.max_pictures_inside)
        self.streams = StreamRegistry(self)
        self.features = FeatureCache(
            settings.feature_cache_bytes,
            on_hit=self.metrics.feature_cache_hits.inc,
            on_miss=self.metrics.feature_cache_misses.inc,
            on_evict=self.metrics.feature_cache_evictions.inc,
        )
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="pictures")
        on_gpu = engine.device.type == "cuda"
        policy = BatchPolicy(
            max_batch_size=settings.max_batch_size or (16 if on_gpu else 4), max_wait_s=settings.max_wait_ms / 1e3
        )
        self.load = LoadMeter()
        self._runner = PassRunner(engine.run_pass, policy, on_batch=self._count_batch)
        self._draining = False
        self.metrics.pictures_inside.set_function(lambda: self.admission.inside)
        self.metrics.queue_pictures.set_function(lambda: self._runner.waiting)
        self.metrics.queue_bytes.set_function(lambda: self._runner.waiting_bytes)
        self.metrics.feature_cache_bytes.set_function(lambda: self.features.num_bytes)
        self.metrics.feature_cache_entries.set_function(lambda: len(self.features))
        self.metrics.streams_active.set_function(lambda: len(self.streams))
        self.metrics.stream_state_bytes.set_function(lambda: self.streams.state_bytes)

    def check_ready(self) -> None:
        """Raise unless pictures can be answered now.

        Raises:
            UnavailableError: draining, or the accelerator's thread is gone.
        """
        if self._draining or not self._runner.alive:
            state = "draining" if self._draining else "without its accelerator thread"
            raise UnavailableError(f"this replica is {state}", remedy="try again", retry_after_s=2)

    @asynccontextmanager
    async def admitted(self, timeout_s: float) -> AsyncIterator[float]:
        """Let one picture in, from before its bytes are read until its answer is rendered, and hold its deadline.

        Args:
            timeout_s: seconds from now.

        Yields:
            The deadline on `time.monotonic`.

        Raises:
            OverloadedError: no room, or no answer in time; see `serving.admission`.
            UnavailableError: not ready.
            DeadlineExceededError: what is done inside took longer than `timeout_s`.
        """
        begun_s = time.perf_counter()
        self.check_ready()
        self.admission.enter(timeout_s)
        deadline_s = time.monotonic() + timeout_s
        add_stage("admission", begun_s)
        try:
            async with asyncio.timeout(timeout_s):
                yield deadline_s
        except TimeoutError:
            raise DeadlineExceededError(
                f"no answer within {timeout_s:g} s",
                remedy="allow more time with X-Request-Timeout-S, or ask for fewer tasks",
            ) from None
        finally:
            self.admission.leave()

    async def predict(
        self,
        data: bytes,
        tasks: Iterable[str] | None,
        options: PredictOptions,
        deadline_s: float,
        kept: str | None = None,
    ) -> Prediction:
        """Answer one picture that was let in.

        Args:
            data: the picture's file; may be empty if features of it are kept.
            tasks: heads to run; None: the bundle's default tasks.
            options: thresholds and output size.
            deadline_s: from `admitted`.
            kept: id of the picture's features, if they may be in the cache.

        Raises:
            PolyheadError: whatever stands in the way; see `serving.errors`.
        """
        started_s = time.monotonic()
        asked = self.engine.check_tasks(tasks)
        add_tasks(asked)
        timing = Timing()
        entry = None if kept is None else await self._find_features(kept, data, asked)
        if entry is not None:
            image_size, inputs = entry.image_size, self.engine.prepare_cached(entry, asked, options)
        else:
            image_size, inputs = await self.in_pool(lambda: self._prepare(data, asked, options, timing))
        answers = await self.run_passes(inputs, deadline_s, current_request())
        _count_answers(timing, answers)

        begun = time.perf_counter()
        results, errors = await self.in_pool(
            lambda: self.engine.finish(inputs, [answer.output for answer in answers], options)
        )
        timing.postprocess_ms = 1e3 * (time.perf_counter() - begun)
        add_stage("postprocess", begun)
        timing.total_ms = 1e3 * (time.monotonic() - started_s)
        prediction = Prediction(image_size, inputs[0].geometry.output_size, results, errors, timing)
        self.metrics.count_prediction(prediction)
        return prediction

    async def keep_features(self, data: bytes, tasks: Iterable[str], deadline_s: float) -> tuple[FeatureEntry, Timing]:
        """Encode one picture that was let in, for heads that will be asked for later; nothing runs if it is there.

        Args:
            data: the picture's file.
            tasks: heads that will be asked for.
            deadline_s: from `admitted`.

        Returns:
            The entry, in the cache now, and what it cost.

        Raises:
            FeatureCacheOffError: this server keeps no features.
            TooLargeError: they would not fit into the cache.
            PolyheadError: whatever else stands in the way; see `serving.errors`.
        """
        started_s = time.monotonic()
        self.features.check_on()
        heads = self.engine.bundle.heads
        asked = self.engine.check_tasks(tasks)
        add_tasks(asked)
        passes = plan(asked, heads)
        digest = await self.in_pool(lambda: picture_digest(data))
        wanted_id = features_id(
            digest,
            [encoder_pass.geometry for encoder_pass in passes],
            self.engine.bundle.encoder.spec,
            self.settings.torch_dtype,
        )
        timing = Timing()
        try:
            entry = self.features.find(wanted_id, [heads[task] for task in asked])
        except (UnknownFeaturesError, MissingBlocksError):
            image_size, inputs = await self.in_pool(lambda: self._prepare(data, asked, PredictOptions(), timing))
            keeping = [replace(item, tasks=(), keep=taps(item.tasks, heads)) for item in inputs]
            answers = await self.run_passes(keeping, deadline_s, current_request())
            _count_answers(timing, answers)
            kept = {}
            for encoder_pass, answer in zip(passes, answers, strict=True):
                if answer.output.features is None:
                    assert answer.output.encoder_error is not None
                    raise answer.output.encoder_error from None
                kept[encoder_pass.geometry] = answer.output.features
            entry = self.features.put(FeatureEntry(wanted_id, image_size, kept))
        timing.total_ms = 1e3 * (time.monotonic() - started_s)
        return entry, timing

    async def _find_features(self, kept: str, data: bytes, tasks: Iterable[str]) -> FeatureEntry | None:
        """The entry that `tasks` can run on; None: there is none, but the picture came along."""
        if data and not is_of_picture(kept, await self.in_pool(lambda: picture_digest(data))):
            raise InvalidOptionError(
                f"features={kept[:80]} are of another picture than the one in the body",
                remedy="send the picture of which they are, or leave one of the two out",
            )
        try:
            return self.features.find(kept, [self.engine.bundle.heads[task] for task in tasks])
        except (UnknownFeaturesError, MissingBlocksError, FeatureCacheOffError):
            if not data:
                raise
        return None

    def _prepare(
        self, data: bytes, tasks: Iterable[str], options: PredictOptions, timing: Timing
    ) -> tuple[tuple[int, int], list[PassInput]]:
        """Decode and resize, in a thread: (height, width) of the picture, and the inputs of its passes."""
        begun = time.perf_counter()
        image = decode_picture(data, max_pixels=self.settings.max_pixels)
        decoded = time.perf_counter()
        add_stage("decode", begun, decoded)
        inputs = self.engine.prepare(image, tasks, options)
        timing.decode_ms = 1e3 * (decoded - begun)
        timing.preprocess_ms = 1e3 * (time.perf_counter() - decoded)
        add_stage("preprocess", decoded)
        return (image.height, image.width), inputs

    async def run_passes(
        self, inputs: Sequence[PassInput], deadline_s: float | None, request: RequestContext | None = None
    ) -> list[PassAnswer]:
        """Queue a picture's passes and wait for all of them; if the caller gives up, they leave the queue.

        Args:
            inputs: from `Engine.prepare` or `Engine.prepare_cached`.
            deadline_s: on `time.monotonic`.
            request: that they are a part of.

        Raises:
            DeadlineExceededError: a pass was still waiting then.
            UnavailableError: the replica is stopping.
        """
        futures: list[Future[PassAnswer]] = []
        try:
            for item in inputs:
                futures.append(self._runner.submit(replace(item, request=request), deadline_s))
            answers = list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
        finally:
            for future in futures:
                future.cancel()  # whoever still waits, waits for nobody
        if request is not None:
            for answer in answers:
                request.add_pass(answer.output, answer.queue_s)
        return answers

    async def in_pool(self, function: Callable[[], Value]) -> Value:
        """Run work that holds no accelerator in the picture threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, function)

    def warm_up(self) -> None:
        """Run every head once on an empty picture, so that the first caller does not pay for it."""
        self.engine.predict(Image.new("RGB", (64, 64)), list(self.engine.bundle.heads))

    def drain(self) -> None:
        """Refuse new pictures, run what is queued, stop the threads.

        The host waits for requests under way first (Ray Serve does), since they need the event loop that this blocks.
        """
        self._draining = True
        self.streams.end_all()
        self._runner.stop()
        self._pool.shutdown()
        self.features.clear()
        if self.tracer is not None:
            self.tracer.shutdown()

    def _count_batch(self, batch: BatchRun) -> None:
        self.admission.rate.observe(len(batch.outputs), batch.seconds)
        self.load.count(batch.wait_s, batch.seconds)
        self.metrics.count_batch(batch.inputs, batch.outputs, batch.wait_s)


def _count_answers(timing: Timing, answers: Iterable[PassAnswer]) -> None:
    """Add the passes that served a picture to the picture's timing."""
    for answer in answers:
        count_pass(timing, answer.output)
        timing.queue_ms = max(timing.queue_ms, 1e3 * answer.queue_s)


def create_service(settings: Settings) -> SegmentationService:
    """Load the bundle of `settings` and warm it up.

    Raises:
        BundleError: the bundle can't be loaded.
    """
    # Ray sets OMP_NUM_THREADS to the CPUs that a replica reserves, which is one; the forward pass wants them all.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(settings.torch_threads or max(1, cores // settings.replicas))
    engine = Engine.from_bundle(
        settings.bundle,
        device=settings.device,
        dtype=settings.torch_dtype,
        cache_dir=settings.cache_dir,
    )
    service = SegmentationService(engine, settings, create_tracer(engine.bundle.name))
    service.warm_up()
    return service
