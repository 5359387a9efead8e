"""What the code says of a limit holds until an operator sets other numbers, which hold at once and until they are reset; what each limit does at the moment is shown."""

from typing import Any

import pytest

from beltline.core.errors import NameInvalid, NotFound, ValueInvalid
from beltline.core.flow import Claim, Flow, Limit, Unique
from beltline.core.outcome import Ack
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import API, LEASE_S, WORK

POWERS = ("Limits", "Control", "Browse")


async def what_was_set_stands_over_what_the_code_says_until_it_is_reset(engine: Full) -> None:
    await engine.declare_limits([Limit(name=API, concurrency=1)])
    await kit.set_limit(engine, concurrency=3)
    await engine.declare_limits([Limit(name=API, concurrency=2)])
    await kit.send(engine, *kit.limited(10))
    assert [(view.concurrency, view.origin) for view in await engine.limits()] == [(3, "operator")]
    assert len(await kit.take(engine)) == 3
    await engine.reset_limit(API)
    assert [(view.concurrency, view.origin) for view in await engine.limits()] == [(2, "code")]
    assert await kit.take(engine) == []


async def a_limit_that_only_an_operator_has_set_is_gone_when_it_is_reset(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(3))
    assert len(await kit.take(engine)) == 1
    await engine.reset_limit(API)
    assert await engine.limits() == []
    assert len(await kit.take(engine)) == 2


async def an_unknown_limit_is_not_found(engine: Full) -> None:
    with pytest.raises(NotFound):
        await engine.reset_limit("nowhere")
    with pytest.raises(NotFound):
        await engine.buckets("nowhere")


async def other_numbers_hold_at_once(engine: Full) -> None:
    await kit.set_limit(engine, rate=1.0, per_s=3600.0)
    await kit.send(engine, *kit.limited(5), *kit.limited(5, key="x"))
    await kit.take(engine)
    assert await kit.take(engine) == []
    await kit.set_limit(engine, concurrency=4)
    assert (await engine.counts(WORK)).held == 0
    assert len(await kit.take(engine)) == 6


async def those_behind_a_closed_limit_are_counted(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(4, key="x"), *kit.limited(3, key="y"), *kit.limited(2, key="y", delay_s=60.0), *kit.messages(2))
    assert (await engine.counts(WORK)).held == 0
    assert len(await kit.take(engine)) == 4
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.held, counts.leased) == (5, 5, 4)
    [view] = await engine.limits()
    assert (view.running, view.waiting) == (2, 5)
    assert [(each.key, each.running, each.waiting) for each in await engine.buckets(API)] == [("x", 1, 3), ("y", 1, 2)]


async def a_limit_is_shown_as_it_is_in_force(engine: Full) -> None:
    await engine.declare_limits([Limit(name="b", rate=50.0), Limit(name="a", concurrency=3), Limit(name="c", rate=6.0, per_s=60.0, burst=2.0)])
    views = await engine.limits()
    assert [(view.name, view.rate, view.per_s, view.burst, view.concurrency, view.origin) for view in views] == [
        ("a", kit.ENDLESS, 1.0, kit.ENDLESS, 3, "code"),
        ("b", 50.0, 1.0, 10, kit.ENDLESS, "code"),
        ("c", 6.0, 60.0, 2.0, kit.ENDLESS, "code"),
    ]
    assert {(view.running, view.waiting) for view in views} == {(0, 0)}


async def a_bucket_tells_when_it_opens_rounded_up_to_milliseconds(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=3.0, burst=1.0)
    await kit.send(engine, *kit.limited(2, key="x"), *kit.limited(1, key="y"))
    await kit.take(engine)
    opens_at = await engine.now() + 0.334
    assert [(each.key, each.running, each.waiting, round(each.opens_at, 6)) for each in await engine.buckets(API)] == [
        ("x", 1, 1, round(opens_at, 6)),
        ("y", 1, 0, round(opens_at, 6)),
    ]
    time.advance(0.333)
    assert await kit.take(engine) == []
    time.advance(0.001)
    assert len(await kit.take(engine)) == 1


async def buckets_in_which_nothing_happens_are_not_shown(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=1.0, concurrency=5)
    await kit.send(engine, *(message for key in "dcba" for message in kit.limited(1, key=key)))
    for delivery in await kit.take(engine):
        await kit.ok(engine, delivery)
    assert [each.key for each in await engine.buckets(API)] == list("abcd")
    assert [each.key for each in await engine.buckets(API, limit=3)] == list("abc")
    time.advance(1.0)
    assert await engine.buckets(API) == []


async def setting_a_limit_lets_all_look_again_and_declaring_the_same_numbers_does_not(engine: Full) -> None:
    limit = Limit(name=API, concurrency=1)
    await engine.declare_limits([limit])
    await kit.send(engine, *kit.limited(3))
    await kit.take(engine)
    assert await kit.take(engine) == []
    await engine.declare_limits([limit])
    assert (await engine.counts(WORK)).held == 2
    await engine.set_limit(limit)
    assert (await engine.counts(WORK)).held == 0
    assert await kit.take(engine) == []
    assert (await engine.counts(WORK)).held == 2
    await engine.reset_limit(API)
    assert (await engine.counts(WORK)).held == 0


