"""Who gets in: a request that can't be answered in time is refused at once, with the time when another try may succeed.

Pure: time and load are passed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import OverloadedError


class ServiceRate:
    """How long a picture takes to serve, measured: an exponential moving average of batch time per picture.

    Args:
        smoothing: weight of the newest batch, in (0, 1].
    """

    def __init__(self, smoothing: float = 0.2) -> None:
        self._smoothing = smoothing
        self._seconds_per_picture: float | None = None

    def observe(self, pictures: int, seconds: float) -> None:
        """A batch of `pictures` took `seconds`."""
        sample = seconds / pictures
        last = self._seconds_per_picture
        self._seconds_per_picture = sample if last is None else last + self._smoothing * (sample - last)

    def wait_s(self, pictures: int) -> float:
        """How long `pictures` pictures will take, seconds; 0 before anything was measured."""
        return pictures * (self._seconds_per_picture or 0.0)


class Admission:
    """Counts the pictures that are inside and refuses those that would come out too late.

    Args:
        max_pictures: inside at once.
    """

    def __init__(self, max_pictures: int) -> None:
        self.rate = ServiceRate()
        self.inside = 0
        self._max_pictures = max_pictures

    def check(self, timeout_s: float) -> None:
        """Refuse a picture that would find no room, or no answer within `timeout_s`.

        Raises:
            OverloadedError: with the seconds after which the queue will have shortened enough.
        """
        expected_s = self.rate.wait_s(self.inside + 1)
        if self.inside >= self._max_pictures:
            retry_after_s = self.rate.wait_s(self.inside - self._max_pictures + 1)
            detail = f"{self.inside} pictures are waiting, as many as are let in"
        elif self.inside and expected_s > timeout_s:
            retry_after_s = expected_s - timeout_s
            detail = f"{self.inside} pictures are ahead; the answer would take {expected_s:.1f} s of {timeout_s:.1f} s"
        else:
            return
        raise OverloadedError(
            detail, remedy="try again after Retry-After seconds", retry_after_s=max(1, math.ceil(retry_after_s))
        )

    def enter(self, timeout_s: float) -> None:
        """Let a picture in; `leave` must follow. Raises as `check` does."""
        self.check(timeout_s)
        self.inside += 1

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Count a frame of a stream while it is before the encoder; what a stream may send is limited elsewhere."""
        self.inside += 1
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """A picture has left, answered or not."""
        self.inside -= 1
