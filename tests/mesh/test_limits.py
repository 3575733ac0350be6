"""Bounded queues, token buckets and admission, against their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.mesh.limits import Admission, AdmissionLimits, Bounded, TokenBucket
from farflung.world.address import PeerId

A, B, C = map(PeerId, "abc")


def test_a_full_queue_says_no_and_keeps_its_order() -> None:
    queue: Bounded[int] = Bounded(2)
    assert [queue.offer(number) for number in range(3)] == [True, True, False]
    assert queue.is_full and list(queue) == [0, 1]
    assert queue.take() == 0 and queue.offer(3)
    assert [queue.take(), queue.take()] == [1, 3]
    with pytest.raises(IndexError):
        queue.take()
    with pytest.raises(ValueError, match="room"):
        Bounded(0)


@given(
    st.floats(0.1, 100.0),
    st.floats(1.0, 50.0),
    st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.1, 5.0)), max_size=60),
)
def test_a_bucket_never_gives_more_than_burst_and_rate_allow(
    per_second: float, burst: float, wishes: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(per_second=per_second, burst=burst, now=10.0)
    now, taken = 10.0, 0.0
    for pause, amount in wishes:
        now += pause
        wait = bucket.wait_seconds(now, amount)
        is_taken = bucket.take(now, amount)
        assert is_taken == (wait == 0.0)
        taken += amount * is_taken
        assert taken <= (burst + per_second * (now - 10.0)) * (1 + 1e-9)
        if not is_taken and amount <= burst:
            assert bucket.take(now + wait * (1 + 1e-9) + 1e-9, amount)
            now, taken = now + wait * (1 + 1e-9) + 1e-9, taken + amount


def test_a_bucket_ignores_a_clock_that_steps_back_and_knows_the_impossible() -> None:
    bucket = TokenBucket(per_second=1.0, burst=1.0, now=5.0)
    assert bucket.take(5.0) and not bucket.take(1.0) and not bucket.take(5.5) and bucket.take(6.0)
    assert bucket.wait_seconds(6.0, 2.0) == float("inf")
    with pytest.raises(ValueError, match="positive"):
        TokenBucket(per_second=0.0, burst=1.0, now=0.0)


def test_admission_counts_in_total_and_per_peer_and_says_why_not() -> None:
    admission = Admission(AdmissionLimits(num_total_max=3, num_per_peer_max=2))
    assert admission.enter(A) is None and admission.enter(A) is None
    assert "for you" in (admission.enter(A) or "")
    assert admission.enter(B) is None
    assert "3 are under way" in (admission.enter(C) or "")
    admission.leave(A)
    assert admission.enter(C) is None
    admission.leave_all(A)
    admission.leave_all(A)
    assert admission.num_total == 2
    with pytest.raises(AssertionError, match="nothing of a"):
        admission.leave(A)
    with pytest.raises(ValueError, match="at least one"):
        AdmissionLimits(num_total_max=1, num_per_peer_max=2)