async def a_key_in_which_nothing_is_and_that_no_time_will_open_is_not_shown(engine: Full) -> None:
    await kit.send(engine, *kit.limited(1, key="x"), *kit.limited(1))
    for delivery in await kit.take(engine):
        await kit.ok(engine, delivery)
    await kit.set_limit(engine, concurrency=0)
    assert await engine.buckets(API) == []
    await kit.send(engine, *kit.limited(1, key="x"))
    assert await kit.take(engine) == []
    assert [(each.key, each.waiting, each.opens_at) for each in await engine.buckets(API)] == [("x", 1, kit.ENDLESS)]


async def the_bucket_of_a_queue_is_shown_with_its_leases(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, limits=(API,))])
    await kit.set_limit(engine, concurrency=2)
    await kit.send(engine, *kit.messages(3))
    await kit.take(engine)
    [bucket], [view] = await engine.buckets(API), await engine.limits()
    assert (bucket.key, bucket.running, bucket.opens_at, view.running) == ("", 2, await engine.now() + LEASE_S, 2)


async def numbers_that_are_none_are_refused(engine: Full) -> None:
    bad: tuple[dict[str, Any], ...] = (
        {"rate": 0.0},
        {"rate": -1.0},
        {"rate": 1.0, "burst": 0.5},
        {"rate": 1.0, "per_s": 0.0},
        {"concurrency": -1},
        {"concurrency": 1.5},
        {"rate": 1e-9},
    )
    for numbers in bad:
        with pytest.raises(ValueInvalid):
            await kit.set_limit(engine, **numbers)
        with pytest.raises(ValueInvalid):
            await engine.declare_limits([Limit(name="good"), Limit(name=API, **numbers)])
    with pytest.raises(NameInvalid):
        await kit.set_limit(engine, "a b")
    with pytest.raises(NameInvalid):
        await engine.declare([kit.specs(WORK, limits=("a b",))])
    assert await engine.limits() == []


async def a_message_whose_flow_is_none_is_refused_whole(engine: Full) -> None:
    bad = (
        Flow(tenant="x" * 257),
        Flow(tenant="a\x00b"),
        Flow(tenant="t", weight=0.0),
        Flow(tenant="t", weight=1e9),
        Flow(sticky="s" * 257),
        Flow(claims=(Claim("a b"),)),
        Flow(claims=(Claim("a", "k" * 257),)),
        Flow(claims=(Claim("a", cost=-1.0),)),
        Flow(claims=(Claim("a"), Claim("a"))),
        Flow(claims=tuple(Claim("a", str(number)) for number in range(9))),
        Flow(unique=Unique(key="")),
        Flow(unique=Unique(key="k", states=())),
        Flow(unique=Unique(key="k", states=("gone",))),
        Flow(unique=Unique(key="k", replace=True)),
        Flow(unique=Unique(key="k", window_s=-1.0)),
    )
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    for flow in bad:
        with pytest.raises((ValueInvalid, NameInvalid)):
            await engine.send([kit.message(), kit.message(flow=flow)])
        with pytest.raises((ValueInvalid, NameInvalid)):
            await kit.ok(engine, held, Ack(then=(kit.message(flow=flow),)))
    assert await kit.ready(engine) == 0
    await kit.ok(engine, held)


async def a_message_shows_its_flow(engine: Full) -> None:
    flow = Flow(
        tenant="t", weight=2.5, claims=(Claim(API, "größe", 0.5), Claim("b")), sticky="s", unique=Unique(key="u", states=("ready",), window_s=60.0)
    )
    sent = await kit.send_one(engine, flow=flow)
    assert (await engine.get(sent.id)).message.flow == flow
    assert (await engine.browse(MessageFilter(ids=(sent.id,)))).messages[0].message.flow == flow
    assert (await kit.take_one(engine)).message.flow == flow


async def a_raised_limit_wakes_a_waiting_receive(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    try:
        await engine.declare([kit.specs(WORK)])
        await kit.set_limit(engine, concurrency=0)
        await kit.send(engine, *kit.limited(1))
        assert await kit.take(engine) == []
        [got, _] = await kit.together(lambda: kit.wait_for_one(engine), lambda: kit.in_threads(lambda: kit.set_limit(engine, concurrency=1)))
        assert len(got) == 1
    finally:
        await engine.close()


async def limits_and_what_they_have_counted_are_there_after_a_restart(engine: Full, harness: Harness, time: Time) -> None:
    await engine.declare_limits([Limit(name="code", concurrency=9)])
    await kit.set_limit(engine, rate=1.0, burst=2.0)
    await kit.send(engine, *kit.limited(5))
    assert len(await kit.take(engine)) == 2
    before = await engine.limits()
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    assert await again.limits() == before
    assert await kit.take(again) == []
    time.advance(1.0)
    assert len(await kit.take(again)) == 1
    await again.close()
