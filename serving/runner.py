"""The one thread that owns the accelerator: takes batches from the queue, runs them, answers futures."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from serving.batching import BatchPolicy, BatchQueue, Entry
from serving.engine import PassInput, PassOutput
from serving.errors import DeadlineExceededError, InternalError, UnavailableError

logger = logging.getLogger("polyhead.runner")

RunPass = Callable[[Sequence[PassInput]], list[PassOutput]]


@dataclass(frozen=True)
class PassAnswer:
    """One picture's output of a batched pass, and how long the picture waited, seconds."""

    output: PassOutput
    queue_s: float


@dataclass(frozen=True)
class BatchRun:
    """A batch that was run.

    Attributes:
        inputs, outputs: one for each picture.
        seconds: that it took.
        wait_s: how long the picture that came first had waited.
    """

    inputs: Sequence[PassInput]
    outputs: Sequence[PassOutput]
    seconds: float
    wait_s: float


@dataclass
class _Job:
    item: PassInput
    future: Future[PassAnswer] = field(default_factory=Future)


class PassRunner:
    """Runs encoder passes one batch at a time, in a thread of its own.

    Args:
        run_pass: `Engine.run_pass`.
        policy: of batching.
        on_batch: told of each batch after its answers, in the accelerator's thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        run_pass: RunPass,
        policy: BatchPolicy,
        *,
        on_batch: Callable[[BatchRun], None] = lambda batch: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_pass = run_pass
        self._on_batch = on_batch
        self._clock = clock
        self._queue: BatchQueue[_Job] = BatchQueue(policy)
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="accelerator", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        with self._changed:
            return len(self._queue)

    @property
    def waiting_bytes(self) -> int:
        """Memory of the pictures in the queue."""
        with self._changed:
            return sum(job.item.pixels.nbytes for job in self._queue.items())

    @property
    def alive(self) -> bool:
        """Whether the thread runs; when it does not, the replica must be replaced."""
        return self._thread.is_alive()

    def submit(self, item: PassInput, deadline_s: float | None = None) -> Future[PassAnswer]:
        """Queue one picture's pass; pictures of equal input size run together.

        Args:
            item: what to run.
            deadline_s: on the runner's clock; an entry still waiting then fails with `DeadlineExceededError`.

        Returns:
            The answer to come. Cancelling it takes the picture out of the queue.
        """
        job = _Job(item)
        entry = Entry(
            job,
            key=tuple(item.pixels.shape[-2:]),
            size=len(item.pixels),
            enqueued_at_s=self._clock(),
            deadline_s=deadline_s,
        )
        job.future.add_done_callback(lambda future: setattr(entry, "cancelled", future.cancelled()))
        with self._changed:
            if self._stopping:
                raise UnavailableError("the server is stopping", remedy="try again", retry_after_s=2)
            self._queue.push(entry)
            self._changed.notify()
        return job.future

    def stop(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                batch = self._queue.pop(self._clock())
                if not (batch.entries or batch.expired):
                    due_s = self._queue.next_due_s()
                    if due_s is None and self._stopping:
                        return
                    self._changed.wait(None if due_s is None else max(0.0, due_s - self._clock()))
                    continue
            for entry in batch.expired:
                if entry.item.future.set_running_or_notify_cancel():
                    entry.item.future.set_exception(_too_late())
            entries = [entry for entry in batch.entries if entry.item.future.set_running_or_notify_cancel()]
            if entries:
                self._run(entries)

    def _run(self, entries: Sequence[Entry[_Job]]) -> None:
        started_s = self._clock()
        try:
            outputs = self._run_pass([entry.item.item for entry in entries])
            answers = [
                PassAnswer(output, started_s - entry.enqueued_at_s)
                for entry, output in zip(entries, outputs, strict=True)
            ]
        except Exception as error:  # the thread must outlive anything a batch does
            logger.exception("a batch of %d failed", len(entries))
            failure = InternalError(
                f"a batch failed with a {type(error).__name__}; the server's log has it",
                remedy="try again, or report it",
            )
            for entry in entries:
                entry.item.future.set_exception(failure)
            return
        for entry, answer in zip(entries, answers, strict=True):
            entry.item.future.set_result(answer)
        try:
            wait_s = max(answer.queue_s for answer in answers)
            inputs = [entry.item.item for entry in entries]
            self._on_batch(BatchRun(inputs, outputs, self._clock() - started_s, wait_s))
        except Exception:
            logger.exception("counting a batch failed")


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError(
        "the deadline passed while the picture waited for the accelerator",
        remedy="allow more time with X-Request-Timeout-S, or send fewer pictures at once",
    )
