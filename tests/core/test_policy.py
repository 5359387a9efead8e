"""How a delivery ends: every report, every bound, one step before and at it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beltline.core.outcome import Ack, Cause, DeadLetter, Ended, Failure, Release, RetryAfter
from beltline.core.policy import (
    AskedCancel,
    AskedReject,
    AskedRetry,
    AskedSnooze,
    Raised,
    Report,
    Returned,
    RunnerDied,
    TaskPolicy,
    decide,
    poison,
)
from beltline.core.retry import NO_RETRY, Retry

POLICY = TaskPolicy(task="resize", queue="photos", retry=Retry(attempts=3, base_s=2.0, jitter=False), result_ttl_s=60.0)
FAILURE = Failure(Cause.ERROR, "ValueError", "too small", "Traceback …")
CRASH = Failure(Cause.CRASH, text="signal 11")
RAISED = Raised(FAILURE, ("ValueError", "Exception"))


def end(report: Report, *, failed: int = 0, lost: int = 0, retry: Retry | None = None, policy: TaskPolicy = POLICY) -> object:
    return decide(report, policy, retry, failed=failed, lost=lost, draw=0.5, ran_s=1.5)


def test_a_task_that_returned_is_acknowledged_and_keeps_its_result_for_the_time_the_task_says() -> None:
    assert end(Returned(b"\x01")) == Ack(ran_s=1.5, result_ttl_s=60.0)


def test_a_failure_is_tried_again_after_the_back_off() -> None:
    assert end(RAISED) == RetryAfter(delay_s=2.0, failure=FAILURE, ran_s=1.5)
    assert end(RAISED, failed=1) == RetryAfter(delay_s=4.0, failure=FAILURE, ran_s=1.5)


def test_the_last_attempt_is_dead_lettered_and_says_how_many_there_were() -> None:
    assert end(RAISED, failed=2) == DeadLetter(reason="failed after 3 attempts", failure=FAILURE, ran_s=1.5)
    assert end(RAISED, retry=NO_RETRY) == DeadLetter(reason="failed after 1 attempt", failure=FAILURE, ran_s=1.5)


def test_the_messages_own_policy_goes_before_the_tasks() -> None:
    assert end(RAISED, failed=2, retry=Retry(attempts=4, base_s=1.0, jitter=False)) == RetryAfter(delay_s=4.0, failure=FAILURE, ran_s=1.5)


def test_lost_deliveries_spend_no_attempts() -> None:
    assert isinstance(end(RAISED, failed=1, lost=2), RetryAfter)


def test_an_exception_that_is_not_retried_is_dead_lettered_at_once() -> None:
    retry = Retry(never=("ValueError",))
    assert end(RAISED, retry=retry) == DeadLetter(reason="ValueError is not retried", failure=FAILURE, ran_s=1.5)


def test_arguments_that_do_not_fit_are_never_tried_again() -> None:
    failure = Failure(Cause.INVALID, "InvalidArguments", "width: expected int")
    assert end(Raised(failure)) == DeadLetter(reason="invalid_arguments", failure=failure, ran_s=1.5)


def test_a_task_that_asks_for_a_retry_chooses_the_delay_but_not_the_number() -> None:
    assert end(AskedRetry(30.0, FAILURE), failed=1) == RetryAfter(delay_s=30.0, failure=FAILURE, ran_s=1.5)
    assert isinstance(end(AskedRetry(30.0, FAILURE), failed=2), DeadLetter)


def test_a_snooze_costs_no_attempt_however_often() -> None:
    assert end(AskedSnooze(9.0), failed=2, lost=2) == Release(delay_s=9.0, why="snoozed")
    assert end(AskedSnooze(9.0, queue=True), failed=2, lost=2) == Release(delay_s=9.0, why="snoozed", queue_s=9.0)


def test_a_task_may_cancel_itself_with_a_reason() -> None:
    assert end(AskedCancel("sold out")) == Ack(ended=Ended.CANCELLED, note="sold out", ran_s=1.5)


def test_a_task_may_give_up_at_once_with_a_reason() -> None:
    assert end(AskedReject("broken file", FAILURE)) == DeadLetter(reason="broken file", failure=FAILURE, ran_s=1.5)


@pytest.mark.parametrize("failed", [0, 1, 50])
def test_a_dead_runner_counts_as_lost_and_at_the_bound_as_poison(failed: int) -> None:
    policy = TaskPolicy(task="resize", queue="photos", max_deliveries=3)
    again = RetryAfter(delay_s=0.0, failure=CRASH, lost=True, ran_s=1.5)
    assert end(RunnerDied(CRASH), failed=failed, lost=0, policy=policy) == again
    assert end(RunnerDied(CRASH), failed=failed, lost=1, policy=policy) == again
    assert end(RunnerDied(CRASH), failed=failed, lost=2, policy=policy) == DeadLetter(reason=poison(3), failure=CRASH, lost=True, ran_s=1.5)


REPORTS = st.sampled_from(
    [Returned(b"\xc0"), RAISED, AskedRetry(1.0, FAILURE), AskedSnooze(1.0), AskedCancel("x"), AskedReject("x", FAILURE), RunnerDied(CRASH)]
)


@given(REPORTS, st.integers(0, 10), st.integers(0, 10), st.floats(0, 1), st.integers(1, 10), st.integers(1, 10))
def test_no_message_is_tried_beyond_its_bounds(report: Report, failed: int, lost: int, draw: float, attempts: int, deliveries: int) -> None:
    policy = TaskPolicy(task="t", queue="q", retry=Retry(attempts=attempts), max_deliveries=deliveries)
    outcome = decide(report, policy, None, failed=failed, lost=lost, draw=draw)
    if isinstance(outcome, RetryAfter):
        spent, bound = (lost, deliveries) if outcome.lost else (failed, attempts)
        assert spent + 1 < bound
        assert 0 <= outcome.delay_s <= policy.retry.cap_s
