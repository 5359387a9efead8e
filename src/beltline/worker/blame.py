"""Who is to blame when a runner has ended, and how each of its deliveries ends. Read from the marks the dead runner left behind.

it died by itself, one delivery ran      that one is to blame: it never answered (`lost` + 1), poison beyond max_deliveries
it died by itself, several ran           each is a suspect: `lost` + 1, and whoever receives it next runs it alone, where the innocent
                                         succeed and the culprit dies without company. A suspect is never given up here.
we killed it for a delivery              that delivery ends by what it was asked to stop for (a timeout is a failed attempt); who ran beside it is
                                         released without an attempt
it had ended, unreported                 released without an attempt: nobody knows its outcome, and it killed nobody. But if the runner died by itself
                                         and nothing ran, what had ended is to blame like what runs: somebody must be, or it would go on for ever
it had not started                       still leased and untouched: dealt to another runner
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import random

from beltline.core.message import Delivery
from beltline.core.outcome import Ack, Cause, Ended, Failure, Outcome, Release, RetryAfter
from beltline.core.policy import Raised, RunnerDied, TaskPolicy, decide
from beltline.worker.children import Child, ChildLane
from beltline.worker.failures import TIMEOUT_LINEAGE, timed_out
from beltline.worker.frames import CANCELLED, DRAINED, TIMEOUT


@dataclass
class Verdict:
    """`blamed`, `suspects`, `beside`, `unreported` ran or had run; `culprits` with why they were asked to stop; `unstarted` with their lane."""

    blamed: list[Delivery] = field(default_factory=list)
    suspects: list[Delivery] = field(default_factory=list)
    culprits: list[tuple[Delivery, str]] = field(default_factory=list)
    beside: list[Delivery] = field(default_factory=list)
    unreported: list[Delivery] = field(default_factory=list)
    unstarted: list[tuple[ChildLane, Delivery]] = field(default_factory=list)


def judge(child: Child) -> Verdict:
    """Every delivery the child still holds, in exactly one list."""
    verdict = Verdict()
    running = child.started()
    ran: list[Delivery] = []
    for lane in child.lanes:
        last = lane.last_started()
        for serial, delivery in lane.held.items():
            if serial in running and serial in child.culprits:
                verdict.culprits.append((delivery, child.halted.get(serial, TIMEOUT)))
            elif serial in running:
                ran.append(delivery)
            elif serial <= last:
                verdict.unreported.append(delivery)
            else:
                verdict.unstarted.append((lane, delivery))
    if child.doomed:
        verdict.beside = ran
        return verdict
    if not ran:
        ran, verdict.unreported = verdict.unreported, []
    if len(ran) == 1:
        verdict.blamed = ran
    else:
        verdict.suspects = ran
    return verdict


def endings(verdict: Verdict, how: str, *, drained: bool, policy: Callable[[Delivery], TaskPolicy]) -> Iterator[tuple[Delivery, Outcome]]:
    """How each one ends that ran or had run. `how`: the end of the runner in words; `drained`: it was killed because the worker stops."""
    for delivery in verdict.blamed:
        yield delivery, died(delivery, policy(delivery), how)
    for delivery in verdict.suspects:
        yield delivery, suspected(delivery, policy(delivery), how, len(verdict.suspects))
    for delivery, why in verdict.culprits:
        yield delivery, stopped_by_force(delivery, policy(delivery), why)
    for delivery in verdict.beside:
        yield delivery, Release(why=DRAINED if drained else f"its runner was killed: {how}")
    for delivery in verdict.unreported:
        yield delivery, Release(why="its runner died before its outcome was known")


def died(delivery: Delivery, policy: TaskPolicy, how: str, ran_s: float = 0.0) -> Outcome:
    """The outcome for the one to blame."""
    report = RunnerDied(Failure(Cause.CRASH, "RunnerDied", f"Its runner died while it ran: {how}."))
    return decide(report, policy, delivery.message.retry, failed=delivery.failed, lost=delivery.lost, draw=0.0, ran_s=ran_s)


def suspected(delivery: Delivery, policy: TaskPolicy, how: str, number: int) -> Outcome:
    """The outcome for one of several. Where one unanswered delivery would already be the last, it is released: it may well be innocent."""
    text = f"Its runner died while it and {number - 1} more ran: {how}. It is tried again alone."
    if delivery.lost + 1 >= policy.max_deliveries:
        return Release(why=text)
    return RetryAfter(delay_s=0.0, failure=Failure(Cause.CRASH, "RunnerDied", text), lost=True)


def stopped_by_force(delivery: Delivery, policy: TaskPolicy, why: str) -> Outcome:
    """The outcome for one that was asked to stop, did not, and was killed with its runner."""
    if why == TIMEOUT:
        timeout_s = delivery.message.timeout_s or policy.timeout_s
        report = Raised(timed_out(timeout_s, "it did not stop when it was asked to, so its runner was killed"), TIMEOUT_LINEAGE)
        draw = random()  # noqa: S311  # the jitter of a delay
        return decide(report, policy, delivery.message.retry, failed=delivery.failed, lost=delivery.lost, draw=draw, ran_s=timeout_s)
    if why == CANCELLED:
        return Ack(ended=Ended.CANCELLED, note="cancelled on request; it did not stop, so its runner was killed")
    return Release(why=why)
