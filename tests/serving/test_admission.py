"""Admission: who is refused at once, and when another try may succeed."""

from __future__ import annotations

import pytest

from serving.admission import Admission, ServiceRate
from serving.errors import OverloadedError


def admission_with(inside: int, *, limit: int = 4, seconds_per_picture: float | None = None) -> Admission:
    admission = Admission(limit)
    admission.inside = inside
    if seconds_per_picture is not None:
        admission.rate.observe(1, seconds_per_picture)
    return admission


def test_before_anything_was_measured_no_wait_is_expected() -> None:
    assert ServiceRate().wait_s(100) == 0


def test_the_first_batch_sets_the_rate_per_picture() -> None:
    rate = ServiceRate()
    rate.observe(4, 2.0)
    assert rate.wait_s(3) == pytest.approx(1.5)


def test_the_rate_follows_newer_batches_by_their_weight() -> None:
    rate = ServiceRate(smoothing=0.25)
    rate.observe(1, 1.0)
    rate.observe(2, 10.0)  # 5 s per picture
    assert rate.wait_s(1) == pytest.approx(0.75 * 1 + 0.25 * 5)


def test_pictures_get_in_while_there_is_room() -> None:
    admission = Admission(2)
    admission.enter(1)
    admission.enter(1)
    assert admission.inside == 2


def test_a_picture_beyond_the_limit_is_refused_and_not_counted() -> None:
    admission = Admission(2)
    admission.enter(1)
    admission.enter(1)
    with pytest.raises(OverloadedError, match="2 pictures are waiting, as many as are let in"):
        admission.enter(1)
    assert admission.inside == 2


def test_there_is_room_again_when_a_picture_has_left() -> None:
    admission = Admission(1)
    admission.enter(1)
    admission.leave()
    admission.enter(1)
    assert admission.inside == 1


def test_a_check_lets_nobody_in() -> None:
    admission = Admission(1)
    admission.check(1)
    assert admission.inside == 0


def test_a_picture_that_would_come_out_after_its_deadline_is_refused() -> None:
    admission = admission_with(3, limit=64, seconds_per_picture=0.5)
    with pytest.raises(OverloadedError, match=r"3 pictures are ahead; the answer would take 2\.0 s of 1\.9 s"):
        admission.check(1.9)


def test_a_picture_that_would_come_out_at_its_deadline_is_let_in() -> None:
    admission = admission_with(3, limit=64, seconds_per_picture=0.5)
    admission.enter(2.0)
    assert admission.inside == 4


def test_a_picture_with_nobody_ahead_is_let_in_however_slow_the_server_was() -> None:
    admission = admission_with(0, seconds_per_picture=100.0)
    admission.enter(1)
    assert admission.inside == 1


@pytest.mark.parametrize(
    ("inside", "seconds_per_picture", "retry_after_s"),
    [
        pytest.param(4, 2.5, 3, id="one picture must leave: 2.5 s, rounded up"),
        pytest.param(6, 2.5, 8, id="three pictures must leave: 7.5 s, rounded up"),
        pytest.param(4, 0.01, 1, id="never under a second"),
        pytest.param(4, None, 1, id="nothing was measured yet"),
    ],
)
def test_retry_after_when_full_is_the_time_until_there_is_room(
    inside: int, seconds_per_picture: float | None, retry_after_s: int
) -> None:
    with pytest.raises(OverloadedError) as refused:
        admission_with(inside, seconds_per_picture=seconds_per_picture).check(1000)
    assert refused.value.retry_after_s == retry_after_s


def test_retry_after_when_too_slow_is_the_time_until_the_deadline_could_be_held() -> None:
    with pytest.raises(OverloadedError) as refused:
        admission_with(9, limit=64, seconds_per_picture=2.0).check(5.5)  # 20 s are expected
    assert refused.value.retry_after_s == 15


def test_a_refusal_tells_the_remedy() -> None:
    with pytest.raises(OverloadedError) as refused:
        admission_with(4).check(1)
    assert "Retry-After" in refused.value.remedy
