"""Walks every row of the transition table, and every row it lacks, on the engine that is the specification."""

from collections.abc import Awaitable, Callable
from itertools import product

import pytest

from beltline.core.flow import Flow, Unique
from beltline.core.lifecycle import TRANSITIONS, Move, State, allowed
from beltline.core.message import Message, Receipt
from beltline.core.names import MessageId, QueueName, TaskName
from beltline.core.outcome import Ack, Cause, DeadLetter, Failure, Outcome, Release, RetryAfter, Settlement
from beltline.core.queues import QueueSpec
from beltline.core.views import MessageFilter
from beltline.engines.memory import MemoryEngine
from beltline.testing import ManualClock

WORK = QueueName("work")
ID, NEWER = MessageId("0" * 32), MessageId("0" * 31 + "2")
NEWEST_WINS = Flow(unique=Unique(key="album", states=("delayed",), replace=True))
FAILURE = Failure(Cause.ERROR, "ValueError", "no")
DELAY_S = 50.0
EXPIRES_S = 100.0
LEASE_S = 1000.0


class Bench:
    """One message on one queue, brought into a state and then moved."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = MemoryEngine(clock=self.clock)
        self.receipt = Receipt(ID, 0)

    async def bring(self, state: State, *, expires: bool, deliveries: int) -> None:
        await self.engine.open()
        await self.engine.declare([QueueSpec(name=WORK, max_deliveries=deliveries)])
        delay_s = 2 * EXPIRES_S if state is State.DELAYED else 0.0
        expires_s = EXPIRES_S if expires else None
        await self.engine.send([Message(id=ID, queue=WORK, task=TaskName("t"), body=b"\x80", delay_s=delay_s, expires_s=expires_s, flow=NEWEST_WINS)])
        if state in (State.LEASED, State.DONE, State.DEAD):
            [delivery] = await self.engine.receive([WORK], limit=1, lease_s=LEASE_S)
            self.receipt = delivery.receipt
        if state is State.DONE:
            await self.settle(Ack())
        if state is State.DEAD:
            await self.settle(DeadLetter(reason="given up", failure=FAILURE))
        assert await self.state() is state

    async def state(self) -> State:
        return State[(await self.engine.get(ID)).state.upper()]

    async def settle(self, outcome: Outcome) -> None:
        await self.engine.settle([Settlement(self.receipt, outcome)])

    async def due(self) -> None:
        self.clock.advance(2 * EXPIRES_S)
        await self.engine.sweep()

    async def receive(self) -> None:
        if await self.state() is State.LEASED:
            self.clock.advance(LEASE_S)
        await self.engine.receive([WORK], limit=1, lease_s=LEASE_S)

    async def renew(self) -> None:
        await self.engine.renew([self.receipt], lease_s=LEASE_S)

    async def ack(self) -> None:
        await self.settle(Ack())

    async def retry(self) -> None:
        await self.settle(RetryAfter(delay_s=0.0, failure=FAILURE))

    async def retry_later(self) -> None:
        await self.settle(RetryAfter(delay_s=DELAY_S, failure=FAILURE))

    async def release(self) -> None:
        await self.settle(Release())

    async def release_later(self) -> None:
        await self.settle(Release(delay_s=DELAY_S))

    async def dead_letter(self) -> None:
        await self.settle(DeadLetter(reason="given up", failure=FAILURE))

    async def cancel(self) -> None:
        await self.engine.cancel([ID])

    async def cancel_and_lose_the_worker(self) -> None:
        await self.engine.cancel([ID])
        self.clock.advance(LEASE_S)
        await self.engine.receive([WORK], limit=1, lease_s=LEASE_S)

    async def expire(self) -> None:
        self.clock.advance(EXPIRES_S)
        await self.engine.sweep()

    async def redrive(self) -> None:
        await self.engine.redrive(MessageFilter(ids=(ID,)), limit=1)

    async def hurry(self) -> None:
        await self.engine.hurry([ID])

    async def put_off(self) -> None:
        await self.engine.send([Message(id=NEWER, queue=WORK, task=TaskName("t"), body=b"\x80", delay_s=3 * EXPIRES_S, flow=NEWEST_WINS)])


Step = Callable[[Bench], Awaitable[None]]

STEPS: dict[Move, Step] = {
    Move.DUE: Bench.due,
    Move.RECEIVE: Bench.receive,
    Move.RENEW: Bench.renew,
    Move.ACK: Bench.ack,
    Move.RETRY: Bench.retry,
    Move.RELEASE: Bench.release,
    Move.DEAD_LETTER: Bench.dead_letter,
    Move.CANCEL: Bench.cancel,
    Move.EXPIRE: Bench.expire,
    Move.REDRIVE: Bench.redrive,
    Move.HURRY: Bench.hurry,
    Move.PUT_OFF: Bench.put_off,
}

# Targets that need more than the plain step: (state, move, target) -> the step, and after how many unanswered deliveries a message is poison.
OTHER_WAYS: dict[tuple[State, Move, State], tuple[Step, int]] = {
    (State.LEASED, Move.RECEIVE, State.DEAD): (Bench.receive, 1),
    (State.LEASED, Move.RETRY, State.DELAYED): (Bench.retry_later, 3),
    (State.LEASED, Move.RELEASE, State.DELAYED): (Bench.release_later, 3),
    (State.LEASED, Move.CANCEL, State.DONE): (Bench.cancel_and_lose_the_worker, 3),
}

ROWS = [(state, move, target) for (state, move), targets in TRANSITIONS.items() for target in targets]
MISSING = [(state, move) for state, move in product(State, Move) if not allowed(state, move)]


@pytest.mark.parametrize(("state", "move", "target"), ROWS, ids=lambda value: str(getattr(value, "word", value)))
async def test_every_row_of_the_table_can_be_walked(state: State, move: Move, target: State) -> None:
    step, deliveries = OTHER_WAYS.get((state, move, target), (STEPS[move], 3))
    bench = Bench()
    await bench.bring(state, expires=move is Move.EXPIRE, deliveries=deliveries)
    await step(bench)
    assert await bench.state() is target


@pytest.mark.parametrize(("state", "move"), MISSING, ids=lambda value: str(getattr(value, "word", value)))
async def test_a_move_that_is_not_in_the_table_changes_nothing(state: State, move: Move) -> None:
    bench = Bench()
    await bench.bring(state, expires=move is Move.EXPIRE, deliveries=3)
    before = await bench.engine.get(ID)
    await STEPS[move](bench)
    assert await bench.engine.get(ID) == before


def test_the_states_are_five_and_each_can_be_reached_and_left_except_done() -> None:
    assert {state for _, targets in TRANSITIONS.items() for state in targets} | {State.DELAYED} == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.DONE}


def test_only_a_dead_letter_comes_back_from_an_end() -> None:
    assert {move for state, move in TRANSITIONS if state in (State.DONE, State.DEAD)} == {Move.REDRIVE, Move.CANCEL}


def test_a_state_has_a_word_for_people_and_a_number_for_stores() -> None:
    assert [(state.word, int(state)) for state in State] == [("delayed", 0), ("ready", 1), ("leased", 2), ("done", 3), ("dead", 4)]
