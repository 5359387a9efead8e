"""Who is to blame, for every state a runner can leave its marks in."""

from beltline.core.message import Delivery, Receipt
from beltline.core.outcome import Ack, Cause, DeadLetter, Ended, Release, RetryAfter
from beltline.core.policy import TaskPolicy
from beltline.core.retry import Retry
from beltline.worker import blame
from beltline.worker.children import Child, ChildLane
from beltline.worker.frames import CANCELLED, LEASE_LOST, TIMEOUT
from tests.worker import lines

POLICY = TaskPolicy(task="resize", queue="work", retry=Retry(attempts=2, jitter=False))


def child(*, running: tuple[int, ...], ended: tuple[int, ...] = (), held: tuple[int, ...]) -> Child:
    """A runner of 4 slots that has started and ended these serials, and has answered for none of `held`."""
    found = Child(1, alone=False, max_tasks=None)
    lane = ChildLane(found, 0, None)
    found.lanes = [lane]
    lane.widen(4)
    for slot, serial in enumerate((*running, *ended)):
        found.marks.serials[slot] = serial
        found.marks.starts[slot] = 1.0 if serial in running else 0.0
    lane.held = {serial: delivery(serial) for serial in held}
    return found


def delivery(number: int, lost: int = 0, failed: int = 0) -> Delivery:
    message = lines.double.call(number).message
    return Delivery(message, Receipt(message.id, number), failed, lost, 0.0, 0.0)


def numbers(found: list[Delivery]) -> list[int]:
    return [each.receipt.epoch for each in found]


def test_the_only_one_that_ran_is_to_blame() -> None:
    verdict = blame.judge(child(running=(3,), ended=(2,), held=(2, 3, 4, 5)))
    assert numbers(verdict.blamed) == [3]
    assert numbers(verdict.unreported) == [2]
    assert [each.receipt.epoch for _, each in verdict.unstarted] == [4, 5]
    assert not verdict.suspects


def test_of_several_that_ran_all_are_suspects() -> None:
    verdict = blame.judge(child(running=(3, 4), held=(3, 4, 5)))
    assert numbers(verdict.suspects) == [3, 4]
    assert not verdict.blamed


def test_an_answer_that_has_arrived_clears_its_delivery_whatever_the_mark_says() -> None:
    verdict = blame.judge(child(running=(3, 4), held=(4,)))
    assert numbers(verdict.blamed) == [4]


def test_where_nothing_ran_what_had_ended_unreported_is_to_blame() -> None:
    verdict = blame.judge(child(running=(), ended=(2,), held=(2, 3)))
    assert numbers(verdict.blamed) == [2]
    assert numbers(blame.judge(child(running=(), ended=(2, 3), held=(2, 3))).suspects) == [2, 3]


def test_nobody_is_to_blame_for_a_runner_that_died_idle() -> None:
    verdict = blame.judge(child(running=(), held=(1, 2)))
    assert len(verdict.unstarted) == 2
    assert [*verdict.blamed, *verdict.suspects, *verdict.unreported] == []


def test_beside_the_one_we_killed_it_for_all_are_innocent() -> None:
    found = child(running=(3, 4), held=(3, 4, 5))
    found.doomed, found.culprits = "its timeout", {4}
    verdict = blame.judge(found)
    assert numbers([each for each, _ in verdict.culprits]) == [4]
    assert numbers(verdict.beside) == [3]
    assert len(verdict.unstarted) == 1


def test_the_blamed_is_poison_when_it_was_the_last_delivery() -> None:
    assert isinstance(blame.died(delivery(1), POLICY, "signal 9"), RetryAfter)
    last = blame.died(delivery(1, lost=2), POLICY, "signal 9")
    assert isinstance(last, DeadLetter)
    assert last.lost
    assert "signal 9" in last.failure.text


def test_a_suspect_is_never_given_up() -> None:
    again = blame.suspected(delivery(1), POLICY, "signal 9", 4)
    assert isinstance(again, RetryAfter)
    assert again.lost
    assert isinstance(blame.suspected(delivery(1, lost=2), POLICY, "signal 9", 4), Release)


def test_one_stopped_by_force_ends_by_what_it_was_asked_for() -> None:
    timeout = blame.stopped_by_force(delivery(1), POLICY, TIMEOUT)
    assert isinstance(timeout, RetryAfter)
    assert (timeout.failure.cause, timeout.lost) == (Cause.TIMEOUT, False)
    cancelled = blame.stopped_by_force(delivery(1), POLICY, CANCELLED)
    assert isinstance(cancelled, Ack)
    assert cancelled.ended is Ended.CANCELLED
    assert isinstance(blame.stopped_by_force(delivery(1), POLICY, LEASE_LOST), Release)
