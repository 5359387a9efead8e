"""Of all messages with one dedup key that are sent to a queue within the window, one is stored; the others are answered with its id, also after it has ended."""

from beltline.core.limits import MAX_DEDUP_WINDOW_S
from beltline.core.outcome import Ack, Admission
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import NEXT, WORK

NEEDS = {"dedup_window_s": MAX_DEDUP_WINDOW_S}
POWERS = ("Browse", "Control")


async def a_second_message_with_the_key_stands_for_nothing_new(engine: Full) -> None:
    first = await kit.send_one(engine, dedup_key="k")
    [sent] = await engine.send([kit.message(dedup_key="k")])
    assert (sent.id, sent.admission, sent.new) == (first.id, Admission.DEDUPLICATED, False)
    assert await kit.finish(engine) == [first.id]


async def the_window_ends(engine: Full, time: Time) -> None:
    await kit.send_one(engine, dedup_key="k", dedup_window_s=60.0)
    time.advance(59.75)
    [inside] = await engine.send([kit.message(dedup_key="k", dedup_window_s=60.0)])
    time.advance(0.25)
    [outside] = await engine.send([kit.message(dedup_key="k", dedup_window_s=60.0)])
    assert (inside.admission, outside.admission) == (Admission.DEDUPLICATED, Admission.STORED)
    assert await kit.ready(engine) == 2


async def repeats_do_not_lengthen_the_window(engine: Full, time: Time) -> None:
    await kit.send_one(engine, dedup_key="k", dedup_window_s=60.0)
    for _ in range(3):
        time.advance(15.0)
        [sent] = await engine.send([kit.message(dedup_key="k", dedup_window_s=60.0)])
        assert sent.admission is Admission.DEDUPLICATED
    time.advance(15.0)
    [sent] = await engine.send([kit.message(dedup_key="k", dedup_window_s=60.0)])
    assert sent.admission is Admission.STORED


async def the_window_is_that_of_the_message_that_stands(engine: Full, time: Time) -> None:
    await kit.send_one(engine, dedup_key="k", dedup_window_s=600.0)
    time.advance(300.0)
    [sent] = await engine.send([kit.message(dedup_key="k", dedup_window_s=1.0)])
    assert sent.admission is Admission.DEDUPLICATED


async def the_key_is_remembered_after_the_end(engine: Full) -> None:
    first = await kit.send_one(engine, dedup_key="k")
    await kit.ok(engine, await kit.take_one(engine))
    [sent] = await engine.send([kit.message(dedup_key="k")])
    assert (sent.id, sent.admission) == (first.id, Admission.DEDUPLICATED)


async def the_key_is_remembered_after_cancel_purge_and_death(engine: Full) -> None:
    cancelled, purged = await kit.send(engine, kit.message(dedup_key="a"), kit.message(dedup_key="b"))
    await engine.cancel([cancelled.id])
    await engine.purge(WORK)
    dead = await kit.dead_one(engine, dedup_key="c")
    answers = await engine.send([kit.message(dedup_key=key) for key in "abc"])
    assert [(sent.id, sent.admission) for sent in answers] == [(each.id, Admission.DEDUPLICATED) for each in (cancelled, purged, dead)]


async def one_batch_is_deduplicated_in_itself(engine: Full) -> None:
    first, second, third = (kit.message(dedup_key=key) for key in ("k", "k", "l"))
    answers = await engine.send([first, second, third])
    assert [(sent.id, sent.admission) for sent in answers] == [
        (first.id, Admission.STORED),
        (first.id, Admission.DEDUPLICATED),
        (third.id, Admission.STORED),
    ]


async def a_key_is_that_of_one_queue(engine: Full) -> None:
    await kit.send(engine, kit.message(WORK, dedup_key="k"), kit.message(NEXT, dedup_key="k"))


async def without_a_key_nothing_is_deduplicated(engine: Full) -> None:
    await kit.send(engine, kit.message(body=b"same"), kit.message(body=b"same"))


async def the_same_id_is_told_before_the_same_key(engine: Full) -> None:
    first = await kit.send_one(engine, dedup_key="k")
    [sent] = await engine.send([first])
    assert sent.admission is Admission.SAME_ID


async def the_id_of_a_deduplicated_message_is_not_remembered(engine: Full, time: Time) -> None:
    await kit.send_one(engine, dedup_key="k", dedup_window_s=60.0)
    second = kit.message(dedup_key="k", dedup_window_s=60.0)
    await engine.send([second])
    time.advance(60.0)
    [sent] = await engine.send([second])
    assert (sent.id, sent.admission) == (second.id, Admission.STORED)


async def eight_senders_with_one_key_store_one_message(engine: Full) -> None:
    answers = await kit.in_threads(*[lambda: engine.send([kit.message(dedup_key="k")])] * 8)
    assert sorted(sent.admission for [sent] in answers) == [Admission.STORED] + [Admission.DEDUPLICATED] * 7
    assert len({sent.id for [sent] in answers}) == 1
    assert await kit.ready(engine) == 1


async def the_longest_window_is_kept(engine: Full, time: Time) -> None:
    await kit.send_one(engine, dedup_key="k", dedup_window_s=MAX_DEDUP_WINDOW_S)
    time.advance(MAX_DEDUP_WINDOW_S - 1)
    [sent] = await engine.send([kit.message(dedup_key="k")])
    assert sent.admission is Admission.DEDUPLICATED


async def no_window_means_no_deduplication(engine: Full) -> None:
    await kit.send(engine, kit.message(dedup_key="k", dedup_window_s=0.0), kit.message(dedup_key="k", dedup_window_s=0.0))


async def hand_offs_are_known_by_their_id_not_by_their_key(engine: Full) -> None:
    """Dropping a part because of its key would leave its gather waiting for ever."""
    await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine), Ack(then=(kit.message(NEXT, dedup_key="k"), kit.message(NEXT, dedup_key="k"))))
    assert await kit.ready(engine, NEXT) == 2
