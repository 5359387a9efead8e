"""The parts of a worker that can be held in the hand: intake, wire, marks, conduct, failures, configuration."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beltline.core.chain import ChainPlan, advance
from beltline.core.errors import ValueInvalid
from beltline.core.message import Delivery, Receipt
from beltline.core.names import ChainName, QueueName
from beltline.core.outcome import Ack, Cause
from beltline.core.policy import Returned, decide
from beltline.resources import Resources
from beltline.worker import intake as taking
from beltline.worker.conduct import Conduct
from beltline.worker.config import WorkerConfig
from beltline.worker.failures import MAX_TEXT, carried, failure_of, lineage
from beltline.worker.frames import Back, Deal, Done, TakeBack, ToSupervisor, decode_in_supervisor, encode
from beltline.worker.intake import Intake
from beltline.worker.marks import Marks, new_page
from beltline.worker.wire import Wire
from tests.worker import lines
from tests.worker.kit import until

# ---- intake


def intake(slots: int = 10) -> Intake:
    return Intake(QueueName("work"), slots, processes=False)


def deliveries(number: int, size_bytes: int = 10) -> list[Delivery]:
    message = lines.double.call(1).message
    return [Delivery(message, Receipt(message.id, epoch), 0, 0, 0.0, 0.0) for epoch in range(number)]


def settle_down(found: Intake, ran_s: float, rounds: int = 20) -> None:
    """As if tasks of this length had been received and had ended for a while."""
    for _ in range(rounds):
        found.learn(10, 10 * ran_s)
        want = found.want(found.slots)
        if want:
            found.received(want, want)


def test_at_first_only_free_slots_are_filled() -> None:
    found = intake()
    assert found.want(10) == 10
    found.ahead.extend(deliveries(3))
    found.dealt = 5
    assert found.want(10) == 2
    assert found.want(4) == 0


@pytest.mark.parametrize(("ran_s", "least", "most"), [(0.00001, taking.MAX_AHEAD, taking.MAX_AHEAD), (0.001, 50, 100), (0.02, 0, 0), (5.0, 0, 0)])
def test_how_far_ahead_depends_on_how_fast_the_tasks_are(ran_s: float, least: int, most: int) -> None:
    found = intake()
    settle_down(found, ran_s)
    assert least <= found.want(10) - 10 <= most


def test_the_reach_grows_at_most_fourfold_a_receive() -> None:
    found = intake()
    found.learn(10, 0.0001)
    reaches = []
    for _ in range(5):
        found.received(10, 10)
        reaches.append(found.want(10) - 10)
    assert reaches == [40, 200, 840, 1000, 1000]


def test_an_empty_queue_does_not_widen_the_reach() -> None:
    found = intake()
    found.learn(10, 0.0001)
    for _ in range(10):
        found.received(0, 10)
    assert found.want(10) - 10 <= 10


def test_large_bodies_bound_the_reach_in_bytes() -> None:
    found = intake()
    for _ in range(50):
        found.weigh(10, 10 * 1024 * 1024)
    settle_down(found, 0.00001)
    assert found.want(10) - 10 <= 32


def test_slow_tasks_close_the_window_at_once() -> None:
    found = intake()
    settle_down(found, 0.00001)
    assert found.window == taking.MAX_WINDOW
    found.learn(1, 3.0)
    assert (found.window, found.want(10)) == (1, 10)


def test_put_back_and_take_keep_the_order() -> None:
    found = intake()
    batch = deliveries(6)
    found.ahead.extend(batch)
    taken = found.take(4)
    found.put_back(taken[1:])
    assert [d.receipt.epoch for d in found.take(10)] == [1, 2, 3, 4, 5]


# ---- wire


async def test_frames_of_any_size_arrive_whole_and_in_order_in_both_directions() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    ended: list[str] = []
    got: list[ToSupervisor] = []
    supervisor = Wire(ours, loop, decode_in_supervisor, got.append, lambda: ended.append("supervisor"))
    runner: Wire[Any] = Wire(theirs, loop, decode_in_supervisor, got.append, lambda: ended.append("runner"))
    frames = [Back(size, list(range(size))) for size in (0, 1, 200_000, 5, 70_000, 0)]
    for frame in frames:
        runner.send(frame)  # more than the socket holds: it must not block, and must not lose its place
    await until(lambda: len(got) == len(frames))
    assert got == frames
    supervisor.close()
    await until(lambda: ended == ["runner"])
    assert runner.send(TakeBack()) > 0  # swallowed


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(1, 64))
def test_frames_may_be_cut_anywhere(sizes: list[int], cut: int) -> None:
    got: list[ToSupervisor] = []
    wire: Wire[ToSupervisor] = Wire.__new__(Wire)
    wire._decode, wire._on_frame, wire._partial, wire._need, wire.closed = decode_in_supervisor, got.append, bytearray(), 8, False
    frames = [Back(1, list(range(size))) for size in sizes]
    stream = b"".join(len(data).to_bytes(8, "little") + data for data in map(encode, frames))
    for first in range(0, len(stream), cut):
        wire._feed(stream[first : first + cut])
    assert got == frames


def test_a_deal_and_its_answer_survive_the_wire() -> None:
    batch = deliveries(3)
    assert encode(Deal(0, 7, batch)) == encode(Deal(0, 7, list(batch)))
    done = Done(1, [7, 8], [], 0.5, 0.13, 2)
    assert decode_in_supervisor(encode(done)) == done


# ---- marks


def test_marks_are_seen_through_the_other_mapping_of_the_page() -> None:
    page = new_page()
    mine, theirs = Marks(page), Marks(page)
    theirs.serials[2], theirs.starts[2] = 7, 123.5
    theirs.serials[3], theirs.starts[3] = 9, 0.0
    assert mine.running(4) == [(7, 123.5)]
    assert mine.last_started(2, 2) == 9
    assert mine.last_started(0, 2) == 0
    for marks in (mine, theirs):
        marks.close()
    os.close(page)


# ---- conduct and failures


def test_a_plain_success_is_what_decide_and_advance_say() -> None:
    """Conduct.returned takes a short way for messages outside of chains."""
    task = lines.double
    conduct = Conduct(lines.app, task, task.policy, Resources(()))
    [delivery] = deliveries(1)
    packed = task.pack_result(42)
    ack = decide(Returned(packed), task.policy, None, failed=0, lost=0, draw=0.0, ran_s=0.25)
    assert isinstance(ack, Ack)
    assert conduct.returned(delivery, 42, 0.25) == advance(ack, ChainPlan(name=ChainName(""), stages=()), delivery.message, packed)


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text today")


def _raise(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001
        return raised


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rude(), "its text cannot be made: RuntimeError"),
        (lambda: ValueError("\ud800 alone"), "\\ud800 alone"),
        (lambda: ValueError("x" * 100_000), "characters left out"),
    ],
)
def test_whatever_an_exception_says_it_can_be_carried(make: Callable[[], BaseException], words: str) -> None:
    failure = failure_of(_raise(make()))
    assert words in failure.text
    assert len(failure.text) < MAX_TEXT + 100
    failure.text.encode()
    failure.traceback.encode()


def test_running_out_of_memory_is_a_cause_of_its_own() -> None:
    assert failure_of(MemoryError()).cause is Cause.MEMORY


def test_the_lineage_names_every_ancestor_qualified_and_bare() -> None:
    found = lineage(FileNotFoundError)
    assert found[0] == "builtins.FileNotFoundError"
    assert {"OSError", "builtins.OSError", "Exception"} <= set(found)
    assert "object" not in found


@given(st.text(max_size=50), st.integers(1, 20))
def test_carried_text_is_valid_and_bounded(text: str, most: int) -> None:
    carried(text, most).encode()


# ---- configuration


@pytest.mark.parametrize(
    "options",
    [{"lease_s": 0.0}, {"drain_s": -1.0}, {"slots": 0}, {"queues": {"a": (0, 0)}}, {"queues": {"a": (5, 4)}}, {"runners": 0}, {"max_tasks": 0}],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueInvalid):
        WorkerConfig(app="a:b", **options)


def test_there_are_never_more_runners_than_slots() -> None:
    assert WorkerConfig(app="a:b", runners=8).runner_count(3) == 3
    assert WorkerConfig(app="a:b", runners=8).runner_count(0) == 0
    assert WorkerConfig(app="a:b", runners=2).runner_count(100) == 2
    assert WorkerConfig(app="a:b", in_process=True, runners=4).runner_count(100) == 1


def test_suspects_that_wait_for_a_runner_of_their_own_hold_up_nobody_but_do_not_pile_up_either() -> None:
    found = intake(4)
    found.alone.extend(deliveries(3))
    assert found.want(4) == 4
    found.alone.extend(deliveries(3))
    assert found.want(4) == 2
    processes = Intake(QueueName("work"), 4, processes=True)
    processes.alone.extend(deliveries(3))
    assert processes.want(4) == 1
