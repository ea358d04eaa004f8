"""What is kept by the size of the input has a bound."""

from __future__ import annotations

from encoders.cache import remember


def test_the_oldest_entries_are_forgotten_beyond_eight() -> None:
    cache: dict[int, int] = {}
    for number in range(20):
        remember(cache, number, number)
    assert list(cache) == list(range(12, 20))
