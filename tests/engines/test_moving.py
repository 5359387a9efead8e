"""A move between stores: everything arrives, once, in order; the source is closed and stays; a kill at any point is made good by the same command."""

import asyncio
import random
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from beltline.core.errors import EngineMoved, Refused
from beltline.core.flow import KillSwitch
from beltline.core.message import Message
from beltline.core.outcome import Ack, Admission, Outcome, RetryAfter, Settled, Settlement
from beltline.core.views import MessageFilter
from beltline.engines.moving import Level, Section
from beltline.testing.clock import ManualClock
from beltline.testing.conformance import kit
from beltline.testing.conformance.kit import NEXT, WORK
from beltline.upkeep import moving as upkeep
from beltline.upkeep.moving import take_back
from tests.engines import moving_kit
from tests.engines.moving_kit import SPECS, drain, fill, move, store

PAIRS = [("sqlite", "postgres"), ("postgres", "sqlite"), ("sqlite", "sqlite"), ("postgres", "postgres")]
pairs = pytest.mark.parametrize(("one", "other"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
KILLS = 20


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def both(one: str, other: str, tmp_path: Path, clock: ManualClock) -> Any:
    async with AsyncExitStack() as stack:
        engines = [store(kind, tmp_path, clock) for kind in (one, other)]
        for engine in engines:
            stack.push_async_callback(engine.close)
            await engine.open()
        yield engines


def without_nul(views: list[Any]) -> list[Any]:
    return [view and structs.replace(view, why=view.why.replace("\x00", "\u2400")) for view in views]


def facts(views: list[Any]) -> list[tuple[Any, ...]]:
    """What must be the same on both sides, in the order of sends. NUL is what a text of PostgreSQL cannot hold."""

    def text(words: str) -> str:
        return words.replace("\x00", "\u2400")

    return [
        (
            view.message,
            view.state,
            view.epoch,
            view.failed,
            view.lost,
            view.sent_at,
            view.due_at,
            view.ended_at,
            view.outcome,
            text(view.why),
            view.worker,
            view.blocked,
            view.cancel_asked,
            view.progress,
            [(a.epoch, a.outcome, a.worker, a.started_at, a.ended_at, a.ran_s, text(a.note), a.failure) for a in view.attempts],
        )
        for view in views
    ]


def standing(view: Any) -> Any:
    """Of a schedule: when it is due next is worked out anew."""
    return structs.replace(view, revision=0, next_at=0.0)


@pairs
async def test_everything_arrives_as_it_was(both, clock):
    source, target = both
    await fill(source, clock)
    before = facts(await kit.everything(source))
    counts = {spec.name: await source.counts(spec.name) for spec in SPECS}
    runs = await source.runs("line")
    gathers = [await source.gathers(run.id) for run in runs]
    results = await source.results([view[0].id for view in before] + [run.id for run in runs])
    schedules = await source.schedules()
    report = await move(source, target)
    assert report.state == "moved", report
    for there, here in zip(facts(await kit.everything(target)), before, strict=True):
        assert there == here
    assert {spec.name: await target.counts(spec.name) for spec in SPECS} == counts
    assert sorted(await target.queues(), key=lambda spec: spec.name) == sorted(await source.queues(), key=lambda spec: spec.name)
    assert await target.runs("line") == runs
    assert await target.run_counts("line") == await source.run_counts("line")
    assert [await target.gathers(run.id) for run in runs] == gathers
    assert without_nul(await target.results([view[0].id for view in before] + [run.id for run in runs])) == without_nul(results)
    assert [standing(view) for view in await target.schedules()] == [standing(view) for view in schedules]
    assert {view.state for view in schedules} == {"active", "paused", "left"}
    assert report.copied == len(before)


@pairs
async def test_known_ids_and_dedup_keys_are_known_on_the_other_side(both, clock):
    source, target = both
    await source.declare(SPECS)
    [first] = await kit.send(source, kit.message(moving_kit.DONE))
    await kit.finish(source, moving_kit.DONE)
    clock.advance(3600.0)
    await source.retain(history_s=60.0)
    [keyed] = await kit.send(source, kit.message(WORK, dedup_key="k", dedup_window_s=500.0))
    assert (await move(source, target)).state == "moved"
    again = kit.message(WORK, dedup_key="k", dedup_window_s=500.0)
    answers = await target.send([first, keyed, again])
    assert [(sent.id, sent.admission) for sent in answers] == [
        (first.id, Admission.SAME_ID),
        (keyed.id, Admission.SAME_ID),
        (keyed.id, Admission.DEDUPLICATED),
    ]


@pairs
async def test_what_was_moved_is_worked_off_as_it_would_have_been(both, clock, tmp_path, one):
    source, target = both
    twin_clock = ManualClock()
    twin = store(one, tmp_path, twin_clock)
    await twin.open()
    try:
        kit.number_from(5_000_000)
        await fill(source, clock)
        kit.number_from(5_000_000)
        await fill(twin, twin_clock)
        assert (await move(source, target)).state == "moved"
        moved, stayed = await drain(target, clock), await drain(twin, twin_clock)
    finally:
        await twin.close()
    assert [message.id[-4:] for message in moved] == [message.id[-4:] for message in stayed]
    assert [message.body for message in moved] == [message.body for message in stayed]
    assert {spec.name: await target.counts(spec.name) for spec in SPECS} != {}
    assert all(not counts.ready + counts.leased for counts in [await target.counts(spec.name) for spec in SPECS])


@pairs
async def test_a_sealed_source_refuses_everybody_but_lets_leases_end(both, clock, one, tmp_path):
    source, target = both
    await source.declare(SPECS)
    await kit.send(source, *kit.messages(3))
    [held, late] = await kit.take(source, limit=2, lease_s=30.0)
    waiting = asyncio.get_running_loop().create_task(source.receive([NEXT], limit=1, lease_s=5.0, wait_s=30.0))
    report = await move(source, target, wait_s=0.0)
    assert (report.state, report.waits_for) == ("waiting", "2 leased messages")
    for refused in (
        lambda: source.send([kit.message()]),
        lambda: source.receive([WORK], limit=1, lease_s=5.0),
        lambda: source.purge(WORK),
        lambda: source.cancel([held.message.id]),
        lambda: source.pause(WORK),
        lambda: source.redrive(MessageFilter(queues=(WORK,)), limit=1),
        lambda: target.send([kit.message()]),
        lambda: target.receive([WORK], limit=1, lease_s=5.0),
    ):
        with pytest.raises(EngineMoved):
            await refused()
    with pytest.raises(EngineMoved) as told:
        async with asyncio.timeout(10):
            await waiting
    assert told.value.to == target.shown
    assert await source.renew([held.receipt], lease_s=40.0) == [Settled.DONE]
    await kit.retry(source, held, 0.0)
    clock.advance(31.0)  # the other one's lease is over
    assert (await move(source, target)).state == "moved"
    with pytest.raises(EngineMoved):
        await source.settle([kit.Settlement(late.receipt, kit.Ack())])
    assert await kit.finish(target, WORK) != []
    assert (await source.get(held.message.id)).state == "ready"  # looking is allowed, and it is kept


@pairs
async def test_a_target_with_messages_is_refused_and_left_as_it_was(both):
    source, target = both
    for engine in both:
        await engine.declare(SPECS)
        await kit.send_one(engine)
    with pytest.raises(Refused, match="not empty"):
        await move(source, target)
    assert await kit.ready(target) == 1
    for engine in both:
        assert await engine.seal() is None
        await kit.send_one(engine)


@pairs
async def test_a_move_can_be_taken_back_until_it_is_complete(both):
    source, target = both
    await source.declare(SPECS)
    await kit.send_one(source)
    await kit.take_one(source)
    assert (await move(source, target, wait_s=0.0)).state == "waiting"
    await take_back(source)
    await kit.send_one(source)
    await kit.ok(source, await kit.take_one(source))
    with pytest.raises(Refused, match="not the source"):
        await take_back(source)


async def test_a_complete_move_is_not_taken_back_and_doing_it_again_does_nothing(tmp_path):
    source, target = store("sqlite", tmp_path), store("sqlite", tmp_path)
    for engine in (source, target):
        await engine.open()
    try:
        await source.declare(SPECS)
        await kit.send_one(source)
        assert (await move(source, target)).state == "moved"
        await kit.finish(target)
        assert (await move(source, target)).state == "moved"
        assert (await target.counts(WORK)).done == 1
        with pytest.raises(Refused, match="complete"):
            await take_back(source)
    finally:
        for engine in (source, target):
            await engine.close()


@pairs
async def test_an_operators_range_arrives_and_a_size_is_decided_anew(both, clock):
    source, target = both
    await source.declare(SPECS)
    await source.set_range(WORK, 2, 8)
    await source.set_size(WORK, turn=0, slots=5, state=b"remembered")
    await source.set_size(NEXT, turn=0, slots=3, state=b"remembered")
    assert (await move(source, target)).state == "moved"
    assert [(size.queue, size.ordered, size.turn) for size in await target.sizes()] == [(WORK, (2, 8), 0)]
    await target.set_range(WORK, 1, 1)
    assert (await move(source, target)).state == "moved"
    assert [size.ordered for size in await target.sizes()] == [(1, 1)]


@pairs
async def test_a_snoozed_queue_is_left_alone_until_the_same_instant(both, clock):
    source, target = both
    await source.declare(SPECS)
    await kit.send(source, *kit.messages(2))
    until = await source.snooze(WORK, seconds=60.0)
    clock.advance(10.0)
    assert (await move(source, target)).state == "moved"
    assert (await target.counts(WORK)).snoozed_until == until
    clock.advance(49.75)
    assert await kit.take(target) == []
    clock.advance(0.25)
    assert len(await kit.take(target)) == 2


RULE = KillSwitch(share=0.5, least=4, window_s=60.0, pause_s=30.0, tries=2)
BAD = RetryAfter(delay_s=0.0, failure=kit.failure())


async def end(engine: Any, *outcomes: Outcome) -> None:
    """So many deliveries, settled together."""
    deliveries = await kit.take(engine, limit=len(outcomes))
    assert len(deliveries) == len(outcomes)
    answers = await engine.settle([Settlement(each.receipt, outcome) for each, outcome in zip(deliveries, outcomes, strict=True)])
    assert set(answers) == {Settled.DONE}


@pairs
async def test_a_kill_switch_that_has_tripped_tries_at_the_same_instant(both, clock):
    source, target = both
    await source.declare([kit.specs(WORK, kill_switch=RULE)])
    await kit.send(source, *kit.messages(20))
    await end(source, *[BAD] * 4)
    until = (await source.counts(WORK)).tripped_until
    assert until == await source.now() + 30.0
    assert (await move(source, target)).state == "moved"
    counts = await target.counts(WORK)
    assert (counts.tripped_until, counts.trying) == (until, True)
    clock.advance(29.75)
    assert await kit.take(target) == []
    clock.advance(0.25)
    assert len(await kit.take(target)) == 2  # it tries


@pairs
async def test_a_kill_switch_that_tries_goes_on_where_it_stood(both, clock):
    source, target = both
    await source.declare([kit.specs(WORK, kill_switch=RULE)])
    await kit.send(source, *kit.messages(20))
    await end(source, *[BAD] * 4)
    clock.advance(30.0)
    await end(source, BAD)  # trips again, for twice as long
    clock.advance(60.0)
    await end(source, Ack())
    assert (await move(source, target)).state == "moved"
    assert (await target.counts(WORK)).trying
    [last] = await kit.take(target)  # one of two has succeeded before the move
    await kit.ok(target, last)
    assert not (await target.counts(WORK)).trying
    assert len(await kit.take(target)) > 2


@pairs
async def test_what_failed_before_a_move_counts_behind_it(both, clock):
    source, target = both
    await source.declare([kit.specs(WORK, kill_switch=RULE)])
    await kit.send(source, *kit.messages(20))
    await end(source, *[BAD] * 3)
    assert (await move(source, target)).state == "moved"
    assert (await target.counts(WORK)).tripped_until == 0.0
    await end(target, BAD)
    assert (await target.counts(WORK)).tripped_until == await target.now() + 30.0


@pairs
async def test_a_move_that_was_taken_back_while_it_copied_opens_nothing(both, clock, monkeypatch):
    source, target = both
    await fill(source, clock)
    monkeypatch.setattr(upkeep, "FIRST_PAGE", 5)
    monkeypatch.setattr(upkeep, "MOST_THINGS", 5)
    take, pages = source.take, 0

    async def interrupted(section: Section, after: str, limit: int) -> Any:
        nonlocal pages
        pages += section is Section.MESSAGES
        if pages == 4:
            await take_back(source)
        return await take(section, after, limit)

    monkeypatch.setattr(source, "take", interrupted)
    with pytest.raises(Refused, match="changed by somebody else"):
        await move(source, target)
    assert await source.seal() is None
    assert (await target.seal()).level is Level.FILLING
    monkeypatch.undo()
    with pytest.raises(Refused, match="part of another move"):
        await move(source, target)
    await kit.send_one(source)


async def test_a_transaction_that_was_open_when_the_source_was_sealed_is_waited_for(tmp_path):
    import psycopg

    source, target = store("postgres", tmp_path), store("sqlite", tmp_path)
    for engine in (source, target):
        await engine.open()
    try:
        await source.declare(SPECS)
        with psycopg.connect(source.address.conninfo) as user:
            sent = kit.message()
            source.send_with(user, [sent])
            report = await move(source, target, wait_s=0.3)
            assert report.state == "waiting"
            assert str(user.info.backend_pid) in report.waits_for
            user.commit()
        with psycopg.connect(source.address.conninfo) as user:
            with pytest.raises(EngineMoved):
                source.send_with(user, [kit.message()])
            assert user.execute("SELECT 1").fetchall() == [(1,)]  # the user's transaction goes on
        assert (await move(source, target)).state == "moved"
        assert (await target.get(sent.id)).state == "ready"
    finally:
        for engine in (source, target):
            await engine.close()


CHILD = """
import asyncio, sys
from beltline.engines.registry import make_engine
from beltline.sending import new_id
from beltline.upkeep import moving

moving.FIRST_PAGE = moving.MOST_THINGS = 7

async def main(source, target):
    one, other = make_engine(source), make_engine(target)
    await one.open()
    await other.open()
    print("open", flush=True)
    report = await moving.Mover(one, other, new_id=new_id(), tell=lambda text: None, wait_s=10.0).run()
    print(report.state, flush=True)
    await one.close()
    await other.close()

asyncio.run(main(*sys.argv[1:]))
"""


def interrupted(urls: list[str]) -> int:
    """Begin the move and kill it, KILLS times, or until one was too quick. Returns how many were killed."""
    dice = random.Random()
    for kills in range(KILLS):
        child = subprocess.Popen([sys.executable, "-c", CHILD, *urls], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
            child.wait(dice.uniform(0.0, 0.08))
        except subprocess.TimeoutExpired:
            continue
        else:
            return kills
        finally:
            child.kill()
            child.communicate()
    return KILLS


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("one", "other"), PAIRS[:2], ids=["-".join(pair) for pair in PAIRS[:2]])
async def test_killed_at_any_point_it_goes_on_and_doubles_nothing(one, other, tmp_path):
    source, target = store(one, tmp_path), store(other, tmp_path)
    urls = [engine.shown for engine in (source, target)]
    await source.open()
    await source.declare(SPECS)
    sent: list[Message] = []
    for number in range(6):
        sent += await kit.send(source, *kit.messages(200, WORK if number % 2 else NEXT))
    for delivery in await kit.take(source, limit=50):
        await kit.retry(source, delivery)
    await source.close()
    assert interrupted(urls) >= 1
    target = store_at(other, urls[1])
    source = store_at(one, urls[0])
    for engine in (source, target):
        await engine.open()
    try:
        assert (await move(source, target)).state == "moved"
        assert (await target.counts(WORK)).ready + (await target.counts(NEXT)).ready == len(sent)
        seen = [*await kit.finish(target, WORK), *await kit.finish(target, NEXT)]
        assert sorted(seen) == sorted(message.id for message in sent)
    finally:
        for engine in (source, target):
            await engine.close()


def store_at(kind: str, url: str) -> Any:
    from beltline.engines.registry import make_engine

    return make_engine(url)
