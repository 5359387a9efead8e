"""Hop 7, first half: how a delivery ends. `decide` is pure: what happened, the policy, the counters and one random number go in, the outcome comes out.

Two counters, never mixed. `failed` attempts answered with a failure; the task's `Retry.attempts` bounds them. `lost` deliveries never answered
(their runner or host died); the queue's `max_deliveries` bounds them, and beyond it the message is poison. A release touches neither.
"""

from typing import assert_never

from msgspec import Struct

from beltline.core.outcome import Ack, Cause, DeadLetter, Ended, Failure, Outcome, Release, RetryAfter
from beltline.core.retry import Retry

MAX_DELIVERIES = 3  # unanswered deliveries before a message counts as poison
PARKED_S = 5.0  # how soon a message whose task nobody here knows is offered again
PARKED = "no worker knows this task"  # the `why` of the release that parks a message; engines count these as parked


class TaskPolicy(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What a worker must know of a task to end its deliveries, as data: the supervisor settles for a dead runner with it.

    `timeout_s` per attempt, never infinite (default 10 minutes). `kind`: "async", "thread" or "process".
    """

    task: str
    queue: str
    retry: Retry = Retry()
    timeout_s: float = 600.0
    result_ttl_s: float = 86400.0
    kind: str = "thread"
    max_deliveries: int = MAX_DELIVERIES


class Returned(Struct, frozen=True, array_like=True, tag="returned", gc=False):
    """The task returned; `value` is its MessagePack."""

    value: bytes


class Raised(Struct, frozen=True, array_like=True, tag="raised", gc=False):
    """The task raised. `lineage`: names of the exception's class and bases, qualified and bare."""

    failure: Failure
    lineage: tuple[str, ...] = ()


class AskedRetry(Struct, frozen=True, array_like=True, tag="retry", gc=False):
    """RetryLater: a failed attempt with a delay of the task's own choice."""

    delay_s: float
    failure: Failure


class AskedSnooze(Struct, frozen=True, array_like=True, tag="snooze", gc=False):
    """`queue`: nothing of the queue is wanted for so long."""

    delay_s: float
    queue: bool = False


class AskedCancel(Struct, frozen=True, array_like=True, tag="cancel", gc=False):
    reason: str


class AskedReject(Struct, frozen=True, array_like=True, tag="reject", gc=False):
    reason: str
    failure: Failure


class RunnerDied(Struct, frozen=True, array_like=True, tag="died", gc=False):
    """The runner ended while this delivery had started. `text` says how (signal, exit code, memory)."""

    failure: Failure


Report = Returned | Raised | AskedRetry | AskedSnooze | AskedCancel | AskedReject | RunnerDied


def decide(report: Report, policy: TaskPolicy, retry: Retry | None, *, failed: int, lost: int, draw: float, ran_s: float = 0.0) -> Outcome:
    """The outcome of a delivery that had `failed` failures and `lost` unanswered deliveries before it.

    `retry` is the message's own policy or None for the task's. `draw` in 0..1 is the jitter. An Ack comes back without result and hand-off: `chain.advance` adds them.
    """
    retry = retry or policy.retry
    match report:
        case Returned():
            return Ack(ran_s=ran_s, result_ttl_s=policy.result_ttl_s)
        case AskedCancel(reason):
            return Ack(ended=Ended.CANCELLED, note=reason, ran_s=ran_s)
        case AskedSnooze(delay_s, queue):
            return Release(delay_s=delay_s, why="snoozed", queue_s=delay_s if queue else 0.0)
        case AskedReject(reason, failure):
            return DeadLetter(reason=reason, failure=failure, ran_s=ran_s)
        case AskedRetry(delay_s, failure):
            return _again(retry, delay_s, failure, failed, ran_s)
        case Raised(failure, lineage):
            if failure.cause is Cause.INVALID:
                return DeadLetter(reason="invalid_arguments", failure=failure, ran_s=ran_s)
            if not retry.covers(lineage):
                return DeadLetter(reason=f"{failure.type} is not retried", failure=failure, ran_s=ran_s)
            return _again(retry, retry.delay_s(failed + 1, draw), failure, failed, ran_s)
        case RunnerDied(failure):
            if lost + 1 >= policy.max_deliveries:
                return DeadLetter(reason=poison(lost + 1), failure=failure, lost=True, ran_s=ran_s)
            return RetryAfter(delay_s=0.0, failure=failure, lost=True, ran_s=ran_s)
        case _:
            assert_never(report)


def _again(retry: Retry, delay_s: float, failure: Failure, failed: int, ran_s: float) -> Outcome:
    if failed + 1 >= retry.attempts:
        tried = "1 attempt" if retry.attempts == 1 else f"{retry.attempts} attempts"
        return DeadLetter(reason=f"failed after {tried}", failure=failure, ran_s=ran_s)
    return RetryAfter(delay_s=delay_s, failure=failure, ran_s=ran_s)


def poison(lost: int) -> str:
    """The reason under which a message is given up that killed, or outlived, every worker that had it."""
    return f"poison: {lost} deliveries never answered"
