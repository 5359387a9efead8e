"""What is sent is received unchanged: bodies from nothing up to the limit, any bytes, any Unicode in headers and groups, and every field of the message; one byte above the limit is refused and nothing stored."""

import pytest

from beltline.core.codec import pack
from beltline.core.errors import BodyTooLarge
from beltline.core.limits import MAX_BODY_BYTES
from beltline.core.outcome import Ack
from beltline.core.retry import Retry
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness

POWERS = ("Browse", "Results")
STRANGE = "ß\u00a0\u202e\U0001f5bc e\u0301 'quoted\" ; -- \\ %s {x}"


async def a_body_at_the_limit_is_carried(engine: Full) -> None:
    body = bytes(range(256)) * (int(engine.capabilities.max_body) // 256)
    body += bytes(int(engine.capabilities.max_body) - len(body))
    await kit.send_one(engine, body=body)
    assert (await kit.take_one(engine)).message.body == body


async def one_byte_above_the_limit_is_refused(engine: Full) -> None:
    limit = int(engine.capabilities.max_body)
    with pytest.raises(BodyTooLarge) as refused:
        await engine.send([kit.message(body=bytes(limit + 1))])
    assert (refused.value.size_bytes, refused.value.limit_bytes) == (limit + 1, limit)
    assert await kit.everything(engine) == []


async def the_limit_can_be_chosen(harness: Harness) -> None:
    engine = harness.engine(clock=harness.clock, max_body=100)
    await engine.open()
    try:
        assert engine.capabilities.max_body == 100 < MAX_BODY_BYTES
        await engine.declare([kit.specs(kit.WORK)])
        await engine.send([kit.message(body=bytes(100))])
        with pytest.raises(BodyTooLarge):
            await engine.send([kit.message(body=bytes(101))])
    finally:
        await engine.close()


async def an_empty_body_is_carried(engine: Full) -> None:
    await kit.send_one(engine, body=b"")
    assert (await kit.take_one(engine)).message.body == b""


async def every_byte_is_carried(engine: Full) -> None:
    await kit.send_one(engine, body=b"\x00" + bytes(range(256)) + b"\x00")
    assert (await kit.take_one(engine)).message.body == b"\x00" + bytes(range(256)) + b"\x00"


async def nul_and_unicode_in_headers_are_carried(engine: Full) -> None:
    headers = {"": "", "\x00": "\x00\x01", STRANGE: STRANGE, "trace": "a" * 4000}
    await kit.send_one(engine, headers=headers)
    assert (await kit.take_one(engine)).message.headers == headers


async def unicode_in_groups_and_dedup_keys_keeps_them_apart(engine: Full) -> None:
    groups = [STRANGE, STRANGE + " ", "é", "e\u0301", "É", "a%", "a_"]
    for group in groups:
        await kit.send_one(engine, group=group, dedup_key=group)
    deliveries = await kit.take(engine)
    assert [(each.message.group, each.message.dedup_key) for each in deliveries] == [(group, group) for group in groups]


async def every_field_is_carried(engine: Full) -> None:
    sent = kit.placed(
        stage="resize",
        item="3.0",
        headers={"tenant": "a"},
        priority=-100,
        delay_s=0.0,
        group="g",
        dedup_key="k",
        dedup_window_s=7.5,
        expires_s=3600.0,
        timeout_s=12.5,
        retry=Retry(attempts=2, base_s=0.5, on=("OSError",), never=("FileNotFoundError",)),
    )
    await kit.send(engine, sent)
    delivery = await kit.take_one(engine)
    assert delivery.message == sent
    assert (await engine.get(sent.id)).message == sent


async def what_a_delivery_says_of_times_is_the_engines(engine: Full) -> None:
    sent_at = await engine.now()
    await kit.send_one(engine)
    delivery = await kit.take_one(engine, lease_s=30.0)
    assert (delivery.sent_at, delivery.lease_until, delivery.group_epoch) == (sent_at, sent_at + 30.0, 0)


async def results_and_progress_of_any_bytes_are_carried(engine: Full) -> None:
    sent = await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    value = pack([None, b"\x00" * 100_000, STRANGE, 2**63])
    await engine.progress([(delivery.receipt, value)])
    assert (await engine.get(sent.id)).progress == value
    await kit.ok(engine, delivery, Ack(result=value))
    [view] = await engine.results([sent.id])
    assert view is not None
    assert view.result == value


async def a_chosen_limit_bounds_messages_not_results(harness: Harness) -> None:
    engine: Full = harness.engine(clock=harness.clock, max_body=100)  # type: ignore[assignment]
    await engine.open()
    try:
        await engine.declare([kit.specs(kit.WORK)])
        sent = await kit.send_one(engine, body=b"")
        await kit.ok(engine, await kit.take_one(engine), Ack(result=bytes(1000)))
        [view] = await engine.results([sent.id])
        assert view is not None
        assert view.result == bytes(1000)
    finally:
        await engine.close()
