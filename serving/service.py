"""The request path, whatever protocol it came by: admission, decode, queue, encoder and heads, post-processing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from PIL import Image

from serving.admission import Admission
from serving.batching import BatchPolicy
from serving.config import Settings
from serving.engine import Engine, PassInput, PassReport, count_pass
from serving.errors import DeadlineExceededError, UnavailableError
from serving.metrics import Metrics
from serving.pictures import decode_picture
from serving.runner import PassRunner
from serving.types import Prediction, PredictOptions, Timing

Value = TypeVar("Value")


class SegmentationService:
    """One replica's engine with its queue, threads and metrics; gateways call `predict`.

    Args:
        engine: loaded.
        settings: of the server.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        spec = engine.bundle.encoder.spec
        self.metrics = Metrics(engine.bundle.name, spec.name, spec.revision)
        self.admission = Admission(settings.max_queued_pictures)
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

    async def predict(
        self, data: bytes, tasks: Iterable[str] | None, options: PredictOptions, *, timeout_s: float | None = None
    ) -> Prediction:
        """Answer one picture.

        Args:
            data: the picture's file.
            tasks: heads to run; None: the bundle's default tasks.
            options: thresholds and output size.
            timeout_s: the caller's deadline, seconds from now; None: the server's default.

        Raises:
            PolyheadError: whatever stands in the way; see `serving.errors`.
        """
        started_s = time.monotonic()
        timeout_s = self.settings.default_timeout_s if timeout_s is None else timeout_s
        self.check_ready()
        asked = self.engine.check_tasks(tasks)
        self.admission.enter(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                prediction = await self._predict(data, asked, options, started_s, started_s + timeout_s)
        except TimeoutError:
            raise DeadlineExceededError(
                f"no answer within {timeout_s:g} s",
                remedy="allow more time with X-Request-Timeout-S, or ask for fewer tasks",
            ) from None
        finally:
            self.admission.leave()
        self.metrics.count_prediction(prediction)
        return prediction

    async def in_pool(self, function: Callable[[], Value]) -> Value:
        """Run work that holds no accelerator in the picture threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    def warm_up(self) -> None:
        """Run every head once on an empty picture, so that the first caller does not pay for it."""
        self.engine.predict(Image.new("RGB", (64, 64)), list(self.engine.bundle.heads))

    def drain(self) -> None:
        """Refuse new pictures, finish those inside, stop the threads."""
        self._draining = True
        self._runner.stop()
        self._pool.shutdown()

    async def _predict(
        self, data: bytes, tasks: tuple[str, ...], options: PredictOptions, started_s: float, deadline_s: float
    ) -> Prediction:
        timing = Timing()

        def prepare() -> tuple[tuple[int, int], list[PassInput]]:
            begun = time.perf_counter()
            image = decode_picture(data, max_pixels=self.settings.max_pixels)
            decoded = time.perf_counter()
            inputs = self.engine.prepare(image, tasks, options)
            timing.decode_ms = 1e3 * (decoded - begun)
            timing.preprocess_ms = 1e3 * (time.perf_counter() - decoded)
            return (image.height, image.width), inputs

        image_size, inputs = await self.in_pool(prepare)
        futures = [self._runner.submit(item, deadline_s) for item in inputs]
        answers = await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        for item, answer in zip(inputs, answers, strict=True):
            count_pass(timing, answer.report, item.tasks)
            timing.queue_ms = max(timing.queue_ms, 1e3 * answer.queue_s)

        begun = time.perf_counter()
        results, errors = await self.in_pool(
            lambda: self.engine.finish(inputs, [answer.output for answer in answers], options)
        )
        timing.postprocess_ms = 1e3 * (time.perf_counter() - begun)
        timing.total_ms = 1e3 * (time.monotonic() - started_s)
        return Prediction(image_size, inputs[0].geometry.output_size, results, errors, timing)

    def _count_batch(self, report: PassReport, seconds: float) -> None:
        self.admission.rate.observe(report.batch_size, seconds)
        self.metrics.count_batch(report)


def create_service(settings: Settings) -> SegmentationService:
    """Load the bundle of `settings` and warm it up.

    Raises:
        BundleError: the bundle can't be loaded.
    """
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    engine = Engine.from_bundle(
        settings.bundle,
        device=settings.device,
        dtype=getattr(torch, settings.dtype),
        cache_dir=settings.cache_dir,
    )
    service = SegmentationService(engine, settings)
    service.warm_up()
    return service
