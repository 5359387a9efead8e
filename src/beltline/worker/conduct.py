"""Hops 6 and 7 in the runner: one task as a runner runs it, and how what happened becomes the outcome of its delivery.

Only the two calls of user code stand elsewhere (slots.py), because they differ between coroutines and threads.
"""

from random import random
from typing import Any

from beltline.app import App
from beltline.core.asks import Cancel, Reject, RetryLater, Snooze
from beltline.core.chain import advance
from beltline.core.errors import BeltlineError, BodyTooLarge, MessageInvalid
from beltline.core.message import Delivery
from beltline.core.outcome import Ack, Cause, DeadLetter, Outcome, Release
from beltline.core.policy import PARKED, PARKED_S, AskedCancel, AskedReject, AskedRetry, AskedSnooze, Raised, Report, Returned, TaskPolicy, decide
from beltline.resources import Resources
from beltline.tasks import Task
from beltline.worker.failures import TIMEOUT_LINEAGE, failure_of, lineage, timed_out
from beltline.worker.frames import CANCELLED, TIMEOUT


class Conduct:
    """One task. `ran_s`: its mean run time here, until the first end as if it were long."""

    __slots__ = ("_app", "_read", "fn", "injected", "is_async", "pack", "policy", "ran_s", "read")

    def __init__(self, app: App, task: Task[..., Any], policy: TaskPolicy, resources: Resources) -> None:
        self._app = app
        self.fn = task.fn
        self.is_async = task.is_async
        self.policy = policy
        self.read = task.signature.read
        self.pack = task.signature.pack_result
        self.injected = resources.values(task.signature.needs)
        self.ran_s = 1.0

    def returned(self, delivery: Delivery, value: Any, ran_s: float) -> Outcome:
        """Result, hand-off, gather: the whole Ack; or how the value failed us."""
        message = delivery.message
        try:
            packed = self.pack(value)
            if message.place is None:  # what decide and advance say of it, without the walk (tests/worker/test_conduct.py compares)
                return Ack(result=packed, result_ttl_s=self.policy.result_ttl_s, ran_s=ran_s)
            ack = decide(Returned(packed), self.policy, message.retry, failed=delivery.failed, lost=delivery.lost, draw=0.0, ran_s=ran_s)
            assert isinstance(ack, Ack)
            chain = self._app.chains[message.place.chain]
            return chain.shaped(advance(ack, chain.plan, message, packed, chain.choose(message.place.stage, value)))
        except (MessageInvalid, BodyTooLarge) as error:  # the value does not fit the chain: trying again gives the same
            return DeadLetter(reason=error.what, failure=failure_of(error, Cause.INVALID), ran_s=ran_s)
        except Exception as error:  # noqa: BLE001  # a value that cannot be carried, the function of a branch or a key: the task has failed
            return self.raised(delivery, error, ran_s)

    def took(self, ran_s: float) -> float:
        """Remember how long it ran."""
        self.ran_s += 0.3 * (ran_s - self.ran_s)
        return ran_s

    def raised(self, delivery: Delivery, error: BaseException, ran_s: float) -> Outcome:
        return self._decide(_report(error), delivery, ran_s)

    def unreadable(self, delivery: Delivery, error: BeltlineError) -> Outcome:
        """The arguments do not fit the signature."""
        return self._decide(Raised(failure_of(error, Cause.INVALID)), delivery, 0.0)

    def halted(self, delivery: Delivery, why: str, ran_s: float) -> Outcome:
        """It was asked to stop, and did."""
        if why == TIMEOUT:
            timeout_s = delivery.message.timeout_s or self.policy.timeout_s
            return self._decide(Raised(timed_out(timeout_s, "it was cancelled"), TIMEOUT_LINEAGE), delivery, ran_s)
        if why == CANCELLED:
            return self._decide(AskedCancel("cancelled on request"), delivery, ran_s)
        return Release(why=why)

    def _decide(self, report: Report, delivery: Delivery, ran_s: float) -> Outcome:
        draw = random()  # noqa: S311  # the jitter of a delay
        return decide(report, self.policy, delivery.message.retry, failed=delivery.failed, lost=delivery.lost, draw=draw, ran_s=ran_s)


def _report(error: BaseException) -> Report:
    match error:
        case RetryLater():
            return AskedRetry(error.delay_s, failure_of(error))
        case Snooze():
            return AskedSnooze(error.delay_s, queue=error.queue)
        case Cancel():
            return AskedCancel(error.reason)
        case Reject():
            return AskedReject(error.reason, failure_of(error, Cause.REJECTED))
        case _:
            return Raised(failure_of(error), lineage(type(error)))


def parked() -> Release:
    """Nobody here knows the task, or its chain, or its stage: offered again soon, perhaps to a worker with other code."""
    return Release(delay_s=PARKED_S, why=PARKED)
