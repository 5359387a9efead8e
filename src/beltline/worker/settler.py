"""Hop 8: outcomes become settlements in the store, in batches, one batch at a time; what ends meanwhile is the next batch.

The one in flight gathers the next, so a batch is as large as the store is slow, and no deliberate wait is needed. An unknown answer is repeated with the
same receipts until the store says something: done, or that another worker holds the message. Behind FULL unsettled outcomes the slots wait.
Facts follow the write: log lines and events are made only of what the store has answered.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from beltline.core.errors import BeltlineError, EngineUnavailable
from beltline.core.message import Delivery
from beltline.core.outcome import Ack, Cause, DeadLetter, Ended, Failure, Outcome, Release, RetryAfter, Settled, Settlement
from beltline.core.policy import PARKED, TaskPolicy
from beltline.events import Events, MessageSettled
from beltline.worker.store import Backoff, Store

log = logging.getLogger("beltline.worker")

FULL = 10_000
BATCH = 5_000


class Settler:
    """`settled`, `lost`: how many answers of each kind since the start; `parked`: releases of tasks nobody here knows. `on_room` is called when a full settler has room again."""

    def __init__(self, store: Store, events: Events, policies: Mapping[str, TaskPolicy], *, on_room: Callable[[], None]) -> None:
        self.settled = 0
        self.lost = 0
        self.parked = 0
        self._store = store
        self._events = events
        self._policies = policies
        self._on_room = on_room
        self._deliveries: list[Delivery] = []
        self._settlements: list[Settlement] = []
        self._in_flight: list[Delivery] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._parked_tasks: set[str] = set()
        self._known_lost: set[tuple[str, int]] = set()

    @property
    def full(self) -> bool:
        return len(self._settlements) + len(self._in_flight) >= FULL

    @property
    def waiting(self) -> int:
        return len(self._settlements) + len(self._in_flight)

    def held(self) -> list[Delivery]:
        """What has ended and is not settled: its leases are still ours to renew."""
        return [*self._in_flight, *self._deliveries]

    def add(self, deliveries: Sequence[Delivery], settlements: Sequence[Settlement]) -> None:
        self._deliveries += deliveries
        self._settlements += settlements
        self._idle.clear()
        self._wake.set()

    def written(self, deliveries: Sequence[Delivery], settlements: Sequence[Settlement], answers: Sequence[Settled]) -> None:
        """What tasks have brought to the store in transactions of their own: only the facts are left to tell."""
        self._known_lost.difference_update((delivery.receipt.id, delivery.receipt.epoch) for delivery in deliveries)
        self._conclude(deliveries, settlements, answers)

    def end(self, delivery: Delivery, outcome: Outcome) -> None:
        """The supervisor's own word about a delivery."""
        self.add((delivery,), (Settlement(delivery.receipt, outcome),))

    def expect_lost(self, delivery: Delivery) -> None:
        """A renewal has told already: the refused settle that follows is no news."""
        self._known_lost.add((delivery.receipt.id, delivery.receipt.epoch))

    async def flush(self) -> None:
        """Until everything added so far has its answer."""
        await self._idle.wait()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._settlements:
                deliveries, settlements = self._deliveries[:BATCH], self._settlements[:BATCH]
                del self._deliveries[:BATCH], self._settlements[:BATCH]
                self._in_flight = deliveries
                answers = await self._settle(settlements)
                was_full, self._in_flight = self.full, []  # full now, not when the batch went out: it fills up while it waits
                self._conclude(deliveries, settlements, answers)
                if was_full and not self.full:
                    self._on_room()
            self._idle.set()

    async def _settle(self, settlements: list[Settlement]) -> list[Settled]:
        backoff = Backoff()
        while True:
            try:
                return await self._store.ask("settle", lambda engine: engine.settle(settlements))
            except EngineUnavailable:
                await backoff.pause()
            except BeltlineError as error:
                return await self._settle_one_by_one(settlements, error)

    async def _settle_one_by_one(self, settlements: list[Settlement], error: BeltlineError) -> list[Settled]:
        """One of them cannot be written as it is (too large, a queue nobody has declared): that one becomes a dead letter, the others are settled."""
        if len(settlements) > 1:
            return [answer for settlement in settlements for answer in await self._settle([settlement])]
        [settlement] = settlements
        if isinstance(settlement.outcome, DeadLetter):
            log.error("a dead letter cannot be written, its lease will run out: %s", error)
            return [Settled.LEASE_LOST]
        failure = Failure(Cause.ERROR, f"{type(error).__module__}.{type(error).__qualname__}", str(error))
        return await self._settle([Settlement(settlement.receipt, DeadLetter(reason=error.what, failure=failure, ran_s=_ran_s(settlement.outcome)))])

    # ---- after the write

    def _conclude(self, deliveries: Sequence[Delivery], settlements: Sequence[Settlement], answers: Sequence[Settled]) -> None:
        done = answers.count(Settled.DONE)
        self.settled += done
        if done < len(answers):
            self._report_lost([d for d, answer in zip(deliveries, answers, strict=True) if answer is not Settled.DONE])
        for delivery, settlement, answer in zip(deliveries, settlements, answers, strict=True):
            if type(settlement.outcome) is not Ack and answer is Settled.DONE:
                self._tell(delivery, settlement.outcome)
        if self._events.wanted:
            ended = zip(deliveries, settlements, answers, strict=True)
            self._events.emit([_event(d, settlement.outcome) for d, settlement, answer in ended if answer is Settled.DONE])

    def _report_lost(self, lost: list[Delivery]) -> None:
        self.lost += len(lost)
        for delivery in lost:
            key = (delivery.receipt.id, delivery.receipt.epoch)
            if key in self._known_lost:
                self._known_lost.discard(key)
            else:
                log.warning("%s %s: the lease was lost, its outcome is not written", delivery.message.task, delivery.message.id)

    def _tell(self, delivery: Delivery, outcome: Outcome) -> None:
        """Count it, and say what an operator wants to read about a delivery that did not succeed, with what happens next."""
        message = delivery.message
        match outcome:
            case RetryAfter(lost=True):
                log.warning(
                    "%s %s lost its runner (%s), delivery %d, next in %.3g s", *_of(delivery), outcome.failure.text, delivery.attempt, outcome.delay_s
                )
            case RetryAfter():
                policy = self._policies.get(message.task)
                retry = message.retry or (policy.retry if policy else None)
                of = f" of {retry.attempts}" if retry else ""
                log.warning(
                    "%s %s failed (%s), attempt %d%s, next in %.3g s",
                    *_of(delivery),
                    _kind(outcome.failure),
                    delivery.failed + 1,
                    of,
                    outcome.delay_s,
                )
            case DeadLetter():
                log.error("%s %s is dead-lettered: %s (%s)", *_of(delivery), outcome.reason, _kind(outcome.failure))
            case Release() if outcome.why == PARKED:
                self.parked += 1
                if message.task not in self._parked_tasks:
                    self._parked_tasks.add(message.task)
                    known = ", ".join(sorted(self._policies)) or "none"
                    log.warning("nobody here knows task %s (or its chain): parked, no attempt spent. This worker knows: %s", message.task, known)
            case Release() if outcome.why:
                log.info("%s %s is released: %s", *_of(delivery), outcome.why)
            case _:
                pass  # nothing an operator wants to read


