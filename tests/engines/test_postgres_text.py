"""What a Python text, a batch or a body can be, everywhere one can be given: kept as it is, cleaned where PostgreSQL cannot hold it, or refused; never an outage."""

import asyncio

import pytest

from beltline.core.errors import BeltlineError, BodyTooLarge, EngineUnavailable, NotFound, QueueNotDeclared, ValueInvalid
from beltline.core.message import Place, Receipt
from beltline.core.names import ChainName, MessageId, QueueName, RunId, StageName, TaskName, WorkerId
from beltline.core.outcome import Ack, DeadLetter, Release, RetryAfter, Settled, Settlement
from beltline.core.views import MessageFilter, WorkerView
from beltline.testing.conformance.kit import LEASE_S, failure, take_one
from tests.engines.postgres_faults_kit import BOUND_S, WORK, asked, assert_sound, message, opened

HOSTILE = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "x\udfffy",
    "'; DROP SCHEMA beltline CASCADE; --",
    '"',
    "\\",
    '\\"',
    "\\\\x00",
    "%s %(a)s %% %b",
    "{}",
    "{NULL}",
    "NULL",
    "{a,b}",
    "$1",
    "$$",
    "\N{PILE OF POO}" * 50,
    "é\u0301\u202e",
    "\r\n\t",
    "x" * 10_000,
    "beltline.send",
)
WHOLE = [
    text for text in HOSTILE if text.isprintable() or text.encode("utf-8", "ignore").decode() == text
]  # no half of a surrogate pair: MessagePack has none
STORABLE = {text: text.replace("\x00", "\u2400").encode("utf-8", "replace").decode() for text in HOSTILE}


