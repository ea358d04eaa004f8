"""Ctrl-C is noted once, and then works as ever."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from decoders.training.interrupt import noted_interrupt


def test_the_first_interrupt_is_noted_and_the_second_one_interrupts() -> None:
    with noted_interrupt() as asked:
        assert not asked.is_set()
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handler_before_is_back_afterwards_even_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), noted_interrupt():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_gets_an_event_that_stays_unset() -> None:
    def within() -> bool:
        with noted_interrupt() as asked:
            return asked.is_set()

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(within).result() is False