def _ran_s(outcome: Outcome) -> float:
    return 0.0 if isinstance(outcome, Release) else outcome.ran_s


def _of(delivery: Delivery) -> tuple[str, str]:
    return delivery.message.task, delivery.message.id


def _kind(failure: Failure) -> str:
    return failure.type or failure.cause


def _event(delivery: Delivery, outcome: Outcome) -> MessageSettled:
    message, place = delivery.message, delivery.message.place
    word, cause, why, next_s = "ack", "", "", 0.0
    match outcome:
        case Ack():
            word = "cancelled" if outcome.ended is Ended.CANCELLED else "ack"
            why = outcome.note
        case RetryAfter():
            word, cause, why, next_s = "retry", outcome.failure.cause, outcome.failure.text, outcome.delay_s
        case DeadLetter():
            word, cause, why = "dead_letter", outcome.failure.cause, outcome.reason
        case Release():
            word, why, next_s = "release", outcome.why, outcome.delay_s
    return MessageSettled(
        message_id=message.id,
        queue=message.queue,
        task=message.task,
        attempt=delivery.attempt,
        outcome=word,
        ran_s=_ran_s(outcome),
        run_id=place.run if place else None,
        stage=place.stage if place else None,
        cause=cause,
        why=why,
        next_s=next_s,
    )
