"""The accelerator's thread: what it batches, whom it skips, and what it survives. The clock is only a number."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
import torch

from encoders.geometry import FitGeometry
from serving.batching import BatchPolicy
from serving.engine import PassInput, PassOutput, PassReport
from serving.errors import DeadlineExceededError, InternalError, UnavailableError
from serving.runner import PassAnswer, PassRunner

PATIENCE_S = 60
"""Before a test that hangs gives up; nothing waits that long."""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def picture(name: str, side: int = 56) -> PassInput:
    """An input that is known by the only task it asks for."""
    return PassInput(torch.zeros(1, 3, side, side), FitGeometry(side, side).place((side, side)), (name,))


def run_pass(inputs: Sequence[PassInput]) -> list[PassOutput]:
    """Answers each picture with its own name."""
    report = PassReport(len(inputs), 0.5)
    return [PassOutput(report, raw={item.tasks[0]: {"value": torch.zeros(1)}}) for item in inputs]


def name_of(future: Future[PassAnswer]) -> str:
    return next(iter(future.result(PATIENCE_S).output.raw))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(make_gate: Callable[..., Any]) -> Any:
    return make_gate(run_pass)


@pytest.fixture
def make_runner(clock: Clock) -> Iterator[Callable[..., PassRunner]]:
    """Builds runners that wait for nobody; all are stopped when the test ends."""
    runners: list[PassRunner] = []

    def make(run: Any, *, size: int = 4, **options: Any) -> PassRunner:
        runners.append(PassRunner(run, BatchPolicy(size, 0), clock=clock, **options))
        return runners[-1]

    yield make
    for runner in runners:
        if isinstance(opened := getattr(runner._run_pass, "opened", None), threading.Event):
            opened.set()
        runner.stop()


@pytest.fixture
def held(gate: Any, make_runner: Callable[..., PassRunner]) -> PassRunner:
    """A runner whose thread stands at the gate with a picture "first", so that what comes next must queue."""
    runner = make_runner(gate)
    runner.submit(picture("first"))
    assert gate.entered.wait(PATIENCE_S)
    return runner


def names(gate: Any) -> list[list[str]]:
    """What was in each batch."""
    return [[item.tasks[0] for item in batch] for batch in gate.batches]


def test_a_picture_is_answered_with_its_own_output(make_runner: Callable[..., PassRunner]) -> None:
    runner = make_runner(run_pass)
    futures = {name: runner.submit(picture(name)) for name in "abc"}
    assert {name: name_of(future) for name, future in futures.items()} == {name: name for name in "abc"}


def test_pictures_that_queue_while_the_accelerator_is_busy_run_together_by_input_size(
    held: PassRunner, gate: Any
) -> None:
    futures = [held.submit(picture(*each)) for each in (("a", 56), ("b", 112), ("c", 56), ("d", 112))]
    assert held.waiting == 4
    gate.opened.set()
    assert [name_of(future) for future in futures] == ["a", "b", "c", "d"]
    assert names(gate) == [["first"], ["a", "c"], ["b", "d"]]
    assert held.waiting == 0


def test_pictures_of_equal_area_but_another_shape_do_not_run_together(held: PassRunner, gate: Any) -> None:
    tall = PassInput(torch.zeros(1, 3, 112, 56), FitGeometry(112, 56).place((112, 56)), ("tall",))
    wide = PassInput(torch.zeros(1, 3, 56, 112), FitGeometry(56, 112).place((56, 112)), ("wide",))
    futures = [held.submit(tall), held.submit(wide)]
    gate.opened.set()
    assert [name_of(future) for future in futures] == ["tall", "wide"]
    assert names(gate) == [["first"], ["tall"], ["wide"]]


def test_no_batch_is_larger_than_the_policy_allows(held: PassRunner, gate: Any) -> None:
    futures = [held.submit(picture(name)) for name in "abcdef"]
    gate.opened.set()
    assert [name_of(future) for future in futures] == list("abcdef")
    assert names(gate) == [["first"], ["a", "b", "c", "d"], ["e", "f"]]


def test_the_answer_tells_the_batch_and_how_long_the_picture_waited(held: PassRunner, gate: Any, clock: Clock) -> None:
    early = held.submit(picture("early"))
    clock.now_s += 2
    late = held.submit(picture("late"))
    clock.now_s += 3
    gate.opened.set()
    assert (early.result(PATIENCE_S).queue_s, late.result(PATIENCE_S).queue_s) == (5, 3)
    assert early.result().output.report.batch_size == 2
    assert early.result().output.report is late.result().output.report


def test_a_cancelled_picture_is_never_run(held: PassRunner, gate: Any) -> None:
    cancelled, kept = held.submit(picture("cancelled")), held.submit(picture("kept"))
    assert cancelled.cancel()
    assert held.waiting == 1
    gate.opened.set()
    assert name_of(kept) == "kept"
    assert names(gate) == [["first"], ["kept"]]
    with pytest.raises(CancelledError):
        cancelled.result()


def test_a_picture_whose_deadline_passes_in_the_queue_fails_and_is_never_run(
    held: PassRunner, gate: Any, clock: Clock
) -> None:
    late = held.submit(picture("late"), deadline_s=clock.now_s + 5)
    kept = held.submit(picture("kept"), deadline_s=clock.now_s + 50)
    clock.now_s += 6
    gate.opened.set()
    with pytest.raises(DeadlineExceededError, match="while the picture waited"):
        late.result(PATIENCE_S)
    assert name_of(kept) == "kept"
    assert names(gate) == [["first"], ["kept"]]


def test_an_exception_fails_its_batch_only_and_the_thread_lives_on(
    make_runner: Callable[..., PassRunner], caplog: pytest.LogCaptureFixture
) -> None:
    def fail_on_bad(inputs: Sequence[PassInput]) -> list[PassOutput]:
        if inputs[0].tasks == ("bad",):
            raise RuntimeError("out of memory")
        return run_pass(inputs)

    runner = make_runner(fail_on_bad, size=1)
    futures = [runner.submit(picture(name)) for name in ("before", "bad", "after")]
    assert (name_of(futures[0]), name_of(futures[2])) == ("before", "after")
    with pytest.raises(InternalError) as failed:
        futures[1].result(PATIENCE_S)
    assert failed.value.detail == "a batch failed with a RuntimeError; the server's log has it"
    (record,) = [record for record in caplog.records if record.name == "polyhead.runner"]
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "a batch of 1 failed")
    assert record.exc_info is not None and str(record.exc_info[1]) == "out of memory"
    assert runner.alive


def test_a_pass_that_loses_a_picture_fails_its_batch_instead_of_mixing_answers(
    held: PassRunner, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures = [held.submit(picture(name)) for name in "ab"]
    monkeypatch.setattr(gate, "_run_pass", lambda inputs: run_pass(inputs)[:1])
    gate.opened.set()
    for future in futures:
        with pytest.raises(InternalError, match="ValueError"):
            future.result(PATIENCE_S)
    assert held.alive


def test_each_batch_is_reported_with_its_outputs_and_seconds(
    make_runner: Callable[..., PassRunner], clock: Clock
) -> None:
    told: list[tuple[list[PassOutput], float]] = []

    def slow(inputs: Sequence[PassInput]) -> list[PassOutput]:
        clock.now_s += 7
        return run_pass(inputs)

    runner = make_runner(slow, on_batch=lambda batch: told.append((list(batch.outputs), batch.seconds)))
    answer = runner.submit(picture("a")).result(PATIENCE_S)
    runner.stop()
    ((outputs, seconds),) = told
    assert len(outputs) == 1 and outputs[0] is answer.output
    assert seconds == 7


def test_nobody_waits_for_the_counting_of_a_batch(make_runner: Callable[..., PassRunner]) -> None:
    counted = threading.Event()
    runner = make_runner(run_pass, on_batch=lambda batch: counted.wait(PATIENCE_S))
    try:
        assert name_of(runner.submit(picture("a"))) == "a"
        assert not counted.is_set()
    finally:
        counted.set()


def test_a_batch_that_failed_is_not_reported(make_runner: Callable[..., PassRunner]) -> None:
    told: list[Any] = []

    def fail(inputs: Sequence[PassInput]) -> list[PassOutput]:
        raise RuntimeError("no luck")

    runner = make_runner(fail, on_batch=told.append)
    future = runner.submit(picture("a"))
    runner.stop()
    assert isinstance(future.exception(PATIENCE_S), InternalError)
    assert told == []


def test_stop_finishes_what_is_queued_and_ends_the_thread(held: PassRunner, gate: Any) -> None:
    futures = [held.submit(picture(*each)) for each in (("a", 56), ("b", 112))]
    stopping = threading.Thread(target=held.stop)
    stopping.start()
    gate.opened.set()
    stopping.join(PATIENCE_S)
    assert not stopping.is_alive()
    assert all(future.done() for future in futures)
    assert [name_of(future) for future in futures] == ["a", "b"]
    assert not held.alive


def test_a_stopped_runner_takes_no_more_pictures(make_runner: Callable[..., PassRunner]) -> None:
    runner = make_runner(run_pass)
    runner.stop()
    with pytest.raises(UnavailableError, match="stopping") as refused:
        runner.submit(picture("late"))
    assert refused.value.retry_after_s is not None
    assert not runner.alive
