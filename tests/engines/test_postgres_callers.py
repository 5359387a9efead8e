"""Callers that give up, threads and loops that come and go, forked children: no connection, delivery or task is left with nobody."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from beltline.core.errors import EngineForeign, EngineTooOld, EngineUnavailable
from beltline.core.names import MessageId, RunId, WorkerId
from beltline.core.outcome import Ack, Release, Settlement
from beltline.core.views import MessageFilter, WorkerView
from beltline.engines.postgres import PostgresEngine
from beltline.testing.conformance.kit import LEASE_S, LINE, dice, placed, run_of
from tests.engines.postgres_faults_kit import BOUND_S, WORK, asked, assert_sound, begun, insist, message, opened, until
from tests.services.postgres import PostgresServer
from tests.services.proxy import Proxy

OURS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'beltline'"
POOL = 3


def beating(id: str) -> WorkerView:
    return WorkerView(id=id, host="h", pid=1, started_at=0.0, age_s=0.0, state="working", queues={})


def verbs(engine: PostgresEngine, run: str = "") -> dict[str, Callable[[], Awaitable[object]]]:
    """Every verb, each with something to do."""
    where = MessageFilter(queues=(WORK,))
    unknown = MessageId("0" * 31 + "1")

    async def settle_some() -> None:
        deliveries = await engine.receive([WORK], limit=5, lease_s=LEASE_S)
        await engine.renew([delivery.receipt for delivery in deliveries], lease_s=LEASE_S)
        await engine.progress([(delivery.receipt, b"\x01") for delivery in deliveries])
        await engine.cancel_asked([delivery.receipt for delivery in deliveries])
        await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries[:2]])
        await engine.settle([Settlement(delivery.receipt, Release()) for delivery in deliveries[2:]])

    return {
        "send": lambda: engine.send([message(), message(delay_s=900.0), message(group="g")]),
        "run": lambda: engine.send([placed()]),
        "receive": lambda: engine.receive([WORK], limit=5, lease_s=LEASE_S),
        "settle": settle_some,
        "counts": lambda: engine.counts(WORK),
        "now": engine.now,
        "queues": engine.queues,
        "get": lambda: engine.browse(where, limit=5),
        "results": lambda: engine.results([unknown]),
        "await_results": lambda: engine.await_results([unknown], wait_s=1.0),
        "hurry": lambda: engine.hurry([unknown]),
        "cancel": lambda: engine.cancel([unknown]),
        "redrive": lambda: engine.redrive(where, limit=10),
        "delete": lambda: engine.delete(where, limit=10),
        "pause": lambda: engine.resume(WORK),
        "runs": lambda: engine.runs(LINE),
        "run_counts": lambda: engine.run_counts(LINE),
        "gathers": lambda: engine.gathers(RunId(run)),
        "beat": lambda: engine.beat(beating("w")),
        "forget": lambda: engine.forget(WorkerId("w")),
        "workers": engine.workers,
        "sweep": engine.sweep,
        "retain": lambda: engine.retain(history_s=900.0),
    }


async def all_of(engine: PostgresEngine, url: str) -> None:
    """As many calls at once as there are connections, several times over: none has been lost."""
    await asyncio.wait_for(asyncio.gather(*(engine.counts(WORK) for _ in range(POOL * 5))), BOUND_S)
    assert len(asked(url, OURS)) <= POOL + 2  # and the two for hints: one speaks, one listens


async def test_a_caller_may_give_up_in_the_middle_of_any_verb(postgres_url: str) -> None:
    chance = dice(3)
    async with opened(f"{postgres_url}?pool={POOL}") as engine:
        entered = placed()
        await engine.send([entered, *(message() for _ in range(300))])
        gave_up = 0
        for name, verb in verbs(engine, run_of(entered)).items():
            for _ in range(12):
                task = begun(verb())
                for _ in range(chance.randrange(1, 40)):
                    await asyncio.sleep(0)
                await asyncio.sleep(chance.choice((0.0, 0.0002, 0.001, 0.003)))
                task.cancel()
                [answer] = await asyncio.gather(task, return_exceptions=True)
                assert not isinstance(answer, Exception), name
                gave_up += isinstance(answer, asyncio.CancelledError)
        assert gave_up >= 100
        await all_of(engine, postgres_url)
    assert_sound(postgres_url)


async def test_what_a_cancelled_receive_was_given_is_given_back(postgres: PostgresServer, postgres_url: str) -> None:
    with Proxy(postgres.port) as proxy:
        head, _, database = postgres_url.rpartition("/")
        async with opened(f"{head.rpartition(':')[0]}:{proxy.port}/{database}?listen=0&pool=1") as engine:
            sent = message()
            await engine.send([sent])
            proxy.hold_replies()
            receiving = begun(engine.receive([WORK], limit=1, lease_s=900.0))
            await asyncio.to_thread(proxy.wait_held)
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            proxy.pass_through()
            [delivery] = await asyncio.wait_for(engine.receive([WORK], limit=1, lease_s=900.0, wait_s=BOUND_S), BOUND_S)
            assert (delivery.message.id, delivery.failed, delivery.lost) == (sent.id, 0, 0)


async def test_it_is_given_back_also_when_the_engine_is_closed_at_once(postgres_url: str) -> None:
    """A worker that ends: it cancels what waits, and closes."""
    chance = dice(5)
    for _ in range(20):
        engine = PostgresEngine(postgres_url)
        async with opened(postgres_url):
            pass
        await engine.open()
        await engine.send([message()])
        receiving = begun(engine.receive([WORK], limit=100, lease_s=900.0))
        for _ in range(chance.randrange(1, 12)):
            await asyncio.sleep(0)
        receiving.cancel()
        [answer] = await asyncio.gather(receiving, return_exceptions=True)
        if isinstance(answer, list):
            await engine.settle([Settlement(delivery.receipt, Release()) for delivery in answer])
        await asyncio.wait_for(engine.close(), BOUND_S)
        assert asked(postgres_url, "SELECT id FROM beltline.lease") == []


async def test_two_hundred_cancelled_calls_among_others_and_everything_drains(postgres_url: str) -> None:
    chance = dice(11)
    async with opened(f"{postgres_url}?pool={POOL}") as engine:
        sent = set()
        for _ in range(200):
            made = [message() for _ in range(3)]
            sending = begun(engine.send(made))
            receiving = begun(engine.receive([WORK], limit=4, lease_s=900.0, wait_s=0.0))
            for _ in range(chance.randrange(1, 30)):
                await asyncio.sleep(0)
            chance.choice((sending, receiving)).cancel()
            stored, deliveries = await asyncio.gather(sending, receiving, return_exceptions=True)
            assert not isinstance(stored, Exception)
            assert not isinstance(deliveries, Exception)
            if isinstance(deliveries, list):
                await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries])
            if isinstance(stored, asyncio.CancelledError):
                await engine.send(made)
            sent |= {each.id for each in made}
        while (await engine.counts(WORK)).done < len(sent):
            deliveries = await asyncio.wait_for(engine.receive([WORK], limit=100, lease_s=900.0, wait_s=BOUND_S), BOUND_S)
            assert deliveries
            await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries])
        await all_of(engine, postgres_url)
    assert_sound(postgres_url)


# ------------------------------------------------------------------------------------------------------- threads and loops
async def test_eight_threads_with_loops_of_their_own_share_an_engine(postgres_url: str) -> None:
    async with opened(f"{postgres_url}?pool=2") as engine:

        async def life(rounds: int) -> int:
            ended = 0
            for _ in range(rounds):
                await asyncio.gather(*(engine.send([message()]) for _ in range(5)))
                deliveries = await engine.receive([WORK], limit=5, lease_s=LEASE_S, wait_s=1.0)
                await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries])
                ended += len(deliveries)
            return ended

        ended = sum(await asyncio.gather(*(asyncio.to_thread(lambda: asyncio.run(life(10))) for _ in range(8))))
        counts = await engine.counts(WORK)
        assert (counts.done, counts.ready, counts.leased) == (ended, 400 - ended, 0)
    assert_sound(postgres_url)


async def test_loops_that_end_without_close_leave_no_connection_beyond_the_next_use(postgres_url: str) -> None:
    async with opened(f"{postgres_url}?listen=0") as engine:
        for _ in range(30):
            await asyncio.to_thread(lambda: asyncio.run(engine.counts(WORK)))
        await asyncio.to_thread(lambda: asyncio.run(engine.counts(WORK)))
        gc.collect()  # an unclosed connection would warn here, and a warning is an error
        await until(lambda: len(asked(postgres_url, OURS)) <= 3)
    await until(lambda: not asked(postgres_url, OURS))


async def test_a_loop_that_ended_in_the_middle_of_a_call_takes_nobody_with_it(postgres_url: str) -> None:
    async with opened(f"{postgres_url}?listen=0") as engine:

        async def leave() -> None:
            begun(engine.send([message()]))
            await asyncio.sleep(0.001)

        def quietly() -> None:
            loop = asyncio.new_event_loop()
            task = loop.create_task(leave())
            loop.run_until_complete(task)
            for left in asyncio.all_tasks(loop):
                left.cancel()
            loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
            loop.close()

        for _ in range(5):
            await asyncio.to_thread(quietly)
        await asyncio.wait_for(asyncio.gather(*(engine.counts(WORK) for _ in range(9))), BOUND_S)
    assert_sound(postgres_url)


async def test_close_reaches_what_runs_in_other_loops(postgres_url: str) -> None:
    engine = PostgresEngine(postgres_url)
    async with opened(postgres_url):
        pass
    await engine.open()
    others = [begun(asyncio.to_thread(lambda: asyncio.run(engine.receive([WORK], limit=1, lease_s=9.0, wait_s=BOUND_S)))) for _ in range(3)]
    await until(lambda: len(engine._places) == 4)
    await asyncio.wait_for(engine.close(), BOUND_S)
    assert await asyncio.wait_for(asyncio.gather(*others), BOUND_S) == [[], [], []]


# ------------------------------------------------------------------------------------------------------------------- forks
FORKED = """
import asyncio, gc, os, sys, warnings
from beltline.core.errors import HandleMisused
from beltline.core.message import Message
from beltline.core.queues import QueueSpec
from beltline.engines.postgres import PostgresEngine
warnings.simplefilter("ignore")  # newer Pythons warn of a fork with threads: that is the point