@pytest.fixture(params=HOSTILE, ids=lambda text: ascii(text[:12]))
def text(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_every_text_of_a_message_survives_or_is_cleaned(postgres_url: str) -> None:
    async with opened(postgres_url) as engine:
        for text in HOSTILE:
            place = Place(RunId(message().id), ChainName(text or "c"), StageName(text), text, ())
            sent = message(task=TaskName(text or "t"), group=text, dedup_key=text, headers={text: text, "b": text}, place=place)
            if text not in WHOLE:
                with pytest.raises(UnicodeEncodeError):
                    await engine.send([sent])
                sent = message(task=TaskName(text), group="g")
            [stored] = await engine.send([sent])
            assert stored.new
            delivery = await take_one(engine, worker=WorkerId(text))
            assert delivery.message.group == sent.group
            assert delivery.message.headers == sent.headers
            assert delivery.message.task == (STORABLE[text] or "t")
            if text in WHOLE:
                [again] = await engine.send([message(task=TaskName("t"), dedup_key=text)])
                assert again.id == sent.id
            await engine.settle([Settlement(delivery.receipt, Ack(note=text))])
            assert (await engine.get(sent.id)).message.group == sent.group
            await engine.runs(text)
            await engine.run_counts(text)
        assert asked(postgres_url, "SELECT count(*) FROM beltline.done") == [(len(HOSTILE),)]
    assert_sound(postgres_url)


async def test_every_text_of_an_outcome_and_a_filter_is_taken(postgres_url: str) -> None:
    async with opened(postgres_url) as engine:
        for text in HOSTILE:
            await engine.send([message()])
            bad = failure(type=text, text=text) if text in WHOLE else failure(type="?", text="workers write it as an escape")
            delivery = await take_one(engine, worker=WorkerId(text))
            await engine.settle([Settlement(delivery.receipt, Release(why=text))])
            delivery = await take_one(engine)
            await engine.settle([Settlement(delivery.receipt, RetryAfter(delay_s=0.0, failure=bad))])
            delivery = await take_one(engine)
            await engine.progress([(delivery.receipt, text.encode("utf-8", "surrogatepass"))])
            await engine.settle([Settlement(delivery.receipt, DeadLetter(reason=text, failure=bad))])
            view = await engine.get(delivery.message.id)
            assert view.why == STORABLE[text]
            assert view.attempts[-1].failure is not None
            for where in (
                MessageFilter(queues=(text,)),
                MessageFilter(tasks=(text,)),
                MessageFilter(ids=(text,)),
                MessageFilter(run=text or "x"),
                MessageFilter(group=text or "x"),
                MessageFilter(error=text or "x"),
            ):
                await engine.browse(where)
                await engine.redrive(where, limit=1)
                await engine.delete(where, limit=1)
            await engine.purge(WORK)
    assert_sound(postgres_url)


async def test_every_name_that_nobody_has_declared_or_sent_is_simply_unknown(postgres_url: str, text: str) -> None:
    async with opened(f"{postgres_url}?listen=0&pool=1") as engine:
        [(pid,)] = await engine._ask("SELECT pg_backend_pid()")
        for work in (
            engine.send([message(QueueName(text))]),
            engine.receive([QueueName(text)], limit=1, lease_s=1.0),
            engine.counts(QueueName(text)),
            engine.purge(QueueName(text)),
            engine.pause(QueueName(text)),
            engine.resume(QueueName(text)),
        ):
            with pytest.raises(QueueNotDeclared):
                await work
        for lookup in (
            engine.get(MessageId(text)),
            engine.run(RunId(text)),
            engine.gathers(RunId(text)),
            engine.cancel_run(RunId(text), reason=text),
        ):
            with pytest.raises((NotFound, ValueInvalid)):
                await lookup
        assert await engine.results([text]) == [None]
        assert await engine.cancel([MessageId(text)], reason=text) == [None]
        assert await engine.hurry([MessageId(text)]) == 0
        receipt = Receipt(MessageId(text), 1)
        assert await engine.cancel_asked([receipt]) == []
        assert await engine.renew([receipt], lease_s=1.0) == [Settled.LEASE_LOST]
        assert await engine.settle([Settlement(receipt, Ack())]) == [Settled.LEASE_LOST]
        assert await engine.progress([(receipt, b"\x01")]) == [Settled.LEASE_LOST]
        if text in WHOLE:
            await engine.beat(WorkerView(id=text, host=text, pid=1, started_at=0.0, age_s=0.0, state=text, queues={text: 1}))
        await engine.forget(WorkerId(text))
        assert await engine.workers() == []
        if text:
            with pytest.raises(ValueInvalid):
                await engine.browse(MessageFilter(), cursor=text)
        await engine.runs("line", state=text, cursor=text)
        assert [(pid,)] == await engine._ask("SELECT pg_backend_pid()"), "no connection was given up for it"


async def test_nothing_at_all_is_an_empty_answer(postgres_url: str) -> None:
    async with opened(postgres_url) as engine:
        assert await engine.send([]) == []
        assert await engine.receive([], limit=1, lease_s=1.0) == []
        assert await engine.receive([], limit=1, lease_s=1.0, wait_s=0.01) == []
        assert await engine.renew([], lease_s=1.0) == []
        assert await engine.settle([]) == []
        assert await engine.results([]) == []
        assert await engine.await_results([], wait_s=1.0) == []
        assert await engine.progress([]) == []
        assert await engine.cancel([]) == []
        assert await engine.cancel_asked([]) == []
        assert await engine.hurry([]) == 0
        await engine.declare([])
        assert (await engine.browse(MessageFilter())).messages == ()


async def test_large_bodies_and_large_batches(postgres_url: str) -> None:
    async with opened(postgres_url, max_body=2_000_000) as engine:
        body = bytes(range(256)) * 4096
        sent = [message(body=body) for _ in range(4)]
        await engine.send(sent)
        deliveries = await engine.receive([WORK], limit=4, lease_s=LEASE_S)
        assert [delivery.message.body for delivery in deliveries] == [body] * 4
        await engine.settle([Settlement(delivery.receipt, Ack(result=body)) for delivery in deliveries])
        [result] = await engine.results([sent[0].id])
        assert result is not None
        assert result.result == body
        with pytest.raises(BodyTooLarge):
            await engine.send([message(body=b"x" * 2_000_001)])
        many = [message() for _ in range(5000)]
        assert all(each.new for each in await engine.send(many))
        deliveries = await engine.receive([WORK], limit=6000, lease_s=LEASE_S)
        assert [delivery.message.id for delivery in deliveries] == [made.id for made in many]
        assert await engine.renew([delivery.receipt for delivery in deliveries], lease_s=LEASE_S) == [Settled.DONE] * 5000
        assert await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries]) == [Settled.DONE] * 5000
    assert_sound(postgres_url)


async def test_a_message_that_cannot_be_written_is_its_senders_trouble_alone(postgres_url: str) -> None:
    """Sends share commits; a fault in one must not reach its neighbours, nor leave anybody waiting."""
    async with opened(postgres_url) as engine:
        wrong = message(body="no bytes")
        works = [engine.send([message()]), engine.send([wrong]), *(engine.send([message() for _ in range(600)]) for _ in range(4))]
        answers = await asyncio.wait_for(asyncio.gather(*works, return_exceptions=True), BOUND_S)
        assert [isinstance(answer, Exception) for answer in answers] == [False, True, False, False, False, False]
        assert not isinstance(answers[1], EngineUnavailable)
        assert (await engine.counts(WORK)).ready == 2401


async def test_an_id_that_is_none_is_refused_and_not_an_outage(postgres_url: str) -> None:
    async with opened(f"{postgres_url}?pool=1&listen=0") as engine:
        for bad in ("", "x" * 32, "\x00" * 32, "1" * 31, "{" + "1" * 30 + "}", "1" * 33):
            with pytest.raises(BeltlineError) as caught:
                await engine.send([message(id=MessageId(bad))])
            assert not isinstance(caught.value, EngineUnavailable), bad
        await engine.send([message()])
