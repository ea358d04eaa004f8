"""The request path, whatever protocol it came by: admission, decode, queue, encoder and heads, post-processing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import torch
from PIL import Image

from serving.admission import Admission
from serving.batching import BatchPolicy
from serving.config import Settings
from serving.engine import Engine, PassInput, PassOutput, count_pass
from serving.errors import DeadlineExceededError, UnavailableError
from serving.metrics import Metrics
from serving.pictures import decode_picture
from serving.runner import PassAnswer, PassRunner
from serving.streams.registry import StreamRegistry
from serving.types import Prediction, PredictOptions, Timing

Value = TypeVar("Value")


class SegmentationService:
    """One replica's engine with its queue, threads and metrics; gateways call `predict` inside `admitted`.

    Args:
        engine: loaded.
        settings: of the server.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        spec = engine.bundle.encoder.spec
        self.metrics = Metrics(engine.bundle.name, spec.name, spec.revision)
        self.admission = Admission(settings.max_pictures_inside)
        self.streams = StreamRegistry(self)
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="pictures")
        on_gpu = engine.device.type == "cuda"
        policy = BatchPolicy(
            max_batch_size=settings.max_batch_size or (16 if on_gpu else 4), max_wait_s=settings.max_wait_ms / 1e3
        )
        self._runner = PassRunner(engine.run_pass, policy, on_batch=self._count_batch)
        self._draining = False
        self.metrics.pictures_inside.set_function(lambda: self.admission.inside)
        self.metrics.pictures_waiting.set_function(lambda: self._runner.waiting)

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
        self.check_ready()
        self.admission.enter(timeout_s)
        deadline_s = time.monotonic() + timeout_s
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
        self, data: bytes, tasks: Iterable[str] | None, options: PredictOptions, deadline_s: float
    ) -> Prediction:
        """Answer one picture that was let in.

        Args:
            data: the picture's file.
            tasks: heads to run; None: the bundle's default tasks.
            options: thresholds and output size.
            deadline_s: from `admitted`.

        Raises:
            PolyheadError: whatever stands in the way; see `serving.errors`.
        """
        started_s = time.monotonic()
        asked = self.engine.check_tasks(tasks)
        timing = Timing()

        def prepare() -> tuple[tuple[int, int], list[PassInput]]:
            begun = time.perf_counter()
            image = decode_picture(data, max_pixels=self.settings.max_pixels)
            decoded = time.perf_counter()
            inputs = self.engine.prepare(image, asked, options)
            timing.decode_ms = 1e3 * (decoded - begun)
            timing.preprocess_ms = 1e3 * (time.perf_counter() - decoded)
            return (image.height, image.width), inputs

        image_size, inputs = await self.in_pool(prepare)
        answers = await self.run_passes(inputs, deadline_s)
        for answer in answers:
            count_pass(timing, answer.output)
            timing.queue_ms = max(timing.queue_ms, 1e3 * answer.queue_s)

        begun = time.perf_counter()
        results, errors = await self.in_pool(
            lambda: self.engine.finish(inputs, [answer.output for answer in answers], options)
        )
        timing.postprocess_ms = 1e3 * (time.perf_counter() - begun)
        timing.total_ms = 1e3 * (time.monotonic() - started_s)
        prediction = Prediction(image_size, inputs[0].geometry.output_size, results, errors, timing)
        self.metrics.count_prediction(prediction)
        return prediction

    async def run_passes(self, inputs: Sequence[PassInput], deadline_s: float | None) -> list[PassAnswer]:
        """Queue a picture's passes and wait for all of them; if the caller gives up, they leave the queue.

        Args:
            inputs: from `Engine.prepare`.
            deadline_s: on `time.monotonic`.

        Raises:
            DeadlineExceededError: a pass was still waiting then.
            UnavailableError: the replica is stopping.
        """
        futures: list[Future[PassAnswer]] = []
        try:
            for item in inputs:
                futures.append(self._runner.submit(item, deadline_s))
            return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
        finally:
            for future in futures:
                future.cancel()  # whoever still waits, waits for nobody

    async def in_pool(self, function: Callable[[], Value]) -> Value:
        """Run work that holds no accelerator in the picture threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

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

    def _count_batch(self, outputs: Sequence[PassOutput], seconds: float) -> None:
        self.admission.rate.observe(len(outputs), seconds)
        self.metrics.count_batch(outputs)


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
    service = SegmentationService(engine, settings)
    service.warm_up()
    return service