async def send(engine, id):
    try:
        return str((await engine.send([Message(id=id, queue="work", task="t", body=b"")]))[0].new)
    except HandleMisused as error:
        return f"refused: {error.what}"

async def close(engine):
    try:
        await engine.close()
    except HandleMisused as error:
        return f"refused: {error.help}"
    return "closed"

async def begin(engine):
    await engine.open()
    await engine.declare([QueueSpec(name="work")])
    return await send(engine, "1" * 32)

loop = asyncio.new_event_loop()
engine = PostgresEngine(sys.argv[1])
print(loop.run_until_complete(begin(engine)))
read, write = os.pipe()
if os.fork() == 0:
    said = [asyncio.run(send(engine, "2" * 32)), asyncio.run(close(engine))]
    engine = None
    gc.collect()
    own = PostgresEngine(sys.argv[1])
    async def anew():
        answers = [await begin(own), await send(own, "3" * 32)]
        await own.close()
        return answers
    said += asyncio.run(anew())
    os.write(write, "\\n".join(said).encode())
    os._exit(0)
os.wait()
print(os.read(read, 9999).decode())
print(loop.run_until_complete(send(engine, "4" * 32)))
loop.run_until_complete(engine.close())
"""


async def test_a_forked_child_is_refused_and_its_parent_goes_on(postgres_url: str) -> None:
    done = await asyncio.to_thread(
        lambda: subprocess.run([sys.executable, "-c", FORKED, postgres_url], capture_output=True, text=True, timeout=BOUND_S, check=False)
    )
    assert done.returncode == 0, done.stderr
    assert "carried over a fork" in done.stdout
    assert [line for line in done.stdout.splitlines() if not line.startswith("refused")] == ["True", "False", "True", "True"]
    assert done.stdout.count("refused") == 2
    assert len(asked(postgres_url, "SELECT id FROM beltline.ready")) == 3


@pytest.mark.parametrize("verb", ["send", "counts"])
async def test_an_engine_whose_database_was_dropped_says_so(postgres: PostgresServer, verb: str) -> None:
    name = postgres.create_database()
    async with opened(f"{postgres.url(name)}?listen=0") as engine:
        postgres.drop_database(name)
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await verbs(engine)[verb]()
        postgres.create_database(name)
        with pytest.raises((EngineForeign, EngineTooOld)):
            await insist(verbs(engine)[verb])
    postgres.drop_database(name)
